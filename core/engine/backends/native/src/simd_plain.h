// Sixteen lanes as four quarters of the compiler's own vectors: any little-endian processor that
// GCC or clang compiles for. The contract stands in simd_avx512.h.
#pragma once
#include <stdint.h>
#include <string.h>

namespace {

typedef float Floats4 __attribute__((vector_size(16)));
typedef int32_t Words4 __attribute__((vector_size(16)));
typedef uint32_t Unsigned4 __attribute__((vector_size(16)));
typedef int16_t Shorts8 __attribute__((vector_size(16)));

struct F {
  Floats4 v[4];
};
struct I {
  Words4 v[4];
};
struct Bytes {
  Unsigned4 v[4];
};  // lane r of the sixteen has byte 4r in its lowest bits

constexpr int MR = 2;
constexpr int WIDE_BIAS = 128;

// The same in every quarter; `of(k)` gives quarter k.
template <class T, class Of>
inline T quarters(Of of) {
  return {{of(0), of(1), of(2), of(3)}};
}
inline Floats4 four_of(float x) { return Floats4{x, x, x, x}; }
inline Words4 four_of(int32_t x) { return Words4{x, x, x, x}; }
inline Unsigned4 four_of(uint32_t x) { return Unsigned4{x, x, x, x}; }
template <class T, class From>
inline T read_four(const From* p) {
  T found;
  memcpy(&found, p, sizeof found);
  return found;
}

inline F load(const float* p) {
  return quarters<F>([&](int k) { return read_four<Floats4>(p + 4 * k); });
}
inline void store(float* p, F x) { memcpy(p, &x, sizeof x); }
inline F set(float x) {
  return quarters<F>([&](int) { return four_of(x); });
}
inline F zero() { return set(0.f); }
inline F add(F x, F y) {
  return quarters<F>([&](int k) { return x.v[k] + y.v[k]; });
}
inline F sub(F x, F y) {
  return quarters<F>([&](int k) { return x.v[k] - y.v[k]; });
}
inline F mul(F x, F y) {
  return quarters<F>([&](int k) { return x.v[k] * y.v[k]; });
}
inline F div(F x, F y) {
  return quarters<F>([&](int k) { return x.v[k] / y.v[k]; });
}
inline F fma(F x, F y, F z) {
  return quarters<F>([&](int k) { return x.v[k] * y.v[k] + z.v[k]; });
}
inline F largest_of(F x, F y) {
  return quarters<F>([&](int k) { return x.v[k] > y.v[k] ? x.v[k] : y.v[k]; });
}
inline F absolute(F x) {
  return quarters<F>([&](int k) { return (Floats4)((Words4)x.v[k] & four_of(0x7fffffff)); });
}
inline float sum(F x) {
  const Floats4 four = x.v[0] + x.v[2] + (x.v[1] + x.v[3]);
  return four[0] + four[2] + (four[1] + four[3]);
}
inline float largest(F x) {
  float found = x.v[0][0];
  for (int lane = 1; lane < 16; lane++)
    if (x.v[lane / 4][lane % 4] > found) found = x.v[lane / 4][lane % 4];
  return found;
}

// Nearest, halves to even: at 2^23 and above a float has no fraction, so adding and taking off 3 *
// 2^22 rounds it.
inline Floats4 rounded(Floats4 x) {
  const Floats4 size = (Floats4)((Words4)x & four_of(0x7fffffff)), shift = four_of(12582912.f);
  return size < four_of(4194304.f) ? (x + shift) - shift : x;
}
inline Floats4 exponential_quarter(Floats4 x) {
  x = x < four_of(88.f) ? x : four_of(88.f);
  x = x > four_of(-87.f) ? x : four_of(-87.f);
  const Floats4 n = rounded(x * four_of(1.44269504f));
  Floats4 f = n * four_of(-0.693145752f) + x;
  f = n * four_of(-1.42860677e-6f) + f;
  Floats4 p = four_of(1.f / 5040);
  p = p * f + four_of(1.f / 720);
  p = p * f + four_of(1.f / 120);
  p = p * f + four_of(1.f / 24);
  p = p * f + four_of(1.f / 6);
  p = p * f + four_of(.5f);
  p = p * f + four_of(1.f);
  p = p * f + four_of(1.f);
  // n is within -126..127, so 2^n is a normal number: its exponent is written directly.
  return p * (Floats4)((__builtin_convertvector(n, Words4) + four_of(127)) << 23);
}
inline F exponential(F x) {
  return quarters<F>([&](int k) { return exponential_quarter(x.v[k]); });
}

inline Words4 read_halves(const uint16_t* p) { return Words4{p[0], p[1], p[2], p[3]}; }
// Exponent and fraction moved to their places and scaled by 2^112, the difference of the exponents'
// biases; this also makes the small numbers right. Infinities and NaN keep the largest exponent.
inline Floats4 from_f16(Words4 half) {
  const Words4 size = (half & four_of(0x7fff)) << 13;
  const Words4 number = (Words4)((Floats4)size * four_of(0x1p112f));
  const Words4 wide = size >= four_of(0x7c00 << 13) ? size | four_of(0x7f800000) : number;
  return (Floats4)(wide | ((half & four_of(0x8000)) << 16));
}
inline F load_f16(const uint16_t* p) {
  return quarters<F>([&](int k) { return from_f16(read_halves(p + 4 * k)); });
}
inline F load_bf16(const uint16_t* p) {
  return quarters<F>([&](int k) { return (Floats4)(read_halves(p + 4 * k) << 16); });
}
inline void load_pairs(const uint16_t* p, F& even, F& odd) {
  for (int k = 0; k < 4; k++) {
    const uint16_t* q = p + 8 * k;
    even.v[k] = (Floats4)(Words4{q[0], q[2], q[4], q[6]} << 16);
    odd.v[k] = (Floats4)(Words4{q[1], q[3], q[5], q[7]} << 16);
  }
}

inline I integers(F x) {
  return quarters<I>([&](int k) { return __builtin_convertvector(rounded(x.v[k]), Words4); });
}
inline F floats(I x) {
  return quarters<F>([&](int k) { return __builtin_convertvector(x.v[k], Floats4); });
}
inline F as_floats(I x) {
  return quarters<F>([&](int k) { return (Floats4)x.v[k]; });
}
inline void store_bytes(int8_t* p, I x) {
  for (int lane = 0; lane < 16; lane++) p[lane] = int8_t(x.v[lane / 4][lane % 4]);
}
inline I load_words(const int32_t* p) {
  return quarters<I>([&](int k) { return read_four<Words4>(p + 4 * k); });
}
inline I same_word(const int32_t* p) {
  return quarters<I>([&](int) { return four_of(*p); });
}
inline I add_words(I x, I y) {
  return quarters<I>([&](int k) { return x.v[k] + y.v[k]; });
}
inline int32_t sum_words(I x) {
  const Words4 four = x.v[0] + x.v[1] + x.v[2] + x.v[3];
  return four[0] + four[1] + four[2] + four[3];
}

inline I load_unsigned(const uint8_t* p) {
  return quarters<I>(
      [&](int k) { return Words4{p[4 * k], p[4 * k + 1], p[4 * k + 2], p[4 * k + 3]}; });
}
inline I load_signed(const int8_t* p) {
  return quarters<I>(
      [&](int k) { return Words4{p[4 * k], p[4 * k + 1], p[4 * k + 2], p[4 * k + 3]}; });
}
template <int FROM, int COUNT>
inline I bits(I x) {
  return quarters<I>(
      [&](int k) { return (Words4)((Unsigned4)x.v[k] >> FROM & four_of((1u << COUNT) - 1)); });
}
template <int N>
inline I left_words(I x) {
  return quarters<I>([&](int k) { return x.v[k] << N; });
}

inline Bytes load_bytes(const uint8_t* p) {
  return quarters<Bytes>([&](int k) { return read_four<Unsigned4>(p + 16 * k); });
}
inline Bytes repeat_bytes(const uint8_t* p) {
  return quarters<Bytes>([&](int) { return read_four<Unsigned4>(p); });
}
inline Bytes look_up(Bytes table, Bytes x) {
  uint8_t byte[64], from[64];
  memcpy(byte, &x, 64), memcpy(from, &table, 64);
  for (int k = 0; k < 64; k++) byte[k] = from[byte[k]];
  memcpy(&x, byte, 64);
  return x;
}
inline Bytes low_nibbles(Bytes x) {
  return quarters<Bytes>([&](int k) { return x.v[k] & four_of(0x0f0f0f0fu); });
}
inline Bytes high_nibbles(Bytes x) {
  return quarters<Bytes>([&](int k) { return x.v[k] >> 4 & four_of(0x0f0f0f0fu); });
}

inline Bytes same_bytes(uint8_t x) {
  return quarters<Bytes>([&](int) { return four_of(x * 0x01010101u); });
}
inline Bytes and_bytes(Bytes x, Bytes y) {
  return quarters<Bytes>([&](int k) { return x.v[k] & y.v[k]; });
}
inline Bytes or_bytes(Bytes x, Bytes y) {
  return quarters<Bytes>([&](int k) { return x.v[k] | y.v[k]; });
}
// Shifted in 32-bit lanes: what crosses a byte is masked by the caller, here as there.
template <int N>
inline Bytes left(Bytes x) {
  return quarters<Bytes>([&](int k) { return x.v[k] << N; });
}
template <int N>
inline Bytes right(Bytes x) {
  return quarters<Bytes>([&](int k) { return x.v[k] >> N; });
}

// Columns 0 and 2 of a lane as two 16-bit numbers, then 1 and 3. A product of an unsigned byte with
// one of -127..127 fits 16 bits: 255 * 127 = 32385. The lower and the upper product of a lane are
// then widened and added.
inline Words4 dot_quarter(Words4 acc, Unsigned4 w, Shorts8 even, Shorts8 odd) {
  const Words4 first = (Words4)((Shorts8)(w & four_of(0x00ff00ffu)) * even);
  const Words4 second = (Words4)((Shorts8)(w >> 8 & four_of(0x00ff00ffu)) * odd);
  return acc + ((first << 16) >> 16) + (first >> 16) + ((second << 16) >> 16) + (second >> 16);
}
inline I dot(I acc, Bytes w, const int8_t* x) {
  const Shorts8 even = (Shorts8)four_of(uint32_t(uint16_t(x[0])) | uint32_t(uint16_t(x[2])) << 16);
  const Shorts8 odd = (Shorts8)four_of(uint32_t(uint16_t(x[1])) | uint32_t(uint16_t(x[3])) << 16);
  return quarters<I>([&](int k) { return dot_quarter(acc.v[k], w.v[k], even, odd); });
}
inline I dot_wide(I acc, Bytes w, const int8_t* x) { return dot(acc, w, x); }

inline void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }

}  // namespace
