#include "comm/liveness.h"

#include <atomic>
#include <memory>
#include <string>

#include "absl/time/clock.h"
#include "gtest/gtest.h"

namespace gantry {
namespace {

// Rank 0 of two on different machines, the other of which says nothing; bytes of it come while `comes` is true.
class SilentLinks final : public Links {
 public:
  SilentLinks() : reactor_(*Reactor::Start()) {
    job_.rank = 0;
    job_.size = 2;
    for (int rank = 0; rank < 2; ++rank) peers_[rank] = {.rank = rank, .node = rank, .pid = 1 + rank, .host = "host"};
  }
  std::atomic<bool> comes{true};
  mutable std::atomic<int> looks{0};

  const Job& job() const override { return job_; }
  const Peer& peer(int rank) const override { return peers_[rank]; }
  int descriptor(int) const override { return -1; }
  absl::Status Send(int, uint32_t, std::span<const std::byte>, std::span<const int>) override { return absl::OkStatus(); }
  absl::StatusOr<LinkMessage> Receive(int, uint32_t, absl::Duration) override { return absl::UnimplementedError("it says nothing"); }
  Reactor& reactor() override { return *reactor_; }
  void HandleChannel(uint32_t, std::function<void(int, LinkMessage)>) override {}
  void OnClosed(std::function<void(int, std::string_view)>) override {}
  void ReadNow(int) override {}
  int64_t received_bytes(int) const override {
    ++looks;
    return comes ? ++received_ : received_;
  }
  void Close(int, std::string_view) override {}

 private:
  Job job_;
  Peer peers_[2];
  std::unique_ptr<Reactor> reactor_;
  mutable int64_t received_ = 0;
};

TEST(LivenessTest, BytesOfALongMessageAreASignOfLife) {
  SilentLinks links;
  const auto liveness = *Liveness::Watch(links, {.heartbeat_timeout = absl::Seconds(1)});
  const absl::Time begin = absl::Now();
  while (links.looks < 20 || absl::Now() - begin < absl::Seconds(2)) {
    ASSERT_FALSE(liveness->lost(1)) << liveness->status();
    absl::SleepFor(absl::Milliseconds(10));
  }
  links.comes = false;
  while (!liveness->lost(1) && absl::Now() - begin < absl::Seconds(60)) absl::SleepFor(absl::Milliseconds(10));
  EXPECT_NE(liveness->status().message().find("no sign of life"), std::string::npos) << liveness->status();
}

}  // namespace
}  // namespace gantry
