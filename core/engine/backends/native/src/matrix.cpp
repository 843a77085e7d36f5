// Packing: from the file's blocks to strips. Plain code; it runs once.
// Source of the file's layouts: ggml's `ggml-common.h`.
#include "matrix.h"

#include "iquants.h"
#include "kquants.h"
#include "planes.h"

namespace {

const uint8_t NONE[256] = {};  // a block of zeros, for rows that pad the last strip

// Where a block of 32 has its sixteen bytes of nibbles and, before them, its fifth bits.
constexpr int nibbles_at(int kind) {
  return kind == Q4_0 ? 2 : kind == Q4_1 ? 4 : kind == Q5_0 ? 6 : 8;
}

// The integers of a block of four or five bits.
void read_integers(int kind, const uint8_t* block, uint8_t q[GROUP]) {
  const uint8_t* packed = block + nibbles_at(kind);
  for (int k = 0; k < GROUP; k++) {
    q[k] = nibble(packed, k);
    if (kind == Q5_0 || kind == Q5_1) q[k] |= uint8_t((packed[k / 8 - 4] >> k % 8 & 1) << 4);
  }
}

// What an absent row holds so that its weights are zero: scale 0 is enough.
void pack_block(int kind, const uint8_t* block, int row, uint8_t* scales, uint8_t* integers) {
  uint8_t q[GROUP];
  switch (kind) {
    case Q4_1:
    case Q5_1: memcpy(scales + 32 + row * 2, block + 2, 2); [[fallthrough]];
    case Q4_0:
    case Q5_0:
      memcpy(scales + row * 2, block, 2);
      read_integers(kind, block, q);
      pack_nibbles(q, row, integers);
      if (kind == Q5_0 || kind == Q5_1) pack_bits<4>(q, row, integers + 256);
      break;
    case Q8_0:
      memcpy(scales + row * 2, block, 2);
      for (int k = 0; k < GROUP; k++)
        integers[k / 4 * 64 + row * 4 + k % 4] = uint8_t(block[2 + k] ^ 128);
      break;
    case F32: memcpy(integers + row * 4, block, 4); break;
    case F16:
    case BF16: memcpy(integers + row * 2, block, 2); break;
    case Q2_K:
    case Q3_K:
    case Q4_K:
    case Q5_K:
    case Q6_K:
    case TQ1_0:
    case TQ2_0: pack_k_block(kind, block, row, scales, integers); break;
    case IQ3_XXS:
    case IQ3_S:
    case IQ4_NL:
    case IQ4_XS:
    case MXFP4: pack_i_block(kind, block, row, scales, integers); break;
    default: break;
  }
}

void decode_block(int kind, const uint8_t* block, float* out) {
  uint8_t q[GROUP];
  uint16_t bits;
  switch (kind) {
    case F32: memcpy(out, block, 4); break;
    case F16: out[0] = half(block); break;
    case BF16:
      memcpy(&bits, block, 2);
      out[0] = from_bf16(bits);
      break;
    case Q4_0:
    case Q5_0:
      read_integers(kind, block, q);
      for (int k = 0; k < GROUP; k++) out[k] = half(block) * float(q[k] - (kind == Q4_0 ? 8 : 16));
      break;
    case Q4_1:
    case Q5_1:
      read_integers(kind, block, q);
      for (int k = 0; k < GROUP; k++) out[k] = half(block) * float(q[k]) + half(block + 2);
      break;
    case Q8_0:
      for (int k = 0; k < GROUP; k++) out[k] = half(block) * float(int8_t(block[2 + k]));
      break;
    case Q2_K:
    case Q3_K:
    case Q4_K:
    case Q5_K:
    case Q6_K:
    case TQ1_0:
    case TQ2_0: decode_k_block(kind, block, out); break;
    case IQ3_XXS:
    case IQ3_S:
    case IQ4_NL:
    case IQ4_XS:
    case MXFP4: decode_i_block(kind, block, out); break;
    default: break;
  }
}

}  // namespace

void pack_strip(Matrix& m, int strip, const uint8_t* raw, size_t row_bytes, int count) {
  const Layout layout = layout_of(m.kind);
  uint8_t* scales = m.data + size_t(strip) * m.strip_bytes;
  uint8_t* integers = scales + m.scale_bytes;
  const int blocks = m.columns / layout.columns;
  for (int row = 0; row < STRIP; row++)
    for (int b = 0; b < blocks; b++)
      pack_block(m.kind, row < count ? raw + row * row_bytes + size_t(b) * layout.raw : NONE, row,
                 scales + size_t(b) * layout.scales, integers + size_t(b) * layout.integers);
}

void decode_row(int32_t kind, const uint8_t* raw, int32_t columns, float* out) {
  const Layout layout = layout_of(kind);
  for (int b = 0; b < columns / layout.columns; b++)
    decode_block(kind, raw + size_t(b) * layout.raw, out + b * layout.columns);
}
