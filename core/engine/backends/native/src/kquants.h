// The K-quants: blocks of 256 columns whose groups have scales of their own, 6 or 8 bits each,
// under one half-precision d.
//
// Packed at the file's own bits, scales as the file has them. Of one block and its 16 rows:
//   Q4_K, Q5_K  scales: 16 d, 16 dmin (half precision, 64 bytes), then 4 times 48 bytes, each for
//   two groups:
//               16 bytes s0 + 64 (m0 % 4), 16 bytes s1 + 64 (m1 % 4), 16 bytes m0 / 4 + 16 (m1 / 4)
//               weight = d * s * q - dmin * m, s and m of 6 bits
//   Q6_K        scales: 16 d (32 bytes), then for each half group of 16 columns 16 signed bytes s
//               weight = d * s * (q - 32)
// Integers of one group, after the four vectors of lower nibbles that Q4_0 has too:
//   Q5_K        64 bytes: bit c of byte 4r+j is the fifth bit of column 4c+j of row r
//   Q6_K        128 bytes: of vector v, bits 2k and 2k+1 of byte 4r+j are the upper bits of column
//   16v+4k+j of row r
//
// d * s has at most 19 significant bits, so the scales that `Format` gives are exact in a float.
#pragma once
#include "matrix.h"

constexpr int SUPER = 256;  // columns of a block of the K-quants

constexpr int Q4_K_SCALES = 64 + 4 * 48,
              Q6_K_SCALES = 32 + 16 * 16;  // bytes of 16 rows of one block
constexpr int Q5_K_GROUP = 256 + 64,
              Q6_K_GROUP = 256 + 128;  // bytes of 16 rows of one group of 32 columns

// One block of Q4_K, Q5_K or Q6_K as row `row` of its 16; writes every bit of that row's.
void pack_k_block(int32_t kind, const uint8_t* block, int row, uint8_t* scales, uint8_t* integers);

// One block as 256 numbers, exactly as the format defines them.
void decode_k_block(int32_t kind, const uint8_t* block, float* out);
