// What each layer is given of a row beside the stream: some numbers for each of them, made of the
// row's token and its embedding.
//
//   given  [rows][layers][numbers], to a multiple of STRIP
//
// A layer opens a gate for them by its own rows, and adds through a norm what a matrix makes of
// them. Source: Gemma 3n and 4, as transformers' `models/gemma4` computes it.
#pragma once
#include "product.h"

namespace {

using namespace quietchoir;

constexpr float OF_TWO = 0.70710678f;  // of the sum of two, so that it is as large as each

// Tokens that no layer is given anything of stand for the first one.
inline int given_token(const Shape& s, int token) {
  return s.per_layer_tokens && token >= s.per_layer_tokens ? 0 : token;
}

// Makes them for all rows; a barrier stands behind.
inline void make_given(const Run& run, const Stream& stream, const ThreadScratch& own, int member) {
  const Model& model = *run.model;
  const Shape& s = model.shape;
  const int width = given_width(s), each = s.per_layer_size;
  const size_t stride = strips_of(width);
  const Source source =
      plain_source(stream.x, padded(s.hidden_size), stream.rows, s.hidden_size, nullptr, nullptr,
                   model.given_projection, model.given_projection);
  const Prepared x = prepare(run, source, own, member);
  const Part part{&model.given_projection, nullptr, -1};
  product(run, source, x, &part, 1, {STORE, run.given, stride, 1.f});
  team_barrier(*run.team);
  const float less = 1.f / __builtin_sqrtf(float(s.hidden_size)),
              more = __builtin_sqrtf(float(each));
  int from, to;
  share(run, run.rows, member, from, to);
  for (int row = from; row < to; row++) {
    float* given = run.given + size_t(row) * stride;
    for (int k = 0; k < width; k++) given[k] *= less;
    for (int layer = 0; layer < s.num_layers; layer++)
      norm_row(given + size_t(layer) * each, model.given_projection_norm, s.norm_eps, each,
               given + size_t(layer) * each);
    decode_row(model.given_kind,
               model.given + model.given_row * size_t(given_token(s, run.tokens[row])), width,
               own.scratch);
    for (int k = 0; k < width; k++) given[k] = (given[k] + own.scratch[k] * more) * OF_TWO;
  }
  team_barrier(*run.team);
}

// Opens a gate for a layer's own numbers by the stream; `which`: the step's row of each of the
// stream's, or null where those are all rows.
inline void open_given(const Run& run, const Layer& l, int layer, const Stream& stream,
                       const int32_t* which, const ThreadScratch& own, int member) {
  const Shape& s = run.model->shape;
  const int each = s.per_layer_size, width = padded(each);
  {
    const Source source = plain_source(stream.x, padded(s.hidden_size), stream.rows, s.hidden_size,
                                       nullptr, nullptr, l.given_gate, l.given_gate);
    const Prepared x = prepare(run, source, own, member);
    const Part part{&l.given_gate, nullptr, -1};
    product(run, source, x, &part, 1, {STORE, run.gated, size_t(width), 1.f});
    team_barrier(*run.team);
  }
  int from, to;
  share(run, stream.rows, member, from, to);
  for (int row = from; row < to; row++) {
    float* gated = run.gated + size_t(row) * width;
    const float* given = run.given + size_t(which ? which[row] : row) * strips_of(given_width(s)) +
                         size_t(layer) * each;
    for (int k = 0; k < each; k += 16)
      store(gated + k, mul(gate(load(gated + k), s.activation), load(given + k)));
    for (int k = each; k < width; k++) gated[k] = 0;
  }
  team_barrier(*run.team);
}

// Adds to the stream what one layer makes of its own.
inline void add_given(const Run& run, const Layer& l, int layer, const Stream& stream,
                      const int32_t* which, const ThreadScratch& own, int member) {
  const int each = run.model->shape.per_layer_size;
  open_given(run, l, layer, stream, which, own, member);
  const Source source = plain_source(run.gated, padded(each), stream.rows, each, nullptr, nullptr,
                                     l.given_out, l.given_out);
  add_product(run, source, {&l.given_out, nullptr, -1}, l.given_norm, stream, own, member);
}

// Multiplies what a layer gives by its own number; a barrier stands behind.
inline void scale_stream(const Run& run, const Layer& l, const Stream& stream, int member) {
  const int width = padded(run.model->shape.hidden_size);
  int from, to;
  share(run, stream.rows, member, from, to);
  for (int row = from; row < to; row++) {
    float* x = stream.x + size_t(row) * width;
    for (int k = 0; k < width; k += 16) store(x + k, mul(load(x + k), set(*l.scale)));
  }
  team_barrier(*run.team);
}

}  // namespace
