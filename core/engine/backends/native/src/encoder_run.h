// One encoder and one batch of texts, as plain data: what kernels of all instruction sets read.
//
// An encoder sees whole texts at once and keeps nothing: no cache, no logits, no adapters. Texts
// stand one behind the other, without padding. All widths are multiples of 32.
#pragma once
#include "matrix.h"
#include "run.h"
#include "team.h"

namespace quietchoir {

enum Pooling : int32_t { MEAN, FIRST, LAST, POOLINGS };
constexpr int LANES = 16;  // tokens whose keys lie side by side

// What the caller says of an encoder; `encoder_new` checks it.
struct EncoderShape {
  int32_t num_layers, hidden_size, intermediate_size, num_heads, num_kv_heads, head_dim, vocab_size;
  int32_t positions;   // learned ones, hence the longest text; 0: none
  int32_t ropes;       // tables of frequencies
  int32_t activation;  // SILU, GELU or GELU_ERF
  int32_t gated;       // the feed-forward is activation(gate x) * up x, else activation(up x)
  int32_t rms;         // norms divide by the root mean square, else by the deviation from the mean
  int32_t norm_sums;   // norms behind are of the stream with what was added (BERT), else of what is
                       // about to be added
  int32_t causal;      // a token sees none behind it
  int32_t pooling;     // Pooling
  float norm_eps, embedding_scale, attention_scale;
};

struct Norm {
  const float* weight;  // null: there is no such norm
  const float* bias;    // or null
};

enum EncoderNorm : int32_t {
  ENCODER_ATTENTION_NORM,
  ENCODER_MLP_NORM,
  ENCODER_AFTER_ATTENTION,
  ENCODER_AFTER_MLP,
  ENCODER_QUERY_NORM,  // of each head; these two have no bias
  ENCODER_KEY_NORM,
  ENCODER_NORMS
};

struct EncoderLayer {
  Matrix matrix[ROLES];
  const float* bias[ROLES];  // null where there is none
  Norm norm[ENCODER_NORMS];
  int32_t reach;  // tokens that a row sees to either side; 0: all
  int32_t rope;   // which table of frequencies; -1: none
};

struct Encoder {
  EncoderShape shape;
  EncoderLayer* layers;
  Norm embedding_norm, final_norm;
  const float* position;         // [positions][width], or null
  const float* embedding_shift;  // [width], added to every token, or null
  const float* second_shift;     // [width], added to tokens of a pair's second text, or null
  const float* frequencies;      // [ropes][head size / 2], radians a position
  const uint8_t* embedding;      // the file's own rows
  size_t embedding_row;          // bytes
  int32_t embedding_kind;
};

// One text.
struct Text {
  int32_t row, rows;  // in the batch
  int32_t second;     // where a pair's second text begins, in the text; `rows`: nowhere
  int32_t block;      // its first block of keys
};

// Some queries of one text.
struct QueryTask {
  int32_t text, row, rows;  // row: in the text
};

struct EncoderRun {
  const Encoder* encoder;
  Team* team;
  int32_t rows, texts, tasks, blocks;
  const int32_t* tokens;
  const Text* text;
  const QueryTask* task;
  const int32_t* row_text;  // [rows]

  float *x, *qkv, *mixed, *gated, *cos_sin;  // as in run.h
  float* keys;                               // [key heads][blocks][head size][LANES]
  float* values;                             // [key heads][blocks][LANES][head size]
  uint8_t* panels;                           // shared
  uint8_t* thread_scratch;                   // each member's: a row, then scores
  size_t thread_scratch_bytes;
  float* out;  // [texts][width]
};

}  // namespace quietchoir
