"""The block types that files have: how many weights a block holds, in how many bytes.

Knows sizes and GGUF's numbers. Knows nothing of what the bytes mean (`dequantize.py` does), nor of
torch.
"""

from dataclasses import dataclass

GROUP = 32  # weights of one block of Q4_0 and its like
SUPER = 256  # weights of one block of a K-quant and most I-quants


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
    "IQ1_S": QuantType(SUPER, 2 + 32 + 16, 19),
    "IQ1_M": QuantType(SUPER, 32 + 16 + 8, 29),
    "IQ2_XXS": QuantType(SUPER, 2 + 64, 16),
    "IQ2_XS": QuantType(SUPER, 2 + 64 + 8, 17),
    "IQ2_S": QuantType(SUPER, 2 + 64 + 8 + 8, 22),
    "IQ3_XXS": QuantType(SUPER, 2 + 64 + 32, 18),
    "IQ3_S": QuantType(SUPER, 2 + 64 + 8 + 32 + 4, 21),
    "IQ4_NL": QuantType(GROUP, 2 + 16, 20),
    "IQ4_XS": QuantType(SUPER, 2 + 2 + 4 + 128, 23),
    "TQ1_0": QuantType(SUPER, 48 + 4 + 2, 34),
    "TQ2_0": QuantType(SUPER, 64 + 2, 35),
    "MXFP4": QuantType(GROUP, 1 + 16, 39),
}
# No kernel multiplies these: `weights.load` takes them as 8-bit blocks, the nearest that one does.
WIDENED = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S")
NAMES = {form.number: name for name, form in QUANT_TYPES.items()}  # by GGUF's number
