// A short convolution, which stands in the place of attention in some layers.
//
//   conv   [rows][opening gate | closing gate | numbers], each of the stream's width
//
// What the opening gate lets through goes into the cache's block of its token, in bf16, and is read
// from there, a row's own too: so a row does not depend on the step in which those before it were
// computed, and whatever keeps, shares or rolls back blocks does so with these.
// Source: Liquid AI 2025 (LFM2), as transformers' `models/lfm2` computes it.
#pragma once
#include "product.h"

namespace {

using namespace quietchoir;

// Where one token's row stands.
inline uint16_t* conv_row(const Model& model, const Layer& layer, const Span& span, int position) {
  uint8_t* block =
      model.cache.memory + size_t(span.table[position / BLOCK]) * model.cache.block + layer.cache;
  return (uint16_t*)block + size_t(position % BLOCK) * model.shape.hidden_size;
}

// The rows of this step into the cache.
inline void open_rows(const Run& run, int layer, const Stream& stream, const ThreadScratch& own,
                      int member) {
  const Model& model = *run.model;
  const Layer& l = model.layers[layer];
  const int width = model.shape.hidden_size;
  const size_t stride = padded(3 * width);
  const Source source = plain_source(stream.x, padded(width), stream.rows, width, l.attention_norm,
                                     l.attention_norm_bias, l.conv_in, l.conv_in);
  const Prepared x = prepare(run, source, own, member);
  const Part part{&l.conv_in, nullptr, 0};
  product(run, source, x, &part, 1, {STORE, run.conv, stride, 1.f});
  team_barrier(*run.team);
  int from, to;
  share(run, stream.rows, member, from, to);
  for (int row = from; row < to; row++) {
    const Span& span = run.span[run.row_span[row]];
    const float* made = run.conv + row * stride;
    uint16_t* at = conv_row(model, l, span, span.position + row - span.row);
    for (int k = 0; k < width; k++) at[k] = to_bf16(made[k] * made[2 * width + k]);
  }
}

// Each row's sum over the last ones, through the closing gate; rows before the first are zeros.
inline void convolve(const Run& run, int layer, int member) {
  const Model& model = *run.model;
  const Layer& l = model.layers[layer];
  const int width = model.shape.hidden_size, taps = model.shape.conv_kernel;
  int from, to;
  share(run, run.rows, member, from, to);
  for (int row = from; row < to; row++) {
    const Span& span = run.span[run.row_span[row]];
    const int position = span.position + row - span.row,
              first = position + 1 < taps ? taps - 1 - position : 0;
    const uint16_t* seen[MOST_TAPS];
    for (int tap = first; tap < taps; tap++)
      seen[tap] = conv_row(model, l, span, position - taps + 1 + tap);
    const float* gate = run.conv + size_t(row) * padded(3 * width) + width;
    float* out = run.mixed + size_t(row) * mixed_width(model.shape);
    for (int k = 0; k < width; k += 16) {
      F sum = zero();
      for (int tap = first; tap < taps; tap++)
        sum = fma(load_bf16(seen[tap] + k), load(l.conv_kernel + size_t(tap) * width + k), sum);
      store(out + k, mul(sum, load(gate + k)));
    }
  }
}

}  // namespace
