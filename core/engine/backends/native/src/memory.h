// Aligned memory that is given back with its owner.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace quietchoir {

constexpr size_t HUGE_PAGE = size_t(2) << 20;

inline uint8_t* aligned(size_t bytes, size_t alignment) {
#if defined(_WIN32)
  void* p = _aligned_malloc(bytes, alignment);
#else
  void* p = nullptr;
  if (posix_memalign(&p, alignment, bytes)) p = nullptr;
#endif
  if (!p) throw std::bad_alloc();
  return static_cast<uint8_t*>(p);
}

inline void release(void* p) {
#if defined(_WIN32)
  _aligned_free(p);
#else
  std::free(p);
#endif
}

// Memory for weights: taken in large pieces, because small pages cost a decode step several
// percent.
class Arena {
 public:
  ~Arena() {
    for (uint8_t* piece : pieces) release(piece);
  }

  // 64-byte aligned. Not zeroed.
  uint8_t* take(size_t bytes) {
    bytes = (bytes + 63) / 64 * 64;
    if (bytes > left) {
      const size_t size = bytes > PIECE ? (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE : PIECE;
      pieces.reserve(pieces.size() + 1);
      next = aligned(size, HUGE_PAGE);
      pieces.push_back(next);
      left = size;
#if defined(__linux__)
      madvise(next, size, MADV_HUGEPAGE);  // a hint: without it, it is only slower
#endif
    }
    uint8_t* out = next;
    next += bytes, left -= bytes;
    return out;
  }

 private:
  static constexpr size_t PIECE = size_t(16) << 20;
  std::vector<uint8_t*> pieces;
  uint8_t* next = nullptr;
  size_t left = 0;
};

// Takes splits of one block of memory, 64-byte aligned; run once without memory to learn the size.
struct Cutter {
  uint8_t* memory;
  size_t used = 0;

  template <class T>
  T* take(size_t count) {
    T* out = memory ? reinterpret_cast<T*>(memory + used) : nullptr;
    used += (count * sizeof(T) + 63) / 64 * 64;
    return out;
  }
};

// Working memory that grows with the largest step so far. It holds anything when it is new, and
// costs what is touched.
class ScratchBuffer {
 public:
  ScratchBuffer() = default;
  ScratchBuffer(const ScratchBuffer&) = delete;
  ScratchBuffer& operator=(const ScratchBuffer&) = delete;
  ~ScratchBuffer() { release(memory); }

  uint8_t* at_least(size_t bytes) {
    if (bytes > size) {
      uint8_t* larger = aligned(bytes, 64);
      release(memory);
      memory = larger, size = bytes;
    }
    return memory;
  }

 private:
  uint8_t* memory = nullptr;
  size_t size = 0;
};

}  // namespace quietchoir
