// The product of one strip of weights with a panel of activations.
//
// Everything here is compiled once per instruction set, over the operations of its simd_*.h.
// A `Format` says how one kind unpacks; `tile` is the loop, the same for all quantised kinds.
#pragma once
#include "matrix.h"
#include "panel.h"

namespace {

// CONTRACT of Format<KIND>, for a group g of 32 columns of one strip (`scales` and `integers` point
// at the strip's begin):
//   WIDE        its integers may exceed 127, so they go through dot_wide
//   HALVES      1: one scale for 32 columns; 2: one for each 16
//   OFFSETS     a row's weights are scale * q + offset; the offset is one number for 32 columns
//   unpack      the group's integers as eight vectors; vector c holds columns 4c..4c+3 of 16 rows,
//   unsigned start       (panel, g, half, t) -> where 32-bit sums begin: -bias * sum(x), for kinds
//   that store q + bias scale       (scales, g, half) -> 16 floats      offset  (scales, g) -> 16
//   floats
template <int KIND>
struct Format;

inline void unpack_nibbles(const uint8_t* p, Bytes w[8]) {
  for (int c = 0; c < 4; c++) {
    const Bytes both = load_bytes(p + c * 64);
    w[2 * c] = low_nibbles(both);
    w[2 * c + 1] = high_nibbles(both);
  }
}

template <>
struct Format<Q4_0> {
  static constexpr bool WIDE = false, OFFSETS = false;
  static constexpr int HALVES = 1;
  static void unpack(const uint8_t* integers, int g, Bytes w[8]) {
    unpack_nibbles(integers + size_t(g) * 256, w);
  }
  static I start(const Panel& p, int g, int, int t) {
    return same_word(p.less8 + g * p.height + t);
  }
  static F scale(const uint8_t* scales, int g, int) {
    return load_f16((const uint16_t*)(scales + size_t(g) * 32));
  }
  static F offset(const uint8_t*, int) { return zero(); }
};

template <>
struct Format<Q4_1> {
  static constexpr bool WIDE = false, OFFSETS = true;
  static constexpr int HALVES = 1;
  static void unpack(const uint8_t* integers, int g, Bytes w[8]) {
    unpack_nibbles(integers + size_t(g) * 256, w);
  }
  static I start(const Panel&, int, int, int) { return I{}; }
  static F scale(const uint8_t* scales, int g, int) {
    return load_f16((const uint16_t*)(scales + size_t(g) * 64));
  }
  static F offset(const uint8_t* scales, int g) {
    return load_f16((const uint16_t*)(scales + size_t(g) * 64 + 32));
  }
};

template <>
struct Format<Q8_0> {
  static constexpr bool WIDE = true, OFFSETS = false;
  static constexpr int HALVES = 1;
  static void unpack(const uint8_t* integers, int g, Bytes w[8]) {
    for (int c = 0; c < 8; c++) w[c] = load_bytes(integers + size_t(g) * 512 + c * 64);
  }
  static I start(const Panel& p, int g, int, int t) {
    return same_word(p.less_wide + g * p.height + t);
  }
  static F scale(const uint8_t* scales, int g, int) {
    return load_f16((const uint16_t*)(scales + size_t(g) * 32));
  }
  static F offset(const uint8_t*, int) { return zero(); }
};

}  // namespace
#include "tile_k.h"
namespace {

// Lines of memory that one group of a strip takes, scales included: what has to be asked for to
// keep the pace.
template <int KIND>
constexpr int lines_of() {
  constexpr Layout layout = layout_of(KIND);
  return ((layout.scales + layout.integers) * GROUP / layout.columns + 63) / 64;
}

// out [H][16] = 16 rows of weights times H rows of activations.
template <int KIND, int H>
void tile(const Matrix& m, int strip, const Panel& panel, float* out) {
  using W = Format<KIND>;
  const uint8_t *scales = m.scales(strip), *integers = m.integers(strip);
  const int groups = m.columns / GROUP;
  const uint8_t* ahead = scales + FETCH_AHEAD;
  const int8_t* x = panel.integers;
  F acc[H];
  for (int t = 0; t < H; t++) acc[t] = zero();
  for (int g = 0; g < groups; g++) {
    Bytes w[8];
    W::unpack(integers, g, w);
    for (int line = 0; line < lines_of<KIND>(); line++)
      prefetch(ahead + (g * lines_of<KIND>() + line) * 64);
    for (int half = 0; half < W::HALVES; half++) {
      constexpr int CHUNKS = 8 / W::HALVES;
      I words[H];
      for (int t = 0; t < H; t++) words[t] = W::start(panel, g, half, t);
#pragma GCC unroll 8
      for (int c = 0; c < CHUNKS; c++) {
#pragma GCC unroll 8
        for (int t = 0; t < H; t++) {
          const int8_t* four = x + (c * H + t) * 4;
          words[t] = W::WIDE ? dot_wide(words[t], w[half * CHUNKS + c], four)
                             : dot(words[t], w[half * CHUNKS + c], four);
        }
      }
      x += CHUNKS * H * 4;
      const F d = W::scale(scales, g, half);
      for (int t = 0; t < H; t++)
        acc[t] = fma(floats(words[t]), mul(d, set(panel.scale[g * H + t])), acc[t]);
    }
    if (W::OFFSETS) {
      const F offset = W::offset(scales, g);
      for (int t = 0; t < H; t++) acc[t] = fma(offset, set(panel.sum[g * H + t]), acc[t]);
    }
  }
  for (int t = 0; t < H; t++) store(out + t * STRIP, acc[t]);
}

inline F load_dense(int kind, const uint8_t* p) {
  if (kind == F32) return load((const float*)p);
  return kind == F16 ? load_f16((const uint16_t*)p) : load_bf16((const uint16_t*)p);
}

// The same for plain numbers; activations are not quantised.
template <int KIND, int H>
void dense_tile(const Matrix& m, int strip, const Panel& panel, float* out) {
  constexpr int SIZE = KIND == F32 ? 64 : 32;
  const uint8_t* w = m.integers(strip);
  F acc[H], odd[H];  // two sums each: one alone would wait for itself
  for (int t = 0; t < H; t++) acc[t] = odd[t] = zero();
  int k = 0;
  for (; k + 2 <= m.columns; k += 2, w += 2 * SIZE) {
    const F first = load_dense(KIND, w), second = load_dense(KIND, w + SIZE);
    prefetch(w + FETCH_AHEAD);
    for (int t = 0; t < H; t++) {
      acc[t] = fma(first, set(panel.dense[k * H + t]), acc[t]);
      odd[t] = fma(second, set(panel.dense[(k + 1) * H + t]), odd[t]);
    }
  }
  for (; k < m.columns; k++, w += SIZE)
    for (int t = 0; t < H; t++)
      acc[t] = fma(load_dense(KIND, w), set(panel.dense[k * H + t]), acc[t]);
  for (int t = 0; t < H; t++) store(out + t * STRIP, add(acc[t], odd[t]));
}

using Tile = void (*)(const Matrix&, int strip, const Panel&, float* out);

// One pointer for each height 1..MR; taller ones than the set takes are never instantiated.
template <int KIND, int H>
constexpr Tile tile_of() {
  if constexpr (H > MR) return nullptr;
  else if constexpr (KIND == F32 || KIND == F16 || KIND == BF16) return dense_tile<KIND, H>;
  else return tile<KIND, H>;
}

#define QC_HEIGHTS(KIND)                                                           \
  {tile_of<KIND, 1>(), tile_of<KIND, 2>(), tile_of<KIND, 3>(), tile_of<KIND, 4>(), \
   tile_of<KIND, 5>(), tile_of<KIND, 6>(), tile_of<KIND, 7>(), tile_of<KIND, 8>()}

// [kind][height - 1]
constexpr Tile TILES[KINDS][8] = {
    QC_HEIGHTS(F32),  QC_HEIGHTS(F16),  QC_HEIGHTS(BF16), QC_HEIGHTS(Q4_0), QC_HEIGHTS(Q4_1),
    QC_HEIGHTS(Q8_0), QC_HEIGHTS(Q4_K), QC_HEIGHTS(Q5_K), QC_HEIGHTS(Q6_K),
};

}  // namespace
