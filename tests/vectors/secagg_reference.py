"""An independent, slow, pure-Python secure aggregation: it made `secagg.json`, and shares no code
with the product.

Run: python tests/vectors/secagg_reference.py > tests/vectors/secagg.json
Needs the standard library only. AES-256 after FIPS 197, X25519 after RFC 7748, HKDF after RFC 5869,
packing bit by bit.
"""

import hashlib
import hmac
import json
import sys
from typing import Any

P25519 = 2**255 - 19
FIELD = 2**256 + 297
PROTOCOL = "quietchoir secagg 2"


# --- AES-256 in counter mode ---


def xtime(a: int) -> int:
    return (a << 1) ^ (0x11B if a & 0x80 else 0)


def gf_multiply(a: int, b: int) -> int:
    out = 0
    while b:
        out ^= a if b & 1 else 0
        a, b = xtime(a), b >> 1
    return out


def make_sbox() -> list[int]:
    box = []
    for value in range(256):
        inverse = next((c for c in range(256) if gf_multiply(value, c) == 1), 0)
        out = 0x63
        for shift in range(5):
            out ^= ((inverse << shift) | (inverse >> (8 - shift))) & 0xFF
        box.append(out)
    return box


SBOX = make_sbox()


def key_schedule(key: bytes) -> list[list[int]]:
    words, constant = [list(key[i : i + 4]) for i in range(0, 32, 4)], 1
    for i in range(8, 60):
        word = list(words[-1])
        if i % 8 == 0:
            word = [SBOX[b] for b in word[1:] + word[:1]]
            word[0] ^= constant
            constant = xtime(constant)
        elif i % 8 == 4:
            word = [SBOX[b] for b in word]
        words.append([a ^ b for a, b in zip(words[i - 8], word, strict=True)])
    return [[byte for word in words[i : i + 4] for byte in word] for i in range(0, 60, 4)]


def aes_block(keys: list[list[int]], block: bytes) -> bytes:
    state = [a ^ b for a, b in zip(block, keys[0], strict=True)]
    for number in range(1, 15):
        state = [SBOX[b] for b in state]
        state = [state[(i + 4 * (i % 4)) % 16] for i in range(16)]
        if number < 14:
            mixed = []
            for c in range(0, 16, 4):
                col = state[c : c + 4]
                mixed += [
                    gf_multiply(col[i], 2)
                    ^ gf_multiply(col[(i + 1) % 4], 3)
                    ^ col[(i + 2) % 4]
                    ^ col[(i + 3) % 4]
                    for i in range(4)
                ]
            state = mixed
        state = [a ^ b for a, b in zip(state, keys[number], strict=True)]
    return bytes(state)


def stream(key: bytes, size: int) -> bytes:
    keys, blocks = key_schedule(key), -(-size // 16)
    return b"".join(aes_block(keys, counter.to_bytes(16, "big")) for counter in range(blocks))[
        :size
    ]


# --- X25519, the Montgomery ladder ---


def x25519(scalar: bytes, point: bytes) -> bytes:
    k = int.from_bytes(scalar, "little") & ~7 & ~(1 << 255) | 1 << 254
    x1 = int.from_bytes(point, "little") & ~(1 << 255)
    x2, z2, x3, z3, swapped = 1, 0, x1, 1, 0
    for t in reversed(range(255)):
        bit = k >> t & 1
        if swapped ^ bit:
            x2, x3, z2, z3 = x3, x2, z3, z2
        swapped = bit
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        aa, bb, da, cb = a * a, b * b, d * a, c * b
        e = aa - bb
        x3, z3 = (da + cb) ** 2 % P25519, x1 * (da - cb) ** 2 % P25519
        x2, z2 = aa * bb % P25519, e * (aa + 121665 * e) % P25519
    if swapped:
        x2, z2 = x3, z3
    return (x2 * pow(z2, P25519 - 2, P25519) % P25519).to_bytes(32, "little")


BASE = (9).to_bytes(32, "little")


# --- contexts, keys, shares ---


def bind(*fields: bytes | str | int) -> bytes:
    out = b""
    for f in fields:
        kind, body = (
            (b"i", f.to_bytes(8, "big"))
            if isinstance(f, int)
            else (b"s", f.encode())
            if isinstance(f, str)
            else (b"b", f)
        )
        out += kind + len(body).to_bytes(8, "big") + body
    return out


def hkdf(secret: bytes, info: bytes, size: int = 32) -> bytes:
    key = hmac.new(bytes(32), secret, hashlib.sha256).digest()
    out, block = b"", b""
    for counter in range(1, -(-size // 32) + 1):
        block = hmac.new(key, block + info + bytes([counter]), hashlib.sha256).digest()
        out += block
    return out[:size]


def interpolate_at_zero(points: list[tuple[int, int]]) -> int:
    """Lagrange by the textbook formula, one inversion a term."""
    total = 0
    for x, y in points:
        term = y
        for other, _ in points:
            if other != x:
                term = term * other * pow(other - x, -1, FIELD) % FIELD
        total += term
    return total % FIELD


# --- one party's masked vector ---


def pack(values: list[int], bits: int, lane: int) -> bytes:
    """Value i of column j lies at bit i*bits of column j's words; the words of one row of all
    columns come first.
    """
    columns = -(-len(values) // lane)
    values = list(values) + [0] * (lane * columns - len(values))
    column = [
        sum(values[i * columns + j] << (i * bits) for i in range(lane)) for j in range(columns)
    ]
    return b"".join(
        (column[j] >> (row * lane) & (2**lane - 1)).to_bytes(lane // 8, "little")
        for row in range(bits)
        for j in range(columns)
    )


def masked(
    values: list[int],
    bits: int,
    lane: int,
    session: bytes,
    me: int,
    seed: bytes,
    mask_key: bytes,
    peers: dict[int, bytes],
    quantity: str,
) -> bytes:
    width, modulus = lane // 8, 2**bits

    def words(key: bytes) -> list[int]:
        data = stream(key, width * len(values))
        return [int.from_bytes(data[i : i + width], "little") for i in range(0, len(data), width)]

    out = [
        v + w
        for v, w in zip(
            values,
            words(hkdf(seed, bind(PROTOCOL, session, "mask", "self", quantity))),
            strict=True,
        )
    ]
    for peer, public in peers.items():
        secret = hkdf(
            x25519(mask_key, public),
            bind(PROTOCOL, session, "pair mask", min(me, peer), max(me, peer)),
        )
        mask = words(hkdf(secret, bind(PROTOCOL, session, "mask", "pair", quantity)))
        out = [v + w if me < peer else v - w for v, w in zip(out, mask, strict=True)]
    return pack([v % modulus for v in out], bits, lane)


def session_id(case: dict[str, Any]) -> bytes:
    ring = bind("Z mod 2^k", case["k"], case["bits"], case["length"])
    floors = (case["threshold"], case["min_cohort"], case["min_tokens"], 10, 10)
    members = [
        f for name, key in sorted(case["members"].items()) for f in (name, bytes.fromhex(key))
    ]
    start = (
        PROTOCOL,
        bytes.fromhex(case["federation"]),
        case["round"],
        case["attempt"],
        ring,
        0,
        bytes.fromhex(case["context"]),
    )
    return hashlib.sha256(bind(*start, *floors, *members)).digest()


# --- vectors ---


def noise(label: str, size: int) -> bytes:
    return b"".join(
        hashlib.sha256(f"{label} {i}".encode()).digest() for i in range(-(-size // 32))
    )[:size]


def upload_case(bits: int, length: int) -> dict[str, Any]:
    names = ["ada", "bo", "cy"]
    k = bits + 2
    case: dict[str, Any] = {
        "federation": noise("federation", 32).hex(), "context": noise("context", 32).hex(),
        "round": 7, "attempt": 2, "bits": bits, "length": length, "k": k,
        "threshold": 2, "min_cohort": 3, "min_tokens": 0,
        "members": {name: noise(f"{name} identity", 32).hex() for name in names},
    }  # fmt: skip
    session, lane = session_id(case), 16 if k <= 16 else 32
    keys = [noise(f"{name} mask key", 32) for name in names]
    values = [int.from_bytes(noise(f"value {i}", 4), "big") % 2**bits for i in range(length)]
    public = {at: x25519(key, BASE) for at, key in enumerate(keys)}
    case["tokens"] = 70_000
    seed, me, limbs = noise("seed", 32), 1, [70_000 & 0xFFFF, 70_000 >> 16]
    peers = {at: public[at] for at in (0, 2)}
    shown = (session, me, seed, keys[me], peers)
    return case | {
        "me": "bo",
        "seed": seed.hex(),
        "mask_key": keys[me].hex(),
        "peers": {at: key.hex() for at, key in peers.items()},
        "values": values,
        "session": session.hex(),
        "masked": masked(values, k, lane, *shown, "values").hex(),
        "masked_tokens": masked(limbs, 18, 32, *shown, "tokens").hex(),
    }


def vectors() -> dict[str, Any]:
    scalar, point = noise("scalar", 32), x25519(noise("other", 32), BASE)
    polynomial = [int.from_bytes(noise(f"coefficient {i}", 32), "big") for i in range(4)]
    shares = [(x, sum(c * x**e for e, c in enumerate(polynomial)) % FIELD) for x in (2, 3, 7, 11)]
    assert interpolate_at_zero(shares) == polynomial[0]
    order = sorted(
        range(12), key=lambda n: hashlib.sha256(noise("graph", 32) + n.to_bytes(4, "big")).digest()
    )
    near = {order[i]: sorted(order[(i + s) % 12] for s in (-2, -1, 1, 2)) for i in range(12)}
    return {
        "bind": {"fields": ["a", 5, "x"], "bytes": bind("a", 5, "x").hex()},
        "stream": {"key": noise("key", 32).hex(), "first": stream(noise("key", 32), 100).hex()},
        "agree": {
            "private": scalar.hex(),
            "public": x25519(scalar, BASE).hex(),
            "peer": point.hex(),
            "context": b"context".hex(),
            "key": hkdf(x25519(scalar, point), b"context").hex(),
        },
        "shamir": {
            "secret": polynomial[0].to_bytes(32, "big").hex(),
            "shares": {x: y.to_bytes(33, "big").hex() for x, y in shares},
        },
        "graph": {"seed": noise("graph", 32).hex(), "parties": 12, "degree": 4, "neighbours": near},
        "uploads": [upload_case(8, 20), upload_case(4, 40), upload_case(16, 33)],
    }


if __name__ == "__main__":
    json.dump(vectors(), sys.stdout, indent=1)
    sys.stdout.write("\n")
