// Building a model: sizes, matrices, vectors, adapters. Called a few hundred times at the start,
// then only for adapters.
#include "model.h"

#include <stdarg.h>
#include <stdio.h>

#include "bf16.h"
#include "dispatch.h"

namespace quietchoir {

static thread_local char problem[256] = "";

void complain(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(problem, sizeof problem, format, arguments);
  va_end(arguments);
}

namespace {

constexpr int MOST_HEAD = 512;  // numbers of a head
constexpr int LARGEST =
    1 << 20;  // of any width here: products of two stay within 64 bits, and sums within 32

bool check(const Shape& s) {
  const int sizes[] = {s.num_layers,   s.hidden_size, s.intermediate_size, s.num_heads,
                       s.num_kv_heads, s.head_dim,    s.vocab_size,        s.blocks};
  for (int size : sizes)
    if (size < 1 || size > (1 << 24)) return complain("a size of %d is out of range", size), false;
  if (s.hidden_size > LARGEST || s.intermediate_size > LARGEST || s.num_layers > 4096 ||
      s.num_heads > 4096 || s.ropes < 0 || s.ropes > 4096)
    return complain("width %d, ffn width %d, %d layers or %d heads are too many", s.hidden_size,
                    s.intermediate_size, s.num_layers, s.num_heads),
           false;
  if (s.head_dim % 16 || s.head_dim > MOST_HEAD)
    return complain("head size %d is no multiple of 16 up to %d", s.head_dim, MOST_HEAD), false;
  if (s.rope_dim < 2 || s.rope_dim % 2 || s.rope_dim > s.head_dim)
    return complain("rope of %d of %d numbers of a head", s.rope_dim, s.head_dim), false;
  if (s.num_experts < 0 || s.num_experts > 4096 ||
      (s.num_experts && (s.experts_per_token < 1 || s.experts_per_token > s.num_experts)))
    return complain("%d of %d experts", s.experts_per_token, s.num_experts), false;
  if (s.num_heads % s.num_kv_heads)
    return complain("%d heads do not share %d key heads evenly", s.num_heads, s.num_kv_heads),
           false;
  if (s.activation < 0 || s.activation >= ACTIVATIONS)
    return complain("activation %d is unknown", s.activation), false;
  if (s.kv_type < 0 || s.kv_type >= KV_TYPES)
    return complain("keys and values of type %d", s.kv_type), false;
  if (s.head_terms < 0 || s.head_terms > MOST_TERMS)
    return complain("%d terms of the head", s.head_terms), false;
  for (int size : {s.dense_size, s.shared_size})
    if (size < 0 || size > LARGEST) return complain("a feed-forward width of %d", size), false;
  if (s.positions < 0 || s.positions > (1 << 16) ||
      int64_t(s.positions) * s.hidden_size > INT32_MAX)
    return complain("%d positions", s.positions), false;
  if (s.temperature != 0 && s.temperature_floor < 1)
    return complain("queries grow every %d positions", s.temperature_floor), false;
  if (s.per_layer_size < 0 || s.per_layer_size % 16 || s.per_layer_size > s.intermediate_size ||
      int64_t(s.num_layers) * s.per_layer_size > LARGEST)
    return complain("layers are given %d numbers", s.per_layer_size), false;
  if (s.per_layer_tokens < 0 || s.per_layer_tokens > s.vocab_size || s.streams < 0 ||
      s.streams == 1 || s.streams > MOST_STREAMS ||
      (s.streams && (!s.per_layer_size || s.laurel_rank < 32 || s.laurel_rank % 32 ||
                     s.laurel_rank > s.hidden_size || s.hidden_size % 32 ||
                     s.intermediate_size < s.hidden_size || s.num_experts || s.parallel ||
                     s.conv_kernel || s.latent_size || s.ungated)))
    return complain("%d streams beside a rank of %d", s.streams, s.laurel_rank), false;
  const int own = own_key_size(s);
  if (s.latent_size < 0 || s.latent_size > s.hidden_size || s.latent_size % 16 ||
      s.query_rank < 0 || s.query_rank > s.hidden_size || s.query_rank % 16 || s.value_dim < 0 ||
      s.value_dim > s.head_dim || (!s.latent_size && (s.query_rank || s.value_dim)) ||
      (s.latent_size && (s.num_kv_heads != s.num_heads || own < 1 || s.num_heads * own % 16)))
    return complain("latents of %d and %d, values of %d of %d numbers", s.latent_size, s.query_rank,
                    s.value_dim, s.head_dim),
           false;
  if (s.conv_kernel && (s.conv_kernel < 2 || s.conv_kernel > MOST_TAPS || s.hidden_size % 32 ||
                        s.latent_size || s.parallel || s.num_heads * s.head_dim % 32))
    return complain("convolutions of %d rows of width %d, beside %d heads of %d", s.conv_kernel,
                    s.hidden_size, s.num_heads, s.head_dim),
           false;
  const int delta[] = {s.delta_key_heads, s.delta_value_heads, s.delta_key_dim, s.delta_value_dim};
  for (int size : delta)
    if (size < 0 || size > 1024 || (s.delta_value_heads && !size))
      return complain("a delta net of sizes %d, %d, %d, %d", delta[0], delta[1], delta[2],
                      delta[3]),
             false;
  if (s.delta_value_heads &&
      (s.delta_value_heads % s.delta_key_heads || s.delta_key_dim % 16 || s.delta_value_dim % 16 ||
       s.delta_key_dim > 256 || s.delta_value_dim > 256 || delta_values(s) % 32 || !s.conv_kernel))
    return complain("a delta net of heads of %d and %d", s.delta_key_dim, s.delta_value_dim), false;
  if ((s.state_spaces || s.scan_beside) &&
      (!s.state_spaces || !s.delta_value_heads || delta_values(s) / s.delta_key_heads % 16))
    return complain("a scan of %d groups of %d numbers", s.delta_key_heads, delta_values(s)), false;
  if (s.expert_groups < 0 || s.expert_groups > s.num_experts ||
      (s.expert_groups > 1 &&
       (s.num_experts % s.expert_groups || s.groups_per_token < 1 ||
        s.groups_per_token > s.expert_groups ||
        s.experts_per_token > s.num_experts / s.expert_groups * s.groups_per_token)))
    return complain("%d of %d groups of %d experts", s.groups_per_token, s.expert_groups,
                    s.num_experts),
           false;
  return true;
}

struct Packing {
  Team* team;
  Matrix* matrix;
  const uint8_t* raw;
  size_t row_bytes;
};

void pack_share(void* argument, int) {
  const Packing& packing = *static_cast<Packing*>(argument);
  Matrix& m = *packing.matrix;
  int from, to;
  while (team_take(*packing.team, m.strips, 8, from, to))
    for (int strip = from; strip < to; strip++) {
      const int rows = m.rows - strip * STRIP < STRIP ? m.rows - strip * STRIP : STRIP;
      pack_strip(m, strip, packing.raw + size_t(strip) * STRIP * packing.row_bytes,
                 packing.row_bytes, rows);
    }
}

// Sizes of one layer, where layers differ: heads of keys, numbers of a head, width of the
// feed-forward, and whose keys and values it reads. False after a complaint.
bool size_layer(OwnedModel& model, int number, const int32_t* sizes) {
  const Shape& s = model.shape;
  Layer& layer = model.layers[number];
  layer.kv_heads = sizes[0], layer.head_dim = sizes[1], layer.inner = sizes[2];
  layer.source = sizes[3];
  const bool differs = layer.kv_heads != s.num_kv_heads || layer.head_dim != s.head_dim;
  if (layer.kv_heads < 1 || layer.kv_heads > s.num_kv_heads || s.num_heads % layer.kv_heads ||
      layer.head_dim < 16 || layer.head_dim > s.head_dim || layer.head_dim % 16 ||
      layer.inner < 1 || layer.inner > s.intermediate_size || layer.source < 0 ||
      layer.source > number ||
      (differs && (s.num_heads * layer.head_dim % 32 || s.rope_dim != s.head_dim || s.latent_size ||
                   s.conv_kernel || s.wide_norms || s.attention_gate)))
    return complain("layer %d has %d heads of %d, a width of %d, and keys of layer %d", number,
                    layer.kv_heads, layer.head_dim, layer.inner, layer.source),
           false;
  const Layer& source = model.layers[layer.source];
  if (source.source != layer.source || source.kv_heads != layer.kv_heads ||
      source.head_dim != layer.head_dim || (layer.source != number && s.latent_size))
    return complain("layer %d cannot read keys of layer %d", number, layer.source), false;
  return true;
}

bool is_layer(const OwnedModel& model, int layer) {
  if (layer >= 0 && layer < model.shape.num_layers) return true;
  complain("layer %d of %d", layer, model.shape.num_layers);
  return false;
}

// Where each layer's part of a block begins: first those that attend, then those that convolve; and
// where that of a delta net begins in a sequence's state.
void lay_out_block(OwnedModel& model) {
  const Shape& s = model.shape;
  const size_t rows = size_t(BLOCK) * s.hidden_size * 2;
  model.cache.block = 0;
  for (const Mixer mixer : {ATTENDS, CONVOLVES})
    for (Layer& layer : model.owned_layers) {
      const Layer& source = model.owned_layers[layer.source];
      if (layer.mixer != mixer) continue;
      layer.cache = &source == &layer ? model.cache.block : source.cache;
      if (&source == &layer)
        model.cache.block +=
            mixer == ATTENDS ? model.cache.one(layer.head_dim) * layer.kv_heads : rows;
    }
  size_t state = 0;
  for (Layer& layer : model.owned_layers)
    if (remembers(s, layer)) layer.state = state, state += delta_state(s);
}

}  // namespace

bool check_rows(int kind, int columns, size_t row_bytes) {
  const Layout layout = layout_of(kind);
  if (layout.columns && columns % layout.columns == 0 &&
      row_bytes >= size_t(columns) / layout.columns * layout.raw)
    return true;
  complain("an embedding of kind %d with rows of %zu bytes", kind, row_bytes);
  return false;
}

bool pack_matrix(Team& team, Arena& arena, Matrix& matrix, int kind, int rows, int columns,
                 const uint8_t* raw, size_t row_bytes) {
  Matrix shaped;
  if (!shape_matrix(shaped, kind, rows, columns))
    return complain("no kernel takes kind %d with %d columns", kind, columns), false;
  const Layout layout = layout_of(kind);
  if (row_bytes < size_t(columns) / layout.columns * layout.raw)
    return complain("rows of %zu bytes are too short", row_bytes), false;
  shaped.data = arena.take(shaped.strip_bytes * shaped.strips);
  matrix = shaped;
  Packing packing{&team, &matrix, raw, row_bytes};
  team_run(team, pack_share, &packing);
  return true;
}

}  // namespace quietchoir

using namespace quietchoir;

QC_EXPORT const char* quietchoir_problem() { return problem; }

// Returns null after a complaint. `cache` stays the caller's: blocks * what `lay_out_block` counts,
// zero at first. `frequencies` [ropes][rope_dim / 2] and `magnitudes` [ropes]; `windows`, `ropes`
// and `mixers` name one for each layer, `sizes` four numbers, see `size_layer`.
QC_EXPORT OwnedModel* quietchoir_model_new(const char* set, const Shape* shape, int threads,
                                           uint8_t* cache, const float* frequencies,
                                           const float* magnitudes, const int32_t* windows,
                                           const int32_t* ropes, const int32_t* mixers,
                                           const int32_t* sizes) {
  try {
    const Table* table = find_table(set);
    if (!table)
      return complain("this processor does not run %s", set ? set : "any instruction set"), nullptr;
    if (!check(*shape)) return nullptr;
    std::unique_ptr<OwnedModel> model(new OwnedModel());
    model->table = table;
    model->shape = *shape;
    model->terms = shape->head_terms > 1 ? shape->head_terms : 1;
    model->owned_layers.resize(shape->num_layers);
    model->layers = model->owned_layers.data();
    if (shape->num_experts)
      model->experts.assign(shape->num_layers,
                            std::vector<Matrix>(size_t(shape->num_experts) * EXPERT_ROLES));
    for (int layer = 0; layer < shape->num_layers; layer++) {
      if (ropes[layer] < -1 || ropes[layer] >= shape->ropes)
        return complain("layer %d has rope %d and window %d", layer, ropes[layer], windows[layer]),
               nullptr;
      if (mixers[layer] < 0 || mixers[layer] >= MIXERS ||
          (mixers[layer] != ATTENDS && !shape->conv_kernel) ||
          (mixers[layer] == DELTA_NET && !shape->delta_value_heads))
        return complain("layer %d has mixer %d", layer, mixers[layer]), nullptr;
      model->layers[layer].mixer = mixers[layer];
      model->layers[layer].window = windows[layer], model->layers[layer].rope = ropes[layer];
      if (!size_layer(*model, layer, sizes + 4 * layer)) return nullptr;
      if (shape->num_experts) model->layers[layer].experts = model->experts[layer].data();
    }
    if (shape->ropes) {
      model->frequencies = model->keep(frequencies, shape->ropes * shape->rope_dim / 2);
      model->magnitudes = model->keep(magnitudes, shape->ropes);
    }
    model->cache.memory = cache, model->cache.type = shape->kv_type;
    lay_out_block(*model);
    model->team.reset(team_new(threads));
    return model.release();
  } catch (const std::exception& error) { return complain("%s", error.what()), nullptr; }
}

QC_EXPORT void quietchoir_model_free(OwnedModel* model) { delete model; }

// Whether a matrix of this kind with so many columns can be packed.
QC_EXPORT bool quietchoir_takes(int kind, int columns) {
  Matrix m;
  return shape_matrix(m, kind, STRIP, columns);
}

// The width of the feed-forward that all rows of a layer go through; 0: there is none.
static int shared_width(const Shape& s, const Layer& layer) {
  if (layer.experts) return s.shared_size;
  return s.num_experts ? s.dense_size : layer.inner;
}

// One layer of a mixture has no experts, but a feed-forward for all rows, or beside scans none;
// said before its matrices come. False after a complaint.
QC_EXPORT bool quietchoir_model_dense(OwnedModel* model, int layer) {
  if (!is_layer(*model, layer)) return false;
  if (!model->shape.num_experts || (!model->shape.dense_size && !model->shape.state_spaces))
    return complain("layer %d cannot be without experts", layer), false;
  model->layers[layer].experts = nullptr;
  model->experts[layer].clear();
  return true;
}

constexpr int QUERY_DOWN = -1, LATENT = -2;  // roles that only latent attention has
constexpr int CONV_IN = -3, CONV_OUT = -4;   // or only a convolution
constexpr int DELTA_IN = -5, DELTA_GATE = -6, DELTA_BETA = -7, DELTA_ALPHA = -8, DELTA_OUT = -9;
constexpr int OUT_GATE = -10;
constexpr int GIVEN_GATE = -11, GIVEN_OUT = -12;      // see given.h
constexpr int LAUREL_LEFT = -13, LAUREL_RIGHT = -14;  // see streams.h
// Of the whole model, where the head is 0; a further stream's last one each behind them.
constexpr int GIVEN_PROJECTION = 1, STREAM_IN = 2, STREAM_OUT = 3;

// The same of a gated delta net, or of attention's gate. Null: of neither.
static Matrix* find_rare_matrix(const Shape& s, Layer& layer, int role, int& rows, int& columns) {
  columns = s.hidden_size;
  if (layer.mixer == ATTENDS && role == OUT_GATE && s.attention_gate)
    return rows = s.num_heads * s.head_dim, &layer.out_gate;
  if (role == GIVEN_GATE && s.per_layer_size) return rows = s.per_layer_size, &layer.given_gate;
  if (role == GIVEN_OUT && s.per_layer_size)
    return rows = s.hidden_size, columns = s.per_layer_size, &layer.given_out;
  if (role == LAUREL_LEFT && s.streams) return rows = s.laurel_rank, &layer.laurel_left;
  if (role == LAUREL_RIGHT && s.streams)
    return rows = s.hidden_size, columns = s.laurel_rank, &layer.laurel_right;
  if (!remembers(s, layer) || (role == DELTA_BETA && s.state_spaces)) return nullptr;
  switch (role) {
    case DELTA_IN: return rows = delta_width(s), &layer.delta_in;
    case DELTA_GATE: return rows = delta_values(s), &layer.delta_gate;
    case DELTA_BETA: return rows = s.delta_value_heads, &layer.delta_beta;
    case DELTA_ALPHA: return rows = s.delta_value_heads, &layer.delta_alpha;
    case DELTA_OUT: return rows = s.hidden_size, columns = delta_values(s), &layer.delta_out;
  }
  return nullptr;
}

// Where `role` of `layer` belongs, and its size: the head where layer is -1; behind the roles of a
// layer its router, then the three matrices of each expert. Null after a complaint.
static Matrix* find_matrix(OwnedModel& model, int layer, int role, int& rows, int& columns) {
  const Shape& s = model.shape;
  if (layer == -1 && role == GIVEN_PROJECTION && s.per_layer_size)
    return rows = given_width(s), columns = s.hidden_size, &model.given_projection;
  if (layer == -1 && role == STREAM_IN && s.streams)
    return rows = (s.streams - 1) * s.hidden_size, columns = s.hidden_size, &model.stream_in;
  if (layer == -1 && role >= STREAM_OUT && role < STREAM_OUT + s.streams - 1)
    return rows = columns = s.hidden_size, &model.stream_out[role - STREAM_OUT];
  if (layer == -1) return rows = s.vocab_size, columns = s.hidden_size, &model.head;
  if (!is_layer(model, layer)) return nullptr;
  if (role == QUERY_DOWN && s.query_rank)
    return rows = s.query_rank, columns = s.hidden_size, &model.layers[layer].query_down;
  if (role == LATENT && s.latent_size)
    return rows = s.latent_size + s.rope_dim, columns = s.hidden_size, &model.layers[layer].latent;
  if (role <= DELTA_IN)
    if (Matrix* found = find_rare_matrix(s, model.layers[layer], role, rows, columns)) return found;
  if (role == CONV_IN && model.layers[layer].mixer == CONVOLVES)
    return rows = 3 * s.hidden_size, columns = s.hidden_size, &model.layers[layer].conv_in;
  if (role == CONV_OUT && model.layers[layer].mixer == CONVOLVES)
    return rows = s.hidden_size, columns = s.hidden_size, &model.layers[layer].conv_out;
  const int expert = role - ROLES - 1, shared = shared_width(s, model.layers[layer]);
  if (role < 0 || expert >= s.num_experts * EXPERT_ROLES ||
      (role < GATE && model.layers[layer].mixer != ATTENDS) ||
      (role >= GATE && role < ROLES && !shared) || (role >= ROLES && !model.layers[layer].experts))
    return complain("matrix %d of layer %d", role, layer), nullptr;
  if (role == ROLES)
    return rows = s.num_experts, columns = s.hidden_size, &model.layers[layer].router;
  const int alike = expert < 0 ? role : GATE + expert % EXPERT_ROLES;
  if (alike == GATE && s.ungated)
    return complain("matrix %d of layer %d is a gate", role, layer), nullptr;
  const Layer& own = model.layers[layer];
  if ((role == KEY || role == VALUE) && own.source != layer)
    return complain("layer %d has keys of layer %d", layer, own.source), nullptr;
  rows = rows_of(s, own, alike), columns = columns_of(s, own, alike);
  if (expert < 0 && (role == GATE || role == UP)) rows = shared;
  if (expert < 0 && role == DOWN) columns = shared;
  return expert < 0 ? &model.layers[layer].matrix[role] : &model.experts[layer][expert];
}

// Packs one matrix: `role` of `layer`, as `find_matrix` counts them. False after a complaint.
QC_EXPORT bool quietchoir_model_matrix(OwnedModel* model, int layer, int role, int kind, int rows,
                                       int columns, const uint8_t* raw, size_t row_bytes) {
  try {
    int expected_rows, expected_columns;
    Matrix* found = find_matrix(*model, layer, role, expected_rows, expected_columns);
    if (!found) return false;
    Matrix& m = *found;
    if (rows != expected_rows || columns != expected_columns)
      return complain("matrix %d of layer %d is %d x %d, expected %d x %d", role, layer, rows,
                      columns, expected_rows, expected_columns),
             false;
    return pack_matrix(*model->team, model->arena, m, kind, rows, columns, raw, row_bytes);
  } catch (const std::exception& error) { return complain("%s", error.what()), false; }
}

// How exact the activations beside one matrix are: a sum of so many vectors of int8. Said after it
// is packed; experts of a layer want alike. Beside plain numbers they are floats anyway. False
// after a complaint.
QC_EXPORT bool quietchoir_model_terms(OwnedModel* model, int layer, int role, int terms) {
  int rows, columns;
  Matrix* found = find_matrix(*model, layer, role, rows, columns);
  if (!found) return false;
  if (terms < 1 || terms > MOST_TERMS) return complain("%d terms", terms), false;
  if (found->kind == F32 || found->kind == F16 || found->kind == BF16) return true;
  found->terms = terms;
  if (terms > model->terms) model->terms = terms;
  return true;
}

// The embedding's raw rows; they stay the caller's.
QC_EXPORT bool quietchoir_model_embedding(OwnedModel* model, int kind, const uint8_t* raw,
                                          size_t row_bytes) {
  if (!check_rows(kind, model->shape.hidden_size, row_bytes)) return false;
  model->embedding = raw, model->embedding_row = row_bytes, model->embedding_kind = kind;
  return true;
}

// The raw rows of what each layer is given of a token; they stay the caller's.
QC_EXPORT bool quietchoir_model_given(OwnedModel* model, int kind, const uint8_t* raw,
                                      size_t row_bytes) {
  if (!model->shape.per_layer_size || !check_rows(kind, given_width(model->shape), row_bytes))
    return complain("rows of %d numbers for each layer", model->shape.per_layer_size), false;
  model->given = raw, model->given_row = row_bytes, model->given_kind = kind;
  return true;
}

// What `which` means in quietchoir_model_vector; biases follow, one for each role, then what only
// some families have.
enum Vector {
  ATTENTION_NORM,
  MLP_NORM,
  QUERY_NORM,
  KEY_NORM,
  AFTER_ATTENTION,
  AFTER_MLP,
  FINAL_NORM,
  BIASES,
  ATTENTION_NORM_BIAS = BIASES + ROLES,
  MLP_NORM_BIAS,
  FINAL_NORM_BIAS,
  HEAD_BIAS,
  SINKS,
  ROUTER_BIAS,
  ROUTING_BIAS,
  SHARED_GATE,
  QUERY_DOWN_NORM,
  LATENT_NORM,
  POSITIONS,
  CONV_KERNEL,
  SLOPES,
  EMBEDDING_NORM,
  EMBEDDING_NORM_BIAS,
  DELTA_KERNEL,
  DECAY,
  DECAY_BIAS,
  DELTA_GAIN,
  DELTA_KERNEL_BIAS,
  SKIP,
  VALUE_NORM,
  GIVEN_NORM,
  LAYER_SCALE,
  GIVEN_PROJECTION_NORM,
  LAUREL_NORM,
  ALTUP_NORM,
  ALTUP_SCALE,
  ALTUP_ROUTER,
  ALTUP_PREDICT,
  ALTUP_CORRECT,
  GATE_CUTOFF,
  EXPERT_BIASES,
  VECTORS = EXPERT_BIASES + EXPERT_ROLES
};

// Numbers of one vector, that of a layer where it is not the model's.
static int numbers_of(const OwnedModel& model, const Layer& layer, int which) {
  const Shape& s = model.shape;
  if (which >= EXPERT_BIASES)
    return s.num_experts *
           (which - EXPERT_BIASES + GATE == DOWN ? s.hidden_size : s.intermediate_size);
  switch (which) {
    case QUERY_NORM: return layer.head_dim * (s.wide_norms ? s.num_heads : 1);
    case KEY_NORM: return layer.head_dim * (s.wide_norms ? s.num_kv_heads : 1);
    case VALUE_NORM: return layer.head_dim;
    case LAYER_SCALE:
    case GATE_CUTOFF: return 1;
    case ALTUP_ROUTER: return s.streams * s.hidden_size;
    case ALTUP_PREDICT: return s.streams * s.streams * s.streams;
    case ALTUP_CORRECT: return s.streams * s.streams;
    case GIVEN_PROJECTION_NORM: return s.per_layer_size;
    case HEAD_BIAS: return s.vocab_size;
    case SLOPES:
    case SINKS: return s.num_heads;
    case ROUTER_BIAS:
    case ROUTING_BIAS: return s.num_experts;
    case QUERY_DOWN_NORM: return s.query_rank;
    case LATENT_NORM: return s.latent_size;
    case POSITIONS: return s.positions * s.hidden_size;
    case CONV_KERNEL: return layer.mixer == CONVOLVES ? s.conv_kernel * s.hidden_size : 0;
    case DELTA_KERNEL: return remembers(s, layer) ? s.conv_kernel * delta_width(s) : 0;
    case DELTA_KERNEL_BIAS: return remembers(s, layer) ? delta_width(s) : 0;
    case DECAY:
    case DECAY_BIAS:
    case SKIP: return s.delta_value_heads;
    case DELTA_GAIN: return s.state_spaces ? delta_values(s) : s.delta_value_dim;
    case BIASES + GATE:
    case BIASES + UP: return shared_width(s, layer);
  }
  const bool bias = which >= BIASES && which < BIASES + ROLES;
  return bias ? rows_of(s, layer, which - BIASES) : s.hidden_size;
}

// Where it is kept.
static const float** place_of(OwnedModel& model, Layer& layer, int which) {
  if (which == FINAL_NORM) return &model.final_norm;
  if (which == FINAL_NORM_BIAS) return &model.final_norm_bias;
  if (which == HEAD_BIAS) return &model.head_bias;
  if (which == POSITIONS) return &model.positions;
  if (which == CONV_KERNEL) return &layer.conv_kernel;
  if (which == DELTA_KERNEL) return &layer.delta_kernel;
  if (which == DECAY) return &layer.decay;
  if (which == DECAY_BIAS) return &layer.decay_bias;
  if (which == DELTA_GAIN) return &layer.delta_gain;
  if (which == DELTA_KERNEL_BIAS) return &layer.delta_kernel_bias;
  if (which == SKIP) return &layer.skip;
  if (which == VALUE_NORM) return &layer.value_norm;
  if (which == GIVEN_NORM) return &layer.given_norm;
  if (which == LAYER_SCALE) return &layer.scale;
  if (which == LAUREL_NORM) return &layer.laurel_norm;
  if (which == ALTUP_NORM) return &layer.altup_norm;
  if (which == ALTUP_SCALE) return &layer.altup_scale;
  if (which == ALTUP_ROUTER) return &layer.altup_router;
  if (which == ALTUP_PREDICT) return &layer.altup_predict;
  if (which == ALTUP_CORRECT) return &layer.altup_correct;
  if (which == GATE_CUTOFF) return &layer.gate_cutoff;
  if (which == GIVEN_PROJECTION_NORM) return &model.given_projection_norm;
  if (which == SLOPES) return &model.slopes;
  if (which == EMBEDDING_NORM) return &model.embedding_norm;
  if (which == EMBEDDING_NORM_BIAS) return &model.embedding_norm_bias;
  if (which >= EXPERT_BIASES) return &layer.expert_bias[which - EXPERT_BIASES];
  if (which >= BIASES && which < BIASES + ROLES) return &layer.bias[which - BIASES];
  const float** const first[] = {&layer.attention_norm,      &layer.mlp_norm,
                                 &layer.query_norm,          &layer.key_norm,
                                 &layer.post_attention_norm, &layer.post_mlp_norm};
  const float** const later[] = {&layer.attention_norm_bias,
                                 &layer.mlp_norm_bias,
                                 nullptr,
                                 nullptr,
                                 &layer.sinks,
                                 &layer.router_bias,
                                 &layer.routing_bias,
                                 &layer.shared_gate,
                                 &layer.query_down_norm,
                                 &layer.latent_norm};
  return which < FINAL_NORM ? first[which] : later[which - ATTENTION_NORM_BIAS];
}

QC_EXPORT bool quietchoir_model_vector(OwnedModel* model, int layer, int which, const float* values,
                                       int count) {
  try {
    if (which < 0 || which >= VECTORS) return complain("vector %d is unknown", which), false;
    const bool whole = which == FINAL_NORM || which == FINAL_NORM_BIAS || which == HEAD_BIAS ||
                       which == POSITIONS || which == SLOPES || which == EMBEDDING_NORM ||
                       which == EMBEDDING_NORM_BIAS || which == GIVEN_PROJECTION_NORM;
    if (!whole && !is_layer(*model, layer)) return false;
    Layer& l = model->layers[whole ? 0 : layer];
    const int expected = numbers_of(*model, l, which);
    if (count != expected || !count)
      return complain("vector %d of layer %d has %d numbers, expected %d", which, layer, count,
                      expected),
             false;
    const int each = which < EXPERT_BIASES ? count : count / model->shape.num_experts;
    const int wide = padded(each);
    std::vector<float> spread(size_t(count / each) * wide);
    for (int i = 0; i < count; i++) spread[size_t(i / each) * wide + i % each] = values[i];
    *place_of(*model, l, which) = model->keep(spread.data(), int(spread.size()));
    return true;
  } catch (const std::exception& error) { return complain("%s", error.what()), false; }
}

// False after a complaint if anything that every model has is missing.
QC_EXPORT bool quietchoir_model_complete(const OwnedModel* model) {
  if (!model->head.data || !model->embedding || !model->final_norm ||
      (model->shape.positions && !model->positions))
    return complain("the head, embedding, its positions or the last norm is missing"), false;
  const bool given = model->shape.per_layer_size;
  if (given && (!model->given || !model->given_projection.data || !model->given_projection_norm))
    return complain("what layers are given is missing"), false;
  const int streams = model->shape.streams;
  for (int i = 0; i < streams - 1; i++)
    if (!model->stream_in.data || !model->stream_out[i].data)
      return complain("what makes streams, or one of them, is missing"), false;
  for (int layer = 0; layer < model->shape.num_layers; layer++) {
    const Layer& l = model->layers[layer];
    // Beside scans a layer may have no feed-forward; else one lacks nothing of its own.
    const bool lone = model->shape.state_spaces && !l.mlp_norm && !l.post_mlp_norm && !l.experts &&
                      !l.matrix[UP].data && !l.matrix[DOWN].data;
    bool whole =
        (l.attention_norm || l.post_attention_norm) && (lone || l.mlp_norm || l.post_mlp_norm);
    const bool shared = shared_width(model->shape, l) && !lone;
    for (int role = l.mixer != ATTENDS ? GATE : QUERY; role < (shared ? ROLES : GATE); role++)
      whole = whole && (l.matrix[role].data || (role == GATE && model->shape.ungated) ||
                        ((role == KEY || role == VALUE) && l.source != layer));
    if (streams)
      whole = whole && l.laurel_left.data && l.laurel_right.data && l.laurel_norm && l.altup_norm &&
              l.altup_scale && l.altup_router && l.altup_predict && l.altup_correct &&
              l.attention_norm && l.mlp_norm && l.post_attention_norm && l.post_mlp_norm;
    if (given) whole = whole && l.given_gate.data && l.given_out.data && l.given_norm;
    if (model->shape.latent_size) whole = whole && l.latent.data && l.latent_norm;
    if (model->shape.query_rank) whole = whole && l.query_down.data && l.query_down_norm;
    if (l.mixer == CONVOLVES) whole = whole && l.conv_in.data && l.conv_out.data && l.conv_kernel;
    if (remembers(model->shape, l))
      whole = whole && l.delta_in.data && l.delta_gate.data && l.delta_alpha.data &&
              l.delta_out.data && l.delta_kernel && l.decay && l.decay_bias &&
              (model->shape.state_spaces ? l.skip != nullptr : l.delta_beta.data && l.delta_gain);
    if (l.mixer == ATTENDS && model->shape.attention_gate) whole = whole && l.out_gate.data;
    if (l.experts) whole = whole && l.router.data && !l.post_mlp_norm;
    for (int i = 0; l.experts && i < model->shape.num_experts * EXPERT_ROLES; i++)
      whole = whole && (l.experts[i].data || (i % EXPERT_ROLES == 0 && model->shape.ungated));
    if (!whole) return complain("layer %d lacks a matrix or a norm", layer), false;
  }
  return true;
}

// Rows and columns of what an adapter changes in a layer; 0: there is none.
static int adapted_rows(const OwnedModel& model, int layer, int role, int& columns) {
  const Shape& s = model.shape;
  if (layer < 0 || layer >= s.num_layers || role < 0 || role >= ADAPTED || s.latent_size ||
      s.per_layer_size)
    return 0;
  const Layer& l = model.layers[layer];
  columns = role == DELTA_OUT_ROLE ? delta_values(s)
            : role < ROLES         ? columns_of(s, l, role)
                                   : s.hidden_size;
  if (role < GATE) return l.mixer == ATTENDS ? rows_of(s, l, role) : 0;
  if (role < ROLES)
    return s.num_experts || l.inner != s.intermediate_size ? 0 : rows_of(s, l, role);
  if (role == OUT_GATE_ROLE) return l.out_gate.rows;
  if (!remembers(s, l)) return 0;
  return role == DELTA_IN_ROLE     ? delta_width(s)
         : role == DELTA_GATE_ROLE ? delta_values(s)
                                   : s.hidden_size;
}

QC_EXPORT OwnedAdapter* quietchoir_adapter_new(const OwnedModel* model) {
  try {
    std::unique_ptr<OwnedAdapter> adapter(new OwnedAdapter());
    adapter->model = model;
    adapter->owned.resize(size_t(model->shape.num_layers) * ADAPTED);
    adapter->factors = adapter->owned.data();
    return adapter.release();
  } catch (const std::exception& error) { return complain("%s", error.what()), nullptr; }
}

QC_EXPORT void quietchoir_adapter_free(OwnedAdapter* adapter) { delete adapter; }

// Adds one matrix's factors: down [rank][columns], up [rows][rank] with the scale in it. False
// after a complaint.
QC_EXPORT bool quietchoir_adapter_add(OwnedAdapter* adapter, int layer, int role, int rank,
                                      int columns, int rows, const float* down, const float* up) {
  try {
    int expected_columns = 0;
    const int expected_rows = adapted_rows(*adapter->model, layer, role, expected_columns);
    if (!expected_rows || rank < 1 || rank > 1024 || columns != expected_columns ||
        rows != expected_rows)
      return complain("factors of rank %d, %d x %d, for matrix %d of layer %d", rank, rows, columns,
                      role, layer),
             false;
    const int wide = padded(columns), strips = (rows + STRIP - 1) / STRIP;
    const int pairs = lora_pairs(rank);
    std::unique_ptr<uint16_t[]> numbers(
        new uint16_t[size_t(rank) * wide + size_t(strips) * STRIP * 2 * pairs]());
    uint16_t *down_at = numbers.get(), *up_at = down_at + size_t(rank) * wide;
    for (int r = 0; r < rank; r++) {
      for (int k = 0; k < columns; k++)
        down_at[size_t(r) * wide + k] = to_bf16(down[size_t(r) * columns + k]);
      for (int row = 0; row < rows; row++)
        up_at[((size_t(row / STRIP) * pairs + r / 2) * STRIP + row % STRIP) * 2 + r % 2] =
            to_bf16(up[size_t(row) * rank + r]);
    }
    adapter->factors[layer * ADAPTED + role] = {rank, down_at, up_at, nullptr, nullptr};
    if (rank > adapter->rank) adapter->rank = rank;
    adapter->numbers.push_back(std::move(numbers));
    return true;
  } catch (const std::exception& error) { return complain("%s", error.what()), false; }
}

// What becomes of one matrix's product before those factors are added: gain * product + shift,
// [rows] each. False after a complaint.
QC_EXPORT bool quietchoir_adapter_output(OwnedAdapter* adapter, int layer, int role, int rows,
                                         const float* gain, const float* shift) {
  try {
    int columns = 0;
    if (!rows || rows != adapted_rows(*adapter->model, layer, role, columns) ||
        !adapter->factors[layer * ADAPTED + role].rank)
      return complain("gains of %d rows for matrix %d of layer %d", rows, role, layer), false;
    const size_t wide = size_t((rows + STRIP - 1) / STRIP) * STRIP;
    std::unique_ptr<float[]> both(new float[2 * wide]());
    std::memcpy(both.get(), gain, size_t(rows) * 4);
    std::memcpy(both.get() + wide, shift, size_t(rows) * 4);
    LoraFactors& factors = adapter->factors[layer * ADAPTED + role];
    factors.gain = both.get(), factors.shift = both.get() + wide;
    adapter->outputs.push_back(std::move(both));
    return true;
  } catch (const std::exception& error) { return complain("%s", error.what()), false; }
}
