// One matrix by itself, and memory by itself: what tests and measurements ask of the library.
#include <exception>

#include "dispatch.h"
#include "exports.h"
#include "memory.h"

struct quietchoir::Packed {
  Matrix matrix;
  Arena arena;
};

using namespace quietchoir;

// Packs rows of raw blocks, `row_bytes` apart. Null where kind or shape are not known here,
// `row_bytes` is not what this kind has, or memory is short.
QC_EXPORT Packed* quietchoir_probe_pack(int32_t kind, int32_t rows, int32_t columns,
                                        const uint8_t* raw, size_t row_bytes) {
  Matrix m;
  if (!shape_matrix(m, kind, rows, columns)) return nullptr;
  const Layout layout = layout_of(kind);
  if (row_bytes != size_t(columns) / layout.columns * layout.raw) return nullptr;
  Packed* packed = nullptr;
  try {
    packed = new Packed();
    m.data = packed->arena.take(m.strips * m.strip_bytes);
  } catch (const std::exception&) {
    delete packed;
    return nullptr;
  }
  for (int strip = 0; strip < m.strips; strip++) {
    const int left = rows - strip * STRIP;
    pack_strip(m, strip, raw + size_t(strip) * STRIP * row_bytes, row_bytes,
               left < STRIP ? left : STRIP);
  }
  packed->matrix = m;
  return packed;
}

QC_EXPORT void quietchoir_probe_free(Packed* packed) { delete packed; }

// Bytes that a product reads.
QC_EXPORT size_t quietchoir_probe_bytes(const Packed* packed) {
  return packed->matrix.strips * packed->matrix.strip_bytes;
}

// out [rows][strips * 16] = x [rows][columns] times the matrix, by the named set; beside quantised
// weights x is taken in so many terms. False: no such set here, or no memory.
QC_EXPORT bool quietchoir_probe_multiply(const Packed* packed, const char* set, const float* x,
                                         int32_t rows, int32_t terms, float* out) {
  const Table* table = find_table(set);
  if (!table || rows < 1 || terms < 1 || terms > MOST_TERMS) return false;
  try {
    ScratchBuffer scratch;
    Matrix m = packed->matrix;
    m.terms = m.kind == F32 || m.kind == F16 || m.kind == BF16 ? 1 : terms;
    table->multiply(m, x, rows, out,
                    scratch.at_least(table->multiply_scratch(rows, m.columns, m.terms)));
    return true;
  } catch (const std::exception&) { return false; }
}

// One row of raw blocks as numbers. False where the kind has no such row.
QC_EXPORT bool quietchoir_probe_decode(int32_t kind, const uint8_t* raw, size_t row_bytes,
                                       int32_t columns, float* out) {
  Matrix m;
  if (!shape_matrix(m, kind, 1, columns)) return false;
  if (row_bytes != size_t(columns) / layout_of(kind).columns * layout_of(kind).raw) return false;
  decode_row(kind, raw, columns, out);
  return true;
}

// Reads memory once from front to back, for its speed; returns something that depends on all of it.
QC_EXPORT uint64_t quietchoir_probe_read(const uint64_t* p, size_t words) {
  uint64_t sums[8] = {};
  for (size_t i = 0; i + 8 <= words; i += 8)
    for (int k = 0; k < 8; k++) sums[k] += p[i + k];
  uint64_t total = 0;
  for (uint64_t part : sums) total += part;
  return total;
}
