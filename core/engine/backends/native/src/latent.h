// Latent attention: a row's keys and values, and perhaps its queries, are made of small vectors.
//
//   low    [queries or their small vector | latent | numbers of the shared key that rope turns]
//   heads  [each head's own numbers of its key | each head's value]
//
// The shared numbers stand first in every head's key. From there on rows are as any others: the
// cache holds whole keys, and values with zeros behind them.
#pragma once
#include "product.h"

namespace {

using namespace quietchoir;

// A row's queries, keys and values from their parts.
inline void join_heads(const Run& run, int row, int first) {
  const Shape& s = run.model->shape;
  const int heads = s.num_heads, size = s.head_dim, own = own_key_size(s), value = value_size(s);
  const float* low = run.low + size_t(row) * low_width(s);
  const float* made = run.heads + size_t(row) * heads_width(s);
  float* query = run.qkv + size_t(row) * 3 * heads * size;
  float *key = query + size_t(heads) * size, *mixed = key + size_t(heads) * size;
  if (!s.query_rank) memcpy(query, low, size_t(heads) * size * 4);
  for (int h = 0; h < heads; h++, key += size, mixed += size) {
    memcpy(key, low + first + s.latent_size, size_t(s.rope_dim) * 4);
    memcpy(key + s.rope_dim, made + size_t(h) * own, size_t(own) * 4);
    memcpy(mixed, made + size_t(heads) * own + size_t(h) * value, size_t(value) * 4);
    memset(mixed + value, 0, size_t(size - value) * 4);
  }
}

inline void latent_queries_keys_values(const Run& run, int layer, const Stream& stream,
                                       const ThreadScratch& own, int member) {
  const Shape& s = run.model->shape;
  const Layer& l = run.model->layers[layer];
  const size_t low = low_width(s), stride = size_t(3) * s.num_heads * s.head_dim;
  const int first = s.query_rank ? s.query_rank : s.num_heads * s.head_dim;
  const Matrix& queries = s.query_rank ? l.query_down : l.matrix[QUERY];
  {
    const Source source = plain_source(stream.x, padded(s.hidden_size), stream.rows, s.hidden_size,
                                       l.attention_norm, l.attention_norm_bias, queries, l.latent);
    const Prepared x = prepare(run, source, own, member);
    const Part parts[2] = {{&queries, nullptr, 0}, {&l.latent, nullptr, 0}};
    product(run, source, x, parts, 2, {STORE, run.low, low, 1.f});
    team_barrier(*run.team);
  }
  if (s.query_rank) {
    const Matrix& up = l.matrix[QUERY];
    const Source source =
        plain_source(run.low, low, stream.rows, s.query_rank, l.query_down_norm, nullptr, up, up);
    const Prepared x = prepare(run, source, own, member);
    const Part part{&up, nullptr, 0};
    product(run, source, x, &part, 1, {STORE, run.qkv, stride, 1.f});
    team_barrier(*run.team);
  }
  const Source source = plain_source(run.low + first, low, stream.rows, s.latent_size,
                                     l.latent_norm, nullptr, l.matrix[KEY], l.matrix[VALUE]);
  const Prepared x = prepare(run, source, own, member);
  const Part parts[2] = {{&l.matrix[KEY], nullptr, 0}, {&l.matrix[VALUE], nullptr, 0}};
  product(run, source, x, parts, 2, {STORE, run.heads, size_t(heads_width(s)), 1.f});
  team_barrier(*run.team);
  int from, to;
  share(run, stream.rows, member, from, to);
  for (int row = from; row < to; row++) join_heads(run, row, first);
  team_barrier(*run.team);
}

// Moves heads' mixed values beside each other: the zeros behind each leave.
inline void join_values(const Run& run, const Stream& stream, int member) {
  const Shape& s = run.model->shape;
  const int value = value_size(s), whole = s.num_heads * s.head_dim;
  if (value == s.head_dim) return;
  int from, to;
  share(run, stream.rows, member, from, to);
  for (int row = from; row < to; row++) {
    float* x = stream.mixed + size_t(row) * padded(whole);
    for (int h = 1; h < s.num_heads; h++)
      memmove(x + size_t(h) * value, x + size_t(h) * s.head_dim, size_t(value) * 4);
    const int end = s.num_heads * value;
    memset(x + end, 0, size_t(padded(end) - end) * 4);
  }
  team_barrier(*run.team);
}

}  // namespace
