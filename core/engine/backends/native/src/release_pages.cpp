// Pages of a mapped model file that nobody needs any more, once its matrices are packed.
#include "exports.h"

#if defined(__linux__)
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

namespace {

// Whether one mapping of a file holds all of [from, to). Only then may its pages be dropped: they
// come back from the file.
bool is_file(uintptr_t from, uintptr_t to) {
  FILE* maps = fopen("/proc/self/maps", "r");
  if (!maps) return false;
  char line[4608];
  bool found = false;
  while (!found && fgets(line, sizeof line, maps)) {
    unsigned long begin = 0, end = 0, offset = 0, inode = 0;
    char rights[5] = "", device[16] = "";
    if (sscanf(line, "%lx-%lx %4s %lx %15s %lu", &begin, &end, rights, &offset, device, &inode) ==
        6)
      found = begin <= from && to <= end && inode != 0;
  }
  fclose(maps);
  return found;
}

}  // namespace
#endif

// Lets go of the whole pages in [from, from + bytes), if they are a file's; what was changed in a
// private mapping is lost, so only for blocks, which nobody changes. True if they were dropped.
QC_EXPORT bool quietchoir_release_pages(const uint8_t* from, size_t bytes) {
#if defined(__linux__)
  const uintptr_t page = uintptr_t(sysconf(_SC_PAGESIZE)), at = reinterpret_cast<uintptr_t>(from);
  const uintptr_t begin = (at + page - 1) / page * page, end = (at + bytes) / page * page;
  if (begin >= end || !is_file(begin, end)) return false;
  return madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED) == 0;
#else
  (void)from, (void)bytes;
  return false;
#endif
}
