// Reads and packs blocks of the K-quants. Plain code; it runs once.
// Source of the file's layout: ggml's `ggml-common.h`, block_q4_K to block_q6_K.
#include "kquants.h"

#include <string.h>

#include "bf16.h"

namespace {

constexpr int GROUPS = SUPER / GROUP;

// The 6-bit scale and minimum of group j of a Q4_K or Q5_K block.
void read_scale(const uint8_t* block, int j, int& s, int& m) {
  const uint8_t* q = block + 4;  // twelve bytes
  if (j < 4) {
    s = q[j] & 63, m = q[j + 4] & 63;
  } else {
    s = (q[j + 4] & 15) | (q[j - 4] >> 6) << 4;
    m = q[j + 4] >> 4 | (q[j] >> 6) << 4;
  }
}

// The integers of group j, as the file stores them.
void read_group(int kind, const uint8_t* block, int j, uint8_t q[GROUP]) {
  const int n = j / 4, k = j % 4;  // Q6_K: which half of the block, which quarter of the half
  for (int i = 0; i < GROUP; i++) {
    if (kind == Q4_K) q[i] = block[16 + j / 2 * 32 + i] >> (j % 2 * 4) & 15;
    if (kind == Q5_K)
      q[i] =
          uint8_t((block[48 + j / 2 * 32 + i] >> (j % 2 * 4) & 15) | (block[16 + i] >> j & 1) << 4);
    if (kind == Q6_K)
      q[i] = uint8_t((block[64 * n + 32 * (k % 2) + i] >> (k / 2 * 4) & 15) |
                     (block[128 + 32 * n + i] >> (2 * k) & 3) << 4);
  }
}

void pack_scales(int kind, const uint8_t* block, int row, uint8_t* out) {
  if (kind == Q6_K) {
    memcpy(out + 2 * row, block + 208, 2);  // d
    for (int h = 0; h < 16; h++) out[32 + h * 16 + row] = block[192 + h];
    return;
  }
  memcpy(out + 2 * row, block, 2);           // d
  memcpy(out + 32 + 2 * row, block + 2, 2);  // dmin
  for (int j = 0; j < GROUPS; j += 2) {
    uint8_t* pair = out + 64 + j / 2 * 48;
    int s, m, s1, m1;
    read_scale(block, j, s, m);
    read_scale(block, j + 1, s1, m1);
    pair[row] = uint8_t(s | (m & 3) << 6);
    pair[16 + row] = uint8_t(s1 | (m1 & 3) << 6);
    pair[32 + row] = uint8_t(m >> 2 | (m1 >> 2) << 4);
  }
}

void pack_group(int kind, const uint8_t q[GROUP], int row, uint8_t* out) {
  for (int j = 0; j < 4; j++) {
    const int place = row * 4 + j;
    for (int c = 0; c < 4; c++)
      out[c * 64 + place] = uint8_t((q[8 * c + j] & 15) | (q[8 * c + 4 + j] & 15) << 4);
    if (kind == Q5_K) {
      int fifth = 0;
      for (int c = 0; c < 8; c++) fifth |= q[4 * c + j] >> 4 << c;
      out[256 + place] = uint8_t(fifth);
    }
    if (kind == Q6_K)
      for (int v = 0; v < 2; v++) {
        int upper = 0;
        for (int k = 0; k < 4; k++) upper |= q[16 * v + 4 * k + j] >> 4 << 2 * k;
        out[256 + v * 64 + place] = uint8_t(upper);
      }
  }
}

float half(const uint8_t* p) {
  uint16_t bits;
  memcpy(&bits, p, 2);
  return from_f16(bits);
}

}  // namespace

void pack_k_block(int32_t kind, const uint8_t* block, int row, uint8_t* scales, uint8_t* integers) {
  pack_scales(kind, block, row, scales);
  for (int j = 0; j < GROUPS; j++) {
    uint8_t q[GROUP];
    read_group(kind, block, j, q);
    pack_group(kind, q, row, integers + j * (layout_of(kind).integers / GROUPS));
  }
}

void decode_k_block(int32_t kind, const uint8_t* block, float* out) {
  for (int j = 0; j < GROUPS; j++, out += GROUP) {
    uint8_t q[GROUP];
    read_group(kind, block, j, q);
    int s = 0, m = 0;
    if (kind != Q6_K) read_scale(block, j, s, m);
    for (int i = 0; i < GROUP; i++)
      if (kind == Q6_K)
        out[i] = half(block + 208) * float(int8_t(block[192 + 2 * j + i / 16])) * float(q[i] - 32);
      else out[i] = half(block) * float(s) * float(q[i]) - half(block + 2) * float(m);
  }
}
