// Keys and values of 8 and 4 bits in the cache: how they are written, scored and mixed.
//
// A token's key and value of one head are cut into groups of KV_GROUP numbers with a scale each,
// which depend on that token alone. So what is in the cache does not depend on who shared its step.
// Queries and weights become sums of two vectors of int8, the second for what the first rounds off:
// 15 bits of their group's largest, so that only what is stored is rounded. Products are integers
// then, exact and the same in every order. Keys, and the queries beside them, are turned by a
// Hadamard matrix first, which keeps their products and spreads what stands out of a key over
// all of its numbers. Source of the rotation: Ashkboos et al. 2024, "QuaRot", section 4.
#pragma once
#include "bf16.h"
#include "run.h"

namespace {

using namespace quietchoir;

constexpr float SECOND = 1.f / 254;       // of the first vector's step: the second one's
constexpr int TERMS = 2;                  // vectors of int8 that make up a query, or weights
constexpr int QUANTISED_MR = MR / TERMS;  // queries that a kernel takes at most

// Rows of the 16 x 16 Hadamard matrix, times a quarter so that it keeps lengths.
struct Hadamard {
  float row[16][16];
  constexpr Hadamard() : row() {
    for (int i = 0; i < 16; i++)
      for (int k = 0; k < 16; k++) {
        int odd = 0;
        for (int both = i & k; both; both &= both - 1) odd ^= 1;
        row[i][k] = odd ? -.25f : .25f;
      }
  }
};
constexpr Hadamard HADAMARD;

// Turns a head: its parts of the largest power of two that divides its size. Twice is once back.
inline void rotate(float* head, int size) {
  const int part = size & -size;  // 16 at least
  for (int d = 0; d < size; d += 16) {
    F turned = zero();
    for (int i = 0; i < 16; i++) turned = fma(set(head[d + i]), load(HADAMARD.row[i]), turned);
    store(head + d, turned);
  }
  for (int stride = 16; stride < part; stride *= 2)
    for (int d = 0; d < size; d += 16) {
      if (d & stride) continue;
      const F a = load(head + d), b = load(head + d + stride), half = set(.70710678f);
      store(head + d, mul(add(a, b), half)), store(head + d + stride, mul(sub(a, b), half));
    }
}

// Numbers of group g.
inline int group_size(int size, int g) {
  return size - g * KV_GROUP < KV_GROUP ? size - g * KV_GROUP : KV_GROUP;
}

// What one group of a token's numbers is stored as: scale * integer + least.
struct GroupScale {
  uint16_t scale, least;  // bf16
};

// Writes one group of a token's key or value as integers [count] as they stand in the cache.
inline GroupScale quantise_kv(const float* x, int count, int type, uint8_t* integer) {
  F zeros = zero(), most = set(-3e38f), least = set(-3e38f);
  for (int d = 0; d < count; d += 16) {
    const F a = load(x + d);
    zeros = add(zeros, sub(a, a));
    most = largest_of(most, a), least = largest_of(least, sub(zero(), a));
  }
  // Eight bits: 1..255 about 128, less a quarter of a step so that a scale that was rounded down
  // still reaches. Four bits: 0..15 from the least on.
  const float above = largest(most), below = largest(least);
  const float top = above > below ? above : below;
  GroupScale found{0, 0};
  float step = top / 127.25f, from = -128.f;
  if (type == KV_Q4) {
    found.least = to_bf16(-below);
    step = (above - from_bf16(found.least)) / 15.f;
  }
  memset(integer, type == KV_Q4 ? 0 : 128, size_t(count));
  if (sum(zeros) != 0) return {0x7fc0, 0};  // a scale that is no number says what integers cannot
  if (!(step > 1e-30f)) return found;
  found.scale = to_bf16(step);
  const float inverse = 1.f / from_bf16(found.scale);
  if (type == KV_Q4) from = from_bf16(found.least) * inverse;
  const float last = type == KV_Q4 ? 15.f : 255.f;
  for (int d = 0; d < count; d++) {
    const float y = x[d] * inverse - from + .5f;
    integer[d] = uint8_t(y < 0 ? 0.f : y > last ? last : y);
  }
  return found;
}

// Where the parts of one block and head stand: `Cache`, run.h.
struct QuantisedBlock {
  uint8_t* at;
  int type, size;

  uint16_t* scales(int which, int g) const {
    return (uint16_t*)at + (which * kv_groups(size) + g) * BLOCK;
  }
  uint16_t* key_scales(int g) const { return scales(0, g); }
  uint16_t* value_scales(int g) const { return scales(1, g); }
  uint16_t* key_leasts(int g) const { return scales(2, g); }  // of 4 bits alone, as the next
  uint16_t* value_leasts(int g) const { return scales(3, g); }
  uint8_t* keys() const { return at + kv_scale_bytes(type, size); }
  uint8_t* values() const { return keys() + size_t(size) * BLOCK * (type == KV_Q8 ? 8 : 4) / 8; }

  void put_scales(int which, int g, int offset, GroupScale found) const {
    scales(which, g)[offset] = found.scale;
    if (type == KV_Q4) scales(2 + which, g)[offset] = found.least;
  }
};

inline void put_nibble(uint8_t& byte, uint8_t q, bool high) {
  byte = uint8_t(high ? (byte & 15) | q << 4 : (byte & 240) | q);
}

// Writes one token's key and value into its place. Both halves of a byte are this token's, so
// members of the team that write other tokens of the block touch no byte of it.
inline void write_quantised(const QuantisedBlock& to, int offset, const float* key,
                            const float* value) {
  uint8_t q[KV_GROUP];
  const bool wide = to.type == KV_Q8;
  for (int g = 0; g < kv_groups(to.size); g++) {
    const int first = g * KV_GROUP, count = group_size(to.size, g);
    to.put_scales(0, g, offset, quantise_kv(key + first, count, to.type, q));
    for (int i = 0; i < count; i++) {
      const int d = first + i;
      if (wide) to.keys()[d / 4 * 64 + offset * 4 + d % 4] = q[i];
      else put_nibble(to.keys()[d / 8 * 64 + offset * 4 + d % 4], q[i], d % 8 >= 4);
    }
    to.put_scales(1, g, offset, quantise_kv(value + first, count, to.type, q));
    for (int i = 0; i < count; i++) {
      const int d = first + i, byte = d % 16 * 4 + offset % 4, quad = offset / 4;
      if (wide) to.values()[(d / 16 * 4 + quad) * 64 + byte] = q[i];
      else put_nibble(to.values()[(d / 32 * 4 + quad) * 64 + byte], q[i], d % 32 >= 16);
    }
  }
}

// What sums of products begin with: integers of eight bits stand in the cache with a bias.
inline int32_t less_bias(int type, int32_t sum) {
  return type == KV_Q8 ? int32_t(0u - uint32_t(WIDE_BIAS) * uint32_t(sum)) : 0;
}

// Splits x [count], a multiple of 16, into two vectors of int8: x = scale * (first + second / 254).
// Every four of a vector go to `out`, `next` bytes apart; the second vector stands `between` bytes
// behind the first. Returns the scale, which is no number where x is not finite.
inline float split(const float* x, int count, int8_t* out, size_t next, size_t between,
                   int32_t sums[TERMS]) {
  F zeros = zero(), most = zero();
  for (int k = 0; k < count; k += 16) {
    const F a = load(x + k);
    zeros = add(zeros, sub(a, a)), most = largest_of(most, absolute(a));
  }
  const float top = largest(most);
  const bool any = top > 1e-30f && sum(zeros) == 0;
  const F to = set(any ? 127.f / top : 0.f);
  uint32_t all[TERMS] = {0, 0};
  for (int k = 0; k < count; k += 16) {
    const F a = any ? mul(load(x + k), to) : zero();
    const I first = integers(a), second = integers(mul(sub(a, floats(first)), set(254.f)));
    int8_t bytes[TERMS][16];
    store_bytes(bytes[0], first), store_bytes(bytes[1], second);
    for (int c = 0; c < 4; c++)
      for (int term = 0; term < TERMS; term++)
        memcpy(out + (k / 4 + c) * next + term * between, bytes[term] + c * 4, 4);
    all[0] += uint32_t(sum_words(first)), all[1] += uint32_t(sum_words(second));
  }
  sums[0] = int32_t(all[0]), sums[1] = int32_t(all[1]);
  return sum(zeros) != 0 ? __builtin_nanf("") : any ? top / 127.f : 0.f;
}

// Queries as the kernels below read them: `rows` of them side by side, QUANTISED_MR at most.
struct QuantisedQueries {
  int8_t* integers;  // [head size / 4][rows][TERMS][4]
  float* scale;      // [groups][rows]
  float* sum;        // [groups][rows] of the group's numbers
  int32_t* start;    // [groups][rows][TERMS]

  static size_t bytes(int size) {  // of one query
    return size_t(size) * TERMS + size_t(kv_groups(size)) * (2 + TERMS) * 4;
  }
  QuantisedQueries(uint8_t* memory, int rows, int size)
      : integers((int8_t*)memory),
        scale((float*)(memory + size_t(rows) * size * TERMS)),
        sum(scale + rows * kv_groups(size)),
        start((int32_t*)(sum + rows * kv_groups(size))) {}

  void put(const float* query, int row, int rows, int type, int size) const {
    for (int g = 0; g < kv_groups(size); g++) {
      const int first = g * KV_GROUP;
      int32_t sums[TERMS];
      scale[g * rows + row] = split(query + first, group_size(size, g),
                                    integers + (size_t(first) * rows + row * 4) * TERMS,
                                    size_t(rows) * TERMS * 4, 4, sums);
      sum[g * rows + row] = scale[g * rows + row] * (float(sums[0]) + SECOND * float(sums[1]));
      for (int term = 0; term < TERMS; term++)
        start[(g * rows + row) * TERMS + term] = less_bias(type, sums[term]);
    }
  }
};

// Scores of H queries with the 16 tokens of one block, [H][CHUNK].
template <int TYPE, int H>
void score_quantised(const QuantisedQueries& x, const QuantisedBlock& block, float* score) {
  constexpr int R = H * TERMS;
  F acc[H];
  for (int h = 0; h < H; h++) acc[h] = zero();
  const uint8_t* keys = block.keys();
  const int8_t* four = x.integers;
  for (int g = 0; g < kv_groups(block.size); g++) {
    I words[R];
    for (int r = 0; r < R; r++) words[r] = same_word(x.start + g * R + r);
    for (int d = 0; d < group_size(block.size, g); d += TYPE == KV_Q8 ? 4 : 8, keys += 64) {
      const Bytes w = load_bytes(keys);
      if constexpr (TYPE == KV_Q8) {
        for (int r = 0; r < R; r++, four += 4) words[r] = dot_wide(words[r], w, four);
      } else {
        const Bytes low = low_nibbles(w), high = high_nibbles(w);
        for (int r = 0; r < R; r++, four += 4) words[r] = dot(words[r], low, four);
        for (int r = 0; r < R; r++, four += 4) words[r] = dot(words[r], high, four);
      }
    }
    const F scale = load_bf16(block.key_scales(g));
    for (int h = 0; h < H; h++) {
      const F both = fma(floats(words[2 * h + 1]), set(SECOND), floats(words[2 * h]));
      acc[h] = fma(both, mul(scale, set(x.scale[g * H + h])), acc[h]);
      if constexpr (TYPE == KV_Q4)
        acc[h] = fma(load_bf16(block.key_leasts(g)), set(x.sum[g * H + h]), acc[h]);
    }
  }
  for (int h = 0; h < H; h++) store(score + h * CHUNK, acc[h]);
}

// Weights of one group's values: the softmax's, times each value's scale. What is behind the last
// token weighs exactly nothing, whatever stands there. Returns the sum of what the values begin
// with, weighted.
inline float weigh_values(const float* weight, const QuantisedBlock* blocks, int g, int tokens,
                          float* out) {
  F least = zero();
  for (int t = 0; t < tokens; t += 16) {
    const QuantisedBlock& block = blocks[t / BLOCK];
    float begins[16];
    store(out + t, mul(load(weight + t), load_bf16(block.value_scales(g))));
    if (block.type == KV_Q4) store(begins, mul(load(weight + t), load_bf16(block.value_leasts(g))));
    for (int behind = tokens; behind < t + 16; behind++) out[behind] = begins[behind - t] = 0;
    if (block.type == KV_Q4) least = add(least, load(begins));
  }
  return sum(least);
}

// Sums of H queries over the tokens of a chunk: 16 numbers of them, 32 where those have four bits,
// of which `wanted` are there.
template <int TYPE, int H>
void mix_quantised(const int8_t* x, const int32_t* start, const float* scale, const float* least,
                   const QuantisedBlock* blocks, int tokens, int vector, int wanted, int size,
                   float* out) {
  constexpr int R = H * TERMS, V = TYPE == KV_Q8 ? 1 : 2;
  I words[V][R];
  for (int v = 0; v < V; v++)
    for (int r = 0; r < R; r++) words[v][r] = same_word(start + r);
  for (int b = 0; b * BLOCK < tokens; b++) {
    const uint8_t* values = blocks[b].values() + size_t(vector) * 4 * 64;
    for (int quad = 0; quad < 4; quad++, values += 64) {
      const Bytes w = load_bytes(values);
      for (int r = 0; r < R; r++, x += 4) {
        if constexpr (TYPE == KV_Q8) words[0][r] = dot_wide(words[0][r], w, x);
        else {
          words[0][r] = dot(words[0][r], low_nibbles(w), x);
          words[1][r] = dot(words[1][r], high_nibbles(w), x);
        }
      }
    }
  }
  for (int v = 0; v * 16 < wanted; v++)
    for (int h = 0; h < H; h++) {
      const F both = fma(floats(words[v][2 * h + 1]), set(SECOND), floats(words[v][2 * h]));
      store(out + size_t(h) * size + v * 16, fma(both, set(scale[h]), set(least[h])));
    }
}

using QuantisedScore = void (*)(const QuantisedQueries&, const QuantisedBlock&, float*);
using QuantisedMix = void (*)(const int8_t*, const int32_t*, const float*, const float*,
                              const QuantisedBlock*, int, int, int, int, float*);
template <int TYPE, int H>
constexpr QuantisedScore quantised_score_of() {
  if constexpr (H > QUANTISED_MR) return nullptr;
  else return score_quantised<TYPE, H>;
}
template <int TYPE, int H>
constexpr QuantisedMix quantised_mix_of() {
  if constexpr (H > QUANTISED_MR) return nullptr;
  else return mix_quantised<TYPE, H>;
}
#define QC_QUANTISED(OF, TYPE) {OF<TYPE, 1>(), OF<TYPE, 2>(), OF<TYPE, 3>(), OF<TYPE, 4>()}
// [type less KV_Q8][queries - 1]
constexpr QuantisedScore QUANTISED_SCORE[2][4] = {QC_QUANTISED(quantised_score_of, KV_Q8),
                                                  QC_QUANTISED(quantised_score_of, KV_Q4)};
constexpr QuantisedMix QUANTISED_MIX[2][4] = {QC_QUANTISED(quantised_mix_of, KV_Q8),
                                              QC_QUANTISED(quantised_mix_of, KV_Q4)};

// Weighted values of H queries over the tokens of a chunk, `weight` [H][CHUNK], out [H][size].
inline void mix_queries(const float* weight, int h, int type, const QuantisedBlock* blocks,
                        int tokens, int size, float* out) {
  int8_t x[CHUNK * QUANTISED_MR * TERMS];  // [tokens / 4][h][TERMS][4]
  float own[CHUNK], scale[QUANTISED_MR], least[QUANTISED_MR];
  int32_t start[QUANTISED_MR * TERMS];
  const int rounded = (tokens + 15) / 16 * 16, step = type == KV_Q8 ? 16 : 32;
  for (int g = 0; g < kv_groups(size); g++) {
    for (int q = 0; q < h; q++) {
      int32_t sums[TERMS];
      least[q] = weigh_values(weight + size_t(q) * CHUNK, blocks, g, tokens, own);
      scale[q] = split(own, rounded, x + q * TERMS * 4, size_t(h) * TERMS * 4, 4, sums);
      for (int term = 0; term < TERMS; term++)
        start[q * TERMS + term] = less_bias(type, sums[term]);
    }
    const int first = g * KV_GROUP, end = first + group_size(size, g);
    for (int d = first; d < end; d += step)
      QUANTISED_MIX[type - KV_Q8][h - 1](x, start, scale, least, blocks, tokens, d / step,
                                         end - d < step ? end - d : step, size, out + d);
  }
}

}  // namespace
