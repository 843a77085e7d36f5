// Packing: from the file's blocks to strips. Plain code; it runs once.
#include "matrix.h"

#include <string.h>

#include "bf16.h"
#include "kquants.h"

namespace {

const uint8_t NONE[256] = {};  // a block of zeros, for rows that pad the last strip

// Sixteen packed nibbles of a block of 32: weight k.
inline int nibble(const uint8_t* packed, int k) {
  return k < 16 ? packed[k] & 15 : packed[k - 16] >> 4;
}

void pack_q4(const uint8_t* packed, int row, uint8_t* out) {
  for (int c = 0; c < 4; c++)
    for (int j = 0; j < 4; j++)
      out[c * 64 + row * 4 + j] =
          uint8_t(nibble(packed, c * 8 + j) | nibble(packed, c * 8 + 4 + j) << 4);
}

// What an absent row holds so that its weights are zero: scale 0 is enough.
void pack_block(int kind, const uint8_t* block, int row, uint8_t* scales, uint8_t* integers) {
  switch (kind) {
    case Q4_0:
      memcpy(scales + row * 2, block, 2);
      pack_q4(block + 2, row, integers);
      break;
    case Q4_1:
      memcpy(scales + row * 2, block, 2);
      memcpy(scales + 32 + row * 2, block + 2, 2);
      pack_q4(block + 4, row, integers);
      break;
    case Q8_0:
      memcpy(scales + row * 2, block, 2);
      for (int k = 0; k < GROUP; k++)
        integers[k / 4 * 64 + row * 4 + k % 4] = uint8_t(block[2 + k] ^ 128);
      break;
    case F32: memcpy(integers + row * 4, block, 4); break;
    case F16:
    case BF16: memcpy(integers + row * 2, block, 2); break;
    case Q4_K:
    case Q5_K:
    case Q6_K: pack_k_block(kind, block, row, scales, integers); break;
    default: break;
  }
}

void decode_block(int kind, const uint8_t* block, float* out) {
  uint16_t d, m;
  memcpy(&d, block, 2);
  switch (kind) {
    case F32: memcpy(out, block, 4); break;
    case F16: out[0] = from_f16(d); break;
    case BF16: out[0] = from_bf16(d); break;
    case Q4_0:
      for (int k = 0; k < GROUP; k++) out[k] = from_f16(d) * float(nibble(block + 2, k) - 8);
      break;
    case Q4_1:
      memcpy(&m, block + 2, 2);
      for (int k = 0; k < GROUP; k++)
        out[k] = from_f16(d) * float(nibble(block + 4, k)) + from_f16(m);
      break;
    case Q8_0:
      for (int k = 0; k < GROUP; k++) out[k] = from_f16(d) * float(int8_t(block[2 + k]));
      break;
    case Q4_K:
    case Q5_K:
    case Q6_K: decode_k_block(kind, block, out); break;
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
