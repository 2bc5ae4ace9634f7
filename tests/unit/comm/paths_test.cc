// Which path payload takes to ranks of other nodes, and what becomes of wishes that cannot be had.

#include "comm/paths.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <thread>

#include "comm/channels.h"
#include "comm/pool.h"
#include "memory/fallback.h"
#include "tests/support/mailboxes.h"
#include "tests/support/thread_job.h"

namespace gantry {
namespace {

using testing::HasSubstr;

bool HasUcx() { return DescribeUcx() != "no UCX"; }

class PathsTest : public testing::Test {
 protected:
  PathsTest() { setenv("GANTRY_NODE", "of the test", 1); }  // as `gantry run --nodes` does: two nodes on purpose
  ~PathsTest() override {
    for (const char* name : {"GANTRY_NODE", "GANTRY_STRICT", "GANTRY_TRANSPORT"}) unsetenv(name);
  }
};

TEST_F(PathsTest, AnUnknownTransportIsAnErrorWithTheList) {
  setenv("GANTRY_TRANSPORT", "infiniband", 1);
  for (const std::vector<int>& node_of : {std::vector<int>{0, 0}, {0, 1}}) {
    ThreadJob job(node_of);
    const std::unique_ptr<Device> device = MakeCpuDevice({});
    const auto open = [&](int rank) {
      const absl::Status status = OpenRank(job.links(rank), job.liveness(rank), *device, 4096, {}).status();
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << Message(status);
      EXPECT_THAT(std::string(Message(status)), HasSubstr("GANTRY_TRANSPORT is 'infiniband'; it takes tcp or ucx"));
    };
    std::thread other([&] { open(1); });
    open(0);
    other.join();
  }
}

TEST_F(PathsTest, ThePathIsTheOneAskedForAndSaysWhatToExpect) {
  for (const char* wish : {"tcp", "ucx"}) {
    setenv("GANTRY_TRANSPORT", wish, 1);
    const size_t before = NotedFallbacks().size();
    RunThreadRanks({0, 1}, 1 << 20, {}, [&](Rank& rank, ThreadJob&) {
      const std::string path = rank.fabric->transport(1 - rank.rank).DescribePath(1 - rank.rank);
      EXPECT_THAT(path, HasSubstr("tcp to 127.0.0.1"));
      EXPECT_THAT(path, HasSubstr("lo names no rate"));
      const bool by_ucx = wish == std::string("ucx") && HasUcx();
      EXPECT_EQ(path.starts_with("ucx "), by_ucx) << path;
      if (by_ucx) {
        EXPECT_THAT(path, testing::ContainsRegex("tcp/[a-z0-9]+, [0-9.e+-]+ GB/s measured"));
      }
      EXPECT_THAT(rank.fabric->Describe(), testing::Contains(HasSubstr(path)));
      EXPECT_TRUE(rank.fabric->world().Barrier().ok());
    });
    EXPECT_EQ(NotedFallbacks().size() - before, wish == std::string("ucx") && !HasUcx() ? 2u : 0u);
  }
}

// Rank 0 wants UCX; rank 1 offers what `offer` makes of it. The status of rank 0.
absl::Status StatusWith(std::string_view offer) {
  Mailboxes ranks;
  ranks.Open();
  EXPECT_TRUE(ranks.job.links(1).Send(0, kPathChannel, std::as_bytes(std::span(offer))).ok());
  const auto carrier = ChooseCarrier(TransportWish::kUcx, ranks.job.links(0), *ranks.mailboxes[0], absl::Seconds(60));
  ranks.mailboxes[0].reset();
  return carrier.status();
}

// Fields as the ranks exchange them, each behind its size.
std::string Fields(std::initializer_list<std::string_view> fields) {
  std::string bytes;
  for (const std::string_view field : fields) {
    const auto size = static_cast<uint32_t>(field.size());
    bytes.append(reinterpret_cast<const char*>(&size), sizeof(size)).append(field);
  }
  return bytes;
}

TEST_F(PathsTest, ARankWithoutUcxIsAFallbackAndAnErrorWhereThatIsAskedFor) {
  const std::string without = Fields({"", "it was built without UCX", "", "", ""});
  const size_t before = NotedFallbacks().size();
  EXPECT_TRUE(StatusWith(without).ok());
  ASSERT_EQ(NotedFallbacks().size(), before + 1);
  EXPECT_THAT(NotedFallbacks().back(), HasSubstr("the path to rank 1: wanted ucx, got tcp"));
  EXPECT_THAT(NotedFallbacks().back(), HasSubstr("it was built without UCX"));

  setenv("GANTRY_STRICT", "1", 1);
  const absl::Status status = StatusWith(without);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(Message(status)), HasSubstr("install UCX (libucx-dev) and build again"));
}

TEST_F(PathsTest, AnotherVersionOfUcxIsAFallback) {
  if (!HasUcx()) GTEST_SKIP() << "this build has no UCX";
  EXPECT_TRUE(StatusWith(Fields({"0.9.0", "", "", std::string(16, 's'), "address"})).ok());
  EXPECT_THAT(NotedFallbacks().back(), HasSubstr("that one 0.9.0"));
}

TEST_F(PathsTest, AnOfferThatIsCutOffIsRefused) {
  const std::string whole = Fields({"", "no", "", "", ""});
  for (const size_t size : {size_t{0}, size_t{3}, size_t{5}, whole.size() - 1}) {
    const absl::Status status = StatusWith(std::string_view(whole).substr(0, size));
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << size;
    EXPECT_THAT(std::string(Message(status)), HasSubstr("rank 1: what it offers is cut off"));
  }
}

}  // namespace
}  // namespace gantry
