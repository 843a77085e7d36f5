// An encoder: built once, then run over batches of texts. Everything that a caller names is checked
// here.
#include "encoder_run.h"

#include <exception>

#include "dispatch.h"
#include "model.h"

namespace quietchoir {

struct OwnedEncoder : Encoder {
  std::vector<EncoderLayer> owned_layers;
  Arena arena;
  ScratchBuffer scratch;
  std::unique_ptr<Team, TeamDeleter> team;
  const Table* table = nullptr;
  std::mutex one_batch;  // a batch uses the team and the scratch buffer alone
};

namespace {

constexpr int TASK_ROWS = 64;  // queries that one member takes at a time, of one head
constexpr int MOST_ROWS = 1 << 20;

// Vectors of an encoder by number; those of a layer are a weight and a bias for each of
// EncoderNorm, then a bias for each of Role.
enum EncoderVector {
  EMBEDDING_NORM,
  EMBEDDING_NORM_BIAS,
  LAST_NORM,
  LAST_NORM_BIAS,
  POSITIONS,
  EMBEDDING_SHIFT,
  SECOND_SHIFT,
  ENCODER_VECTORS
};

bool check(const EncoderShape& s) {
  const int sizes[] = {s.num_layers,   s.hidden_size, s.intermediate_size, s.num_heads,
                       s.num_kv_heads, s.head_dim,    s.vocab_size};
  for (int size : sizes)
    if (size < 1 || size > (1 << 24)) return complain("a size of %d is out of range", size), false;
  if (s.hidden_size > (1 << 20) || s.intermediate_size > (1 << 20) || s.num_layers > 4096 ||
      s.num_heads > 4096 || s.head_dim > 256 || s.positions < 0 || s.positions > MOST_ROWS ||
      s.ropes < 0 || s.ropes > 4096)
    return complain("an encoder of these sizes is not known"), false;
  if (s.hidden_size % 32 || s.intermediate_size % 32 || s.num_heads * s.head_dim % 32 ||
      s.head_dim % 16)
    return complain("width %d, ffn width %d or %d heads of %d are no multiples of 32",
                    s.hidden_size, s.intermediate_size, s.num_heads, s.head_dim),
           false;
  if (s.num_heads % s.num_kv_heads)
    return complain("%d heads do not share %d key heads evenly", s.num_heads, s.num_kv_heads),
           false;
  if (s.activation < 0 || s.activation > GELU_ERF || s.pooling < 0 || s.pooling >= POOLINGS)
    return complain("activation %d or pooling %d is unknown", s.activation, s.pooling), false;
  return true;
}

int encoder_rows(const EncoderShape& s, int role) {
  const int queries = s.num_heads * s.head_dim, keys = s.num_kv_heads * s.head_dim;
  return role == QUERY                  ? queries
         : role == KEY || role == VALUE ? keys
         : role == GATE || role == UP   ? s.intermediate_size
                                        : s.hidden_size;
}
int encoder_columns(const EncoderShape& s, int role) {
  return role == OUTPUT ? s.num_heads * s.head_dim
         : role == DOWN ? s.intermediate_size
                        : s.hidden_size;
}

// Texts, tasks and the text of each row.
struct Batch {
  std::vector<Text> texts;
  std::vector<QueryTask> tasks;
  std::vector<int32_t> row_text;
  int rows = 0, blocks = 0, longest = 0;

  Batch(int count, const int32_t* lengths, const int32_t* seconds) {
    for (int i = 0; i < count; i++) {
      texts.push_back({rows, lengths[i], seconds[i], blocks});
      row_text.insert(row_text.end(), lengths[i], i);
      for (int r = 0; r < lengths[i]; r += TASK_ROWS)
        tasks.push_back({i, r, lengths[i] - r < TASK_ROWS ? lengths[i] - r : TASK_ROWS});
      rows += lengths[i], blocks += (lengths[i] + LANES - 1) / LANES;
      if (lengths[i] > longest) longest = lengths[i];
    }
  }
};

size_t lay_out(EncoderRun& run, const OwnedEncoder& encoder, int longest, uint8_t* memory) {
  const EncoderShape& s = encoder.shape;
  const size_t rows = run.rows, mixed = size_t(s.num_heads) * s.head_dim,
               qkv = mixed + size_t(2) * s.num_kv_heads * s.head_dim,
               heads = size_t(run.blocks) * LANES * s.num_kv_heads * s.head_dim;
  size_t widest = mixed;
  for (int width : {s.hidden_size, s.intermediate_size})
    if (size_t(width) > widest) widest = width;
  Cutter cut{memory};
  run.x = cut.take<float>(rows * s.hidden_size);
  run.qkv = cut.take<float>(rows * (qkv > size_t(s.hidden_size) ? qkv : s.hidden_size));
  run.mixed = cut.take<float>(rows * mixed);
  run.gated = cut.take<float>(rows * s.intermediate_size);
  run.cos_sin = cut.take<float>(rows * s.ropes * s.head_dim);
  run.keys = cut.take<float>(heads);
  run.values = cut.take<float>(heads);
  run.panels = cut.take<uint8_t>(encoder.table->panel_bytes(run.rows, int(widest), 1));
  run.thread_scratch_bytes = to_multiple(
      (widest + size_t(encoder.table->mr) * to_multiple(longest, LANES)) * sizeof(float), 64);
  run.thread_scratch = cut.take<uint8_t>(run.thread_scratch_bytes * team_size(*encoder.team));
  return cut.used;
}

}  // namespace
}  // namespace quietchoir

using namespace quietchoir;

// Null after a complaint. `frequencies` [ropes][head size / 2]; `reaches` and `ropes` name one for
// each layer.
QC_EXPORT OwnedEncoder* quietchoir_encoder_new(const char* set, const EncoderShape* shape,
                                               int threads, const float* frequencies,
                                               const int32_t* reaches, const int32_t* ropes) {
  try {
    const Table* table = find_table(set);
    if (!table)
      return complain("this processor does not run %s", set ? set : "any instruction set"), nullptr;
    if (!check(*shape)) return nullptr;
    std::unique_ptr<OwnedEncoder> encoder(new OwnedEncoder());
    encoder->table = table, encoder->shape = *shape;
    encoder->owned_layers.resize(shape->num_layers);
    encoder->layers = encoder->owned_layers.data();
    for (int layer = 0; layer < shape->num_layers; layer++) {
      if (ropes[layer] < -1 || ropes[layer] >= shape->ropes || reaches[layer] < 0 ||
          reaches[layer] > MOST_ROWS)
        return complain("layer %d has rope %d and reach %d", layer, ropes[layer], reaches[layer]),
               nullptr;
      encoder->layers[layer].reach = reaches[layer], encoder->layers[layer].rope = ropes[layer];
    }
    if (shape->ropes)
      encoder->frequencies = keep(encoder->arena, frequencies, shape->ropes * shape->head_dim / 2);
    encoder->team.reset(team_new(threads));
    return encoder.release();
  } catch (const std::exception& error) { return complain("%s", error.what()), nullptr; }
}

QC_EXPORT void quietchoir_encoder_free(OwnedEncoder* encoder) { delete encoder; }

// Packs one matrix. False after a complaint.
QC_EXPORT bool quietchoir_encoder_matrix(OwnedEncoder* encoder, int layer, int role, int kind,
                                         int rows, int columns, const uint8_t* raw,
                                         size_t row_bytes) {
  try {
    const EncoderShape& s = encoder->shape;
    if (layer < 0 || layer >= s.num_layers || role < 0 || role >= ROLES ||
        rows != encoder_rows(s, role) || columns != encoder_columns(s, role))
      return complain("matrix %d of layer %d is %d x %d", role, layer, rows, columns), false;
    return pack_matrix(*encoder->team, encoder->arena, encoder->layers[layer].matrix[role], kind,
                       rows, columns, raw, row_bytes);
  } catch (const std::exception& error) { return complain("%s", error.what()), false; }
}

// The embedding's raw rows; they stay the caller's.
QC_EXPORT bool quietchoir_encoder_embedding(OwnedEncoder* encoder, int kind, const uint8_t* raw,
                                            size_t row_bytes) {
  if (!check_rows(kind, encoder->shape.hidden_size, row_bytes)) return false;
  encoder->embedding = raw, encoder->embedding_row = row_bytes, encoder->embedding_kind = kind;
  return true;
}

// Keeps a copy of one vector, as EncoderVector numbers them where `layer` is -1. False after a
// complaint.
QC_EXPORT bool quietchoir_encoder_vector(OwnedEncoder* encoder, int layer, int which,
                                         const float* values, int count) {
  try {
    const EncoderShape& s = encoder->shape;
    const float** place = nullptr;
    int expected = s.hidden_size;
    if (layer == -1 && which >= 0 && which < ENCODER_VECTORS) {
      const float** places[] = {&encoder->embedding_norm.weight,
                                &encoder->embedding_norm.bias,
                                &encoder->final_norm.weight,
                                &encoder->final_norm.bias,
                                &encoder->position,
                                &encoder->embedding_shift,
                                &encoder->second_shift};
      place = places[which];
      if (which == POSITIONS) expected = s.positions * s.hidden_size;
    } else if (layer >= 0 && layer < s.num_layers && which >= 0 &&
               which < 2 * ENCODER_NORMS + ROLES) {
      EncoderLayer& own = encoder->layers[layer];
      const int norm = which / 2;
      if (which < 2 * ENCODER_NORMS) {
        place = which % 2 ? &own.norm[norm].bias : &own.norm[norm].weight;
        if (norm == ENCODER_QUERY_NORM || norm == ENCODER_KEY_NORM) expected = s.head_dim;
      } else {
        place = &own.bias[which - 2 * ENCODER_NORMS];
        expected = encoder_rows(s, which - 2 * ENCODER_NORMS);
      }
    }
    if (!place || count != expected)
      return complain("vector %d of layer %d has %d numbers, expected %d", which, layer, count,
                      expected),
             false;
    *place = keep(encoder->arena, values, count);
    return true;
  } catch (const std::exception& error) { return complain("%s", error.what()), false; }
}

// False after a complaint if anything that every encoder has is missing.
QC_EXPORT bool quietchoir_encoder_complete(const OwnedEncoder* encoder) {
  const EncoderShape& s = encoder->shape;
  if (!encoder->embedding || (s.positions && !encoder->position))
    return complain("the embedding or its positions are missing"), false;
  for (int layer = 0; layer < s.num_layers; layer++)
    for (int role = 0; role < ROLES; role++)
      if (!encoder->layers[layer].matrix[role].data && (role != GATE || s.gated))
        return complain("layer %d lacks matrix %d", layer, role), false;
  return true;
}

// Vectors of `texts` texts, [texts][width], not scaled to length one: `lengths` tokens of each, one
// behind the other; of a pair, its second text begins at its token `seconds`. False after a
// complaint; then nothing was written.
QC_EXPORT bool quietchoir_encode(OwnedEncoder* encoder, int texts, const int32_t* lengths,
                                 const int32_t* seconds, const int32_t* tokens, float* out) {
  try {
    const EncoderShape& s = encoder->shape;
    const int most = s.positions ? s.positions : MOST_ROWS;
    int64_t rows = 0;
    if (texts < 1 || texts > MOST_ROWS) return complain("%d texts", texts), false;
    for (int i = 0; i < texts; i++) {
      if (lengths[i] < 1 || lengths[i] > most)
        return complain("text %d has %d tokens, at most %d", i, lengths[i], most), false;
      if (seconds[i] < 0 || seconds[i] > lengths[i])
        return complain("text %d has %d tokens, its second part begins at %d", i, lengths[i],
                        seconds[i]),
               false;
      rows += lengths[i];
    }
    if (rows > MOST_ROWS) return complain("%lld tokens at once", (long long)rows), false;
    for (int i = 0; i < rows; i++)
      if (tokens[i] < 0 || tokens[i] >= s.vocab_size)
        return complain("token %d of %d", tokens[i], s.vocab_size), false;
    const Batch batch(texts, lengths, seconds);
    std::lock_guard<std::mutex> lock(encoder->one_batch);
    EncoderRun run{};
    run.encoder = encoder, run.team = encoder->team.get();
    run.rows = batch.rows, run.texts = texts, run.blocks = batch.blocks;
    run.tasks = int(batch.tasks.size());
    run.tokens = tokens, run.text = batch.texts.data(), run.task = batch.tasks.data(),
    run.row_text = batch.row_text.data(), run.out = out;
    lay_out(run, *encoder, batch.longest,
            encoder->scratch.at_least(lay_out(run, *encoder, batch.longest, nullptr)));
    run_all(*encoder->team, encoder->table->encode, run);
    return true;
  } catch (const std::exception& error) { return complain("%s", error.what()), false; }
}
