#include "comm/wait.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <bit>
#include <climits>
#include <ctime>
#include <vector>

#include "absl/strings/str_format.h"

namespace gantry {

WaitPolicy WaitPolicy::For(int ranks, int cores) {
  if (ranks <= cores) return {.spin = std::chrono::microseconds(100), .yields = 0};
  return {.spin = {}, .yields = 200};
}

std::string WaitPolicy::Describe() const {
  if (spin.count() > 0) return absl::StrFormat("spins %d us, then sleeps", spin.count() / 1000);
  return absl::StrFormat("gives its core away %d times, then sleeps", yields);
}

CoreSet CoreSet::OfThisProcess() {
  CoreSet cores;
  // The kernel's set may be larger than cpu_set_t; the process (its main thread) is asked, not the calling thread,
  // which may be bound.
  std::vector<unsigned long> words(16);
  const long bytes = syscall(SYS_sched_getaffinity, getpid(), words.size() * sizeof(words[0]), words.data());
  for (size_t word = 0; bytes > 0 && word < words.size() && word < 16; ++word) cores.bits[word] = words[word];
  if (cores.count() == 0) cores.bits[0] = 1;
  return cores;
}

void CoreSet::Add(const CoreSet& other) {
  for (int word = 0; word < 16; ++word) bits[word] |= other.bits[word];
}

int CoreSet::count() const {
  int count = 0;
  for (const uint64_t word : bits) count += std::popcount(word);
  return count;
}

// Not FUTEX_PRIVATE_FLAG: the word lies in memory of several processes.
void Doorbell::Wake() {
  rings.fetch_add(1, std::memory_order_seq_cst);
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&rings), FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

void wait_detail::Yield() { sched_yield(); }

uint32_t wait_detail::Core() {
  const int core = sched_getcpu();
  return core < 0 ? 0 : static_cast<uint32_t>(core);
}

void wait_detail::SleepOn(Doorbell& bell, uint32_t seen, std::chrono::nanoseconds longest) {
  const timespec time = {.tv_sec = longest.count() / 1'000'000'000, .tv_nsec = longest.count() % 1'000'000'000};
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&bell.rings), FUTEX_WAIT, seen, &time, nullptr, 0);
}

}  // namespace gantry
