"""Opening one sum: t members each decrypt a part, and any member puts the parts together.

Knows weights, smudging and pair masks. Knows nothing of how sums are made.
Always: the set of responders is fixed before anybody answers; a round's sum is opened over one set
of contributors, never over two (their difference would be a single member's); a part leaves only
smudged, masked, signed and covered for members (the pad below): the coordinator adds parts up
without reading one, and members get the sum of them.

A responder with shares σ_i of the contributors' secrets answers, for the polynomial a of each row,

    λ a Σ σ_i + smudging + Σ ± mask(pair, request)

with λ its Lagrange weight, applied before smudging so that no weight makes the smudging larger.

**Why the masks.** Smudging alone is not enough when any t members may respond. Take t-1 colluders
that are *not* among the responders: they know t-1 points of the sharing polynomial, so each honest
share is (a known number) + κ s with a κ like 9/5 modulo q, and a single part tells κ (round(q m /
T) + e) + smudging. A fraction in κ wraps around q: the top bits of the part tell (round(q m / T) +
e) modulo 5, far above any smudging, and so e, and from enough of these the key. (`tests/attacks`
runs it up to e modulo 5.) The masks cancel over the t responders and leave only the sum of all
parts to be seen, in which s has weight 1 exactly. They are keyed with the request, so parts given
for different requests never meet: a coordinator that names different contributors or responders to
different members gets uniform numbers.

Not covered: a responder, or the coordinator, that adds an offset shifts the sum, unseen when it is
a multiple of q/T. Compare two openings by different responders where that matters. Two sums of one
round over different sets can be opened if more than 2t - n - 1 members help (as in `secagg`):
choose t well above half, and put masks inside.
Source: Mouchet et al. 2023, "An efficient threshold access-structure for RLWE-based multiparty
homomorphic encryption".

**The pad.** The coordinator adds parts up without reading them, so that members get one vector and
not t. What is covered for one request opens under no other; a sum that opens is, to the last
residue, the sum of what its responders covered, unless somebody who has the members' key made it.

    nonce, 16 bytes | y = part + pad(key, request, member, nonce) | two checks for each prime

*Why it hides.* The pad is uniform modulo each prime, from AES-CTR under a key that the coordinator
has not, and never the same twice (a fresh nonce). So y is a stream cipher's ciphertext in the very
group in which parts are added, and the sum of ciphertexts opens with the sum of the pads.

*Why nobody changes it.* Each check is <k, y> + f modulo a prime, k one vector for the request, f
fresh for member and nonce. The f hide k whatever is sent, so whoever changes the sum by d != 0 in
one prime must guess <k, d> twice: 2^-54 each. Checks add up as the vectors do. Source: Agrawal,
Boneh 2009, "Homomorphic MACs: MAC-based integrity for network coding", section 3.

*Against whom.* Exactly those that a box under the members' key and a signature kept out before:
everybody without that key. Who has it, a member, reads the sum anyway, and a coordinator that it
helps chooses it as responder, where it may put what it likes into its part, another for each
reader. Neither form stops that.
"""

import hashlib
import secrets
from collections.abc import Mapping, Sequence

import numpy as np

from ....core.errors import AuthenticationError, ProtocolError, ThresholdError
from ...identity.keys import SIGNATURE_BYTES, Identity, bind, hkdf
from . import residues
from .contribution import REHEARSAL, common, parse, request_id
from .key_share import KeyShare
from .lattice import LIMBS, Slots, lattice
from .plan import POLYNOMIAL_BYTES, PRIMES, RESIDUE_BYTES, ThresholdPlan
from .residues import Residues

NONCE_BYTES = 16
COPIES = 2  # checks for each prime
CHECK_BYTES = COPIES * LIMBS * RESIDUE_BYTES
HALF = 28  # bits; sums of halves of residues stay far below 2^64
OVERHEAD = NONCE_BYTES + CHECK_BYTES  # of one covered part over its polynomials

Checks = list[list[int]]  # [copies][limbs]


class Pad:
    """What members do with the parts of one request.

    Args:
        key: 32 bytes that all members have and the coordinator has not.
        named: 32 bytes that name the request.
        rows: polynomials of one part.
    """

    def __init__(self, key: bytes, named: bytes, rows: int) -> None:
        self._key, self._rows = hkdf(key, bind("quietchoir joint veil 1", named)), rows

    def cover(self, part: Residues, number: int) -> bytes:
        """The part [rows, 3, N] of the member with this number, for the coordinator to add."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        covered = residues.add(part, self._pad(number, nonce))
        checks = add_checks(self._dots(covered), self._offsets(number, nonce))
        return nonce + residues.to_bytes(covered) + write_checks(checks)

    def uncover(self, number: int, covered: bytes) -> Residues:
        """One member's part. The caller has checked its signature.

        Raises:
            ProtocolError: residues that are not below their prime.
        """
        nonce, body, _ = cut(covered, 1, self._rows)
        return residues.subtract(
            residues.from_bytes(body, self._rows, LIMBS), self._pad(number, nonce)
        )

    def uncover_sum(self, numbers: Sequence[int], summed: bytes) -> Residues:
        """The sum [rows, 3, N] of all responders' parts.

        Raises:
            ProtocolError: another length, or numbers that are not below their prime.
            AuthenticationError: not the sum of what these members covered for this request.
        """
        nonces, body, tail = cut(summed, len(numbers), self._rows)
        covered = residues.from_bytes(body, self._rows, LIMBS)
        expected, pads = self._dots(covered), np.zeros_like(covered)
        for at, number in enumerate(numbers):
            nonce = nonces[at * NONCE_BYTES : (at + 1) * NONCE_BYTES]
            expected = add_checks(expected, self._offsets(number, nonce))
            pads = residues.add(pads, self._pad(number, nonce))
        if expected != read_checks(tail):
            raise AuthenticationError(
                "the summed parts are not what the responders sent; ask for them again"
            )
        return residues.subtract(covered, pads)

    def _pad(self, number: int, nonce: bytes) -> Residues:
        key = hkdf(self._key, bind("pad", number, nonce))
        return np.stack(
            [residues.random(hkdf(key, bind("row", at)), LIMBS) for at in range(self._rows)]
        )

    def _offsets(self, number: int, nonce: bytes) -> Checks:
        """f, one for each check: 256 bits modulo a prime of 54, which is uniform but for 2^-200."""
        return [
            [
                int.from_bytes(hkdf(self._key, bind("offset", number, nonce, copy, limb)), "big")
                % PRIMES[limb]
                for limb in range(LIMBS)
            ]
            for copy in range(COPIES)
        ]

    def _dots(self, covered: Residues) -> Checks:
        """<k, y> modulo each prime, for each copy of k."""
        totals = [[0] * LIMBS for _ in range(COPIES)]
        low = np.uint64((1 << HALF) - 1)
        for copy in range(COPIES):
            for at, row in enumerate(covered):
                terms = residues.product(
                    row, residues.random(hkdf(self._key, bind("check", copy, at)), LIMBS)
                )
                lower, upper = (terms & low).sum(axis=-1), (terms >> np.uint64(HALF)).sum(axis=-1)
                for limb in range(LIMBS):
                    term = int(lower[limb]) + (int(upper[limb]) << HALF)
                    totals[copy][limb] = (totals[copy][limb] + term) % PRIMES[limb]
        return totals


def add_up(parts: Sequence[bytes], rows: int) -> bytes:
    """What the coordinator makes of all responders' covered parts, in the order of their numbers.
    Needs no key.

    Raises:
        ProtocolError: one of another length, or with numbers that are not below their prime.
    """
    nonces, total = (
        b"",
        np.zeros((rows, LIMBS, POLYNOMIAL_BYTES // (LIMBS * RESIDUE_BYTES)), np.uint64),
    )
    checks: Checks = [[0] * LIMBS for _ in range(COPIES)]
    for part in parts:
        nonce, body, tail = cut(part, 1, rows)
        nonces, total = nonces + nonce, residues.add(total, residues.from_bytes(body, rows, LIMBS))
        checks = add_checks(checks, read_checks(tail))
    return nonces + residues.to_bytes(total) + write_checks(checks)


def cut(covered: bytes, count: int, rows: int) -> tuple[bytes, bytes, bytes]:
    """Nonces of `count` members, polynomials, checks.

    Raises:
        ProtocolError: another length.
    """
    head = count * NONCE_BYTES
    size = head + rows * POLYNOMIAL_BYTES + CHECK_BYTES
    if len(covered) != size:
        raise ProtocolError(f"parts of {len(covered)} bytes, {size} expected; they are refused")
    return covered[:head], covered[head:-CHECK_BYTES], covered[-CHECK_BYTES:]


def add_checks(left: Checks, right: Checks) -> Checks:
    """left + right, each modulo its prime."""
    return [
        [(one + other) % prime for one, other, prime in zip(*pair, PRIMES, strict=False)]
        for pair in zip(left, right, strict=True)
    ]


def write_checks(checks: Checks) -> bytes:
    """7 bytes a check, little-endian."""
    return b"".join(value.to_bytes(RESIDUE_BYTES, "little") for copy in checks for value in copy)


def read_checks(raw: bytes) -> Checks:
    """Undo `write_checks`.

    Raises:
        ProtocolError: a check that is not below its prime.
    """
    values = [
        int.from_bytes(raw[at : at + RESIDUE_BYTES], "little")
        for at in range(0, CHECK_BYTES, RESIDUE_BYTES)
    ]
    if any(value >= PRIMES[at % LIMBS] for at, value in enumerate(values)):
        raise ProtocolError("a check that is not below its prime; the parts are refused")
    return [values[at : at + LIMBS] for at in range(0, len(values), LIMBS)]


class Holder:
    """One member's shares at work."""

    def __init__(self, key_share: KeyShare, identity: Identity) -> None:
        self._key_share, self._identity = key_share, identity

    def respond(self, request: bytes) -> bytes:
        """This member's part of the opening that `request` asks for: covered for members, and
        signed.

        Raises:
            ProtocolError: a malformed request, one without us, one answered before, or another set
            for an opened round. ThresholdError: too few contributions, or another number of
            responders than the threshold. BudgetError: the key has opened as much as its smudging
            allows.
        """
        key_share = self._key_share
        round_number, responders, contributors = parse(key_share.plan, request)
        if key_share.number not in responders:
            raise ProtocolError("a request for other responders; it is not answered")
        named, rows = request_id(key_share.key_id, request), _rows(key_share.plan, round_number)
        key_share.memory.check(key_share.plan, round_number, contributors, named, rows)
        share = key_share.shares[contributors[0]]
        for number in contributors[1:]:
            share = residues.add(share, key_share.shares[number])
        part = _smudged(
            key_share, share, common(key_share.plan, key_share.key_id, round_number), responders
        )
        part = _masked(key_share, part, responders, named)
        covered = Pad(key_share.readers, named, rows).cover(part, key_share.number)
        key_share.memory.open(round_number, contributors, named, rows)  # before it leaves
        return covered + self._identity.sign(
            _context(named, key_share.number), hashlib.sha256(covered).digest()
        )


def _smudged(
    key_share: KeyShare, share: Residues, commons: Residues, responders: Sequence[int]
) -> Residues:
    """λ σ a + smudging, [rows, 3, N]."""
    points = [number + 1 for number in responders]
    weighted = residues.product(share, residues.weights(points, key_share.number + 1, LIMBS))
    smudging = np.stack([residues.smudging(key_share.plan.smudging_bits, LIMBS) for _ in commons])
    return residues.add(lattice().multiply(commons, weighted), smudging)


def _masked(
    key_share: KeyShare, part: Residues, responders: Sequence[int], named: bytes
) -> Residues:
    me = key_share.number
    for other in responders:
        if other != me:
            key = hkdf(key_share.pairs[other], bind("quietchoir joint mask 1", named))
            rows = [residues.random(hkdf(key, bind("row", at)), LIMBS) for at in range(len(part))]
            part = (residues.add if me < other else residues.subtract)(part, np.stack(rows))
    return part


class PartialReader:
    """A member that puts the parts of one opening together; it need not be a responder.

    Args:
        request: as the responders got it.
        total: `Gathering.total`; nothing for a rehearsal, whose sum is the joint key that each
        member has.

    Raises:
        ProtocolError: a request or a sum that is malformed.
        ThresholdError: a request with another number of responders, or too few contributions.
    """

    def __init__(self, key_share: KeyShare, request: bytes, total: bytes = b"") -> None:
        self._key_share = key_share
        self.round, self._responders, contributors = parse(key_share.plan, request)
        self.contributors = tuple(key_share.plan.names[number] for number in contributors)
        self._named, self._rows = (
            request_id(key_share.key_id, request),
            _rows(key_share.plan, self.round),
        )
        self._total = (
            key_share.joint
            if self.round == REHEARSAL
            else residues.from_bytes(total, self._rows, LIMBS)
        )
        self._parts: dict[int, Residues] = {}
        self._summed: Residues | None = None
        self._pad = Pad(key_share.readers, self._named, self._rows)

    @property
    def missing(self) -> tuple[str, ...]:
        """Responders whose part is not here yet. If one stays away, ask again with others: the
        sum is the same.
        """
        if self._summed is not None:
            return ()
        return tuple(
            self._key_share.plan.names[number]
            for number in self._responders
            if number not in self._parts
        )

    def receive(self, name: str, message: bytes) -> None:
        """Take one responder's part.

        Raises:
            ProtocolError: not a responder of this request, a second part, or bytes that are no
            polynomials. AuthenticationError: not this member's part of this very request.
        """
        number = self._key_share.plan.number(name)
        if number not in self._responders or number in self._parts:
            raise ProtocolError(
                f"{name} is no responder of this request or has answered it "
                f"before; the part is refused"
            )
        covered = _checked(self._key_share.plan, self._named, self._rows, name, message)
        self._parts[number] = self._pad.uncover(number, covered)

    def receive_sum(self, message: bytes) -> None:
        """Take all parts at once, as `together` added them up.

        Raises:
            ProtocolError: parts are here already, or bytes that are no polynomials.
            AuthenticationError: not the sum of what this request's responders sent.
        """
        if self._parts or self._summed is not None:
            raise ProtocolError("parts of this request are here already; their sum is refused")
        self._summed = self._pad.uncover_sum(self._responders, message)

    def result(self) -> Slots:
        """The summed slots [rows, N], modulo t; `plan.packing.unpack` makes values of them once all
        masks are off.

        Raises:
            ThresholdError: a part is missing.
            ProtocolError: the parts do not meet: one is wrong, or (in a rehearsal) somebody dealt
            wrong shares.
        """
        if self.missing:
            raise ThresholdError(
                f"no part from {', '.join(self.missing)}; wait for it or ask other responders"
            )
        phase = self._total if self._summed is None else residues.add(self._total, self._summed)
        for part in self._parts.values():
            phase = residues.add(phase, part)
        slots = lattice().decode(phase)
        if self.round == REHEARSAL and slots.any():
            raise ProtocolError(
                "the rehearsal opened to something else than zeros; this key is "
                "not used, make another"
            )
        return slots


def check_part(
    plan: ThresholdPlan, key_id: bytes, request: bytes, name: str, message: bytes
) -> None:
    """What can be checked of a part by somebody who cannot read it: who made it, and for what.

    Raises:
        ProtocolError: a malformed request, not one of its responders, or another size.
        ThresholdError: as `parse`.
        AuthenticationError: not this member's part of this very request.
    """
    round_number, responders, _ = parse(plan, request)
    if plan.number(name) not in responders:
        raise ProtocolError(f"{name} is no responder of this request; the part is refused")
    covered = _checked(plan, request_id(key_id, request), _rows(plan, round_number), name, message)
    _, body, checks = cut(covered, 1, _rows(plan, round_number))
    residues.from_bytes(body, _rows(plan, round_number), LIMBS)
    read_checks(checks)


def together(plan: ThresholdPlan, request: bytes, parts: Mapping[str, bytes]) -> bytes:
    """The sum of all parts of a request, still covered, for every reader: what the coordinator
    sends instead of t parts.

    Args:
        parts: by responder; each has passed `check_part`.

    Raises:
        ThresholdError: a part is missing.
        ProtocolError: a malformed request or part.
    """
    round_number, responders, _ = parse(plan, request)
    names = [plan.names[number] for number in responders]
    if missing := [name for name in names if name not in parts]:
        raise ThresholdError(f"no part from {', '.join(missing)}; ask other responders")
    return add_up([parts[name][:-SIGNATURE_BYTES] for name in names], _rows(plan, round_number))


def _checked(plan: ThresholdPlan, named: bytes, rows: int, name: str, message: bytes) -> bytes:
    """The covered part in a message."""
    size = rows * POLYNOMIAL_BYTES + OVERHEAD + SIGNATURE_BYTES
    if len(message) != size:
        raise ProtocolError(
            f"a part of {len(message)} bytes from {name}, {size} expected; it is refused"
        )
    covered, signature = message[:-SIGNATURE_BYTES], message[-SIGNATURE_BYTES:]
    plan.members[name].verify(
        _context(named, plan.number(name)), hashlib.sha256(covered).digest(), signature
    )
    return covered


def _rows(plan: ThresholdPlan, round_number: int) -> int:
    return 1 if round_number == REHEARSAL else plan.packing.rows


def _context(named: bytes, number: int) -> bytes:
    return bind("quietchoir joint part 1", named, number)
