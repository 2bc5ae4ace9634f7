// How a rank waits for another rank of its node: first busy, then giving the core away, then asleep until it is woken.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <string>

#include "absl/time/time.h"

namespace gantry {

// Waking a sleeper costs tens of microseconds, so that a wait is busy first where each rank has a core; where ranks
// share cores, a busy wait holds up the very rank that is waited for, and the core is given away at once
// (docs/measurements/comm.md has both).
struct WaitPolicy {
  std::chrono::nanoseconds spin = {};  // looking again and again
  int yields = 0;                      // then sched_yield between two looks; then a futex
  bool dozes = false;                  // there: asleep as a dozer, see Doorbell
  static WaitPolicy For(int ranks, int cores);
  std::string Describe() const;  // "spins 100 us, then sleeps"
};

// Bits of the cores that this process may run on, as far as the first 1024 reach.
struct CoreSet {
  uint64_t bits[16] = {};
  static CoreSet OfThisProcess();
  void Add(const CoreSet& other);
  int count() const;
};

namespace wait_detail {
uint32_t Core();
}  // namespace wait_detail

// What the threads of one rank sleep on. It lies in memory that all ranks of the node map. All zero to begin with.
struct alignas(128) Doorbell {
  std::atomic<uint32_t> rings;     // the futex
  std::atomic<uint32_t> sleepers;  // threads that sleep, or are about to
  // Of the same: those that need not wake for each thing that is done over a network, since the thread that finds it done
  // goes on with the operation in their place and wakes them at its end.
  std::atomic<uint32_t> dozers;
  std::atomic<uint32_t> core;      // 1 + where a thread of this rank was last seen, 0: nowhere yet

  // Of the own rank: where it is now.
  void NoteCore() {
    const uint32_t now = wait_detail::Core() + 1;
    if (core.load(std::memory_order_relaxed) != now) core.store(now, std::memory_order_relaxed);
  }
  // Whether it was last seen where the caller is.
  bool SharesCore() const { return core.load(std::memory_order_relaxed) == wait_detail::Core() + 1; }

  // After a change that a thread of this rank may wait for, made with memory_order_seq_cst.
  void Ring() {
    if (sleepers.load(std::memory_order_seq_cst) != 0 || has_dozers()) Wake();
  }
  void RingSleepers() {
    if (sleepers.load(std::memory_order_seq_cst) != 0) Wake();
  }
  bool has_dozers() const { return dozers.load(std::memory_order_seq_cst) != 0; }
  void Wake();
};

namespace wait_detail {
inline void Pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}
void Yield();
// Sleeps until `bell` differs from `seen`, or for `longest`.
void SleepOn(Doorbell& bell, uint32_t seen, std::chrono::nanoseconds longest);
}  // namespace wait_detail

using WaitClock = std::chrono::steady_clock;

// Until ready(), true, or until `deadline`, false. `ready(rested)`: whether what is waited for is there, or the wait is
// of no use any more (a rank is lost); it reads what it looks at with memory_order_seq_cst. `rested` is true where a
// look may take longer. Whoever makes it true rings `bell` afterwards. `shares_core()`: whether one that is waited for
// was last on this core; a busy wait then gives the core away, and only then, for on a busy machine it may not come
// back for milliseconds.
template <typename Ready, typename SharesCore>
bool WaitUntil(Doorbell& bell, const WaitPolicy& policy, WaitClock::time_point deadline, Ready&& ready,
               SharesCore&& shares_core) {
  constexpr int kLooksPerClock = 64;
  constexpr std::chrono::milliseconds kLongestSleep(50);  // so that a deadline of the operation itself is looked at
  for (int look = 0; look < kLooksPerClock; ++look) {
    if (ready(false)) return true;
    if (policy.spin.count() > 0)
      wait_detail::Pause();
    else if (look < policy.yields)
      wait_detail::Yield();
  }
  const WaitClock::time_point begin = WaitClock::now();
  while (policy.spin.count() > 0) {
    for (int look = 0; look < kLooksPerClock; ++look) {
      if (ready(false)) return true;
      wait_detail::Pause();
    }
    const WaitClock::time_point now = WaitClock::now();
    if (now >= deadline) return ready(true);
    if (now - begin >= policy.spin) break;
    if (shares_core()) wait_detail::Yield();
  }
  for (int look = policy.spin.count() > 0 ? 0 : kLooksPerClock; look < policy.yields; ++look) {
    if (ready(look % kLooksPerClock == 0)) return true;
    wait_detail::Yield();
  }
  std::atomic<uint32_t>& sleepers = policy.dozes ? bell.dozers : bell.sleepers;
  for (;;) {
    const uint32_t seen = bell.rings.load(std::memory_order_seq_cst);
    sleepers.fetch_add(1, std::memory_order_seq_cst);
    const bool is_ready = ready(true);
    const WaitClock::time_point now = WaitClock::now();
    if (!is_ready && now < deadline) {
      wait_detail::SleepOn(bell, seen, std::min<std::chrono::nanoseconds>(kLongestSleep, deadline - now));
    }
    sleepers.fetch_sub(1, std::memory_order_seq_cst);
    if (is_ready) return true;
    if (now >= deadline) return false;
  }
}

}  // namespace gantry
