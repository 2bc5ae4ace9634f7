#include "memory/cpu/backed_memory.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <string>

#include "memory/cpu/huge_pages.h"

namespace gantry {
namespace {

// What the kernel says of the mapping that begins at `data`: the sum of its lines `key`, in bytes; -1: there is no such mapping.
int64_t MappingBytes(const void* data, const std::string& key) {
  std::ifstream smaps("/proc/self/smaps");
  char begin[32];
  std::snprintf(begin, sizeof(begin), "%lx-", reinterpret_cast<unsigned long>(data));
  int64_t bytes = -1;
  bool within = false;
  for (std::string line; std::getline(smaps, line);) {
    if (line.find('-') < line.find(' ')) within = line.starts_with(begin);  // the first line of a mapping is its range
    if (within && bytes < 0) bytes = 0;
    if (within && line.starts_with(key + ":")) bytes += 1024 * std::stoll(line.substr(key.size() + 1));
  }
  return bytes;
}

bool KernelPutsPagesTogether() {
  constexpr int kCollapse = 25;  // MADV_COLLAPSE
  const int file = memfd_create("probe", MFD_CLOEXEC);
  if (file < 0 || ftruncate(file, kHugePageBytes) != 0) return false;
  void* const data = MapShared(kHugePageBytes, PROT_READ | PROT_WRITE, file);
  close(file);
  if (data == MAP_FAILED) return false;
  std::memset(data, 1, kHugePageBytes);
  const bool together = madvise(data, kHugePageBytes, kCollapse) == 0;
  munmap(data, kHugePageBytes);
  return together;
}

TEST(BackedMemoryTest, OthersSeeWhatIsWritten) {
  constexpr int64_t kBytes = 5 * static_cast<int64_t>(kHugePageBytes) + 4096;
  const absl::StatusOr<BackedMemory> memory = BackedMemory::Map("test", kBytes - 100, "ask for less");
  ASSERT_TRUE(memory.ok()) << memory.status();
  EXPECT_EQ(memory->mapped_bytes(), kBytes);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(memory->data()) % kHugePageBytes, 0u);
  EXPECT_EQ(MappingBytes(memory->data(), "Size"), kBytes);
  EXPECT_TRUE(std::all_of(memory->data(), memory->data() + kBytes, [](std::byte byte) { return byte == std::byte{0}; }));
  void* const other = MapShared(kBytes, PROT_READ, memory->descriptor());
  ASSERT_NE(other, MAP_FAILED);
  for (int64_t at = 0; at < kBytes; at += 1000) memory->data()[at] = static_cast<std::byte>(at / 1000);
  EXPECT_EQ(std::memcmp(other, memory->data(), kBytes), 0);
  munmap(other, kBytes);
}

TEST(BackedMemoryTest, LiesInHugePagesWhereTheKernelPutsThemTogether) {
  constexpr int64_t kBytes = 8 * static_cast<int64_t>(kHugePageBytes);
  absl::StatusOr<BackedMemory> memory = BackedMemory::Map("test", kBytes, "ask for less");
  ASSERT_TRUE(memory.ok()) << memory.status();
  if (!KernelPutsPagesTogether()) GTEST_SKIP() << "this kernel gives no huge pages to shared memory on request";
  // The kernel refuses where another has hold of a page at the moment, or where it finds no huge page at once.
  for (int attempt = 0; attempt < 20 && MappingBytes(memory->data(), "ShmemPmdMapped") != kBytes; ++attempt) {
    usleep(10'000);
    memory = BackedMemory::Map("test", kBytes, "ask for less");
    ASSERT_TRUE(memory.ok()) << memory.status();
  }
  EXPECT_EQ(MappingBytes(memory->data(), "ShmemPmdMapped"), kBytes);
  void* const other = MapShared(kBytes, PROT_READ, memory->descriptor());
  ASSERT_NE(other, MAP_FAILED);
  for (int attempt = 0; attempt < 20 && MappingBytes(other, "ShmemPmdMapped") != kBytes; ++attempt) {
    if (attempt > 0) usleep(10'000);
    PutPagesTogether(other, kBytes);
  }
  EXPECT_EQ(MappingBytes(other, "ShmemPmdMapped"), kBytes);
  munmap(other, kBytes);
}

}  // namespace
}  // namespace gantry
