// One step through the model, as every member of the team runs it.
//
// The order of a layer: rows are normed and quantised; queries, keys and values in one pass; rope,
// and keys and values into the cache; attention; its product added to the stream; then the
// feed-forward in two passes. A barrier stands wherever the next part reads what another member
// wrote.
#pragma once
#include "attention.h"
#include "convolution.h"
#include "delta.h"
#include "experts.h"
#include "given.h"
#include "latent.h"
#include "product.h"
#include "streams.h"

// From the C library, whatever the set.
extern "C" float cosf(float);
extern "C" float sinf(float);

namespace {

using namespace quietchoir;

// Zeros behind a row, up to its padded width; products write no further than their last strip.
inline void pad_row(float* rows, int row, int width) {
  for (int k = width; k < padded(width); k++) rows[size_t(row) * padded(width) + k] = 0;
}

inline void embed(const Run& run, int member) {
  const Model& model = *run.model;
  const Shape& shape = model.shape;
  const int half = shape.rope_dim / 2;
  int from, to;
  share(run, run.rows, member, from, to);
  for (int row = from; row < to; row++) {
    float* x = run.x + size_t(row) * padded(shape.hidden_size);
    decode_row(model.embedding_kind,
               model.embedding + model.embedding_row * size_t(run.tokens[row]), shape.hidden_size,
               x);
    if (shape.embedding_scale != 1.f)
      for (int k = 0; k < shape.hidden_size; k++) x[k] *= shape.embedding_scale;
    if (model.embedding_norm)
      norm_stream_row(shape, x, model.embedding_norm, model.embedding_norm_bias, shape.hidden_size,
                      x);
    const Span& span = run.span[run.row_span[row]];
    const int at = span.position + row - span.row;
    if (model.positions) {
      const float* added = model.positions + size_t(at) * shape.hidden_size;
      for (int k = 0; k < shape.hidden_size; k++) x[k] += added[k];
    }
    pad_row(run.x, row, shape.hidden_size);
    for (int k = shape.num_heads * shape.head_dim; k < mixed_width(shape); k++)
      run.mixed[size_t(row) * mixed_width(shape) + k] = 0;
    const float position = float(at);
    for (int rope = 0; rope < shape.ropes; rope++) {
      float* cos_sin = run.cos_sin + (size_t(rope) * run.rows + row) * shape.head_dim;
      for (int i = 0; i < half; i++) {
        const float angle = position * model.frequencies[rope * half + i];
        cos_sin[i] = cosf(angle) * model.magnitudes[rope],
        cos_sin[half + i] = sinf(angle) * model.magnitudes[rope];
      }
    }
  }
}

// Norm, rope and scale of one head, in place; rope turns its first 2 * half numbers, by cosines and
// the sines behind all of those.
inline void rope_head(float* head, int size, const float* norm, const Shape& shape,
                      const float* cos_sin, int half, float scale) {
  if (norm && shape.norms_behind_rope) {
    rope_head(head, size, nullptr, shape, cos_sin, half, 1.f);
    cos_sin = nullptr;
  }
  const float* sines = cos_sin ? cos_sin + shape.rope_dim / 2 : nullptr;
  if (norm) norm_row(head, norm, shape.norm_eps, size, head);
  for (int i = cos_sin ? 2 * half : 0; i < size; i++) head[i] *= scale;
  if (!cos_sin) return;
  for (int i = 0; i < half; i++) {
    const float first = head[i], second = head[half + i];
    head[i] = (first * cos_sin[i] - second * sines[i]) * scale;
    head[half + i] = (second * cos_sin[i] + first * sines[i]) * scale;
  }
}

// Norms of queries and keys over all heads of a row, for families that do not norm each head.
inline void norm_all_heads(const Run& run, int layer, int member) {
  const Shape& shape = run.model->shape;
  const Layer& own = run.model->layers[layer];
  const int queries = shape.num_heads * shape.head_dim, keys = shape.num_kv_heads * shape.head_dim;
  int from, to;
  share(run, run.rows, member, from, to);
  for (int row = from; row < to; row++) {
    float* qkv = run.qkv + size_t(row) * (queries + 2 * keys);
    norm_row(qkv, own.query_norm, shape.norm_eps, queries, qkv);
    norm_row(qkv + queries, own.key_norm, shape.norm_eps, keys, qkv + queries);
  }
  team_barrier(*run.team);
}

// What a query at this position is multiplied by where rope does not turn it.
// Source: Nakanishi 2025 (scalable softmax), as transformers' `models/llama4` has it.
inline float growth_at(const Shape& shape, int position) {
  if (!shape.temperature) return 1.f;
  const int passed = (position + 1) / shape.temperature_floor;
  return 1.f + shape.temperature * log1pf(float(passed));
}

// Rope of all queries and keys; keys and values into the cache.
inline void rope_and_write_kv(const Run& run, int layer, int member) {
  const Model& model = *run.model;
  const Shape& shape = model.shape;
  const Layer& own = model.layers[layer];
  const int size = own.head_dim, heads = own.kv_heads, group = group_of(shape, own),
            half = turned_in(shape, own) / 2;
  const size_t stride = qkv_width(shape);
  const float *query_norm = shape.wide_norms ? nullptr : own.query_norm,
              *key_norm = shape.wide_norms ? nullptr : own.key_norm;
  if (shape.wide_norms && own.query_norm && own.key_norm) norm_all_heads(run, layer, member);
  int from, to;
  share(run, run.rows * heads, member, from, to);
  for (int item = from; item < to; item++) {
    const int row = item / heads, head = item % heads;
    const Span& span = run.span[run.row_span[row]];
    const int position = span.position + row - span.row;
    float* qkv = run.qkv + size_t(row) * stride;
    const float* cos_sin =
        own.rope < 0 ? nullptr : run.cos_sin + (size_t(own.rope) * run.rows + row) * shape.head_dim;
    for (int h = head * group; h < (head + 1) * group; h++)
      rope_head(qkv + size_t(h) * size, size, query_norm, shape, cos_sin, half,
                shape.attention_scale * (cos_sin ? 1.f : growth_at(shape, position)));
    if (model.cache.type != KV_BF16)
      for (int h = head * group; h < (head + 1) * group; h++) rotate(qkv + size_t(h) * size, size);
    if (own.source != layer) continue;  // that one wrote its keys and values
    float *key = qkv + size_t(shape.num_heads + head) * size, *value = key + size_t(heads) * size;
    rope_head(key, size, key_norm, shape, cos_sin, half, 1.f);
    if (own.value_norm) norm_row(value, own.value_norm, shape.norm_eps, size, value);
    if (model.cache.type != KV_BF16) rotate(key, size);
    uint8_t* at = model.cache.memory + own.cache +
                  size_t(span.table[position / BLOCK]) * model.cache.block +
                  head * model.cache.one(size);
    write_kv(at, model.cache.type, position % BLOCK, size, key, value);
  }
}

// Where the mixed values of query `q` of a task belong.
inline float* mixed_at(const Run& run, int layer, const AttentionTask& task, int head, int q) {
  const Shape& shape = run.model->shape;
  const Layer& own = run.model->layers[layer];
  const int size = own.head_dim, group = group_of(shape, own);
  return run.mixed + size_t(task.row + q / group) * mixed_width(shape) +
         size_t(head * group + q % group) * size;
}

// Divides by the sum of weights, a head's sink among them: its weight mixes nothing.
inline void finish(const OnlineSoftmax& softmax, int size, const float* sink) {
  const float beside = sink ? exponential_of(*sink - softmax.top) : 0.f;
  const F scale = set(1.f / (softmax.total + beside));
  for (int d = 0; d < size; d += 16) store(softmax.out + d, mul(load(softmax.out + d), scale));
}

// The sink of query `q` of a task, or null.
inline const float* sink_of(const Run& run, int layer, int head, int q) {
  const int group = group_of(run.model->shape, run.model->layers[layer]);
  const float* sinks = run.model->layers[layer].sinks;
  return sinks ? sinks + head * group + q % group : nullptr;
}

// Queries of a task, side by side, and which tokens each sees.
inline void gather(const Run& run, const AttentionTask& task, int head, const Layer& own,
                   const AttentionScratch& s) {
  const Shape& shape = run.model->shape;
  const Span& span = run.span[task.span];
  const int size = own.head_dim, group = group_of(shape, own), window = own.window;
  const size_t stride = qkv_width(shape);
  for (int r = 0; r < task.rows; r++) {
    const float* q = run.qkv + size_t(task.row + r) * stride + size_t(head) * group * size;
    memcpy(s.query + size_t(r) * group * size, q, size_t(group) * size * 4);
    const int end = span.position + task.row + r - span.row + 1;
    const int start = window < 0               ? (end - 1) / -window * -window
                      : window && end > window ? end - window
                                               : 0;
    const float* slopes = run.model->slopes;
    for (int h = 0; h < group; h++) {
      s.from[r * group + h] = start, s.to[r * group + h] = end;
      s.slope[r * group + h] = slopes ? slopes[head * group + h] : 0.f;
    }
  }
}

// Whether queries and weights stay float32, as all activations do beside plain numbers.
inline bool is_exact(const Model& model, const Layer& layer) {
  return model.terms == MOST_TERMS || !wants_integers(layer.matrix[OUTPUT]);
}

inline float far_of(const Model& model, const Layer& layer) {
  return is_exact(model, layer) ? FAR_EXACT : FAR;
}

inline void quantise_queries(const AttentionScratch& s, int queries, const HeadCache& cache) {
  for (int q = 0; q < queries; q++) {
    const int first = q / QUANTISED_MR * QUANTISED_MR,
              rows = queries - first < QUANTISED_MR ? queries - first : QUANTISED_MR;
    s.quantised(first, rows, cache.size)
        .put(s.query + size_t(q) * cache.size, q - first, rows, cache.type, cache.size);
  }
}

// A task's result for one chunk of its context, when the context is cut.
inline float* partial_of(const Run& run, int layer, const AttentionTask& task, int head, int chunk,
                         int query) {
  const Layer& own = run.model->layers[layer];
  const int size = own.head_dim, queries = task.rows * group_of(run.model->shape, own);
  return run.partials + task.partial +
         ((size_t(head) * task.chunks + chunk) * queries + query) * (size + 2);
}

// One task of one key head at one split of its context.
inline void attend_task(const Run& run, int layer, const AttentionTask& task, int head, int split,
                        const ThreadScratch& own) {
  const Model& model = *run.model;
  const Shape& shape = model.shape;
  const Span& span = run.span[task.span];
  const Layer& there = model.layers[layer];
  const int size = there.head_dim, queries = task.rows * group_of(shape, there);
  const HeadCache cache(model.cache, there.cache, head, size, is_exact(model, there));
  const AttentionScratch s(own.attention, run.task_queries, size, far_of(model, there));
  gather(run, task, head, there, s);
  const int begin = s.from[0], end = s.to[queries - 1];
  if (cache.type != KV_BF16) quantise_queries(s, queries, cache);
  if (cache.pairs)
    for (int i = 0; i < queries * size; i += 16) store_bf16(s.narrow() + i, load(s.query + i));
  for (int q = 0; q < queries; q++)
    s.softmax[q] = {mixed_at(run, layer, task, head, q), NOTHING, 0};
  const int from = int(int64_t(task.chunks) * split / task.splits),
            to = int(int64_t(task.chunks) * (split + 1) / task.splits);
  fetch_chunk(cache, span.table, from, begin, end);
  for (int chunk = from; chunk < to; chunk++) {
    if (chunk + 1 < to) fetch_chunk(cache, span.table, chunk + 1, begin, end);
    const int first = chunk * CHUNK > begin ? chunk * CHUNK : begin,
              last = chunk * CHUNK + CHUNK < end ? chunk * CHUNK + CHUNK : end;
    if (first < last)
      attend_chunk(s, queries, cache, span.table, first, last, shape.attention_softcap);
    for (int q = 0; q < queries; q++) {
      const bool sees = s.from[q] < last && s.to[q] > first && first < last;
      if (task.splits == 1) {
        if (sees)
          s.softmax[q].add_chunk(s.out + size_t(q) * size, s.top[q], s.total[q], size, s.farthest);
        continue;
      }
      float* part = partial_of(run, layer, task, head, chunk, q);
      memcpy(part, s.out + size_t(q) * size, size_t(size) * 4);
      part[size] = sees ? s.top[q] : NOTHING, part[size + 1] = s.total[q];
    }
  }
  if (task.splits == 1)
    for (int q = 0; q < queries; q++) finish(s.softmax[q], size, sink_of(run, layer, head, q));
}

// The splits of one task of one key head together.
inline void combine_splits(const Run& run, int layer, const AttentionTask& task, int head) {
  const Layer& own = run.model->layers[layer];
  const int size = own.head_dim, queries = task.rows * group_of(run.model->shape, own);
  for (int q = 0; q < queries; q++) {
    OnlineSoftmax softmax{mixed_at(run, layer, task, head, q), NOTHING, 0};
    for (int chunk = 0; chunk < task.chunks; chunk++) {
      const float* part = partial_of(run, layer, task, head, chunk, q);
      if (part[size] != NOTHING)
        softmax.add_chunk(part, part[size], part[size + 1], size, far_of(*run.model, own));
    }
    finish(softmax, size, sink_of(run, layer, head, q));
  }
}

inline void attend(const Run& run, int layer, const ThreadScratch& own) {
  const int heads = run.model->layers[layer].kv_heads;
  int items = 0, from, to;
  bool cut = false;
  for (int i = 0; i < run.tasks; i++)
    items += heads * run.task[i].splits, cut |= run.task[i].splits > 1;
  while (team_take(*run.team, items, 1, from, to)) {
    int which = 0, before = 0;
    for (int item = from; item < to; item++) {
      while (item - before >= heads * run.task[which].splits)
        before += heads * run.task[which++].splits;
      attend_task(run, layer, run.task[which], (item - before) / run.task[which].splits,
                  (item - before) % run.task[which].splits, own);
    }
  }
  if (!cut) return;
  team_barrier(*run.team);
  while (team_take(*run.team, run.tasks * heads, 1, from, to))
    for (int item = from; item < to; item++)
      if (run.task[item / heads].splits > 1)
        combine_splits(run, layer, run.task[item / heads], item % heads);
}

inline Source source_of(const Stream& stream, const float* x, int columns, const float* norm,
                        const float* norm_bias, int layer, int inputs, const Role* roles,
                        const Layer& own) {
  Source out{x,
             size_t(padded(columns)),
             stream.rows,
             columns,
             norm,
             norm_bias,
             stream.adapter,
             layer,
             inputs,
             {},
             false,
             false,
             1};
  for (int i = 0; i < inputs; i++) {
    out.role[i] = roles[i];
    if (own.matrix[roles[i]].terms > out.terms) out.terms = own.matrix[roles[i]].terms;
    (wants_integers(own.matrix[roles[i]]) ? out.quantised : out.dense) = true;
  }
  return out;
}

inline void queries_keys_values(const Run& run, int layer, const Stream& stream,
                                const ThreadScratch& own, int member) {
  const Shape& shape = run.model->shape;
  const Layer& l = run.model->layers[layer];
  static constexpr Role ROLES_IN[3] = {QUERY, KEY, VALUE};
  const int inputs = l.source == layer ? 3 : 1;
  const Source source = source_of(stream, stream.x, shape.hidden_size, l.attention_norm,
                                  l.attention_norm_bias, layer, inputs, ROLES_IN, l);
  const Prepared x = prepare(run, source, own, member);
  Part parts[3];
  for (int i = 0; i < inputs; i++) parts[i] = {&l.matrix[ROLES_IN[i]], l.bias[ROLES_IN[i]], i};
  product(run, source, x, parts, inputs, {STORE, run.qkv, qkv_width(shape), 1.f});
  team_barrier(*run.team);
  if (!shape.attention_gate) return;
  static constexpr int32_t GATED[1] = {OUT_GATE_ROLE};
  Source again = plain_source(stream.x, padded(shape.hidden_size), stream.rows, shape.hidden_size,
                              l.attention_norm, l.attention_norm_bias, l.out_gate, l.out_gate);
  adapted(again, stream.adapter, layer, 1, GATED);
  const Prepared rows = prepare(run, again, own, member);
  const Part gate{&l.out_gate, nullptr, 0};
  const size_t width = padded(shape.num_heads * shape.head_dim);
  product(run, again, rows, &gate, 1, {STORE, run.gates, width, 1.f});
  team_barrier(*run.team);
}

// What attention gave, through each row's gate.
inline void close_attention(const Run& run, int member) {
  const Shape& shape = run.model->shape;
  const int heads = shape.num_heads * shape.head_dim;
  int from, to;
  share(run, run.rows, member, from, to);
  for (int row = from; row < to; row++) {
    float* mixed = run.mixed + size_t(row) * mixed_width(shape);
    const float* gate = run.gates + size_t(row) * padded(heads);
    for (int k = 0; k < heads; k += 16)
      store(mixed + k, mul(load(mixed + k), sigmoid(load(gate + k))));
  }
  team_barrier(*run.team);
}

// The first half of the feed-forward that all rows go through, if this layer has one.
inline void open_gates(const Run& run, int layer, const Stream& stream, const ThreadScratch& own,
                       int member) {
  const Shape& shape = run.model->shape;
  const Layer& l = run.model->layers[layer];
  if (!l.matrix[UP].data) return;
  static constexpr Role IN[2] = {UP, GATE};
  const int inputs = shape.ungated ? 1 : 2, inner = l.matrix[UP].rows;
  const Source source = source_of(stream, stream.x, shape.hidden_size, l.mlp_norm, l.mlp_norm_bias,
                                  layer, inputs, IN, l);
  const Prepared x = prepare(run, source, own, member);
  if (l.gate_cutoff) {
    open_far_gates(run, l, source, x);
    return team_barrier(*run.team);
  }
  gated_product(run, source, x, {&l.matrix[GATE], l.bias[GATE], 1}, {&l.matrix[UP], l.bias[UP], 0},
                run.gated, padded(inner));
  team_barrier(*run.team);
  if (l.shared_gate) close_shared(run, l, stream, own, member);
}

inline void feed_forward(const Run& run, int layer, const Stream& stream, const ThreadScratch& own,
                         int member) {
  const Layer& l = run.model->layers[layer];
  static constexpr Role OUT[1] = {DOWN};
  if (l.experts) expert_feed_forward(run, l, stream, own, member);
  if (!l.matrix[DOWN].data) return;
  add_product(
      run, source_of(stream, run.gated, l.matrix[DOWN].columns, nullptr, nullptr, layer, 1, OUT, l),
      {&l.matrix[DOWN], l.bias[DOWN], 0}, l.post_mlp_norm, stream, own, member);
}

// Leaves only the rows whose logits are wanted; nobody will look at the others again.
inline Stream gather_output_rows(const Run& run, const Stream& all, int member) {
  const Shape& shape = run.model->shape;
  const size_t width = padded(shape.hidden_size), mixed = mixed_width(shape);
  Stream out{run.output, run.output + run.wanted * width, run.wanted, run.output_adapter};
  int from, to;
  share(run, run.wanted, member, from, to);
  for (int i = from; i < to; i++) {
    memcpy(out.x + i * width, all.x + run.output_rows[i] * width, width * 4);
    memcpy(out.mixed + i * mixed, all.mixed + run.output_rows[i] * mixed, mixed * 4);
  }
  team_barrier(*run.team);
  return out;
}

// What attention or what stands in its place gives, added to the stream; `scanned`: what a scan
// beside attention gives.
inline void add_mixed(const Run& run, int layer, const Stream& stream, const ThreadScratch& own,
                      int member, bool scanned = false) {
  static constexpr Role OUT[1] = {OUTPUT};
  const Layer& l = run.model->layers[layer];
  const bool attends = l.mixer == ATTENDS && !scanned;
  const Matrix& out = attends ? l.matrix[OUTPUT] : l.mixer == CONVOLVES ? l.conv_out : l.delta_out;
  Source source =
      attends ? source_of(stream, stream.mixed, out.columns, nullptr, nullptr, layer, 1, OUT, l)
              : plain_source(stream.mixed, 0, stream.rows, out.columns, nullptr, nullptr, out, out);
  source.stride = mixed_width(run.model->shape);
  static constexpr int32_t REMEMBERED[1] = {DELTA_OUT_ROLE};
  if (!attends && l.mixer != CONVOLVES) adapted(source, stream.adapter, layer, 1, REMEMBERED);
  add_product(run, source, {&out, attends ? l.bias[OUTPUT] : nullptr, 0}, l.post_attention_norm,
              stream, own, member);
}

constexpr float NEAR_TOP =
    9.f;  // what is farther below the largest logit is 8,000 times less likely

// The logits that may be chosen, once more with more exact activations: strips whose largest comes
// near the row's. Each row decides for itself, so its logits do not depend on others.
inline void refine_logits(const Run& run, const Source& source, const Part& head,
                          const ThreadScratch& own, int member) {
  const Shape& shape = run.model->shape;
  Matrix exact = *head.matrix;
  exact.terms = shape.head_terms;
  Source more = source;
  more.terms = exact.terms;
  Prepared x;
  x.panels.rows = 1, x.panels.columns = padded(source.columns), x.panels.terms = exact.terms;
  x.panels.memory = own.panels, x.lora = nullptr;
  const Part part{&exact, head.bias, 0};
  int from, to;
  team_barrier(*run.team);
  share(run, source.rows, member, from, to);
  for (int row = from; row < to; row++) {
    float* logits = run.logits + size_t(row) * shape.vocab_size;
    more.x = source.x + size_t(row) * source.stride;
    prepare_row(run, more, x, 0, own.scratch);
    const int whole = shape.vocab_size / STRIP;
    F most = set(NOTHING);
    for (int strip = 0; strip < whole; strip++)
      most = largest_of(most, load(logits + strip * STRIP));
    const float least = largest(most) - NEAR_TOP;
    for (int strip = 0; strip < exact.strips; strip++)
      if (strip >= whole || largest(load(logits + strip * STRIP)) >= least) {
        float out[MR * STRIP];
        multiply(run, more, x, part, strip, 0, out);
        finish_logits(shape, out, logits + strip * STRIP,
                      strip < whole ? STRIP : shape.vocab_size - strip * STRIP);
      }
  }
}

inline void forward(Run& run, int member) {
  const Model& model = *run.model;
  const Shape& shape = model.shape;
  const int mixed = mixed_width(shape), inner = widest_inner(shape), given = given_width(shape),
            wide = inner > shape.intermediate_size ? inner : shape.intermediate_size,
            most = given > wide ? given : wide, widest = mixed > most ? mixed : most;
  const ThreadScratch own(run, member, widest > shape.hidden_size ? widest : shape.hidden_size);
  Stream stream{run.x, run.mixed, run.rows, run.adapter};
  embed(run, member);
  team_barrier(*run.team);
  if (shape.per_layer_size) make_given(run, stream, own, member);
  if (shape.streams) make_streams(run, stream, own, member);
  for (int layer = 0; layer < shape.num_layers; layer++) {
    const Layer& l = model.layers[layer];
    const bool recurs = remembers(shape, l);
    if (shape.streams) foresee(run, l, stream, own, member);
    if (recurs) delta_inputs(run, layer, stream, own, member);
    if (shape.scan_beside) team_barrier(*run.team);
    if (l.mixer == CONVOLVES) {
      open_rows(run, layer, stream, own, member);
    } else if (l.mixer == ATTENDS) {
      if (shape.latent_size) latent_queries_keys_values(run, layer, stream, own, member);
      else queries_keys_values(run, layer, stream, own, member);
      rope_and_write_kv(run, layer, member);
    }
    team_barrier(*run.team);
    if (shape.streams) add_laurel(run, l, stream, own, member);
    const bool last = layer == shape.num_layers - 1;
    if (last && !run.wanted && !recurs) return;
    if (recurs) remember(run, layer, member);
    if (last && !run.wanted) return;
    if (shape.scan_beside) {
      team_barrier(*run.team);
      add_mixed(run, layer, stream, own, member, true);
    }
    if (l.mixer == CONVOLVES) convolve(run, layer, member);
    else if (l.mixer == ATTENDS) attend(run, layer, own);
    team_barrier(*run.team);
    if (l.mixer == ATTENDS && shape.attention_gate) close_attention(run, member);
    if (last && run.wanted < run.rows && !shape.streams)
      stream = gather_output_rows(run, stream, member);
    if (shape.parallel) open_gates(run, layer, stream, own, member);
    if (shape.latent_size) join_values(run, stream, member);
    add_mixed(run, layer, stream, own, member);
    if (shape.streams) halve(run, stream, member);
    if (!shape.parallel) open_gates(run, layer, stream, own, member);
    feed_forward(run, layer, stream, own, member);
    if (shape.streams) {
      correct(run, l, stream, own, member);
      give_streams(run, l, layer, stream, own, member);
    } else if (shape.per_layer_size) {
      add_given(run, l, layer, stream, stream.x == run.x ? nullptr : run.output_rows, own, member);
    }
    if (l.scale) scale_stream(run, l, stream, member);
  }
  if (shape.streams) stream = merge_streams(run, own, member);
  const bool quantised = wants_integers(model.head);
  const Source source{stream.x,
                      size_t(padded(shape.hidden_size)),
                      stream.rows,
                      shape.hidden_size,
                      model.final_norm,
                      model.final_norm_bias,
                      nullptr,
                      -1,
                      0,
                      {},
                      quantised,
                      !quantised,
                      model.head.terms};
  const Prepared x = prepare(run, source, own, member);
  const Part head{&model.head, model.head_bias, 0};
  product(run, source, x, &head, 1,
          {LOGITS, run.logits, size_t(shape.vocab_size), shape.logit_scale});
  if (quantised && shape.head_terms > model.head.terms)
    refine_logits(run, source, head, own, member);
}

inline size_t panel_bytes(int rows, int columns, int terms) {
  return Panels::bytes(rows, columns, terms);
}
inline size_t thread_scratch_bytes(int columns, int rank, int terms, int queries, int head_size) {
  return ThreadScratch::bytes(columns, rank, terms, AttentionScratch::bytes(queries, head_size));
}

// One matrix for itself; for tests.
inline size_t multiply_scratch(int rows, int columns, int terms) {
  return Panels::bytes(rows, columns, terms) + size_t(padded(columns)) * 4;
}

inline void multiply_alone(const Matrix& m, const float* x, int rows, float* out,
                           uint8_t* scratch) {
  Panels panels;
  panels.rows = rows, panels.columns = padded(m.columns), panels.memory = scratch;
  panels.terms = m.terms;
  float* row = (float*)(scratch + Panels::bytes(rows, m.columns, m.terms));
  memset(row, 0, size_t(panels.columns) * 4);
  for (int r = 0; r < rows; r++) {
    memcpy(row, x + size_t(r) * m.columns, size_t(m.columns) * 4);
    if (wants_integers(m)) quantise_row(row, panels, r);
    else keep_row(row, panels.columns, panels.at(r / MR), r % MR);
  }
  float tile[MR * STRIP];
  for (int strip = 0; strip < m.strips; strip++)
    for (int p = 0; p < panels.count(); p++) {
      multiply_panel(m, strip, panels, p, tile);
      for (int t = 0; t < panels.height(p); t++)
        memcpy(out + (size_t(p * MR + t) * m.strips + strip) * STRIP, tile + t * STRIP, STRIP * 4);
    }
}

}  // namespace
