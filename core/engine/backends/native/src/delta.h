// A gated delta net, which stands in the place of attention in some layers.
//
//   delta  [rows][queries, keys, values | closing gates | by how much each head learns | and
//          forgets], each part to a multiple of STRIP
//   seen   [rows][queries, keys, values behind the convolution]
//
// A layer remembers of a sequence, in float32, the rows that its convolution will see and a matrix
// [key numbers][value numbers] of each value head; these stand for one place of the text alone. A
// sequence's rows go through a head one after another, whoever else is in the step.
// Source: Yang et al. 2024 (Gated Delta Networks), equation 10, as transformers'
// `models/qwen3_next` computes it row by row.
#pragma once
#include "product.h"

extern "C" float log1pf(float);

namespace {

using namespace quietchoir;

constexpr int MOST_DELTA = 256;  // numbers of a head

inline void delta_inputs(const Run& run, int layer, const Stream& stream, const ThreadScratch& own,
                         int member) {
  const Shape& s = run.model->shape;
  const Layer& l = run.model->layers[layer];
  Source source = plain_source(stream.x, padded(s.hidden_size), stream.rows, s.hidden_size,
                               l.attention_norm, l.attention_norm_bias, l.delta_in, l.delta_gate);
  const Matrix* const matrices[4] = {&l.delta_in, &l.delta_gate, &l.delta_beta, &l.delta_alpha};
  Part parts[4];
  for (int i = 0; i < 4; i++) {
    parts[i] = {matrices[i], nullptr, 0};
    (wants_integers(*matrices[i]) ? source.quantised : source.dense) = true;
    if (matrices[i]->terms > source.terms) source.terms = matrices[i]->terms;
  }
  const Prepared x = prepare(run, source, own, member);
  product(run, source, x, parts, 4, {STORE, run.delta, size_t(delta_inputs_width(s)), 1.f});
}

// A row of what a convolution sees: of this step, or before it.
inline const float* row_before(const Run& run, const Layer& l, const Span& span, int place) {
  const Shape& s = run.model->shape;
  if (place >= 0) return run.delta + size_t(span.row + place) * delta_inputs_width(s);
  return span.state + l.cache + size_t(s.conv_kernel - 1 + place) * delta_width(s);
}

inline void convolve_delta(const Run& run, const Layer& l, int row) {
  const Shape& s = run.model->shape;
  const Span& span = run.span[run.row_span[row]];
  const int width = delta_width(s), taps = s.conv_kernel;
  const float* from[MOST_TAPS];
  for (int tap = 0; tap < taps; tap++)
    from[tap] = row_before(run, l, span, row - span.row - taps + 1 + tap);
  float* out = run.seen + size_t(row) * padded(width);
  for (int k = 0; k < width; k += 16) {
    F sum = zero();
    for (int tap = 0; tap < taps; tap++)
      sum = fma(load(from[tap] + k), load(l.delta_kernel + size_t(tap) * width + k), sum);
    store(out + k, gate(sum, SILU));
  }
}

// The rows that the next step's convolution will see; ascending, so none is read after it is
// written.
inline void keep_rows(const Run& run, const Layer& l, const Span& span) {
  const Shape& s = run.model->shape;
  const int width = delta_width(s), kept = s.conv_kernel - 1;
  for (int r = 0; r < kept; r++)
    memmove(span.state + l.cache + size_t(r) * width,
            row_before(run, l, span, span.rows - kept + r), size_t(width) * 4);
}

// A head divided by its length, times `scale`.
inline void unit_head(const float* head, int size, float scale, float* out) {
  F squares = zero();
  for (int d = 0; d < size; d += 16) squares = fma(load(head + d), load(head + d), squares);
  const F by = set(scale / __builtin_sqrtf(sum(squares) + 1e-6f));
  for (int d = 0; d < size; d += 16) store(out + d, mul(load(head + d), by));
}

inline float softplus(float x) {
  return (x > 0 ? x : 0) + log1pf(exponential_of(x > 0 ? -x : x)) + (x - x);
}

// One row through one value head: its matrix, in place, and what it gives.
inline void delta_row(const Shape& s, const float* q, const float* k, const float* v, float keep,
                      float learn, float* matrix, float* out) {
  const int keys = s.delta_key_dim, values = s.delta_value_dim;
  for (int d = 0; d < values; d += 16) {
    F found = zero();
    for (int j = 0; j < keys; j++)
      found = fma(load(matrix + size_t(j) * values + d), set(k[j]), found);
    const F missing = mul(sub(load(v + d), mul(found, set(keep))), set(learn));
    F given = zero();
    for (int j = 0; j < keys; j++) {
      float* at = matrix + size_t(j) * values + d;
      const F now = fma(set(k[j]), missing, mul(load(at), set(keep)));
      store(at, now);
      given = fma(now, set(q[j]), given);
    }
    store(out + d, given);
  }
}

inline void remember_head(const Run& run, const Layer& l, const Span& span, int head) {
  const Shape& s = run.model->shape;
  const int keys = s.delta_key_heads * s.delta_key_dim, size = s.delta_value_dim,
            width = delta_width(s), gates = strips_of(width),
            rates = gates + strips_of(delta_values(s)),
            served = s.delta_tiled ? head % s.delta_key_heads
                                   : head / (s.delta_value_heads / s.delta_key_heads);
  float* matrix = span.state + l.cache + size_t(s.conv_kernel - 1) * width +
                  size_t(head) * s.delta_key_dim * size;
  const float scale = 1.f / __builtin_sqrtf(float(s.delta_key_dim));
  float q[MOST_DELTA], k[MOST_DELTA];
  for (int row = span.row; row < span.row + span.rows; row++) {
    const float* seen = run.seen + size_t(row) * padded(width);
    const float* made = run.delta + size_t(row) * delta_inputs_width(s);
    unit_head(seen + size_t(served) * s.delta_key_dim, s.delta_key_dim, scale, q);
    unit_head(seen + keys + size_t(served) * s.delta_key_dim, s.delta_key_dim, 1.f, k);
    const float learn = 1.f / (1.f + exponential_of(-made[rates + head]));
    const float alpha = made[rates + strips_of(s.delta_value_heads) + head];
    const float keep = exponential_of(l.decay[head] * softplus(alpha + l.decay_bias[head]));
    float* out = run.mixed + size_t(row) * mixed_width(s) + size_t(head) * size;
    delta_row(s, q, k, seen + 2 * keys + size_t(head) * size, keep, learn, matrix, out);
    norm_row(out, l.delta_gain, s.norm_eps, size, out);
    const float* closing = made + gates + size_t(head) * size;
    for (int d = 0; d < size; d += 16)
      store(out + d, mul(load(out + d), gate(load(closing + d), SILU)));
  }
}

// What every row's heads give, through its gates; a barrier stands before and behind.
inline void remember(const Run& run, int layer, int member) {
  const Layer& l = run.model->layers[layer];
  const int heads = run.model->shape.delta_value_heads;
  int from, to;
  share(run, run.rows, member, from, to);
  for (int row = from; row < to; row++) convolve_delta(run, l, row);
  team_barrier(*run.team);
  share(run, run.spans, member, from, to);
  for (int span = from; span < to; span++) keep_rows(run, l, run.span[span]);
  while (team_take(*run.team, run.spans * heads, 1, from, to))
    for (int item = from; item < to; item++)
      remember_head(run, l, run.span[item / heads], item % heads);
}

}  // namespace
