// AVX-512 with VNNI and BF16. Empty on other processors.
#if defined(__x86_64__)
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__clang__)
#pragma clang attribute push(                                                                     \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,fma,f16c")
#endif
#define QUIETCHOIR_PAIRS
#include "simd_avx512.h"
#include "forward.h"
#include "encoder.h"
#include "dispatch.h"

namespace quietchoir {
const Table table_avx512bf16 = {
    "avx512bf16",    MR, forward, encode, panel_bytes, thread_scratch_bytes, multiply_alone,
    multiply_scratch};
}

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
