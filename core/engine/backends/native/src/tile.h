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
//   WIDE     its integers may exceed 127, so they go through dot_wide
//   HALVES   1: one scale for 32 columns; 2: one for each 16
//   OFFSETS  0: a row's weights are scale * q; 1: and one number more for all 32 columns; 2: one
//            for each 16
//   unpack   the group's integers as eight vectors; vector c holds columns 4c..4c+3 of 16 rows,
//            unsigned
//   start    (panel, g, half, t) -> where 32-bit sums begin: -bias * sum(x), for kinds that store
//            q + bias
//   scale    (scales, g, half) -> 16 floats
//   offset   (scales, g, half) -> 16 floats
template <int KIND>
struct Format;

// The planes of matrix.h, unpacked.
inline void unpack_nibbles(const uint8_t* p, Bytes w[8]) {
  for (int c = 0; c < 4; c++) {
    const Bytes both = load_bytes(p + c * 64);
    w[2 * c] = low_nibbles(both);
    w[2 * c + 1] = high_nibbles(both);
  }
}

// Left by N, or right by -N.
template <int N>
inline Bytes moved(Bytes b) {
  if constexpr (N >= 0) return left<N>(b);
  else return right<-N>(b);
}

// Adds the plane of one bit to integers, as their bit AT.
template <int AT>
inline void add_bits(const uint8_t* p, Bytes w[8]) {
  const Bytes eight = load_bytes(p), place = same_bytes(1 << AT);
  w[0] = or_bytes(w[0], and_bytes(moved<AT>(eight), place));
  w[1] = or_bytes(w[1], and_bytes(moved<AT - 1>(eight), place));
  w[2] = or_bytes(w[2], and_bytes(moved<AT - 2>(eight), place));
  w[3] = or_bytes(w[3], and_bytes(moved<AT - 3>(eight), place));
  w[4] = or_bytes(w[4], and_bytes(moved<AT - 4>(eight), place));
  w[5] = or_bytes(w[5], and_bytes(moved<AT - 5>(eight), place));
  w[6] = or_bytes(w[6], and_bytes(moved<AT - 6>(eight), place));
  w[7] = or_bytes(w[7], and_bytes(moved<AT - 7>(eight), place));
}

// -times * the sum of the integers of group g of row t.
inline I less_sum(const Panel& p, int g, int t, int times) {
  const int32_t start = p.less8[g * p.height + t] / 8 * times;
  return same_word(&start);
}

// Blocks of 32 with half-precision scales: a plane of four bits, one of one where BITS is 5, and m
// where the integers are unsigned.
template <int BITS, bool UNSIGNED>
struct PlainFormat {
  static constexpr bool WIDE = false;
  static constexpr int HALVES = 1, OFFSETS = UNSIGNED;
  static constexpr int SCALES = UNSIGNED ? 64 : 32, INTEGERS = BITS == 5 ? 320 : 256;
  static void unpack(const uint8_t* integers, int g, Bytes w[8]) {
    const uint8_t* p = integers + size_t(g) * INTEGERS;
    unpack_nibbles(p, w);
    if constexpr (BITS == 5) add_bits<4>(p + 256, w);
  }
  static I start(const Panel& p, int g, int, int t) {
    if constexpr (UNSIGNED) return I{};
    const I less8 = same_word(p.less8 + g * p.height + t);
    if constexpr (BITS == 5) return left_words<1>(less8);
    else return less8;
  }
  static F scale(const uint8_t* scales, int g, int) {
    return load_f16((const uint16_t*)(scales + size_t(g) * SCALES));
  }
  static F offset(const uint8_t* scales, int g, int) {
    return UNSIGNED ? load_f16((const uint16_t*)(scales + size_t(g) * SCALES + 32)) : zero();
  }
};
template <>
struct Format<Q4_0> : PlainFormat<4, false> {};
template <>
struct Format<Q4_1> : PlainFormat<4, true> {};
template <>
struct Format<Q5_0> : PlainFormat<5, false> {};
template <>
struct Format<Q5_1> : PlainFormat<5, true> {};

template <>
struct Format<Q8_0> {
  static constexpr bool WIDE = true;
  static constexpr int HALVES = 1, OFFSETS = 0;
  static void unpack(const uint8_t* integers, int g, Bytes w[8]) {
    for (int c = 0; c < 8; c++) w[c] = load_bytes(integers + size_t(g) * 512 + c * 64);
  }
  static I start(const Panel& p, int g, int, int t) {
    return same_word(p.less_wide + g * p.height + t);
  }
  static F scale(const uint8_t* scales, int g, int) {
    return load_f16((const uint16_t*)(scales + size_t(g) * 32));
  }
  static F offset(const uint8_t*, int, int) { return zero(); }
};

}  // namespace
#include "tile_k.h"
#include "tile_i.h"
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
      if (W::OFFSETS == 2) {
        const F offset = W::offset(scales, g, half);
        for (int t = 0; t < H; t++) acc[t] = fma(offset, set(panel.half_sum(g, half, t)), acc[t]);
      }
    }
    if (W::OFFSETS == 1) {
      const F offset = W::offset(scales, g, 0);
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
  else if constexpr (KIND == TQ1_0) return tile<TQ2_0, H>;  // packed alike
  else return tile<KIND, H>;
}

#define QC_HEIGHTS(KIND)                                                           \
  {tile_of<KIND, 1>(), tile_of<KIND, 2>(), tile_of<KIND, 3>(), tile_of<KIND, 4>(), \
   tile_of<KIND, 5>(), tile_of<KIND, 6>(), tile_of<KIND, 7>(), tile_of<KIND, 8>()}

// [kind][height - 1]
constexpr Tile TILES[KINDS][8] = {
    QC_HEIGHTS(F32),    QC_HEIGHTS(F16),     QC_HEIGHTS(BF16),  QC_HEIGHTS(Q4_0),
    QC_HEIGHTS(Q4_1),   QC_HEIGHTS(Q5_0),    QC_HEIGHTS(Q5_1),  QC_HEIGHTS(Q8_0),
    QC_HEIGHTS(Q2_K),   QC_HEIGHTS(Q3_K),    QC_HEIGHTS(Q4_K),  QC_HEIGHTS(Q5_K),
    QC_HEIGHTS(Q6_K),   QC_HEIGHTS(IQ3_XXS), QC_HEIGHTS(IQ3_S), QC_HEIGHTS(IQ4_NL),
    QC_HEIGHTS(IQ4_XS), QC_HEIGHTS(TQ1_0),   QC_HEIGHTS(TQ2_0), QC_HEIGHTS(MXFP4),
};

// out [height][16] = one strip times one panel, all terms that the matrix asks for.
inline void multiply_panel(const Matrix& m, int strip, const Panels& panels, int panel,
                           float* out) {
  const Panel first = panels.at(panel);
  TILES[m.kind][first.height - 1](m, strip, first, out);
  if (m.terms == 1) return;
  float more[MR * STRIP];
  for (int term = 1; term < m.terms; term++) {
    TILES[m.kind][first.height - 1](m, strip, panels.at(panel, term), more);
    for (int t = 0; t < first.height; t++)
      store(out + t * STRIP, add(load(out + t * STRIP), load(more + t * STRIP)));
  }
}

}  // namespace
