// A table of small numbers times a vector of 32-bit words, modulo 2^32: what a keeper does for one
// query (lwe.py); and words times small numbers, for an asker's mask. Knows arrays. Always: every
// number of the table is read once, in order, whatever the query is; every path gives the same
// words.
//
// The product is as wide as the memory is fast, where the processor adds four byte products at once
// (AVX-512 VNNI): the query is taken apart into its four bytes, the table is multiplied with each,
// and the four sums, which may wrap, are shifted and added at the end. Source: SimplePIR packs
// three numbers of the table into a word instead (Henzinger et al., eprint 2022/949, section 6).
#include <stddef.h>
#include <stdint.h>

#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define QC_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

struct Task {
  const int8_t* table;  // [rows][columns]
  size_t rows, columns;
  const uint32_t* query;  // [columns]
  uint32_t* found;        // [rows]
};

struct Mask {
  const uint32_t* matrix;  // [rows][columns]
  size_t rows, columns;
  const int8_t* secret;  // [columns]
  uint32_t* found;       // [rows]
};

// Compiled once for each instruction set that calls it.
inline __attribute__((always_inline)) void combined(const Mask& mask) {
  for (size_t row = 0; row < mask.rows; ++row) {
    const uint32_t* words = mask.matrix + row * mask.columns;
    uint32_t sum = 0;
    for (size_t column = 0; column < mask.columns; ++column)
      sum += words[column] * static_cast<uint32_t>(static_cast<int32_t>(mask.secret[column]));
    mask.found[row] = sum;
  }
}

void plain_mask(const Mask& mask) { combined(mask); }

// The same for a table of small numbers.
inline __attribute__((always_inline)) void by_words(const Task& task) {
  for (size_t row = 0; row < task.rows; ++row) {
    const int8_t* numbers = task.table + row * task.columns;
    uint32_t sum = 0;
    for (size_t column = 0; column < task.columns; ++column)
      sum += static_cast<uint32_t>(static_cast<int32_t>(numbers[column])) * task.query[column];
    task.found[row] = sum;
  }
}

void plain(const Task& task) { by_words(task); }

#if defined(__x86_64__)

__attribute__((target("avx2"))) void avx2(const Task& task) { by_words(task); }
__attribute__((target("avx2"))) void avx2_mask(const Mask& mask) { combined(mask); }

constexpr size_t WIDE = 64;  // numbers of a register
constexpr int BYTES = 4;     // of a word
constexpr int TALL = 6;      // rows at a time: the query's bytes are read once for all of them
// So short a query stays in the nearest cache; then one row after the other reads memory in order.
constexpr size_t SHORT = 4096;
constexpr size_t AHEAD = 512;  // bytes of a row that are asked of memory before their turn

#define QC_VNNI __attribute__((target("avx512f,avx512bw,avx512vnni")))

template <int ROWS>
QC_VNNI void vnni_rows(const Task& task, size_t row, const uint8_t* bytes, size_t padded) {
  __m512i sums[ROWS][BYTES];
  for (auto& each : sums)
    for (auto& sum : each) sum = _mm512_setzero_si512();
  const int8_t* table = task.table + row * task.columns;
  for (size_t column = 0; column < task.columns; column += WIDE) {
    const size_t left = task.columns - column;
    const __mmask64 inside = left >= WIDE ? ~__mmask64{0} : (__mmask64{1} << left) - 1;
    __m512i asked[BYTES];
    for (int byte = 0; byte < BYTES; ++byte)
      asked[byte] = _mm512_loadu_si512(bytes + byte * padded + column);
    for (int each = 0; each < ROWS; ++each) {
      const int8_t* here = table + each * task.columns + column;
      if (ROWS > 1) _mm_prefetch(reinterpret_cast<const char*>(here + AHEAD), _MM_HINT_T0);
      const __m512i numbers = _mm512_maskz_loadu_epi8(inside, here);
      for (int byte = 0; byte < BYTES; ++byte)
        sums[each][byte] = _mm512_dpbusd_epi32(sums[each][byte], asked[byte], numbers);
    }
  }
  for (int each = 0; each < ROWS; ++each) {
    __m512i whole = sums[each][0];
    whole = _mm512_add_epi32(whole, _mm512_slli_epi32(sums[each][1], 8));
    whole = _mm512_add_epi32(whole, _mm512_slli_epi32(sums[each][2], 16));
    whole = _mm512_add_epi32(whole, _mm512_slli_epi32(sums[each][3], 24));
    task.found[row + each] = static_cast<uint32_t>(_mm512_reduce_add_epi32(whole));
  }
}

QC_VNNI void vnni(const Task& task) {
  const size_t padded = (task.columns + WIDE - 1) / WIDE * WIDE;
  std::vector<uint8_t> bytes(BYTES * padded);  // zeros behind the last column
  for (size_t column = 0; column < task.columns; ++column)
    for (int byte = 0; byte < BYTES; ++byte)
      bytes[byte * padded + column] = static_cast<uint8_t>(task.query[column] >> (8 * byte));
  const size_t tall = padded <= SHORT ? 0 : task.rows / TALL * TALL;
  size_t row = 0;
  for (; row < tall; row += TALL) vnni_rows<TALL>(task, row, bytes.data(), padded);
  for (; row < task.rows; ++row) vnni_rows<1>(task, row, bytes.data(), padded);
}

#endif

}  // namespace

// Of the source that this was made of.
QC_EXPORT const char* quietchoir_scan_source() { return QUIETCHOIR_SCAN_SOURCE; }

// The best path of this processor: 0 plain, 1 AVX2, 2 AVX-512 VNNI.
QC_EXPORT int quietchoir_scan_best() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vnni")) return 2;
  if (__builtin_cpu_supports("avx2")) return 1;
#endif
  return 0;
}

// matrix [rows][columns] of words times secret [columns], modulo 2^32: what an asker hides with.
QC_EXPORT void quietchoir_combine(const uint32_t* matrix, size_t rows, size_t columns,
                                  const int8_t* secret, uint32_t* found, int path) {
  const Mask mask = {matrix, rows, columns, secret, found};
#if defined(__x86_64__)
  if (path > 0) return avx2_mask(mask);
#endif
  (void)path;
  plain_mask(mask);
}

// table [rows][columns] times query [columns], modulo 2^32, by a path up to the best one.
QC_EXPORT void quietchoir_scan(const int8_t* table, size_t rows, size_t columns,
                               const uint32_t* query, uint32_t* found, int path) {
  const Task task = {table, rows, columns, query, found};
#if defined(__x86_64__)
  if (path == 2) return vnni(task);
  if (path == 1) return avx2(task);
#endif
  (void)path;
  plain(task);
}
