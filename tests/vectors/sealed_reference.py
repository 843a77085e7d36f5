"""Known answers for what sealed and threshold mode compute outside SEAL. It made `sealed.json` and
shares no product code.

Run from this folder: python sealed_reference.py > sealed.json
Needs the standard library and `secagg_reference` beside it. Slots modulo t by rejection, residues,
Lagrange's weights modulo each prime, stochastic rounding in exact fractions.
"""

import json
import sys
from fractions import Fraction
from math import floor
from typing import Any

if __name__ == "__main__":
    from secagg_reference import hkdf, noise, stream  # type: ignore[import-not-found]
else:
    from quietchoir.tests.vectors.secagg_reference import hkdf, noise, stream

# as SEAL's table has it for N = 4096 and 49 bits: prime, and 1 modulo 2N
SEALED_T = 562949953216513
JOINT_PRIMES = (18014398507892737, 18014398508138497, 18014398508400641)
PARTIES, BITS, SLOT_BITS = 10, 8, 49


def below(key: bytes, count: int, modulus: int) -> list[int]:
    """Eight little-endian bytes a word, cut to the modulus' length, thrown away if not below it."""
    found: list[int] = []
    data, at = stream(key, 64 * count), 0
    while len(found) < count:
        word = int.from_bytes(data[at : at + 8], "little") % 2 ** modulus.bit_length()
        at += 8
        if word < modulus:
            found.append(word)
    return found


def rounded(values: list[float], scale: float, bits: int, key: bytes) -> list[int]:
    """floor(value / step + middle + u), u uniform from the stream, in exact arithmetic."""
    middle = 2 ** (bits - 1) - 1
    data, out = stream(key, 4 * len(values)), []
    for at, value in enumerate(values):
        u = Fraction(int.from_bytes(data[4 * at : 4 * at + 4], "little"), 2**32)
        place = Fraction(value) * middle / Fraction(scale) + middle
        out.append(floor(min(max(place, Fraction(0)), Fraction(2 * middle)) + u))
    return out


def lagrange(points: list[int], point: int, prime: int) -> int:
    """The weight of `point` for the value at 0, by the textbook formula."""
    weight = 1
    for other in points:
        if other != point:
            weight = weight * other * pow(other - point, -1, prime) % prime
    return weight


def vectors() -> dict[str, Any]:
    key, seed, points = noise("slots", 32), noise("sealed seed", 32), [1, 3, 4, 9]
    values = [(int.from_bytes(noise(f"real {i}", 4), "big") - 2**31) / 2**31 for i in range(40)]
    width = BITS + (PARTIES - 1).bit_length()
    fields = [
        int.from_bytes(noise(f"field {i}", 1), "big") for i in range((SLOT_BITS - 1) // width)
    ]
    residue_key = noise("residues", 32)
    return {
        "key_id": {"seed": seed.hex(), "id": hkdf(seed, b"quietchoir sealed key id 1").hex()},
        "below": [
            {"key": key.hex(), "modulus": modulus, "numbers": below(key, 30, modulus)}
            for modulus in (SEALED_T, *JOINT_PRIMES, 2**40 + 15)
        ],
        "slot": {
            "parties": PARTIES,
            "bits": BITS,
            "fields": fields,
            "slot": sum(f << width * i for i, f in enumerate(fields)),
        },
        "residues": {
            "key": residue_key.hex(),
            "first": [
                below(hkdf(residue_key, b"quietchoir residues 1" + bytes([at])), 10, p)
                for at, p in enumerate(JOINT_PRIMES)
            ],
        },
        "weights": {
            "points": points,
            "of": {x: [lagrange(points, x, p) for p in JOINT_PRIMES] for x in points},
        },
        "rounding": [
            {
                "values": values,
                "scale": 0.7,
                "bits": bits,
                "key": key.hex(),
                "integers": rounded(values, 0.7, bits, key),
            }
            for bits in (4, 8, 16)
        ],
    }


if __name__ == "__main__":
    json.dump(vectors(), sys.stdout, indent=1)
    sys.stdout.write("\n")
