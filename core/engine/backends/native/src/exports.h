// What the library offers to its callers, by C names; each function is described where it stands.
#pragma once
#include <stddef.h>
#include <stdint.h>

#define QC_EXPORT extern "C" __attribute__((visibility("default")))

namespace quietchoir {

struct Shape;       // run.h
struct OwnedModel;  // model.h
struct OwnedAdapter;
struct Packed;        // probe.cpp
struct EncoderShape;  // encoder_run.h
struct OwnedEncoder;  // encoder.cpp

// What the caller says of a step.
struct Step {
  int32_t spans, rows, wanted;
  const int32_t* span;    // [spans][5]: rows, first position, wanted rows, where its table begins,
                          // blocks in its table
  const int32_t* tokens;  // [rows]
  const int32_t* tables;  // block numbers
  int32_t table_length;   // of `tables`
  const OwnedAdapter* const* adapters;  // [spans], null where there is none
  float* const* states;                 // [spans], see delta.h; null: no layer remembers anything
  float* logits;                        // [wanted][vocabulary]
};

}  // namespace quietchoir

// dispatch.cpp
QC_EXPORT const char* quietchoir_sources();
QC_EXPORT const char* quietchoir_facts();
QC_EXPORT const char* quietchoir_instruction_sets();

// model.cpp
QC_EXPORT const char* quietchoir_problem();
QC_EXPORT quietchoir::OwnedModel* quietchoir_model_new(const char* set,
                                                       const quietchoir::Shape* shape, int threads,
                                                       uint8_t* cache, const float* frequencies,
                                                       const float* magnitudes,
                                                       const int32_t* windows, const int32_t* ropes,
                                                       const int32_t* mixers, const int32_t* sizes);
QC_EXPORT void quietchoir_model_free(quietchoir::OwnedModel* model);
QC_EXPORT bool quietchoir_takes(int kind, int columns);
QC_EXPORT bool quietchoir_model_dense(quietchoir::OwnedModel* model, int layer);
QC_EXPORT bool quietchoir_model_matrix(quietchoir::OwnedModel* model, int layer, int role, int kind,
                                       int rows, int columns, const uint8_t* raw, size_t row_bytes);
QC_EXPORT bool quietchoir_model_terms(quietchoir::OwnedModel* model, int layer, int role,
                                      int terms);
QC_EXPORT bool quietchoir_model_embedding(quietchoir::OwnedModel* model, int kind,
                                          const uint8_t* raw, size_t row_bytes);
QC_EXPORT bool quietchoir_model_vector(quietchoir::OwnedModel* model, int layer, int which,
                                       const float* values, int count);
QC_EXPORT bool quietchoir_model_complete(const quietchoir::OwnedModel* model);
QC_EXPORT quietchoir::OwnedAdapter* quietchoir_adapter_new(const quietchoir::OwnedModel* model);
QC_EXPORT void quietchoir_adapter_free(quietchoir::OwnedAdapter* adapter);
QC_EXPORT bool quietchoir_adapter_add(quietchoir::OwnedAdapter* adapter, int layer, int role,
                                      int rank, int columns, int rows, const float* down,
                                      const float* up);
QC_EXPORT bool quietchoir_adapter_output(quietchoir::OwnedAdapter* adapter, int layer, int role,
                                         int rows, const float* gain, const float* shift);

// release_pages.cpp
QC_EXPORT bool quietchoir_release_pages(const uint8_t* from, size_t bytes);

// step.cpp
QC_EXPORT bool quietchoir_forward(quietchoir::OwnedModel* model, const quietchoir::Step* step);

// probe.cpp
QC_EXPORT quietchoir::Packed* quietchoir_probe_pack(int32_t kind, int32_t rows, int32_t columns,
                                                    const uint8_t* raw, size_t row_bytes);
QC_EXPORT void quietchoir_probe_free(quietchoir::Packed* packed);
QC_EXPORT size_t quietchoir_probe_bytes(const quietchoir::Packed* packed);
QC_EXPORT bool quietchoir_probe_multiply(const quietchoir::Packed* packed, const char* set,
                                         const float* x, int32_t rows, int32_t terms, float* out);
QC_EXPORT bool quietchoir_probe_decode(int32_t kind, const uint8_t* raw, size_t row_bytes,
                                       int32_t columns, float* out);
QC_EXPORT uint64_t quietchoir_probe_read(const uint64_t* p, size_t words);

// encoder.cpp
QC_EXPORT quietchoir::OwnedEncoder* quietchoir_encoder_new(const char* set,
                                                           const quietchoir::EncoderShape* shape,
                                                           int threads, const float* frequencies,
                                                           const int32_t* reaches,
                                                           const int32_t* ropes);
QC_EXPORT void quietchoir_encoder_free(quietchoir::OwnedEncoder* encoder);
QC_EXPORT bool quietchoir_encoder_matrix(quietchoir::OwnedEncoder* encoder, int layer, int role,
                                         int kind, int rows, int columns, const uint8_t* raw,
                                         size_t row_bytes);
QC_EXPORT bool quietchoir_encoder_embedding(quietchoir::OwnedEncoder* encoder, int kind,
                                            const uint8_t* raw, size_t row_bytes);
QC_EXPORT bool quietchoir_encoder_vector(quietchoir::OwnedEncoder* encoder, int layer, int which,
                                         const float* values, int count);
QC_EXPORT bool quietchoir_encoder_complete(const quietchoir::OwnedEncoder* encoder);
QC_EXPORT bool quietchoir_encode(quietchoir::OwnedEncoder* encoder, int texts,
                                 const int32_t* lengths, const int32_t* seconds,
                                 const int32_t* tokens, float* out);
