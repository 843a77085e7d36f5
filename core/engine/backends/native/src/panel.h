// Rows of activations, made ready for the tiles: normed, quantised to int8 by groups of 32, and
// interleaved.
//
// A PANEL is up to MR rows. Inside it everything is ordered by column first and row second, so that
// a tile reads one stream. A row of zeros quantises to zeros. Where int8 is not exact enough, what
// it rounds off is a further TERM, quantised the same way in a panel of its own; products of a
// row's terms are added.
#pragma once
#include "matrix.h"

namespace {

constexpr int FETCH_AHEAD = 8192;  // bytes; covers memory's latency at the pace of one row

struct Panel {
  int height;        // rows, H below
  int8_t* integers;  // [columns / 4][H][4]
  float* scale;      // [groups][H]
  float* sum;  // [groups][H]      scale * sum of the group's integers: what an offset multiplies
  int32_t* less8;      // [groups][H]      -8 * sum of the group's integers
  int32_t* less_wide;  // [groups][H]      -WIDE_BIAS * sum of the group's integers
  int32_t* less32;     // [groups * 2][H]  -32 * sum of the half group's 16 integers
  float* dense;        // [columns][H]     the same rows unquantised

  // scale * sum of a half group's 16 integers: what an offset of its own multiplies.
  float half_sum(int g, int half, int t) const {
    return scale[g * height + t] * (float(less32[(2 * g + half) * height + t]) * -.03125f);
  }
};

// Panels of any number of rows, in memory of the caller.
struct Panels {
  int rows = 0, columns = 0;  // columns padded to a multiple of GROUP
  uint8_t* memory = nullptr;
  int terms = 1;

  static size_t bytes_per_row(size_t columns) {
    return columns * (1 + 4) + columns / GROUP * (4 * 4 + 2 * 4);
  }
  static size_t bytes(size_t rows, size_t columns, size_t terms = 1) {
    return to_multiple(terms * to_multiple(rows, MR) * bytes_per_row(to_multiple(columns, GROUP)),
                       64);
  }

  int count() const { return (rows + MR - 1) / MR; }
  int height(int panel) const { return panel == count() - 1 ? rows - panel * MR : MR; }
  Panel at(int panel, int term = 0) const {
    const int groups = columns / GROUP, h = height(panel);
    uint8_t* p = memory + (size_t(term) * count() + panel) * MR * bytes_per_row(columns);
    Panel out{};
    out.height = h;
    out.dense = (float*)p, p += size_t(columns) * MR * 4;
    out.scale = (float*)p, p += size_t(groups) * MR * 4;
    out.sum = (float*)p, p += size_t(groups) * MR * 4;
    out.less8 = (int32_t*)p, p += size_t(groups) * MR * 4;
    out.less_wide = (int32_t*)p, p += size_t(groups) * MR * 4;
    out.less32 = (int32_t*)p, p += size_t(groups) * MR * 8;
    out.integers = (int8_t*)p;
    return out;
  }
};

// x * weight / rms(x); `columns` is the true width, both arrays are padded to a multiple of 16 with
// zeros.
inline void norm_row(const float* x, const float* weight, float eps, int columns, float* out) {
  F squares = zero();
  for (int k = 0; k < columns; k += 16) squares = fma(load(x + k), load(x + k), squares);
  const F scale = set(1.f / __builtin_sqrtf(sum(squares) / float(columns) + eps));
  for (int k = 0; k < columns; k += 16)
    store(out + k, mul(mul(load(x + k), scale), load(weight + k)));
}

// (x - mean) / deviation * weight + bias, arrays as above; bias may be null.
inline void centred_norm_row(const float* x, const float* weight, const float* bias, float eps,
                             int columns, float* out) {
  F all = zero(), squares = zero();
  for (int k = 0; k < columns; k += 16) all = add(all, load(x + k));
  const float mean = sum(all) / float(columns);
  for (int k = 0; k < columns; k += 16) {
    const F off = sub(load(x + k), set(mean));
    squares = fma(off, off, squares);
  }
  // the padding is off by the mean, too
  const float padding = float((columns + 15) / 16 * 16 - columns) * mean * mean;
  const F scale = set(1.f / __builtin_sqrtf((sum(squares) - padding) / float(columns) + eps));
  for (int k = 0; k < columns; k += 16) {
    const F normed = mul(mul(sub(load(x + k), set(mean)), scale), load(weight + k));
    store(out + k, bias ? add(normed, load(bias + k)) : normed);
  }
}

// Puts row x [columns of the panels] into panel p as row t; `rest`, unless null, gets what that
// rounds off. False where x holds a number that is not finite.
inline bool quantise_term(const float* x, int columns, const Panel& p, int t, float* rest) {
  const int h = p.height, groups = columns / GROUP;
  F zeros = zero();  // x - x: not zero where x is not finite
  for (int g = 0; g < groups; g++) {
    const F a = load(x + g * GROUP), b = load(x + g * GROUP + 16);
    zeros = add(zeros, add(sub(a, a), sub(b, b)));
    const float top = largest(largest_of(absolute(a), absolute(b)));
    const bool any = top > 1e-30f;  // below, 127 / top would not be finite
    const F to = set(any ? 127.f / top : 0.f);
    const I first = integers(mul(a, to)), second = integers(mul(b, to));
    int8_t bytes[GROUP];
    store_bytes(bytes, first), store_bytes(bytes + 16, second);
    for (int c = 0; c < GROUP / 4; c++)
      memcpy(p.integers + (size_t(g * (GROUP / 4) + c) * h + t) * 4, bytes + c * 4, 4);
    const uint32_t low = uint32_t(sum_words(first)),
                   high = uint32_t(sum_words(second));  // unsigned: may be anything for NaN
    const float scale = any ? top / 127.f : 0.f;
    p.scale[g * h + t] = scale;
    p.sum[g * h + t] = scale * float(int32_t(low + high));
    p.less8[g * h + t] = int32_t(0u - 8 * (low + high));
    p.less_wide[g * h + t] = int32_t(0u - WIDE_BIAS * (low + high));
    p.less32[2 * g * h + t] = int32_t(0u - 32 * low);
    p.less32[(2 * g + 1) * h + t] = int32_t(0u - 32 * high);
    if (!rest) continue;
    store(rest + g * GROUP, fma(set(-scale), floats(first), a));
    store(rest + g * GROUP + 16, fma(set(-scale), floats(second), b));
  }
  return sum(zeros) == 0;
}

// Puts row x [columns of the panels] into the panels as their row number `row`, in all terms. A row
// that holds a number which is not finite makes every product with it not a number: integers cannot
// say so, scales can.
inline void quantise_row(const float* x, const Panels& panels, int row) {
  const int columns = panels.columns, t = row % MR;
  for (int term = 0; term < panels.terms; term++) {
    // a further term's room for floats is nobody's: `keep_row` fills that of the first
    float* rest = nullptr;
    if (term + 1 < panels.terms) rest = panels.at(row / MR, term + 1).dense + size_t(t) * columns;
    const Panel p = panels.at(row / MR, term);
    if (!quantise_term(x, columns, p, t, rest))
      for (int g = 0; g < columns / GROUP; g++) p.scale[g * p.height + t] = __builtin_nanf("");
    x = rest;
  }
}

inline void keep_row(const float* x, int columns, const Panel& p, int t) {
  for (int k = 0; k < columns; k++) p.dense[k * p.height + t] = x[k];
}

}  // namespace
