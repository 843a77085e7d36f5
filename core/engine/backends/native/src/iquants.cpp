// Reads and packs blocks of the I-quants and of MXFP4. Plain code; it runs once.
// Source of the file's layouts: ggml's `ggml-common.h`, block_iq3_xxs to block_iq4_xs and
// block_mxfp4; of MXFP4 itself the OCP's "Microscaling Formats (MX) Specification", 1.0.
#include "iquants.h"

#include "codebooks.h"
#include "planes.h"

namespace {

// Sign i of a group of IQ3_XXS: of eight weights the file has seven signs, the eighth makes their
// number even.
bool read_even_sign(uint32_t word, int i) {
  const uint32_t seven = word >> i / 8 * 7 & 127;
  return i % 8 < 7 ? seven >> i % 8 & 1 : __builtin_popcount(seven) & 1;
}

uint32_t read_word(const uint8_t* p) {
  uint32_t word;
  memcpy(&word, p, 4);
  return word;
}

// The integers of group j.
void read_group(int kind, const uint8_t* block, int j, uint8_t q[GROUP]) {
  for (int i = 0; i < GROUP; i++) {
    int size;
    bool sign;
    switch (kind) {
      case IQ3_XXS:
        size = IQ3_XXS_BOOK[block[2 + 8 * j + i / 4]] >> i % 4 * 3 & 7;
        sign = read_even_sign(read_word(block + 66 + 4 * j), i);
        q[i] = uint8_t(sign ? 7 - size : 8 + size);
        break;
      case IQ3_S:
        size =
            IQ3_S_BOOK[block[2 + 8 * j + i / 4] | (block[66 + j] >> i / 4 & 1) << 8] >> i % 4 * 3 &
            7;
        sign = block[74 + 4 * j + i / 8] >> i % 8 & 1;
        q[i] = uint8_t(sign ? 7 - size : 8 + size);
        break;
      case IQ4_XS: q[i] = nibble(block + 8 + 16 * j, i); break;
      case IQ4_NL: q[i] = nibble(block + 2, i); break;
      default: q[i] = nibble(block + 1, i); break;
    }
  }
}

// The scale of group j of a block of 256, as the file stores it.
uint8_t read_scale(int kind, const uint8_t* block, int j) {
  if (kind == IQ3_XXS) return uint8_t(read_word(block + 66 + 4 * j) >> 28);
  if (kind == IQ3_S) return block[106 + j / 2] >> j % 2 * 4 & 15;
  return uint8_t((block[4 + j / 2] >> j % 2 * 4 & 15) | (block[2 + j / 4] >> j % 4 * 2 & 3) << 4);
}

void pack_scales(int kind, const uint8_t* block, int row, uint8_t* out) {
  if (kind == MXFP4) {
    out[row] = block[0];
    return;
  }
  memcpy(out + 2 * row, block, 2);  // d
  if (kind == IQ4_NL) return;
  uint8_t s[8];
  for (int j = 0; j < 8; j++) s[j] = read_scale(kind, block, j);
  if (kind == IQ4_XS)
    for (int j = 0; j < 8; j += 4) pack_sixes(s + j, row, out + 32 + j / 4 * 48);
  else
    for (int j = 0; j < 8; j += 2) out[32 + j / 2 * 16 + row] = uint8_t(s[j] | s[j + 1] << 4);
}

}  // namespace

void pack_i_block(int32_t kind, const uint8_t* block, int row, uint8_t* scales, uint8_t* integers) {
  pack_scales(kind, block, row, scales);
  for (int j = 0; j < layout_of(kind).columns / GROUP; j++) {
    uint8_t q[GROUP];
    read_group(kind, block, j, q);
    pack_nibbles(q, row, integers + j * FOUR_BITS);
  }
}

void decode_i_block(int32_t kind, const uint8_t* block, float* out) {
  for (int j = 0; j < layout_of(kind).columns / GROUP; j++, out += GROUP) {
    uint8_t q[GROUP];
    read_group(kind, block, j, q);
    for (int i = 0; i < GROUP; i++) switch (kind) {
        case MXFP4: out[i] = __builtin_ldexpf(float(MXFP4_VALUES[q[i]]), block[0] - 128); break;
        case IQ4_NL: out[i] = half(block) * float(IQ4_VALUES[q[i]]); break;
        case IQ4_XS:
          out[i] = half(block) * float(read_scale(kind, block, j) - 32) * float(IQ4_VALUES[q[i]]);
          break;
        case IQ3_XXS:
          out[i] = half(block) * float(2 * read_scale(kind, block, j) + 1) * .25f *
                   float(IQ3_VALUES[q[i]]);
          break;
        default:
          out[i] = half(block) * float(2 * read_scale(kind, block, j) + 1) * float(2 * q[i] - 15);
          break;
      }
  }
}
