// One model and one step of it, as plain data: what kernels of all instruction sets read.
//
// Owned by model.cpp. No containers, no functions that the linker could mix between instruction
// sets. Arrays of floats are padded with zeros to a multiple of 32, so that kernels read whole
// vectors.
#pragma once
#include "matrix.h"
#include "team.h"

namespace quietchoir {

constexpr int BLOCK =
    16;  // tokens of one block of the cache; `BLOCK_TOKENS` in Python, which a test compares
constexpr int CHUNK = 128;        // tokens that attention takes at a time
constexpr int MOST_TAPS = BLOCK;  // rows that a convolution sees at most

enum Role : int32_t { QUERY, KEY, VALUE, OUTPUT, GATE, UP, DOWN, ROLES };
// What adapters change besides: attention's gate, and of a delta net its inputs, gate and output.
enum RareRole : int32_t {
  OUT_GATE_ROLE = ROLES,
  DELTA_IN_ROLE,
  DELTA_GATE_ROLE,
  DELTA_OUT_ROLE,
  ADAPTED
};
constexpr int MOST_STREAMS = 16;
constexpr int EXPERT_ROLES = 3;  // GATE, UP, DOWN less GATE
enum Activation : int32_t { SILU, GELU, GELU_ERF, RELU2, SWIGLU_OAI, RELU, ACTIVATIONS };
constexpr const char* ROLE_NAMES[ROLES] = {"q_proj",    "k_proj",  "v_proj",   "o_proj",
                                           "gate_proj", "up_proj", "down_proj"};
constexpr const char* ACTIVATION_NAMES[ACTIVATIONS] = {"silu",  "gelu_tanh",  "gelu",
                                                       "relu2", "swiglu_oai", "relu"};

enum Mixer : int32_t { ATTENDS, CONVOLVES, DELTA_NET, MIXERS };  // what a layer has

// What the caller says of a model; `model_new` checks it.
struct Shape {
  int32_t num_layers, hidden_size, intermediate_size, num_heads, num_kv_heads, head_dim, vocab_size;
  int32_t blocks;                          // of the cache
  int32_t ropes;                           // tables of frequencies
  int32_t activation;                      // Activation
  int32_t rope_dim;                        // numbers of a head that rope turns, the first ones
  int32_t num_experts, experts_per_token;  // of a mixture; 0: one feed-forward for all rows
  int32_t expert_norm;                     // a row's shares add up to 1
  int32_t wide_norms;                      // queries and keys are normed over all heads at once
  float norm_eps, embedding_scale, attention_scale, residual_scale, logit_scale;
  // Below, 0 is what Llama does.
  float attention_softcap, logit_softcap;   // c * tanh(x / c)
  float expert_scale;                       // of a row's shares; 0: 1
  float temperature;                        // by which queries without rope grow, see `growth_at`
  int32_t dense_size;                       // feed-forward width of layers without experts
  int32_t shared_size;                      // of one for all rows beside the experts
  int32_t sigmoid_routing;                  // scores are sigmoids, each for itself
  int32_t expert_groups, groups_per_token;  // a row's experts come from its best groups
  int32_t centred_norms;                    // norms over the width are LayerNorms
  int32_t parallel;                         // attention and feed-forward read the same rows
  int32_t ungated;                          // the feed-forward is activation(up x)
  int32_t norms_behind_rope;                // of queries and keys
  int32_t latent_size, query_rank;          // latent attention, see latent.h; 0: none
  int32_t value_dim;                        // numbers of a head's value; 0: as of its key
  int32_t positions;                        // rows of a table, one of which a position adds
  int32_t conv_kernel;                      // rows that a convolution sees; 0: there is none
  int32_t temperature_floor;                // positions until they grow
  int32_t expert_inputs;                    // shares scale what experts are given
  int32_t attention_gate;                   // what attention gives passes a gate of each row
  int32_t delta_key_heads, delta_value_heads, delta_key_dim, delta_value_dim;  // see delta.h
  int32_t delta_tiled;           // value head i is served by i modulo the key heads
  int32_t state_spaces;          // what would be delta nets are Mamba-2's scans
  int32_t scan_beside;           // of attention, in every layer
  int32_t per_layer_size;        // numbers that each layer is given of a row, see given.h; 0: none
  int32_t streams, laurel_rank;  // see streams.h; 0: one alone
  int32_t per_layer_tokens;      // that layers are given something of; 0: all
  int32_t kv_type;               // KvType
  int32_t head_terms;            // of the largest logits, where more than the head's own
};

// The widest feed-forward that a row goes through whole.
QC_INLINE int widest_inner(const Shape& s) {
  const int whole = s.num_experts ? 0 : s.intermediate_size;
  const int others = s.dense_size > s.shared_size ? s.dense_size : s.shared_size;
  return whole > others ? whole : others;
}

struct Layer {
  Matrix matrix[ROLES];
  Matrix router;                     // of a mixture
  const Matrix* experts;             // [num_experts][EXPERT_ROLES]; null: not a mixture
  const float* bias[ROLES];          // null where there is none
  const float* attention_norm;       // of the input of attention; null: none
  const float* mlp_norm;             // of the input of the feed-forward; null: none
  const float* query_norm;           // [head size], or of all heads, before rope; null: none
  const float* key_norm;             // the same
  const float* post_attention_norm;  // of what attention adds to the stream; null: none
  const float* post_mlp_norm;        // of what the feed-forward adds; null: none
  int32_t window;                    // tokens a row sees, itself included; 0: all; -n: of its run
  int32_t rope;                      // which table of frequencies; -1: none
  const float* attention_norm_bias;  // of LayerNorms; null: none
  const float* mlp_norm_bias;
  const float* sinks;         // [num_heads]; null: none
  const float* router_bias;   // [num_experts]; null: none
  const float* routing_bias;  // [num_experts], of the choice alone; null: none
  const float* shared_gate;   // [hidden_size], of the feed-forward beside experts; null: none
  const float* expert_bias[EXPERT_ROLES];  // [num_experts][rows, padded]; null: none
  Matrix query_down, latent;               // of latent attention
  const float* query_down_norm;
  const float* latent_norm;
  int32_t mixer;             // Mixer
  Matrix out_gate;           // of attention, where it has one
  Matrix conv_in, conv_out;  // of a convolution
  const float* conv_kernel;  // [conv_kernel][hidden_size], the earliest row's first
  Matrix delta_in, delta_gate, delta_beta, delta_alpha, delta_out;
  const float* delta_kernel;        // [conv_kernel][delta width], the earliest row's first
  const float *decay, *decay_bias;  // [value heads]
  const float* delta_gain;          // [value size], of scans [values] or null
  const float* delta_kernel_bias;   // [delta width]; null: none
  const float* skip;                // [value heads], of scans
  // Where layers differ; else as `Shape` says. Of the latter those are the largest.
  int32_t kv_heads, head_dim, inner;  // inner: of the feed-forward for all rows
  int32_t source;           // whose keys and values it reads: its own number, or an earlier layer
  const float* value_norm;  // [head size], ones; null: values are not normed
  Matrix given_gate, given_out;  // see given.h
  const float* given_norm;
  Matrix laurel_left, laurel_right;  // see streams.h, as the next ones
  const float *laurel_norm, *altup_norm, *altup_scale;
  const float* altup_router;   // [streams][hidden_size]
  const float* altup_predict;  // [streams][streams][streams]
  const float* altup_correct;  // [streams][streams]
  const float* gate_cutoff;    // deviations above a row's mean; null: all gates open
  const float* scale;          // of what it gives; null: 1
  size_t cache;                // bytes before this layer's part of a block
  size_t state;                // numbers before its part of a sequence's state
};

// Queries that share a head of keys.
QC_INLINE int group_of(const Shape& s, const Layer& layer) { return s.num_heads / layer.kv_heads; }

// Numbers of a head that rope turns, and where its sines stand behind the cosines.
QC_INLINE int turned_in(const Shape& s, const Layer& layer) {
  return s.rope_dim == s.head_dim ? layer.head_dim : s.rope_dim;
}

// Numbers of one row of `qkv`, in layers of the largest heads.
QC_INLINE size_t qkv_width(const Shape& s) {
  return size_t(s.num_heads + 2 * s.num_kv_heads) * s.head_dim;
}

QC_INLINE bool remembers(const Shape& s, const Layer& layer) {
  return layer.mixer == DELTA_NET || s.scan_beside;
}

// Numbers of a row that a delta net's convolution sees; rows of its four inputs side by side, each
// to a multiple of STRIP; and numbers that one layer remembers of a sequence.
QC_INLINE int delta_width(const Shape& s) {
  return 2 * s.delta_key_heads * s.delta_key_dim + s.delta_value_heads * s.delta_value_dim;
}
QC_INLINE int delta_values(const Shape& s) { return s.delta_value_heads * s.delta_value_dim; }
QC_INLINE size_t delta_state(const Shape& s) {
  return size_t(s.conv_kernel - 1) * delta_width(s) +
         size_t(s.delta_value_heads) * s.delta_key_dim * s.delta_value_dim;
}

// Numbers of a head's value, and of its key that are its own in latent attention.
QC_INLINE int value_size(const Shape& s) { return s.value_dim ? s.value_dim : s.head_dim; }
QC_INLINE int own_key_size(const Shape& s) { return s.head_dim - s.rope_dim; }

// What an adapter makes of one matrix's product: gain * product + shift + up (down x).
struct LoraFactors {
  int32_t rank;          // 0: none
  const uint16_t* down;  // bf16 [rank][columns to a multiple of 32]
  const uint16_t* up;    // bf16 [strips][rank / 2, up][16][2], the scale in it
  const float* gain;     // [strips][16], of each row; null: 1, and no shift
  const float* shift;
};

// Pairs of neighbouring ranks, the last one perhaps with zeros.
QC_INLINE int lora_pairs(int rank) { return (rank + 1) / 2; }

struct Adapter {
  LoraFactors* factors;  // [layers][ADAPTED]
  int32_t rank;          // the largest
};

// What keys and values are kept as.
enum KvType : int32_t { KV_BF16, KV_Q8, KV_Q4, KV_TYPES };
constexpr const char* KV_TYPE_NAMES[KV_TYPES] = {"bf16", "q8", "q4"};
constexpr int KV_GROUP = 64;  // numbers of a head that share a scale, where they are integers
QC_INLINE int kv_groups(int head_size) { return (head_size + KV_GROUP - 1) / KV_GROUP; }

// Bytes of what stands before the integers of one block and head.
QC_INLINE size_t kv_scale_bytes(int type, int head_size) {
  return size_t(kv_groups(head_size)) * BLOCK * 2 * (type == KV_Q4 ? 4 : 2);
}

// The cache, [blocks]: of layers that attend [layers][kv heads], each a block of keys, then one of
// values; behind them of layers that convolve [layers][16 tokens][hidden size], in bf16. Keys and
// values in bf16:
//   keys    [head size / 2][16 tokens][2]: two neighbours of a token's key beside each other
//   values  [16 tokens / 2][head size][2]: two neighbouring tokens beside each other
// As integers, of 8 bits with a bias of 128, of 4 from the group's least number on:
//   scales  bf16 [groups][16 tokens] of keys, the same of values; of 4 bits their least numbers too
//   keys    8 bits: [head size / 4][16 tokens][4], four neighbours of a token's key in a lane;
//           4 bits: [head size / 8][16 tokens][4], those of d below 4 of 8 in the low halves
//   values  8 bits: [head size / 16][4][16 dimensions][4], four neighbouring tokens in a lane;
//           4 bits: [head size / 32][4][16][4], of the first 16 dimensions in the low halves
// so a vector of keys serves 16 tokens and one of values 16 dimensions, and nothing is summed
// across lanes.
struct Cache {
  uint8_t* memory;
  size_t block;  // bytes from one to the next
  int32_t type;  // KvType

  // Keys and values of a block and head.
  QC_INLINE static size_t one(int type, int head_size) {
    if (type == KV_BF16) return size_t(4) * BLOCK * head_size;
    const size_t scales = kv_scale_bytes(type, head_size);
    if (type == KV_Q8) return scales + size_t(2) * BLOCK * head_size;
    return scales + size_t(BLOCK) * head_size / 2 + size_t((head_size + 31) / 32) * 4 * 64;
  }
  QC_INLINE size_t one(int head_size) const { return one(type, head_size); }
};

// Some tokens of one sequence.
struct Span {
  float* state;  // what its layers remember, or null
  int32_t row;   // its first, in the step
  int32_t rows;
  int32_t position;        // of its first token
  int32_t wanted;          // how many of its last rows shall have logits
  const int32_t* table;    // block numbers
  const Adapter* adapter;  // or null
};

// Some rows of one span, against some of their context.
struct AttentionTask {
  int32_t span, row, rows;  // row: in the step
  int32_t chunks;           // of the context, from its first token on
  int32_t splits;           // their number is cut into so many
  size_t partial;  // where the chunks' results stand, in Run::partials; unused for one split
};

struct Model {
  Shape shape;
  Layer* layers;
  Matrix head;
  const float* final_norm;
  const float* final_norm_bias;  // null: none
  const float* head_bias;        // null: none
  const float* positions;        // [positions][hidden_size]; null: none
  const float* slopes;           // [num_heads], by which scores fall with distance; null: none
  const float* embedding_norm;   // null: none
  const float* embedding_norm_bias;
  const float* frequencies;  // [ropes][rope_dim / 2], radians a position
  const float* magnitudes;   // [ropes], of cosines and sines
  const uint8_t* embedding;  // the file's own rows
  size_t embedding_row;      // bytes
  int32_t embedding_kind;
  const uint8_t* given;  // the file's own rows [vocabulary][num_layers * per_layer_size], or null
  size_t given_row;      // bytes
  int32_t given_kind;
  Matrix given_projection;
  const float* given_projection_norm;              // [per_layer_size]
  Matrix stream_in, stream_out[MOST_STREAMS - 1];  // see streams.h
  int32_t terms;                                   // the most that one of its matrices wants
  Cache cache;
};

// The rows that take one expert: some of the (row, place) pairs, which stand ordered by expert.
struct ExpertRows {
  int32_t expert;
  int32_t first, count;  // of the pairs
  int32_t panel_row;     // their first, where each expert's begin a new panel
};

// A mixture's working memory for one layer. A pair is one of the experts that a row takes.
struct Mixture {
  float* scores;       // [rows][experts, padded]: the router's
  float* choice;       // the same, by which experts are chosen
  int32_t* chosen;     // [rows][experts_per_token]: experts, the highest score first
  float* shares;       // [rows][experts_per_token]
  int32_t* place;      // [rows][experts_per_token]: where the pair stands in the order by expert
  int32_t* row;        // [pairs]: of each pair in that order, its row
  int32_t* owner;      // [pairs]: its number among `active`
  ExpertRows* active;  // those that any row takes
  int32_t* actives;    // how many
  float* gated;        // [pairs][feed-forward width]
  float* out;          // [pairs][width]
  uint8_t* panels;     // each expert's own
};

struct Run {
  const Model* model;
  Team* team;
  int32_t rows, wanted, spans, tasks;
  const int32_t* tokens;
  const Span* span;
  const AttentionTask* task;
  const int32_t* output_rows;            // [wanted] rows whose logits are asked for
  const Adapter* const* adapter;         // [rows], null where there is none
  const Adapter* const* output_adapter;  // [wanted]
  const int32_t* row_span;               // [rows]
  int32_t rank;                          // the largest of this step; 0: no adapters
  int32_t task_queries;  // queries of a task at most, all heads of one key head counted

  // Working memory. Widths are padded to a multiple of 32.
  float *x, *qkv, *mixed, *gated, *added,
      *cos_sin;             // [rows] each; cos_sin: [ropes][rows][head size] cosines, then sines
  float *low, *heads;       // [rows] each, of latent attention: see latent.h
  float* conv;              // [rows], see convolution.h
  float *delta, *seen;      // [rows], see delta.h
  float* gates;             // [rows][heads], of attention that has any
  float *streams, *apart;   // [rows] each, see streams.h
  float* given;             // [rows][given_width], see given.h
  float* output;            // [wanted][width]
  float* partials;          // partial attention
  uint8_t* panels;          // shared
  float* lora;              // [rows][3][rank]
  uint8_t* thread_scratch;  // each member's: see forward.h
  size_t thread_scratch_bytes;
  float* logits;  // [wanted][vocabulary]
  Mixture mixture;
};

QC_INLINE int padded(int n) { return (n + 31) / 32 * 32; }

// Width of a row's `delta`: what its four matrices make, each to a multiple of STRIP.
QC_INLINE int strips_of(int n) { return (n + STRIP - 1) / STRIP * STRIP; }
QC_INLINE int delta_inputs_width(const Shape& s) {
  return strips_of(delta_width(s)) + strips_of(delta_values(s)) +
         2 * strips_of(s.delta_value_heads);
}

// Numbers that all layers are given of a row.
QC_INLINE int given_width(const Shape& s) { return s.num_layers * s.per_layer_size; }

// Width of a row's `mixed`: what attention or a convolution gives.
QC_INLINE int mixed_width(const Shape& s) {
  const int heads = s.num_heads * s.head_dim, rows = s.conv_kernel ? s.hidden_size : 0,
            values = delta_values(s), most = heads > rows ? heads : rows;
  return padded(most > values ? most : values);
}

// Widths of a row's `low` and `heads`.
QC_INLINE int low_width(const Shape& s) {
  const int queries = s.query_rank ? s.query_rank : s.num_heads * s.head_dim;
  return padded(queries + s.latent_size + s.rope_dim);
}
QC_INLINE int heads_width(const Shape& s) {
  return padded(s.num_heads * (own_key_size(s) + value_size(s)));
}

}  // namespace quietchoir
