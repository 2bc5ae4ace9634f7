// What a rank does with what another one sends that does not keep to the rules.

#include "comm/tcp/mailbox.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <unistd.h>

#include <cstring>
#include <functional>
#include <latch>
#include <thread>

#include "comm/channels.h"
#include "comm/handshake_group.h"
#include "comm/socket.h"
#include "tests/support/mailboxes.h"

namespace gantry::tcp {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kRegionBytes = 4096;

void SendBytes(int socket, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const absl::StatusOr<size_t> sent = SendSome(socket, bytes, {}, {});
    if (!sent.ok()) return;  // the other end has had enough
    bytes = bytes.subspan(*sent);
    if (*sent == 0) (void)WaitFor(socket, POLLOUT, absl::Now() + absl::Seconds(60));
  }
}

void SendFrame(int socket, const FrameHeader& frame, int64_t payload_bytes) {
  SendBytes(socket, Encode(frame));
  SendBytes(socket, std::vector<std::byte>(static_cast<size_t>(payload_bytes)));
}

// Rank 1 connects as a rank does, and then `acts` with its two connections. What rank 0, to which `before` is done first, thinks of it at
// the end; the first word of its memory goes to `word`.
absl::Status StatusAfter(const std::function<void(Descriptor ways[2])>& acts, const std::function<void(Mailbox&)>& before = nullptr,
                         uint64_t* word = nullptr) {
  ThreadJob job({0, 1});
  const std::unique_ptr<Device> device = MakeCpuDevice({});
  std::unique_ptr<Slab> slabs[2];
  std::unique_ptr<Pool> pools[2];
  const auto share = [&](int rank) {
    slabs[rank] = *device->Reserve(kRegionBytes);
    std::memset(slabs[rank]->data(), 0, kRegionBytes);
    const PoolRegion region{
        .name = "arena", .data = slabs[rank]->data(), .bytes = kRegionBytes, .descriptor = slabs[rank]->descriptor()};
    pools[rank] = *Pool::Share(job.links(rank), std::span(&region, 1), absl::Seconds(60));
  };
  std::latch is_ready(1);
  std::thread hostile([&] {
    share(1);
    const LinkMessage place = *job.links(1).Receive(0, kTcpChannel, absl::Seconds(60));
    const std::string address(reinterpret_cast<const char*>(place.bytes.data()), place.bytes.size());
    HandshakeGroup group(job.links(1).job());
    const absl::Time deadline = absl::Now() + absl::Seconds(60);
    for (int way = 0; way < 2; ++way)
      group.Add(*StartConnect(*SocketAddress::Parse(address)), Handshake::Role::kInitiator, 0, address, deadline);
    Descriptor ways[2];
    while (!group.empty()) {
      for (HandshakeGroup::Outcome& outcome : group.Step(deadline)) {
        ASSERT_TRUE(outcome.status.ok()) << Message(outcome.status);
        ways[ways[0].valid() ? 1 : 0] = std::move(outcome.socket);
      }
    }
    is_ready.wait();
    acts(ways);
    // Until the other end has had enough, or has taken all of it.
    std::byte byte;
    for (const Descriptor& way : ways) {
      if (way.valid() && WaitFor(way.get(), POLLIN, absl::Now() + absl::Milliseconds(100)).ok())
        (void)ReceiveSome(way.get(), std::span(&byte, 1), {});
    }
  });
  share(0);
  Doorbell bell = {};
  absl::StatusOr<std::unique_ptr<Mailbox>> mailbox =
      Mailbox::Open(job.links(0), job.liveness(0), *pools[0], bell, [&] { bell.Ring(); }, absl::Seconds(60));
  EXPECT_TRUE(mailbox.ok()) << Message(mailbox.status());
  if (before != nullptr) before(**mailbox);
  is_ready.count_down();
  hostile.join();
  for (const absl::Time end = absl::Now() + absl::Seconds(30); (*mailbox)->StatusOf(1).ok() && absl::Now() < end;) usleep(2000);
  if (word != nullptr) std::memcpy(word, slabs[0]->data(), sizeof(*word));
  return (*mailbox)->StatusOf(1);
}

// After these frames over one of the connections, each with its payload, as they are.
absl::Status StatusAfter(std::span<const FrameHeader> frames) {
  return StatusAfter([&](Descriptor ways[2]) {
    for (const FrameHeader& frame : frames) SendFrame(ways[0].get(), frame, std::clamp<int64_t>(frame.bytes, 0, 1 << 19));
  });
}

absl::Status StatusAfter(const FrameHeader& frame) { return StatusAfter(std::span(&frame, 1)); }

TEST(MailboxTest, ARankThatSendsNonsenseIsDisconnected) {
  const struct {
    FrameHeader frame;
    const char* says;
  } kCases[] = {
      {{.kind = static_cast<FrameKind>(99)}, "unknown kind 99"},
      {{.kind = FrameKind::kData, .bytes = 1 << 20}, "1048576 bytes of content"},
      {{.kind = FrameKind::kReady, .bytes = 5}, "5 bytes of content"},
      {{.kind = FrameKind::kPut, .offset = -8, .bytes = 8}, "at offset -8"},
      {{.kind = FrameKind::kPut, .offset = kRegionBytes - 4, .bytes = 8}, "are not inside region 0"},
      {{.kind = FrameKind::kPut, .tag = 7, .bytes = 8}, "rank 0 shares 1 regions"},
      {{.kind = FrameKind::kPut, .tag = 0xffffffff, .bytes = 8}, "rank 0 shares 1 regions"},
      {{.kind = FrameKind::kGet, .offset = 16, .value = kRegionBytes}, "are not inside region 0"},
      {{.kind = FrameKind::kFetchAdd, .offset = 3}, "not aligned"},
      {{.kind = FrameKind::kSignal, .offset = kRegionBytes}, "are not inside region 0"},
      {{.kind = FrameKind::kWord, .sequence = 5}, "nobody asked for"},
      {{.kind = FrameKind::kGot, .sequence = 5, .bytes = 8}, "nobody asked for"},
  };
  for (const auto& one : kCases) {
    const absl::Status status = StatusAfter(one.frame);
    EXPECT_FALSE(status.ok()) << one.says;
    EXPECT_THAT(std::string(Message(status)), HasSubstr(one.says));
    EXPECT_THAT(std::string(Message(status)), HasSubstr("what rank 1 sent"));
  }
}

TEST(MailboxTest, WhatNobodyAwaitsIsThrownAway) {
  const FrameHeader frames[] = {
      {.kind = FrameKind::kData, .group = 5, .sequence = 1, .value = 100, .bytes = 100},  // of a parcel that was cancelled
      {.kind = FrameKind::kTell, .group = 5, .sequence = 1},
      {.kind = FrameKind::kBreak, .tag = 9, .group = 5, .bytes = 4},
      {.kind = FrameKind::kPut, .offset = 8, .bytes = 8},
  };
  // All of it is taken; then the end of the connection is what there is to say.
  EXPECT_THAT(std::string(Message(StatusAfter(frames))), HasSubstr("closed the connection"));
}

TEST(MailboxTest, WhatComesOverOneConnectionCountsAfterTheEndOfTheOther) {
  uint64_t word = 0;
  const absl::Status status = StatusAfter(
      [](Descriptor ways[2]) {
        ways[0].Reset();
        usleep(50'000);
        SendFrame(ways[1].get(), {.kind = FrameKind::kSignal, .value = 7}, 0);
      },
      nullptr, &word);
  EXPECT_EQ(word, 7u);
  EXPECT_THAT(std::string(Message(status)), HasSubstr("closed the connection"));
}

TEST(MailboxTest, AParcelThatComesOverBothConnectionsIsRefused) {
  std::byte memory[100];
  Parcel parcel{.peer = 1, .group = 5, .sequence = 1, .data = memory, .bytes = sizeof(memory)};
  const FrameHeader frame{.kind = FrameKind::kData, .group = 5, .sequence = 1, .value = sizeof(memory), .bytes = sizeof(memory)};
  const absl::Status status = StatusAfter(
      [&](Descriptor ways[2]) {
        SendFrame(ways[0].get(), frame, 50);
        usleep(50'000);
        SendFrame(ways[1].get(), frame, 50);
        usleep(50'000);
      },
      [&](Mailbox& mailbox) { mailbox.Receive(parcel, CallBytes{}); });
  EXPECT_THAT(std::string(Message(status)), HasSubstr("100 bytes at 0 of 100, of which 0 are there"));
}

// Groups that have failed.

constexpr uint64_t kGroup = 7;

Broken FailedWith(uint64_t sequence) {
  return {.sequence = sequence, .code = absl::StatusCode::kFailedPrecondition, .why = absl::StrCat("with ", sequence)};
}

// A rank that had gone on ended with a later operation over it, and its word may come first.
TEST(MailboxTest, AGroupHasFailedWithTheEarliestOperationThatRanksName) {
  Mailboxes ranks;
  ranks.Open();
  Mailbox& mailbox = *ranks.mailboxes[1];
  for (const uint64_t sequence : {3, 2, 4}) ranks.mailboxes[0]->Break(kGroup, std::vector{1}, FailedWith(sequence));
  ranks.mailboxes[0]->Break(kGroup + 1, std::vector{1}, FailedWith(1));  // the last to come
  while (!mailbox.BrokenBy(kGroup + 1).has_value()) usleep(200);
  EXPECT_EQ(mailbox.BrokenBy(kGroup)->sequence, 2u);
  EXPECT_EQ(mailbox.BrokenBy(kGroup)->why, "with 2");
  EXPECT_EQ(mailbox.breaks().load(), 3u);
}

// Rank 2 hears it of rank 1 alone, which leaves as soon as it knows.
TEST(MailboxTest, ARankThatLeavesHasPassedOnThatAGroupHasFailed) {
  for (int round = 0; round < 5; ++round) {
    Mailboxes ranks({0, 1, 2});
    ranks.Open();
    const std::atomic<uint64_t> started = 1;
    ranks.mailboxes[1]->Enter(kGroup, started, {0, 2});
    std::thread leaves([&] {
      while (ranks.mailboxes[1]->breaks() == 0) continue;
      ranks.mailboxes[1].reset();
    });
    ranks.mailboxes[0]->Break(kGroup, std::vector{1}, FailedWith(1));
    while (ranks.mailboxes[2]->StatusOf(1).ok()) usleep(200);
    EXPECT_TRUE(ranks.mailboxes[2]->BrokenBy(kGroup).has_value()) << round;
    leaves.join();
  }
}

}  // namespace
}  // namespace gantry::tcp
