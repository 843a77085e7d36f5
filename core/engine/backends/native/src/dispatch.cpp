// Chooses the instruction set. Knows what the processor reports; holds no vector code, so that it
// runs on any.
#include "dispatch.h"

#include <stdio.h>
#include <string.h>

#include "exports.h"
#include "run.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif
#if defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace quietchoir {
namespace {

bool always() { return true; }

#if defined(__x86_64__)
// The compiler's runtime also asks whether the operating system saves these registers; where not
// every compiler knows a feature's name, its bit is read besides.
bool has_avx2() {
  unsigned eax, ebx, ecx, edx;
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __get_cpuid(1, &eax, &ebx, &ecx, &edx) && ecx & bit_F16C;
}
bool has_avxvnni() {
  unsigned eax, ebx, ecx, edx;
  return has_avx2() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) &&
         eax >> 4 & 1;  // leaf 7.1, EAX bit 4
}
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
}
bool has_avx512bf16() {
  unsigned eax, ebx, ecx, edx;
  return has_avx512() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) &&
         eax >> 5 & 1;  // leaf 7.1, EAX bit 5
}
#endif

#if defined(__aarch64__)
bool has_dot_products() {
#if defined(__linux__)
  return getauxval(AT_HWCAP) >> 20 & 1;  // HWCAP_ASIMDDP
#elif defined(__APPLE__)
  int found = 0;
  size_t size = sizeof found;
  return sysctlbyname("hw.optional.arm.FEAT_DotProd", &found, &size, nullptr, 0) == 0 && found;
#else
  return false;
#endif
}
#endif

struct Choice {
  const Table* table;
  bool (*runs)();
};

// Best first.
const Choice CHOICES[] = {
#if defined(__x86_64__)
    {&table_avx512bf16, has_avx512bf16},
    {&table_avx512, has_avx512},
    {&table_avxvnni, has_avxvnni},
    {&table_avx2, has_avx2},
#elif defined(__aarch64__)
    {&table_neondot, has_dot_products},
    {&table_neon, always},
#endif
    {&table_plain, always},
};

}  // namespace

const Table* find_table(const char* name) {
  for (const Choice& choice : CHOICES)
    if ((!name || !*name || !strcmp(name, choice.table->name)) && choice.runs())
      return choice.table;
  return nullptr;
}

}  // namespace quietchoir

// The digest of the sources that this library was made of.
QC_EXPORT const char* quietchoir_sources() { return QUIETCHOIR_SOURCES; }

namespace {

struct Facts {
  char text[512] = "";
  template <int N>
  void line(const char* const (&names)[N]) {
    for (const char* name : names) strcat(strcat(text, name), " ");
    strcat(text, "\n");
  }
  Facts() {
    snprintf(text, sizeof text, "%d\n", quietchoir::BLOCK);
    line(KIND_NAMES), line(quietchoir::ROLE_NAMES), line(quietchoir::ACTIVATION_NAMES);
    line(quietchoir::KV_TYPE_NAMES);
  }
};

}  // namespace

// What callers must know by number, a line each: tokens of a block, kinds, roles and activations in
// their order.
QC_EXPORT const char* quietchoir_facts() {
  static const Facts facts;
  return facts.text;
}

// Names of the sets that run here, best first, with spaces between.
QC_EXPORT const char* quietchoir_instruction_sets() {
  struct Names {
    char text[64] = "";
    Names() {
      for (const auto& choice : quietchoir::CHOICES)
        if (choice.runs()) strcat(strcat(text, text[0] ? " " : ""), choice.table->name);
    }
  };
  static const Names names;
  return names.text;
}
