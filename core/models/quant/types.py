"""The block types that files have: how many weights a block holds, in how many bytes.

Knows sizes and GGUF's numbers. Knows nothing of what the bytes mean (`decoders.py` does), nor of
torch.
"""

from dataclasses import dataclass

GROUP = 32  # weights that share one scale in Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0
SUPER = 256  # weights of one block of a K-quant


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """One block type."""

    columns: int  # weights in one block
    size: int  # bytes of one block
    number: int  # in GGUF files


FORMATS = {
    "F32": BlockFormat(1, 4, 0),
    "F16": BlockFormat(1, 2, 1),
    "BF16": BlockFormat(1, 2, 30),
    "Q4_0": BlockFormat(GROUP, 2 + 16, 2),
    "Q4_1": BlockFormat(GROUP, 4 + 16, 3),
    "Q5_0": BlockFormat(GROUP, 6 + 16, 6),
    "Q5_1": BlockFormat(GROUP, 8 + 16, 7),
    "Q8_0": BlockFormat(GROUP, 2 + 32, 8),
    "Q2_K": BlockFormat(SUPER, 16 + 64 + 4, 10),
    "Q3_K": BlockFormat(SUPER, 32 + 64 + 12 + 2, 11),
    "Q4_K": BlockFormat(SUPER, 4 + 12 + 128, 12),
    "Q5_K": BlockFormat(SUPER, 4 + 12 + 32 + 128, 13),
    "Q6_K": BlockFormat(SUPER, 128 + 64 + 16 + 2, 14),
}
KINDS = {form.number: kind for kind, form in FORMATS.items()}  # by GGUF's number
