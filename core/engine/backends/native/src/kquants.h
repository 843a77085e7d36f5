// The K-quants: blocks of 256 columns whose groups have scales of their own, 4 to 8 bits each,
// under one half-precision d. And the ternary types, whose groups have none.
//
// Packed at the file's own bits, scales as the file has them. Of one block and its 16 rows:
//   Q2_K        scales: 16 d, 16 dmin (half precision, 64 bytes), then for each half group of 16
//               columns 16 bytes s + 16 m
//               weight = d * s * q - dmin * m
//   Q3_K        scales: 16 d (32 bytes), then 4 times 48 bytes, each 16 s of six bits for four half
//               groups (`pack_sixes`)
//               weight = d * (s - 32) * (q - 4)
//   Q4_K, Q5_K  scales: 16 d, 16 dmin (64 bytes), then 4 times 48 bytes, each for two groups:
//               16 bytes s0 + 64 (m0 % 4), 16 bytes s1 + 64 (m1 % 4), 16 bytes m0 / 4 + 16 (m1 / 4)
//               weight = d * s * q - dmin * m, s and m of 6 bits
//   Q6_K        scales: 16 d (32 bytes), then for each half group 16 signed bytes s
//               weight = d * s * (q - 32)
//   TQ2_0       scales: 16 d (32 bytes)
//               weight = d * (q - 1)
//   TQ1_0       as TQ2_0, at two bits a weight: the file's five weights a byte would cost more to
//               take apart in every product than they save
// Integers of one group: the planes of 4, 2 and 1 bits that add up to the weight's own.
//
// d * s has at most 19 significant bits, so the scales that `Format` gives are exact in a float.
#pragma once
#include "matrix.h"

constexpr int SUPER = 256;  // columns of a block of the K-quants

constexpr int Q2_K_SCALES = 64 + 16 * 16, Q3_K_SCALES = 32 + 4 * 48, Q4_K_SCALES = 64 + 4 * 48,
              Q6_K_SCALES = 32 + 16 * 16;  // bytes of 16 rows of one block
constexpr int TWO_BITS = 128;              // bytes of 16 rows of one group of 32 columns
constexpr int Q3_K_GROUP = 128 + 64, Q5_K_GROUP = 256 + 64, Q6_K_GROUP = 256 + 128;

// One block as row `row` of its 16; writes every bit of that row's.
void pack_k_block(int32_t kind, const uint8_t* block, int row, uint8_t* scales, uint8_t* integers);

// One block as 256 numbers, exactly as the format defines them.
void decode_k_block(int32_t kind, const uint8_t* block, float* out);
