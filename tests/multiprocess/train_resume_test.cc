// Training N + M steps equals N steps, a new process, and M steps, bit for bit; so does training that is killed at
// random moments.
#include <signal.h>

#include <random>
#include <thread>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/checkpoint/checkpoint_folder.h"
#include "tests/support/train_run.h"

namespace gantry {
namespace {

struct ResumeCase {
  const char* name;
  const char* family;
  const char* train;  // more keys of [train], and sections
};

// 37 samples in batches of 8: five steps end in the midst of the second epoch.
constexpr ResumeCase kCases[] = {
    {"dcgan", "dcgan",
     "ema = 0.9\nthreads = 2\n[generator.optimizer]\nschedule = \"cosine\"\nwarmup_images = 30\ndecay_images = 70\n"},
    {"wgan_gp", "wgan-gp", "n_critic = 2\n[discriminator.optimizer]\nschedule = \"linear\"\n"},
    {"sngan", "sngan", "accumulate = 2\nema = 0.99\n"},
    {"r3gan", "r3gan", "r1 = 1.0\nr2 = 1.0\npenalty_every = 3\n"},
    {"reference_f64", "dcgan", "dtype = \"f64\"\nkernels = \"reference\"\n"},
    {"two_discriminators", "dcgan",
     "loss = \"hinge\"\n[[discriminators]]\nname = \"one\"\n[[discriminators]]\nname = \"two\"\nfamily = "
     "\"sngan\"\noptimizer.kind = \"sgd\"\noptimizer.momentum = 0.9\noptimizer.learning_rate = 0.001\n"},
};

class TrainResumeTest : public testing::TestWithParam<ResumeCase> {};

std::string Keys(const ResumeCase& of, int64_t steps) {
  const bool has_threads = std::string_view(of.train).find("threads") != std::string_view::npos;
  return absl::StrCat("steps = ", steps, has_threads ? "\n" : "\nthreads = 1\n", of.train);
}

TEST_P(TrainResumeTest, IsBitEqual) {
  const TrainFolder folder;
  const std::string whole = folder.WriteRun("whole", GetParam().family, Keys(GetParam(), 9));
  const std::string parts = folder.WriteRun("parts", GetParam().family, Keys(GetParam(), 9));
  ASSERT_EQ(Train(whole, 0), 0);
  ASSERT_EQ(Train(parts, 5), 0);
  ASSERT_NE(CheckpointDifference(folder / "whole", folder / "parts"), "");
  ASSERT_EQ(Train(parts, 1, "latest"), 0);
  ASSERT_EQ(Train(parts, 0, "latest"), 0);
  EXPECT_EQ(CheckpointDifference(folder / "whole", folder / "parts"), "");
  const std::vector<std::string> lines = UntimedLines(folder / "whole/metrics.jsonl");
  EXPECT_EQ(lines.size(), 9u);
  EXPECT_EQ(UntimedLines(folder / "parts/metrics.jsonl"), lines);
  EXPECT_EQ(ReadWholeFile(folder / "parts/samples-000000000009.png"),
            ReadWholeFile(folder / "whole/samples-000000000009.png"));
}

INSTANTIATE_TEST_SUITE_P(Families, TrainResumeTest, testing::ValuesIn(kCases),
                         [](const auto& info) { return std::string(info.param.name); });

constexpr std::string_view kKilledTrain = "steps = 400\nthreads = 1\nema = 0.9\n";

// Starts a run in the folder `name` again and again and kills it, 12 times or until it comes to its end, and lets it end; compares it with
// the run in "whole". `kills`: how often it was killed.
void KillAndCompare(const TrainFolder& folder, const std::string& name, std::mt19937& random, int& kills) {
  const std::string killed = folder.WriteRun(name, "dcgan", kKilledTrain);
  {
    // Checkpoints and sheets all the time, so that kills hit their writing.
    std::string text = ReadWholeFile(killed);
    text.replace(text.find("checkpoint_every = 0"), 20, "checkpoint_every = 1");
    text.replace(text.find("sample_every = 0"), 16, "sample_every = 2");
    FILE* file = std::fopen(killed.c_str(), "w");
    std::fwrite(text.data(), 1, text.size(), file);
    std::fclose(file);
  }
  std::uniform_int_distribution<int> milliseconds(0, 30);
  int64_t last = 0;
  for (kills = 0; kills < 12; ++kills) {
    const pid_t process = StartTraining(killed, 0, "auto");
    // Let it get one checkpoint further, then strike.
    const auto begin = std::chrono::steady_clock::now();
    for (;;) {
      const auto stored = ListCheckpoints(folder / name);
      if (stored.ok() && !stored->empty() && stored->back().step > last) break;
      ASSERT_LT(std::chrono::steady_clock::now() - begin, std::chrono::minutes(5)) << "no progress beyond step " << last;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds(random)));
    kill(process, SIGKILL);
    const int how = WaitFor(process);
    const auto latest = FindLatestCheckpoint(folder / name);
    ASSERT_TRUE(latest.ok()) << latest.status();
    EXPECT_TRUE(latest->damaged.empty());
    last = latest->checkpoint.step;
    if (how == 0 || last == 400) break;  // it had come to its end
    ASSERT_EQ(how, -SIGKILL);
  }
  ASSERT_EQ(Train(killed, 0, "latest"), 0);
  EXPECT_EQ(CheckpointDifference(folder / "whole", folder / name), "");
  EXPECT_EQ(UntimedLines(folder / (name + "/metrics.jsonl")), UntimedLines(folder / "whole/metrics.jsonl"));
  for (const auto& entry : std::filesystem::directory_iterator(folder / name)) {
    EXPECT_EQ(entry.path().string().find(".tmp-"), std::string::npos) << entry.path();
  }
}

TEST(TrainKillTest, KilledRunsEndWhereAnUnbrokenOneDoes) {
  const TrainFolder folder;
  ASSERT_EQ(Train(folder.WriteRun("whole", "dcgan", kKilledTrain), 0), 0);
  std::mt19937 random(7);
  int kills = 0;
  // Where this process lacked its core and a run came to its end before enough kills, another run is taken.
  for (int attempt = 1; attempt <= 5 && kills < 5; ++attempt)
    ASSERT_NO_FATAL_FAILURE(KillAndCompare(folder, absl::StrCat("killed", attempt), random, kills));
  EXPECT_GE(kills, 5);
}

}  // namespace
}  // namespace gantry
