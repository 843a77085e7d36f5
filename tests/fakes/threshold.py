"""Members with a joint key in one process; every message and every secret can be looked at."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from quietchoir.crypto.experimental.threshold import (
    REHEARSAL,
    Ceremony,
    Contributor,
    Gathering,
    Holder,
    KeyShare,
    PartialReader,
    ThresholdPlan,
    letter,
    request,
    residues,
)
from quietchoir.crypto.experimental.threshold.contribution import common
from quietchoir.crypto.experimental.threshold.lattice import LIMBS, Slots, lattice
from quietchoir.crypto.experimental.threshold.plan import PRIMES, Q
from quietchoir.crypto.experimental.threshold.residues import Residues
from quietchoir.crypto.he.parameters import JOINT
from quietchoir.crypto.identity.keys import Identity


class Circle:
    """n members who made a joint key that t of them open."""

    def __init__(
        self, n: int, threshold: int, *, length: int = 100, bits: int = 8, **other: Any
    ) -> None:
        self.names = [f"node-{number:03}" for number in range(n)]
        self.identities = {name: Identity.generate() for name in self.names}
        self.fields: dict[str, Any] = {
            "federation": bytes(range(32)),
            "epoch": 1,
            "attempt": 0,
            "members": {name: identity.public for name, identity in self.identities.items()},
            "threshold": threshold,
            "min_parties": 2,
            "length": length,
            "bits": bits,
            **other,
        }
        self.plan = ThresholdPlan(**self.fields)
        self.ceremonies = self.begin()
        self.cards = {name: each.commit() for name, each in self.ceremonies.items()}
        self.openings = {name: each.open(self.cards) for name, each in self.ceremonies.items()}
        self.holdings = {
            name: each.finish(letters(each, self.openings))
            for name, each in self.ceremonies.items()
        }
        self.holders = {
            name: Holder(self.holdings[name], self.identities[name]) for name in self.names
        }
        rng = np.random.default_rng(n)
        self.values = {
            name: rng.integers(0, 1 << bits, length, dtype=np.uint64) for name in self.names
        }

    def begin(self, **other: Any) -> dict[str, Ceremony]:
        """Fresh ceremonies of the same members."""
        plan = ThresholdPlan(**{**self.fields, **other})
        return {name: Ceremony(plan, name, self.identities[name]) for name in self.names}

    @property
    def any(self) -> KeyShare:
        return self.holdings[self.names[0]]

    def contribute(self, name: str, round_: int, slots: Slots | None = None) -> bytes:
        packed = self.plan.packing.pack(self.values[name]) if slots is None else slots
        return Contributor(self.holdings[name], self.identities[name]).encrypt(round_, packed)

    def gather(
        self,
        round_: int,
        names: Iterable[str] | None = None,
        slots: Mapping[str, Slots] | None = None,
    ) -> Gathering:
        gathering = Gathering(self.plan, self.any.key_id, round_)
        for name in self.names if names is None else names:
            gathering.receive(name, self.contribute(name, round_, (slots or {}).get(name)))
        return gathering

    def opened(
        self, gathering: Gathering, responders: Sequence[str], reader: str | None = None
    ) -> Slots:
        """What one member reads when `responders` answer."""
        request = gathering.request(responders)
        reading = self.reader(gathering, responders, reader)
        for name in responders:
            reading.receive(name, self.holders[name].respond(request))
        return reading.result()

    def reader(
        self, gathering: Gathering, responders: Sequence[str], reader: str | None = None
    ) -> PartialReader:
        return PartialReader(
            self.holdings[reader or self.names[-1]], gathering.request(responders), gathering.total
        )

    def rehearse(self, responders: Sequence[str]) -> None:
        asked = request(self.plan, REHEARSAL, responders, self.names)
        reading = PartialReader(self.any, asked)
        for name in responders:
            reading.receive(name, self.holders[name].respond(asked))
        reading.result()

    def sum(self, names: Iterable[str] | None = None) -> Slots:
        total: Slots = np.sum(
            [self.values[name] for name in (self.names if names is None else names)], axis=0
        )
        return total

    def secret_of(
        self, names: Sequence[str], contributors: Sequence[str] | None = None
    ) -> Residues:
        """What Lagrange makes of these members' shares at 0, [3, N] in the NTT basis."""
        points = [self.plan.numbers[name] + 1 for name in names]
        total = np.zeros((LIMBS, JOINT.degree), np.uint64)
        for name, point in zip(names, points, strict=True):
            share = residues.product(
                self.share(name, contributors), residues.weights(points, point, LIMBS)
            )
            total = residues.add(total, share)
        return total

    def share(self, name: str, contributors: Sequence[str] | None = None) -> Residues:
        """One member's share of the contributors' summed secret."""
        total = np.zeros((LIMBS, JOINT.degree), np.uint64)
        for number in (self.plan.numbers[each] for each in contributors or self.names):
            total = residues.add(total, self.holdings[name].shares[number])
        return total


def letters(ceremony: Ceremony, openings: Mapping[str, bytes]) -> dict[str, bytes]:
    """What one member gets of all openings."""
    return {
        name: letter(ceremony._plan, opening, ceremony._name) for name, opening in openings.items()
    }


def ciphertext(circle: Circle, gathering: Gathering) -> Residues:
    """The first ciphertext of the coordinator's sum, [2, 3, N]."""
    a = common(circle.plan, circle.any.key_id, gathering._round)
    return np.stack([gathering._total[0], a[0]])


def key_pair(a: Residues) -> tuple[Residues, Residues]:
    """A secret s and b = -(a s + e) for a common a, all [4, N] in SEAL's NTT basis: a part of an
    ordinary public key.
    """
    ring = lattice()
    made = ring._seal.KeyGenerator(ring._context)
    public, private = ring._seal.PublicKey(), made.secret_key()
    made.create_public_key(public)
    secret = ring._read(private.data(), 1, LIMBS + 1)[0]
    own, other = ring._read(public.data(), 2, LIMBS + 1)
    return secret, residues.add(own, residues.product(residues.subtract(other, a), secret))


def encrypt_under(b: Residues, a: Residues, row: Slots) -> Residues:
    """SEAL's encryption of one row [N] under the public key (b, a), [2, 3, N]."""
    ring = lattice()
    key = ring._load(ring._seal.PublicKey(), ring._cipher(np.stack([b, a]), ring._top, ntt=True))
    plain, cipher = ring._seal.Plaintext(), ring._seal.Ciphertext()
    ring._coder.encode(row.tolist(), plain)
    ring._seal.Encryptor(ring._context, key).encrypt(plain, cipher)
    pair: Residues = ring._read(cipher, 2)
    return pair


def integers(polynomial: Residues) -> list[int]:
    """Coefficients of [3, N] in (-q/2, q/2)."""
    parts = [(Q // prime) * pow(Q // prime, -1, prime) for prime in PRIMES[:LIMBS]]
    values = (
        sum(limb.astype(object) * part for limb, part in zip(polynomial, parts, strict=True)) % Q
    )
    return [int(value) - Q if value > Q // 2 else int(value) for value in values]


def looks_uniform(polynomial: Residues) -> bool:
    """Chi-square over 64 cells for each limb [3, N]; a true uniform polynomial fails once in
    about 10^5.
    """
    for limb, prime in zip(polynomial, PRIMES, strict=False):
        counts = np.bincount(
            (limb.astype(float) / prime * 64).astype(int).clip(0, 63), minlength=64
        )
        if ((counts - counts.mean()) ** 2 / counts.mean()).sum() > 125:
            return False
    return True
