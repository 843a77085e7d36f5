// The AVX-VNNI unit with the same instructions in their AVX-512 form, so that its code runs where
// only that form exists.
#if defined(__x86_64__)
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#pragma GCC target("avx2,fma,f16c,avx512f,avx512vl,avx512vnni")
#include <immintrin.h>
#define _mm256_dpbusd_avx_epi32 _mm256_dpbusd_epi32
#define QUIETCHOIR_AVXVNNI
#include "simd_avx2.h"
#include "forward.h"
#include "encoder.h"
#include "dispatch.h"

namespace quietchoir {
const Table table_evex = {
    "evex",          MR, forward, encode, panel_bytes, thread_scratch_bytes, multiply_alone,
    multiply_scratch};
}

const quietchoir::Table* further_table() {
  return __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni")
             ? &quietchoir::table_evex
             : nullptr;
}
#endif
