// A feed-forward that is a mixture: each row takes the few experts that a router scores highest.
//
// Pairs of a row and one of its experts are ordered by expert, so that each expert's matrices are
// read once for all of its rows; what comes of a row's pairs is added in the order of its own
// scores. So a row's sum is the same to the last bit whatever other rows are in its step.
// Source: Shazeer et al. 2017; shares as Mixtral's and Qwen3's.
#pragma once
#include "product.h"

namespace {

constexpr float NEVER = -3e38f;  // less than the score of any expert that may be chosen

// Leaves only the experts of the best groups: those whose two best experts score most together.
// Source: DeepSeek-V3 technical report, 2024, section 2.1.2, as transformers computes it.
inline void keep_best_groups(const Shape& shape, float* choice) {
  const int groups = shape.expert_groups, each = shape.num_experts / groups;
  const auto score = [&](int group) {
    float first = NEVER, second = NEVER;
    for (int e = group * each; e < (group + 1) * each; e++)
      if (choice[e] > first) second = first, first = choice[e];
      else if (choice[e] > second) second = choice[e];
    return each > 1 ? first + second : first;
  };
  // by their place among all, so that nothing is kept: a few dozen numbers
  for (int left = groups; left > shape.groups_per_token; left--) {
    int worst = -1;
    float least = 0;
    for (int group = 0; group < groups; group++) {
      if (choice[group * each] == NEVER) continue;  // gone already
      const float own = score(group);
      if (worst < 0 || own <= least) worst = group, least = own;
    }
    for (int e = worst * each; worst >= 0 && e < (worst + 1) * each; e++) choice[e] = NEVER;
  }
}

// The experts of one row, the highest score first and the lower number before an equal one, and
// their shares. A row whose scores are no numbers takes the first ones, with shares that are none.
inline void choose_experts(const Run& run, const Layer& layer, int row) {
  const Shape& shape = run.model->shape;
  const int experts = shape.num_experts, taken = shape.experts_per_token, width = padded(experts);
  float* score = run.mixture.scores + size_t(row) * width;
  float top = score[0], total = 0;
  for (int e = 1; e < experts; e++)
    if (score[e] > top) top = score[e];
  for (int e = experts; e < width; e++) score[e] = top;
  const bool sigmoid = shape.sigmoid_routing;
  for (int e = 0; e < width; e += 16) {
    const F x = load(score + e);
    store(score + e, sigmoid ? div(set(1.f), add(set(1.f), exponential(sub(zero(), x))))
                             : exponential(sub(x, set(top))));
  }
  // `exponential` clamps what is no number
  const bool finite = top - top == 0;
  for (int e = 0; e < experts; e++) total += score[e];
  float* choice = score;
  if (run.mixture.choice) {
    choice = run.mixture.choice + size_t(row) * width;
    if (!sigmoid)
      for (int e = 0; e < experts; e++) score[e] /= total;
    for (int e = 0; e < experts; e++)
      choice[e] = score[e] + (layer.routing_bias ? layer.routing_bias[e] : 0.f);
    if (shape.expert_groups > 1) keep_best_groups(shape, choice);
  }
  int32_t* chosen = run.mixture.chosen + size_t(row) * taken;
  float* shares = run.mixture.shares + size_t(row) * taken;
  float theirs = 0;
  for (int k = 0; k < taken; k++) {
    int best = -1;
    for (int e = 0; e < experts; e++)
      if (choice[e] > NEVER && (best < 0 || choice[e] > choice[best])) best = e;
    if (best < 0) best = k;  // scores that are no numbers
    chosen[k] = best, shares[k] = score[best], theirs += score[best];
    choice[best] = NEVER;
  }
  const float all = sigmoid || choice != score ? 1.f : total;
  const float whole =
      (shape.expert_norm ? theirs : all) / (shape.expert_scale ? shape.expert_scale : 1.f);
  for (int k = 0; k < taken; k++) shares[k] = finite ? shares[k] / whole : top - top;
}

// All pairs by expert. One member's work: a few thousand numbers.
inline void order_pairs(const Run& run, int rows) {
  const Shape& shape = run.model->shape;
  const Mixture& m = run.mixture;
  const int taken = shape.experts_per_token;
  int active = 0, first = 0, panel_row = 0;
  for (int e = 0; e < shape.num_experts; e++) {
    int count = 0;
    for (int pair = 0; pair < rows * taken; pair++)
      if (m.chosen[pair] == e) {
        m.place[pair] = first + count;
        m.row[first + count] = pair / taken;
        m.owner[first + count++] = active;
      }
    if (!count) continue;
    m.active[active++] = {e, first, count, panel_row};
    first += count, panel_row += int(to_multiple(count, MR));
  }
  *m.actives = active;
}

inline Panels panels_of(const Mixture& m, const ExpertRows& of, int columns, int terms) {
  Panels out;
  out.rows = of.count, out.columns = padded(columns), out.terms = terms;
  out.memory = m.panels + size_t(of.panel_row) * terms * Panels::bytes_per_row(padded(columns));
  return out;
}

// Makes one pair's row ready for its expert's matrices `a` and `b`, which want as many terms.
inline void prepare_pair(const Mixture& m, int pair, const float* x, int columns, const Matrix& a,
                         const Matrix& b) {
  const ExpertRows& of = m.active[m.owner[pair]];
  const int t = pair - of.first;
  const Panels panels = panels_of(m, of, columns, a.terms);
  if (wants_integers(a) || wants_integers(b)) quantise_row(x, panels, t);
  if (!wants_integers(a) || !wants_integers(b))
    keep_row(x, padded(columns), panels.at(t / MR), t % MR);
}

// What a pair's row is multiplied by before its expert sees it.
inline float input_share(const Run& run, int pair) {
  const Mixture& m = run.mixture;
  const int taken = run.model->shape.experts_per_token, row = m.row[pair];
  for (int i = row * taken; i < (row + 1) * taken; i++)
    if (m.place[i] == pair) return m.shares[i];
  return 0.f;  // every pair has its place
}

inline const Matrix& expert_matrix(const Layer& layer, const ExpertRows& of, Role role) {
  return layer.experts[of.expert * EXPERT_ROLES + role - GATE];
}

// The router's choice for every row, then all pairs by expert.
inline void route(const Run& run, const Layer& layer, const Stream& stream,
                  const ThreadScratch& own, int member) {
  const Shape& shape = run.model->shape;
  const bool quantised = wants_integers(layer.router);
  const Source source{stream.x,
                      size_t(padded(shape.hidden_size)),
                      stream.rows,
                      shape.hidden_size,
                      layer.mlp_norm,
                      layer.mlp_norm_bias,
                      nullptr,
                      -1,
                      0,
                      {},
                      quantised,
                      !quantised,
                      layer.router.terms};
  const Prepared x = prepare(run, source, own, member);
  const Part router{&layer.router, layer.router_bias, 0};
  product(run, source, x, &router, 1,
          {STORE, run.mixture.scores, size_t(padded(shape.num_experts)), 1.f});
  team_barrier(*run.team);
  int from, to;
  share(run, stream.rows, member, from, to);
  for (int row = from; row < to; row++) choose_experts(run, layer, row);
  team_barrier(*run.team);
  if (!member) order_pairs(run, stream.rows);
  team_barrier(*run.team);
}

// The numbers of one strip of an expert's bias, or zeros.
inline F expert_bias_of(const Layer& layer, const ExpertRows& of, Role role, int rows, int strip) {
  const float* all = layer.expert_bias[role - GATE];
  return all ? load(all + size_t(of.expert) * padded(rows) + size_t(strip) * STRIP) : zero();
}

// Each pair's activation(gate x) * (up x), or activation(up x) where no gate is.
inline void expert_gates(const Run& run, const Layer& layer) {
  const Shape& shape = run.model->shape;
  const Mixture& m = run.mixture;
  const int strips = (shape.intermediate_size + STRIP - 1) / STRIP, width = shape.hidden_size;
  const size_t stride = padded(shape.intermediate_size);
  float a[MR * STRIP], b[MR * STRIP];
  int from, to;
  while (team_take(*run.team, *m.actives * strips, 2, from, to))
    for (int at = from; at < to; at++) {
      const ExpertRows& of = m.active[at / strips];
      const Matrix &gates = expert_matrix(layer, of, GATE), &ups = expert_matrix(layer, of, UP);
      const Panels panels = panels_of(m, of, width, ups.terms);
      const int strip = at % strips, rows = shape.intermediate_size;
      const F gate_bias = expert_bias_of(layer, of, GATE, rows, strip),
              up_bias = expert_bias_of(layer, of, UP, rows, strip);
      for (int p = 0; p < panels.count(); p++) {
        if (!shape.ungated) multiply_panel(gates, strip, panels, p, a);
        multiply_panel(ups, strip, panels, p, b);
        for (int t = 0; t < panels.height(p); t++) {
          const F up = add(load(b + t * STRIP), up_bias);
          store(m.gated + (of.first + p * MR + t) * stride + size_t(strip) * STRIP,
                shape.ungated ? gate(up, shape.activation)
                              : gated(add(load(a + t * STRIP), gate_bias), up, shape.activation));
        }
      }
    }
}

// Each pair's way back to the width of the stream.
inline void expert_downs(const Run& run, const Layer& layer) {
  const Shape& shape = run.model->shape;
  const Mixture& m = run.mixture;
  const int strips = (shape.hidden_size + STRIP - 1) / STRIP;
  const size_t stride = padded(shape.hidden_size);
  float out[MR * STRIP];
  int from, to;
  while (team_take(*run.team, *m.actives * strips, 2, from, to))
    for (int at = from; at < to; at++) {
      const ExpertRows& of = m.active[at / strips];
      const Matrix& downs = expert_matrix(layer, of, DOWN);
      const Panels panels = panels_of(m, of, shape.intermediate_size, downs.terms);
      const int strip = at % strips;
      const F bias = expert_bias_of(layer, of, DOWN, shape.hidden_size, strip);
      for (int p = 0; p < panels.count(); p++) {
        multiply_panel(downs, strip, panels, p, out);
        for (int t = 0; t < panels.height(p); t++)
          store(m.out + (of.first + p * MR + t) * stride + size_t(strip) * STRIP,
                add(load(out + t * STRIP), bias));
      }
    }
}

// Multiplies each row of the feed-forward beside the experts by its own gate, a sigmoid of the
// row's product with one vector.
inline void close_shared(const Run& run, const Layer& layer, const Stream& stream,
                         const ThreadScratch& own, int member) {
  const Shape& shape = run.model->shape;
  const int width = shape.hidden_size, inner = padded(shape.shared_size);
  int from, to;
  share(run, stream.rows, member, from, to);
  for (int row = from; row < to; row++) {
    const float* x = stream.x + size_t(row) * padded(width);
    if (layer.mlp_norm) {
      norm_stream_row(shape, x, layer.mlp_norm, layer.mlp_norm_bias, width, own.scratch);
      x = own.scratch;
    }
    F product = zero();
    for (int k = 0; k < width; k += 16)
      product = fma(load(x + k), load(layer.shared_gate + k), product);
    const F open = div(set(1.f), add(set(1.f), exponential(set(-sum(product)))));
    float* gated = run.gated + size_t(row) * inner;
    for (int k = 0; k < inner; k += 16) store(gated + k, mul(load(gated + k), open));
  }
  team_barrier(*run.team);
}

inline void expert_feed_forward(const Run& run, const Layer& layer, const Stream& stream,
                                const ThreadScratch& own, int member) {
  const Shape& shape = run.model->shape;
  const Mixture& m = run.mixture;
  const int width = shape.hidden_size, ffn = shape.intermediate_size,
            taken = shape.experts_per_token, pairs = stream.rows * taken;
  route(run, layer, stream, own, member);
  int from, to;
  share(run, pairs, member, from, to);
  for (int pair = from; pair < to; pair++) {
    const ExpertRows& of = m.active[m.owner[pair]];
    const float* x = stream.x + size_t(m.row[pair]) * padded(width);
    if (layer.mlp_norm)
      norm_stream_row(shape, x, layer.mlp_norm, layer.mlp_norm_bias, width, own.scratch);
    else memcpy(own.scratch, x, size_t(width) * 4);
    for (int k = width; k < padded(width); k++) own.scratch[k] = 0;
    if (shape.expert_inputs) {
      const float share = input_share(run, pair);
      for (int k = 0; k < width; k++) own.scratch[k] *= share;
    }
    prepare_pair(m, pair, own.scratch, width, expert_matrix(layer, of, shape.ungated ? UP : GATE),
                 expert_matrix(layer, of, UP));
  }
  team_barrier(*run.team);
  expert_gates(run, layer);
  team_barrier(*run.team);
  for (int pair = from; pair < to; pair++) {
    const Matrix& downs = expert_matrix(layer, m.active[m.owner[pair]], DOWN);
    float* x = m.gated + size_t(pair) * padded(ffn);
    for (int k = ffn; k < padded(ffn); k++) x[k] = 0;
    prepare_pair(m, pair, x, ffn, downs, downs);
  }
  team_barrier(*run.team);
  expert_downs(run, layer);
  team_barrier(*run.team);
  share(run, stream.rows, member, from, to);
  for (int row = from; row < to; row++)
    for (int k = 0; k < padded(width); k += 16) {
      F sum = zero();
      for (int i = row * taken; i < (row + 1) * taken; i++)
        if (k < width)
          sum = fma(load(m.out + size_t(m.place[i]) * padded(width) + k),
                    set(shape.expert_inputs ? 1.f : m.shares[i]), sum);
      float* x = stream.x + size_t(row) * padded(width) + k;
      store(x, fma(sum, set(shape.residual_scale), load(x)));
    }
  team_barrier(*run.team);
}

}  // namespace
