// Reads and packs blocks of the K-quants and of the ternary types. Plain code; it runs once.
// Source of the file's layout: ggml's `ggml-common.h`, block_q2_K to block_q6_K, block_tq1_0.
#include "kquants.h"

#include "planes.h"

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

// The 6-bit scale of half group h of a Q3_K block, 32 too large.
uint8_t read_half_scale(const uint8_t* block, int h) {
  const uint8_t* q = block + 96;
  return uint8_t((q[h % 8] >> h / 8 * 4 & 15) | (q[8 + h % 4] >> h / 4 * 2 & 3) << 4);
}

// Weight k of a TQ1_0 block: five (at its end four) base-3 digits a byte, the first highest, as the
// byte's fraction of 256.
uint8_t read_trit(const uint8_t* block, int k) {
  static constexpr uint8_t POWER[5] = {1, 3, 9, 27, 81};
  const int byte = k < 160 ? k % 32 : k < 240 ? 32 + (k - 160) % 16 : 48 + (k - 240) % 4;
  const int digit = k < 160 ? k / 32 : k < 240 ? (k - 160) / 16 : (k - 240) / 4;
  return uint8_t(uint8_t(block[byte] * POWER[digit]) * 3 >> 8);
}

// The integers of group j, as the file stores them.
void read_group(int kind, const uint8_t* block, int j, uint8_t q[GROUP]) {
  const int n = j / 4, k = j % 4;  // which half of the block, which quarter of the half
  const auto two = [&](int at, int i) { return block[at + 32 * n + i] >> 2 * k & 3; };
  for (int i = 0; i < GROUP; i++) switch (kind) {
      case Q2_K: q[i] = uint8_t(two(16, i)); break;
      case Q3_K: q[i] = uint8_t(two(32, i) | (block[i] >> j & 1) << 2); break;
      case Q4_K: q[i] = block[16 + j / 2 * 32 + i] >> (j % 2 * 4) & 15; break;
      case Q5_K:
        q[i] = uint8_t((block[48 + j / 2 * 32 + i] >> (j % 2 * 4) & 15) | (block[16 + i] >> j & 1)
                                                                              << 4);
        break;
      case Q6_K:
        q[i] = uint8_t((block[64 * n + 32 * (k % 2) + i] >> (k / 2 * 4) & 15) | two(128, i) << 4);
        break;
      case TQ1_0: q[i] = read_trit(block, j * GROUP + i); break;
      default: q[i] = uint8_t(two(0, i)); break;
    }
}

constexpr int d_at(int kind) {
  switch (kind) {
    case Q2_K: return 80;
    case Q3_K: return 108;
    case Q6_K: return 208;
    case TQ1_0: return 52;
    case TQ2_0: return 64;
    default: return 0;
  }
}

void pack_scales(int kind, const uint8_t* block, int row, uint8_t* out) {
  memcpy(out + 2 * row, block + d_at(kind), 2);
  if (kind == Q2_K || kind == Q4_K || kind == Q5_K)
    memcpy(out + 32 + 2 * row, block + d_at(kind) + 2, 2);  // dmin
  if (kind == Q2_K)
    for (int h = 0; h < 16; h++) out[64 + h * 16 + row] = block[h];
  if (kind == Q3_K)
    for (int h = 0; h < 16; h += 4) {
      uint8_t four[4];
      for (int i = 0; i < 4; i++) four[i] = read_half_scale(block, h + i);
      pack_sixes(four, row, out + 32 + h / 4 * 48);
    }
  if (kind == Q6_K)
    for (int h = 0; h < 16; h++) out[32 + h * 16 + row] = block[192 + h];
  if (kind != Q4_K && kind != Q5_K) return;
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
  switch (kind) {
    case Q3_K: pack_bits<2>(q, row, out + 128); [[fallthrough]];
    case Q2_K:
    case TQ1_0:
    case TQ2_0: pack_pairs<0>(q, row, out); return;
    case Q5_K: pack_bits<4>(q, row, out + 256); break;
    case Q6_K: pack_pairs<4>(q, row, out + 256); break;
    default: break;
  }
  pack_nibbles(q, row, out);
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
  const float d = half(block + d_at(kind));
  for (int j = 0; j < GROUPS; j++, out += GROUP) {
    uint8_t q[GROUP];
    read_group(kind, block, j, q);
    int s = 0, m = 0;
    if (kind == Q4_K || kind == Q5_K) read_scale(block, j, s, m);
    for (int i = 0; i < GROUP; i++) {
      const int h = 2 * j + i / 16;
      switch (kind) {
        case Q2_K:
          out[i] = d * float(block[h] & 15) * float(q[i]) - half(block + 82) * float(block[h] >> 4);
          break;
        case Q3_K: out[i] = d * float(read_half_scale(block, h) - 32) * float(q[i] - 4); break;
        case Q6_K: out[i] = d * float(int8_t(block[192 + h])) * float(q[i] - 32); break;
        case TQ1_0:
        case TQ2_0: out[i] = d * float(q[i] - 1); break;
        default: out[i] = d * float(s) * float(q[i]) - half(block + 2) * float(m); break;
      }
    }
  }
}
