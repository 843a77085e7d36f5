"""Secure aggregation inside ciphertexts: the members see the sum, the coordinator sees the sums of
the counters.

    advertise ─ share ─ mask ─ consistency ─ unmask      as masked, in the ring of
                                                         `crypto.he.encrypted_ring`
    witness     the coordinator shows everybody the encrypted sum; each signs what it was shown
    apply       with enough signatures over the very same bytes: decrypt, step the adapter, keep it,
                answer its tag

Knows how masks, ciphertexts and the server's optimizer fit together. Knows nothing of training or
links.
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
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ...core import log
from ...core.errors import (
    DisagreementError,
    MessageError,
    ProtocolError,
    RoundAborted,
    ThresholdError,
)
from ...crypto.he.bfv import Packing, key_id
from ...crypto.he.encrypted_ring import Desk, Seal, SealedRing, SealedTally, coefficients, open_sum
from ...crypto.identity.keys import bind
from ...crypto.ring import BitRing
from ...crypto.secagg import SecAggConfig
from ..spec.policy import Policy
from ..store.client_store import TAG_BYTES
from ..wire.messages import RoundId
from . import parts
from . import secagg as masked
from .base import ClientContext, ServerContext, Sum, Values
from .buckets import Buckets, Step, buckets
from .hello import occasion, verify
from .secagg import BucketGroup, MaskedClient, MaskedServer
from .update import SAMPLE, Codec, describe

logger = log.get("federation.encrypted")
Names = tuple[str, ...]
WITNESS, APPLY = "witness", "apply"
SUM, IN, SAYS = "sum", "in", "says/"  # names of a bucket's parts, after its number
STAGES = (*masked.STAGES, WITNESS, APPLY)


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
    desk: Desk,
    seed: bytes | None,
) -> SealedRing:
    """The ring of the round that `config` describes."""
    open_part = BitRing(length=counters(policy), bits=config.bits, parties=len(config.members))
    return SealedRing(seal, open_part, bound=bound, seed=seed, desk=desk)


def shown(sealed_sum: bytes, bound: bytes, survivors: tuple[str, ...]) -> bytes:
    """What a member signs before it decrypts: the sum, whose it is, and the adapter it is for."""
    return bind(hashlib.sha256(sealed_sum).digest(), bound, *survivors)


class EncryptedClient(MaskedClient):
    """A member's side of one attempt."""

    def __init__(self, context: ClientContext, values: Values, tokens: int, counted: bool) -> None:
        """Take the key and the adapter that the attempt is about.

        Raises:
            MessageError: this member has no key of this epoch.
        """
        super().__init__(context, values, tokens, counted)
        assert context.secrets is not None  # the member has some in sealed mode
        self.vault, self.desk = context.secrets.store, context.secrets.desk
        seed = self.vault.seed(context.policy.digest)
        if seed is None:
            raise MessageError(
                "this member lacks the members' key; it must be asked to greet first"
            )
        self.seed, self.bound = seed, context.model.bound(context.place)
        self.config: SecAggConfig | None = None
        self.seal: Seal | None = None
        self.sealed_sum: bytes | None = None

    @property
    def stages(self) -> tuple[str, ...]:
        """A round that only scores seals nothing."""
        return STAGES if self.size else super().stages

    def ring(self, config: SecAggConfig) -> SealedRing:
        """Modulo t, under this member's key, for those who have the same key and adapter."""
        self.config = config
        self.seal = make_seal(self.context.policy, config, key_id(self.seed))
        return make_ring(self.context.policy, config, self.seal, self.bound, self.desk, self.seed)

    def answer(self, stage: str, payload: bytes) -> bytes:
        """One stage.

        Raises:
            As `MaskedClient.answer`, and ProtocolError for a sum that cannot be opened; the adapter
            is then unchanged.
        """
        if stage == WITNESS:
            return self.witness(payload)
        if stage == APPLY:
            return self.apply(payload)
        return super().answer(stage, payload)

    def witness(self, sealed_sum: bytes) -> bytes:
        """Check the sum's frame, keep it, sign it."""
        assert self.check is not None  # the stages before this one
        self.check_frame(sealed_sum)
        self.sealed_sum = sealed_sum
        context = occasion(WITNESS, self.context.policy, self.context.place)
        return self.context.identity.sign(
            context, shown(sealed_sum, self.bound, self.check.survivors)
        )

    def check_frame(self, sealed_sum: bytes) -> None:
        """Raises ProtocolError: another length, key or parameters than ours."""
        assert self.seal is not None  # there is a sum
        self.seal.rows(sealed_sum, self.seal.packing.parameters.ciphertext_bytes, "the sealed sum")

    def apply(self, payload: bytes) -> bytes:
        """Decrypt, step, keep; answer the new adapter's tag.

        Raises:
            MessageError: a signature of somebody else or over something else.
            ThresholdError: too few signatures.
            ProtocolError, WorkerError: not a sum under our key.
            DataError: a sum that so many members cannot have.
        """
        assert self.seal is not None and self.sealed_sum is not None and self.check is not None
        given, policy = parts.split(payload), self.context.policy
        # as many as were ready allow, which may be one
        split = buckets(policy, b"", self.told.ready, self.context.terms.shares)
        if len(split) > 1:
            return self.step([self.open_bucket(*one) for one in self.pooled(given, split)])
        self.require_witnesses(given)
        total = open_sum(self.seal, self.seed, self.sealed_sum, self.desk)
        return self.step([Sum(total, self.check.survivors)])

    def pooled(
        self, given: dict[str, bytes], split: tuple[tuple[str, ...], ...]
    ) -> list[tuple[tuple[str, ...], Names, bytes]]:
        """The sums of all buckets of `split` that are shown: who was in it, who is in the sum, and
        the sum.

        Raises:
            MessageError: not this member's own among them; one that no bucket can have, or a
                signature of somebody else or over something else.
            ThresholdError: too few signatures under one.
        """
        assert self.check is not None
        policy, context, found = self.context.policy, self.context, list[Any]()
        for number, cohort in enumerate(split):
            if f"{number}/{SUM}" not in given:
                continue  # its sum was not opened: too few were left
            sealed_sum, names = given[f"{number}/{SUM}"], read_names(given.get(f"{number}/{IN}"))
            own = context.name in cohort
            if own and (sealed_sum, names) != (self.sealed_sum, self.check.survivors):
                raise MessageError("another sum than the one that this member signed; refused")
            need = BucketGroup.of(cohort, len(context.cohort), self.told).threshold(policy)
            short = context.terms.shares is not None and context.terms.shares.short(names)
            if not set(names) <= set(cohort) or len(names) < need or short:
                raise MessageError(
                    f"a bucket's sum over {len(names)} members of its {len(cohort)}, need {need}; "
                    "refused"
                )
            says = f"{number}/{SAYS}"
            signed = {
                name.removeprefix(says): one for name, one in given.items() if name.startswith(says)
            }
            check_shown(policy, context.place, shown(sealed_sum, self.bound, names), names, signed)
            enough_shown(len(signed), need)
            found.append((cohort, names, sealed_sum))
        if not any(context.name in cohort for cohort, _, _ in found):
            raise MessageError("the sums of others came without this member's own; refused")
        return found

    def open_bucket(self, cohort: tuple[str, ...], names: Names, sealed_sum: bytes) -> Sum:
        """The sum [n] of a bucket. Raises as `apply`."""
        assert self.seal is not None
        packing = dataclasses.replace(self.seal.packing, parties=len(cohort))
        seal = dataclasses.replace(self.seal, packing=packing)
        seal.rows(sealed_sum, packing.parameters.ciphertext_bytes, "the sealed sum")
        return Sum(open_sum(seal, self.seed, sealed_sum, self.desk), names)

    def require_witnesses(self, signatures: Mapping[str, bytes]) -> None:
        """Require that enough members of the sum were shown this very one.

        Raises:
            MessageError: a signature of somebody else or over something else.
            ThresholdError: too few signatures.
        """
        assert self.check is not None and self.config is not None and self.sealed_sum is not None
        policy, place, survivors = self.context.policy, self.context.place, self.check.survivors
        message = shown(self.sealed_sum, self.bound, survivors)
        check_shown(policy, place, message, survivors, signatures)
        enough_shown(len(signatures), self.config.threshold)

    def step(self, sums: Sequence[Sum]) -> bytes:
        """What the model makes of the opened sums."""
        return self.context.model.apply(self.context.place, self.context.terms, sums)


def read_names(data: bytes | None) -> Names:
    """Sorted, different names. Raises MessageError for anything else."""
    found = (data or b"").decode("ascii", "replace").split("\n")
    if found != sorted(set(found)) or not all(found):
        raise MessageError("whose sum a bucket's is, is malformed; refused")
    return tuple(found)


def check_shown(
    policy: Policy, place: RoundId, message: bytes, names: Names, signatures: Mapping[str, bytes]
) -> None:
    """Require signatures of members of the sum over what they were shown. Raises MessageError."""
    for name, signature in signatures.items():
        if name not in names:
            raise MessageError(f"{name} signed the sum without being in it; refused")
        verify(policy, name, occasion(WITNESS, policy, place), message, signature)


def enough_shown(found: int, need: int) -> None:
    """So that no two members decrypt different sums of one attempt. Raises ThresholdError."""
    if found < need:
        raise ThresholdError(
            f"{found} members were shown this sum, need {need}; it is not decrypted"
        )


class EncryptedServer(MaskedServer):
    """The coordinator's side of one attempt."""

    def __init__(self, context: ServerContext, cohort: tuple[str, ...]) -> None:
        assert context.common is not None and context.desk is not None  # our bug: nobody mustered
        self.policy, self.common, self.desk = context.policy, context.common, context.desk
        self.sealed_sum = b""
        self.signatures: dict[str, bytes] = {}
        self.tags: dict[str, bytes] = {}
        super().__init__(context, cohort)

    def ring(self, config: SecAggConfig) -> SealedRing:
        """The members' ring, without their key."""
        self.seal = make_seal(self.policy, config, self.common.key_id)
        return make_ring(self.policy, config, self.seal, self.common.bound, self.desk, None)

    def receive(self, party: str, payload: bytes) -> None:
        """Take one answer.

        Raises:
            ProtocolError, AuthenticationError, WorkerError: refused; nothing was changed.
        """
        stage = STAGES[self.done]
        if stage == WITNESS:
            self.sign(party, payload)
        elif stage == APPLY:
            if len(payload) != TAG_BYTES:
                raise ProtocolError(
                    f"{party} answered a tag of {len(payload)} bytes, {TAG_BYTES} expected; refused"
                )
            self.tags[party] = payload
        else:
            super().receive(party, payload)

    def sign(self, party: str, signature: bytes) -> None:
        """Note a signature over the sum. Raises ProtocolError for one that is none: it would
        stop all members.
        """
        message = shown(self.sealed_sum, self.common.bound, self.survivors)
        try:
            verify(
                self.policy, party, occasion(WITNESS, self.policy, self.place), message, signature
            )
        except MessageError as error:
            raise ProtocolError(str(error)) from error
        self.signatures[party] = signature

    @property
    def survivors(self) -> tuple[str, ...]:
        """Whose contributions are in the sum, by name."""
        assert self.server.result is not None
        return tuple(sorted(self.server.result.survivors))

    def advance(self) -> tuple[str, Mapping[str, bytes]] | None:
        """The next stage; None once the members keep the next adapter, or the counters of a scoring
        round are open.

        Raises:
            ThresholdError, ProtocolError, WorkerError: as masked; there is no sum.
            RoundAborted: too few members were shown the sum, or applied it.
            DisagreementError: they ended with different adapters.
        """
        if self.done < len(masked.STAGES):
            step = super().advance()
            return step if step is not None or self.seal is None else self.show()
        self.done += 1
        if self.done < len(STAGES):
            self.enough(len(self.signatures), "were shown the sum")
            return APPLY, dict.fromkeys(self.signatures, parts.join(self.signatures))
        self.judge()
        return None

    def judge(self) -> None:
        """Do members that applied the sum hold the same adapter now?

        Raises:
            RoundAborted: too few applied it.
            DisagreementError: they ended with different adapters.
        """
        self.enough(len(self.tags), "applied the sum")
        (_, most), *others = Counter(self.tags.values()).most_common()
        if most < self.config.threshold:
            raise DisagreementError(
                f"{len(self.tags)} members ended the round with {1 + len(others)} different "
                f"adapters, {self.config.threshold} "
                "must agree; look at their versions, then start the run again"
            )

    def show(self) -> tuple[str, Mapping[str, bytes]]:
        """The encrypted sum, for everybody whose contribution is in it."""
        tally = self.server.values
        assert isinstance(tally, SealedTally)  # our ring's
        self.sealed_sum = tally.sealed_sum
        return WITNESS, dict.fromkeys(self.survivors, self.sealed_sum)

    def enough(self, found: int, what: str) -> None:
        """Raises RoundAborted below the threshold."""
        if found < self.config.threshold:
            raise RoundAborted(f"{found} members {what}, need {self.config.threshold}")

    def held(self, total: npt.NDArray[np.int64]) -> dict[str, object]:
        """What the coordinator held of one member, beside the encrypted sum."""
        del total  # the counters' sums, which the report has anyway
        if self.sample is None or self.seal is None:
            return {}
        size = self.ring(self.config).wire_bytes
        contribution = masked.payload_of(self.sample, size, len(self.config.members))
        sums = coefficients(self.seal, self.sealed_sum)[:SAMPLE]
        return {
            **describe(coefficients(self.seal, contribution), "sealed", 256),
            "sum_words": sums.tolist(),
        }


class EncryptedBuckets(Buckets):
    """Several sealed sums at once: every member decrypts all of them, since all step alike."""

    def __init__(self, halves: Sequence[tuple[tuple[str, ...], EncryptedServer]]) -> None:
        super().__init__(halves)
        self.sealed = list(halves)  # by number, whatever becomes of them

    def advance(self) -> Step | None:
        """As `Buckets`; with the signatures over each sum everybody is shown all the sums.

        Raises:
            As `Buckets`. DisagreementError: members ended with different adapters.
        """
        step, left = super().advance(), [half for _, half in self.halves]
        going = [(at, half) for at, (_, half) in enumerate(self.sealed) if half in left]
        if step is None:
            if len({tag for _, half in going for tag in half.tags.values()}) > len(going):
                logger.warning("some members ended with another adapter than the others")
            alike = [Counter(half.tags.values()).most_common(1) for _, half in going]
            if len({most[0][0] for most in alike if most}) > 1:
                raise DisagreementError(
                    "members of different buckets ended the round with different adapters; look at "
                    "their versions, then start the run again"
                )
            return None
        if step[0] != APPLY:
            return step
        shown_all: dict[str, bytes] = {}
        for number, half in going:
            shown_all[f"{number}/{SUM}"] = half.sealed_sum
            shown_all[f"{number}/{IN}"] = "\n".join(half.survivors).encode("ascii")
            signatures = half.signatures.items()
            shown_all |= {f"{number}/{SAYS}{name}": signature for name, signature in signatures}
        return APPLY, dict.fromkeys(step[1], parts.join(shown_all))
