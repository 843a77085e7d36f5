// AVX2 with the VNNI instructions that newer processors without AVX-512 have. Empty on others.
#if defined(__x86_64__)
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avxvnni"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,avxvnni")
#endif
#define QUIETCHOIR_AVXVNNI
#include "simd_avx2.h"
#include "forward.h"
#include "encoder.h"
#include "dispatch.h"

namespace quietchoir {
const Table table_avxvnni = {
    "avxvnni",       MR, forward, encode, panel_bytes, thread_scratch_bytes, multiply_alone,
    multiply_scratch};
}

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
