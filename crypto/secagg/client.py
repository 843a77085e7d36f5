"""A member's side of secure aggregation, one method a stage, no I/O; and what it remembers from one
attempt to the next.

    advertise → share → mask → consistency → unmask

Knows its own secrets and its own copy of the floors. Trusts the coordinator with nothing but
delivery.
Always: a stage is run once; a refused message (ProtocolError, AuthenticationError, ThresholdError)
changes nothing; for each peer either a share of its self-mask or one of its mask key is revealed,
never both, and only after at least `threshold` members signed the same survivors.
"""

import json
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ...core.errors import AuthenticationError, ConfigError, ProtocolError, ThresholdError
from .. import shamir
from ..identity.keys import Ephemeral, Identity, open_box, seal_box
from ..ring import Lifted, Ring, Stream
from ..shared import once
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
from .session import Graph, SecAggConfig, Session, commit, commit_tag, mask_pair, mask_self


class Stage(IntEnum):
    """What a member does next."""

    ADVERTISE = 0
    SHARE = 1
    MASK = 2
    CONSISTENCY = 3
    UNMASK = 4
    DONE = 5


class _Vectors:
    """A party's values and tokens while masks are added."""

    def __init__(self, session: Session, values: NDArray[np.unsignedinteger], tokens: int) -> None:
        self.rings: dict[str, Ring] = {"values": session.ring, "tokens": session.token_ring.limbs}
        self.words: dict[str, Lifted] = {
            "values": session.ring.lift(values),
            "tokens": session.token_ring.lift(tokens),
        }
        self.streams: dict[str, list[Stream]] = {"values": [], "tokens": []}

    def mask(self, quantity: str, key: bytes, *, subtract: bool) -> None:
        self.streams[quantity].append((key, subtract))

    def close(self, quantity: str) -> bytes:
        """All masks at once, and then what is sent."""
        self.rings[quantity].mask(self.words[quantity], self.streams.pop(quantity))
        return self.rings[quantity].close(self.words[quantity])


@dataclass(frozen=True, slots=True)
class SumCheck:
    """Of one attempt: whose sum was opened, and the key that fits its tag."""

    key: bytes = field(repr=False)
    survivors: tuple[str, ...]

    def fits(self, total: tag.Values, found: tag.Tag) -> bool:
        """Is this the survivors' sum [tagged], and its tag?"""
        return tag.combine(self.key, total, self.survivors) == found


class RevealLedger:
    """What one node has already taken part in, in any number of federations, so that no two sums
    can be subtracted; hand the same one to every `SecAggClient`.

    An attempt begins once. A masked upload counts as used when it leaves, whether it is opened or
    not, and then no other attempt of its round begins, masks or opens. (Two sums of the same
    updates over two different sets of survivors give away the difference: one member's update.)
    About one subject, as are updates from the same adapter, a member signs for one set of
    survivors, and for the same again. So of different sums about it no honest member is in two, and
    whatever is added up and subtracted of them holds all honest members of one. (A rule that looks
    at two sets at a time, and lets them differ by enough, is none: sums over ten sets of seven of
    ten, any two of which differ by four, give each of the ten away.)
    Not covered: a node whose ledger is lost with its disk. Keep `snapshot` with its other state.
    """

    def __init__(self) -> None:
        self._begun: dict[tuple[str, int], int] = {}  # (federation, round) → highest attempt begun
        # (federation, round) → attempt whose upload has left
        self._used: dict[tuple[str, int], int] = {}
        self._opened: dict[tuple[str, int], int] = {}  # (federation, round) → attempt opened
        self._signed: dict[str, set[tuple[str, ...]]] = {}  # subject → sets of survivors signed for

    def begin(self, federation: bytes, number: int, attempt: int) -> None:
        """Note a new attempt.

        Raises:
            ProtocolError: this attempt or a later one has begun already, or the round's upload has
            left.
        """
        at = (federation.hex(), number)
        for table, what in (
            (self._opened, "was opened"),
            (self._used, "has sent its masked update"),
        ):
            if at in table:
                raise ProtocolError(
                    f"round {number} {what} in attempt {table[at]}; its update is not masked again"
                )
        if attempt <= self._begun.get(at, -1):
            raise ProtocolError(
                f"round {number} is at attempt {self._begun[at]}, got {attempt}; a retry needs a "
                f"higher attempt"
            )
        self._begun[at] = attempt

    def leave(self, federation: bytes, number: int, attempt: int) -> None:
        """Note that the masked upload is about to leave.

        Raises:
            ProtocolError: one of this round has left before.
        """
        at = (federation.hex(), number)
        if at in self._used or at in self._opened:
            raise ProtocolError(
                f"round {number} has sent its masked update before; it is not masked again"
            )
        self._used[at] = attempt

    def before(self, subject: bytes) -> tuple[tuple[str, ...], ...]:
        """The sets of survivors, by name, that this node signed for about `subject`."""
        return tuple(sorted(self._signed.get(subject.hex(), ())))

    def check(self, subjects: Collection[bytes], survivors: Collection[str]) -> None:
        """Require that this node is in no sum over other members about the same.

        Args:
            subjects: 32 bytes each: what the sum is about.

        Raises:
            ProtocolError: it is; nothing was noted.
        """
        names = set(survivors)
        for subject in subjects:
            for earlier in self.before(subject):
                if found := len(names.symmetric_difference(earlier)):
                    raise ProtocolError(
                        f"these {len(names)} survivors differ by {found} members from "
                        f"{len(earlier)} whose sum from the same "
                        "adapter this member signed for, need the very same; nothing is signed"
                    )

    def sign(self, subjects: Collection[bytes], survivors: Collection[str]) -> None:
        """Note that survivors are about to be signed for: from here on others may open their sum.

        Raises:
            ProtocolError: as `check`; nothing was noted.
        """
        self.check(subjects, survivors)
        ordered = tuple(sorted(survivors))
        names = survivors if survivors == ordered and isinstance(survivors, tuple) else ordered
        for subject in subjects:
            self._signed.setdefault(subject.hex(), set()).add(names)

    def open(self, federation: bytes, number: int, attempt: int) -> None:
        """Note that shares are about to be revealed.

        Raises:
            ProtocolError: the round was opened before.
        """
        at = (federation.hex(), number)
        if at in self._opened:
            raise ProtocolError(
                f"round {number} was opened in attempt {self._opened[at]}; nothing more is revealed"
            )
        self._opened[at] = attempt

    def snapshot(self) -> bytes:
        """Everything noted, as canonical JSON."""
        rows: dict[str, object] = {
            key: sorted([*at, attempt] for at, attempt in table.items())
            for key, table in self._tables().items()
        }
        rows["signed"] = {
            subject: sorted(map(list, found)) for subject, found in self._signed.items()
        }
        return json.dumps(rows, sort_keys=True).encode()

    @classmethod
    def restore(cls, snapshot: bytes) -> Self:
        """What `snapshot` wrote, also before uploads and survivors were noted.

        Raises:
            ConfigError: this is no snapshot.
        """
        ledger = cls()
        try:
            rows = {"used": [], "signed": {}, **json.loads(snapshot)}
            for key, table in ledger._tables().items():
                table.update(
                    {
                        (str(federation), int(number)): int(attempt)
                        for federation, number, attempt in rows[key]
                    }
                )
            for subject, found in rows["signed"].items():
                ledger._signed[str(subject)] = {tuple(map(str, names)) for names in found}
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                "the ledger of rounds cannot be read; restore it, or leave and "
                "rejoin the federation"
            ) from error
        return ledger

    def _tables(self) -> dict[str, dict[tuple[str, int], int]]:
        return {"begun": self._begun, "used": self._used, "opened": self._opened}


class SecAggClient:
    """One member in one attempt. A retry is a new object with new seeds and a higher attempt.

    Hazard: give every client of a node the same `ledger`; without it a coordinator could have one
    round's update summed twice over different survivors, and subtract.
    Source: Bonawitz et al. 2017, figure 4 (malicious variant); Bell et al. 2020 for the sparse
    graph.
    """

    def __init__(
        self,
        config: SecAggConfig,
        name: str,
        identity: Identity,
        *,
        ring: Ring | None = None,
        ledger: RevealLedger | None = None,
        vouch: int = 0,
        relies: int = 0,
    ) -> None:
        """Draw fresh secrets.

        Args:
            vouch: says, signed, how much of what `config.context` names this member has checked
            itself; 0: nothing. relies: what others must vouch for at least, more than a third of
                the cohort, before this member takes part; 0: it relies on nobody.

        Raises:
            ConfigError: this identity is not the one that the roster lists under `name`.
            ProtocolError: the ledger says that this attempt, or the round, is over.
        """
        if config.members.get(name) != identity.public:
            raise ConfigError(f"{name} is not in the cohort with this identity; check the roster")
        self._session = Session.of(config, ring)
        self._ledger = ledger or RevealLedger()
        self._ledger.begin(config.federation, config.round, config.attempt)
        self._identity = identity
        self._me = self._session.numbers[name]
        self._vouch, self._relies = vouch, relies
        self._seed = secrets.token_bytes(shamir.SECRET_BYTES)
        self._channel, self._mask = Ephemeral.generate(), Ephemeral.generate()
        self._tag_seed = secrets.token_bytes(tag.SEED_BYTES) if config.tagged else b""
        self._tag_key = b""
        self.stage = Stage.ADVERTISE
        self._card: KeyCard
        self._present: frozenset[int]  # members that sent keys
        self._near: Mapping[int, KeyCard]  # the neighbours' keys; nobody else's are needed any more
        self._view: bytes  # digest of everything seen so far
        # shares this member holds: of its own secrets, then of its neighbours'
        self._held: Mapping[int, bytes]
        self._shared: frozenset[int]
        self._receipt: Receipt
        self._survivors: frozenset[int]

    def __repr__(self) -> str:
        return f"SecAggClient({self._session.names[self._me]}, next {self.stage.name})"

    @property
    def survivors(self) -> tuple[str, ...]:
        """Whose values are in the sum, in the order of their names; known after `consistency`."""
        return tuple(self._session.names[at] for at in sorted(self._survivors))

    @property
    def threshold(self) -> int:
        """Members without which nothing is opened."""
        return self._session.config.threshold

    def advertise(self) -> bytes:
        """Stage 0: this attempt's public keys, signed."""
        self._expect(Stage.ADVERTISE)
        session, me = self._session, self._me
        commitment, tagging = (
            commit(session, me, self._seed),
            commit_tag(session, me, self._tag_seed),
        )
        keys = (self._channel.public, self._mask.public)
        self._card = KeyCard.signed(
            session, self._identity, me, *keys, commitment, self._vouch, tagging
        )
        self.stage = Stage.SHARE
        return self._card.encode(self._session)

    def share(self, all_keys: bytes) -> bytes:
        """Stage 1: split the self-mask seed and the mask key among the neighbours.

        Raises:
            ProtocolError, AuthenticationError: not a list of members' own signed keys that holds
            ours unchanged. ThresholdError: too few members; nothing was sent.
        """
        self._expect(Stage.SHARE)
        session, keys = self._session, KeyList.decode(all_keys, self._session)
        if keys.cards.get(self._me) != self._card:
            raise ProtocolError(
                "the key list does not hold the keys this member sent; it is refused"
            )
        self._enough(keys.cards, "sent keys")
        if self._relies:
            vouching = sum(
                card.vouch >= self._relies for at, card in keys.cards.items() if at != self._me
            )
            if vouching < session.vouchers:
                raise ThresholdError(
                    f"{vouching} members vouch for what this one could not check, need "
                    f"{session.vouchers}; nothing was sent"
                )
        view, plan = keys.view(session), session.plan(len(keys.cards))
        graph = once(
            session.id, ("graph", view), lambda: Graph(sorted(keys.cards), plan.degree, view)
        )
        holders = (self._me, *graph.neighbours(self._me))
        points = [holder + 1 for holder in holders]
        seeds = shamir.split(self._seed, plan.threshold, points)
        masks = shamir.split(self._mask.private_bytes(), plan.threshold, points)
        pieces = {
            holder: seed + mask + self._tag_seed
            for holder, seed, mask in zip(holders, seeds, masks, strict=True)
        }
        boxes = {
            peer: self._seal(peer, keys.cards[peer], pieces[peer], view) for peer in holders[1:]
        }
        message = SealedShares(self._me, boxes).encode(session, self._identity, view)
        self._present, self._near = (
            frozenset(keys.cards),
            {peer: keys.cards[peer] for peer in holders[1:]},
        )
        self._view, self._held = view, {self._me: pieces[self._me]}
        self.stage = Stage.MASK
        return message

    def mask(
        self, all_shares: bytes, values: NDArray[np.unsignedinteger], tokens: int = 0
    ) -> bytes:
        """Stage 2: add the self-mask and one mask for each neighbour that shared.

        Args:
            values: unsigned integers [length], each below 2**bits.
            tokens: training tokens behind them, counted under the same masks.

        Raises:
            ProtocolError, AuthenticationError: boxes missing, left over or changed.
            ThresholdError: too few members or neighbours shared; nothing was sent.
            ValueError: the values or the token count do not fit what the round agreed on.
            CryptoError: the ring could not close them; nothing was sent.

        Once this returns, the round's upload counts as used: put the ledger on disk before it
        leaves.
        """
        self._expect(Stage.MASK)
        session, boxes = self._session, BoxList.decode(all_shares, self._session)
        held = self._open(boxes)
        view = shared_view(session, self._view, boxes.shared)
        tag_key, values = self._tagged(held, view, values)
        vectors = _Vectors(session, values, tokens)
        mask_self(vectors, session, self._seed, subtract=False)
        for peer in boxes.boxes:
            mask_pair(vectors, session, self._mask, self._me, peer, self._near[peer].mask)
        packed, counted = vectors.close("values"), vectors.close("tokens")
        receipt = Receipt.signed(
            session, self._identity, view, self._me, session.claim(tokens), packed + counted
        )
        self._ledger.leave(session.config.federation, session.config.round, session.config.attempt)
        self._held, self._shared, self._view, self._receipt = (
            held,
            frozenset(boxes.shared),
            view,
            receipt,
        )
        self._tag_key = tag_key
        self.stage = Stage.CONSISTENCY
        return Upload(receipt, packed, counted).encode(session)

    def consistency(self, survivors: bytes) -> bytes:
        """Stage 3: sign the survivors, after checking that each one's upload is its own and the
        floors are kept.

        Raises:
            ProtocolError, AuthenticationError: a survivor without its own receipt, or we are
            missing. ProtocolError: this member is in a sum over others about the same.
            ThresholdError: too few survivors, in all or of a floor, or they claim too few tokens.

        Once this returns, others may open the sum: put the ledger on disk before the signature
        leaves.
        """
        self._expect(Stage.CONSISTENCY)
        session, found = self._session, SurvivorList.decode(survivors, self._session, self._view)
        # Bonawitz 2017, fig. 4, round 3: U3 is a subset of U2
        if not self._shared.issuperset(found.receipts):
            raise ProtocolError(
                "a survivor is named that never shared its secrets; the list is refused"
            )
        # a member that was declared dead must not help to open the sum
        if found.receipts.get(self._me) != self._receipt:
            raise ProtocolError(
                "this member's own upload is not among the survivors; the list is refused"
            )
        self._enough(found.receipts, "survived")
        claimed = sum(receipt.claim for receipt in found.receipts.values()) * session.claim_step
        if claimed < session.config.min_tokens:
            raise ThresholdError(
                f"survivors claim {claimed} tokens, {session.config.min_tokens} "
                f"needed; nothing is revealed"
            )
        view = found.view(session, self._view)
        names = once(
            session.id, ("names", view), lambda: tuple(session.names[at] for at in found.receipts)
        )
        self._ledger.sign(session.config.subjects, names)
        self._survivors, self._view = frozenset(found.receipts), view
        self.stage = Stage.UNMASK
        return Agreement.signed(session, self._identity, self._me, self._view).encode(session)

    def unmask(self, signatures: bytes) -> bytes:
        """Stage 4: reveal one share for each peer, then forget every secret.

        Raises:
            ProtocolError, AuthenticationError: a signature that is not over our very set of
                survivors, by one of them; or the ledger says that this round was opened before.
            ThresholdError: fewer than `threshold` signatures; nothing was revealed.
        """
        self._expect(Stage.UNMASK)
        session, found = self._session, SignatureList.decode(signatures, self._session, self._view)
        if not self._survivors.issuperset(found.signatures):
            raise ProtocolError("somebody signed that did not survive; the signatures are refused")
        # Bonawitz 2017, fig. 4, round 4: abort, reveal nothing
        if len(found.signatures) < session.config.threshold:
            raise ThresholdError(
                f"{len(found.signatures)} members signed the survivors, need "
                f"{session.config.threshold}"
            )
        half = shamir.SHARE_BYTES
        shares = {
            peer: SELF_SHARE + held[:half]
            if peer in self._survivors
            else KEY_SHARE + held[half : 2 * half]
            for peer, held in self._held.items()
        }
        message = Revelation(self._me, shares).encode(session, self._identity, self._view)
        self._ledger.open(session.config.federation, session.config.round, session.config.attempt)
        self._held = {}
        del self._seed, self._mask, self._channel
        self.stage = Stage.DONE
        return message

    @property
    def check(self) -> "SumCheck":
        """What tells whether a sum is the one that was opened; known after `consistency`, kept
        after the secrets are gone.
        """
        return SumCheck(self._tag_key, self.survivors)

    def _tagged(
        self, held: Mapping[int, bytes], view: bytes, values: NDArray[np.unsignedinteger]
    ) -> tuple[bytes, NDArray[np.unsignedinteger]]:
        """The key of this attempt's tags, and the values with the digits of this member's after
        them.
        """
        session, config, half = self._session, self._session.config, shamir.SHARE_BYTES
        if not config.tagged:
            return b"", values
        if values.shape != (config.length,):
            raise ValueError(
                f"values are {values.dtype} {values.shape}, unsigned integers "
                f"[{config.length}] expected"
            )
        key = session.tag_key((held[peer][2 * half :] for peer in sorted(held)), view)
        made = tag.make(key, values[: config.tagged], session.names[self._me])
        return key, np.concatenate([values, tag.spell(made, config.bits).astype(values.dtype)])

    def _expect(self, stage: Stage) -> None:
        if stage is not self.stage:
            raise RuntimeError(
                f"{stage.name} was called while {self.stage.name} comes next"
            )  # our bug

    def _enough(self, found: Collection[int], what: str) -> None:
        # Bonawitz 2017, fig. 4, every round
        if reason := self._session.short(found, what, self._session.config.needed):
            raise ThresholdError(f"{reason}; nothing was sent, wait for a new attempt")

    def _channel_key(self, peer: int, card: KeyCard) -> bytes:
        context, own = self._session.pair("channel", self._me, peer), self._channel
        # the same from both ends
        return once(
            self._session.id,
            (context, frozenset((own.public, card.channel))),
            lambda: own.agree(card.channel, context),
        )

    def _seal(self, peer: int, card: KeyCard, pieces: bytes, view: bytes) -> bytes:
        return seal_box(
            self._channel_key(peer, card), pieces, self._session.box(view, self._me, peer)
        )

    def _open(self, found: BoxList) -> dict[int, bytes]:
        """Shares that this member will hold: its own, and one pair from each neighbour that
        shared.
        """
        session, shared = self._session, set(found.shared)
        if self._me not in shared or not shared <= self._present:
            raise ProtocolError(
                "the members that shared are not members that sent keys, us among "
                "them; the list is refused"
            )
        self._enough(shared, "shared")
        expected = [peer for peer in self._near if peer in shared]
        if list(found.boxes) != expected:
            raise ProtocolError(
                f"boxes came from {len(found.boxes)} members, {len(expected)} "
                f"neighbours shared; refused"
            )
        need = session.plan(len(self._present)).threshold
        if len(expected) + 1 < need:
            raise ThresholdError(
                f"{len(expected) + 1} members hold our shares, need {need}; nothing was sent"
            )
        held = dict(self._held)
        for peer, box in found.boxes.items():
            try:
                associated = session.box(self._view, peer, self._me)
                piece = open_box(self._channel_key(peer, self._near[peer]), box, associated)
            except AuthenticationError:
                raise AuthenticationError(
                    f"the shares of {session.names[peer]} do not open; they are refused"
                ) from None
            self._dealt_alike(peer, piece)
            held[peer] = piece
        return held

    def _dealt_alike(self, peer: int, piece: bytes) -> None:
        """Require the seed of tags that `peer` deals to all.

        With another one for each member, the opened tag would be an equation about each update.
        """
        session, seed = self._session, piece[2 * shamir.SHARE_BYTES :]
        if commit_tag(session, peer, seed) != self._near[peer].tag_commitment:
            raise ProtocolError(
                f"{session.names[peer]} dealt another seed of tags than the one it committed to; "
                f"its shares are refused"
            )
