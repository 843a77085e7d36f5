// Any processor: the compiler's own vectors.
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "simd_plain.h"
#include "forward.h"
#include "encoder.h"
#include "dispatch.h"

namespace quietchoir {
const Table table_plain = {
    "plain",         MR, forward, encode, panel_bytes, thread_scratch_bytes, multiply_alone,
    multiply_scratch};
}
