// What one instruction set offers to the rest of the library.
#pragma once
#include "matrix.h"

namespace quietchoir {

struct Run;         // run.h: one step of one model
struct EncoderRun;  // encoder_run.h: one batch of texts

struct Table {
  const char* name;
  int mr;  // rows of a panel
  // One member's share of a step; every member of the team calls it once.
  void (*forward)(Run& run, int member);
  void (*encode)(EncoderRun& run, int member);  // the same for an encoder's batch
  // Bytes of working memory: prepared rows, and what one member needs for itself (`queries` in one
  // task at most).
  size_t (*panel_bytes)(int rows, int columns, int terms);
  size_t (*thread_scratch_bytes)(int columns, int rank, int terms, int queries, int head_size);
  // out [rows][m.strips * 16] = x [rows][m.columns] times m, by the caller alone; for tests.
  // `scratch` as asked below.
  void (*multiply)(const Matrix& m, const float* x, int rows, float* out, uint8_t* scratch);
  size_t (*multiply_scratch)(int rows, int columns, int terms);  // bytes, to be 64-byte aligned
};

}  // namespace quietchoir
