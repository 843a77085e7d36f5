"""Sealed rounds in which no member can open a sum alone: as `halves`, but t members open it
together.

    advertise ─ share ─ mask ─ consistency ─ unmask      in the ring of
                                                         `crypto.experimental.threshold.ring`
    witness     the coordinator shows everybody the sum of contributions; each signs what it was
                shown
    open        with enough signatures over the very same bytes: t chosen members answer a part
                each, covered for members; should one of them be gone, once more with others
    open        the parts, added up in the dark: uncover, step the adapter, keep it, answer its tag

Knows how the joint key and a round fit together. Knows nothing of how the key was made (see
`forming`), of training or links.
Always: a part is given for exactly the survivors that this member signed, and once a request; what
it is given for is on disk before it leaves; with fewer than t parts nobody learns anything and the
round aborts; the coordinator reads no part.

Not covered: as `halves`. Who opens a sum learns it: t members that collude with the coordinator
show it every sum of the epoch, never an update, for masks are inside.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ....core.errors import MessageError, ProtocolError, RoundAborted
from ....crypto.experimental.threshold import (
    Close,
    Contributor,
    Holder,
    JointRing,
    PartialReader,
    ThresholdPlan,
    check_part,
    closing,
    opened_bytes,
    parse,
    request,
    together,
)
from ....crypto.he.encrypted_ring import HEAD_BYTES, SealedRing
from ....crypto.ring import BitRing
from ....crypto.secagg import SecAggConfig
from ...spec.policy import Policy
from .. import parts
from .. import secagg as masked
from ..base import ClientContext, ServerContext, Sum, Values
from ..encrypted import WITNESS, EncryptedClient, EncryptedServer, counters, make_ring
from ..update import SAMPLE, describe
from .dkg_client import REQUEST, named
from .key_group import KeyGroup, round_number

OPEN = "open"
SAYS = "says/"  # names of parts: signatures over the sum, by who signed
SUMMED = "parts"  # all parts of a request, added up
STAGES = (*masked.STAGES, WITNESS, OPEN)
REQUESTS = 3  # for parts, in one attempt


class ThresholdClient(EncryptedClient):
    """A member's side of one attempt."""

    def __init__(self, context: ClientContext, values: Values, tokens: int, counted: bool) -> None:
        """Take the share and the adapter that the attempt is about.

        Raises:
            MessageError: this member has no share of a key of this epoch.
        """
        super().__init__(context, values, tokens, counted)
        holding = self.vault.shelf.holding(context.policy.digest)
        if holding is None:
            raise MessageError(
                "this member has no share of the joint key; it must be asked to greet first"
            )
        self.holding, self.requests = holding, 0

    @property
    def stages(self) -> tuple[str, ...]:
        """Another letter comes after each request for parts."""
        return (*STAGES, *(OPEN,) * self.requests) if self.size else super().stages

    def ring(self, config: SecAggConfig) -> SealedRing:
        """Modulo t, under this member's own secret, for those who have shares of the same key,
        and the same adapter.
        """
        self.config = config
        context, plan, key_id = self.context, self.holding.plan, self.holding.key_id
        bound = self.bound
        if config.length == counters(context.policy):
            return make_ring(context.policy, config, None, bound, self.desk, None)
        number, contributor = (
            round_number(context.place),
            Contributor(self.holding, context.identity),
        )
        close = closing(plan, context.name, contributor, number)
        ring = make_joint_ring(context.policy, config, plan, key_id, number, bound, close)
        self.seal = ring.sealing
        return ring

    def answer(self, stage: str, payload: bytes) -> bytes:
        """One stage.

        Raises:
            As `MaskedClient.answer`, `Holder.respond`, `PartialReader`; the adapter is unchanged,
            and nothing was revealed.
        """
        answer = self.open(payload) if stage == OPEN else super().answer(stage, payload)
        if stage in ("mask", OPEN):  # a contribution or a part is about to leave
            self.vault.shelf.note()
        return answer

    def check_frame(self, sealed_sum: bytes) -> None:
        """Raises ProtocolError: another length, key or parameters than ours."""
        assert self.seal is not None  # there is a sum
        opened_bytes(self.seal, sealed_sum)

    def open(self, payload: bytes) -> bytes:
        """Answer a part if asked for one; or, given the parts, step the adapter and answer its tag.

        Raises:
            MessageError, ThresholdError: as `require_witnesses`; or a request for another round or
            other members' sum. ProtocolError, AuthenticationError, BudgetError: as `Holder.respond`
            and `PartialReader`. DataError: a sum that so many members cannot have.
        """
        if self.check is None or self.seal is None or self.sealed_sum is None:
            raise MessageError("a sum is to be opened that this member was not shown; refused")
        given = parts.split(payload)
        self.require_witnesses(named(given, SAYS))
        asked = given.get(REQUEST, b"")
        reader = PartialReader(self.holding, asked, opened_bytes(self.seal, self.sealed_sum))
        if (reader.round, reader.contributors) != (
            round_number(self.context.place),
            self.check.survivors,
        ):
            raise MessageError(
                "parts are asked for another sum than the one that this member signed; refused"
            )
        if SUMMED not in given:
            return self.respond(asked)
        reader.receive_sum(given[SUMMED])
        total = self.seal.packing.unpack(reader.result())
        return self.step([Sum(total, self.check.survivors)])

    def respond(self, asked: bytes) -> bytes:
        """This member's part, or nothing if it is none of the chosen. Another letter comes after
        it.

        Raises:
            MessageError: asked for once too often; and as `Holder.respond`.
        """
        if self.requests == REQUESTS:
            raise MessageError(f"parts of one sum were asked for {REQUESTS} times; refused")
        chosen = self.holding.number in parse(self.holding.plan, asked)[1]
        part = Holder(self.holding, self.context.identity).respond(asked) if chosen else b""
        self.requests += 1
        return part


class ThresholdServer(EncryptedServer):
    """The coordinator's side of one attempt.

    Raises:
        MessageError: the circle that members named cannot be one of this federation's.
    """

    def __init__(self, context: ServerContext, cohort: tuple[str, ...]) -> None:
        assert context.common is not None  # our bug: nobody mustered
        policy, size = context.policy, context.length - counters(context.policy)
        self.plan = KeyGroup.decode(context.common.circle).plan(policy, size) if size else None
        self.request, self.requests, self.applying = b"", 0, False
        self.parts: dict[str, bytes] = {}
        self.here: set[str] = set()  # answered the last request
        super().__init__(context, cohort)

    def ring(self, config: SecAggConfig) -> SealedRing:
        """The members' ring, without any secret."""
        bound = self.common.bound
        if self.plan is None:
            self.seal = None
            return make_ring(self.policy, config, None, bound, self.desk, None)
        ring = make_joint_ring(
            self.policy, config, self.plan, self.common.key_id, round_number(self.place), bound
        )
        self.seal = ring.sealing
        return ring

    def receive(self, party: str, payload: bytes) -> None:
        """Take one answer.

        Raises:
            ProtocolError, AuthenticationError: refused; nothing was changed.
        """
        if self.done <= len(masked.STAGES) or self.applying:
            super().receive(party, payload)
            return
        assert self.plan is not None
        if self.plan.number(party) in parse(self.plan, self.request)[1]:
            # a wrong one would stop all members
            check_part(self.plan, self.common.key_id, self.request, party, payload)
            self.parts[party] = payload
        elif payload:
            raise ProtocolError(f"{party} answered a part that it was not asked for; refused")
        self.here.add(party)

    def advance(self) -> tuple[str, Mapping[str, bytes]] | None:
        """The next stage; None once the members keep the next adapter, or the counters of a scoring
        round are open.

        Raises:
            As `EncryptedServer.advance`; RoundAborted also when fewer than t members are left to
            open the sum.
        """
        if self.done < len(masked.STAGES):
            return super().advance()
        if self.done == len(masked.STAGES):
            self.done += 1
            self.enough(len(self.signatures), "were shown the sum")
            return self.ask(tuple(sorted(self.signatures)))
        if self.applying:
            self.judge()
            return None
        if len(self.parts) < self.openers:
            return self.ask(tuple(sorted(self.here)))
        self.applying = True
        assert self.plan is not None
        return OPEN, dict.fromkeys(
            sorted(self.here), self.letter({SUMMED: together(self.plan, self.request, self.parts)})
        )

    @property
    def openers(self) -> int:
        """t."""
        assert self.plan is not None
        return self.plan.threshold

    def ask(self, alive: tuple[str, ...]) -> tuple[str, Mapping[str, bytes]]:
        """Ask t of `alive` for their parts; the choice changes with the attempt and the request.

        Raises:
            RoundAborted: too few are alive, or it was asked often enough.
        """
        assert self.plan is not None
        if len(alive) < self.openers or self.requests == REQUESTS:
            raise RoundAborted(
                f"{len(alive)} members are left to open the sum, {self.openers} expected, at "
                f"request {self.requests + 1} "
                f"of {REQUESTS}: nothing was opened"
            )
        start = (self.place.attempt + self.requests) % len(alive)
        responders = (*alive, *alive)[start : start + self.openers]
        self.request = request(self.plan, round_number(self.place), responders, self.survivors)
        self.requests, self.parts, self.here = self.requests + 1, {}, set()
        return OPEN, dict.fromkeys(alive, self.letter({}))

    def letter(self, heard: Mapping[str, bytes]) -> bytes:
        """The request, everybody's signatures over the sum, and the parts, if they are here."""
        signatures = {SAYS + name: signature for name, signature in self.signatures.items()}
        return parts.join({REQUEST: self.request, **signatures, **heard})

    def held(self, total: npt.NDArray[np.int64]) -> dict[str, object]:
        """What the coordinator held of one member, beside the sum that it cannot open."""
        del total  # the counters' sums, which the report has anyway
        if self.sample is None or self.seal is None:
            return {}
        contribution = masked.payload_of(
            self.sample, self.ring(self.config).wire_bytes, len(self.config.members)
        )
        sums = low_bytes(self.sealed_sum[HEAD_BYTES:])[:SAMPLE]
        return {**describe(low_bytes(contribution[1:]), "sealed", 256), "sum_words": sums.tolist()}


def make_joint_ring(
    policy: Policy,
    config: SecAggConfig,
    plan: ThresholdPlan,
    key_id: bytes,
    number: int,
    bound: bytes,
    close: Close | None = None,
) -> JointRing:
    """The ring of the round that `config` describes; `close` at a member.

    Raises:
        ProtocolError: members outside the circle, or a round of another shape than the key was made
        for.
    """
    strangers = sorted(set(config.members) - set(plan.members))
    if strangers:
        raise ProtocolError(
            f"{', '.join(strangers)} took no part in making the joint key; the round is refused"
        )
    shape = (config.length - counters(policy), config.bits)
    if shape != (plan.length, plan.bits):
        raise ProtocolError(
            f"a round of {shape} values and bits under a key made for "
            f"{(plan.length, plan.bits)}; refused"
        )
    open_part = BitRing(length=counters(policy), bits=config.bits, parties=len(config.members))
    return JointRing(plan, key_id, number, open_part, bound=bound, close=close)


def low_bytes(residues: bytes) -> npt.NDArray[np.uint8]:
    """The lowest six bytes of each residue: what its holder sees of it. The seventh is not
    uniform: primes end within it.
    """
    count = len(residues) // 7
    words: npt.NDArray[np.uint8] = (
        np.frombuffer(residues, np.uint8, 7 * count).reshape(count, 7)[:, :6].reshape(-1)
    )
    return words
