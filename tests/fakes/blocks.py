"""Raw blocks as a model file has them, random or at their limits, with what they mean by the `gguf`
package.

Also the product as the compiled kernels define it: activations quantised by groups of 32 to
-127..127, integers exact.
"""

import gguf
import numpy as np
from gguf import GGMLQuantizationType, quants
from numpy.typing import NDArray

GROUP = 32
PLAIN = ("F32", "F16", "BF16")
# Where a block's half-precision scales stand: every one that its format has. MXFP4 has a power of 2
# of one byte instead.
SCALES = {
    **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"), (0,)),
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q6_K": (208,),
    "TQ1_0": (52,),
    "TQ2_0": (64,),
    "MXFP4": (),
}
# Where its integers stand, scales of sub-blocks not counted.
INTEGERS = {
    "Q4_0": slice(2, 18),
    "Q4_1": slice(4, 20),
    "Q5_0": slice(2, 22),
    "Q5_1": slice(4, 24),
    "Q8_0": slice(2, 34),
    "Q2_K": slice(16, 80),
    "Q3_K": slice(0, 96),
    "Q4_K": slice(16, 144),
    "Q5_K": slice(16, 176),
    "Q6_K": slice(0, 192),
    "IQ3_XXS": slice(2, 66),
    "IQ3_S": slice(2, 106),
    "IQ4_NL": slice(2, 18),
    "IQ4_XS": slice(8, 136),
    "TQ1_0": slice(0, 52),
    "TQ2_0": slice(0, 64),
    "MXFP4": slice(1, 17),
}
QUANTISED = tuple(INTEGERS)


def block_size(kind: str) -> tuple[int, int]:
    """Columns and bytes of one block."""
    columns, size = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return int(columns), int(size)


def random_rows(kind: str, rows: int, columns: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Random blocks, uint8 [rows, bytes]: every bit random but the scales, which are small
    numbers of both signs.
    """
    if kind == "F32":
        return rng.standard_normal((rows, columns)).astype(np.float32).view(np.uint8)
    if kind == "F16":
        return rng.standard_normal((rows, columns)).astype(np.float16).view(np.uint8)
    if kind == "BF16":
        return (
            (rng.standard_normal((rows, columns)).astype(np.float32).view(np.uint32) >> 16)
            .astype(np.uint16)
            .view(np.uint8)
        )
    width, size = block_size(kind)
    blocks = rng.integers(0, 256, (rows * columns // width, size), dtype=np.uint8)
    return with_scales(kind, blocks, rng.standard_normal((len(blocks), 2)) / 10).reshape(rows, -1)


def with_scales(
    kind: str, blocks: NDArray[np.uint8], scales: NDArray[np.floating]
) -> NDArray[np.uint8]:
    """The same blocks, [n, bytes], under these scales, [n, 2]; the nearest power of 2 where a type
    has no other.
    """
    if kind == "MXFP4":
        blocks[:, 0] = np.rint(np.log2(np.abs(scales[:, 0]) + 2.0**-100)) + 128
    halves = scales.astype(np.float16)[:, :, None].view(np.uint8)  # [n, 2, 2]
    for which, place in enumerate(SCALES[kind]):
        blocks[:, place : place + 2] = halves[:, which]
    return blocks


def meaning(kind: str, raw: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Rows as numbers, by the `gguf` package."""
    if kind == "F32":
        return raw.view(np.float32).astype(np.float64)
    return quants.dequantize(raw, GGMLQuantizationType[kind]).astype(np.float64)


def offsets(kind: str, raw: NDArray[np.uint8]) -> NDArray[np.float64]:
    """What the same rows mean where all their integers are zero."""
    if kind in PLAIN:
        return np.zeros_like(meaning(kind, raw))
    blocks = raw.reshape(-1, block_size(kind)[1]).copy()
    blocks[:, INTEGERS[kind]] = 0
    return meaning(kind, blocks.reshape(raw.shape))


def rounded_activations(x: NDArray[np.float32]) -> NDArray[np.float64]:
    """x as the kernels see it: each group of 32 columns is 127 steps of its largest number; [n,
    columns].
    """
    padded = np.pad(x, ((0, 0), (0, -x.shape[1] % GROUP)))
    groups = padded.reshape(len(x), -1, GROUP)
    top = np.abs(groups).max(axis=2, keepdims=True)
    with np.errstate(divide="ignore"):
        to = np.where(top > 0, np.float32(127) / top, np.float32(0))
    integers = np.rint(groups * to)
    scaled = integers.astype(np.float64) * (top / np.float32(127)).astype(np.float64)
    return scaled.reshape(len(x), -1)[:, : x.shape[1]]


def expected_product(
    kind: str, raw: NDArray[np.uint8], x: NDArray[np.float32], terms: int = 1
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The exact product [n, rows], and how far float32 sums may be from it.

    Every rounding is at most 2^-24 of a sum that is nowhere larger than the sum of all terms'
    sizes; a group has at most four of them (scale times activation's scale, and the two terms),
    twice as many where products are not fused. Two terms round an activation to 1 / 64,516 of its
    group's largest; three to what a float has.
    """
    weights, zero = meaning(kind, raw), offsets(kind, raw)
    whole = kind in PLAIN or terms > 1
    seen = x.astype(np.float64) if whole else rounded_activations(x)
    sizes = np.abs(seen) @ (np.abs(weights - zero) + np.abs(zero)).T
    sums = x.shape[1] if kind in PLAIN else 2 * -(-x.shape[1] // GROUP)
    bound = terms * sizes * (4 * sums + 8) * 2.0**-24
    if terms == 2:
        bound += np.abs(x).max(axis=1, keepdims=True) / 254**2 * np.abs(weights).sum(axis=1)
    return seen @ weights.T, bound
