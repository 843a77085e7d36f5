// Sixteen lanes as four quarters, on AArch64's NEON. The contract stands in simd_avx512.h.
//
// One file for two sets: with QUIETCHOIR_DOTPROD the dot products are one instruction (sdot,
// ARMv8.2); without it they are products to 16 bits, summed by twos. Both multiply signed by
// signed: weights of up to 127 are the same either way, and weights of eight bits are taken less
// 128. Exact for activations within -127..127: 128 * 127 * 2 = 32512 fits 16 bits.
#pragma once
#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

namespace {

struct F {
  float32x4_t v[4];
};
struct I {
  int32x4_t v[4];
};
struct Bytes {
  uint8x16_t v[4];
};

constexpr int MR = 2;  // eight accumulators for rows and eight for their groups, of 32 registers
constexpr int WIDE_BIAS = 0;

// The same in every quarter; `of(k)` gives quarter k.
template <class T, class Of>
inline T quarters(Of of) {
  return {{of(0), of(1), of(2), of(3)}};
}

inline F load(const float* p) {
  return {{vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}};
}
inline void store(float* p, F x) {
  vst1q_f32(p, x.v[0]), vst1q_f32(p + 4, x.v[1]), vst1q_f32(p + 8, x.v[2]),
      vst1q_f32(p + 12, x.v[3]);
}
inline F set(float x) { return {{vdupq_n_f32(x), vdupq_n_f32(x), vdupq_n_f32(x), vdupq_n_f32(x)}}; }
inline F zero() { return set(0.f); }
inline F add(F x, F y) {
  return quarters<F>([&](int k) { return vaddq_f32(x.v[k], y.v[k]); });
}
inline F sub(F x, F y) {
  return quarters<F>([&](int k) { return vsubq_f32(x.v[k], y.v[k]); });
}
inline F mul(F x, F y) {
  return quarters<F>([&](int k) { return vmulq_f32(x.v[k], y.v[k]); });
}
inline F div(F x, F y) {
  return quarters<F>([&](int k) { return vdivq_f32(x.v[k], y.v[k]); });
}
inline F fma(F x, F y, F z) {
  return quarters<F>([&](int k) { return vfmaq_f32(z.v[k], x.v[k], y.v[k]); });
}
inline F largest_of(F x, F y) {
  return quarters<F>([&](int k) { return vmaxq_f32(x.v[k], y.v[k]); });
}
inline F absolute(F x) {
  return quarters<F>([&](int k) { return vabsq_f32(x.v[k]); });
}
inline float sum(F x) {  // in the order of the other sets, so that all round alike
  const float32x4_t four = vaddq_f32(vaddq_f32(x.v[0], x.v[2]), vaddq_f32(x.v[1], x.v[3]));
  const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
inline float largest(F x) {
  return vmaxvq_f32(vmaxq_f32(vmaxq_f32(x.v[0], x.v[1]), vmaxq_f32(x.v[2], x.v[3])));
}

inline float32x4_t exponential_quarter(float32x4_t x) {
  x = vmaxq_f32(vminq_f32(x, vdupq_n_f32(88.f)), vdupq_n_f32(-87.f));
  const float32x4_t n = vrndnq_f32(vmulq_f32(x, vdupq_n_f32(1.44269504f)));
  float32x4_t f = vfmaq_f32(x, n, vdupq_n_f32(-0.693145752f));
  f = vfmaq_f32(f, n, vdupq_n_f32(-1.42860677e-6f));
  float32x4_t p = vdupq_n_f32(1.f / 5040);
  p = vfmaq_f32(vdupq_n_f32(1.f / 720), p, f);
  p = vfmaq_f32(vdupq_n_f32(1.f / 120), p, f);
  p = vfmaq_f32(vdupq_n_f32(1.f / 24), p, f);
  p = vfmaq_f32(vdupq_n_f32(1.f / 6), p, f);
  p = vfmaq_f32(vdupq_n_f32(.5f), p, f);
  p = vfmaq_f32(vdupq_n_f32(1.f), p, f);
  p = vfmaq_f32(vdupq_n_f32(1.f), p, f);
  // n is within -126..127, so 2^n is a normal number: its exponent is written directly.
  return vmulq_f32(
      p, vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23)));
}
inline F exponential(F x) {
  return quarters<F>([&](int k) { return exponential_quarter(x.v[k]); });
}

inline F load_f16(const uint16_t* p) {
  return quarters<F>(
      [&](int k) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * k))); });
}
inline F load_bf16(const uint16_t* p) {
  return quarters<F>(
      [&](int k) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * k), 16)); });
}
inline void load_pairs(const uint16_t* p, F& even, F& odd) {
  for (int k = 0; k < 4; k++) {
    const uint32x4_t both = vreinterpretq_u32_u16(vld1q_u16(p + 8 * k));
    even.v[k] = vreinterpretq_f32_u32(vshlq_n_u32(both, 16));
    odd.v[k] = vreinterpretq_f32_u32(vandq_u32(both, vdupq_n_u32(0xffff0000u)));
  }
}

inline I integers(F x) {
  return quarters<I>([&](int k) { return vcvtnq_s32_f32(x.v[k]); });
}
inline F floats(I x) {
  return quarters<F>([&](int k) { return vcvtq_f32_s32(x.v[k]); });
}
inline F as_floats(I x) {
  return quarters<F>([&](int k) { return vreinterpretq_f32_s32(x.v[k]); });
}
inline void store_bytes(int8_t* p, I x) {
  const int16x8_t first = vcombine_s16(vqmovn_s32(x.v[0]), vqmovn_s32(x.v[1]));
  const int16x8_t second = vcombine_s16(vqmovn_s32(x.v[2]), vqmovn_s32(x.v[3]));
  vst1q_s8(p, vcombine_s8(vqmovn_s16(first), vqmovn_s16(second)));
}
inline I load_words(const int32_t* p) {
  return quarters<I>([&](int k) { return vld1q_s32(p + 4 * k); });
}
inline I same_word(const int32_t* p) {
  return quarters<I>([&](int k) { return vdupq_n_s32(*p); });
}
inline I add_words(I x, I y) {
  return quarters<I>([&](int k) { return vaddq_s32(x.v[k], y.v[k]); });
}
inline int32_t sum_words(I x) {
  return vaddvq_s32(vaddq_s32(vaddq_s32(x.v[0], x.v[1]), vaddq_s32(x.v[2], x.v[3])));
}

inline I load_signed(const int8_t* p) {
  const int8x16_t narrow = vld1q_s8(p);
  const int16x8_t first = vmovl_s8(vget_low_s8(narrow)), second = vmovl_high_s8(narrow);
  return {{vmovl_s16(vget_low_s16(first)), vmovl_high_s16(first), vmovl_s16(vget_low_s16(second)),
           vmovl_high_s16(second)}};
}
inline I load_unsigned(const uint8_t* p) {
  const I wide = load_signed((const int8_t*)p);
  return quarters<I>([&](int k) { return vandq_s32(wide.v[k], vdupq_n_s32(255)); });
}
template <int FROM, int COUNT>
inline I bits(I x) {
  // A shift by a register's negative number goes right, and may be by nothing.
  return quarters<I>([&](int k) {
    const uint32x4_t moved = vshlq_u32(vreinterpretq_u32_s32(x.v[k]), vdupq_n_s32(-FROM));
    return vreinterpretq_s32_u32(vandq_u32(moved, vdupq_n_u32((1u << COUNT) - 1)));
  });
}
template <int N>
inline I left_words(I x) {
  return quarters<I>([&](int k) { return vshlq_n_s32(x.v[k], N); });
}

inline Bytes load_bytes(const uint8_t* p) {
  return quarters<Bytes>([&](int k) { return vld1q_u8(p + 16 * k); });
}
inline Bytes repeat_bytes(const uint8_t* p) {
  return quarters<Bytes>([&](int) { return vld1q_u8(p); });
}
inline Bytes look_up(Bytes table, Bytes x) {
  return quarters<Bytes>([&](int k) { return vqtbl1q_u8(table.v[k], x.v[k]); });
}
inline Bytes low_nibbles(Bytes x) {
  return quarters<Bytes>([&](int k) { return vandq_u8(x.v[k], vdupq_n_u8(15)); });
}
inline Bytes high_nibbles(Bytes x) {
  return quarters<Bytes>([&](int k) { return vshrq_n_u8(x.v[k], 4); });
}

inline Bytes same_bytes(uint8_t x) {
  return quarters<Bytes>([&](int) { return vdupq_n_u8(x); });
}
inline Bytes and_bytes(Bytes x, Bytes y) {
  return quarters<Bytes>([&](int k) { return vandq_u8(x.v[k], y.v[k]); });
}
inline Bytes or_bytes(Bytes x, Bytes y) {
  return quarters<Bytes>([&](int k) { return vorrq_u8(x.v[k], y.v[k]); });
}
template <int N>
inline Bytes left(Bytes x) {
  return quarters<Bytes>(
      [&](int k) { return vreinterpretq_u8_u16(vshlq_n_u16(vreinterpretq_u16_u8(x.v[k]), N)); });
}
template <int N>
inline Bytes right(Bytes x) {
  return quarters<Bytes>([&](int k) {
    if constexpr (N == 0) return x.v[k];  // the instruction knows no shift by nothing
    else return vreinterpretq_u8_u16(vshrq_n_u16(vreinterpretq_u16_u8(x.v[k]), N));
  });
}

inline int8x16_t same_four(const int8_t* x) {
  int32_t four;
  memcpy(&four, x, 4);
  return vreinterpretq_s8_s32(vdupq_n_s32(four));
}
inline int32x4_t dot_quarter(int32x4_t acc, int8x16_t w, int8x16_t four) {
#if defined(QUIETCHOIR_DOTPROD)
  return vdotq_s32(acc, w, four);
#else
  const int16x8_t first = vmull_s8(vget_low_s8(w), vget_low_s8(four)),
                  second = vmull_high_s8(w, four);
  return vpadalq_s16(acc, vpaddq_s16(first, second));
#endif
}
inline I dot(I acc, Bytes w, const int8_t* x) {
  const int8x16_t four = same_four(x);
  return quarters<I>(
      [&](int k) { return dot_quarter(acc.v[k], vreinterpretq_s8_u8(w.v[k]), four); });
}
inline I dot_wide(I acc, Bytes w, const int8_t* x) {
  const int8x16_t four = same_four(x);
  const uint8x16_t bias = vdupq_n_u8(128);
  return quarters<I>([&](int k) {
    return dot_quarter(acc.v[k], vreinterpretq_s8_u8(veorq_u8(w.v[k], bias)), four);
  });
}

inline void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }

}  // namespace
