// One batch of texts through an encoder, as every member of the team runs it.
//
// The order of a layer is forward.h's, but every text is seen whole: keys and values are laid out
// for one layer and forgotten. Queries meet them in float32. Texts of any lengths stand in one
// batch, without padding, and no text's vector depends on the others to the last bit.
// Source: Devlin et al., "BERT", 2019; Warner et al., "ModernBERT", 2024, for batches without
// padding.
#pragma once
#include "attention.h"
#include "encoder_run.h"
#include "product.h"

namespace {

using namespace quietchoir;

inline void encoder_share(const EncoderRun& run, int items, int member, int& from, int& to) {
  from = int(int64_t(items) * member / team_size(*run.team));
  to = int(int64_t(items) * (member + 1) / team_size(*run.team));
}

// (x - mean) / deviation * weight + bias.
inline void layer_norm_row(const float* x, const Norm& norm, float eps, int columns, float* out) {
  F all = zero(), squares = zero();
  for (int k = 0; k < columns; k += 16) all = add(all, load(x + k));
  const F mean = set(sum(all) / float(columns));
  for (int k = 0; k < columns; k += 16) {
    const F off = sub(load(x + k), mean);
    squares = fma(off, off, squares);
  }
  const F scale = set(1.f / __builtin_sqrtf(sum(squares) / float(columns) + eps));
  for (int k = 0; k < columns; k += 16) {
    const F off = mul(mul(sub(load(x + k), mean), scale), load(norm.weight + k));
    store(out + k, norm.bias ? add(off, load(norm.bias + k)) : off);
  }
}

inline void apply_norm(const EncoderShape& shape, const float* x, const Norm& norm, float* out) {
  if (shape.rms) norm_row(x, norm.weight, shape.norm_eps, shape.hidden_size, out);
  else layer_norm_row(x, norm, shape.norm_eps, shape.hidden_size, out);
}

inline void encoder_embed(const EncoderRun& run, int member, float* scratch) {
  const Encoder& encoder = *run.encoder;
  const EncoderShape& shape = encoder.shape;
  const int width = shape.hidden_size, half = shape.head_dim / 2;
  int from, to;
  encoder_share(run, run.rows, member, from, to);
  for (int row = from; row < to; row++) {
    float* x = run.x + size_t(row) * width;
    decode_row(encoder.embedding_kind,
               encoder.embedding + encoder.embedding_row * size_t(run.tokens[row]), width, x);
    const Text& text = run.text[run.row_text[row]];
    const int position = row - text.row;
    const float* second = position >= text.second ? encoder.second_shift : nullptr;
    const F scale = set(shape.embedding_scale);
    for (int k = 0; k < width; k += 16) {
      F sum = mul(load(x + k), scale);
      if (encoder.position) sum = add(sum, load(encoder.position + size_t(position) * width + k));
      if (encoder.embedding_shift) sum = add(sum, load(encoder.embedding_shift + k));
      if (second) sum = add(sum, load(second + k));
      store(x + k, sum);
    }
    if (encoder.embedding_norm.weight) {
      apply_norm(shape, x, encoder.embedding_norm, scratch);
      memcpy(x, scratch, size_t(shape.hidden_size) * 4);
    }
    for (int rope = 0; rope < shape.ropes; rope++) {
      float* cos_sin = run.cos_sin + (size_t(rope) * run.rows + row) * shape.head_dim;
      for (int i = 0; i < half; i++) {
        const float angle = float(position) * encoder.frequencies[rope * half + i];
        cos_sin[i] = cosf(angle), cos_sin[half + i] = sinf(angle);
      }
    }
  }
}

// Makes `columns` numbers of each row ready for tiles: through a norm, if there is one.
inline Panels encoder_prepare(const EncoderRun& run, const float* x, int columns, const Norm& norm,
                              const Matrix& reader, int member, float* scratch) {
  Panels panels;
  panels.rows = run.rows, panels.columns = columns, panels.memory = run.panels;
  int from, to;
  encoder_share(run, run.rows, member, from, to);
  for (int row = from; row < to; row++) {
    const float* own = x + size_t(row) * panels.columns;
    if (norm.weight) {
      apply_norm(run.encoder->shape, own, norm, scratch);
      own = scratch;
    }
    if (wants_integers(reader)) quantise_row(own, panels, row);
    else keep_row(own, panels.columns, panels.at(row / MR), row % MR);
  }
  team_barrier(*run.team);
  return panels;
}

inline F biased(const float* tile, const float* bias, int strip) {
  const F out = load(tile);
  return bias ? add(out, load(bias + strip * STRIP)) : out;
}

// What becomes of a product's 16 numbers, where `to` stood before. No lambdas: GCC compiles those
// for the processor that is named nowhere.
struct Stored {
  F operator()(F sum, const float*) const { return sum; }
};
struct Added {
  F operator()(F sum, const float* to) const { return add(sum, load(to)); }
};
struct Activated {
  int activation;
  F operator()(F sum, const float*) const { return gate(sum, activation); }
};

// Rows times some matrices, side by side in `out`; `finish(sum, to)` says what is stored.
template <class Finish>
inline void encoder_product(const EncoderRun& run, const EncoderLayer& layer, const Role* roles,
                            int count, const Panels& panels, float* out, size_t stride,
                            Finish finish) {
  int strips = 0, from, to;
  for (int i = 0; i < count; i++) strips += layer.matrix[roles[i]].strips;
  float tile[MR * STRIP];
  while (team_take(*run.team, strips, 1, from, to))
    for (int at = from; at < to; at++) {
      int which = 0, strip = at;
      while (strip >= layer.matrix[roles[which]].strips)
        strip -= layer.matrix[roles[which++]].strips;
      const Matrix& m = layer.matrix[roles[which]];
      const float* bias = layer.bias[roles[which]];
      for (int p = 0; p < panels.count(); p++) {
        const Panel panel = panels.at(p);
        TILES[m.kind][panel.height - 1](m, strip, panel, tile);
        for (int t = 0; t < panel.height; t++) {
          float* to_row = out + size_t(p * MR + t) * stride + size_t(at) * STRIP;
          store(to_row, finish(biased(tile + t * STRIP, bias, strip), to_row));
        }
      }
    }
  team_barrier(*run.team);
}

// activation(gate x) * (up x)
inline void encoder_gated(const EncoderRun& run, const EncoderLayer& layer, const Panels& panels,
                          size_t stride) {
  const Matrix &gates = layer.matrix[GATE], &ups = layer.matrix[UP];
  const int activation = run.encoder->shape.activation;
  float a[MR * STRIP], b[MR * STRIP];
  int from, to;
  while (team_take(*run.team, gates.strips, 1, from, to))
    for (int strip = from; strip < to; strip++)
      for (int p = 0; p < panels.count(); p++) {
        const Panel panel = panels.at(p);
        TILES[gates.kind][panel.height - 1](gates, strip, panel, a);
        TILES[ups.kind][panel.height - 1](ups, strip, panel, b);
        for (int t = 0; t < panel.height; t++)
          store(run.gated + size_t(p * MR + t) * stride + size_t(strip) * STRIP,
                mul(gate(biased(a + t * STRIP, layer.bias[GATE], strip), activation),
                    biased(b + t * STRIP, layer.bias[UP], strip)));
      }
  team_barrier(*run.team);
}

// Norm and rope of one head, in place.
inline void turn_head(float* head, int size, const Norm& norm, float eps, const float* cos_sin,
                      float scale) {
  if (norm.weight) norm_row(head, norm.weight, eps, size, head);
  const int half = size / 2;
  for (int i = 0; i < size; i++) head[i] *= scale;
  if (!cos_sin) return;
  for (int i = 0; i < half; i++) {
    const float first = head[i], second = head[half + i];
    head[i] = first * cos_sin[i] - second * cos_sin[half + i];
    head[half + i] = second * cos_sin[i] + first * cos_sin[half + i];
  }
}

// Rope; keys by LANES tokens and values beside each other, for this layer alone.
inline void lay_out_keys(const EncoderRun& run, const EncoderLayer& layer, int member) {
  const EncoderShape& shape = run.encoder->shape;
  const int size = shape.head_dim, group = shape.num_heads / shape.num_kv_heads;
  const size_t stride = size_t(shape.num_heads + 2 * shape.num_kv_heads) * size;
  int from, to;
  encoder_share(run, run.rows, member, from, to);
  for (int row = from; row < to; row++) {
    const Text& text = run.text[run.row_text[row]];
    const int place = row - text.row, lane = place % LANES;
    float* qkv = run.qkv + size_t(row) * stride;
    const float* cos_sin =
        layer.rope < 0 ? nullptr : run.cos_sin + (size_t(layer.rope) * run.rows + row) * size;
    for (int h = 0; h < shape.num_heads; h++)
      turn_head(qkv + size_t(h) * size, size, layer.norm[ENCODER_QUERY_NORM], shape.norm_eps,
                cos_sin, shape.attention_scale);
    for (int h = 0; h < shape.num_kv_heads; h++) {
      float* key = qkv + size_t(group * shape.num_kv_heads + h) * size;
      const float* value = key + size_t(shape.num_kv_heads) * size;
      turn_head(key, size, layer.norm[ENCODER_KEY_NORM], shape.norm_eps, cos_sin, 1.f);
      const size_t block = size_t(h) * run.blocks + text.block + place / LANES;
      float* keys = run.keys + block * size * LANES + lane;
      for (int d = 0; d < size; d++) keys[d * LANES] = key[d];
      memcpy(run.values + (block * LANES + lane) * size, value, size_t(size) * 4);
    }
  }
  team_barrier(*run.team);
}

// Scores of H queries, `apart` numbers from each other, with the LANES tokens of one block.
template <int H>
void score_lanes(const float* query, size_t apart, int size, const float* keys, float* score,
                 size_t stride) {
  F acc[H];
  for (int h = 0; h < H; h++) acc[h] = zero();
  for (int d = 0; d < size; d++) {
    const F key = load(keys + d * LANES);
    for (int h = 0; h < H; h++) acc[h] = fma(key, set(query[h * apart + d]), acc[h]);
  }
  for (int h = 0; h < H; h++) store(score + h * stride, acc[h]);
}

// `tokens` weighted values, 16 * V numbers of each, to H queries' rows.
template <int H, int V>
void mix_lanes(const float* weight, size_t stride, const float* values, int tokens, int size,
               const float* scale, float* out, size_t apart) {
  F acc[H][V];
  for (int h = 0; h < H; h++)
    for (int v = 0; v < V; v++) acc[h][v] = zero();
  for (int t = 0; t < tokens; t++) {
    F value[V];
    for (int v = 0; v < V; v++) value[v] = load(values + size_t(t) * size + v * 16);
    for (int h = 0; h < H; h++) {
      const F w = set(weight[h * stride + t]);
      for (int v = 0; v < V; v++) acc[h][v] = fma(value[v], w, acc[h][v]);
    }
  }
  for (int h = 0; h < H; h++)
    for (int v = 0; v < V; v++) store(out + h * apart + v * 16, mul(acc[h][v], set(scale[h])));
}

using ScoreLanes = void (*)(const float*, size_t, int, const float*, float*, size_t);
using MixLanes = void (*)(const float*, size_t, const float*, int, int, const float*, float*,
                          size_t);
template <int H>
constexpr ScoreLanes score_of() {
  if constexpr (H > MR) return nullptr;
  else return score_lanes<H>;
}
template <int H, int V>
constexpr MixLanes mix_of() {
  if constexpr (H > MR) return nullptr;
  else return mix_lanes<H, V>;
}
constexpr ScoreLanes SCORE_LANES[8] = {score_of<1>(), score_of<2>(), score_of<3>(), score_of<4>(),
                                       score_of<5>(), score_of<6>(), score_of<7>(), score_of<8>()};
constexpr int MIX_VECTORS = MR == 4 ? 1 : 2;  // of values at a time: as registers allow
#define QC_MIX_LANES(H) {mix_of<H, 1>(), mix_of<H, MIX_VECTORS>()}
constexpr MixLanes MIX_LANES[8][2] = {QC_MIX_LANES(1), QC_MIX_LANES(2), QC_MIX_LANES(3),
                                      QC_MIX_LANES(4), QC_MIX_LANES(5), QC_MIX_LANES(6),
                                      QC_MIX_LANES(7), QC_MIX_LANES(8)};

// From scores to weights, exp(score - the largest); returns their sum. Lanes behind `tokens` are
// written too.
inline float softmax_row(float* score, int tokens) {
  for (int t = tokens; t % LANES; t++) score[t] = NOTHING;
  F most = set(NOTHING);
  for (int t = 0; t < tokens; t += LANES) most = largest_of(most, load(score + t));
  const F top = set(largest(most));
  F all = zero();
  for (int t = 0; t < tokens; t += LANES) {
    const F e = exponential(sub(load(score + t), top));
    store(score + t, e);
    all = add(all, e);
  }
  return sum(all);
}

// A task's queries of one head, MR at a time, against all that any of them sees.
inline void attend_text(const EncoderRun& run, const EncoderLayer& layer, const QueryTask& task,
                        int head, float* scores) {
  const EncoderShape& shape = run.encoder->shape;
  const Text& text = run.text[task.text];
  const int size = shape.head_dim;
  const size_t apart = size_t(shape.num_heads + 2 * shape.num_kv_heads) * size,
               block =
                   size_t(head / (shape.num_heads / shape.num_kv_heads)) * run.blocks + text.block,
               mixed = size_t(shape.num_heads) * size;
  const float *keys = run.keys + block * size * LANES, *values = run.values + block * LANES * size;
  for (int q = task.row; q < task.row + task.rows; q += MR) {
    const int left = task.row + task.rows - q, h = left < MR ? left : MR, last = q + h - 1;
    const int begin = layer.reach && q > layer.reach ? (q - layer.reach) / LANES * LANES : 0;
    int end = shape.causal ? last + 1 : text.rows;
    if (layer.reach && last + layer.reach + 1 < end) end = last + layer.reach + 1;
    const int tokens = end - begin;
    const size_t stride = to_multiple(tokens, LANES);
    const float* query = run.qkv + size_t(text.row + q) * apart + size_t(head) * size;
    for (int t = 0; t < tokens; t += LANES)
      SCORE_LANES[h - 1](query, apart, size, keys + size_t(begin + t) * size, scores + t, stride);
    float scale[MR];
    for (int i = 0; i < h; i++) {
      if (layer.reach || shape.causal)
        hide(scores + i * stride, begin, tokens, layer.reach ? q + i - layer.reach : 0,
             shape.causal  ? q + i + 1
             : layer.reach ? q + i + layer.reach + 1
                           : end);
      scale[i] = 1.f / softmax_row(scores + i * stride, tokens);
    }
    float* out = run.mixed + size_t(text.row + q) * mixed + size_t(head) * size;
    for (int d = 0; d < size; d += 16 * MIX_VECTORS) {
      const bool whole = size - d >= 16 * MIX_VECTORS;
      MIX_LANES[h - 1][whole](scores, stride, values + size_t(begin) * size + d, tokens, size,
                              scale, out + d, mixed);
    }
  }
}

inline void encoder_attend(const EncoderRun& run, const EncoderLayer& layer, float* scores) {
  const int heads = run.encoder->shape.num_heads;
  int from, to;
  while (team_take(*run.team, run.tasks * heads, 4, from, to))
    for (int item = from; item < to; item++)
      attend_text(run, layer, run.task[item / heads], item % heads, scores);
  team_barrier(*run.team);
}

// Product of rows with one matrix, added to the stream through its norm, wherever that stands.
inline void encoder_add(const EncoderRun& run, const EncoderLayer& layer, Role role,
                        const float* from_rows, int columns, EncoderNorm behind, int member,
                        float* scratch) {
  const EncoderShape& shape = run.encoder->shape;
  const Norm& norm = layer.norm[behind];
  const Panels panels =
      encoder_prepare(run, from_rows, columns, Norm{}, layer.matrix[role], member, scratch);
  const size_t width = shape.hidden_size;
  if (!norm.weight || shape.norm_sums) {
    encoder_product(run, layer, &role, 1, panels, run.x, width, Added{});
  } else {  // the place of queries and keys is free by now, and as wide at least
    encoder_product(run, layer, &role, 1, panels, run.qkv, width, Stored{});
  }
  if (!norm.weight) return;
  int from, to;
  encoder_share(run, run.rows, member, from, to);
  for (int row = from; row < to; row++) {
    float* x = run.x + size_t(row) * width;
    if (shape.norm_sums) {
      apply_norm(shape, x, norm, scratch);
      memcpy(x, scratch, size_t(shape.hidden_size) * 4);
    } else {
      apply_norm(shape, run.qkv + size_t(row) * width, norm, scratch);
      for (int k = 0; k < shape.hidden_size; k += 16)
        store(x + k, add(load(x + k), load(scratch + k)));
    }
  }
  team_barrier(*run.team);
}

// One vector a text.
inline void pool(const EncoderRun& run, int member, float* scratch) {
  const Encoder& encoder = *run.encoder;
  const EncoderShape& shape = encoder.shape;
  const int width = shape.hidden_size;
  int from, to;
  encoder_share(run, run.texts, member, from, to);
  for (int i = from; i < to; i++) {
    const Text& text = run.text[i];
    float* out = run.out + size_t(i) * shape.hidden_size;
    const int first = shape.pooling == LAST ? text.rows - 1 : 0,
              last = shape.pooling == FIRST ? 1 : text.rows;
    for (int k = 0; k < shape.hidden_size; k++) out[k] = 0;
    for (int r = first; r < last; r++) {
      const float* x = run.x + size_t(text.row + r) * width;
      if (encoder.final_norm.weight) apply_norm(shape, x, encoder.final_norm, scratch), x = scratch;
      for (int k = 0; k < shape.hidden_size; k++) out[k] += x[k];
    }
    for (int k = 0; k < shape.hidden_size; k++) out[k] /= float(last - first);
  }
}

inline void encode(EncoderRun& run, int member) {
  const Encoder& encoder = *run.encoder;
  const EncoderShape& shape = encoder.shape;
  float* scratch = (float*)(run.thread_scratch + run.thread_scratch_bytes * member);
  const int mixed = shape.num_heads * shape.head_dim,
            widest = mixed > shape.intermediate_size ? mixed : shape.intermediate_size;
  float* scores = scratch + (widest > shape.hidden_size ? widest : shape.hidden_size);
  static constexpr Role IN[3] = {QUERY, KEY, VALUE}, ALONE[1] = {UP};
  encoder_embed(run, member, scratch);
  team_barrier(*run.team);
  for (int number = 0; number < shape.num_layers; number++) {
    const EncoderLayer& layer = encoder.layers[number];
    Panels panels =
        encoder_prepare(run, run.x, shape.hidden_size, layer.norm[ENCODER_ATTENTION_NORM],
                        layer.matrix[QUERY], member, scratch);
    encoder_product(run, layer, IN, 3, panels, run.qkv,
                    size_t(shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim, Stored{});
    lay_out_keys(run, layer, member);
    encoder_attend(run, layer, scores);
    encoder_add(run, layer, OUTPUT, run.mixed, mixed, ENCODER_AFTER_ATTENTION, member, scratch);
    panels = encoder_prepare(run, run.x, shape.hidden_size, layer.norm[ENCODER_MLP_NORM],
                             layer.matrix[UP], member, scratch);
    const size_t stride = shape.intermediate_size;
    if (shape.gated) encoder_gated(run, layer, panels, stride);
    else
      encoder_product(run, layer, ALONE, 1, panels, run.gated, stride, Activated{shape.activation});
    encoder_add(run, layer, DOWN, run.gated, shape.intermediate_size, ENCODER_AFTER_MLP, member,
                scratch);
  }
  pool(run, member, scratch);
}

}  // namespace
