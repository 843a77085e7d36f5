// Products of prepared rows with whole matrices, and what is fused with them: norm and quantisation
// before; adapters, biases, the residual sum and the feed-forward's gate behind.
#pragma once
#include "attention.h"
#include "tile.h"

namespace {

using namespace quietchoir;

constexpr int ALONE_ROWS =
    1;  // so few rows each member prepares for itself: that is sooner done than met for
constexpr int LORA_AHEAD = 6;   // strips: adapters are read in small pieces from many places, and
                                // nothing else foresees them
constexpr int MOST_INPUTS = 3;  // matrices that share one input

inline bool wants_integers(const Matrix& m) {
  return m.kind != F32 && m.kind != F16 && m.kind != BF16;
}

inline void share(const Run& run, int items, int member, int& from, int& to) {
  from = int(int64_t(items) * member / team_size(*run.team));
  to = int(int64_t(items) * (member + 1) / team_size(*run.team));
}

// The stream of the rows that go on: all of them, or in the last layer those whose logits are
// wanted.
struct Stream {
  float* x;
  float* mixed;
  int rows;
  const Adapter* const* adapter;
};

// Rows that are about to be multiplied.
struct Source {
  const float* x;  // [rows][stride]
  size_t stride;
  int rows, columns;  // true columns; x is padded with zeros
  const float* norm;  // null: as they are
  const float* norm_bias;
  const Adapter* const* adapter;
  int layer;   // -1: no adapters
  int inputs;  // matrices that read these rows and that adapters may change
  int32_t role[MOST_INPUTS];
  bool quantised, dense;  // what the matrices want
  int terms;              // the most that one of them wants
};

// Rows for matrices that no adapter changes, or that `adapted` names behind.
inline Source plain_source(const float* x, size_t stride, int rows, int columns, const float* norm,
                           const float* norm_bias, const Matrix& a, const Matrix& b) {
  const bool quantised = wants_integers(a) || wants_integers(b),
             dense = !wants_integers(a) || !wants_integers(b);
  const int terms = a.terms > b.terms ? a.terms : b.terms;
  return {x, stride, rows, columns, norm, norm_bias, nullptr, -1, 0, {}, quantised, dense, terms};
}

// The same, prepared.
struct Prepared {
  Panels panels;
  const float* lora;  // [rows][MOST_INPUTS][rank]: each adapter's down x, as far as it has one
};

// Adapters change the first `inputs` matrices that read these rows, which have these roles.
inline void adapted(Source& source, const Adapter* const* adapter, int layer, int inputs,
                    const int32_t* roles) {
  source.adapter = adapter, source.layer = layer, source.inputs = inputs;
  for (int i = 0; i < inputs; i++) source.role[i] = roles[i];
}

inline const LoraFactors* factors_of(const Adapter* adapter, int layer, int role) {
  if (!adapter || layer < 0) return nullptr;
  const LoraFactors* factors = adapter->factors + layer * ADAPTED + role;
  return factors->rank ? factors : nullptr;
}

// Whether what adapters add is made of rows and factors in bf16: beside integers, which are
// coarser.
inline bool rounds_lora(const Run& run, const Source& source) {
  return PAIRS && source.quantised && run.model->terms < MOST_TERMS;
}

#ifdef QUIETCHOIR_PAIRS
// Some rows of down x, in bf16.
template <int ROWS>
void rounded_lora_rows(const uint16_t* down, const float* x, int columns, uint16_t* out) {
  F acc[ROWS];
  for (int r = 0; r < ROWS; r++) acc[r] = zero();
  for (int k = 0; k < columns; k += 32) {
    const I both = round_pairs(load(x + k), load(x + k + 16));
    for (int r = 0; r < ROWS; r++) {
      const uint16_t* from = down + size_t(r) * columns + k;
      prefetch(from + FETCH_AHEAD / 4);
      acc[r] = dot_words(acc[r], load_words((const int32_t*)from), both);
    }
  }
  for (int r = 0; r < ROWS; r++) out[r] = to_bf16(sum(acc[r]));
}

// All of them, and a 0 behind where their number is odd.
inline void rounded_lora_row(const LoraFactors& factors, const float* x, int columns,
                             uint16_t* out) {
  int r = 0;
  for (; r + 8 <= factors.rank; r += 8)
    rounded_lora_rows<8>(factors.down + size_t(r) * columns, x, columns, out + r);
  for (; r < factors.rank; r++)
    rounded_lora_rows<1>(factors.down + size_t(r) * columns, x, columns, out + r);
  if (r % 2) out[r] = 0;
}
#endif

inline void lora_row(const LoraFactors& factors, const float* x, int columns, float* out) {
  for (int r = 0; r < factors.rank; r++) {
    const uint16_t* down = factors.down + size_t(r) * columns;
    F a = zero(), b = zero();
    for (int k = 0; k < columns; k += 32) {
      prefetch(down + k + FETCH_AHEAD / 4);
      a = fma(load_bf16(down + k), load(x + k), a);
      b = fma(load_bf16(down + k + 16), load(x + k + 16), b);
    }
    out[r] = sum(add(a, b));
  }
}

// One row through a norm over the width.
inline void norm_stream_row(const Shape& shape, const float* x, const float* weight,
                            const float* bias, int columns, float* out) {
  if (shape.centred_norms) centred_norm_row(x, weight, bias, shape.norm_eps, columns, out);
  else norm_row(x, weight, shape.norm_eps, columns, out);
}

inline void prepare_row(const Run& run, const Source& source, const Prepared& to, int row,
                        float* scratch) {
  const int columns = padded(source.columns);
  const float* x = source.x + size_t(row) * source.stride;
  if (source.norm) {
    norm_stream_row(run.model->shape, x, source.norm, source.norm_bias, source.columns, scratch);
    for (int k = source.columns; k < columns; k++) scratch[k] = 0;
    x = scratch;
  }
  if (source.quantised) quantise_row(x, to.panels, row);
  if (source.dense) keep_row(x, columns, to.panels.at(row / MR), row % MR);
  if (!run.rank || source.layer < 0) return;
  for (int i = 0; i < source.inputs; i++)
    if (const LoraFactors* factors =
            factors_of(source.adapter[row], source.layer, source.role[i])) {
      float* out = const_cast<float*>(to.lora) + (size_t(row) * MOST_INPUTS + i) * run.rank;
#ifdef QUIETCHOIR_PAIRS
      if (rounds_lora(run, source)) {
        rounded_lora_row(*factors, x, columns, (uint16_t*)out);
        continue;
      }
#endif
      lora_row(*factors, x, columns, out);
    }
}

// What one member owns: room for one row as it stands, ALONE_ROWS prepared ones, and attention.
struct ThreadScratch {
  float* scratch;
  uint8_t* panels;
  float* lora;
  uint8_t* attention;

  static size_t lora_bytes(int rank) {
    return to_multiple(size_t(ALONE_ROWS) * MOST_INPUTS * rank * 4, 64);
  }
  static size_t scratch_bytes(int columns) { return to_multiple(size_t(padded(columns)) * 4, 64); }
  static size_t bytes(int columns, int rank, int terms, size_t attention) {
    return scratch_bytes(columns) + Panels::bytes(ALONE_ROWS, columns, terms) + lora_bytes(rank) +
           attention;
  }
  ThreadScratch(const Run& run, int member, int columns) {
    uint8_t* p = run.thread_scratch + run.thread_scratch_bytes * member;
    scratch = (float*)p, p += scratch_bytes(columns);
    panels = p, p += Panels::bytes(ALONE_ROWS, columns, run.model->terms);
    lora = (float*)p, p += lora_bytes(run.rank);
    attention = p;
  }
};

inline Prepared prepare(const Run& run, const Source& source, const ThreadScratch& own,
                        int member) {
  Prepared out;
  out.panels.rows = source.rows, out.panels.columns = padded(source.columns);
  out.panels.terms = source.terms;
  const bool alone = source.rows <= ALONE_ROWS;
  out.panels.memory = alone ? own.panels : run.panels;
  out.lora = alone ? own.lora : run.lora;
  const int members = alone ? 1 : team_size(*run.team), which = alone ? 0 : member;
  const int from = int(int64_t(source.rows) * which / members),
            to = int(int64_t(source.rows) * (which + 1) / members);
  for (int row = from; row < to; row++) prepare_row(run, source, out, row, own.scratch);
  if (!alone) team_barrier(*run.team);
  return out;
}

// One matrix of a product, and where its rows go.
struct Part {
  const Matrix* matrix;
  const float* bias;  // or null
  int input;          // which of the source's roles it is; -1: no adapter changes it
};

// Where one strip's part of the upper factor begins: [rank / 2][16][2].
inline const uint16_t* up_of(const LoraFactors& factors, int strip) {
  return factors.up + size_t(strip) * lora_pairs(factors.rank) * STRIP * 2;
}

// out += up * with, over `rank` numbers; even and odd ones in two sums. All of these add in this
// order.
inline void add_lora_row(const uint16_t* up, const float* with, int rank, float* out) {
  F acc = load(out), odd = zero(), even_up, odd_up;
  for (int r = 0; r < rank; r += 2, up += 2 * STRIP) {
    prefetch(up + rank * LORA_AHEAD * STRIP);
    load_pairs(up, even_up, odd_up);
    acc = fma(even_up, set(with[r]), acc);
    if (r + 1 < rank) odd = fma(odd_up, set(with[r + 1]), odd);
  }
  store(out, add(acc, odd));
}

// The same for rows of one adapter: its numbers are widened once.
template <int RANK>
void add_lora_rows(const uint16_t* up, const float* with, size_t next, int rows, float* out) {
  F wide[RANK];
  for (int r = 0; r < RANK; r += 2) load_pairs(up + r * STRIP, wide[r], wide[r + 1]);
  for (int t = 0; t < rows; t++, with += next) {
    F acc = load(out + t * STRIP), odd = zero();
    for (int r = 0; r < RANK; r += 2)
      acc = fma(wide[r], set(with[r]), acc), odd = fma(wide[r + 1], set(with[r + 1]), odd);
    store(out + t * STRIP, add(acc, odd));
  }
}

#ifdef QUIETCHOIR_PAIRS
// The same of a row in bf16, every second pair in a sum of its own.
inline void add_rounded_row(const uint16_t* up, const uint16_t* with, int rank, float* out) {
  F acc = load(out), odd = zero();
  int r = 0;
  for (; r + 2 < rank; r += 4, up += 4 * STRIP) {
    prefetch(up + rank * LORA_AHEAD * STRIP);
    prefetch(up + rank * LORA_AHEAD * STRIP + 2 * STRIP);
    acc = dot_pairs(acc, load_words((const int32_t*)up), with + r);
    odd = dot_pairs(odd, load_words((const int32_t*)(up + 2 * STRIP)), with + r + 2);
  }
  if (r < rank) acc = dot_pairs(acc, load_words((const int32_t*)up), with + r);
  store(out, add(acc, odd));
}
#endif

inline void change_row(const LoraFactors& factors, int strip, float* out) {
  const size_t at = size_t(strip) * STRIP;
  store(out, fma(load(out), load(factors.gain + at), load(factors.shift + at)));
}

// Makes of one strip what each row's adapter makes of it.
inline void add_lora(const Run& run, const Source& source, const Prepared& x, const Part& part,
                     int strip, int panel, int rows, float* out) {
  const Adapter* const* adapter = source.adapter + panel * MR;
  const size_t next = size_t(MOST_INPUTS) * run.rank;
  const float* with = x.lora + panel * MR * next + size_t(part.input) * run.rank;
  for (int t = 0; t < rows; t++)
    if (const LoraFactors* factors = factors_of(adapter[t], source.layer, source.role[part.input]))
      if (factors->gain) change_row(*factors, strip, out + t * STRIP);
  int alike = 1;
  while (alike < rows && adapter[alike] == adapter[0]) alike++;
  const LoraFactors* first = factors_of(adapter[0], source.layer, source.role[part.input]);
  if (alike == rows && !first) return;
  if (alike == rows && rows > 1 && !rounds_lora(run, source)) {
    const uint16_t* up = up_of(*first, strip);
    if (first->rank == 8) return add_lora_rows<8>(up, with, next, rows, out);
    if (first->rank == 4) return add_lora_rows<4>(up, with, next, rows, out);
  }
  for (int t = 0; t < rows; t++, with += next)
    if (const LoraFactors* factors =
            factors_of(adapter[t], source.layer, source.role[part.input])) {
#ifdef QUIETCHOIR_PAIRS
      if (rounds_lora(run, source)) {
        add_rounded_row(up_of(*factors, strip), (const uint16_t*)with, factors->rank,
                        out + t * STRIP);
        continue;
      }
#endif
      add_lora_row(up_of(*factors, strip), with, factors->rank, out + t * STRIP);
    }
}

// One strip times one panel, with adapters and bias, which no adapter's gain touches.
// out [height][16].
inline void multiply(const Run& run, const Source& source, const Prepared& x, const Part& part,
                     int strip, int panel, float* out) {
  const int rows = x.panels.height(panel);
  multiply_panel(*part.matrix, strip, x.panels, panel, out);
  if (run.rank && source.layer >= 0 && part.input >= 0)
    add_lora(run, source, x, part, strip, panel, rows, out);
  if (part.bias)
    for (int t = 0; t < rows; t++)
      store(out + t * STRIP, add(load(out + t * STRIP), load(part.bias + strip * STRIP)));
}

// x times the normal distribution's integral up to x, which is within 8e-8.
// Source: Abramowitz and Stegun, "Handbook of Mathematical Functions", 1964, 7.1.26.
inline F gelu_erf(F x) {
  const F z = mul(absolute(x), set(0.70710678f));
  const F t = div(set(1.f), fma(z, set(0.3275911f), set(1.f)));
  F p = set(1.061405429f);
  p = fma(p, t, set(-1.453152027f));
  p = fma(p, t, set(1.421413741f));
  p = fma(p, t, set(-0.284496736f));
  p = fma(p, t, set(0.254829592f));
  const F tail = mul(mul(p, t), exponential(sub(zero(), mul(z, z))));  // 1 - erf(z)
  // x * (1 + erf(x / sqrt 2)) / 2 = max(x, 0) - |x| * tail / 2, on either side of zero
  const F half = mul(mul(absolute(x), tail), set(.5f));
  return sub(largest_of(x, zero()), half);
}

// SiLU or GELU: both are x / (1 + exp(-inner)); GELU without its approximation; or the square of
// what is above 0.
inline F gate(F x, int activation) {
  if (activation == GELU_ERF) return gelu_erf(x);
  if (activation == RELU2) {
    const F above = largest_of(x, zero());
    return add(mul(above, above), sub(x, x));  // the larger of 0 and what is no number may be 0
  }
  if (activation == RELU) return add(largest_of(x, zero()), sub(x, x));
  F inner = x;
  if (activation == GELU) {  // the tanh form: 0.5 (1 + tanh(u)) = sigmoid(2u), u = sqrt(2 / pi) (x
                             // + 0.044715 x^3)
    const F cubic = mul(mul(x, x), x);
    inner = mul(fma(cubic, set(0.044715f), x), set(1.59576912f));
  }
  return div(x, add(set(1.f), exponential(sub(zero(), inner))));
}

constexpr float CLAMP = 7.f, STEEPNESS = 1.702f;  // of gpt-oss's gate

// What a feed-forward makes of a gate's and an up's product.
inline F gated(F a, F b, int activation) {
  if (activation != SWIGLU_OAI) return mul(gate(a, activation), b);
  const F low = sub(zero(), largest_of(sub(zero(), a), set(-CLAMP)));  // at most CLAMP
  const F near = largest_of(sub(zero(), largest_of(sub(zero(), b), set(-CLAMP))), set(-CLAMP));
  const F open = div(low, add(set(1.f), exponential(mul(low, set(-STEEPNESS)))));
  // clamps hide what is no number
  return add(mul(add(near, set(1.f)), open), add(sub(a, a), sub(b, b)));
}

inline F sigmoid(F x) { return div(set(1.f), add(set(1.f), exponential(sub(zero(), x)))); }

enum Epilogue { STORE, ADD, LOGITS };

// Rows of one or several matrices, side by side in `out`.
struct Target {
  Epilogue epilogue;
  float* out;
  size_t stride;
  float scale;  // of what is added
};

// Sixteen logits of a row, or the `left` that the vocabulary ends with.
inline void finish_logits(const Shape& shape, float* product, float* logits, int left) {
  F result = load(product);
  if (shape.logit_scale != 1.f) result = mul(result, set(shape.logit_scale));
  if (shape.logit_softcap) result = softcapped(result, shape.logit_softcap);
  store(product, result);
  memcpy(logits, product, size_t(left < STRIP ? left : STRIP) * 4);
}

inline int all_strips(const Part* parts, int count) {
  int strips = 0;
  for (int i = 0; i < count; i++) strips += parts[i].matrix->strips;
  return strips;
}

inline int least_strips(int rows) { return rows > 32 ? 1 : 2; }

inline void product(const Run& run, const Source& source, const Prepared& x, const Part* parts,
                    int count, const Target& target) {
  const int strips = all_strips(parts, count);
  float out[MR * STRIP];
  int from, to;
  while (team_take(*run.team, strips, least_strips(x.panels.rows), from, to))
    for (int at = from; at < to; at++) {
      int which = 0, strip = at;
      while (strip >= parts[which].matrix->strips) strip -= parts[which++].matrix->strips;
      const Part& part = parts[which];
      for (int panel = 0; panel < x.panels.count(); panel++) {
        multiply(run, source, x, part, strip, panel, out);
        for (int t = 0; t < x.panels.height(panel); t++) {
          float* to_row = target.out + size_t(panel * MR + t) * target.stride + size_t(at) * STRIP;
          const F result = load(out + t * STRIP);
          if (target.epilogue == ADD) store(to_row, fma(result, set(target.scale), load(to_row)));
          else if (target.epilogue == STORE) store(to_row, result);
          else
            finish_logits(run.model->shape, out + t * STRIP, to_row,
                          part.matrix->rows - strip * STRIP);
        }
      }
    }
}

// The feed-forward's first half: activation(gate x) * (up x), or activation(up x) where no gate is.
inline void gated_product(const Run& run, const Source& source, const Prepared& x,
                          const Part& gates, const Part& ups, float* out, size_t stride) {
  float a[MR * STRIP], b[MR * STRIP];
  const int activation = run.model->shape.activation, strips = ups.matrix->strips;
  const bool ungated = run.model->shape.ungated;
  int from, to;
  while (team_take(*run.team, strips, least_strips(x.panels.rows), from, to))
    for (int strip = from; strip < to; strip++)
      for (int panel = 0; panel < x.panels.count(); panel++) {
        if (!ungated) multiply(run, source, x, gates, strip, panel, a);
        multiply(run, source, x, ups, strip, panel, b);
        for (int t = 0; t < x.panels.height(panel); t++) {
          float* at = out + size_t(panel * MR + t) * stride + size_t(strip) * STRIP;
          const F up = load(b + t * STRIP);
          store(at, ungated ? gate(up, activation) : gated(load(a + t * STRIP), up, activation));
          if (strip == strips - 1 && strips % 2) store(at + STRIP, zero());  // the padding
        }
      }
}

// Adds to the stream what a product left in `added`, through a norm; for families that norm behind.
inline void add_normed(const Run& run, const Stream& stream, const float* norm,
                       const ThreadScratch& own, int member) {
  const int width = run.model->shape.hidden_size, stride = padded(width);
  team_barrier(*run.team);
  int from, to;
  share(run, stream.rows, member, from, to);
  for (int row = from; row < to; row++) {
    norm_row(run.added + size_t(row) * stride, norm, run.model->shape.norm_eps, width, own.scratch);
    const F scale = set(run.model->shape.residual_scale);
    for (int k = 0; k < width; k += 16) {
      float* x = stream.x + size_t(row) * stride + k;
      store(x, fma(load(own.scratch + k), scale, load(x)));
    }
  }
  team_barrier(*run.team);
}

// Product of `source` with one matrix, added to the stream.
inline void add_product(const Run& run, const Source& source, const Part& part, const float* norm,
                        const Stream& stream, const ThreadScratch& own, int member) {
  const Prepared x = prepare(run, source, own, member);
  const size_t stride = padded(run.model->shape.hidden_size);
  const float scale = run.model->shape.residual_scale;
  product(run, source, x, &part, 1,
          norm ? Target{STORE, run.added, stride, 1.f} : Target{ADD, stream.x, stride, scale});
  if (norm) add_normed(run, stream, norm, own, member);
  else team_barrier(*run.team);
}

}  // namespace
