// A rank that is lost beside a step, not in it: what the others then keep is of whole steps.
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/gan/trainer.h"
#include "tests/support/run_ranks.h"
#include "tests/support/train_run.h"

namespace gantry {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

// One of two ranks and its trainer, on a run file that rank 0 has written.
class TrainerRank {
 public:
  TrainerRank(Job job, std::vector<std::string> overrides) : ranks_(*JobRanks::Join(std::move(job))) {
    if (ranks_->rank() == 0) folder_.emplace();
    run_file_ = *ranks_->FromFirst(folder_.has_value() ? folder_->WriteRun("run", "dcgan", "steps = 100\n") : std::string());
    overrides.push_back("train.threads=1");
    overrides.push_back("parallel.split=batch");
    trainer_ = *Trainer::Create(*LoadRunConfig(run_file_, {.overrides = std::move(overrides)}), *device_, {.ranks = ranks_.get()});
  }
  int rank() const { return ranks_->rank(); }
  JobRanks& ranks() { return *ranks_; }
  Trainer& trainer() { return *trainer_; }
  std::string file(std::string_view name) const { return absl::StrCat(run_file_.substr(0, run_file_.rfind(".toml")), "/", ToAbsl(name)); }

 private:
  std::unique_ptr<JobRanks> ranks_;
  std::optional<TrainFolder> folder_;
  std::string run_file_;
  std::unique_ptr<Device> device_ = MakeCpuDevice({});
  std::unique_ptr<Trainer> trainer_;
};

// Ranks tell each other after step 11 how long ten steps took them.
TEST(TrainerLossTest, ACheckpointHasTheLinesOfAllItsSteps) {
  RunRanksUnconnected(2, [](Job job) {
    TrainerRank mine(std::move(job), {});
    for (int step = 1; step <= 10; ++step) ASSERT_TRUE(mine.trainer().Step().ok());
    if (mine.rank() == 1) {
      // The step alone; what comes behind it, rank 0 does without this one.
      const std::vector<float> real(mine.trainer().session().real_elements() * mine.trainer().session().draws_per_step(), 0.5F);
      ASSERT_TRUE(mine.trainer().session().Step({.real = real}).ok());
      const absl::Time end = absl::Now() + kTestPatience * absl::Seconds(60);
      while (UntimedLines(mine.file("metrics.jsonl")).size() < 11 && absl::Now() < end) absl::SleepFor(absl::Milliseconds(1));
      Die();
    }
    const absl::Status status = mine.trainer().Step().status();
    EXPECT_TRUE(absl::IsUnavailable(status)) << status;
    EXPECT_THAT(status.message(), HasSubstr("rank 1"));
    EXPECT_EQ(mine.trainer().progress().steps, 11) << "the step was done";
    ASSERT_TRUE(mine.trainer().Save().ok());
    EXPECT_THAT(mine.trainer().last_checkpoint(), HasSubstr("checkpoint-000000000011"));
    const std::vector<std::string> lines = UntimedLines(mine.file("metrics.jsonl"));
    ASSERT_EQ(lines.size(), 11);
    EXPECT_THAT(lines.back(), HasSubstr("\"step\":11,"));
    mine.trainer().session().Abandon();
  }, {.may_die = {1}});
}

TEST(TrainerLossTest, HalfAStepIsNeverKept) {
  RunRanksUnconnected(2, [](Job job) {
    TrainerRank mine(std::move(job), {"parallel.overlap=across", "output.log_every=100"});
    for (int step = 1; step <= 2; ++step) ASSERT_TRUE(mine.trainer().Step().ok());
    ASSERT_TRUE(mine.ranks().FromFirst(std::string("through with step 2, but for what needs both")).ok());
    if (mine.rank() == 1) Die();
    const absl::Status status = mine.trainer().WriteSamples().status();
    EXPECT_TRUE(absl::IsUnavailable(status)) << status;
    EXPECT_THAT(status.message(), HasSubstr("the end of step 2"));
    EXPECT_FALSE(mine.trainer().Save().ok());
    EXPECT_FALSE(mine.trainer().session().Step({}).ok());
    std::vector<std::string> checkpoints;
    for (const auto& entry : std::filesystem::directory_iterator(mine.file(""))) {
      if (entry.path().filename().string().starts_with("checkpoint-")) checkpoints.push_back(entry.path().filename());
    }
    EXPECT_THAT(checkpoints, IsEmpty());
    mine.trainer().session().Abandon();
  }, {.may_die = {1}});
}

}  // namespace
}  // namespace gantry
