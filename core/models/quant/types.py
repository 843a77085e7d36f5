"""The block types that files have: how many weights a block holds, in how many bytes.

Knows sizes and GGUF's numbers. Knows nothing of what the bytes mean (`dequantize.py` does), nor of
torch.
"""

from dataclasses import dataclass

GROUP = 32  # weights that share one scale in Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0
SUPER = 256  # weights of one block of a K-quant


@dataclass(frozen=True, slots=True)
class QuantType:
    """One block type."""

    columns: int  # weights in one block
    size: int  # bytes of one block
    number: int  # in GGUF files


QUANT_TYPES = {
    "F32": QuantType(1, 4, 0),
    "F16": QuantType(1, 2, 1),
    "BF16": QuantType(1, 2, 30),
    "Q4_0": QuantType(GROUP, 2 + 16, 2),
    "Q4_1": QuantType(GROUP, 4 + 16, 3),
    "Q5_0": QuantType(GROUP, 6 + 16, 6),
    "Q5_1": QuantType(GROUP, 8 + 16, 7),
    "Q8_0": QuantType(GROUP, 2 + 32, 8),
    "Q2_K": QuantType(SUPER, 16 + 64 + 4, 10),
    "Q3_K": QuantType(SUPER, 32 + 64 + 12 + 2, 11),
    "Q4_K": QuantType(SUPER, 4 + 12 + 128, 12),
    "Q5_K": QuantType(SUPER, 4 + 12 + 32 + 128, 13),
    "Q6_K": QuantType(SUPER, 128 + 64 + 16 + 2, 14),
}
NAMES = {form.number: name for name, form in QUANT_TYPES.items()}  # by GGUF's number
