// Plays a tape of calls against every instruction set that runs here, and writes what came out.
//
//   check TAPE OUT
//
// For processors and sanitizers that Python is not built for: compiled together with the library's
// own sources, linked statically for another architecture or with -fsanitize. Every array of the
// tape gets memory of exactly its size, so that a sanitizer sees a read beyond it. Tape: int32
// words [op, number of integers, number of arrays], the integers, then for each array int64 bytes
// and its bytes; see `tape.py`. Output: for each set its name (16 bytes), int64 floats, the floats.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <sstream>
#include <string>
#include <vector>

#include "dispatch.h"
#include "encoder_run.h"
#include "exports.h"
#include "run.h"

using namespace quietchoir;

// A further set, from a file that only some builds have; null without it. It plays products alone,
// for the library does not know its name.
__attribute__((weak)) const Table* further_table();

namespace {

enum Op {
  MULTIPLY,
  DECODE,
  MODEL,
  MATRIX,
  EMBEDDING,
  VECTOR,
  ADAPTER,
  FACTORS,
  STEP,
  ENCODER,
  ENCODER_MATRIX,
  ENCODER_EMBEDDING,
  ENCODER_VECTOR,
  ENCODE
};

[[noreturn]] void stop(const char* what) {
  fprintf(stderr, "%s: %s\n", what, quietchoir_problem());
  exit(1);
}

struct Array {
  void* data;
  size_t size;
  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
  template <class T>
  int count() const {
    return int(size / sizeof(T));
  }
};

struct Record {
  int op;
  std::vector<int32_t> n;
  std::vector<Array> array;
};

void read(FILE* file, void* to, size_t size) {
  if (fread(to, 1, size, file) != size) stop("the tape ends early");
}

std::vector<Record> read_tape(const char* path) {
  FILE* file = fopen(path, "rb");
  if (!file) stop("no tape");
  std::vector<Record> tape;
  int32_t head[3];
  while (fread(head, 4, 3, file) == 3) {
    Record record{head[0], std::vector<int32_t>(head[1]), {}};
    read(file, record.n.data(), record.n.size() * 4);
    for (int i = 0; i < head[2]; i++) {
      int64_t size;
      read(file, &size, 8);
      Array array{malloc(size), size_t(size)};
      read(file, array.data, array.size);
      record.array.push_back(array);
    }
    tape.push_back(record);
  }
  fclose(file);
  return tape;
}

// One set at work.
struct Player {
  const Table* table;
  std::vector<float> out;
  OwnedModel* model = nullptr;
  uint8_t* cache = nullptr;
  std::vector<OwnedAdapter*> adapters;
  OwnedEncoder* encoder = nullptr;
  int width = 0;  // of the encoder's vectors

  void forget() {
    for (OwnedAdapter* adapter : adapters) quietchoir_adapter_free(adapter);
    adapters.clear();
    quietchoir_model_free(model);
    quietchoir_encoder_free(encoder);
    free(cache);
    model = nullptr, cache = nullptr, encoder = nullptr;
  }

  void multiply(const Record& r) {
    Matrix m;
    if (!shape_matrix(m, r.n[0], r.n[1], r.n[2])) stop("multiply");
    const size_t row_bytes = r.array[0].size / r.n[1];
    void* place = nullptr;
    if (posix_memalign(&place, 64, m.strips * m.strip_bytes)) stop("memory");
    m.data = static_cast<uint8_t*>(place), m.terms = r.n[0] > BF16 ? r.n[4] : 1;
    memset(m.data, 0xAA, m.strips * m.strip_bytes);  // packing must not rely on zeros
    for (int s = 0; s < m.strips; s++)
      pack_strip(m, s, r.array[0].as<uint8_t>() + s * STRIP * row_bytes, row_bytes,
                 r.n[1] - s * STRIP < STRIP ? r.n[1] - s * STRIP : STRIP);
    if (posix_memalign(&place, 64, table->multiply_scratch(r.n[3], r.n[2], m.terms)))
      stop("memory");
    float* product = static_cast<float*>(malloc(size_t(r.n[3]) * m.strips * STRIP * 4));
    table->multiply(m, r.array[1].as<float>(), r.n[3], product, static_cast<uint8_t*>(place));
    for (int t = 0; t < r.n[3]; t++) {
      const float* row = product + size_t(t) * m.strips * STRIP;
      out.insert(out.end(), row, row + r.n[1]);
    }
    free(product), free(place), free(m.data);
  }

  void start(const Record& r) {
    forget();
    const int32_t* n = r.n.data();
    const float* f = r.array[0].as<float>();
    Shape shape{n[1],  n[2],  n[3],  n[4],  n[5],  n[6], n[7], n[8], n[9], n[10],
                n[11], n[12], n[13], n[14], n[15], f[0], f[1], f[2], f[3], f[4]};
    shape.kv_type = n[16];
    const size_t heads = size_t(shape.num_layers) * shape.blocks * shape.num_kv_heads;
    cache = static_cast<uint8_t*>(calloc(heads, Cache::one(shape.kv_type, shape.head_dim)));
    const std::vector<int32_t> mixers(shape.num_layers, ATTENDS);
    std::vector<int32_t> sizes;
    for (int layer = 0; layer < shape.num_layers; layer++)
      for (int size : {shape.num_kv_heads, shape.head_dim, shape.intermediate_size, layer})
        sizes.push_back(size);
    model = quietchoir_model_new(table->name, &shape, n[0], cache, r.array[1].as<float>(),
                                 r.array[2].as<float>(), r.array[3].as<int32_t>(),
                                 r.array[4].as<int32_t>(), mixers.data(), sizes.data());
    if (!model) stop("model");
  }

  // r.n: how many logits' rows are wanted; whether the step is one that must be refused.
  void step(const Record& r) {
    if (!quietchoir_model_complete(model)) stop("the model is not whole");
    std::vector<const OwnedAdapter*> named;
    for (int i = 0; i < r.array[3].count<int32_t>(); i++) {
      const int32_t which = r.array[3].as<int32_t>()[i];
      named.push_back(which < 0 ? nullptr : adapters.at(which));
    }
    const size_t size = size_t(r.n[0]) * r.n[2];
    float* logits = static_cast<float*>(malloc(size * 4));
    const Step step{r.array[0].count<int32_t>() / 5,
                    r.array[1].count<int32_t>(),
                    r.n[0],
                    r.array[0].as<int32_t>(),
                    r.array[1].as<int32_t>(),
                    r.array[2].as<int32_t>(),
                    r.array[2].count<int32_t>(),
                    named.data(),
                    nullptr,
                    logits};
    if (quietchoir_forward(model, &step) == bool(r.n[1])) stop(r.n[1] ? "a bad step ran" : "step");
    if (!r.n[1]) out.insert(out.end(), logits, logits + size);
    free(logits);
  }

  void start_encoder(const Record& r) {
    forget();
    EncoderShape shape;
    if (r.array[0].size != sizeof shape) stop("an encoder's shape is of another size");
    memcpy(&shape, r.array[0].data, sizeof shape);
    width = shape.hidden_size;
    encoder = quietchoir_encoder_new(table->name, &shape, r.n[0], r.array[1].as<float>(),
                                     r.array[2].as<int32_t>(), r.array[3].as<int32_t>());
    if (!encoder) stop("encoder");
  }

  void encode(const Record& r) {
    if (!quietchoir_encoder_complete(encoder)) stop("the encoder is not whole");
    const int texts = r.array[0].count<int32_t>();
    float* vectors = static_cast<float*>(malloc(size_t(texts) * width * 4));
    if (!quietchoir_encode(encoder, texts, r.array[0].as<int32_t>(), r.array[1].as<int32_t>(),
                           r.array[2].as<int32_t>(), vectors))
      stop("encode");
    out.insert(out.end(), vectors, vectors + size_t(texts) * width);
    free(vectors);
  }

  void play(const Record& r) {
    const int32_t* n = r.n.data();
    switch (r.op) {
      case MULTIPLY: multiply(r); break;
      case DECODE:
        out.resize(out.size() + n[1]);
        decode_row(n[0], r.array[0].as<uint8_t>(), n[1], out.data() + out.size() - n[1]);
        break;
      case MODEL: start(r); break;
      case MATRIX:
        if (!quietchoir_model_matrix(model, n[0], n[1], n[2], n[3], n[4], r.array[0].as<uint8_t>(),
                                     r.array[0].size / n[3]))
          stop("matrix");
        break;
      case EMBEDDING:
        if (!quietchoir_model_embedding(model, n[0], r.array[0].as<uint8_t>(),
                                        r.array[0].size / n[1]))
          stop("embedding");
        break;
      case VECTOR:
        if (!quietchoir_model_vector(model, n[0], n[1], r.array[0].as<float>(),
                                     r.array[0].count<float>()))
          stop("vector");
        break;
      case ADAPTER: adapters.push_back(quietchoir_adapter_new(model)); break;
      case FACTORS:
        if (!quietchoir_adapter_add(adapters.back(), n[0], n[1], n[2], n[3], n[4],
                                    r.array[0].as<float>(), r.array[1].as<float>()))
          stop("factors");
        break;
      case STEP: step(r); break;
      case ENCODER: start_encoder(r); break;
      case ENCODER_MATRIX:
        if (!quietchoir_encoder_matrix(encoder, n[0], n[1], n[2], n[3], n[4],
                                       r.array[0].as<uint8_t>(), r.array[0].size / n[3]))
          stop("encoder's matrix");
        break;
      case ENCODER_EMBEDDING:
        if (!quietchoir_encoder_embedding(encoder, n[0], r.array[0].as<uint8_t>(), n[1]))
          stop("encoder's embedding");
        break;
      case ENCODER_VECTOR:
        if (!quietchoir_encoder_vector(encoder, n[0], n[1], r.array[0].as<float>(),
                                       r.array[0].count<float>()))
          stop("encoder's vector");
        break;
      case ENCODE: encode(r); break;
      default: stop("an unknown record");
    }
  }
};

std::vector<const Table*> tables() {
  std::vector<const Table*> found;
  std::istringstream names(quietchoir_instruction_sets());
  for (std::string name; names >> name;) found.push_back(find_table(name.c_str()));
  if (further_table && further_table()) found.push_back(further_table());
  return found;
}

}  // namespace

int main(int count, char** words) {
  if (count != 3) stop("usage: check TAPE OUT");
  std::vector<Record> tape = read_tape(words[1]);
  FILE* file = fopen(words[2], "wb");
  if (!file) stop("no output");
  for (const Table* table : tables()) {
    Player player{table, {}};
    for (const Record& record : tape)
      if (find_table(table->name) || record.op < MODEL) player.play(record);
      else break;
    player.forget();
    char name[16] = "";
    snprintf(name, sizeof name, "%s", table->name);
    const int64_t floats = int64_t(player.out.size());
    fwrite(name, 1, sizeof name, file), fwrite(&floats, 8, 1, file),
        fwrite(player.out.data(), 4, player.out.size(), file);
  }
  if (fclose(file)) stop("the output is not written");
  for (const Record& record : tape)
    for (const Array& array : record.array) free(array.data);
  return 0;
}
