"""Secure aggregation inside ciphertexts: the members see the sum, the coordinator sees the sums of
the counters.

    advertise ─ share ─ mask ─ consistency ─ unmask      as masked, in the ring of
                                                         `crypto.he.encrypted_ring`
    witness     the coordinator shows everybody the encrypted sum; each signs what it was shown
    apply       with enough signatures over the very same bytes: decrypt, hand the sum to the model,
                answer what it says

Knows how masks and ciphertexts fit together. Knows nothing of training, links, or of what is made
of a sum.
Always: a member decrypts one sum an attempt, of each bucket, only what enough members signed that
they were shown too, and answers nothing of it but a keyed tag; members that end with equal adapters
answer equal tags. A round that only scores seals nothing: its counters are masked, and end with
`unmask`.

Not covered: a coordinator that alters the encrypted sum alters the members' adapter, in all members
alike, and can learn one bit a round about the sum: whether the altered one still was one that
honest members can have. With buckets it may show members different ones of the signed sums: they
then hold different adapters and take part together no more, and it learns such a bit for each
choice, and whose adapters are equal.
"""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...core import log
from ...core.errors import (
    DisagreementError,
    MessageError,
    ProtocolError,
    RoundAborted,
    ThresholdError,
)
from ...crypto.he.bfv import Packing, key_id
from ...crypto.he.encrypted_ring import (
    CryptoWorker,
    Seal,
    SealedRing,
    SealedTally,
    coefficients,
    open_sum,
)
from ...crypto.identity.keys import bind
from ...crypto.ring import BitRing
from ...crypto.secagg import SecAggConfig
from ...crypto.secagg.snapshot import read_config, spell_config
from ..spec.policy import Policy
from ..store.client_store import TAG_BYTES
from ..wire.messages import RoundId
from . import parts, secagg
from .base import ClientContext, ServerContext, Sum, Values, WireCost
from .buckets import Buckets, Step, buckets
from .hello import occasion, verify
from .secagg import BucketGroup, MaskedClient, MaskedServer
from .update import SAMPLE, Codec, describe

logger = log.get("federation.encrypted")
Names = tuple[str, ...]
RingOf = Callable[[SecAggConfig], SealedRing]
WITNESS, APPLY = "witness", "apply"
SUM, IN, SAYS = "sum", "in", "says/"  # names of a bucket's parts, after its number
STAGES = (*secagg.STAGES, WITNESS, APPLY)


def counters(policy: Policy) -> int:
    """Values at the end of a contribution that are masked and not sealed."""
    return Codec(0, policy).length


def make_seal(policy: Policy, config: SecAggConfig, key: bytes) -> Seal | None:
    """What is sealed of the round that `config` describes; None: nothing.

    Raises:
        ConfigError: a cohort too large for the ciphertexts' noise.
    """
    length = config.length - counters(policy)
    if not length:
        return None
    return Seal(
        packing=Packing(length=length, bits=config.bits, parties=len(config.members)), key_id=key
    )


def make_ring(
    policy: Policy,
    config: SecAggConfig,
    seal: Seal | None,
    bound: bytes,
    crypto_worker: CryptoWorker,
    seed: bytes | None,
) -> SealedRing:
    """The ring of the round that `config` describes."""
    open_part = BitRing(length=counters(policy), bits=config.bits, parties=len(config.members))
    return SealedRing(seal, open_part, bound=bound, seed=seed, crypto_worker=crypto_worker)


def shown(sealed_sum: bytes, bound: bytes, survivors: tuple[str, ...]) -> bytes:
    """What a member signs before it decrypts: the sum, whose it is, and the adapter it is for."""
    return bind(hashlib.sha256(sealed_sum).digest(), bound, *survivors)


class WitnessClient:
    """A member's side until it holds an encrypted sum that others were shown too.

    Args:
        ring: of the round that a config describes; check_frame: raises ProtocolError for a sum of
        another length, key or parameters.
    """

    def __init__(
        self,
        context: ClientContext,
        values: Values,
        tokens: int,
        counted: bool,
        *,
        ring: RingOf,
        check_frame: Callable[[Seal, bytes], object],
    ) -> None:
        self.ring_of, self.check_frame = ring, check_frame
        self.masked = MaskedClient(context, values, tokens, counted, ring=self.ring)
        self.bound = context.model.bound(context.round_id)
        self.config: SecAggConfig | None = None
        self.seal: Seal | None = None
        self.sealed_sum = b""

    @property
    def context(self) -> ClientContext:
        """Who this member is."""
        return self.masked.context

    @property
    def seals(self) -> bool:
        """Is anything sealed? Not in a round that only scores."""
        return self.masked.size > 0

    def ring(self, config: SecAggConfig) -> SealedRing:
        """Of the round that has begun."""
        ring = self.ring_of(config)
        self.config, self.seal = config, ring.seal
        return ring

    @property
    def survivors(self) -> Names:
        """Whose sum it is. Raises MessageError before that is known, and the sum."""
        if self.masked.check is None or self.seal is None or self.config is None:
            raise MessageError("a sum is spoken of that this member was not shown; refused")
        return self.masked.check.survivors

    def answer(self, stage: str, payload: bytes) -> bytes:
        """One stage, up to `witness`."""
        return self.witness(payload) if stage == WITNESS else self.masked.answer(stage, payload)

    def witness(self, sealed_sum: bytes) -> bytes:
        """Check the sum's frame, keep it, sign it."""
        survivors, context = self.survivors, self.context
        assert self.seal is not None
        self.check_frame(self.seal, sealed_sum)
        self.sealed_sum = sealed_sum
        message = shown(sealed_sum, self.bound, survivors)
        return context.identity.sign(occasion(WITNESS, context.policy, context.round_id), message)

    def require_witnesses(self, signatures: Mapping[str, bytes]) -> None:
        """Require that enough members of the sum were shown this very one.

        Raises:
            MessageError: a signature of somebody else or over something else.
            ThresholdError: too few signatures.
        """
        survivors, context = self.survivors, self.context
        assert self.config is not None
        message = shown(self.sealed_sum, self.bound, survivors)
        check_shown(context.policy, context.round_id, message, survivors, signatures)
        enough_shown(len(signatures), self.config.threshold)

    def freeze(self) -> bytes:
        """As `AggregationClient`."""
        config = None if self.config is None else spell_config(self.config)
        return parts.join(
            {
                "config": json.dumps(config).encode("ascii"),
                "masked": self.masked.freeze(),
                "sum": self.sealed_sum,
            }
        )

    def restore(self, kept: bytes) -> None:
        """Go on where `freeze` left it."""
        found = parts.split(kept)
        self.masked.restore(found["masked"])
        if (config := json.loads(found["config"])) is not None:
            self.ring(read_config(config))
        self.sealed_sum = found["sum"]


class EncryptedClient:
    """A member's side of one attempt, where every member holds the key."""

    def __init__(self, context: ClientContext, values: Values, tokens: int, counted: bool) -> None:
        """Take the key that the attempt is under.

        Raises:
            MessageError: this member has no key of this epoch.
        """
        assert context.secrets is not None  # the member has some in sealed mode
        seed = context.secrets.store.seed(context.policy.digest)
        if seed is None:
            raise MessageError(
                "this member lacks the members' key; it must be asked to greet first"
            )
        self.seed, self.crypto_worker = seed, context.secrets.crypto_worker
        self.sum = WitnessClient(
            context, values, tokens, counted, ring=self.ring, check_frame=rows_of
        )

    @property
    def context(self) -> ClientContext:
        """Who this member is."""
        return self.sum.context

    @property
    def stages(self) -> tuple[str, ...]:
        """A round that only scores seals nothing."""
        return STAGES if self.sum.seals else secagg.STAGES

    def ring(self, config: SecAggConfig) -> SealedRing:
        """Modulo t, under this member's key, for those who have the same key and adapter."""
        policy = self.context.policy
        seal = make_seal(policy, config, key_id(self.seed))
        return make_ring(policy, config, seal, self.sum.bound, self.crypto_worker, self.seed)

    def answer(self, stage: str, payload: bytes) -> bytes:
        """One stage.

        Raises:
            As `MaskedClient.answer`, and ProtocolError for a sum that cannot be opened; the adapter
            is then unchanged.
        """
        return self.apply(payload) if stage == APPLY else self.sum.answer(stage, payload)

    def apply(self, payload: bytes) -> bytes:
        """Decrypt, and let the model step; answer the new adapter's tag.

        Raises:
            MessageError: a signature of somebody else or over something else.
            ThresholdError: too few signatures.
            ProtocolError, WorkerError: not a sum under our key.
            DataError: a sum that so many members cannot have.
        """
        given, context = parts.split(payload), self.context
        # as many as were ready allow, which may be one
        split = buckets(
            context.policy, b"", self.sum.masked.contributors.ready, context.sum_context.shares
        )
        if len(split) > 1:
            sums = [self.open(*one) for one in self.pooled(given, split)]
        else:
            self.sum.require_witnesses(given)
            sums = [self.open(split[0], self.sum.survivors, self.sum.sealed_sum)]
        return context.model.apply(context.round_id, context.sum_context, sums)

    def open(self, cohort: Names, names: Names, sealed_sum: bytes) -> Sum:
        """The sum [n] over `names` of those that were ready together. Raises as `apply`."""
        seal = self.sum.seal
        assert seal is not None
        packing = dataclasses.replace(seal.packing, parties=len(cohort))
        seal = dataclasses.replace(seal, packing=packing)
        return Sum(open_sum(seal, self.seed, sealed_sum, self.crypto_worker), names)

    def pooled(
        self, given: dict[str, bytes], split: tuple[Names, ...]
    ) -> list[tuple[Names, Names, bytes]]:
        """The sums of all buckets of `split` that are shown: who was in it, who is in the sum, and
        the sum.

        Raises:
            MessageError: not this member's own among them; one that no bucket can have, or a
                signature of somebody else or over something else.
            ThresholdError: too few signatures under one.
        """
        context, found = self.context, list[Any]()
        policy, contributors, mine = (
            context.policy,
            self.sum.masked.contributors,
            self.sum.survivors,
        )
        for number, cohort in enumerate(split):
            if f"{number}/{SUM}" not in given:
                continue  # its sum was not opened: too few were left
            sealed_sum, names = given[f"{number}/{SUM}"], read_names(given.get(f"{number}/{IN}"))
            own = context.name in cohort
            if own and (sealed_sum, names) != (self.sum.sealed_sum, mine):
                raise MessageError("another sum than the one that this member signed; refused")
            need = BucketGroup.of(cohort, len(context.cohort), contributors).threshold(policy)
            short = context.sum_context.shares is not None and context.sum_context.shares.short(
                names
            )
            if not set(names) <= set(cohort) or len(names) < need or short:
                raise MessageError(
                    f"a bucket's sum over {len(names)} members of its {len(cohort)}, need {need}; "
                    "refused"
                )
            says = f"{number}/{SAYS}"
            signed = {
                name.removeprefix(says): one for name, one in given.items() if name.startswith(says)
            }
            message = shown(sealed_sum, self.sum.bound, names)
            check_shown(policy, context.round_id, message, names, signed)
            enough_shown(len(signed), need)
            found.append((cohort, names, sealed_sum))
        if not any(context.name in cohort for cohort, _, _ in found):
            raise MessageError("the sums of others came without this member's own; refused")
        return found

    def freeze(self) -> bytes:
        """As `AggregationClient`."""
        return self.sum.freeze()

    def restore(self, kept: bytes) -> None:
        """As `AggregationClient`."""
        self.sum.restore(kept)


def rows_of(seal: Seal, sealed_sum: bytes) -> object:
    """Its ciphertexts. Raises ProtocolError: another length, key or parameters than ours."""
    return seal.rows(sealed_sum, seal.packing.parameters.ciphertext_bytes, "the sealed sum")


def read_names(data: bytes | None) -> Names:
    """Sorted, different names. Raises MessageError for anything else."""
    found = (data or b"").decode("ascii", "replace").split("\n")
    if found != sorted(set(found)) or not all(found):
        raise MessageError("whose sum a bucket's is, is malformed; refused")
    return tuple(found)


def check_shown(
    policy: Policy, round_id: RoundId, message: bytes, names: Names, signatures: Mapping[str, bytes]
) -> None:
    """Require signatures of members of the sum over what they were shown. Raises MessageError."""
    for name, signature in signatures.items():
        if name not in names:
            raise MessageError(f"{name} signed the sum without being in it; refused")
        verify(policy, name, occasion(WITNESS, policy, round_id), message, signature)


def enough_shown(found: int, need: int) -> None:
    """So that no two members decrypt different sums of one attempt. Raises ThresholdError."""
    if found < need:
        raise ThresholdError(
            f"{found} members were shown this sum, need {need}; it is not decrypted"
        )


class WitnessServer:
    """The coordinator's side until those whose sum it is were shown it, encrypted.

    Args:
        ring: the members' of the round that a config describes, without their key.
    """

    def __init__(self, context: ServerContext, cohort: Names, *, ring: RingOf) -> None:
        assert context.common is not None  # our bug: nobody was set up
        self.policy, self.round_id, self.common = context.policy, context.round_id, context.common
        self.ring_of = ring
        self.masked = MaskedServer(context, cohort, ring=self.ring)
        self.sealed_sum = b""
        self.signatures: dict[str, bytes] = {}

    def ring(self, config: SecAggConfig) -> SealedRing:
        """Of this round."""
        ring = self.ring_of(config)
        self.seal, self.contribution_bytes = ring.seal, ring.wire_bytes
        return ring

    @property
    def survivors(self) -> Names:
        """Whose contributions are in the sum, by name."""
        return tuple(sorted(self.masked.opened.survivors))

    @property
    def threshold(self) -> int:
        """Members without whom nothing is opened."""
        return self.masked.config.threshold

    def receive(self, party: str, payload: bytes) -> None:
        """Take one answer.

        Raises:
            ProtocolError, AuthenticationError, WorkerError: refused; nothing was changed.
        """
        if self.sealed_sum:
            self.sign(party, payload)
        else:
            self.masked.receive(party, payload)

    def sign(self, party: str, signature: bytes) -> None:
        """Note a signature over the sum. Raises ProtocolError for one that is none: it would
        stop all members.
        """
        message = shown(self.sealed_sum, self.common.bound, self.survivors)
        context = occasion(WITNESS, self.policy, self.round_id)
        try:
            verify(self.policy, party, context, message, signature)
        except MessageError as error:
            raise ProtocolError(str(error)) from error
        self.signatures[party] = signature

    def advance(self) -> Step | None:
        """The next stage; None once enough were shown the sum, or where nothing was sealed.

        Raises:
            ThresholdError, ProtocolError, WorkerError: as masked; there is no sum.
            RoundAborted: too few members were shown the sum.
        """
        if self.sealed_sum:
            self.enough(len(self.signatures), "were shown the sum")
            return None
        step = self.masked.advance()
        return step if step is not None or self.seal is None else self.show()

    def show(self) -> Step:
        """The encrypted sum, for everybody whose contribution is in it."""
        tally = self.masked.server.values
        assert isinstance(tally, SealedTally)  # our ring's
        self.sealed_sum = tally.sealed_sum
        return WITNESS, dict.fromkeys(self.survivors, self.sealed_sum)

    def enough(self, found: int, what: str) -> None:
        """Raises RoundAborted below the threshold."""
        if found < self.threshold:
            raise RoundAborted(f"{found} members {what}, need {self.threshold}")

    def agreed(self, tags: Mapping[str, bytes]) -> None:
        """Do members that applied the sum hold the same adapter now?

        Raises:
            RoundAborted: too few applied it.
            DisagreementError: they ended with different adapters.
        """
        self.enough(len(tags), "applied the sum")
        (_, most), *others = Counter(tags.values()).most_common()
        if most < self.threshold:
            raise DisagreementError(
                f"{len(tags)} members ended the round with {1 + len(others)} different "
                f"adapters, {self.threshold} "
                "must agree; look at their versions, then start the run again"
            )

    @property
    def sample(self) -> bytes | None:
        """What the coordinator held of one member, encrypted; None where nothing was."""
        sample, members = self.masked.sample, len(self.masked.config.members)
        if sample is None or self.seal is None:
            return None
        return secagg.payload_of(sample, self.contribution_bytes, members)

    def sums(self, held: dict[str, object]) -> tuple[Sum]:
        """The counters' sums. Args: held: what the coordinator held of one member."""
        return (dataclasses.replace(self.masked.total(), held=held),)


def check_tag(party: str, payload: bytes) -> bytes:
    """An answered tag. Raises ProtocolError: none."""
    if len(payload) != TAG_BYTES:
        raise ProtocolError(
            f"{party} answered a tag of {len(payload)} bytes, {TAG_BYTES} expected; refused"
        )
    return payload


class EncryptedServer:
    """The coordinator's side of one attempt."""

    opens_at = MaskedServer.opens_at

    def __init__(self, context: ServerContext, cohort: Names) -> None:
        assert context.crypto_worker is not None  # our bug: a mode without ciphertexts
        self.context, self.crypto_worker = context, context.crypto_worker
        self.applying, self.tags = False, dict[str, bytes]()
        self.sum = WitnessServer(context, cohort, ring=self.ring)

    def ring(self, config: SecAggConfig) -> SealedRing:
        """The members' ring, without their key."""
        policy, common = self.context.policy, self.context.common
        assert common is not None  # as in `WitnessServer`
        seal = make_seal(policy, config, common.key_id)
        return make_ring(policy, config, seal, common.bound, self.crypto_worker, None)

    def begin(self) -> Step:
        """As `AggregationServer`."""
        return self.sum.masked.begin()

    def receive(self, party: str, payload: bytes) -> None:
        """Take one answer. Raises as `WitnessServer.receive`, ProtocolError for what is no tag."""
        if self.applying:
            self.tags[party] = check_tag(party, payload)
        else:
            self.sum.receive(party, payload)

    def advance(self) -> Step | None:
        """The next stage; None once the members keep the next adapter, or the counters of a scoring
        round are open.

        Raises:
            As `WitnessServer.advance`, `WitnessServer.agreed`.
        """
        if self.applying:
            self.sum.agreed(self.tags)
            return None
        step, signatures = self.sum.advance(), self.sum.signatures
        if step is not None or self.sum.seal is None:
            return step
        self.applying = True
        return APPLY, dict.fromkeys(signatures, parts.join(signatures))

    def sums(self) -> tuple[Sum]:
        """The counters' sums, with what the coordinator held of one member, encrypted."""
        sample, seal = self.sum.sample, self.sum.seal
        if sample is None or seal is None:
            return self.sum.sums({})
        about = describe(coefficients(seal, sample), "sealed", 256)
        opened = coefficients(seal, self.sum.sealed_sum)[:SAMPLE]
        return self.sum.sums({**about, "sum_words": opened.tolist()})


class EncryptedBuckets(Buckets):
    """Several sealed sums at once: every member decrypts all of them, since all step alike."""

    def __init__(self, servers: Sequence[tuple[tuple[str, ...], EncryptedServer]]) -> None:
        super().__init__(servers)
        self.sealed = list(servers)  # by number, whatever becomes of them

    def advance(self) -> Step | None:
        """As `Buckets`; with the signatures over each sum everybody is shown all the sums.

        Raises:
            As `Buckets`. DisagreementError: members ended with different adapters.
        """
        step, left = super().advance(), [server for _, server in self.servers]
        going = [(at, server) for at, (_, server) in enumerate(self.sealed) if server in left]
        if step is None:
            if len({tag for _, server in going for tag in server.tags.values()}) > len(going):
                logger.warning("some members ended with another adapter than the others")
            alike = [Counter(server.tags.values()).most_common(1) for _, server in going]
            if len({most[0][0] for most in alike if most}) > 1:
                raise DisagreementError(
                    "members of different buckets ended the round with different adapters; look at "
                    "their versions, then start the run again"
                )
            return None
        if step[0] != APPLY:
            return step
        shown_all: dict[str, bytes] = {}
        for number, server in going:
            shown_all[f"{number}/{SUM}"] = server.sum.sealed_sum
            shown_all[f"{number}/{IN}"] = "\n".join(server.sum.survivors).encode("ascii")
            signatures = server.sum.signatures.items()
            shown_all |= {f"{number}/{SAYS}{name}": signature for name, signature in signatures}
        return APPLY, dict.fromkeys(step[1], parts.join(shown_all))


SETUP_BYTES = 3000  # hellos, and signatures over the encrypted sum


def wire_cost(policy: Policy, size: int, cohort: int) -> WireCost:
    """What a contribution of `size` values costs in a cohort of so many, and the sum."""
    packing = Packing(length=size, bits=policy.protection.bits, parties=cohort)
    overhead = secagg.message_bytes(cohort) + SETUP_BYTES
    down = packing.rows * packing.parameters.ciphertext_bytes
    return WireCost(packing.wire_bytes + overhead, down + overhead)
