// How the types with a table of numbers unpack. A part of tile.h, which includes it in its middle;
// their layout stands in iquants.h.
#pragma once
#include "iquants.h"

namespace {

// A table as unsigned bytes: each number plus BIAS.
template <int BIAS>
struct Biased {
  uint8_t byte[16];
  constexpr explicit Biased(const int8_t (&numbers)[16]) : byte() {
    for (int k = 0; k < 16; k++) byte[k] = uint8_t(numbers[k] + BIAS);
  }
};

inline void unpack_coded(const uint8_t* p, const uint8_t table[16], Bytes w[8]) {
  const Bytes numbers = repeat_bytes(table);
  unpack_nibbles(p, w);
  for (int c = 0; c < 8; c++) w[c] = look_up(numbers, w[c]);
}

// IQ4_NL and IQ4_XS: their numbers take eight bits.
struct WideTable {
  static constexpr bool WIDE = true;
  static constexpr int HALVES = 1, OFFSETS = 0;
  static constexpr Biased<128> TABLE{IQ4_VALUES};
  static void unpack(const uint8_t* integers, int g, Bytes w[8]) {
    unpack_coded(integers + size_t(g) * FOUR_BITS, TABLE.byte, w);
  }
  static I start(const Panel& p, int g, int, int t) {
    return same_word(p.less_wide + g * p.height + t);
  }
  static F offset(const uint8_t*, int, int) { return zero(); }
};

template <>
struct Format<IQ4_NL> : WideTable {
  static F scale(const uint8_t* scales, int g, int) {
    return load_f16((const uint16_t*)(scales + size_t(g) * 32));
  }
};

template <>
struct Format<IQ4_XS> : WideTable {
  static F scale(const uint8_t* scales, int g, int) {
    const uint8_t* block = scales + size_t(g / GROUPS) * IQ4_XS_SCALES;
    const F s = sub(floats(six_bits(block + 32, g % GROUPS)), set(32.f));
    return mul(load_f16((const uint16_t*)block), s);
  }
};

// d * (2 s + 1) of group g.
inline F odd_scale(const uint8_t* scales, int g) {
  const uint8_t* block = scales + size_t(g / GROUPS) * IQ3_SCALES;
  const I both = load_unsigned(block + 32 + g % GROUPS / 2 * 16);
  const F s = floats(g % 2 ? bits<4, 4>(both) : bits<0, 4>(both));
  return mul(load_f16((const uint16_t*)block), fma(s, set(2.f), set(1.f)));
}

template <>
struct Format<IQ3_XXS> {
  static constexpr bool WIDE = false;
  static constexpr int HALVES = 1, OFFSETS = 0;
  static constexpr Biased<64> TABLE{IQ3_VALUES};
  static void unpack(const uint8_t* integers, int g, Bytes w[8]) {
    unpack_coded(integers + size_t(g) * FOUR_BITS, TABLE.byte, w);
  }
  static I start(const Panel& p, int g, int, int t) { return less_sum(p, g, t, 64); }
  static F scale(const uint8_t* scales, int g, int) { return mul(odd_scale(scales, g), set(.25f)); }
  static F offset(const uint8_t*, int, int) { return zero(); }
};

template <>
struct Format<IQ3_S> {
  static constexpr bool WIDE = false;
  static constexpr int HALVES = 1, OFFSETS = 0;
  static void unpack(const uint8_t* integers, int g, Bytes w[8]) {
    unpack_nibbles(integers + size_t(g) * FOUR_BITS, w);
    for (int c = 0; c < 8; c++) w[c] = left<1>(w[c]);  // 2 q of at most 30: no bit leaves its byte
  }
  static I start(const Panel& p, int g, int, int t) { return less_sum(p, g, t, 15); }
  static F scale(const uint8_t* scales, int g, int) { return odd_scale(scales, g); }
  static F offset(const uint8_t*, int, int) { return zero(); }
};

template <>
struct Format<MXFP4> {
  static constexpr bool WIDE = false;
  static constexpr int HALVES = 1, OFFSETS = 0;
  static constexpr Biased<12> TABLE{MXFP4_VALUES};
  static void unpack(const uint8_t* integers, int g, Bytes w[8]) {
    unpack_coded(integers + size_t(g) * FOUR_BITS, TABLE.byte, w);
  }
  static I start(const Panel& p, int g, int, int t) { return less_sum(p, g, t, 12); }
  // 2^(e - 128) as two powers of half of it each, which are normal numbers whatever e is.
  static F scale(const uint8_t* scales, int g, int) {
    const int32_t bias = 127 - 64;
    const I e = load_unsigned(scales + size_t(g) * 16),
            lower = add_words(bits<1, 7>(e), same_word(&bias)),
            upper = add_words(lower, bits<0, 1>(e));
    return mul(as_floats(left_words<23>(lower)), as_floats(left_words<23>(upper)));
  }
  static F offset(const uint8_t*, int, int) { return zero(); }
};

}  // namespace
