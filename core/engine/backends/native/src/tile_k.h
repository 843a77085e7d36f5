// How the K-quants and the ternary types unpack. A part of tile.h, which includes it in its middle;
// their layout stands in kquants.h.
#pragma once
#include "kquants.h"

namespace {

constexpr int GROUPS = SUPER / GROUP;  // of a block

// Number k of 16 rows, of those that stand by fours in 48 bytes, six bits each (`pack_sixes`).
inline I six_bits(const uint8_t* p, int k) {
  p += k / 4 * 48;
  if (k % 4 < 3) return bits<0, 6>(load_unsigned(p + k % 4 * 16));
  const I low = bits<6, 2>(load_unsigned(p)), middle = bits<6, 2>(load_unsigned(p + 16)),
          high = bits<6, 2>(load_unsigned(p + 32));
  return add_words(low, add_words(left_words<2>(middle), left_words<4>(high)));
}

inline void unpack_pairs(const uint8_t* p, Bytes w[8]) {
  const Bytes place = same_bytes(3);
  for (int v = 0; v < 2; v++) {
    const Bytes four = load_bytes(p + v * 64);
    w[4 * v] = and_bytes(four, place);
    w[4 * v + 1] = and_bytes(right<2>(four), place);
    w[4 * v + 2] = and_bytes(right<4>(four), place);
    w[4 * v + 3] = and_bytes(right<6>(four), place);
  }
}

template <>
struct Format<Q2_K> {
  static constexpr bool WIDE = false;
  static constexpr int HALVES = 2, OFFSETS = 2;
  static const uint8_t* block(const uint8_t* scales, int g) {
    return scales + size_t(g / GROUPS) * Q2_K_SCALES;
  }
  static I both(const uint8_t* scales, int g, int half) {
    return load_unsigned(block(scales, g) + 64 + (g % GROUPS * 2 + half) * 16);
  }
  static void unpack(const uint8_t* integers, int g, Bytes w[8]) {
    unpack_pairs(integers + size_t(g) * TWO_BITS, w);
  }
  static I start(const Panel&, int, int, int) { return I{}; }
  static F scale(const uint8_t* scales, int g, int half) {
    const I s = bits<0, 4>(both(scales, g, half));
    return mul(load_f16((const uint16_t*)block(scales, g)), floats(s));
  }
  static F offset(const uint8_t* scales, int g, int half) {
    const F m = floats(bits<4, 4>(both(scales, g, half)));
    return mul(load_f16((const uint16_t*)(block(scales, g) + 32)), sub(zero(), m));
  }
};

template <>
struct Format<Q3_K> {
  static constexpr bool WIDE = false;
  static constexpr int HALVES = 2, OFFSETS = 0;
  static void unpack(const uint8_t* integers, int g, Bytes w[8]) {
    const uint8_t* p = integers + size_t(g) * Q3_K_GROUP;
    unpack_pairs(p, w);
    add_bits<2>(p + TWO_BITS, w);
  }
  static I start(const Panel& p, int g, int half, int t) {
    const int32_t less4 = p.less32[(2 * g + half) * p.height + t] / 8;
    return same_word(&less4);
  }
  static F scale(const uint8_t* scales, int g, int half) {
    const uint8_t* block = scales + size_t(g / GROUPS) * Q3_K_SCALES;
    const F s = sub(floats(six_bits(block + 32, g % GROUPS * 2 + half)), set(32.f));
    return mul(load_f16((const uint16_t*)block), s);
  }
  static F offset(const uint8_t*, int, int) { return zero(); }
};

// 16 rows' 6-bit scales and minima of group g, under their half-precision d and dmin.
struct KScales {
  static const uint8_t* block(const uint8_t* scales, int g) {
    return scales + size_t(g / GROUPS) * Q4_K_SCALES;
  }
  static const uint8_t* pair(const uint8_t* scales, int g) {
    return block(scales, g) + 64 + g % GROUPS / 2 * 48;
  }

  static F scale(const uint8_t* scales, int g) {
    const I s = bits<0, 6>(load_unsigned(pair(scales, g) + g % 2 * 16));
    return mul(load_f16((const uint16_t*)block(scales, g)), floats(s));
  }
  static F offset(const uint8_t* scales, int g) {
    const I low = bits<6, 2>(load_unsigned(pair(scales, g) + g % 2 * 16)),
            both = load_unsigned(pair(scales, g) + 32);
    const I high = g % 2 ? bits<4, 4>(both) : bits<0, 4>(both);
    const F m = floats(add_words(low, left_words<2>(high)));
    return mul(load_f16((const uint16_t*)(block(scales, g) + 32)), sub(zero(), m));
  }
};

template <>
struct Format<Q4_K> {
  static constexpr bool WIDE = false;
  static constexpr int HALVES = 1, OFFSETS = 1;
  static void unpack(const uint8_t* integers, int g, Bytes w[8]) {
    unpack_nibbles(integers + size_t(g) * 256, w);
  }
  static I start(const Panel&, int, int, int) { return I{}; }
  static F scale(const uint8_t* scales, int g, int) { return KScales::scale(scales, g); }
  static F offset(const uint8_t* scales, int g, int) { return KScales::offset(scales, g); }
};

template <>
struct Format<Q5_K> {
  static constexpr bool WIDE = false;
  static constexpr int HALVES = 1, OFFSETS = 1;
  static void unpack(const uint8_t* integers, int g, Bytes w[8]) {
    const uint8_t* p = integers + size_t(g) * Q5_K_GROUP;
    unpack_nibbles(p, w);
    add_bits<4>(p + 256, w);
  }
  static I start(const Panel&, int, int, int) { return I{}; }
  static F scale(const uint8_t* scales, int g, int) { return KScales::scale(scales, g); }
  static F offset(const uint8_t* scales, int g, int) { return KScales::offset(scales, g); }
};

template <>
struct Format<Q6_K> {
  static constexpr bool WIDE = false;
  static constexpr int HALVES = 2, OFFSETS = 0;
  static void unpack(const uint8_t* integers, int g, Bytes w[8]) {
    const uint8_t* p = integers + size_t(g) * Q6_K_GROUP;
    const Bytes place = same_bytes(48);
    unpack_nibbles(p, w);
    for (int v = 0; v < 2; v++) {
      const Bytes upper = load_bytes(p + 256 + v * 64);
      w[4 * v] = or_bytes(w[4 * v], and_bytes(left<4>(upper), place));
      w[4 * v + 1] = or_bytes(w[4 * v + 1], and_bytes(left<2>(upper), place));
      w[4 * v + 2] = or_bytes(w[4 * v + 2], and_bytes(upper, place));
      w[4 * v + 3] = or_bytes(w[4 * v + 3], and_bytes(right<2>(upper), place));
    }
  }
  static I start(const Panel& p, int g, int half, int t) {
    return same_word(p.less32 + (2 * g + half) * p.height + t);
  }
  static F scale(const uint8_t* scales, int g, int half) {
    const uint8_t* block = scales + size_t(g / GROUPS) * Q6_K_SCALES;
    const I s = load_signed((const int8_t*)block + 32 + (g % GROUPS * 2 + half) * 16);
    return mul(load_f16((const uint16_t*)block), floats(s));
  }
  static F offset(const uint8_t*, int, int) { return zero(); }
};

template <>
struct Format<TQ2_0> {
  static constexpr bool WIDE = false;
  static constexpr int HALVES = 1, OFFSETS = 0;
  static void unpack(const uint8_t* integers, int g, Bytes w[8]) {
    unpack_pairs(integers + size_t(g) * TWO_BITS, w);
  }
  static I start(const Panel& p, int g, int, int t) { return less_sum(p, g, t, 1); }
  static F scale(const uint8_t* scales, int g, int) {
    return load_f16((const uint16_t*)(scales + size_t(g / GROUPS) * 32));
  }
  static F offset(const uint8_t*, int, int) { return zero(); }
};

}  // namespace
