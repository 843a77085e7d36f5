"""Secure aggregation as a protection: the coordinator sees the sum of the survivors, nothing else.

Knows `crypto.secagg` and how its stages map onto messages. Knows nothing of training or links.
Always: a member takes threshold and minimum from its own copy of the signed federation file and
from whom it was told to be asked; from the coordinator it takes only the names of those that are
ready, and those must be in the roster, and enough.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...core import log
from ...core.errors import MessageError, ProtocolError, ThresholdError
from ...crypto.identity.keys import SIGNATURE_BYTES, PublicIdentity
from ...crypto.ring import BitRing, Range, Ring, TokenRing
from ...crypto.secagg import (
    Floor,
    SecAggClient,
    SecAggConfig,
    SecAggResult,
    SecAggServer,
    snapshot,
    tag,
)
from ...crypto.secagg.client import SumCheck
from ...crypto.secagg.session import CLAIM_LIMIT
from ...crypto.shared import once
from ..spec.policy import MAX_BITS, Policy, canonical
from ..wire import messages
from ..wire.messages import RoundId
from . import delta_chain, parts
from .base import (
    MAX_PEERS,
    MESSAGE_BYTES,
    PEER_BYTES,
    ClientContext,
    Contributors,
    ServerContext,
    Sum,
    Values,
    WireCost,
)
from .buckets import buckets
from .rank_masks import RankMasks, rank_masks_of
from .update import SAMPLE, Codec, SumContext, describe, seed_of

logger = log.get("federation.secagg")
RingOf = Callable[[SecAggConfig], Ring]
WORD = "<u2"  # of a value; 16 bits are as many as a federation may have
assert MAX_BITS <= 16
STAGES = ("advertise", "share", "mask", "consistency", "unmask")
# after them, where members check the sums they are shown: the opened sum, and its tag
ATTEST = "attest"


@dataclass(frozen=True, slots=True)
class BucketGroup:
    """One sum's members, and what its floors follow from. Everybody in it knows all of this alike.

    Args:
        asked: how many were asked for the round; ready: everybody who is summed in some bucket;
            scoring: members of the cohort whose contributions hold scores; subjects: as
            `rounds.client.subjects`, at a member.
    """

    cohort: tuple[str, ...]
    asked: int
    ready: tuple[str, ...]
    scoring: tuple[str, ...] = ()
    subjects: tuple[bytes, ...] = ()

    @staticmethod
    def of(
        cohort: tuple[str, ...],
        asked: int,
        contributors: Contributors,
        subjects: tuple[bytes, ...] = (),
    ) -> "BucketGroup":
        """The sum over `cohort`, one of the buckets of those that are ready."""
        members = frozenset(cohort)
        scoring = tuple(name for name in contributors.scoring if name in members)
        return BucketGroup(cohort, asked, contributors.ready, scoring, subjects)

    def threshold(self, policy: Policy) -> int:
        """Survivors and signatures without which the sum is not opened.

        Of all that are ready: `Policy.needed`. Of a bucket, which is a sum over few: more than two
        thirds, more than what two sets of survivors need that only colluders are in both of, and
        `Policy.smallest_sum`.
        """
        if len(self.cohort) == len(self.ready):
            return policy.needed(self.asked)
        n = len(self.cohort)
        return max(
            policy.protection.threshold,
            2 * n // 3 + 1,
            (n + policy.colluders) // 2 + 1,
            policy.smallest_sum,
        )

    def score_floor(self, policy: Policy) -> int:
        """Of the members that score, how many any sum must have; 0: enough of them are in any, or
        scores are in none.

        In buffered rounds a sum that is not opened costs all its members a training: rather none
        has scores.
        """
        n, need, most = len(self.cohort), self.threshold(policy), policy.protection.min_cohort
        certain = len(self.scoring) - (n - need)
        return (
            0 if certain >= most or len(self.scoring) < most or policy.schedule.buffered else most
        )

    def scores(self, policy: Policy) -> bool:
        """Are scores in the sum? Only if those of enough members are, in any sum that may be
        opened.
        """
        certain = len(self.scoring) - (len(self.cohort) - self.threshold(policy))
        return certain >= policy.protection.min_cohort or self.score_floor(policy) > 0


def agree(
    policy: Policy,
    round_id: RoundId,
    group: BucketGroup,
    length: int,
    *,
    counted: bool,
    context: bytes,
    shares: RankMasks | None = None,
) -> SecAggConfig:
    """What every member of a group must configure alike for `round_id`.

    Args:
        counted: training tokens count towards `min_tokens`; they do not in a round that only
        scores. context: `messages.session_context` of what this side was told, or tells.
        shares: who trains which columns: those that train the most are enough in any sum, or it is
        not opened.

    Raises:
        ConfigError: fewer of them are in the cohort than a sum may be of.
    """
    protection = policy.protection
    floors = (
        [] if shares is None else [Floor(shares.full_rank.intersection(group.cohort), shares.floor)]
    )
    if scorers := group.score_floor(policy):
        floors.append(Floor(frozenset(group.scoring), scorers))
    return SecAggConfig(
        federation=hashlib.sha256(policy.digest + bytes.fromhex(round_id.run)).digest(),
        round=round_id.round,
        attempt=round_id.attempt,
        members=public_identities(policy, group.cohort),
        threshold=group.threshold(policy),
        min_cohort=protection.min_cohort,
        min_tokens=protection.min_tokens if counted else 0,
        length=length,
        bits=protection.bits,
        floors=tuple(floors),
        context=context,
        subjects=group.subjects,
        tagged=length - Codec(0, policy).length if counted and delta_chain.attested(policy) else 0,
    )


class MaskedClient:
    """A member's side of one attempt. Args: ring: what is summed in."""

    def __init__(
        self,
        context: ClientContext,
        values: Values,
        tokens: int,
        counted: bool,
        *,
        ring: RingOf | None = None,
    ) -> None:
        self.context, self.ring = context, ring or bit_ring
        self.values: Values | None = values
        self.size = values.size - Codec(0, context.policy).length  # of the update
        self.tokens, self.counted = tokens, counted
        self.contributors = Contributors(())  # who is ready, once this member was told
        self.client: SecAggClient | None = None
        self.check: SumCheck | None = None  # what is left of the client once the sum is open

    @property
    def stages(self) -> tuple[str, ...]:
        """In this order, each once."""
        attested = self.counted and delta_chain.attested(self.context.policy)
        return (*STAGES, ATTEST) if attested else STAGES

    def answer(self, stage: str, payload: bytes) -> bytes:
        """One stage.

        Raises:
            MessageError: a cohort that the roster or its minimum does not allow.
            ProtocolError, AuthenticationError, ThresholdError: as `SecAggClient`; nothing was
            revealed.
        """
        if stage == "advertise":
            context = self.context
            config = self.join(payload)
            self.client = SecAggClient(
                config,
                context.name,
                context.identity,
                ring=self.ring(config),
                ledger=context.sums,
                vouch=context.vouch,
                relies=context.relies,
            )
            return self.client.advertise()
        if stage == ATTEST:
            return self.attest(payload)
        if self.client is None:
            raise ProtocolError(f"found stage {stage!r} before 'advertise'; refused")
        if stage == "mask":
            assert self.values is not None
            masked = self.client.mask(payload, self.values, self.tokens)
            self.values = None
            return masked
        steps = {
            "share": self.client.share,
            "consistency": self.client.consistency,
            "unmask": self.client.unmask,
        }
        answer = steps[stage](payload)
        if stage == "unmask":
            self.check = self.client.check
        return answer

    def attest(self, payload: bytes) -> bytes:
        """Sign the opened sum, if it is the one of those that this member helped to open it for.

        Raises:
            MessageError: malformed.
            ProtocolError: another sum, or another's; it is not signed, so no step of the adapter
            can be made of it.
        """
        context, check = self.context, self.check
        if check is None:
            raise ProtocolError(f"found stage {ATTEST!r} before 'unmask'; refused")
        bits, parties = context.policy.protection.bits, len(check.survivors)
        whole, tags = delta_chain.decode_shown(payload, self.size, parties, bits)
        if not check.fits(whole, tags):
            raise ProtocolError(
                "the sum that was shown is not the one that was opened, or one of its members sent "
                "a wrong tag; it is not "
                "signed"
            )
        digest = delta_chain.digest_of(whole)
        context.model.keep_sum(digest, whole)  # the step that is made of it need not bring it again
        return context.identity.sign(
            *delta_chain.statement(
                context.policy, context.round_id, digest, check.survivors, context.sum_context
            )
        )

    def join(self, ready: bytes) -> SecAggConfig:
        """The sum that this member is in; its scores are wiped here if they would be among too few.

        Args:
            ready: who is, as it was told.

        Raises:
            MessageError: as `read_contributors`.
        """
        context, shares = self.context, self.context.sum_context.shares
        policy, contributors = context.policy, read_contributors(ready, context)
        assert self.values is not None  # the party calls each stage once
        self.contributors, cohort = contributors, contributors.ready
        groups = context.sum_context.groups
        if policy.aggregation.buckets > 1 or groups:
            adapter = context.sum_context.adapter
            split = buckets(policy, adapter, contributors.ready, shares, groups)
            cohort = next(one for one in split if context.name in one)
        group = BucketGroup.of(cohort, len(context.cohort), contributors, context.subjects)
        told = messages.session_context(context.sum_context.broadcast_digest, ready)
        length, counted = self.values.size, self.counted
        config = once(
            (policy.digest, context.round_id),
            (group, told, length, counted, shares),
            lambda: agree(
                policy, context.round_id, group, length,
                counted=counted, shares=shares, context=told,
            ),
        )  # fmt: skip
        if not group.scores(policy):
            self.values = without_scores(self.values, policy)
        # the exact count stays here: the total tells what the claims tell, no more
        unit = config.token_unit
        self.tokens = min(self.tokens // unit, CLAIM_LIMIT) * unit if unit else 0
        return config

    def freeze(self) -> bytes:
        """As `AggregationClient`. Values that have been masked are not in it.

        Hazard: as `crypto.secagg.snapshot`, and until stage `mask` it also holds the update.
        """
        context, sum_context, check = self.context, self.context.sum_context, self.check
        fields = {
            "asked": context.cohort,
            "ready": self.contributors.ready,
            "scoring": self.contributors.scoring,
            "vouch": context.vouch,
            "relies": context.relies,
            "told": sum_context.broadcast_digest.hex(),
            "adapter": sum_context.adapter.hex(),
            "scores": context.scores,
            "subjects": [subject.hex() for subject in context.subjects],
            "start": sum_context.start,
            "ranges": [dataclasses.astuple(one) for one in sum_context.ranges],
            "groups": sum_context.groups,
            "tokens": self.tokens,
            "counted": self.counted,
            "check": None if check is None else [check.key.hex(), check.survivors],
            "size": self.size,
        }
        going = self.client is not None and check is None
        return parts.join(
            {
                "fields": json.dumps(fields).encode("ascii"),
                **({"client": snapshot.freeze(self.client)} if self.client and going else {}),
                **({} if self.values is None else {"values": narrow(self.values)}),
            }
        )

    def restore(self, kept: bytes) -> None:
        """Go on where `freeze` left it; who was asked and what was told are taken from the bytes.

        Raises:
            MessageError, ProtocolError: of another session than the federation file's.
        """
        found = parts.split(kept)
        fields = json.loads(found["fields"])
        asked, context = tuple(fields["asked"]), self.context
        shares = (
            rank_masks_of(context.policy, asked, context.round_id.attempt)
            if fields["counted"]
            else None
        )
        # as far as it needs them once its values are spelled
        sum_context = SumContext(
            tuple(Range(*one) for one in fields["ranges"]),
            seed_of(context.policy, context.round_id),
            bytes.fromhex(fields["told"]),
            fields["start"],
            shares,
            bytes.fromhex(fields["adapter"]),
            tuple(map(tuple, fields["groups"])),
        )
        self.context = dataclasses.replace(
            context,
            sum_context=sum_context,
            cohort=asked,
            vouch=fields["vouch"],
            relies=fields["relies"],
            scores=fields["scores"],
            subjects=tuple(bytes.fromhex(subject) for subject in fields["subjects"]),
        )
        self.tokens, self.counted, self.size = fields["tokens"], fields["counted"], fields["size"]
        self.contributors = Contributors(tuple(fields["ready"]), tuple(fields["scoring"]))
        values = found.get("values")
        self.values = None if values is None else np.frombuffer(values, WORD).astype(np.uint64)
        if (check := fields["check"]) is not None:
            self.check = SumCheck(bytes.fromhex(check[0]), tuple(check[1]))
        if (client := found.get("client")) is not None:
            self.client = snapshot.thaw(
                client, context.name, context.identity, ring_of=self.ring, ledger=context.sums
            )


def narrow(values: Values) -> bytes:
    """Values in as few bytes as they need; the ring widens them again."""
    narrowed = values.astype(WORD)
    if not np.array_equal(narrowed, values):
        raise ProtocolError(
            f"a value needs more than {MAX_BITS} bits; an update does not hold such values"
        )  # our bug
    return narrowed.tobytes()


def bit_ring(config: SecAggConfig) -> BitRing:
    """Masked mode's."""
    return BitRing(length=config.words, bits=config.bits, parties=len(config.members))


class MaskedServer:
    """The coordinator's side of one attempt.

    Args:
        cohort: whose contributions are summed; ring: as the members'.
    """

    opens_at = STAGES[2]  # a masked upload is used up when it leaves, whatever becomes of it

    def __init__(
        self, context: ServerContext, cohort: tuple[str, ...], *, ring: RingOf | None = None
    ) -> None:
        policy, sum_context = context.policy, context.sum_context
        self.policy, self.round_id, self.sum_context = policy, context.round_id, sum_context
        self.cohort, self.ready = cohort, encode_contributors(context.contributors)
        self.config = agree(
            policy,
            context.round_id,
            BucketGroup.of(cohort, context.asked, context.contributors),
            context.length,
            counted=context.counted,
            context=messages.session_context(sum_context.broadcast_digest, self.ready),
            shares=sum_context.shares,
        )
        self.proof: dict[str, bytes] = {}
        self.packed: tuple[str, bytes] | None = None  # the opened sum, as it travels
        self.statement = (b"", b"")  # and what its members sign about it
        self.server = SecAggServer(self.config, ring=(ring or bit_ring)(self.config))
        self.done = 0  # stages that are over
        self.sample: bytes | None = None  # one masked contribution, for the report

    def begin(self) -> tuple[str, Mapping[str, bytes]]:
        """Name the cohort, ask for round keys."""
        return STAGES[0], dict.fromkeys(self.cohort, self.ready)

    def receive(self, party: str, payload: bytes) -> None:
        """Take one answer.

        Raises:
            ProtocolError, AuthenticationError: refused; the server's state is unchanged.
        """
        if self.done == len(STAGES):
            self.witnessed(party, payload)
            return
        self.server.receive(party, payload)
        if STAGES[self.done] == "mask" and self.sample is None:
            self.sample = payload

    def advance(self) -> tuple[str, Mapping[str, bytes]] | None:
        """The next stage.

        Raises:
            ThresholdError: too few answered, and nothing can be opened; or too few found the opened
            sum to be theirs.
        """
        if self.done == len(STAGES):
            need = delta_chain.witnesses(len(self.opened.survivors))
            if len(self.proof) < need:
                raise ThresholdError(
                    f"{len(self.proof)} members signed the opened sum, need "
                    f"{need}; no step is made of it"
                )
            return None
        payloads = self.server.advance()
        if wrong := self.server.wrong:
            logger.warning(
                "%s revealed other shares than were dealt; the sum was opened without them",
                ", ".join(wrong),
            )
        self.done += 1
        if self.done < len(STAGES):
            return STAGES[self.done], payloads
        if not self.config.tagged:
            return None
        return ATTEST, dict.fromkeys(self.opened.survivors, self.shown())

    @property
    def opened(self) -> SecAggResult:
        """What `unmask` opened."""
        assert self.server.result is not None
        return self.server.result

    def shown(self) -> bytes:
        """The opened sum with its tag, for those whose sum it is."""
        survivors, whole = self.opened.survivors, self.opened.total[: self.config.tagged]
        self.packed = delta_chain.pack(whole, len(survivors), self.config.bits)
        digest = delta_chain.digest_of(whole)
        self.statement = delta_chain.statement(
            self.policy, self.round_id, digest, survivors, self.sum_context
        )
        return delta_chain.encode_shown(self.packed, self.opened.tags)

    def witnessed(self, party: str, signature: bytes) -> None:
        """Note a signature under the opened sum. Raises ProtocolError for one that is none: it
        would stop all members.
        """
        if not delta_chain.signed_by(
            self.policy, self.statement, self.opened.survivors, {party: signature}
        ):
            raise ProtocolError(f"{party} did not sign the sum that was opened; refused")
        self.proof[party] = signature

    def total(self) -> Sum:
        """The survivors' sum."""
        result, proof = self.opened, dict(sorted(self.proof.items()))
        survivors = tuple(sorted(result.survivors))
        return Sum(result.total, survivors, proof=proof, packed=self.packed)

    def sums(self) -> tuple[Sum]:
        """The survivors' sum, with what the coordinator held of one member."""
        total = self.total()
        return (dataclasses.replace(total, held=self.held(total.total)),)

    def held(self, total: npt.NDArray[np.int64]) -> dict[str, object]:
        """What the coordinator held of one member, beside the sum."""
        if self.sample is None:
            return {}
        n = len(self.config.members)
        ring = bit_ring(self.config)
        words = ring.unpack(payload_of(self.sample, ring.wire_bytes, n))
        return {**describe(words, "masked", 1 << ring.bits), "sum_words": total[:SAMPLE].tolist()}


def encode_contributors(contributors: Contributors) -> bytes:
    """One spelling of who is ready."""
    return canonical({"ready": list(contributors.ready), "scoring": list(contributors.scoring)})


def decode_contributors(payload: bytes) -> Contributors:
    """Read what `encode_contributors` wrote.

    Raises:
        MessageError: malformed, or not in the one spelling.
    """
    try:
        fields = json.loads(payload)
        found = Contributors(tuple(fields["ready"]), tuple(fields["scoring"]))
        names = all(isinstance(name, str) for name in (*found.ready, *found.scoring))
        good = names and encode_contributors(found) == payload
    except (ValueError, TypeError, KeyError, RecursionError):
        good = False
    if not good:
        raise MessageError("the list of who is ready is malformed; refused")
    for listed in (found.ready, found.scoring):
        if list(listed) != sorted(set(listed)):
            raise MessageError(
                "the list of who is ready is not one of sorted, different names; refused"
            )
    if not set(found.ready) >= set(found.scoring):
        raise MessageError("scores are said to come from members that are not ready; refused")
    return found


def read_contributors(payload: bytes, context: ClientContext) -> Contributors:
    """Check the coordinator's word on who takes part against the signed roster, who was asked, and
    what the file needs.

    Raises:
        MessageError: malformed, without this member, with strangers or members that were not asked,
            too few, or wrong about this member's scores.
    """
    policy, name = context.policy, context.name
    found = once((policy.digest, context.round_id), payload, lambda: decode_contributors(payload))
    if name not in found.ready or any(policy.member(one) is None for one in found.ready):
        raise MessageError("the cohort names strangers, or not this node; refused")
    if not set(context.cohort) >= set(found.ready):
        raise MessageError("the cohort names members that were not asked; refused")
    # The node's own number, from its own file and whom it was told to be asked: never from the list
    # of those that are ready.
    if len(found.ready) < (need := policy.needed(len(context.cohort))):
        raise MessageError(
            f"{len(found.ready)} of {len(context.cohort)} members that were asked are ready, need "
            f"{need}"
            f"{policy.advice(len(found.ready))}; refused"
        )
    # so that nobody is told of scores that are not there
    if (name in found.scoring) != context.scores:
        raise MessageError(
            "the list of whose contributions hold scores is wrong about this member; refused"
        )
    return found


def public_identities(policy: Policy, cohort: tuple[str, ...]) -> dict[str, PublicIdentity]:
    """The cohort's keys, from the signed roster."""
    wanted = frozenset(cohort)
    return {
        member.name: PublicIdentity(bytes.fromhex(member.key))
        for member in policy.members
        if member.name in wanted
    }


def without_scores(values: Values, policy: Policy) -> Values:
    """A contribution [length] whose scores are zero."""
    codec, left = Codec(0, policy), values.copy()
    counters = left[left.size - codec.length :]
    counters[codec.scores] = 0
    return left


def payload_of(upload: bytes, size: int, cohort: int) -> bytes:
    """The masked values in a member's upload, which ends with them and then its token count."""
    end = len(upload) - TokenRing(cohort).limbs.wire_bytes
    return upload[end - size : end]


def message_bytes(cohort: int) -> int:
    """Of a masked round's messages besides contributions."""
    return MESSAGE_BYTES + PEER_BYTES * min(cohort, MAX_PEERS)


def proof_bytes(cohort: int) -> int:
    """Of a member, about: what an opened sum that comes back is checked with, and signed."""
    return cohort * (tag.SEED_BYTES + 2 * SIGNATURE_BYTES)


def wire_cost(policy: Policy, size: int, cohort: int) -> WireCost:
    """What a contribution of `size` values costs in a cohort of so many; where members sign the
    opened sum, it comes back, and boxes and uploads carry what it is checked with.
    """
    length, bits, overhead = (
        Codec(size, policy).length,
        policy.protection.bits,
        message_bytes(cohort),
    )
    shown = 0
    if delta_chain.attested(policy):
        shown = BitRing(length=size, bits=bits, parties=cohort).wire_bytes
        length += tag.width(bits)
        overhead += proof_bytes(cohort)
    words = BitRing(length=length, bits=bits, parties=cohort).wire_bytes
    return WireCost(words + overhead, shown + overhead)
