// The types whose integers are numbers of a table: the I-quants and MXFP4.
//
// Packed, a group's integers are one plane of 4 bits, whatever the file has. Of 16 rows:
//   IQ4_NL   a block of 32: 16 d (half precision, 32 bytes)
//            weight = d * IQ4_VALUES[q]
//   MXFP4    a block of 32: 16 bytes e
//            weight = 2^(e - 128) * MXFP4_VALUES[q]
//   IQ4_XS   a block of 256: 16 d, then 2 times 48 bytes, each 16 s of six bits for four groups
//            weight = d * (s - 32) * IQ4_VALUES[q]
//   IQ3_XXS  a block of 256: 16 d, then for every two groups 16 bytes s0 + 16 s1
//            weight = d * (2 s + 1) / 4 * IQ3_VALUES[q]
//   IQ3_S    the same, weight = d * (2 s + 1) * (2 q - 15)
// The last two name four weights at a time by their number in a codebook, beside a sign for each: a
// size of three bits and a sign are the 16 numbers of a plane, so a product needs no codebook, for
// 4.25 bits a weight where the file has 3.06 and 3.44. Their smallest size is the middle of the
// plane: q is 8 + size, or 7 - size where the sign is set.
//
// All scales have at most 17 significant bits, so those that `Format` gives are exact in a float.
#pragma once
#include "matrix.h"

constexpr int IQ3_SCALES = 32 + 4 * 16, IQ4_XS_SCALES = 32 + 2 * 48;  // bytes of 16 rows of a block
constexpr int FOUR_BITS = 256;  // bytes of 16 rows of one group of 32 columns

constexpr int8_t IQ4_VALUES[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                   1,    13,   25,  38,  53,  69,  89,  113};
// A number of MXFP4 is half of these: sign, two bits of exponent, one of fraction.
constexpr int8_t MXFP4_VALUES[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
constexpr int8_t IQ3_VALUES[16] = {-62, -52, -44, -36, -28, -20, -12, -4,
                                   4,   12,  20,  28,  36,  44,  52,  62};

// One block as row `row` of its 16; writes every bit of that row's.
void pack_i_block(int32_t kind, const uint8_t* block, int row, uint8_t* scales, uint8_t* integers);

// One block as 32 or 256 numbers, exactly as the format defines them.
void decode_i_block(int32_t kind, const uint8_t* block, float* out);
