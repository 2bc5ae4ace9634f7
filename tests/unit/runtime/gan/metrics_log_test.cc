#include "runtime/gan/metrics_log.h"

#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>

#include "gtest/gtest.h"

namespace gantry {
namespace {

class MetricsLogTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = testing::TempDir() + "/gantry_metrics_XXXXXX";
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string Path() const { return folder_ + "/metrics.jsonl"; }
  std::string Text() const {
    std::ifstream file(Path());
    return {std::istreambuf_iterator<char>(file), {}};
  }
  static std::string Line(int64_t step) {
    MetricsLine line;
    line.Add("step", step);
    line.Add("loss", 0.1);
    return line.Text();
  }

  std::string folder_;
};

TEST_F(MetricsLogTest, NumbersReadBackEqual) {
  MetricsLine line;
  line.Add("step", int64_t{12});
  line.Add("a", 0.1);
  line.Add("b", -1e-300);
  line.Add("c", std::nan(""));
  line.Add("d", -INFINITY);
  line.Add("e", 3.0);
  EXPECT_EQ(line.Text(), "{\"step\":12,\"a\":0.1,\"b\":-1e-300,\"c\":null,\"d\":null,\"e\":3}\n");
}

TEST_F(MetricsLogTest, AppendsAndCutsOffLaterLines) {
  {
    auto log = MetricsLog::Open(Path(), 0);
    ASSERT_TRUE(log.ok()) << log.status();
    for (int64_t step : {10, 20, 30}) ASSERT_TRUE((*log)->Append(Line(step)).ok());
    EXPECT_TRUE((*log)->Sync().ok());
  }
  EXPECT_EQ(Text(), Line(10) + Line(20) + Line(30));
  {
    auto log = MetricsLog::Open(Path(), 25);
    ASSERT_TRUE(log.ok()) << log.status();
    EXPECT_EQ(Text(), Line(10) + Line(20));
    ASSERT_TRUE((*log)->Append(Line(30)).ok());
  }
  EXPECT_EQ(Text(), Line(10) + Line(20) + Line(30));
  ASSERT_TRUE(MetricsLog::Open(Path(), 0).ok());
  EXPECT_EQ(Text(), "");
}

TEST_F(MetricsLogTest, AnUnfinishedLineGoes) {
  std::ofstream(Path()) << Line(1) << Line(2) << "{\"step\":3,\"lo";
  ASSERT_TRUE(MetricsLog::Open(Path(), 100).ok());
  EXPECT_EQ(Text(), Line(1) + Line(2));
  std::ofstream(Path()) << Line(1) << std::string(200000, 'x') << "\n" << Line(2);
  ASSERT_TRUE(MetricsLog::Open(Path(), 100).ok());
  EXPECT_EQ(Text(), Line(1));
}

TEST_F(MetricsLogTest, SaysWhereItCannotWrite) {
  EXPECT_EQ(MetricsLog::Open(folder_ + "/none/metrics.jsonl", 0).status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace gantry
