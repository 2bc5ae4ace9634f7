#include "comm/reactor.h"

#include <gtest/gtest.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "comm/socket.h"

namespace gantry {
namespace {

TEST(ReactorTest, RemoveWaitsForACallThatHasRemovedItself) {
  const auto reactor = Reactor::Start();
  ASSERT_TRUE(reactor.ok()) << reactor.status();
  const Descriptor event(eventfd(1, EFD_CLOEXEC));
  ASSERT_TRUE(event.valid());
  std::atomic<bool> removed{false}, done{false};
  const absl::Status added = (*reactor)->Add(event.get(), EPOLLIN, [&](uint32_t) {
    (*reactor)->Remove(event.get());
    removed = true;
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    done = true;
  });
  ASSERT_TRUE(added.ok()) << added;
  while (!removed) std::this_thread::yield();
  (*reactor)->Remove(event.get());
  EXPECT_TRUE(done) << "what the call uses may be gone now";
}

}  // namespace
}  // namespace gantry
