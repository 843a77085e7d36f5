// NEON with the dot products of ARMv8.2. Empty on other processors.
#if defined(__aarch64__)
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("arch=armv8.2-a+dotprod"))), apply_to = function)
#else
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif
#define QUIETCHOIR_DOTPROD
#include "simd_neon.h"
#include "forward.h"
#include "encoder.h"
#include "dispatch.h"

namespace quietchoir {
const Table table_neondot = {
    "neondot",       MR, forward, encode, panel_bytes, thread_scratch_bytes, multiply_alone,
    multiply_scratch};
}

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
