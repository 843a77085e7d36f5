// Members go where the system puts them, within the cores that the process may use. Pinned to one
// core each they were twice as slow on a busy machine (at 8 rows, load 15 on two cores): then every
// barrier waits for the busier core.
#include "team.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#define QC_PAUSE() _mm_pause()
#elif defined(__aarch64__)
#define QC_PAUSE() asm volatile("yield")
#else
#define QC_PAUSE() (void)0
#endif

namespace quietchoir {

namespace {
// Spins before a waiting member sleeps, about 25 us at a barrier: longer than a member that runs
// keeps the others waiting. It never yields: since 6.18 Linux charges a yield with the rest of the
// time slice, so that on a busy machine a team that waited a little at every barrier hardly ran.
constexpr int BARRIER_SPINS = 1000;
// And about 100 us between two steps, while the caller samples.
constexpr int STEP_SPINS = 4000;
}  // namespace

class Team {
 public:
  explicit Team(int members) : size(members) {
    for (int member = 1; member < size; member++)
      threads.emplace_back([this, member] { serve(member); });
  }

  ~Team() {
    {
      std::lock_guard<std::mutex> lock(mutex);
      leaving = true;
      ticket.fetch_add(1);
    }
    wake.notify_all();
    for (auto& thread : threads) thread.join();
  }

  void run(void (*function)(void*, int), void* with) {
    work = function, argument = with;
    next.store(0, std::memory_order_relaxed);
    if (size > 1) {
      {
        std::lock_guard<std::mutex> lock(mutex);
        ticket.fetch_add(1, std::memory_order_release);
      }
      if (sleeping.load()) wake.notify_all();
    }
    work(argument, 0);
    barrier();
  }

  void barrier() {
    if (size == 1) {
      next.store(0, std::memory_order_relaxed);
      return;
    }
    const unsigned now = generation.load(std::memory_order_acquire);
    if (arrived.fetch_add(1, std::memory_order_acq_rel) == size - 1) {
      arrived.store(0, std::memory_order_relaxed);
      next.store(0, std::memory_order_relaxed);
      // in one order with `resting`: either this sees who sleeps, or they see that all have met
      generation.store(now + 1);
      if (resting.load()) {
        std::lock_guard<std::mutex> lock(mutex);
        met.notify_all();
      }
      return;
    }
    for (int spins = 0; spins < BARRIER_SPINS; spins++) {
      if (generation.load(std::memory_order_acquire) != now) return;
      QC_PAUSE();
    }
    std::unique_lock<std::mutex> lock(mutex);
    resting++;
    met.wait(lock, [&] { return generation.load() != now; });
    resting--;
  }

  const int size;
  alignas(64) std::atomic<int> next{0};

 private:
  void serve(int member) {
    unsigned seen = 0;
    for (;;) {
      for (int spins = 0; ticket.load(std::memory_order_acquire) == seen && spins < STEP_SPINS;
           spins++)
        QC_PAUSE();
      if (ticket.load(std::memory_order_acquire) == seen) {
        std::unique_lock<std::mutex> lock(mutex);
        sleeping++;
        wake.wait(lock, [&] { return ticket.load() != seen; });
        sleeping--;
      }
      seen++;
      if (leaving) return;
      work(argument, member);
      barrier();
    }
  }

  alignas(64) std::atomic<unsigned> generation{0};
  alignas(64) std::atomic<int> arrived{0};
  alignas(64) std::atomic<unsigned> ticket{0};
  std::atomic<int> sleeping{0};  // between two steps
  std::atomic<int> resting{0};   // at a barrier
  bool leaving = false;
  void (*work)(void*, int) = nullptr;
  void* argument = nullptr;
  std::mutex mutex;
  std::condition_variable wake, met;
  std::vector<std::thread> threads;
};

int team_size(const Team& team) { return team.size; }
void team_barrier(Team& team) { team.barrier(); }

bool team_take(Team& team, int total, int least, int& from, int& to) {
  int at = team.next.load(std::memory_order_relaxed);
  do {
    if (at >= total) return false;
    // Large pieces first, small ones last: few meetings at the counter, and all end together.
    const int share = (total - at) / (3 * team.size);
    to = at + (share > least ? share : least);
    if (to > total) to = total;
  } while (!team.next.compare_exchange_weak(at, to, std::memory_order_acq_rel));
  from = at;
  return true;
}

Team* team_new(int size) { return new Team(size < 1 ? 1 : size); }
void team_free(Team* team) { delete team; }
void team_run(Team& team, void (*work)(void*, int), void* argument) { team.run(work, argument); }

}  // namespace quietchoir
