// Which instruction sets this library holds, and which of them this processor runs.
#pragma once
#include "table.h"

namespace quietchoir {

// One for each translation unit forward_*.cpp that this architecture compiles.
extern const Table table_avx512bf16;  // AVX-512 F, BW, DQ, VL, VNNI and BF16
extern const Table table_avx512;      // the same without BF16
extern const Table
    table_avxvnni;  // AVX2 with the VNNI instructions of newer processors without AVX-512
extern const Table table_avx2;     // AVX2, FMA, F16C
extern const Table table_neondot;  // AArch64 with dot products (ARMv8.2)
extern const Table table_neon;     // any AArch64
extern const Table table_plain;    // any processor

// The table of that name, or null where this library or this processor has no such set. Null or ""
// asks for the best.
const Table* find_table(const char* name);

}  // namespace quietchoir
