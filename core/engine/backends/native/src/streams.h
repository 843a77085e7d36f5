// Rows that are several streams: each layer computes the first, foresees the others from all before
// it, and corrects them by what it made of the first.
//
//   streams  [rows][streams][width]
//   apart    [rows][2][feed-forward width], gates and ups of layers whose gates open far above
//   their
//            row's mean alone
//
// Source: Baykal et al. 2023 (AltUp) and Gemma 3n, as transformers' `models/gemma3n` computes them.
#pragma once
#include "given.h"

extern "C" float tanhf(float);

namespace {

using namespace quietchoir;

inline float* streams_at(const Run& run, int row) {
  const Shape& s = run.model->shape;
  return run.streams + size_t(row) * s.streams * s.hidden_size;
}

inline float mean_square(const float* x, int width) {
  F squares = zero();
  for (int k = 0; k < width; k += 16) squares = fma(load(x + k), load(x + k), squares);
  return sum(squares) / float(width);
}

// By what rows must be multiplied to be as large as another, whose mean square is `wanted`.
inline float as_large(const float* x, int width, float wanted) {
  const float own = mean_square(x, width), least = 1e-5f;
  return __builtin_sqrtf(wanted) / __builtin_sqrtf(own > least ? own : least);
}

// Several streams of the one that the embedding gives; a barrier stands behind.
inline void make_streams(const Run& run, const Stream& stream, const ThreadScratch& own,
                         int member) {
  const Shape& s = run.model->shape;
  const int width = s.hidden_size;
  const Matrix& m = run.model->stream_in;
  const Source source = plain_source(stream.x, width, stream.rows, width, nullptr, nullptr, m, m);
  const Prepared x = prepare(run, source, own, member);
  const Part part{&m, nullptr, -1};
  product(run, source, x, &part, 1, {STORE, run.streams + width, size_t(s.streams) * width, 1.f});
  team_barrier(*run.team);
  int from, to;
  share(run, run.rows, member, from, to);
  for (int row = from; row < to; row++) {
    float* at = streams_at(run, row);
    memcpy(at, stream.x + size_t(row) * width, size_t(width) * 4);
    const float wanted = mean_square(at, width);
    for (int i = 1; i < s.streams; i++) {
      float* other = at + size_t(i) * width;
      const F by = set(as_large(other, width, wanted));
      for (int k = 0; k < width; k += 16) store(other + k, mul(load(other + k), by));
    }
  }
  team_barrier(*run.team);
}

// What a router says of a row, [streams].
inline void modalities(const Shape& s, const Layer& l, const float* x, float* scratch, float* out) {
  const int width = s.hidden_size;
  norm_row(x, l.altup_norm, s.norm_eps, width, scratch);
  for (int i = 0; i < s.streams; i++) {
    F product = zero();
    for (int k = 0; k < width; k += 16)
      product = fma(load(scratch + k), load(l.altup_router + size_t(i) * width + k), product);
    out[i] = tanhf(sum(product) / float(width));
  }
}

// Shares of the streams: a matrix [count][streams] times what the router says.
inline void shares_of(const Shape& s, const float* matrix, int count, const float* said,
                      float* out) {
  for (int i = 0; i < count; i++) {
    out[i] = 0;
    for (int j = 0; j < s.streams; j++) out[i] += matrix[i * s.streams + j] * said[j];
  }
}

// All streams before a layer, and the first as the stream that it computes.
inline void foresee(const Run& run, const Layer& l, const Stream& stream, const ThreadScratch& own,
                    int member) {
  const Shape& s = run.model->shape;
  const int width = s.hidden_size, count = s.streams;
  float said[MOST_STREAMS], shares[MOST_STREAMS * MOST_STREAMS];
  F before[MOST_STREAMS];
  int from, to;
  share(run, run.rows, member, from, to);
  for (int row = from; row < to; row++) {
    float* at = streams_at(run, row);
    modalities(s, l, at, own.scratch, said);
    shares_of(s, l.altup_predict, count * count, said, shares);
    for (int k = 0; k < width; k += 16) {
      for (int i = 0; i < count; i++) before[i] = load(at + size_t(i) * width + k);
      for (int i = 0; i < count; i++) {
        F sum = before[i];
        for (int j = 0; j < count; j++) sum = fma(before[j], set(shares[i * count + j]), sum);
        store(at + size_t(i) * width + k, sum);
      }
    }
    memcpy(stream.x + size_t(row) * width, at, size_t(width) * 4);
  }
  team_barrier(*run.team);
}

// Adds to the stream its normed rows and what a product of low rank makes of them; after attention
// has read the stream, and before it adds to it.
inline void add_laurel(const Run& run, const Layer& l, const Stream& stream,
                       const ThreadScratch& own, int member) {
  const Shape& s = run.model->shape;
  const int width = s.hidden_size, rank = s.laurel_rank;
  {
    const Source source = plain_source(stream.x, width, stream.rows, width, l.attention_norm,
                                       nullptr, l.laurel_left, l.laurel_left);
    const Prepared x = prepare(run, source, own, member);
    const Part part{&l.laurel_left, nullptr, -1};
    product(run, source, x, &part, 1, {STORE, run.gated, size_t(rank), 1.f});
    team_barrier(*run.team);
  }
  const Source source = plain_source(run.gated, rank, stream.rows, rank, nullptr, nullptr,
                                     l.laurel_right, l.laurel_right);
  const Prepared x = prepare(run, source, own, member);
  const Part part{&l.laurel_right, nullptr, -1};
  product(run, source, x, &part, 1, {STORE, run.added, size_t(width), 1.f});
  team_barrier(*run.team);
  int from, to;
  share(run, stream.rows, member, from, to);
  for (int row = from; row < to; row++) {
    float *at = stream.x + size_t(row) * width, *added = run.added + size_t(row) * width;
    norm_row(at, l.attention_norm, s.norm_eps, width, own.scratch);
    norm_row(added, l.laurel_norm, s.norm_eps, width, added);
    for (int k = 0; k < width; k += 16)
      store(at + k, add(load(at + k), add(load(own.scratch + k), load(added + k))));
  }
  team_barrier(*run.team);
}

// The sum of a row, of attention and of what stands beside it, as large as each.
inline void halve(const Run& run, const Stream& stream, int member) {
  const int width = run.model->shape.hidden_size;
  int from, to;
  share(run, stream.rows, member, from, to);
  for (size_t k = size_t(from) * width; k < size_t(to) * width; k += 16)
    store(stream.x + k, mul(load(stream.x + k), set(OF_TWO)));
  team_barrier(*run.team);
}

// The first half of a feed-forward whose gates open by how far they are above their row's mean and
// some deviations.
inline void open_far_gates(const Run& run, const Layer& l, const Source& source,
                           const Prepared& x) {
  const int activation = run.model->shape.activation, inner = l.matrix[UP].rows;
  const size_t stride = padded(inner);
  const Part parts[2] = {{&l.matrix[GATE], nullptr, -1}, {&l.matrix[UP], nullptr, -1}};
  product(run, source, x, parts, 2, {STORE, run.apart, size_t(2) * inner, 1.f});
  team_barrier(*run.team);
  int from, to;
  while (team_take(*run.team, source.rows, 1, from, to))
    for (int row = from; row < to; row++) {
      const float *gates = run.apart + size_t(row) * 2 * inner, *ups = gates + inner;
      F total = zero(), squares = zero();
      for (int k = 0; k < inner; k += 16) total = add(total, load(gates + k));
      const F mean = set(sum(total) / float(inner));
      for (int k = 0; k < inner; k += 16) {
        const F off = sub(load(gates + k), mean);
        squares = fma(off, off, squares);
      }
      const F least =
          fma(set(__builtin_sqrtf(sum(squares) / float(inner))), set(*l.gate_cutoff), mean);
      float* out = run.gated + size_t(row) * stride;
      for (int k = 0; k < inner; k += 16) {
        const F above = sub(load(gates + k), least);
        const F open =
            add(largest_of(above, zero()), sub(above, above));  // keeps what is no number
        store(out + k, mul(gate(open, activation), load(ups + k)));
      }
      for (size_t k = inner; k < stride; k++) out[k] = 0;
    }
}

// All streams behind a layer, and the first, scaled, as the stream that opens gates for what the
// layer is given.
inline void correct(const Run& run, const Layer& l, const Stream& stream, const ThreadScratch& own,
                    int member) {
  const Shape& s = run.model->shape;
  const int width = s.hidden_size;
  float said[MOST_STREAMS], shares[MOST_STREAMS];
  int from, to;
  share(run, run.rows, member, from, to);
  for (int row = from; row < to; row++) {
    float *at = streams_at(run, row), *x = stream.x + size_t(row) * width;
    modalities(s, l, x, own.scratch, said);
    shares_of(s, l.altup_correct, s.streams, said, shares);
    for (int k = 0; k < width; k += 16) {
      const F off = sub(load(x + k), load(at + k));
      for (int i = 0; i < s.streams; i++) {
        float* one = at + size_t(i) * width + k;
        store(one, fma(off, set(shares[i] + 1.f), load(one)));
      }
      store(x + k, mul(load(at + k), load(l.altup_scale + k)));
    }
  }
  team_barrier(*run.team);
}

// Adds what a layer makes of what it is given to all streams but the first.
inline void give_streams(const Run& run, const Layer& l, int layer, const Stream& stream,
                         const ThreadScratch& own, int member) {
  const Shape& s = run.model->shape;
  const int width = s.hidden_size;
  open_given(run, l, layer, stream, nullptr, own, member);
  const Source source = plain_source(run.gated, padded(s.per_layer_size), stream.rows,
                                     s.per_layer_size, nullptr, nullptr, l.given_out, l.given_out);
  const Prepared x = prepare(run, source, own, member);
  const Part part{&l.given_out, nullptr, -1};
  product(run, source, x, &part, 1, {STORE, run.added, size_t(width), 1.f});
  team_barrier(*run.team);
  int from, to;
  share(run, run.rows, member, from, to);
  for (int row = from; row < to; row++) {
    float *at = streams_at(run, row), *added = run.added + size_t(row) * width;
    norm_row(added, l.given_norm, s.norm_eps, width, added);
    for (int i = 1; i < s.streams; i++)
      for (int k = 0; k < width; k += 16) {
        float* one = at + size_t(i) * width + k;
        store(one, add(load(one), load(added + k)));
      }
  }
  team_barrier(*run.team);
}

// One stream again, of the rows whose logits are wanted: the mean of the first and of what a matrix
// makes of each other, as large as it.
inline Stream merge_streams(const Run& run, const ThreadScratch& own, int member) {
  const Shape& s = run.model->shape;
  const int width = s.hidden_size;
  Stream out{run.output, run.output + size_t(run.wanted) * width, run.wanted, run.output_adapter};
  int from, to;
  share(run, run.wanted, member, from, to);
  for (int i = from; i < to; i++)
    memcpy(out.x + size_t(i) * width, streams_at(run, run.output_rows[i]), size_t(width) * 4);
  for (int other = 1; other < s.streams; other++) {
    for (int i = from; i < to; i++)
      memcpy(run.gated + size_t(i) * width,
             streams_at(run, run.output_rows[i]) + size_t(other) * width, size_t(width) * 4);
    team_barrier(*run.team);
    const Matrix& m = run.model->stream_out[other - 1];
    const Source source = plain_source(run.gated, width, run.wanted, width, nullptr, nullptr, m, m);
    const Prepared x = prepare(run, source, own, member);
    const Part part{&m, nullptr, -1};
    product(run, source, x, &part, 1, {STORE, run.added, size_t(width), 1.f});
    team_barrier(*run.team);
    for (int i = from; i < to; i++) {
      const float* added = run.added + size_t(i) * width;
      const float wanted = mean_square(streams_at(run, run.output_rows[i]), width);
      const F by = set(as_large(added, width, wanted));
      float* x = out.x + size_t(i) * width;
      for (int k = 0; k < width; k += 16) store(x + k, fma(load(added + k), by, load(x + k)));
    }
  }
  for (size_t k = size_t(from) * width; k < size_t(to) * width; k += 16)
    store(out.x + k, mul(load(out.x + k), set(1.f / float(s.streams))));
  team_barrier(*run.team);
  return out;
}

}  // namespace
