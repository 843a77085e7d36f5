"""The coordinator's side of secure aggregation: it carries what members signed and adds up what it
cannot read.

Knows messages, sums and shares. Knows no member's secret until the round opens, and then only what
cancels in the sum.
Always: a message is taken whole or refused with nothing changed; below the threshold the round ends
without a sum.
"""

import itertools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from ...core.errors import ProtocolError, ThresholdError
from .. import shamir
from ..identity.keys import Ephemeral
from ..ring import Ring, Tally
from . import tag
from .messages import (
    KEY_SHARE,
    SELF_SHARE,
    Agreement,
    BoxList,
    KeyCard,
    KeyList,
    Receipt,
    Revelation,
    SealedShares,
    SignatureList,
    SurvivorList,
    Upload,
    shared_view,
)
from .session import Graph, Plan, SecAggConfig, Session, commit, mask_pair, mask_self

CHOICES = 600  # sets of holders that a secret is rebuilt from, at most: two liars among 32


class ServerStage(IntEnum):
    """What the coordinator waits for."""

    ADVERTISE = 0
    SHARE = 1
    MASK = 2
    CONSISTENCY = 3
    UNMASK = 4
    DONE = 5
    ABORTED = 6


@dataclass(frozen=True, slots=True)
class SecAggResult:
    """The sum of the survivors' values, and of nobody else's."""

    total: NDArray[np.int64]  # [length], or what the ring lets the coordinator read
    tokens: int
    survivors: tuple[str, ...]
    # of its first values, where they carry one: for members, who alone can tell whether it fits
    tags: tag.Tag = ()


class _Sums:
    """The running sums of values and tokens."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.values: Tally = session.ring.tally()
        self._tallies: dict[str, Tally] = {
            "values": self.values,
            "tokens": session.token_ring.limbs.tally(),
        }

    def add(self, upload: Upload) -> None:
        """Raises ProtocolError, sums unchanged. Values come last: tokens of a valid frame cannot
        fail after them.
        """
        self._session.token_ring.limbs.unpack(upload.tokens)
        self._tallies["values"].add(upload.values)
        self._tallies["tokens"].add(upload.tokens)

    def mask(self, quantity: str, key: bytes, *, subtract: bool) -> None:
        self._tallies[quantity].mask(key, subtract=subtract)

    def totals(self) -> tuple[NDArray[np.int64], int]:
        return self._tallies["values"].total(), self._session.token_ring.join(
            self._tallies["tokens"].total()
        )


class SecAggServer:
    """One attempt of one round. Messages come by `receive`, in any order within a stage; `advance`
    closes a stage.

    Wrong shares do no harm as long as enough right ones came; who sent them is in `wrong`.
    Not covered: a member that deals its own secret wrongly stops the attempt (its name is in the
    error), and one that sends a wild vector spoils the sum; clipping is the members' word. The
    transport says who sent a message; the signature proves it.
    """

    def __init__(self, config: SecAggConfig, *, ring: Ring | None = None) -> None:
        self._session = Session(config, ring)
        self.stage = ServerStage.ADVERTISE
        self.result: SecAggResult | None = None
        self._sums = _Sums(self._session)
        self._awaited: set[int] = set(range(len(self._session.names)))
        self._cards: dict[int, KeyCard] = {}
        self._sealed_shares: dict[int, SealedShares] = {}
        self._receipts: dict[int, Receipt] = {}
        self._agreements: dict[int, bytes] = {}
        self._revelations: dict[int, Revelation] = {}
        # Lagrange weights of each set of holders met
        self._weights: dict[tuple[int, ...], list[int]] = {}
        self._wrong: set[int] = set()  # whose shares did not fit
        self._view = b""  # digest of everything sent so far
        self._keys: KeyList
        self._graph: Graph
        self._plan: Plan

    @property
    def values(self) -> Tally:
        """The running sum of values; whole once `result` is set."""
        return self._sums.values

    @property
    def wrong(self) -> tuple[str, ...]:
        """Members that revealed other shares than those they were dealt."""
        return tuple(self._session.names[at] for at in sorted(self._wrong))

    @property
    def waiting(self) -> tuple[str, ...]:
        """Members whose message of this stage has not come yet."""
        return tuple(self._session.names[at] for at in sorted(self._awaited))

    def receive(self, name: str, message: bytes) -> None:
        """Take one member's message of this stage.

        Raises:
            ProtocolError: unknown sender, wrong stage, repeated, late or malformed; nothing was
            changed. AuthenticationError: not signed by that member for this session; nothing was
            changed.
        """
        number = self._session.numbers.get(name)
        if number is None or self.stage > ServerStage.UNMASK:
            raise ProtocolError(
                f"a message of {name} came, which is no member of this attempt or "
                f"comes after its end; refused"
            )
        if number not in self._awaited:
            raise ProtocolError(
                f"a message of {name} came, which already sent or dropped out "
                f"earlier; it is refused"
            )
        take = (self._advertised, self._shared, self._masked, self._agreed, self._revealed)[
            self.stage
        ]
        take(number, message)
        self._awaited.discard(number)

    def advance(self) -> Mapping[str, bytes]:
        """Close this stage; return what to send to whom. After the last one nothing is sent and
        `result` is set.

        Raises:
            ThresholdError: too few members, shares or tokens; the attempt is over and nothing was
            opened. ProtocolError: shares that do not fit; the attempt is over and nothing was
            opened.
        """
        if self.stage > ServerStage.UNMASK:
            raise RuntimeError(
                f"advance was called while the attempt is {self.stage.name}"
            )  # our bug
        close = (
            self._send_keys,
            self._send_boxes,
            self._send_survivors,
            self._send_signatures,
            self._open,
        )[self.stage]
        stage, self.stage = self.stage, ServerStage.ABORTED  # unless all goes well
        out = close()
        self.stage = ServerStage(stage + 1)
        self._awaited = {self._session.numbers[name] for name in out}
        return out

    def _advertised(self, number: int, message: bytes) -> None:
        card = KeyCard.decode(message, self._session)
        self._same(number, card.sender)
        # a key of small order would stop every neighbour two stages later
        for key in (card.channel, card.mask):
            Ephemeral.generate().agree(key, b"")
        self._cards[number] = card

    def _send_keys(self) -> dict[str, bytes]:
        self._enough(self._cards, "sent keys")
        self._keys = KeyList(dict(sorted(self._cards.items())))
        self._view = self._keys.view(self._session)
        self._plan = self._session.plan(len(self._cards))
        self._graph = Graph(sorted(self._cards), self._plan.degree, self._view)
        return dict.fromkeys(self._names(self._cards), self._keys.encode(self._session))

    def _shared(self, number: int, message: bytes) -> None:
        sealed = SealedShares.decode(message, self._session, self._view)
        self._same(number, sealed.sender)
        if tuple(sealed.boxes) != self._graph.neighbours(number):
            raise ProtocolError(
                f"{self._session.names[number]} sealed shares for others than its "
                f"neighbours; refused"
            )
        self._sealed_shares[number] = sealed

    def _send_boxes(self) -> dict[str, bytes]:
        self._enough(self._sealed_shares, "shared")
        shared = tuple(sorted(self._sealed_shares))
        self._view = shared_view(self._session, self._view, shared)
        out = {}
        for at in shared:
            near = [peer for peer in self._graph.neighbours(at) if peer in self._sealed_shares]
            boxes = {peer: self._sealed_shares[peer].boxes[at] for peer in near}
            out[self._session.names[at]] = BoxList(shared, boxes).encode(self._session)
        return out

    def _masked(self, number: int, message: bytes) -> None:
        upload = Upload.decode(message, self._session, self._view)
        self._same(number, upload.receipt.sender)
        self._sums.add(upload)
        self._receipts[number] = upload.receipt

    def _send_survivors(self) -> dict[str, bytes]:
        self._enough(self._receipts, "survived")
        survivors = SurvivorList(dict(sorted(self._receipts.items())))
        message = survivors.encode(self._session)
        self._view = survivors.view(self._session, self._view)
        return dict.fromkeys(self._names(self._receipts), message)

    def _agreed(self, number: int, message: bytes) -> None:
        agreement = Agreement.decode(message, self._session, self._view)
        self._same(number, agreement.sender)
        self._agreements[number] = agreement.signature

    def _send_signatures(self) -> dict[str, bytes]:
        # The sum stands on the survivors, who are enough; signers need the threshold alone.
        if (signed := len(self._agreements)) < (need := self._session.config.threshold):
            raise ThresholdError(
                f"{signed} members signed the survivors, need {need}; the attempt is abandoned"
            )
        return dict.fromkeys(
            self._names(self._agreements), SignatureList(self._agreements).encode(self._session)
        )

    def _revealed(self, number: int, message: bytes) -> None:
        revelation = Revelation.decode(message, self._session, self._view)
        self._same(number, revelation.sender)
        held = {
            number,
            *(peer for peer in self._graph.neighbours(number) if peer in self._sealed_shares),
        }
        kinds = {peer: SELF_SHARE if peer in self._receipts else KEY_SHARE for peer in held}
        if kinds != {peer: share[:1] for peer, share in revelation.shares.items()}:
            raise ProtocolError(
                f"{self._session.names[number]} revealed other shares than one for "
                f"each neighbour; refused"
            )
        self._revelations[number] = revelation

    def _open(self) -> dict[str, bytes]:
        """Rebuild survivors' self-mask seeds and dropped members' mask keys, and take their
        masks off the sum.
        """
        # all of them first: nothing half-opened
        rebuilt = {target: self._rebuild(target) for target in self._sealed_shares}
        for target, secret in rebuilt.items():
            if target in self._receipts:
                mask_self(self._sums, self._session, secret, subtract=True)
                continue
            dropped = Ephemeral(secret)
            for peer in self._graph.neighbours(target):
                if peer in self._receipts:  # take away what the survivor added for this pair
                    mask_pair(
                        self._sums, self._session, dropped, target, peer, self._cards[peer].mask
                    )
        total, tokens = self._sums.totals()
        if tokens < self._session.config.min_tokens:
            raise ThresholdError(
                f"the sum stands on {tokens} tokens, "
                f"{self._session.config.min_tokens} needed; it is not used"
            )
        config = self._session.config
        found: tag.Tag = ()
        if config.tagged:
            total, found = total[: config.length], tag.read(total[config.length :], config.bits)
        self.result = SecAggResult(total, tokens, tuple(self._names(self._receipts)), found)
        return {}

    def _rebuild(self, target: int) -> bytes:
        """One member's secret from `threshold` of the shares that came, checked against what it
        advertised.
        """
        name, need = self._session.names[target], self._plan.threshold
        holders = [
            at for at in (target, *self._graph.neighbours(target)) if target in self._shares_of(at)
        ]
        if len(holders) < need:
            raise ThresholdError(
                f"{len(holders)} shares of {name} came, need {need}; the attempt is abandoned"
            )
        for points in self._choices(holders, need):
            secret = self._joined(target, points)
            if secret is not None:
                self._blame(target, holders, points, secret)
                return secret
        raise ProtocolError(
            f"the shares of {name} do not give the secret it advertised; retry without it"
        )

    def _choices(self, holders: list[int], need: int) -> Iterator[tuple[int, ...]]:
        """Points to rebuild from: the first ones, then others for as long as leaving holders out
        makes a difference.
        """
        # whoever lied about another secret comes last
        left = sorted(holders, key=lambda at: (at in self._wrong, at))
        tried = set[tuple[int, ...]]()
        for spare in range(len(left) - need + 1):
            for without in itertools.combinations(left, spare):
                points = tuple(
                    sorted(at + 1 for at in [one for one in left if one not in without][:need])
                )
                if points not in tried:
                    tried.add(points)
                    yield points
                if len(tried) == CHOICES:
                    return

    def _joined(self, target: int, points: tuple[int, ...]) -> bytes | None:
        """The secret of `target` that shares at these points give; None if it is not what it
        advertised.
        """
        if points not in self._weights:
            self._weights[points] = shamir.weights(points)
        shares = [self._revelations[point - 1].shares[target][1:] for point in points]
        try:
            secret = shamir.join(shares, self._weights[points])
        except ProtocolError:  # they meet in no secret at all
            return None
        card = self._cards[target]
        if target in self._receipts:
            return secret if commit(self._session, target, secret) == card.commitment else None
        return secret if Ephemeral(secret).public == card.mask else None

    def _blame(
        self, target: int, holders: list[int], points: tuple[int, ...], secret: bytes
    ) -> None:
        """Note whose shares do not lie on the polynomial that gave `secret`, where some had to
        be left out.
        """
        if points == tuple(sorted(at + 1 for at in holders)[: len(points)]):
            return
        for at in holders:
            if (
                at + 1 not in points
                and self._joined(target, tuple(sorted((*points[1:], at + 1)))) != secret
            ):
                self._wrong.add(at)

    def _shares_of(self, at: int) -> Mapping[int, bytes]:
        return self._revelations[at].shares if at in self._revelations else {}

    def _names(self, numbers: Mapping[int, object]) -> list[str]:
        return [self._session.names[at] for at in sorted(numbers)]

    def _same(self, number: int, sender: int) -> None:
        if number != sender:
            raise ProtocolError(
                f"{self._session.names[number]} delivered a message of another "
                f"member; it is refused"
            )

    def _enough(self, found: Collection[int], what: str) -> None:
        if reason := self._session.short(found, what, self._session.config.needed):
            raise ThresholdError(f"{reason}; the attempt is abandoned and nothing was revealed")
