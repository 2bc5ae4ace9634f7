#include "memory/tier/tier.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>
#include <vector>

#include "memory/tier/file_tier.h"
#include "memory/tier/stream_copy.h"

namespace gantry {
namespace {

using ::testing::HasSubstr;

class Directory {
 public:
  Directory() : path_((std::filesystem::temp_directory_path() / "gantry_tier_XXXXXX").string()) {
    if (mkdtemp(path_.data()) == nullptr) std::abort();
  }
  ~Directory() { std::filesystem::remove_all(path_); }
  const std::string& path() const { return path_; }
  bool empty() const { return std::filesystem::is_empty(path_); }

 private:
  std::string path_;
};

std::vector<std::byte> Pattern(int64_t bytes, uint32_t seed) {
  std::vector<std::byte> pattern(static_cast<size_t>(bytes));
  for (std::byte& value : pattern) value = static_cast<std::byte>((seed = seed * 1664525 + 1013904223) >> 24);
  return pattern;
}

// The ways that a slab's bytes can go.
enum class Way { kHost, kRing, kPositioned, kBuffered, kNamedFile };
std::string WayName(const ::testing::TestParamInfo<Way>& way) {
  return std::vector<std::string>{"Host", "Ring", "Positioned", "Buffered",
                                  "NamedFile"}[static_cast<size_t>(way.param)];
}

class TierTest : public ::testing::TestWithParam<Way> {
 protected:
  TierOptions Options() const {
    TierOptions options{.name = "t", .kind = GetParam() == Way::kHost ? TierKind::kHost : TierKind::kFile};
    options.directory = directory_.path();
    options.direct_io = GetParam() != Way::kBuffered;
    options.io_uring = GetParam() == Way::kRing || GetParam() == Way::kNamedFile;
    return options;
  }
  absl::StatusOr<std::unique_ptr<TierSlab>> Reserve(int64_t bytes) const {
    if (GetParam() == Way::kNamedFile) return ReserveFileTier(Options(), bytes, {.unnamed_files = false});
    return ReserveTier(Options(), bytes);
  }
  const Directory directory_;
};
INSTANTIATE_TEST_SUITE_P(Ways, TierTest,
                         ::testing::Values(Way::kHost, Way::kRing, Way::kPositioned, Way::kBuffered, Way::kNamedFile),
                         WayName);

TEST_P(TierTest, WhatWasWrittenIsRead) {
  constexpr int64_t kMiB = 1 << 20;
  const std::vector<int64_t> sizes = {64, 4096, 4032, 4160, 100'032, kMiB, kMiB + 64, 3 * kMiB - 64, 5 * kMiB + 8192};
  int64_t total = 0;
  for (const int64_t size : sizes) total += (size + 4095) / 4096 * 4096;
  auto slab = Reserve(total);
  ASSERT_TRUE(slab.ok()) << slab.status();
  EXPECT_EQ((*slab)->size_bytes(), total);
  EXPECT_EQ((*slab)->data() != nullptr, GetParam() == Way::kHost);
  // Memory that starts at a block, and memory that does not.
  for (const int64_t shift : {0, 64, 4}) {
    std::vector<std::byte> from_room(static_cast<size_t>(total) + 8192), to_room(from_room.size());
    const auto start = [&](std::vector<std::byte>& room) {
      return room.data() + (4096 - reinterpret_cast<uintptr_t>(room.data()) % 4096) + shift;
    };
    int64_t offset = 0;
    for (const int64_t size : sizes) {
      const std::vector<std::byte> pattern = Pattern(size, static_cast<uint32_t>(size + shift));
      std::copy(pattern.begin(), pattern.end(), start(from_room));
      ASSERT_TRUE((*slab)->Write(offset, {start(from_room), pattern.size()}).ok()) << size;
      offset += (size + 4095) / 4096 * 4096;
    }
    offset = 0;
    for (const int64_t size : sizes) {
      std::fill(to_room.begin(), to_room.end(), std::byte{0x5a});
      std::byte* const to = start(to_room);
      ASSERT_TRUE((*slab)->Read(offset, {to, static_cast<size_t>(size)}).ok()) << size;
      EXPECT_TRUE(std::equal(to, to + size, Pattern(size, static_cast<uint32_t>(size + shift)).begin()))
          << size << " " << shift;
      EXPECT_EQ(to[-1], std::byte{0x5a}) << size;
      EXPECT_EQ(to[size], std::byte{0x5a}) << size;  // what lies behind is not touched
      offset += (size + 4095) / 4096 * 4096;
    }
  }
  EXPECT_EQ((*slab)->retry_count(), 0);
}

TEST_P(TierTest, IsZeroAtFirst) {
  auto slab = Reserve(8192);
  ASSERT_TRUE(slab.ok()) << slab.status();
  std::vector<std::byte> bytes(8192, std::byte{1});
  ASSERT_TRUE((*slab)->Read(0, bytes).ok());
  EXPECT_EQ(bytes, std::vector<std::byte>(8192));
}

TEST_P(TierTest, RangesOutsideAreRefused) {
  auto slab = Reserve(8192);
  ASSERT_TRUE(slab.ok()) << slab.status();
  std::vector<std::byte> bytes(8192);
  for (const int64_t offset : {int64_t{4096}, int64_t{-4096}, int64_t{1} << 60, INT64_MIN, INT64_MAX}) {
    EXPECT_EQ((*slab)->Write(offset, bytes).code(), absl::StatusCode::kInvalidArgument) << offset;
    EXPECT_EQ((*slab)->Read(offset, bytes).code(), absl::StatusCode::kInvalidArgument) << offset;
  }
  const absl::Status status = (*slab)->Write(4096, bytes);
  EXPECT_THAT(Message(status),
              HasSubstr("tier t: write of 8192 bytes at offset 4096 is outside its slab of 8192 bytes"));
  EXPECT_TRUE((*slab)->Write(8192, {}).ok());
  if (GetParam() != Way::kHost) {
    EXPECT_EQ((*slab)->Write(64, std::span(bytes).first(64)).code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST_P(TierTest, NothingIsASlabToo) {
  auto slab = Reserve(0);
  ASSERT_TRUE(slab.ok()) << slab.status();
  EXPECT_EQ((*slab)->size_bytes(), 0);
  EXPECT_TRUE((*slab)->Read(0, {}).ok());
  EXPECT_EQ(Reserve(-1).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(Reserve(INT64_MAX).ok());
}

TEST_P(TierTest, TheBudgetHolds) {
  TierOptions options = Options();
  options.budget_bytes = 8192;
  EXPECT_TRUE(ReserveTier(options, 8192).ok());
  const absl::Status status = ReserveTier(options, 12288).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(status), HasSubstr("tier t: 12288 bytes asked for, its budget is 8192: 4096 short"));
}

TEST_P(TierTest, OneThreadWritesWhileAnotherReads) {
  constexpr int64_t kHalf = 3 << 20;
  auto slab = Reserve(2 * kHalf);
  ASSERT_TRUE(slab.ok()) << slab.status();
  const std::vector<std::byte> old = Pattern(kHalf, 1);
  ASSERT_TRUE((*slab)->Write(kHalf, old).ok());
  absl::Status written, read;
  std::vector<std::byte> back(kHalf);
  std::thread writer([&] {
    for (uint32_t i = 0; i < 5 && written.ok(); ++i) written = (*slab)->Write(0, Pattern(kHalf, i + 2));
  });
  for (int i = 0; i < 5 && read.ok(); ++i) {
    std::fill(back.begin(), back.end(), std::byte{0});
    read = (*slab)->Read(kHalf, back);
    EXPECT_EQ(back, old);
  }
  writer.join();
  EXPECT_TRUE(written.ok()) << written;
  EXPECT_TRUE(read.ok()) << read;
  ASSERT_TRUE((*slab)->Read(0, back).ok());
  EXPECT_EQ(back, Pattern(kHalf, 6));
}

TEST_P(TierTest, AKilledProcessLeavesNoFile) {
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    auto slab = Reserve(1 << 20);
    const std::vector<std::byte> bytes(1 << 20, std::byte{7});
    const char state = slab.ok() && (*slab)->Write(0, bytes).ok() ? '+' : '-';
    if (write(ready[1], &state, 1) != 1) _exit(1);
    pause();
    _exit(1);
  }
  char state = '?';
  EXPECT_EQ(read(ready[0], &state, 1), 1);
  EXPECT_EQ(state, '+');
  kill(child, SIGKILL);
  int exit_status = 0;
  EXPECT_EQ(waitpid(child, &exit_status, 0), child);
  EXPECT_TRUE(WIFSIGNALED(exit_status));
  close(ready[0]);
  close(ready[1]);
  EXPECT_TRUE(directory_.empty());
}

TEST(HostTierTest, SaysWhatItIs) {
  auto slab = ReserveTier({.name = "host"}, 100);
  ASSERT_TRUE(slab.ok()) << slab.status();
  EXPECT_EQ((*slab)->size_bytes(), 100);
  EXPECT_EQ((*slab)->DescribePath(), "memory");
  EXPECT_EQ((*slab)->name(), "host");
}

TEST(StreamCopyTest, CopiesAllAndNothingElse) {
  const std::vector<std::byte> source = Pattern(1000, 11);
  for (size_t to = 64; to < 130; to += 3) {
    for (size_t from = 0; from < 70; from += 7) {
      for (const size_t bytes : {0, 1, 15, 63, 64, 65, 127, 128, 300, 512}) {
        std::vector<std::byte> target(1000, std::byte{0x77}), expected = target;
        std::copy_n(source.begin() + from, bytes, expected.begin() + to);
        StreamCopy(target.data() + to, source.data() + from, bytes);
        ASSERT_EQ(target, expected) << bytes << " bytes from " << from << " to " << to;
      }
    }
  }
}

TEST(HostTierTest, MoreThanTheMachineHasIsAnError) {
  const absl::Status status = ReserveTier({.name = "host"}, int64_t{1} << 55).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(status), HasSubstr("tier host: 36028797018963968 bytes asked for, the machine has "));
}

// A file's calls with failures put in: each entry is the outcome of the next transfer; 0 is a good one, a negative
// number an errno, a positive number cuts that many bytes off.
class FaultyIo final : public FileIo {
 public:
  FaultyIo(std::unique_ptr<FileIo> real, std::vector<int64_t>& faults) : real_(std::move(real)), faults_(faults) {}
  void BeginWrite(int slot, std::span<const std::byte> memory, int64_t offset) override {
    Next(slot);
    real_->BeginWrite(slot, memory, offset);
  }
  void BeginRead(int slot, std::span<std::byte> memory, int64_t offset) override {
    Next(slot);
    real_->BeginRead(slot, memory, offset);
  }
  int64_t Finish(int slot) override {
    const int64_t moved = real_->Finish(slot);
    return fault_[slot] < 0 ? fault_[slot] : moved - fault_[slot];
  }

 private:
  void Next(int slot) {
    fault_[slot] = 0;
    if (faults_.empty()) return;
    fault_[slot] = faults_.front();
    faults_.erase(faults_.begin());
  }
  std::unique_ptr<FileIo> real_;
  std::vector<int64_t>& faults_;
  int64_t fault_[kSlots] = {};
};

class FileTierTest : public ::testing::Test {
 protected:
  std::unique_ptr<TierSlab> Reserve(int64_t bytes) {
    FileTierSeam seam;
    seam.around_io = [this](std::unique_ptr<FileIo> real) {
      return std::make_unique<FaultyIo>(std::move(real), faults_);
    };
    auto slab = ReserveFileTier(Options(), bytes, seam);
    EXPECT_TRUE(slab.ok()) << slab.status();
    return slab.ok() ? *std::move(slab) : nullptr;
  }
  TierOptions Options() const { return {.name = "nvme", .kind = TierKind::kFile, .directory = directory_.path()}; }
  const Directory directory_;
  std::vector<int64_t> faults_;
};

TEST_F(FileTierTest, OneFailureIsSurvived) {
  auto slab = Reserve(4 << 20);
  ASSERT_NE(slab, nullptr);
  const std::vector<std::byte> pattern = Pattern((4 << 20) - 64, 3);
  std::vector<std::byte> back(pattern.size());
  int64_t retries = 0;
  for (const std::vector<int64_t>& faults :
       std::vector<std::vector<int64_t>>{{-EIO}, {0, 0, -EIO}, {512}, {0, 4096, 0, 0, -EAGAIN}}) {
    for (const bool writing : {true, false}) {
      faults_ = writing ? faults : std::vector<int64_t>{};
      ASSERT_TRUE(slab->Write(0, pattern).ok());
      faults_ = writing ? std::vector<int64_t>{} : faults;
      std::fill(back.begin(), back.end(), std::byte{0});
      ASSERT_TRUE(slab->Read(0, back).ok());
      EXPECT_EQ(back, pattern);
      retries += static_cast<int64_t>(faults.size() - std::count(faults.begin(), faults.end(), 0));
      EXPECT_EQ(slab->retry_count(), retries);
    }
  }
}

TEST_F(FileTierTest, TwoFailuresAreReported) {
  auto slab = Reserve(1 << 20);
  ASSERT_NE(slab, nullptr);
  std::vector<std::byte> bytes(8192);
  faults_ = {-ENOSPC, -ENOSPC};
  absl::Status status = slab->Write(4096, bytes);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Message(status), HasSubstr("tier nvme: write of "));
  EXPECT_THAT(Message(status), HasSubstr(" at offset 4096 of its file in '" + directory_.path()));
  EXPECT_THAT(Message(status), HasSubstr("No space left on device"));
  faults_ = {-EIO, -EIO};
  status = slab->Read(4096, bytes);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(Message(status), HasSubstr("Input/output error"));
  // Short both times, the second time shorter.
  faults_ = {100, 8192};
  status = slab->Read(0, bytes);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(Message(status), HasSubstr("bytes came through"));
  // The slab is of use after it.
  EXPECT_TRUE(faults_.empty());
  EXPECT_TRUE(slab->Write(0, bytes).ok());
}

TEST_F(FileTierTest, AFailureInTheMiddleEndsTheTransfersBegun) {
  auto slab = Reserve(8 << 20);
  ASSERT_NE(slab, nullptr);
  const std::vector<std::byte> pattern = Pattern(8 << 20, 9);
  faults_ = {0, 0, 0, -EIO, 0, -EIO, -EIO, -EIO};
  EXPECT_EQ(slab->Write(0, pattern).code(), absl::StatusCode::kUnavailable);
  faults_.clear();
  std::vector<std::byte> back(pattern.size());
  EXPECT_TRUE(slab->Write(0, pattern).ok());
  EXPECT_TRUE(slab->Read(0, back).ok());
  EXPECT_EQ(back, pattern);
}

TEST_F(FileTierTest, SizeIsRoundedUpToBlocksWithinTheBudget) {
  TierOptions options = Options();
  auto slab = ReserveTier(options, 4097);
  ASSERT_TRUE(slab.ok()) << slab.status();
  EXPECT_EQ((*slab)->size_bytes(), 8192);
  options.budget_bytes = 8191;
  EXPECT_EQ(ReserveTier(options, 4097).status().code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(FileTierTest, SaysWhichWayTheBytesGo) {
  TierOptions options = Options();
  options.io_uring = false;
  options.direct_io = false;
  auto slab = ReserveTier(options, 4096);
  ASSERT_TRUE(slab.ok()) << slab.status();
  EXPECT_EQ((*slab)->DescribePath(), "pread/pwrite, buffered (as asked)");
  options.io_uring = true;
  slab = ReserveTier(options, 4096);
  ASSERT_TRUE(slab.ok()) << slab.status();
  const std::string path = (*slab)->DescribePath();
  EXPECT_TRUE(path.starts_with("io_uring, ") || path.starts_with("pread/pwrite (no io_uring: ")) << path;
}

// As in containers that forbid io_uring.
bool ForbidIoUring() {
  sock_filter instructions[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program{.len = static_cast<unsigned short>(std::size(instructions)), .filter = instructions};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

TEST_F(FileTierTest, WorksWhereIoUringIsForbidden) {
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    if (!ForbidIoUring()) _exit(77);
    auto slab = ReserveTier(Options(), 1 << 20);
    if (!slab.ok()) _exit(1);
    const std::string path = (*slab)->DescribePath();
    if (!path.starts_with("pread/pwrite (no io_uring: Operation not permitted), ") &&
        !path.starts_with("pread/pwrite (no io_uring: built without liburing), ")) {
      _exit(2);
    }
    const std::vector<std::byte> pattern = Pattern(100'032, 5);
    std::vector<std::byte> back(pattern.size());
    _exit((*slab)->Write(4096, pattern).ok() && (*slab)->Read(4096, back).ok() && back == pattern ? 0 : 3);
  }
  int exit_status = 0;
  ASSERT_EQ(waitpid(child, &exit_status, 0), child);
  ASSERT_TRUE(WIFEXITED(exit_status));
  if (WEXITSTATUS(exit_status) == 77) GTEST_SKIP() << "no seccomp filters here";
  EXPECT_EQ(WEXITSTATUS(exit_status), 0);
}

TEST_F(FileTierTest, MemoryFileSystemsHaveNoDirectIo) {
  TierOptions options = Options();
  options.directory = "/dev/shm";
  options.io_uring = false;
  if (access("/dev/shm", W_OK) != 0) GTEST_SKIP() << "no /dev/shm here";
  auto slab = ReserveTier(options, 4096);
  ASSERT_TRUE(slab.ok()) << slab.status();
  EXPECT_EQ((*slab)->DescribePath(), "pread/pwrite, buffered (tmpfs has no direct I/O)");
}

TEST_F(FileTierTest, NoDirectoryIsToldApartFromNoPermission) {
  TierOptions options = Options();
  options.directory = "";
  EXPECT_EQ(ReserveTier(options, 4096).status().code(), absl::StatusCode::kInvalidArgument);
  options.directory = directory_.path() + "/missing";
  absl::Status status = ReserveTier(options, 4096).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Message(status), HasSubstr("tier nvme: cannot make a file of 4096 bytes in '" + options.directory + "'"));
  EXPECT_THAT(Message(status), HasSubstr("make the directory first"));
  options.directory = directory_.path() + "/file";
  std::ofstream(options.directory) << "x";
  EXPECT_EQ(ReserveTier(options, 4096).status().code(), absl::StatusCode::kNotFound);
  options.directory = "/proc";  // nobody may make a file there, not even root
  status = ReserveTier(options, 4096).status();
  EXPECT_FALSE(status.ok());
  if (geteuid() != 0) {
    options.directory = directory_.path() + "/locked";
    std::filesystem::create_directory(options.directory);
    std::filesystem::permissions(options.directory, std::filesystem::perms::owner_read);
    EXPECT_EQ(ReserveTier(options, 4096).status().code(), absl::StatusCode::kPermissionDenied);
  }
}

TEST_F(FileTierTest, AFullFileSystemIsAnError) {
  const int64_t free = static_cast<int64_t>(std::filesystem::space(directory_.path()).free);
  // Without filling it up to find out.
  absl::Status status = ReserveTier(Options(), free + (int64_t{64} << 30)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(status), HasSubstr("No space left on device"));
  EXPECT_THAT(Message(status), HasSubstr("bytes are free there; free space there"));
  // Filled by others in between.
  FileTierSeam seam;
  seam.allocate = [](int, int64_t) { return ENOSPC; };
  status = ReserveFileTier(Options(), 8192, seam).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(status), HasSubstr("of 8192 bytes in '" + directory_.path() + "': No space left on device"));
}

TEST_F(FileTierTest, ALimitOnFilesIsAnErrorAndNoSignal) {
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  rlimit small = before;
  small.rlim_cur = 65536;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const absl::Status status = ReserveTier(Options(), 1 << 20).status();
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(status), HasSubstr("File too large"));
}

}  // namespace
}  // namespace gantry
