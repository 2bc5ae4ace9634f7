#include "memory/tier/copy_lanes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstring>
#include <filesystem>
#include <mutex>
#include <thread>
#include <vector>

#include "tests/support/thread_state.h"

namespace gantry {
namespace {

using ::testing::HasSubstr;

double Now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

std::unique_ptr<TierSlab> Host(int64_t bytes) {
  auto slab = ReserveTier({.name = "host"}, bytes);
  EXPECT_TRUE(slab.ok()) << slab.status();
  return *std::move(slab);
}

std::unique_ptr<CopyLanes> Lanes(std::vector<TierSlab*> slabs, CopyLanesOptions options = {.max_pending = 8},
                                 std::vector<Throttle> out = {}, std::vector<Throttle> in = {}) {
  auto lanes = CopyLanes::Create(std::move(slabs), std::move(out), std::move(in), options);
  EXPECT_TRUE(lanes.ok()) << lanes.status();
  return *std::move(lanes);
}

// A tier that writes what happens to it down, waits at a gate, and fails where told.
class ScriptedSlab final : public TierSlab {
 public:
  int64_t size_bytes() const override { return int64_t{1} << 40; }
  std::byte* data() const override { return nullptr; }
  absl::Status Write(int64_t offset, std::span<const std::byte>) override { return Note(offset); }
  absl::Status Read(int64_t offset, std::span<std::byte>) override { return Note(-offset); }
  std::string DescribePath() const override { return "script"; }
  std::string_view name() const override { return "script"; }

  void Close() { SetOpen(false); }
  void Open() { SetOpen(true); }
  std::vector<int64_t> offsets() const {
    const std::lock_guard lock(mutex_);
    return offsets_;
  }
  int64_t failing_offset = -1;

 private:
  void SetOpen(bool open) {
    const std::lock_guard lock(mutex_);
    open_ = open;
    gate_.notify_all();
  }
  absl::Status Note(int64_t offset) {
    std::unique_lock lock(mutex_);
    gate_.wait(lock, [&] { return open_; });
    offsets_.push_back(offset);
    return offset == failing_offset ? absl::UnavailableError(absl::StrFormat("no luck at %d", offset))
                                    : absl::OkStatus();
  }
  mutable std::mutex mutex_;
  std::condition_variable gate_;
  bool open_ = true;
  std::vector<int64_t> offsets_;
};

TEST(CopyLanesTest, OutAndInThroughTwoTiers) {
  const std::string directory = std::filesystem::temp_directory_path().string();
  auto host = Host(1 << 20);
  auto file = ReserveTier({.name = "nvme", .kind = TierKind::kFile, .directory = directory}, 1 << 20);
  ASSERT_TRUE(file.ok()) << file.status();
  auto lanes = Lanes({host.get(), file->get()});
  ASSERT_EQ(lanes->lane_count(), 4);
  std::vector<std::byte> device(300'032);
  for (int tier = 0; tier < 2; ++tier) {
    for (size_t i = 0; i < device.size(); ++i) device[i] = static_cast<std::byte>(i * 7 + tier);
    const std::vector<std::byte> expected = device;
    const int64_t size = std::ssize(device);
    int64_t count =
        lanes->Start({.tier = tier, .out = true, .device = device.data(), .tier_offset = 8192, .bytes = size});
    EXPECT_EQ(count, 1);
    ASSERT_TRUE(lanes->Wait(lanes->lane(tier, true), count).ok());
    std::fill(device.begin(), device.end(), std::byte{0});
    count = lanes->Start({.tier = tier, .out = false, .device = device.data(), .tier_offset = 8192, .bytes = size});
    EXPECT_EQ(count, 1);
    ASSERT_TRUE(lanes->Wait(lanes->lane(tier, false), count).ok());
    EXPECT_EQ(device, expected);
    EXPECT_EQ(lanes->bytes_out(tier), size);
    EXPECT_EQ(lanes->bytes_in(tier), size);
    EXPECT_GT(lanes->busy_seconds(lanes->lane(tier, true)), 0.0);
  }
  EXPECT_TRUE(lanes->Drain().ok());
}

TEST(CopyLanesTest, ALaneKeepsTheOrder) {
  ScriptedSlab slab;
  auto lanes = Lanes({&slab}, {.max_pending = 4});
  std::byte byte{};
  std::vector<int64_t> expected;
  for (int64_t i = 0; i < 100; ++i) {
    EXPECT_EQ(lanes->Start({.device = &byte, .tier_offset = i, .bytes = 1}), i + 1);
    expected.push_back(i);
  }
  ASSERT_TRUE(lanes->Wait(0, 100).ok());
  EXPECT_EQ(slab.offsets(), expected);
}

TEST(CopyLanesTest, NothingToDoCountsAndIsNotMade) {
  ScriptedSlab slab;
  auto lanes = Lanes({&slab}, {.max_pending = 4}, {{.latency_seconds = 3600}}, {{}});
  EXPECT_EQ(lanes->Start({.bytes = 0}), 1);
  EXPECT_EQ(lanes->Start({.bytes = 0}), 2);
  EXPECT_TRUE(lanes->Wait(0, 2).ok());
  EXPECT_TRUE(slab.offsets().empty());
}

TEST(CopyLanesTest, WaitWaitsForThatManyAndNoMore) {
  ScriptedSlab slab;
  auto lanes = Lanes({&slab});
  std::byte byte{};
  ASSERT_TRUE(lanes->Wait(0, lanes->Start({.device = &byte, .tier_offset = 1, .bytes = 1})).ok());
  EXPECT_TRUE(lanes->Wait(0, 0).ok());
  slab.Close();
  const int64_t count = lanes->Start({.device = &byte, .tier_offset = 2, .bytes = 1});
  EXPECT_TRUE(lanes->Wait(0, count - 1).ok());  // returns while the second one stands at the gate
  EXPECT_EQ(slab.offsets(), std::vector<int64_t>{1});
  const double before = lanes->waited_seconds();
  std::atomic<bool> waits = false;
  std::thread opener([&, waiting = gettid()] {
    while (!waits) std::this_thread::yield();
    EXPECT_TRUE(AwaitSleep(waiting));
    slab.Open();
  });
  waits = true;
  EXPECT_TRUE(lanes->Wait(0, count).ok());
  opener.join();
  EXPECT_EQ(slab.offsets(), (std::vector<int64_t>{1, 2}));
  EXPECT_GT(lanes->waited_seconds(), before);
}

TEST(CopyLanesTest, AFullQueueHoldsTheCallerBack) {
  ScriptedSlab slab;
  auto lanes = Lanes({&slab}, {.max_pending = 2});
  std::byte byte{};
  slab.Close();
  std::atomic<int> started{0};
  std::atomic<pid_t> thread{0};
  std::thread caller([&] {
    thread = gettid();
    for (int64_t i = 0; i < 5; ++i) {
      lanes->Start({.device = &byte, .tier_offset = i, .bytes = 1});
      ++started;
    }
  });
  while (started < 2) std::this_thread::yield();
  EXPECT_TRUE(AwaitSleep(thread));
  EXPECT_EQ(started, 2);
  slab.Open();
  caller.join();
  ASSERT_TRUE(lanes->Drain().ok());
  EXPECT_EQ(slab.offsets().size(), 5u);
  EXPECT_GT(lanes->waited_seconds(), 0.0);
}

TEST(CopyLanesTest, TheFirstErrorStays) {
  ScriptedSlab slab;
  slab.failing_offset = 3;
  auto lanes = Lanes({&slab}, {.max_pending = 2});
  std::byte byte{};
  for (int64_t i = 1; i <= 6; ++i) lanes->Start({.device = &byte, .tier_offset = i, .bytes = 1});
  const absl::Status status = lanes->Wait(0, 6);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Message(status), HasSubstr("no luck at 3"));
  EXPECT_EQ(slab.offsets(), (std::vector<int64_t>{1, 2, 3}));  // none is made after it
  EXPECT_EQ(lanes->Wait(0, 1), status);
  EXPECT_EQ(lanes->Wait(0, lanes->Start({.bytes = 0})), status);
  EXPECT_EQ(lanes->Drain(), status);
  EXPECT_EQ(lanes->bytes_out(0), 2);
  // The other direction goes on.
  EXPECT_TRUE(lanes->Wait(1, lanes->Start({.out = false, .device = &byte, .tier_offset = 1, .bytes = 1})).ok());
}

TEST(CopyLanesTest, LanesGoOnWhileOneStands) {
  ScriptedSlab standing;
  auto host = Host(4096);
  auto lanes = Lanes({&standing, host.get()});
  std::vector<std::byte> device(4096);
  standing.Close();
  lanes->Start({.device = device.data(), .bytes = 1});
  for (int i = 0; i < 20; ++i) {
    EXPECT_TRUE(lanes->Wait(2, lanes->Start({.tier = 1, .device = device.data(), .bytes = 4096})).ok());
    EXPECT_TRUE(lanes->Wait(3, lanes->Start({.tier = 1, .out = false, .device = device.data(), .bytes = 4096})).ok());
  }
  EXPECT_TRUE(standing.offsets().empty());
  standing.Open();
  EXPECT_TRUE(lanes->Drain().ok());
}

// Values go out and back through disjoint places while the caller changes others, as a step does.
TEST(CopyLanesTest, StressedFromTheOutside) {
  constexpr int kValues = 16;
  constexpr int64_t kBytes = 20'032;
  auto host = Host(kValues * kBytes);
  auto lanes = Lanes({host.get()}, {.max_pending = 3, .checksum_slots = kValues});
  std::vector<std::vector<std::byte>> values(kValues, std::vector<std::byte>(kBytes));
  for (int round = 0; round < 30; ++round) {
    std::vector<int64_t> out(kValues), in(kValues);
    for (int i = 0; i < kValues; ++i) {
      std::fill(values[i].begin(), values[i].end(), static_cast<std::byte>(round * kValues + i));
      out[i] =
          lanes->Start({.device = values[i].data(), .tier_offset = i * kBytes, .bytes = kBytes, .checksum_slot = i});
    }
    for (int i = 0; i < kValues; ++i) {
      ASSERT_TRUE(lanes->Wait(0, out[i]).ok());
      std::fill(values[i].begin(), values[i].end(), std::byte{0xee});
      in[i] = lanes->Start(
          {.out = false, .device = values[i].data(), .tier_offset = i * kBytes, .bytes = kBytes, .checksum_slot = i});
    }
    for (int i = 0; i < kValues; ++i) {
      ASSERT_TRUE(lanes->Wait(1, in[i]).ok());
      ASSERT_EQ(values[i], std::vector<std::byte>(kBytes, static_cast<std::byte>(round * kValues + i)));
    }
  }
}

TEST(CopyLanesTest, ThrottledCopiesTakeTheirTime) {
  auto host = Host(4 << 20);
  std::vector<std::byte> device(4 << 20);
  const Throttle slow{.bytes_per_second = 100e6, .latency_seconds = 1e-3};
  auto lanes = Lanes({host.get()}, {.max_pending = 8}, {slow}, {{.latency_seconds = 5e-3, .jitter_seconds = 1e-3}});
  double start = Now();
  // 4 ms and its latency each, one after another.
  for (int i = 0; i < 5; ++i) lanes->Start({.device = device.data(), .tier_offset = i * 400'000, .bytes = 400'000});
  ASSERT_TRUE(lanes->Wait(0, 5).ok());
  EXPECT_GE(Now() - start, 5 * 5e-3);
  EXPECT_GE(lanes->busy_seconds(0), 0.9 * 5 * 5e-3);
  start = Now();
  for (int i = 0; i < 4; ++i) lanes->Start({.out = false, .device = device.data(), .tier_offset = i * 64, .bytes = 64});
  ASSERT_TRUE(lanes->Wait(1, 4).ok());
  EXPECT_GE(Now() - start, 4 * 5e-3);
  // In pieces.
  start = Now();
  std::memset(device.data(), 5, device.size());
  ASSERT_TRUE(lanes->Wait(0, lanes->Start({.device = device.data(), .bytes = 4 << 20})).ok());
  EXPECT_GE(Now() - start, (4 << 20) / 100e6);
  EXPECT_EQ(std::memcmp(host->data(), device.data(), device.size()), 0);
}

TEST(CopyLanesTest, DestructionDoesNotWaitForTheQueue) {
  auto host = Host(4096);
  std::vector<std::byte> device(4096);
  const double start = Now();
  {
    auto lanes = Lanes({host.get()}, {.max_pending = 8}, {{.latency_seconds = 3600}}, {{.bytes_per_second = 1}});
    for (int i = 0; i < 5; ++i) {
      lanes->Start({.device = device.data(), .bytes = 2048});
      lanes->Start({.out = false, .device = device.data() + 2048, .tier_offset = 2048, .bytes = 2048});
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  EXPECT_LT(Now() - start, 1800);
}

TEST(CopyLanesTest, AFlippedBitIsFound) {
  auto host = Host(3 << 20);
  std::vector<std::byte> device(3 << 20, std::byte{0x11});
  auto lanes = Lanes({host.get()}, {.max_pending = 8, .checksum_slots = 2});
  const LaneCopy out{.device = device.data(), .tier_offset = 64, .bytes = 2 << 20, .checksum_slot = 1};
  LaneCopy in = out;
  in.out = false;
  ASSERT_TRUE(lanes->Wait(0, lanes->Start(out)).ok());
  ASSERT_TRUE(lanes->Wait(1, lanes->Start(in)).ok());
  host->data()[64 + (1 << 20) + 12345] ^= std::byte{0x08};
  in.checksum_slot = -1;
  ASSERT_TRUE(lanes->Wait(1, lanes->Start(in)).ok());  // not asked to look
  in.checksum_slot = 0;
  ASSERT_TRUE(lanes->Wait(1, lanes->Start(in)).ok());  // nothing to compare with
  in.checksum_slot = 1;
  const absl::Status status = lanes->Wait(1, lanes->Start(in));
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(Message(status), ::testing::ContainsRegex("tier host: 2097152 bytes at offset 64 came back changed: "
                                                        "CRC [0-9a-f]{8} went out, [0-9a-f]{8} came in"));
  // Without checksums the copies' slots mean nothing.
  auto plain = Lanes({host.get()});
  ASSERT_TRUE(plain->Wait(0, plain->Start(out)).ok());
  host->data()[64] ^= std::byte{1};
  in.checksum_slot = 1;
  EXPECT_TRUE(plain->Wait(1, plain->Start(in)).ok());
}

TEST(CopyLanesTest, NonsenseIsAnError) {
  auto host = Host(4096);
  std::byte byte{};
  const auto failure = [&](const LaneCopy& copy) {
    auto lanes = Lanes({host.get()}, {.max_pending = 1, .checksum_slots = 1});
    return lanes->Wait(lanes->lane(0, copy.out), lanes->Start(copy));
  };
  for (const LaneCopy& copy : std::vector<LaneCopy>{{.device = &byte, .bytes = -1},
                                                    {.device = nullptr, .bytes = 64},
                                                    {.device = &byte, .tier_offset = 4096, .bytes = 1},
                                                    {.out = false, .device = &byte, .tier_offset = -1, .bytes = 1},
                                                    {.device = &byte, .tier_offset = INT64_MAX, .bytes = 1},
                                                    {.device = &byte, .bytes = 1, .checksum_slot = 1}}) {
    EXPECT_EQ(failure(copy).code(), absl::StatusCode::kInvalidArgument) << copy.bytes << " at " << copy.tier_offset;
  }
  auto lanes = Lanes({host.get()});
  EXPECT_EQ(lanes->Start({.tier = 1, .device = &byte, .bytes = 1}), -1);
  EXPECT_EQ(lanes->Start({.tier = -1, .device = &byte, .bytes = 1}), -1);
  EXPECT_EQ(lanes->Wait(2, 0).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(lanes->Wait(-1, 0).code(), absl::StatusCode::kInvalidArgument);
  const absl::Status early = lanes->Wait(1, 1);
  EXPECT_EQ(early.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(early), HasSubstr("wait for 1 copies in from tier host, which has been given 0"));
  const auto create = [&](CopyLanesOptions options, std::vector<Throttle> out) {
    return CopyLanes::Create({host.get()}, std::move(out), {}, options).status().code();
  };
  EXPECT_EQ(create({.max_pending = 0}, {}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(create({.max_pending = 1 << 30}, {}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(create({.max_pending = 1, .checksum_slots = -1}, {}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(create({.max_pending = 1}, {{}, {}}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(create({.max_pending = 1}, {{.bytes_per_second = -1}}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(create({.max_pending = 1}, {{.latency_seconds = NAN}}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(CopyLanes::Create({nullptr}, {}, {}, {.max_pending = 1}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(CopyLanes::Create({}, {}, {}, {.max_pending = 1}).ok());
}

TEST(EncodedCopyTest, ComesBackThroughEveryTier) {
  const std::string directory = std::filesystem::temp_directory_path().string();
  constexpr int64_t kFloats = 3 * kEncodedChunkFloats + 1001;  // a short last chunk
  std::vector<float> values(kFloats), back(kFloats);
  for (int64_t i = 0; i < kFloats; ++i) values[i] = i % 3 == 0 ? std::sin(0.1f * static_cast<float>(i)) : 0.0f;
  for (const TierOptions& options : {TierOptions{.name = "host"}, TierOptions{.name = "nvme", .kind = TierKind::kFile, .directory = directory},
                                     TierOptions{.name = "calls", .kind = TierKind::kFile, .directory = directory, .io_uring = false}}) {
    for (const CopyEncoding encoding : {CopyEncoding::kZeros, CopyEncoding::kBf16}) {
      auto slab = ReserveTier(options, 16384 + EncodedTierBytes(encoding, kFloats * 4));
      ASSERT_TRUE(slab.ok()) << slab.status();
      auto lanes = Lanes({slab->get()}, {.max_pending = 4, .checksum_slots = 1, .encoded_chunks = 7});
      LaneCopy copy{.device = reinterpret_cast<std::byte*>(values.data()), .tier_offset = 8192, .bytes = kFloats * 4, .checksum_slot = 0,
                    .encoding = encoding, .first_chunk = 3};
      ASSERT_TRUE(lanes->Wait(lanes->lane(0, true), lanes->Start(copy)).ok());
      copy.out = false;
      copy.device = reinterpret_cast<std::byte*>(back.data());
      const absl::Status status = lanes->Wait(lanes->lane(0, false), lanes->Start(copy));
      ASSERT_TRUE(status.ok()) << status;
      for (int64_t i = 0; i < kFloats; ++i) {
        if (encoding == CopyEncoding::kZeros) {
          ASSERT_EQ(back[i], values[i]) << i;
        } else {
          ASSERT_NEAR(back[i], values[i], std::abs(values[i]) / 256) << i;
        }
      }
      EXPECT_EQ(lanes->bytes_in(0), lanes->bytes_out(0));
      EXPECT_LE(lanes->bytes_out(0), encoding == CopyEncoding::kBf16 ? kFloats * 2 : kFloats * 3 / 2);
    }
  }
}

// A link carries what is left of the copy, and takes as long as that takes.
TEST(EncodedCopyTest, AThrottleCountsEncodedBytes) {
  auto host = Host(8 << 20);
  std::vector<float> zeros(2 << 20, 0.0f);  // 8 MiB: 8.4 s at 1 MB/s, 0.26 s as a bitmap
  auto lanes = Lanes({host.get()}, {.max_pending = 2, .encoded_chunks = 32}, {{.bytes_per_second = 1e6}}, {{.bytes_per_second = 1e6}});
  const double start = Now();
  const LaneCopy copy{.device = reinterpret_cast<std::byte*>(zeros.data()), .bytes = 8 << 20, .encoding = CopyEncoding::kZeros};
  ASSERT_TRUE(lanes->Wait(0, lanes->Start(copy)).ok());
  EXPECT_EQ(lanes->bytes_out(0), (2 << 20) / 8 + 32 * 8);
  EXPECT_GE(Now() - start, 0.25);
  EXPECT_LT(Now() - start, 5);
}

TEST(EncodedCopyTest, DamageInTheTierIsFound) {
  for (const bool summed : {false, true}) {
    auto host = Host(1 << 20);
    std::vector<float> values(1 << 16);
    for (size_t i = 0; i < values.size(); ++i) values[i] = i % 2 == 0 ? 0.0f : 1.0f;
    auto lanes = Lanes({host.get()}, {.max_pending = 2, .checksum_slots = summed ? 1 : 0, .encoded_chunks = 1});
    LaneCopy copy{.device = reinterpret_cast<std::byte*>(values.data()), .bytes = 1 << 18, .checksum_slot = 0, .encoding = CopyEncoding::kZeros};
    ASSERT_TRUE(lanes->Wait(0, lanes->Start(copy)).ok());
    // In the bitmap it shows by itself, in a value only by the sum.
    host->data()[summed ? 100000 : 100] ^= std::byte{4};
    copy.out = false;
    const absl::Status status = lanes->Wait(1, lanes->Start(copy));
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("last checkpoint"));
  }
}

TEST(EncodedCopyTest, WrongCopiesAreErrorsOfTheLane) {
  auto host = Host(1 << 20);
  std::vector<float> values(1 << 16);
  auto* device = reinterpret_cast<std::byte*>(values.data());
  for (const LaneCopy& copy : {LaneCopy{.device = device, .bytes = 6, .encoding = CopyEncoding::kBf16},
                               LaneCopy{.device = device, .bytes = 64, .encoding = CopyEncoding::kZeros, .first_chunk = 1},
                               LaneCopy{.device = device, .bytes = 64, .encoding = CopyEncoding::kZeros, .first_chunk = -1}}) {
    auto lanes = Lanes({host.get()}, {.max_pending = 2, .encoded_chunks = 1});
    EXPECT_EQ(lanes->Wait(0, lanes->Start(copy)).code(), absl::StatusCode::kInvalidArgument);
  }
  EXPECT_EQ(CopyLanes::Create({host.get()}, {}, {}, {.max_pending = 1, .encoded_chunks = -1}).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(CopyLanesTest, ReadsAndWritesPastTheLanesAreCompared) {
  auto host = Host(8192);
  std::vector<std::byte> device(4096, std::byte{5});
  auto lanes = Lanes({host.get()}, {.max_pending = 2, .checksum_slots = 1});
  EXPECT_TRUE(lanes->has_checksums());
  LaneCopy copy{.device = device.data(), .tier_offset = 4096, .bytes = 4096, .checksum_slot = 0};
  const std::span<std::byte> there(host->data() + 4096, 4096);
  EXPECT_TRUE(lanes->CheckRead(0, 4096, 0, there).ok()) << "nothing has gone out";
  ASSERT_TRUE(lanes->Wait(0, lanes->Start(copy)).ok());
  EXPECT_TRUE(lanes->CheckRead(0, 4096, 0, there).ok());
  there[17] = std::byte{6};
  const absl::Status changed = lanes->CheckRead(0, 4096, 0, there);
  EXPECT_EQ(changed.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(changed.message()), ::testing::HasSubstr("4096 bytes at offset 4096 came back changed"));
  EXPECT_TRUE(lanes->CheckRead(0, 4096, 1, there).ok()) << "there is no such slot";

  lanes->NoteWrite(0, there);
  lanes->NoteWrite(1, there);
  EXPECT_TRUE(lanes->CheckRead(0, 4096, 0, there).ok());
  copy.out = false;
  EXPECT_TRUE(lanes->Wait(1, lanes->Start(copy)).ok());
  there[17] = std::byte{5};
  EXPECT_EQ(lanes->Wait(1, lanes->Start(copy)).code(), absl::StatusCode::kDataLoss);
}

TEST(CopyLanesTest, AForgottenChecksumIsNotCompared) {
  auto host = Host(4096);
  std::vector<std::byte> device(4096, std::byte{5});
  auto lanes = Lanes({host.get()}, {.max_pending = 2, .checksum_slots = 1});
  LaneCopy copy{.device = device.data(), .bytes = 4096, .checksum_slot = 0};
  ASSERT_TRUE(lanes->Wait(0, lanes->Start(copy)).ok());
  host->data()[17] = std::byte{6};  // somebody writes past the lanes, and says so
  lanes->ForgetChecksum(0);
  lanes->ForgetChecksum(1);
  copy.out = false;
  EXPECT_TRUE(lanes->Wait(1, lanes->Start(copy)).ok());
  EXPECT_EQ(device[17], std::byte{6});
}

}  // namespace
}  // namespace gantry
