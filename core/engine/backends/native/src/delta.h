// A gated delta net, which stands in the place of attention in some layers, or a scan of Mamba-2,
// which may stand beside it.
//
//   delta  [rows][queries, keys, values | closing gates | by how much each head learns | and
//          forgets], each part to a multiple of STRIP; of a scan what it reads by, what it writes
//          by and its inputs stand for queries, keys and values, and nothing learns
//   seen   [rows][queries, keys, values behind the convolution]
//
// A layer remembers of a sequence, in float32, the rows that its convolution will see and a matrix
// [key numbers][value numbers] of each value head; these stand for one place of the text alone. A
// sequence's rows go through a head one after another, whoever else is in the step.
// Source: Yang et al. 2024 (Gated Delta Networks), equation 10, as transformers'
// `models/qwen3_next` computes it row by row; Dao and Gu 2024 (Mamba-2), section 3, as
// `models/granitemoehybrid` does.
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
  const Matrix* const matrices[4] = {
      &l.delta_in, &l.delta_gate, s.state_spaces ? &l.delta_alpha : &l.delta_beta, &l.delta_alpha};
  const int count = s.state_spaces ? 3 : 4;
  static constexpr int32_t CHANGED[2] = {DELTA_IN_ROLE, DELTA_GATE_ROLE};
  adapted(source, stream.adapter, layer, 2, CHANGED);
  Part parts[4];
  for (int i = 0; i < count; i++) {
    parts[i] = {matrices[i], nullptr, i < 2 ? i : -1};
    (wants_integers(*matrices[i]) ? source.quantised : source.dense) = true;
    if (matrices[i]->terms > source.terms) source.terms = matrices[i]->terms;
  }
  const Prepared x = prepare(run, source, own, member);
  product(run, source, x, parts, count, {STORE, run.delta, size_t(delta_inputs_width(s)), 1.f});
}

// A row of what a convolution sees: of this step, or before it.
inline const float* row_before(const Run& run, const Layer& l, const Span& span, int place) {
  const Shape& s = run.model->shape;
  if (place >= 0) return run.delta + size_t(span.row + place) * delta_inputs_width(s);
  return span.state + l.state + size_t(s.conv_kernel - 1 + place) * delta_width(s);
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
    F sum = l.delta_kernel_bias ? load(l.delta_kernel_bias + k) : zero();
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
    memmove(span.state + l.state + size_t(r) * width,
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

// One row through one head of a scan: its matrix, in place, and what it gives.
inline void scan_row(const Shape& s, const float* c, const float* b, const float* x, float keep,
                     float step, float skip, float* matrix, float* out) {
  const int states = s.delta_key_dim, size = s.delta_value_dim;
  for (int d = 0; d < size; d += 16) {
    const F in = load(x + d), more = mul(in, set(step));
    F given = mul(in, set(skip));
    for (int j = 0; j < states; j++) {
      float* at = matrix + size_t(j) * size + d;
      const F now = fma(set(b[j]), more, mul(load(at), set(keep)));
      store(at, now);
      given = fma(now, set(c[j]), given);
    }
    store(out + d, given);
  }
}

// What a layer remembers of a sequence behind its convolution's rows, for one head.
inline float* matrix_of(const Shape& s, const Layer& l, const Span& span, int head) {
  return span.state + l.state + size_t(s.conv_kernel - 1) * delta_width(s) +
         size_t(head) * s.delta_key_dim * s.delta_value_dim;
}

inline void close_head(float* out, const float* closing, int size) {
  for (int d = 0; d < size; d += 16)
    store(out + d, mul(load(out + d), gate(load(closing + d), SILU)));
}

inline void scan_head(const Run& run, const Layer& l, const Span& span, int head) {
  const Shape& s = run.model->shape;
  const int size = s.delta_value_dim, states = s.delta_key_dim, width = delta_width(s),
            keys = s.delta_key_heads * states, gates = strips_of(width),
            rates = gates + strips_of(delta_values(s)),
            group = head / (s.delta_value_heads / s.delta_key_heads);
  float* matrix = matrix_of(s, l, span, head);
  for (int row = span.row; row < span.row + span.rows; row++) {
    const float* seen = run.seen + size_t(row) * padded(width);
    const float* made = run.delta + size_t(row) * delta_inputs_width(s);
    const float step = softplus(made[rates + head] + l.decay_bias[head]);
    float* out = run.mixed + size_t(row) * mixed_width(s) + size_t(head) * size;
    scan_row(s, seen + size_t(group) * states, seen + keys + size_t(group) * states,
             seen + 2 * keys + size_t(head) * size, exponential_of(l.decay[head] * step), step,
             l.skip[head], matrix, out);
    close_head(out, made + gates + size_t(head) * size, size);
  }
}

// Norms of what a scan gave, over each group of heads.
inline void norm_scanned(const Run& run, const Layer& l, int member) {
  const Shape& s = run.model->shape;
  const int each = delta_values(s) / s.delta_key_heads;
  int from, to;
  team_barrier(*run.team);
  share(run, run.rows, member, from, to);
  for (int row = from; row < to; row++)
    for (int at = 0; at < delta_values(s); at += each) {
      float* out = run.mixed + size_t(row) * mixed_width(s) + at;
      norm_row(out, l.delta_gain + at, s.norm_eps, each, out);
    }
}

inline void remember_head(const Run& run, const Layer& l, const Span& span, int head) {
  const Shape& s = run.model->shape;
  const int keys = s.delta_key_heads * s.delta_key_dim, size = s.delta_value_dim,
            width = delta_width(s), gates = strips_of(width),
            rates = gates + strips_of(delta_values(s)),
            served = s.delta_tiled ? head % s.delta_key_heads
                                   : head / (s.delta_value_heads / s.delta_key_heads);
  float* matrix = matrix_of(s, l, span, head);
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
    close_head(out, made + gates + size_t(head) * size, size);
  }
}

// What every row's heads give, through its gates; a barrier stands before and behind.
inline void remember(const Run& run, int layer, int member) {
  const Layer& l = run.model->layers[layer];
  const int heads = run.model->shape.delta_value_heads;
  const bool scans = run.model->shape.state_spaces;
  int from, to;
  share(run, run.rows, member, from, to);
  for (int row = from; row < to; row++) convolve_delta(run, l, row);
  team_barrier(*run.team);
  share(run, run.spans, member, from, to);
  for (int span = from; span < to; span++) keep_rows(run, l, run.span[span]);
  while (team_take(*run.team, run.spans * heads, 1, from, to))
    for (int item = from; item < to; item++) {
      const Span& span = run.span[item / heads];
      if (scans) scan_head(run, l, span, item % heads);
      else remember_head(run, l, span, item % heads);
    }
  if (scans && l.delta_gain) norm_scanned(run, l, member);
}

}  // namespace
