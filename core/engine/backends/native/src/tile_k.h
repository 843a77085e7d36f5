// How the K-quants unpack. A part of tile.h, which includes it in its middle; their layout stands
// in kquants.h.
#pragma once
#include "kquants.h"

namespace {

constexpr int GROUPS = SUPER / GROUP;  // of a block

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
  static constexpr bool WIDE = false, OFFSETS = true;
  static constexpr int HALVES = 1;
  static void unpack(const uint8_t* integers, int g, Bytes w[8]) {
    unpack_nibbles(integers + size_t(g) * 256, w);
  }
  static I start(const Panel&, int, int, int) { return I{}; }
  static F scale(const uint8_t* scales, int g, int) { return KScales::scale(scales, g); }
  static F offset(const uint8_t* scales, int g) { return KScales::offset(scales, g); }
};

template <>
struct Format<Q5_K> {
  static constexpr bool WIDE = false, OFFSETS = true;
  static constexpr int HALVES = 1;
  static void unpack(const uint8_t* integers, int g, Bytes w[8]) {
    const uint8_t* p = integers + size_t(g) * Q5_K_GROUP;
    const Bytes fifth = load_bytes(p + 256), place = same_bytes(16);
    unpack_nibbles(p, w);
    w[0] = or_bytes(w[0], and_bytes(left<4>(fifth), place));
    w[1] = or_bytes(w[1], and_bytes(left<3>(fifth), place));
    w[2] = or_bytes(w[2], and_bytes(left<2>(fifth), place));
    w[3] = or_bytes(w[3], and_bytes(left<1>(fifth), place));
    w[4] = or_bytes(w[4], and_bytes(fifth, place));
    w[5] = or_bytes(w[5], and_bytes(right<1>(fifth), place));
    w[6] = or_bytes(w[6], and_bytes(right<2>(fifth), place));
    w[7] = or_bytes(w[7], and_bytes(right<3>(fifth), place));
  }
  static I start(const Panel&, int, int, int) { return I{}; }
  static F scale(const uint8_t* scales, int g, int) { return KScales::scale(scales, g); }
  static F offset(const uint8_t* scales, int g) { return KScales::offset(scales, g); }
};

template <>
struct Format<Q6_K> {
  static constexpr bool WIDE = false, OFFSETS = false;
  static constexpr int HALVES = 2;
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
  static F offset(const uint8_t*, int) { return zero(); }
};

}  // namespace
