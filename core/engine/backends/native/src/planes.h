// Where the integers of one row's group stand among those of its 16 rows: the planes of matrix.h.
// Plain code for packing; it runs once, and writes every bit of that row's.
#pragma once
#include <string.h>

#include "bf16.h"
#include "matrix.h"

namespace {

inline float half(const uint8_t* p) {
  uint16_t bits;
  memcpy(&bits, p, 2);
  return from_f16(bits);
}

// Weight k of sixteen bytes that hold 32: the lower halves are weights 0 to 15.
inline uint8_t nibble(const uint8_t* packed, int k) {
  return k < 16 ? packed[k] & 15 : packed[k - 16] >> 4;
}

// The lowest four bits of each integer, 256 bytes for 16 rows.
inline void pack_nibbles(const uint8_t q[GROUP], int row, uint8_t* out) {
  for (int c = 0; c < 4; c++)
    for (int j = 0; j < 4; j++)
      out[c * 64 + row * 4 + j] = uint8_t((q[8 * c + j] & 15) | (q[8 * c + 4 + j] & 15) << 4);
}

// Bits FROM and FROM + 1 of each, 128 bytes.
template <int FROM>
inline void pack_pairs(const uint8_t q[GROUP], int row, uint8_t* out) {
  for (int v = 0; v < 2; v++)
    for (int j = 0; j < 4; j++) {
      int four = 0;
      for (int k = 0; k < 4; k++) four |= (q[16 * v + 4 * k + j] >> FROM & 3) << 2 * k;
      out[v * 64 + row * 4 + j] = uint8_t(four);
    }
}

// Bit FROM of each, 64 bytes.
template <int FROM>
inline void pack_bits(const uint8_t q[GROUP], int row, uint8_t* out) {
  for (int j = 0; j < 4; j++) {
    int eight = 0;
    for (int c = 0; c < 8; c++) eight |= (q[4 * c + j] >> FROM & 1) << c;
    out[row * 4 + j] = uint8_t(eight);
  }
}

// Four numbers of six bits, 48 bytes for 16 rows: three in the lower bits of three bytes, the
// fourth in their upper two.
inline void pack_sixes(const uint8_t s[4], int row, uint8_t* out) {
  for (int k = 0; k < 3; k++) out[k * 16 + row] = uint8_t(s[k] | (s[3] >> 2 * k & 3) << 6);
}

}  // namespace
