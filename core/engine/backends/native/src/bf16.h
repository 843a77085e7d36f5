// Narrow floats in plain C: for single numbers, and for what runs once.
#pragma once
#include <stdint.h>
#include <string.h>

namespace {

// Round to nearest even; a NaN stays one.
inline uint16_t to_bf16(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return uint16_t(bits >> 16 | 64);
  return uint16_t((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

inline float from_bf16(uint16_t x) {
  const uint32_t bits = uint32_t(x) << 16;
  float out;
  memcpy(&out, &bits, 4);
  return out;
}

inline float from_f16(uint16_t x) {
  const uint32_t sign = uint32_t(x & 0x8000u) << 16, exponent = x >> 10 & 31, fraction = x & 1023u;
  float out;
  uint32_t bits;
  if (exponent == 31) bits = sign | 0x7f800000u | fraction << 13;
  else if (exponent) bits = sign | (exponent + 112) << 23 | fraction << 13;
  else {  // subnormal: fraction * 2^-24
    out = float(fraction) * 5.9604644775390625e-8f;
    return sign ? -out : out;
  }
  memcpy(&out, &bits, 4);
  return out;
}

}  // namespace
