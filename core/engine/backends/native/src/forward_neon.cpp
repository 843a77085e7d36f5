// NEON as every AArch64 has it. Empty on other processors.
#if defined(__aarch64__)
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "simd_neon.h"
#include "forward.h"
#include "encoder.h"
#include "dispatch.h"

namespace quietchoir {
const Table table_neon = {
    "neon",          MR, forward, encode, panel_bytes, thread_scratch_bytes, multiply_alone,
    multiply_scratch};
}
#endif
