"""Making the joint key: commit, open, finish.

Knows one member's three steps. Knows nothing of rounds or of what is encrypted later.
Always: nobody's part of the key is shown before everybody's is fixed, and every member that
finishes saw the same cards; the joint secret never exists anywhere: each member has its own, and a
share of everybody's.

A member's part is b_i = -(a s_i + e_i) for an a that all have in common; the joint public key is
their sum.

Why commit before open: whoever sends its part last could send (its own key) minus (the sum of the
others), so that the sum is its own key. A commitment, signed with the roster key and bound to
federation, epoch and attempt, fixes each part first; an opening is signed over all cards, so a
coordinator that shows different cards to different members gets openings that no other member
takes. What is chosen without knowing the others' parts adds to a uniform-looking sum, whatever it
is.

Then rehearse: parts are encryptions of zero in round 0, so t members open the joint key
(`partial`), and zeros come out only if the dealt shares belong to the parts. That is everybody's
proof of possession: a part whose secret its member does not know has no shares that fit. A
rehearsal that fails names nobody; make another key, with fewer members if it goes on.

Not covered: a member that deals right shares to the rehearsal's responders and wrong ones to
others. Sums by these do not open (a `ProtocolError`), and other responders can. A ceremony needs
all members; who is not there is left out of the next plan.
Source: Asharov et al. 2012 and Mouchet et al. 2021 (joint keys); Shamir 1979.
"""

import hashlib
import json
import math
import secrets
from collections.abc import Mapping

import numpy as np

from ....core.errors import AuthenticationError, ProtocolError
from ...he.parameters import JOINT
from ...identity.keys import (
    BOX_OVERHEAD,
    SIGNATURE_BYTES,
    Ephemeral,
    Identity,
    bind,
    digest,
    hkdf,
    open_box,
    seal_box,
)
from . import residues
from .key_share import KeyShare
from .lattice import LIMBS, lattice
from .plan import POLYNOMIAL_BYTES, ThresholdPlan
from .residues import Residues

HASH_BYTES = 32
CARD_BYTES = 32 + HASH_BYTES + SIGNATURE_BYTES  # X25519 key, commitment, signature
HEAD_BYTES = HASH_BYTES + POLYNOMIAL_BYTES  # nonce and part
BOX_BYTES = POLYNOMIAL_BYTES + HASH_BYTES + BOX_OVERHEAD  # a share, and a seed of the members' key


class Ceremony:
    """One member's side. Methods are called once, in order; a message that is refused leaves
    everything as it was.

    Raises:
        ProtocolError: `identity` is not the one that the plan lists under `name`.
    """

    def __init__(self, plan: ThresholdPlan, name: str, identity: Identity) -> None:
        self._number = plan.number(name)
        if plan.members[name] != identity.public:
            raise ProtocolError(f"the plan lists another identity for {name!r}; check the roster")
        self._plan, self._name, self._identity = plan, name, identity
        self._secret = lattice().secret()
        self._part = self._make_part()
        self._ephemeral, self._nonce, self._seed = (
            Ephemeral.generate(),
            secrets.token_bytes(32),
            secrets.token_bytes(32),
        )
        self._card = self._opening = b""
        self._cards: dict[int, bytes] = {}
        self._view = b""
        self._done = False

    def freeze(self) -> bytes:
        """Everything this side needs to go on.

        Hazard: its secret is in it; seal it under a key that lies elsewhere, and thaw it once.
        """
        arrays = (self._secret, self._part)
        header = json.dumps(
            {
                "shapes": [array.shape for array in arrays],
                "ephemeral": self._ephemeral.private_bytes().hex(),
                "nonce": self._nonce.hex(),
                "seed": self._seed.hex(),
                "card": self._card.hex(),
                "cards": {str(number): card.hex() for number, card in self._cards.items()},
                "view": self._view.hex(),
                "done": self._done,
                "opening": len(self._opening),
            }
        ).encode("ascii")
        body = b"".join(array.astype("<u8").tobytes() for array in arrays)
        return len(header).to_bytes(4, "big") + header + self._opening + body

    @staticmethod
    def thaw(kept: bytes, plan: ThresholdPlan, name: str, identity: Identity) -> "Ceremony":
        """The side that was frozen, of the same plan."""
        start = 4 + int.from_bytes(kept[:4], "big")
        fields = json.loads(kept[4:start])
        own = object.__new__(Ceremony)  # `__init__` would draw other secrets
        own._number, own._plan, own._name, own._identity = plan.number(name), plan, name, identity
        own._opening, at = kept[start : start + fields["opening"]], start + fields["opening"]
        arrays = list[Residues]()
        for shape in fields["shapes"]:
            count = math.prod(shape)
            flat = np.frombuffer(kept, "<u8", count=count, offset=at).astype(np.uint64)
            arrays.append(flat.reshape(shape))
            at += 8 * count
        own._secret, own._part = arrays
        own._ephemeral = Ephemeral(bytes.fromhex(fields["ephemeral"]))
        own._nonce, own._seed, own._card, own._view = (
            bytes.fromhex(fields[key]) for key in ("nonce", "seed", "card", "view")
        )
        own._cards = {int(number): bytes.fromhex(card) for number, card in fields["cards"].items()}
        own._done = fields["done"]
        return own

    def commit(self) -> bytes:
        """This member's card: its X25519 key, and a commitment to its part of the joint key."""
        if self._card:
            raise RuntimeError("commit was called before")  # our bug
        fixed = commitment(self._plan, self._number, self._nonce, residues.to_bytes(self._part))
        body = self._ephemeral.public + fixed
        self._card = body + self._identity.sign(
            bind("quietchoir joint card 1", self._plan.session, self._number), body
        )
        return self._card

    def open(self, cards: Mapping[str, bytes]) -> bytes:
        """Show this member's part and deal the shares of its secret, now that everybody's part is
        fixed.

        Raises:
            ProtocolError: cards missing, of strangers, of another size, or our own was changed;
            nothing was shown. AuthenticationError: a card of another member, session or attempt.
        """
        if not self._card or self._opening:
            raise RuntimeError("open comes once, after commit")  # our bug
        found = self._complete(cards, CARD_BYTES, "cards")
        if found[self._number] != self._card:
            raise ProtocolError("our own card came back changed; this attempt is abandoned")
        for name, card in cards.items():
            check_card(self._plan, name, card)
        view = seen(self._plan, cards)
        points = [number + 1 for number in range(len(found))]
        shares = residues.split(self._secret[:LIMBS], self._plan.threshold, points)
        head, boxes = self._nonce + residues.to_bytes(self._part), []
        # our own share takes the same way, so that all openings have one size
        for number in range(len(found)):
            key = self._agreed(found[number], view, "share", self._number, number)
            dealt = residues.to_bytes(shares[number]) + self._seed
            boxes.append(
                seal_box(key, dealt, bind("quietchoir joint share 1", view, self._number, number))
            )
        self._cards, self._view = found, view
        hashes = b"".join(hashlib.sha256(box).digest() for box in boxes)
        signature = self._identity.sign(
            _told_in(view, self._number), hashlib.sha256(head).digest() + hashes
        )
        self._opening = head + b"".join(boxes) + signature
        return self._opening

    def finish(self, messages: Mapping[str, bytes]) -> KeyShare:
        """The joint key and this member's shares.

        Args:
            letters: from each member, our own included, `letter(plan, opening, our name)`.

        Raises:
            ProtocolError: letters missing or of another size, a part that is not the committed one,
                or bytes that are no polynomial.
            AuthenticationError: a letter by somebody else or over other cards than ours; a box that
            does not open.
        """
        if not self._opening or self._done:
            raise RuntimeError("finish comes once, after open")  # our bug
        found = self._complete(messages, letter_bytes(self._plan), "letters")
        if found[self._number] != letter(self._plan, self._opening, self._name):
            raise ProtocolError("our own letter came back changed; this attempt is abandoned")
        parts, dealt = zip(
            *(self._checked(number, found[number]) for number in sorted(found)), strict=True
        )
        joint = parts[0]
        for part in parts[1:]:
            joint = residues.add(joint, part)
        shares = tuple(residues.from_bytes(one[:POLYNOMIAL_BYTES], 1, LIMBS)[0] for one in dealt)
        readers = hkdf(
            b"".join(one[POLYNOMIAL_BYTES:] for one in dealt),
            bind("quietchoir joint readers 1", self._view),
        )
        pairs = {
            number: self._agreed(card, self._view, "masks", *sorted((self._number, number)))
            for number, card in self._cards.items()
            if number != self._number
        }
        key_id = digest("quietchoir joint key id 1", self._view, residues.to_bytes(joint))
        self._done = True
        return KeyShare(self._plan, self._name, key_id, joint, self._secret, shares, pairs, readers)

    def _make_part(self) -> Residues:
        nothing = np.zeros((1, JOINT.degree), np.uint64)
        return lattice().encrypt(self._secret, first_common(self._plan), nothing)

    def _checked(self, number: int, message: bytes) -> tuple[Residues, bytes]:
        """A member's part, and what it dealt to us."""
        head, rest = message[:HEAD_BYTES], message[HEAD_BYTES:]
        size = len(self._plan.members) * HASH_BYTES
        hashes, box, signature = rest[:size], rest[size:-SIGNATURE_BYTES], rest[-SIGNATURE_BYTES:]
        name, card = self._plan.names[number], self._cards[number]
        _check_head(self._plan, self._view, card, name, head, hashes, signature)
        if hashes[self._number * HASH_BYTES :][:HASH_BYTES] != hashlib.sha256(box).digest():
            raise AuthenticationError(
                f"a share from {name} is not the one it signed; it is refused, ask for it again"
            )
        key = self._agreed(card, self._view, "share", number, self._number)
        dealt = open_box(
            key, box, bind("quietchoir joint share 1", self._view, number, self._number)
        )
        residues.from_bytes(dealt[:POLYNOMIAL_BYTES], 1, LIMBS)
        return residues.from_bytes(head[HASH_BYTES:], 1, LIMBS), dealt

    def _agreed(self, card: bytes, view: bytes, purpose: str, sender: int, receiver: int) -> bytes:
        return self._ephemeral.agree(
            card[:32], bind("quietchoir joint pair 1", view, purpose, sender, receiver)
        )

    def _complete(self, messages: Mapping[str, bytes], size: int, what: str) -> dict[int, bytes]:
        if set(messages) != set(self._plan.members):
            raise ProtocolError(
                f"{what} of {len(messages)} members, those of all {len(self._plan.members)} "
                f"expected; wait for them"
            )
        wrong = [name for name, message in messages.items() if len(message) != size]
        if wrong:
            raise ProtocolError(
                f"{what} of {', '.join(sorted(wrong))} are not {size} bytes; they are refused"
            )
        return {self._plan.numbers[name]: bytes(message) for name, message in messages.items()}


def check_card(plan: ThresholdPlan, name: str, card: bytes) -> None:
    """What members require of a card; the coordinator too, so that one bad card costs its sender
    its place and nobody else.

    Raises:
        ProtocolError: a stranger, or another size.
        AuthenticationError: not signed by this member for this plan.
    """
    number = plan.number(name)
    if len(card) != CARD_BYTES:
        raise ProtocolError(
            f"a card of {len(card)} bytes from {name}, {CARD_BYTES} expected; it is refused"
        )
    context = bind("quietchoir joint card 1", plan.session, number)
    plan.members[name].verify(context, card[:-SIGNATURE_BYTES], card[-SIGNATURE_BYTES:])


def check_opening(
    plan: ThresholdPlan, cards: Mapping[str, bytes], name: str, opening: bytes
) -> None:
    """What can be checked of an opening without a key: its signature over all cards, and that its
    part is the committed one.

    Raises:
        ProtocolError: a stranger, another size, another part than the committed one, or bytes that
        are no polynomial. AuthenticationError: not signed by this member over these cards.
    """
    whole = letter(plan, opening, name)
    head, hashes = whole[:HEAD_BYTES], whole[HEAD_BYTES:][: len(plan.members) * HASH_BYTES]
    _check_head(
        plan, seen(plan, cards), cards[name], name, head, hashes, opening[-SIGNATURE_BYTES:]
    )
    residues.from_bytes(head[HASH_BYTES:], 1, LIMBS)


def seen(plan: ThresholdPlan, cards: Mapping[str, bytes]) -> bytes:
    """32 bytes that any difference between two members' cards changes."""
    return digest("quietchoir joint view 1", plan.session, *(cards[name] for name in plan.names))


def _check_head(
    plan: ThresholdPlan,
    view: bytes,
    card: bytes,
    name: str,
    head: bytes,
    hashes: bytes,
    signature: bytes,
) -> None:
    number = plan.number(name)
    plan.members[name].verify(
        _told_in(view, number), hashlib.sha256(head).digest() + hashes, signature
    )
    if commitment(plan, number, head[:HASH_BYTES], head[HASH_BYTES:]) != card[32 : 32 + HASH_BYTES]:
        # a rogue key is chosen after the others' parts
        raise ProtocolError(
            f"{name} opened another part than it committed to; abandon this "
            f"attempt and look into {name}"
        )


def _told_in(view: bytes, number: int) -> bytes:
    return bind("quietchoir joint opening 1", view, number)


def letter(plan: ThresholdPlan, opening: bytes, name: str) -> bytes:
    """What the coordinator passes on of an opening to one member: everything, but only the digests
    of others' boxes.

    Raises:
        ProtocolError: an opening of another size, or a stranger's name.
    """
    n, number = len(plan.members), plan.number(name)
    if len(opening) != HEAD_BYTES + n * BOX_BYTES + SIGNATURE_BYTES:
        raise ProtocolError(
            f"an opening of {len(opening)} bytes; it is refused, ask its sender again"
        )
    boxes = [opening[HEAD_BYTES + at * BOX_BYTES :][:BOX_BYTES] for at in range(n)]
    hashes = b"".join(hashlib.sha256(box).digest() for box in boxes)
    return opening[:HEAD_BYTES] + hashes + boxes[number] + opening[-SIGNATURE_BYTES:]


def letter_bytes(plan: ThresholdPlan) -> int:
    """Size of a letter."""
    return HEAD_BYTES + len(plan.members) * HASH_BYTES + BOX_BYTES + SIGNATURE_BYTES


def first_common(plan: ThresholdPlan) -> Residues:
    """The polynomial a [1, 3, N] of all parts of the key, from the plan alone: nobody chose it."""
    return residues.random(hkdf(plan.session, b"quietchoir joint common 1"), LIMBS)[None]


def commitment(plan: ThresholdPlan, number: int, nonce: bytes, part: bytes) -> bytes:
    """32 bytes that fix a member's part and tell nothing of it; another member's copy of them
    fixes nothing.
    """
    return digest("quietchoir joint commitment 1", plan.session, number, nonce, part)
