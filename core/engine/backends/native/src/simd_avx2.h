// Sixteen lanes as two halves of eight, on AVX2 with FMA and F16C. The contract stands in
// simd_avx512.h.
//
// One file for two sets: with QUIETCHOIR_AVXVNNI the dot products are one instruction (dpbusd), as
// in AVX-512 VNNI; without it they are a product of bytes to sums of two (maddubs), which saturates
// at 32767, and a sum of two of these. Hence: unsigned weights of up to 127 by activations within
// -127..127 are exact (127 * 127 * 2 = 32258), and weights of eight bits are taken as signed: |w|
// <= 128 by the activation with the weight's sign, 128 * 127 * 2 = 32512.
#pragma once
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

namespace {

struct F {
  __m256 a, b;
};
struct I {
  __m256i a, b;
};
struct Bytes {
  __m256i a, b;
};

constexpr int MR = 4;  // two accumulators a row, and two for its group: all sixteen registers

inline F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, F x) { _mm256_storeu_ps(p, x.a), _mm256_storeu_ps(p + 8, x.b); }
inline F set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline F add(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline F sub(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline F mul(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline F div(F x, F y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline F fma(F x, F y, F z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
inline F largest_of(F x, F y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline F absolute(F x) {
  const __m256 sign = _mm256_set1_ps(-0.f);
  return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
inline float sum(F x) {
  const __m256 eight = _mm256_add_ps(x.a, x.b);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float largest(F x) {
  const __m256 eight = _mm256_max_ps(x.a, x.b);
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

inline __m256 exponential_half(__m256 x) {
  x = _mm256_max_ps(_mm256_min_ps(x, _mm256_set1_ps(88.f)), _mm256_set1_ps(-87.f));
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 f = _mm256_fmadd_ps(n, _mm256_set1_ps(-0.693145752f), x);
  f = _mm256_fmadd_ps(n, _mm256_set1_ps(-1.42860677e-6f), f);
  __m256 p = _mm256_set1_ps(1.f / 5040);
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1.f / 720));
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1.f / 120));
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1.f / 24));
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1.f / 6));
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(.5f));
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1.f));
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1.f));
  // n is within -126..127, so 2^n is a normal number: its exponent is written directly.
  const __m256i power =
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(p, _mm256_castsi256_ps(power));
}
inline F exponential(F x) { return {exponential_half(x.a), exponential_half(x.b)}; }

inline F load_f16(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)),
          _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8)))};
}
inline __m256 load_bf16_half(const uint16_t* p) {
  return _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}
inline F load_bf16(const uint16_t* p) { return {load_bf16_half(p), load_bf16_half(p + 8)}; }
inline void load_pairs(const uint16_t* p, F& even, F& odd) {
  const __m256i first = _mm256_loadu_si256((const __m256i*)p),
                second = _mm256_loadu_si256((const __m256i*)(p + 16));
  const __m256i upper = _mm256_set1_epi32(int(0xffff0000u));
  even = {_mm256_castsi256_ps(_mm256_slli_epi32(first, 16)),
          _mm256_castsi256_ps(_mm256_slli_epi32(second, 16))};
  odd = {_mm256_castsi256_ps(_mm256_and_si256(first, upper)),
         _mm256_castsi256_ps(_mm256_and_si256(second, upper))};
}

inline I integers(F x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
inline F floats(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
inline F as_floats(I x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
inline void store_bytes(int8_t* p, I x) {
  // The pack interleaves its operands' 128-bit halves: 0-3, 8-11, 4-7, 12-15; the permutation puts
  // them in order.
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xd8);
  _mm_storeu_si128((__m128i*)p, _mm_packs_epi16(_mm256_castsi256_si128(words),
                                                _mm256_extracti128_si256(words, 1)));
}
inline I load_words(const int32_t* p) {
  return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 8))};
}
inline I same_word(const int32_t* p) { return {_mm256_set1_epi32(*p), _mm256_set1_epi32(*p)}; }
inline I add_words(I x, I y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
inline int32_t sum_words(I x) {
  const __m256i eight = _mm256_add_epi32(x.a, x.b);
  const __m128i four =
      _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  const __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)));
}

inline I load_unsigned(const uint8_t* p) {
  const __m128i narrow = _mm_loadu_si128((const __m128i*)p);
  return {_mm256_cvtepu8_epi32(narrow), _mm256_cvtepu8_epi32(_mm_unpackhi_epi64(narrow, narrow))};
}
inline I load_signed(const int8_t* p) {
  const __m128i narrow = _mm_loadu_si128((const __m128i*)p);
  return {_mm256_cvtepi8_epi32(narrow), _mm256_cvtepi8_epi32(_mm_unpackhi_epi64(narrow, narrow))};
}
template <int FROM, int COUNT>
inline I bits(I x) {
  const __m256i mask = _mm256_set1_epi32((1 << COUNT) - 1);
  return {_mm256_and_si256(_mm256_srli_epi32(x.a, FROM), mask),
          _mm256_and_si256(_mm256_srli_epi32(x.b, FROM), mask)};
}
template <int N>
inline I left_words(I x) {
  return {_mm256_slli_epi32(x.a, N), _mm256_slli_epi32(x.b, N)};
}

inline Bytes load_bytes(const uint8_t* p) {
  return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 32))};
}
inline Bytes repeat_bytes(const uint8_t* p) {
  const __m256i twice = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)p));
  return {twice, twice};
}
inline Bytes look_up(Bytes table, Bytes x) {
  return {_mm256_shuffle_epi8(table.a, x.a), _mm256_shuffle_epi8(table.b, x.b)};
}
inline Bytes low_nibbles(Bytes x) {
  const __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(x.a, mask), _mm256_and_si256(x.b, mask)};
}
inline Bytes high_nibbles(Bytes x) {
  const __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(_mm256_srli_epi16(x.a, 4), mask),
          _mm256_and_si256(_mm256_srli_epi16(x.b, 4), mask)};
}
inline Bytes same_bytes(uint8_t x) {
  return {_mm256_set1_epi8(char(x)), _mm256_set1_epi8(char(x))};
}
inline Bytes and_bytes(Bytes x, Bytes y) {
  return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)};
}
inline Bytes or_bytes(Bytes x, Bytes y) {
  return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)};
}
template <int N>
inline Bytes left(Bytes x) {
  return {_mm256_slli_epi16(x.a, N), _mm256_slli_epi16(x.b, N)};
}
template <int N>
inline Bytes right(Bytes x) {
  return {_mm256_srli_epi16(x.a, N), _mm256_srli_epi16(x.b, N)};
}

inline __m256i same_four(const int8_t* x) {
  int32_t four;
  memcpy(&four, x, 4);
  return _mm256_set1_epi32(four);
}

#if defined(QUIETCHOIR_AVXVNNI)
constexpr int WIDE_BIAS = 128;
inline I dot(I acc, Bytes w, const int8_t* x) {
  const __m256i four = same_four(x);
  return {_mm256_dpbusd_avx_epi32(acc.a, w.a, four), _mm256_dpbusd_avx_epi32(acc.b, w.b, four)};
}
inline I dot_wide(I acc, Bytes w, const int8_t* x) { return dot(acc, w, x); }
#else
constexpr int WIDE_BIAS = 0;
inline __m256i dot_half(__m256i acc, __m256i w, __m256i four) {
  return _mm256_add_epi32(acc,
                          _mm256_madd_epi16(_mm256_maddubs_epi16(w, four), _mm256_set1_epi16(1)));
}
inline I dot(I acc, Bytes w, const int8_t* x) {
  const __m256i four = same_four(x);
  return {dot_half(acc.a, w.a, four), dot_half(acc.b, w.b, four)};
}
inline __m256i dot_wide_half(__m256i acc, __m256i w, __m256i four) {
  const __m256i less = _mm256_xor_si256(w, _mm256_set1_epi8(int8_t(-128)));  // w - 128
  return dot_half(acc, _mm256_abs_epi8(less), _mm256_sign_epi8(four, less));
}
inline I dot_wide(I acc, Bytes w, const int8_t* x) {
  const __m256i four = same_four(x);
  return {dot_wide_half(acc.a, w.a, four), dot_wide_half(acc.b, w.b, four)};
}
#endif

inline void prefetch(const void* p) { _mm_prefetch((const char*)p, _MM_HINT_T1); }

}  // namespace
