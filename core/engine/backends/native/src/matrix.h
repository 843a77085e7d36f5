// One weight matrix as the tiles read it, at the bits of the file.
//
// The same on every instruction set, and known to all translation units: plain data, no vectors
// here. A matrix is a row of STRIPS, 16 rows each; the last is padded with rows of zeros. A strip
// is one run of memory:
//
//   [scales of the strip, padded to 64 bytes] [integers of the strip]
//
// both in the order of their columns, so that a product reads two streams from front to back.
// Integers stand in TILES of 16 rows x 32 columns (one group), four consecutive columns of a row in
// each 32-bit lane, cut into planes that stand one behind the other (`planes.h` writes them):
//   4 bits  four times 64 bytes; of vector c, byte 4r+j holds column 8c+j of row r low and column
//           8c+4+j high
//   2 bits  two times 64 bytes; of vector v, bits 2k and 2k+1 of byte 4r+j are column 16v+4k+j's
//   1 bit   64 bytes; bit c of byte 4r+j is column 4c+j's
//   8 bits  eight times 64 bytes; of vector c, byte 4r+j holds column 4c+j of row r, plus 128
//   dense   no scales; for each column its 16 rows one behind the other, in the file's type
// so a weight of 5 bits has a plane of 4 and one of 1, of 6 bits 4 and 2, of 3 bits 2 and 1.
// Scales of one group: Q4_0, Q5_0, Q8_0 and IQ4_NL 16 half-precision d (32 bytes); Q4_1 and Q5_1
// 16 d, then 16 m (64 bytes); MXFP4 16 exponents (16 bytes). Of blocks of 256: kquants.h,
// iquants.h.
//
// A FURTHER KIND needs: its line in `Kind` and `layout_of`, its `pack_block` and `decode_block`
// (matrix.cpp), its `Format` (tile.h), its name in `KIND_NAMES`, and in `library.KINDS`, which a
// test compares. Nothing else knows kinds.
#pragma once
#include <stddef.h>
#include <stdint.h>

// Always inlined: the linker would keep one copy for all units, maybe one that not every processor
// runs.
#define QC_INLINE __attribute__((always_inline)) inline

enum Kind : int32_t {
  F32,
  F16,
  BF16,
  Q4_0,
  Q4_1,
  Q5_0,
  Q5_1,
  Q8_0,
  Q2_K,
  Q3_K,
  Q4_K,
  Q5_K,
  Q6_K,
  IQ3_XXS,
  IQ3_S,
  IQ4_NL,
  IQ4_XS,
  TQ1_0,
  TQ2_0,
  MXFP4,
  KINDS
};
constexpr const char* KIND_NAMES[KINDS] = {
    "F32",  "F16",  "BF16", "Q4_0",    "Q4_1",  "Q5_0",   "Q5_1",   "Q8_0",  "Q2_K",  "Q3_K",
    "Q4_K", "Q5_K", "Q6_K", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4"};

constexpr int STRIP = 16;      // rows of a strip
constexpr int MOST_TERMS = 3;  // each adds 8 bits to the activations; three are as exact as a float
constexpr int GROUP = 32;      // columns of a tile, and of a group of quantised activations

// Bytes of one kind. All but `columns` and `raw` count 16 rows.
struct Layout {
  int columns;   // of one block of the file, hence what a matrix's columns must divide by
  int raw;       // bytes of one block in the file
  int scales;    // packed scale bytes of one block's columns
  int integers;  // packed integer bytes of one block's columns
};

constexpr Layout layout_of(int32_t kind) {
  switch (kind) {
    case F32: return {1, 4, 0, 64};
    case F16:
    case BF16: return {1, 2, 0, 32};
    case Q4_0:
    case IQ4_NL: return {32, 18, 32, 256};
    case Q4_1: return {32, 20, 64, 256};
    case Q5_0: return {32, 22, 32, 320};
    case Q5_1: return {32, 24, 64, 320};
    case Q8_0: return {32, 34, 32, 512};
    case MXFP4: return {32, 17, 16, 256};
    case Q2_K: return {256, 84, 320, 8 * 128};  // kquants.h, as all of these
    case Q3_K: return {256, 110, 224, 8 * 192};
    case Q4_K: return {256, 144, 256, 8 * 256};
    case Q5_K: return {256, 176, 256, 8 * 320};
    case Q6_K: return {256, 210, 288, 8 * 384};
    case TQ1_0: return {256, 54, 32, 8 * 128};
    case TQ2_0: return {256, 66, 32, 8 * 128};
    case IQ3_XXS: return {256, 98, 96, 8 * 256};  // iquants.h, as all of these
    case IQ3_S: return {256, 110, 96, 8 * 256};
    case IQ4_XS: return {256, 136, 128, 8 * 256};
    default: return {0, 0, 0, 0};  // not known here
  }
}

struct Matrix {
  int32_t kind = F32;
  int32_t rows = 0, columns = 0;
  int32_t strips = 0;
  size_t scale_bytes = 0;   // of one strip, a multiple of 64
  size_t strip_bytes = 0;   // of one strip, scales included, a multiple of 64
  uint8_t* data = nullptr;  // 64-byte aligned
  // vectors of int8 whose sum the activations beside it are taken as, 1..MOST_TERMS
  int32_t terms = 1;

  QC_INLINE const uint8_t* scales(int strip) const { return data + size_t(strip) * strip_bytes; }
  QC_INLINE const uint8_t* integers(int strip) const { return scales(strip) + scale_bytes; }
};

QC_INLINE size_t to_multiple(size_t n, size_t of) { return (n + of - 1) / of * of; }

// Sizes of a matrix before it has data; false where the kind is unknown or the columns do not
// divide by its block.
QC_INLINE bool shape_matrix(Matrix& m, int32_t kind, int32_t rows, int32_t columns) {
  const Layout layout = layout_of(kind);
  if (!layout.columns || rows < 1 || columns < 1 || columns % layout.columns) return false;
  const size_t blocks = size_t(columns) / layout.columns;
  m.kind = kind, m.rows = rows, m.columns = columns, m.strips = (rows + STRIP - 1) / STRIP;
  m.scale_bytes = to_multiple(blocks * layout.scales, 64);
  m.strip_bytes = m.scale_bytes + to_multiple(blocks * layout.integers, 64);
  return true;
}

// Packs `count` (1..16) rows of raw blocks, `row_bytes` apart, as strip number `strip`; rows beyond
// `count` become zeros.
void pack_strip(Matrix& m, int strip, const uint8_t* raw, size_t row_bytes, int count);

// One row of raw blocks as numbers, exactly as its format defines them.
void decode_row(int32_t kind, const uint8_t* raw, int32_t columns, float* out);
