"""How one state of the server follows from another, in few bytes and without loss.

Knows the round's sums (small whole numbers), the federation's rules for what follows from them, and
what a member may be told. Knows nothing of messages, or of who holds which state.
Always: from the same state the same step gives the same next state, bit for bit, or the names
differ and nothing is used; bytes from somebody else are measured against the federation's own
numbers before anything is allocated or inflated for them; all that a step does beside its integers
(ranges, rotation, rule, who is divided by) follows from the reader's own file and state.

    sum     the integers that the coordinator opened, of each bucket; the member decodes and
            combines them, and steps as the coordinator did
    rest    the same adapter, with an optimizer that remembers nothing: after a change was undone.
            Where there is a guard
    whole   everything anew: adapter, velocity, and second moments if the optimizer has them. It
            follows from nothing, so who takes it relies on others (`model_broadcast`)

Floats of an adapter look like noise to a compressor; their sums do not, which is why the sums
travel (`aggregation/attested_sum`), signed by those whose sums they are where these can check them.
"""

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from ...core.errors import ConfigError, CryptoError, DataError, MessageError
from ..aggregation.attested_sum import (
    KEPT,
    PACKINGS,
    Integers,
    Total,
    attested,
    digest_of,
    pack,
    signed_by,
    statement,
    unpack,
    witnesses,
)
from ..aggregation.base import Sum
from ..aggregation.ranges import read_spans, spans
from ..aggregation.rank_masks import RankMasks, rank_masks_of
from ..aggregation.server_optimizer import combine, optimizer_of
from ..aggregation.update import Codec, SumContext, seed_of
from ..spec.policy import Policy, canonical
from ..store.checkpoint import ServerState, Vector
from ..wire.broadcast_digest import bits_of
from ..wire.messages import RoundId

NAME_BYTES = 32
LENGTHS_BYTES = 8  # before each step: of its header and of its body
MAX_STEPS = 256  # of one way
MAX_HEADER_BYTES = 1 << 20
BEYOND = 1.0 + 1e-5  # times the range: what float32 makes of a mean that lies on its edge
FIELDS = {"asked": list, "attempt": int, "bucket": int, "kind": str, "round": int, "totals": list}
TOTAL = [str, int, list, dict, int]  # packing, parties, names, signatures in hex, bytes of its body
ALL = -1  # all buckets, combined by the file's rule


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step, ready to travel."""

    kind: Literal["sum", "rest", "whole"]
    round: int = 0  # sum: the place's, which the noise's rotation follows from
    attempt: int = 0  # sum: the place's
    asked: tuple[str, ...] = ()  # the same: whom the draw gave
    bucket: int = ALL  # sum: whose mean is the change; a guard may have kept one bucket's alone
    totals: tuple[Total, ...] = ()  # sum: of each bucket
    state: bytes = b""  # whole

    def kept_by(self, name: str) -> "Step":
        """The same for a member that signed one of these sums: it has the integers."""
        totals = tuple(
            replace(one, packing=KEPT, body=digest_of(one.whole))
            if name in one.proof and one.whole is not None
            else one
            for one in self.totals
        )
        return replace(self, totals=totals)

    def encode(self) -> bytes:
        """Length of the header, length of the body, both."""
        totals = [
            [
                one.packing,
                one.parties,
                list(one.names),
                {name: text.hex() for name, text in one.proof.items()},
                len(one.body),
            ]
            for one in self.totals
        ]
        fields = {
            "kind": self.kind,
            "round": self.round,
            "attempt": self.attempt,
            "bucket": self.bucket,
        }
        header = canonical({**fields, "asked": list(self.asked), "totals": totals})
        body = self.state + b"".join(one.body for one in self.totals)
        return len(header).to_bytes(4, "big") + len(body).to_bytes(4, "big") + header + body


def name_of(state: ServerState) -> str:
    """64 hex digits that differ between any two states."""
    found = hashlib.sha256(b"quietchoir server state 1")
    for vector in state.vectors:
        found.update(bits_of(vector))
    return found.hexdigest()


@functools.lru_cache(maxsize=8)
def origin_of(size: int) -> str:
    """The name of the state that every run starts from: everybody has it."""
    return name_of(ServerState.zeros(size))


class UnprovenError(MessageError):
    """A sum that too few of those whose sum it is have signed."""


class DeltaChain:
    """What makes steps, and goes them.

    Args:
        size: values of the adapter; stops: where its tensors end.
        run: what the rotations of its rounds follow from, besides the file.
    """

    def __init__(self, policy: Policy, size: int, run: str, stops: Sequence[int] = ()) -> None:
        self.policy, self.size, self.run, self.stops = policy, size, run, tuple(stops) or (size,)
        self.optimizer = optimizer_of(policy.recipe)
        # then columns differ in who trains them
        self.mixed = any(member.rank for member in policy.members)

    def of_sums(
        self, sums: Sequence[Sum], round_id: RoundId, asked: Sequence[str], bucket: int = ALL
    ) -> Step:
        """The step of a round's opened sums [>= n each]; what follows the first n values (counters)
        is left out.

        Args:
            asked: whom the draw of this place gave; bucket: whose mean is the change.
        """
        who = tuple(sorted(asked)) if self.mixed else ()
        totals = tuple(self._total(one) for one in sums)
        return Step(
            kind="sum",
            round=round_id.round,
            attempt=round_id.attempt,
            asked=who,
            bucket=bucket,
            totals=totals,
        )

    def change(self, state: ServerState, step: Step, start: str = "") -> Vector:
        """What a `sum` adds up to [n], for a round that began at `state`.

        Args:
            start: that state's name; empty to believe the sum: the coordinator does, which opened
            it.

        Raises:
            UnprovenError: too few of those whose sum it is signed it.
            MessageError: not of this federation's numbers.
            DataError: sums that so many members cannot have, or a change that none of them could
            make.
        """
        policy, recipe = self.policy, self.policy.recipe
        if not 1 <= len(step.totals) <= policy.aggregation.buckets or not ALL <= step.bucket < len(
            step.totals
        ):
            raise MessageError(
                f"a step of {len(step.totals)} sums, of which {step.bucket} counts; refused"
            )
        check_once(step.totals)
        if step.bucket != ALL and not policy.guard.on:
            raise MessageError(
                "a step of one bucket alone, in a federation without a guard that "
                "could choose it; refused"
            )
        wanted = recipe.ranges == "tensor"
        given = spans(state.velocity, self.stops, recipe.update_range) if wanted else ()
        ranges = read_spans(given, self.size, recipe.update_range) if wanted else ()
        round_id = RoundId(self.run, step.round, step.attempt)
        sum_context = SumContext(
            ranges, seed_of(policy, round_id), shares=self._shares(step), start=start
        )
        codec, wholes = (
            Codec(self.size, policy, sum_context),
            [self._integers(one) for one in step.totals],
        )
        if start and attested(policy):
            self._proven(round_id, wholes, step.totals, sum_context)
        means = [
            codec.mean(whole, one.parties, one.names)
            for whole, one in zip(wholes, step.totals, strict=True)
        ]
        for mean in means:  # with noise its length is bounded, without it each coordinate
            found = float(
                np.linalg.norm(mean) if codec.noise is not None else np.abs(mean).max(initial=0.0)
            )
            if found > BEYOND * codec.largest:
                raise DataError(
                    f"a change that reaches {found:.3g}, {codec.largest:.3g} at most in a round"
                )
        return (
            combine(means, policy.aggregation.rule, policy.aggregation.trim)
            if step.bucket == ALL
            else means[step.bucket]
        )

    def go(self, state: ServerState, step: Step, start: str) -> ServerState:
        """The state after `step`, from the one called `start`.

        Raises:
            UnprovenError: as `change`.
            MessageError: a step that this federation cannot have made; nothing was changed.
        """
        try:
            if step.kind == "rest":
                if not self.policy.guard.on:
                    raise MessageError(
                        "a change was undone, in a federation without a guard that "
                        "could undo it; refused"
                    )
                return state.at_rest()
            if step.kind == "whole":
                found = ServerState.decode(step.state, self.size)
            else:
                found = self.optimizer.step(state, self.change(state, step, start))
        except (ValueError, ConfigError, CryptoError, DataError) as error:
            raise MessageError(f"a step of the adapter that cannot be: {error}; refused") from error
        if not all(np.isfinite(vector).all() for vector in found.vectors):
            raise MessageError(
                "a step to an adapter that holds values that are not finite; refused"
            )
        return found

    def _shares(self, step: Step) -> RankMasks | None:
        """Who trained what. Raises MessageError where the step does not say it, or too few
        trained a column.
        """
        if not self.mixed:
            return None
        if not step.asked or any(
            len(one.names) != one.parties or set(one.names) - set(step.asked) for one in step.totals
        ):
            raise MessageError(
                "a step that does not say whose sums it is made of, where members train different "
                "ranks; refused"
            )
        shares = rank_masks_of(self.policy, step.asked, step.attempt)
        reasons = [] if shares is None else [shares.short(one.names) for one in step.totals]
        if any(reasons):
            raise MessageError(
                f"a step of a sum that is not opened: {next(filter(None, reasons))}; refused"
            )
        return shares

    def _proven(
        self,
        round_id: RoundId,
        wholes: Sequence[Integers],
        totals: Sequence[Total],
        sum_context: SumContext,
    ) -> None:
        """Require that enough of those whose sums these are signed them. Raises UnprovenError."""
        for whole, one in zip(wholes, totals, strict=True):
            digest = one.body if one.packing == KEPT else digest_of(whole)
            said = statement(self.policy, round_id, digest, one.names, sum_context)
            found = len(signed_by(self.policy, said, one.names, one.proof))
            need = max(witnesses(one.parties), least_of(self.policy))
            if len(set(one.names)) != one.parties or found < need:
                raise UnprovenError(
                    f"{found} of {one.parties} members signed the sum of round {round_id.round}, "
                    f"need {need}: it is not gone by"
                )

    def _total(self, one: Sum) -> Total:
        """One sum as it travels."""
        packing, body = one.packed or pack(
            one.total[: self.size], len(one.parties), self.policy.protection.bits
        )
        names = one.parties if self.mixed or one.proof else ()
        return Total(
            packing=packing,
            parties=len(one.parties),
            names=names,
            proof=one.proof,
            body=body,
            whole=one.total[: self.size],
        )

    def _integers(self, total: Total) -> Integers:
        if total.parties < self.policy.protection.min_cohort:
            raise MessageError(f"a sum over {total.parties} members; refused")
        if total.whole is not None:
            return total.whole
        return unpack(
            total.packing, total.body, self.size, total.parties, self.policy.protection.bits
        )


def join(start: str, steps: list[bytes]) -> bytes:
    """A way: the name of the state that it starts from, 32 zeros where it needs none, and its
    steps.
    """
    return (bytes.fromhex(start) if start else bytes(NAME_BYTES)) + b"".join(steps)


def least_of(policy: Policy) -> int:
    """Signatures without which no sum is gone by, however few it is said to be over: more than
    those that may collude, by the reader's own file.

    Else accomplices would sign what they made up among themselves. Not more than that: a sum from
    before the roster grew is still one.
    """
    return (policy.drawn // 3 if policy.aggregation.buckets == 1 else policy.colluders) + 1


def check_once(totals: Sequence[Total]) -> None:
    """Require that no member is in two of a step's sums, nor one sum there twice, to count more.

    Raises:
        MessageError: one is.
    """
    named = [name for one in totals for name in one.names]
    if len(set(named)) != len(named):
        raise MessageError("a step of sums that a member is in twice; refused")


def told_whole(taken: Sequence[Step]) -> bool:
    """Does a way of these steps begin with a whole state? What comes of it was followed by nobody.

    Raises:
        MessageError: there is one later on, from where on nothing is followed either.
    """
    if any(step.kind == "whole" for step in taken[1:]):
        raise MessageError("a way to an adapter that passes through a whole one; refused")
    return any(step.kind == "whole" for step in taken)


def split(way: bytes) -> tuple[str, list[Step]]:
    """Read what `join` wrote.

    Raises:
        MessageError: malformed, or too many steps.
    """
    start, at, steps = way[:NAME_BYTES], NAME_BYTES, list[Step]()
    if len(start) != NAME_BYTES:
        raise MessageError(f"a way to an adapter of {len(way)} bytes; refused")
    while at < len(way):
        header, body = (
            int.from_bytes(way[at + offset : at + offset + 4], "big") for offset in (0, 4)
        )
        at += LENGTHS_BYTES
        if len(steps) == MAX_STEPS or header > MAX_HEADER_BYTES or at + header + body > len(way):
            raise MessageError(
                "a way to an adapter that is longer than it says, or has too many steps; refused"
            )
        steps.append(read(way[at : at + header], way[at + header : at + header + body]))
        at += header + body
    return start.hex() if any(start) else "", steps


def read(header: bytes, body: bytes) -> Step:
    """One step.

    Raises:
        MessageError: malformed.
    """
    fields: Any = None
    try:
        fields = json.loads(header)
        good = (
            canonical(fields) == header
            and {key: type(value) for key, value in fields.items()} == FIELDS
        )
        good = (
            good
            and fields["kind"] in ("sum", "rest", "whole")
            and min(fields["round"], fields["attempt"]) >= 0
            and max(fields["round"], fields["attempt"]) < 1 << 63
        )
        good = good and all(
            [type(part) for part in one] == TOTAL and one[0] in (*PACKINGS, KEPT)
            for one in fields["totals"]
        )
        names = [name for one in fields["totals"] for name in one[2]] if good else []
        good = good and all(isinstance(name, str) for name in (*fields["asked"], *names))
        good = good and all(min(one[1], one[4]) >= 0 for one in fields["totals"])
        sizes = [one[4] for one in fields["totals"]] if good else []
        proofs = (
            [
                {name: bytes.fromhex(text) for name, text in one[3].items()}
                for one in fields["totals"]
            ]
            if good
            else []
        )
        good = (
            good
            and (fields["kind"] == "sum") == bool(sizes)
            and (fields["kind"] == "whole" or sum(sizes) == len(body))
        )
    except (ValueError, AttributeError, TypeError, RecursionError):
        good = False
    if not good:
        raise MessageError("the header of a step is malformed; refused")
    ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
    totals = tuple(
        Total(
            packing=packing,
            parties=parties,
            names=tuple(names),
            proof=proof,
            body=body[end - size : end],
        )
        for (packing, parties, names, _, size), proof, end in zip(
            fields["totals"], proofs, ends, strict=True
        )
    )
    rest = {name: fields[name] for name in ("kind", "round", "attempt", "bucket")}
    return Step(
        **rest,
        asked=tuple(fields["asked"]),
        totals=totals,
        state=body if fields["kind"] == "whole" else b"",
    )
