// Sixteen lanes at a time, on AVX-512 with VNNI; with QUIETCHOIR_PAIRS, and with BF16.
//
// CONTRACT of every simd_*.h. All kernels are written once over these names; one translation unit
// per instruction set includes one simd_*.h and then `forward.h`. Everything stands in an unnamed
// namespace, so that the linker can never put one set's code in the place of another's; for the
// same reason kernels use no templates of the standard library.
//
//   F      16 floats      I      16 int32
//   Bytes  64 unsigned bytes, four consecutive columns for each of 16 rows: lane r holds bytes
//          4r..4r+3
//   MR     rows of activations that one tile takes at most (1..8): as many as the registers hold
//          accumulators for
//
//   load, store, set, zero, add, sub, mul, div, fma(a, b, c) = a*b + c, largest_of(a, b), absolute
//   sum, largest          over the 16 lanes, to a float
//   exponential           within 2e-7 relative in [-87, 88], clamped outside; never NaN for a
//   number load_f16, load_bf16   16 narrow floats -> F (no alignment asked) load_pairs(p, even,
//   odd)   32 bf16 at p: even = p[0], p[2], ..., odd = p[1], p[3], ... to_bf16(float)        round
//   to nearest even, plain C in all sets (bf16.h) integers(F)           round to nearest even -> I;
//   |x| < 2^31 is the caller's promise floats(I)             -> F;  as_floats(I) the same bits as
//   floats store_bytes(p, I)     16 int8, values within -128..127 load_words(p)         16 int32
//   from memory;  same_word(p) the int32 at p in every lane add_words(a, b);  sum_words(I) -> int32
//   load_unsigned(p), load_signed(p)   16 bytes, widened -> I
//   bits<from, count>(I)  these bits of each word, as a number;  left_words<n>(I)
//   load_bytes(p)         64 bytes;  repeat_bytes(p) 16 bytes, four times
//   low_nibbles(Bytes), high_nibbles(Bytes)   each byte's half, 0..15
//   look_up(t, b)         b's bytes are numbers 0..15 of bytes of t, which repeats
//   same_bytes(b)         the byte b in all 64 places;  and_bytes, or_bytes(a, b)
//   left<n>, right<n>(b)  16-bit lanes shifted by n with zeros coming in: mask what crosses bytes
//   dot(acc, w, x)        acc[r] + sum over j < 4 of w[4r+j] * x[j]: w unsigned and at most 127, x
//                         int8 at p, the same for all r
//   dot_wide(acc, w, x)   the same for any unsigned w <= 255 less what the set takes off by itself:
//                         acc[r] + sum of (w[4r+j] - 128 + WIDE_BIAS) * x[j]; the caller takes
//                         WIDE_BIAS * sum(x) off (128 where the instruction wants unsigned bytes, 0
//                         where it wants signed ones)
//   with QUIETCHOIR_PAIRS, where products of bf16 pairs are one instruction:
//   dot_pairs(acc, w, x)  acc[r] + w[2r] * x[0] + w[2r+1] * x[1]: I as bf16 pairs, and two at x
//   store_bf16(p, F)      16 floats rounded to nearest even
//   round_pairs(a, b)     32 floats as bf16, in their order;  dot_words(acc, w, x) as `dot_pairs`,
//                         of pairs of its own for each r
//   prefetch(p)           a hint that p is needed in about a microsecond: into the second cache,
//                         where more can be on its way
//
// Never: a read or write beyond the bytes named here.
#pragma once
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

namespace {

using F = __m512;
using I = __m512i;
using Bytes = __m512i;

constexpr int MR = 8;
constexpr int WIDE_BIAS = 128;

inline F load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, F x) { _mm512_storeu_ps(p, x); }
inline F set(float x) { return _mm512_set1_ps(x); }
inline F zero() { return _mm512_setzero_ps(); }
inline F add(F a, F b) { return _mm512_add_ps(a, b); }
inline F sub(F a, F b) { return _mm512_sub_ps(a, b); }
inline F mul(F a, F b) { return _mm512_mul_ps(a, b); }
inline F div(F a, F b) { return _mm512_div_ps(a, b); }
inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
inline F largest_of(F a, F b) { return _mm512_max_ps(a, b); }
inline F absolute(F a) { return _mm512_abs_ps(a); }
inline float sum(F a) { return _mm512_reduce_add_ps(a); }
inline float largest(F a) { return _mm512_reduce_max_ps(a); }

// 2^(x log2 e) = 2^n 2^f with |f| <= 1/2: Taylor's series of 2^f to the seventh power stays within
// 2e-7.
inline F exponential(F x) {
  x = _mm512_max_ps(_mm512_min_ps(x, set(88.f)), set(-87.f));
  const F n = _mm512_roundscale_ps(_mm512_mul_ps(x, set(1.44269504f)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  F f = fma(n, set(-0.693145752f), x);  // log 2 in two parts, so that f keeps its last bits
  f = fma(n, set(-1.42860677e-6f), f);
  F p = set(1.f / 5040);
  p = fma(p, f, set(1.f / 720));
  p = fma(p, f, set(1.f / 120));
  p = fma(p, f, set(1.f / 24));
  p = fma(p, f, set(1.f / 6));
  p = fma(p, f, set(.5f));
  p = fma(p, f, set(1.f));
  p = fma(p, f, set(1.f));
  return _mm512_scalef_ps(p, n);
}

inline F load_f16(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
}
inline F load_bf16(const uint16_t* p) {
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
inline void load_pairs(const uint16_t* p, F& even, F& odd) {
  const __m512i both = _mm512_loadu_si512(p);
  even = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
  odd = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(int(0xffff0000u))));
}

inline I integers(F x) { return _mm512_cvtps_epi32(x); }
inline F floats(I x) { return _mm512_cvtepi32_ps(x); }
inline F as_floats(I x) { return _mm512_castsi512_ps(x); }
inline void store_bytes(int8_t* p, I x) { _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(x)); }
inline I load_words(const int32_t* p) { return _mm512_loadu_si512(p); }
inline I same_word(const int32_t* p) { return _mm512_set1_epi32(*p); }
inline I add_words(I a, I b) { return _mm512_add_epi32(a, b); }
inline int32_t sum_words(I a) { return _mm512_reduce_add_epi32(a); }

inline I load_unsigned(const uint8_t* p) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
}
inline I load_signed(const int8_t* p) {
  return _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p));
}
template <int FROM, int COUNT>
inline I bits(I a) {
  return _mm512_and_si512(_mm512_srli_epi32(a, FROM), _mm512_set1_epi32((1 << COUNT) - 1));
}
template <int N>
inline I left_words(I a) {
  return _mm512_slli_epi32(a, N);
}

inline Bytes load_bytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline Bytes repeat_bytes(const uint8_t* p) {
  return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)p));
}
inline Bytes look_up(Bytes table, Bytes b) { return _mm512_shuffle_epi8(table, b); }
inline Bytes low_nibbles(Bytes b) { return _mm512_and_si512(b, _mm512_set1_epi8(15)); }
inline Bytes high_nibbles(Bytes b) {
  return _mm512_and_si512(_mm512_srli_epi16(b, 4), _mm512_set1_epi8(15));
}
inline Bytes same_bytes(uint8_t b) { return _mm512_set1_epi8(char(b)); }
inline Bytes and_bytes(Bytes a, Bytes b) { return _mm512_and_si512(a, b); }
inline Bytes or_bytes(Bytes a, Bytes b) { return _mm512_or_si512(a, b); }
template <int n>
inline Bytes left(Bytes a) {
  return _mm512_slli_epi16(a, n);
}
template <int n>
inline Bytes right(Bytes a) {
  return _mm512_srli_epi16(a, n);
}
inline I dot(I acc, Bytes w, const int8_t* x) {
  int32_t four;
  memcpy(&four, x, 4);
  return _mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(four));
}
inline I dot_wide(I acc, Bytes w, const int8_t* x) { return dot(acc, w, x); }

inline void prefetch(const void* p) { _mm_prefetch((const char*)p, _MM_HINT_T1); }

#ifdef QUIETCHOIR_PAIRS
constexpr bool PAIRS = true;
inline F dot_pairs(F acc, I w, const uint16_t* x) {
  int32_t two;
  memcpy(&two, x, 4);
  return _mm512_dpbf16_ps(acc, (__m512bh)w, (__m512bh)_mm512_set1_epi32(two));
}
inline I round_pairs(F a, F b) { return (__m512i)_mm512_cvtne2ps_pbh(b, a); }
inline F dot_words(F acc, I w, I x) { return _mm512_dpbf16_ps(acc, (__m512bh)w, (__m512bh)x); }
inline void store_bf16(uint16_t* p, F x) {
  _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(x));
}
#endif

}  // namespace
