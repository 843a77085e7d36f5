"""Sealed rounds in which no member can open a sum alone: as `encrypted`, but t members open it
together.

    advertise ─ share ─ mask ─ consistency ─ unmask      in the ring of
                                                         `crypto.experimental.threshold.ring`
    witness     the coordinator shows everybody the sum of contributions; each signs what it was
                shown
    open        with enough signatures over the very same bytes: t chosen members answer a part
                each, covered for members; should one of them be gone, once more with others
    open        the parts, added up in the dark: uncover, step the adapter, keep it, answer its tag

Knows how the joint key and a round fit together. Knows nothing of how the key was made (see
`dkg_client`), of training or links.
Always: a part is given for exactly the survivors that this member signed, and once a request; what
it is given for is on disk before it leaves; with fewer than t parts nobody learns anything and the
round aborts; the coordinator reads no part.

Not covered: as `encrypted`. Who opens a sum learns it: t members that collude with the coordinator
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
from ....crypto.experimental.threshold.plan import POLYNOMIAL_BYTES, JointPacking
from ....crypto.he.encrypted_ring import HEAD_BYTES, SealedRing
from ....crypto.ring import BitRing
from ....crypto.secagg import SecAggConfig
from ...spec.policy import Policy
from .. import parts, secagg
from ..base import ClientContext, ServerContext, Sum, Values, WireCost
from ..buckets import Step
from ..encrypted import (
    SETUP_BYTES,
    WITNESS,
    EncryptedServer,
    WitnessClient,
    WitnessServer,
    check_tag,
    counters,
    make_ring,
)
from ..update import SAMPLE, describe
from .dkg_client import REQUEST, named
from .key_group import KeyGroup, round_number

OPEN = "open"
SAYS = "says/"  # names of parts: signatures over the sum, by who signed
SUMMED = "parts"  # all parts of a request, added up
STAGES = (*secagg.STAGES, WITNESS, OPEN)
REQUESTS = 3  # for parts, in one attempt


class ThresholdClient:
    """A member's side of one attempt, where members hold shares of the key."""

    def __init__(self, context: ClientContext, values: Values, tokens: int, counted: bool) -> None:
        """Take the share that the attempt is under.

        Raises:
            MessageError: this member has no share of a key of this epoch.
        """
        assert context.secrets is not None  # the member has some in sealed mode
        self.key_shares, self.crypto_worker = (
            context.secrets.store.key_shares,
            context.secrets.crypto_worker,
        )
        key_share = self.key_shares.key_share(context.policy.digest)
        if key_share is None:
            raise MessageError(
                "this member has no share of the joint key; it must be asked to greet first"
            )
        self.key_share, self.requests = key_share, 0
        self.sum = WitnessClient(
            context, values, tokens, counted, ring=self.ring, check_frame=opened_bytes
        )

    @property
    def context(self) -> ClientContext:
        """Who this member is."""
        return self.sum.context

    @property
    def stages(self) -> tuple[str, ...]:
        """Another message comes after each request for parts."""
        return (*STAGES, *(OPEN,) * self.requests) if self.sum.seals else secagg.STAGES

    def ring(self, config: SecAggConfig) -> SealedRing:
        """Modulo t, under this member's own secret, for those who have shares of the same key,
        and the same adapter.
        """
        context, plan, bound = self.context, self.key_share.plan, self.sum.bound
        if config.length == counters(context.policy):
            return make_ring(context.policy, config, None, bound, self.crypto_worker, None)
        number = round_number(context.round_id)
        contributor = Contributor(self.key_share, context.identity)
        close = closing(plan, context.name, contributor, number)
        key_id = self.key_share.key_id
        return make_joint_ring(context.policy, config, plan, key_id, number, bound, close)

    def answer(self, stage: str, payload: bytes) -> bytes:
        """One stage.

        Raises:
            As `WitnessClient.answer`, `Holder.respond`, `PartialReader`; the adapter is unchanged,
            and nothing was revealed.
        """
        answer = self.open(payload) if stage == OPEN else self.sum.answer(stage, payload)
        if stage in ("mask", OPEN):  # a contribution or a part is about to leave
            self.key_shares.note()
        return answer

    def open(self, payload: bytes) -> bytes:
        """Answer a part if asked for one; or, given the parts, let the model step and answer its
        tag.

        Raises:
            MessageError, ThresholdError: as `require_witnesses`; or a request for another round or
            other members' sum. ProtocolError, AuthenticationError, BudgetError: as `Holder.respond`
            and `PartialReader`. DataError: a sum that so many members cannot have.
        """
        given, context, survivors = parts.split(payload), self.context, self.sum.survivors
        self.sum.require_witnesses(named(given, SAYS))
        asked, seal = given.get(REQUEST, b""), self.sum.seal
        assert seal is not None  # there is a sum
        reader = PartialReader(self.key_share, asked, opened_bytes(seal, self.sum.sealed_sum))
        if (reader.round, reader.contributors) != (round_number(context.round_id), survivors):
            raise MessageError(
                "parts are asked for another sum than the one that this member signed; refused"
            )
        if SUMMED not in given:
            return self.respond(asked)
        reader.receive_sum(given[SUMMED])
        total = Sum(seal.packing.unpack(reader.result()), survivors)
        return context.model.apply(context.round_id, context.sum_context, [total])

    def respond(self, asked: bytes) -> bytes:
        """This member's part, or nothing if it is none of the chosen. Another message comes after
        it.

        Raises:
            MessageError: asked for once too often; and as `Holder.respond`.
        """
        if self.requests == REQUESTS:
            raise MessageError(f"parts of one sum were asked for {REQUESTS} times; refused")
        chosen = self.key_share.number in parse(self.key_share.plan, asked)[1]
        part = Holder(self.key_share, self.context.identity).respond(asked) if chosen else b""
        self.requests += 1
        return part

    def freeze(self) -> bytes:
        """As `AggregationClient`: requests, and the rest."""
        return bytes([self.requests]) + self.sum.freeze()

    def restore(self, kept: bytes) -> None:
        """As `AggregationClient`."""
        self.requests = kept[0]
        self.sum.restore(kept[1:])


class ThresholdServer:
    """The coordinator's side of one attempt.

    Raises:
        MessageError: the circle that members named cannot be one of this federation's.
    """

    opens_at = EncryptedServer.opens_at

    def __init__(self, context: ServerContext, cohort: tuple[str, ...]) -> None:
        assert (
            context.common is not None and context.crypto_worker is not None
        )  # our bug: nobody was set up
        policy, size = context.policy, context.length - counters(context.policy)
        self.policy, self.round_id, self.common = policy, context.round_id, context.common
        self.crypto_worker = context.crypto_worker
        self.plan = KeyGroup.decode(self.common.key_group).plan(policy, size) if size else None
        self.request, self.requests, self.applying = b"", 0, False
        self.parts: dict[str, bytes] = {}
        self.tags: dict[str, bytes] = {}
        self.here: set[str] = set()  # answered the last request
        self.sum = WitnessServer(context, cohort, ring=self.ring)

    def ring(self, config: SecAggConfig) -> SealedRing:
        """The members' ring, without any secret."""
        key_id, bound, number = self.common.key_id, self.common.bound, round_number(self.round_id)
        if self.plan is None:
            return make_ring(self.policy, config, None, bound, self.crypto_worker, None)
        return make_joint_ring(self.policy, config, self.plan, key_id, number, bound)

    def begin(self) -> Step:
        """As `AggregationServer`."""
        return self.sum.masked.begin()

    def receive(self, party: str, payload: bytes) -> None:
        """Take one answer.

        Raises:
            ProtocolError, AuthenticationError: refused; nothing was changed.
        """
        if not self.request:
            self.sum.receive(party, payload)
        elif self.applying:
            self.tags[party] = check_tag(party, payload)
        else:
            self.take(party, payload)

    def take(self, party: str, part: bytes) -> None:
        """Note a part. Raises ProtocolError for one that was not asked for, or is none."""
        assert self.plan is not None
        if self.plan.number(party) in parse(self.plan, self.request)[1]:
            # a wrong one would stop all members
            check_part(self.plan, self.common.key_id, self.request, party, part)
            self.parts[party] = part
        elif part:
            raise ProtocolError(f"{party} answered a part that it was not asked for; refused")
        self.here.add(party)

    def advance(self) -> Step | None:
        """The next stage; None once the members keep the next adapter, or the counters of a scoring
        round are open.

        Raises:
            As `EncryptedServer.advance`; RoundAborted also when fewer than t members are left to
            open the sum.
        """
        if self.applying:
            self.sum.agreed(self.tags)
            return None
        if not self.request:
            step = self.sum.advance()
            if step is not None or self.plan is None:
                return step
            return self.ask(tuple(sorted(self.sum.signatures)))
        assert self.plan is not None
        if len(self.parts) < self.plan.threshold:
            return self.ask(tuple(sorted(self.here)))
        self.applying = True
        summed = {SUMMED: together(self.plan, self.request, self.parts)}
        return OPEN, dict.fromkeys(sorted(self.here), self.letter(summed))

    def ask(self, alive: tuple[str, ...]) -> Step:
        """Ask t of `alive` for their parts; the choice changes with the attempt and the request.

        Raises:
            RoundAborted: too few are alive, or it was asked often enough.
        """
        assert self.plan is not None
        openers = self.plan.threshold
        if len(alive) < openers or self.requests == REQUESTS:
            raise RoundAborted(
                f"{len(alive)} members are left to open the sum, {openers} expected, at "
                f"request {self.requests + 1} "
                f"of {REQUESTS}: nothing was opened"
            )
        start = (self.round_id.attempt + self.requests) % len(alive)
        responders = (*alive, *alive)[start : start + openers]
        self.request = request(
            self.plan, round_number(self.round_id), responders, self.sum.survivors
        )
        self.requests, self.parts, self.here = self.requests + 1, {}, set()
        return OPEN, dict.fromkeys(alive, self.letter({}))

    def letter(self, heard: Mapping[str, bytes]) -> bytes:
        """The request, everybody's signatures over the sum, and the parts, if they are here."""
        signatures = {SAYS + name: signature for name, signature in self.sum.signatures.items()}
        return parts.join({REQUEST: self.request, **signatures, **heard})

    def sums(self) -> tuple[Sum]:
        """The counters' sums, with what the coordinator held of one member, beside the sum that it
        cannot open.
        """
        if (sample := self.sum.sample) is None:
            return self.sum.sums({})
        about = describe(low_bytes(sample[1:]), "sealed", 256)
        opened = low_bytes(self.sum.sealed_sum[HEAD_BYTES:])[:SAMPLE]
        return self.sum.sums({**about, "sum_words": opened.tolist()})


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


def wire_cost(policy: Policy, size: int, cohort: int) -> WireCost:
    """For a member that is asked for its part of the sum, which not all are. The sum comes down,
    and the parts as one.

    Besides, the ceremony that makes the key: polynomials to and from every other member.
    """
    packing = JointPacking(length=size, bits=policy.protection.bits, parties=cohort)
    vector, overhead = packing.rows * POLYNOMIAL_BYTES, secagg.message_bytes(cohort) + SETUP_BYTES
    return WireCost(
        2 * vector + overhead,
        2 * vector + overhead,
        once_up=(cohort + 2) * POLYNOMIAL_BYTES + overhead,
        once_down=(3 * cohort - 1) * POLYNOMIAL_BYTES + overhead,
    )
