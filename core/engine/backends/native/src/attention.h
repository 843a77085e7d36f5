// Rows looking at their context in the paged cache.
//
// Queries that share a key head stand together, so a block of keys is read and widened once for all
// of them. Scores, weights and values are taken CHUNK tokens at a time, always between the same
// borders, with a running maximum, so any length costs the same memory. Source of the running
// maximum: Milakov & Gimelshein 2018, algorithm 3.
#pragma once
#include "kv_quantised.h"

namespace {

using namespace quietchoir;

#ifndef QUIETCHOIR_PAIRS
constexpr bool PAIRS = false;
inline void store_bf16(uint16_t* p, F x) {
  float lanes[16];
  store(lanes, x);
  for (int i = 0; i < 16; i++) p[i] = to_bf16(lanes[i]);
}
#endif

constexpr int CHUNK_BLOCKS = CHUNK / BLOCK;
constexpr float NOTHING = -1e30f;  // the score of a token that a row does not see
// A chunk whose largest score is farther below the largest so far weighs at most 3e-7 of it, or
// 2e-9 where weights are not rounded, and is left out: of long texts most chunks are.
constexpr float FAR = 20.f, FAR_EXACT = 25.f;

// c * tanh(x / c); what is not finite stays so.
inline F softcapped(F x, float cap) {
  const F e = exponential(mul(x, set(2.f / cap)));
  const F tanh = sub(set(1.f), div(set(2.f), add(set(1.f), e)));
  return fma(set(cap), tanh, sub(x, x));
}

inline float exponential_of(float x) {
  float lanes[16];
  store(lanes, exponential(set(x)));
  return lanes[0];
}

// What a query has of one chunk: weighted values, the top they are relative to, and the sum of
// weights. A sum over several chunks is always made chunk by chunk in the order of the context,
// whoever computed them: so a row's result is the same to the last bit in every batch.
struct OnlineSoftmax {
  float* out;
  float top, total;

  // Whether a chunk weighs nothing beside those so far.
  bool is_far(float chunk_top, float farthest) const {
    return top - chunk_top > farthest && top != NOTHING;
  }

  void add_chunk(const float* values, float chunk_top, float chunk_total, int size,
                 float farthest) {
    if (is_far(chunk_top, farthest)) return;
    if (top == NOTHING) {
      memcpy(out, values, size_t(size) * 4);
      top = chunk_top, total = chunk_total;
      return;
    }
    const float most = top > chunk_top ? top : chunk_top;
    const float before = top == most ? 1.f : exponential_of(top - most),
                now = chunk_top == most ? 1.f : exponential_of(chunk_top - most);
    for (int d = 0; d < size; d += 16)
      store(out + d, fma(load(values + d), set(now), mul(load(out + d), set(before))));
    top = most, total = total * before + chunk_total * now;
  }
};

// Memory for one task of `queries` queries.
struct AttentionScratch {
  float* query;            // [queries][head size]
  uint8_t* integers;       // the same as `QuantisedQueries`, QUANTISED_MR by QUANTISED_MR
  float* score;            // [queries][CHUNK]
  float* out;              // [queries][head size] of the chunk
  float* top;              // [queries] the largest score of the chunk
  float* total;            // [queries] sum of exp(score - top) of the chunk
  int32_t* from;           // [queries] first token a query sees
  int32_t* to;             // [queries] one behind the last
  float* slope;            // [queries] by how much a score falls with each token of distance
  OnlineSoftmax* softmax;  // [queries] over all chunks so far
  float farthest;          // chunks farther below a query's largest score are left out

  static size_t bytes(int queries, int head_size) {
    return to_multiple(size_t(queries) * ((2 * head_size + CHUNK + 5) * 4 + sizeof(OnlineSoftmax) +
                                          QuantisedQueries::bytes(head_size)),
                       64);
  }
  AttentionScratch(uint8_t* memory, int queries, int head_size, float farthest)
      : farthest(farthest) {
    float* p = (float*)memory;
    softmax = (OnlineSoftmax*)memory, p = (float*)(softmax + queries);
    query = p, p += size_t(queries) * head_size;
    out = p, p += size_t(queries) * head_size;
    score = p, p += size_t(queries) * CHUNK;
    top = p, p += queries;
    total = p, p += queries;
    slope = p, p += queries;
    from = (int32_t*)p, p += queries;
    to = (int32_t*)p;
    integers = (uint8_t*)(to + queries);
  }

  // Queries in bf16, [queries][head size], where the others' integers would stand.
  uint16_t* narrow() const { return (uint16_t*)integers; }

  QuantisedQueries quantised(int first, int rows, int head_size) const {
    return {integers + size_t(first) * QuantisedQueries::bytes(head_size), rows, head_size};
  }
};

#ifdef QUIETCHOIR_PAIRS
// Scores of H queries with the 16 tokens of each of two blocks, all in bf16: each pair of a query's
// numbers is fetched once for both. The same sums in the same order as `score_block`'s.
template <int H>
void score_two_blocks(const uint16_t* query, int size, const uint16_t* keys, const uint16_t* next,
                      float* score) {
  F acc[H], more[H];
  for (int h = 0; h < H; h++) acc[h] = more[h] = zero();
  for (int d = 0; d < size; d += 2) {
    const I first = load_words((const int32_t*)(keys + d * BLOCK)),
            second = load_words((const int32_t*)(next + d * BLOCK));
    for (int h = 0; h < H; h++) {
      acc[h] = dot_pairs(acc[h], first, query + h * size + d);
      more[h] = dot_pairs(more[h], second, query + h * size + d);
    }
  }
  for (int h = 0; h < H; h++) {
    store(score + h * CHUNK, add(acc[h], zero()));
    store(score + h * CHUNK + BLOCK, add(more[h], zero()));
  }
}
#endif

// Scores of H queries with the 16 tokens of one block: queries in float, or in bf16 where a set
// multiplies pairs of those. The same sums in the same order, whatever H.
template <class X, int H>
void score_block(const X* query, int size, const uint16_t* keys, float* score) {
  F acc[H], other[H];
  for (int h = 0; h < H; h++) acc[h] = other[h] = zero();
  for (int d = 0; d < size; d += 2) {
    if constexpr (sizeof(X) == 2) {
      const I both = load_words((const int32_t*)(keys + d * BLOCK));
      for (int h = 0; h < H; h++) acc[h] = dot_pairs(acc[h], both, query + h * size + d);
    } else {
      F even, odd;
      load_pairs(keys + d * BLOCK, even, odd);
      for (int h = 0; h < H; h++) {
        acc[h] = fma(even, set(query[h * size + d]), acc[h]);
        other[h] = fma(odd, set(query[h * size + d + 1]), other[h]);
      }
    }
  }
  for (int h = 0; h < H; h++) store(score + h * CHUNK, add(acc[h], other[h]));
}

// `tokens` weighted values, 16 * V numbers of them, to H queries' rows. `values` points at those
// numbers. What stands behind the last token may hold anything, also what is not a number.
template <class X, int H, int V>
void mix_values(const X* weight, const uint16_t* const* values, size_t at, int tokens, int size,
                float* out) {
  constexpr int APART = CHUNK * 4 / sizeof(X);  // weights stand where the scores stood
  F acc[H][V];
  for (int h = 0; h < H; h++)
    for (int v = 0; v < V; v++) acc[h][v] = zero();
  for (int t = 0; t < tokens; t += 2) {
    const uint16_t* p = values[t / BLOCK] + at + size_t(t % BLOCK) * size;
    if constexpr (sizeof(X) == 2) {
      I both[V];
      for (int v = 0; v < V; v++) both[v] = load_words((const int32_t*)(p + v * 32));
      if (t + 1 == tokens)
        for (int v = 0; v < V; v++) both[v] = bits<0, 16>(both[v]);
      for (int h = 0; h < H; h++)
        for (int v = 0; v < V; v++)
          acc[h][v] = dot_pairs(acc[h][v], both[v], weight + h * APART + t);
    } else {
      F even[V], odd[V];
      for (int v = 0; v < V; v++) load_pairs(p + v * 32, even[v], odd[v]);
      for (int h = 0; h < H; h++) {
        const F w = set(weight[h * APART + t]);
        for (int v = 0; v < V; v++) acc[h][v] = fma(even[v], w, acc[h][v]);
      }
      if (t + 1 < tokens)
        for (int h = 0; h < H; h++) {
          const F w = set(weight[h * APART + t + 1]);
          for (int v = 0; v < V; v++) acc[h][v] = fma(odd[v], w, acc[h][v]);
        }
    }
  }
  for (int h = 0; h < H; h++)
    for (int v = 0; v < V; v++) store(out + h * size + v * 16, acc[h][v]);
}

// Kernels for queries and weights of one type, by how many queries and vectors.
template <class X>
struct Kernels {
  using Score = void (*)(const X*, int, const uint16_t*, float*);
  using Mix = void (*)(const X*, const uint16_t* const*, size_t, int, int, float*);
  static constexpr Score SCORE[8] = {score_block<X, 1>, score_block<X, 2>, score_block<X, 3>,
                                     score_block<X, 4>, score_block<X, 5>, score_block<X, 6>,
                                     score_block<X, 7>, score_block<X, 8>};
#ifdef QUIETCHOIR_PAIRS
  using ScoreTwo = void (*)(const uint16_t*, int, const uint16_t*, const uint16_t*, float*);
  static constexpr ScoreTwo SCORE_TWO[8] = {
      score_two_blocks<1>, score_two_blocks<2>, score_two_blocks<3>, score_two_blocks<4>,
      score_two_blocks<5>, score_two_blocks<6>, score_two_blocks<7>, score_two_blocks<8>};
#endif
#define QC_MIX(H) \
  {mix_values<X, H, 1>, mix_values<X, H, 2>, mix_values<X, H, 3>, mix_values<X, H, 4>}
  static constexpr Mix MIX[4][4] = {QC_MIX(1), QC_MIX(2), QC_MIX(3), QC_MIX(4)};
};
constexpr int SCORE_MR = MR;
constexpr int MIX_MR = MR < 4 ? MR : 4;

// Hides what a query does not see of the tokens from `first` on.
inline void hide(float* score, int first, int tokens, int from, int to) {
  for (int t = 0; t < tokens; t++)
    if (first + t < from || first + t >= to) score[t] = NOTHING;
}

// The largest score; behind the last token nothing is seen.
inline float largest_score(float* score, int tokens) {
  for (int t = tokens; t % 16; t++) score[t] = NOTHING;
  F most = set(NOTHING);
  for (int t = 0; t < tokens; t += 16) most = largest_of(most, load(score + t));
  return largest(most);
}

// From scores to weights, exp(score - top), and their sum. What is hidden weighs exactly nothing,
// where `exponential` has its least number: that would break ties of roundings, and so tell apart
// rows that share a step with others from those that do not.
inline void weigh_exactly(float* score, int tokens, float top, float& total) {
  const F least = exponential(set(NOTHING));
  F all = zero();
  for (int t = 0; t < tokens; t += 16) {
    const F e = sub(exponential(sub(load(score + t), set(top))), least);
    store(score + t, e);
    all = add(all, e);
  }
  total = sum(all);
}

// The same where weights are rounded to bf16, in their own place: the numbers of a vector stand
// where it or one before it stood.
inline void round_weights(float* score, int tokens, float top, float& total) {
  const F least = exponential(set(NOTHING));
  F all = zero();
  for (int t = 0; t < tokens; t += 16) {
    const F e = sub(exponential(sub(load(score + t), set(top))), least);
    store_bf16((uint16_t*)score + t, e);
    all = add(all, e);
  }
  total = sum(all);
}

inline void fetch_block(const uint8_t* block, size_t bytes) {
  for (size_t line = 0; line < bytes; line += 64) prefetch(block + line);
}

inline void cap_scores(float* score, int tokens, float cap) {
  for (int t = 0; t < tokens; t += 16) store(score + t, softcapped(load(score + t), cap));
}

// Where one head of one layer has its part of each block.
struct HeadCache {
  const uint8_t* memory;
  size_t block_stride, bytes;  // from block to block, and of one block
  int type, size;              // KvType, head size
  bool pairs;                  // queries and weights are rounded to bf16, as keys and values are

  // `before`: bytes before the layer's part of a block
  HeadCache(const Cache& cache, size_t before, int head, int head_size, bool exact)
      : memory(cache.memory + before + head * cache.one(head_size)),
        block_stride(cache.block),
        bytes(cache.one(head_size)),
        type(cache.type),
        size(head_size),
        pairs(PAIRS && !exact && type == KV_BF16) {}
  const uint8_t* at(int block) const { return memory + size_t(block) * block_stride; }
};

// Lowers scores of tokens from `first` on by their distance from the token at `position`.
inline void slope_scores(float* score, int tokens, int first, int position, float slope) {
  static constexpr float STEPS[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  for (int t = 0; t < tokens; t += 16) {
    const F distance = sub(set(float(position - first - t)), load(STEPS));
    store(score + t, sub(load(score + t), mul(set(slope), distance)));
  }
}

// From scores to weights, of every query but those that the chunk is far from. How many of the
// first queries are left: none behind them looks at its values.
template <bool ROUNDED>
int weigh(const AttentionScratch& s, int queries, int first, int tokens, int end, float softcap) {
  int near = 0;
  for (int q = 0; q < queries; q++) {
    float* score = s.score + size_t(q) * CHUNK;
    if (softcap) cap_scores(score, tokens, softcap);
    if (s.slope[q] != 0) slope_scores(score, tokens, first, s.to[q] - 1, s.slope[q]);
    if (s.from[q] > first || s.to[q] < end) hide(score, first, tokens, s.from[q], s.to[q]);
    s.top[q] = largest_score(score, tokens);
    if (s.softmax[q].is_far(s.top[q], s.farthest)) {
      for (int t = 0; t < tokens; t += 16) store(score + t, zero());
      continue;
    }
    near = q + 1;
    if (ROUNDED) round_weights(score, tokens, s.top[q], s.total[q]);
    else weigh_exactly(score, tokens, s.top[q], s.total[q]);
  }
  return near;
}

// Whether a chunk is far from some queries in a row.
inline bool all_far(const AttentionScratch& s, int first, int count) {
  for (int q = first; q < first + count; q++)
    if (!s.softmax[q].is_far(s.top[q], s.farthest)) return false;
  return true;
}

// `attend_chunk` where keys and values are integers.
inline void attend_quantised(const AttentionScratch& s, int queries, const HeadCache& cache,
                             const int32_t* blocks, int first, int end, float softcap) {
  const int tokens = end - first, type = cache.type - KV_Q8, size = cache.size;
  QuantisedBlock found[CHUNK_BLOCKS];
  for (int b = 0; b * BLOCK < tokens; b++) {
    found[b] = {const_cast<uint8_t*>(cache.at(blocks[b])), cache.type, size};
    for (int q = 0; q < queries; q += QUANTISED_MR) {
      const int h = queries - q < QUANTISED_MR ? queries - q : QUANTISED_MR;
      QUANTISED_SCORE[type][h - 1](s.quantised(q, h, size), found[b],
                                   s.score + size_t(q) * CHUNK + b * BLOCK);
    }
  }
  const int near = weigh<false>(s, queries, first, tokens, end, softcap);
  for (int q = 0; q < near; q += QUANTISED_MR) {
    const int h = queries - q < QUANTISED_MR ? queries - q : QUANTISED_MR;
    if (all_far(s, q, h)) continue;
    mix_queries(s.score + size_t(q) * CHUNK, h, cache.type, found, tokens, size,
                s.out + size_t(q) * size);
  }
}

// `attend_chunk` beside keys and values in bf16, with queries and weights in X.
template <class X>
void attend_plain(const AttentionScratch& s, const X* query, int queries, const HeadCache& cache,
                  const int32_t* blocks, int first, int end, float softcap) {
  using K = Kernels<X>;
  const int tokens = end - first, size = cache.size;
  const uint16_t* values[CHUNK_BLOCKS];
  constexpr bool ROUNDED = sizeof(X) == 2;
  for (int b = 0; b * BLOCK < tokens; b++) {
    const uint16_t* keys = (const uint16_t*)cache.at(blocks[b]);
    values[b] = keys + size_t(BLOCK) * size;
    const bool two = ROUNDED && (b + 1) * BLOCK < tokens;
    const uint16_t* next = two ? (const uint16_t*)cache.at(blocks[b + 1]) : nullptr;
    for (int q = 0; q < queries; q += SCORE_MR) {
      const int h = queries - q < SCORE_MR ? queries - q : SCORE_MR;
      float* score = s.score + size_t(q) * CHUNK + b * BLOCK;
      if constexpr (ROUNDED)
        if (two) {
          K::SCORE_TWO[h - 1](query + size_t(q) * size, size, keys, next, score);
          continue;
        }
      K::SCORE[h - 1](query + size_t(q) * size, size, keys, score);
    }
    if (two) values[++b] = next + size_t(BLOCK) * size;
  }
  const int near = weigh<ROUNDED>(s, queries, first, tokens, end, softcap);
  for (int q = 0; q < near; q += MIX_MR) {
    const int h = queries - q < MIX_MR ? queries - q : MIX_MR;
    if (all_far(s, q, h)) continue;
    for (int d = 0; d < size; d += 64) {
      const int v = size - d < 64 ? (size - d) / 16 : 4;
      K::MIX[h - 1][v - 1]((const X*)(s.score + size_t(q) * CHUNK), values, size_t(d) * 2, tokens,
                           size, s.out + size_t(q) * size + d);
    }
  }
}

// `queries` queries of one key head against tokens [begin, end) of one sequence, at most one chunk:
// fills score, out, top and total of `s`.
inline void attend_chunk(const AttentionScratch& s, int queries, const HeadCache& cache,
                         const int32_t* table, int begin, int end, float softcap) {
  const int32_t* blocks = table + begin / BLOCK;
  const int first = begin / BLOCK * BLOCK;
  if (cache.type != KV_BF16)
    return attend_quantised(s, queries, cache, blocks, first, end, softcap);
  if constexpr (PAIRS)
    if (cache.pairs)
      return attend_plain(s, s.narrow(), queries, cache, blocks, first, end, softcap);
  attend_plain(s, (const float*)s.query, queries, cache, blocks, first, end, softcap);
}

// Asks for the blocks of one chunk, as far as they hold tokens of [begin, end): they lie anywhere,
// so the processor foresees none.
inline void fetch_chunk(const HeadCache& cache, const int32_t* table, int chunk, int begin,
                        int end) {
  const int from = chunk * CHUNK > begin ? chunk * CHUNK : begin,
            to = chunk * CHUNK + CHUNK < end ? chunk * CHUNK + CHUNK : end;
  for (int b = from / BLOCK; b * BLOCK < to; b++) fetch_block(cache.at(table[b]), cache.bytes);
}

// Writes one token's key and value into its place; `block` is the block's place for this head.
inline void write_kv(uint8_t* block, int type, int offset, int size, const float* key,
                     const float* value) {
  if (type != KV_BF16) return write_quantised({block, type, size}, offset, key, value);
  uint16_t* at = (uint16_t*)block;
  uint16_t* values = at + size_t(BLOCK) * size + size_t(offset / 2) * size * 2 + offset % 2;
  for (int d = 0; d < size; d++) {
    at[(d / 2 * BLOCK + offset) * 2 + d % 2] = to_bf16(key[d]);
    values[d * 2] = to_bf16(value[d]);
  }
}

}  // namespace
