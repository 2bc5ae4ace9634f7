#include "runtime/gan/trainer.h"

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>

#include "absl/strings/match.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/data/npy.h"
#include "runtime/data/png.h"
#include "runtime/gan/session_checkpoint.h"
#include "tests/support/train_run.h"

namespace gantry {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

class TrainerTest : public testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<Trainer>> Make(std::string_view name, std::string_view family, std::string_view more,
                                                std::vector<std::string> overrides = {}) {
    overrides.push_back("train.threads=1");
    auto config = LoadRunConfig(folder_.WriteRun(name, family, more), {.overrides = std::move(overrides)});
    if (!config.ok()) return config.status();
    return Trainer::Create(*std::move(config), *device_,
                           {.warn = [this](std::string_view text) { warnings_.emplace_back(text); }});
  }
  std::vector<std::string> Files(std::string_view name) const {
    std::vector<std::string> files;
    for (const auto& entry : std::filesystem::directory_iterator(folder_ / name))
      files.push_back(entry.path().filename().string());
    std::sort(files.begin(), files.end());
    return files;
  }

  TrainFolder folder_;
  std::unique_ptr<Device> device_ = MakeCpuDevice({});
  std::vector<std::string> warnings_;
};

TEST_F(TrainerTest, LeavesEverythingOfARun) {
  auto trainer =
      Make("run", "dcgan", "steps = 5\nema = 0.9\n",
           {"output.log_every=2", "output.sample_every=3", "output.checkpoint_every=2", "output.keep_checkpoints=2"});
  ASSERT_TRUE(trainer.ok()) << trainer.status();
  EXPECT_GT((*trainer)->peak_bytes(), 0);
  EXPECT_EQ((*trainer)->total_steps(), 5);
  EXPECT_EQ((*trainer)->config().model.channels, 1);
  EXPECT_FALSE(std::filesystem::exists(folder_ / "run"));
  std::vector<std::string> events;
  while (!(*trainer)->finished()) {
    const auto report = (*trainer)->Step();
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_EQ(report->total_steps, 5);
    EXPECT_EQ(report->images, 8 * report->step);
    EXPECT_DOUBLE_EQ(report->epoch, 8.0 * static_cast<double>(report->step) / 37.0);
    EXPECT_TRUE(std::isfinite(report->discriminator_loss) && report->discriminator_loss > 0);
    EXPECT_GT(report->seconds, report->data_wait_seconds);
    EXPECT_GT(report->images_per_second, 0);
    events.push_back(absl::StrCat(report->step, report->logged ? "L" : "", report->samples_path.empty() ? "" : "S",
                                  report->checkpoint_path.empty() ? "" : "C"));
  }
  EXPECT_THAT(events, ElementsAre("1", "2LC", "3S", "4LC", "5"));
  EXPECT_EQ(device_->reserved_bytes() >= (*trainer)->peak_bytes(), true);
  EXPECT_EQ((*trainer)->session().executor().high_water_bytes(), (*trainer)->peak_bytes());
  const auto summary = (*trainer)->Finish();
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_THAT(*summary, AllOf(HasSubstr("Trained 5 of 5 steps, 40 images"), HasSubstr("run/samples-000000000005.png"),
                              HasSubstr("run/metrics.jsonl"), HasSubstr("run/checkpoint-000000000005.safetensors"),
                              HasSubstr("run/run.toml"), HasSubstr("samples.npy")));
  EXPECT_EQ(ReadWholeFile(folder_ / "run/summary.txt"), *summary);
  EXPECT_THAT(Files("run"),
              ElementsAre("checkpoint-000000000004.safetensors", "checkpoint-000000000005.safetensors", "metrics.jsonl",
                          "run.toml", "samples-000000000003.png", "samples-000000000005.png", "summary.txt"));
  const auto sheet = ReadPng(folder_ / "run/samples-000000000005.png");
  ASSERT_TRUE(sheet.ok());
  EXPECT_THAT(sheet->shape(), ElementsAre(2 * 16 + 3 * 2, 2 * 16 + 3 * 2, 1));
  const std::vector<std::string> lines = UntimedLines(folder_ / "run/metrics.jsonl");
  ASSERT_EQ(lines.size(), 3u);
  for (const char* key :
       {"\"images\":", "\"epoch\":", "\"discriminator_loss\":", "\"generator_loss\":", "\"mean_logit_real\":",
        "\"mean_logit_fake\":", "\"sign_real\":", "\"generator.gradient_norm\":", "\"discriminator.gradient_norm\":",
        "\"diversity\":", "\"learning_rate.generator\":2e-04", "\"collapsed\":0"}) {
    EXPECT_THAT(lines[2], HasSubstr(key));
  }
  EXPECT_TRUE(lines[2].starts_with("{\"step\":5,"));
  EXPECT_THAT(ReadWholeFile(folder_ / "run/metrics.jsonl"),
              AllOf(HasSubstr("\"data_wait_seconds\":"), HasSubstr("\"images_per_second\":")));
  EXPECT_THAT(warnings_, testing::Each(HasSubstr("no fast kernel")));
  // The run file that is left is the same run.
  const auto again = LoadRunConfig(folder_ / "run/run.toml");
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(ToToml(*again), ToToml((*trainer)->config()));
}

TEST_F(TrainerTest, RefusesAFolderThatHasARun) {
  {
    auto trainer = Make("run", "dcgan", "steps = 1\n");
    ASSERT_TRUE(trainer.ok()) << trainer.status();
    ASSERT_TRUE((*trainer)->Step().ok());
    auto second = Make("run", "dcgan", "steps = 1\n");
    ASSERT_TRUE(second.ok());
    EXPECT_THAT(std::string((*second)->Step().status().message()), HasSubstr("another process writes its run here"));
    ASSERT_TRUE((*trainer)->Finish().ok());
  }
  auto trainer = Make("run", "dcgan", "steps = 1\n");
  ASSERT_TRUE(trainer.ok());
  const absl::Status status = (*trainer)->Step().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("checkpoint-000000000001"), HasSubstr("resume that run")));
  EXPECT_EQ((*trainer)->progress().steps, 0);
}

TEST_F(TrainerTest, ResumesPastADamagedCheckpoint) {
  std::vector<std::string> before;
  {
    auto trainer = Make("run", "dcgan", "steps = 6\n", {"output.checkpoint_every=2"});
    ASSERT_TRUE(trainer.ok()) << trainer.status();
    while (!(*trainer)->finished()) ASSERT_TRUE((*trainer)->Step().ok());
    before = UntimedLines(folder_ / "run/metrics.jsonl");
  }
  std::filesystem::resize_file(folder_ / "run/checkpoint-000000000006.safetensors", 5000);
  auto trainer = Make("run", "dcgan", "steps = 6\n", {"generator.optimizer.beta1=0.25"});
  ASSERT_TRUE(trainer.ok()) << trainer.status();
  warnings_.clear();
  const absl::Status resumed = (*trainer)->Resume("latest");
  ASSERT_TRUE(resumed.ok()) << resumed;
  EXPECT_EQ((*trainer)->progress().steps, 4);
  EXPECT_EQ((*trainer)->last_checkpoint(), folder_ / "run/checkpoint-000000000004.safetensors");
  ASSERT_EQ(warnings_.size(), 3u) << absl::StrJoin(warnings_, "\n");
  EXPECT_THAT(warnings_[0], AllOf(HasSubstr("000000000006.safetensors is damaged"), HasSubstr("cut short")));
  EXPECT_THAT(warnings_[1], HasSubstr("generator.optimizer.beta1: 0.5 -> 0.25"));
  EXPECT_THAT(warnings_[2], HasSubstr("set-aside-1-checkpoint-000000000006"));
  EXPECT_THAT(UntimedLines(folder_ / "run/metrics.jsonl"),
              testing::ElementsAreArray(before.begin(), before.begin() + 4));
  ASSERT_TRUE((*trainer)->Step().ok());
  EXPECT_FALSE((*trainer)->Resume("latest").ok());
}

TEST_F(TrainerTest, ResumeNamesWhatDoesNotFit) {
  {
    auto trainer = Make("run", "dcgan", "steps = 1\nema = 0.9\n");
    ASSERT_TRUE(trainer.ok()) << trainer.status();
    ASSERT_TRUE((*trainer)->Step().ok());
    ASSERT_TRUE((*trainer)->Finish().ok());
  }
  const std::string path = folder_ / "run/checkpoint-000000000001.safetensors";
  auto wider = Make("wider", "dcgan", "steps = 1\n", {"model.width=16"});
  ASSERT_TRUE(wider.ok()) << wider.status();
  const absl::Status status = (*wider)->Resume(path);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr(path), HasSubstr("ema.generator"), HasSubstr("expected f32")));
  EXPECT_FALSE(std::filesystem::exists(folder_ / "wider"));
  ASSERT_TRUE((*wider)->Step().ok());  // it is as it was
  EXPECT_EQ((*wider)->Resume("latest").code(), absl::StatusCode::kFailedPrecondition);
  auto none = Make("none", "dcgan", "steps = 1\n");
  ASSERT_TRUE(none.ok());
  EXPECT_EQ((*none)->Resume("latest").code(), absl::StatusCode::kNotFound);
}

TEST_F(TrainerTest, StopsAtALossThatIsNotFinite) {
  std::vector<float> values(40 * 256, 0.5f);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i % 7) / 7.0f;
  values[20 * 256 + 3] = std::numeric_limits<float>::infinity();  // in the third batch of 8
  ASSERT_TRUE(WriteNpy(folder_ / "bad.npy", *HostArray::FromValues<float>({40, 1, 16, 16}, values)).ok());
  auto trainer = Make("run", "dcgan", "steps = 5\n",
                      {"data.path=" + (folder_ / "bad.npy"), "data.shuffle=false", "output.checkpoint_every=1"});
  ASSERT_TRUE(trainer.ok()) << trainer.status();
  ASSERT_TRUE((*trainer)->Step().ok());
  ASSERT_TRUE((*trainer)->Step().ok());
  const absl::Status status = (*trainer)->Step().status();
  ASSERT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("step 3: "), HasSubstr("the first NaN or infinity is in input real"),
                    HasSubstr("the last good checkpoint is " + (folder_ / "run/checkpoint-000000000002.safetensors"))));
  EXPECT_EQ(FindLatestCheckpoint(folder_ / "run")->checkpoint.step, 2);
  // States may hold anything now: no checkpoint of them replaces the good one.
  EXPECT_EQ((*trainer)->Step().status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ((*trainer)->Finish().status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ListCheckpoints(folder_ / "run")->back().step, 2);
}

TEST_F(TrainerTest, WarnsOfSamplesThatLookAlike) {
  std::vector<float> values(40 * 256);
  for (size_t i = 0; i < values.size(); ++i) values[i] = i / 256 % 2 == 0 ? 100.0f : -100.0f;
  ASSERT_TRUE(WriteNpy(folder_ / "far.npy", *HostArray::FromValues<float>({40, 1, 16, 16}, values)).ok());
  auto trainer = Make("run", "dcgan", "steps = 120\n",
                      {"data.path=" + (folder_ / "far.npy"), "output.log_every=120", "train.batch=2"});
  ASSERT_TRUE(trainer.ok()) << trainer.status();
  warnings_.clear();
  for (int step = 1; step <= 99; ++step) ASSERT_TRUE((*trainer)->Step().ok());
  EXPECT_FALSE((*trainer)->collapsed());
  EXPECT_THAT(warnings_, IsEmpty());
  for (int step = 100; step <= 120; ++step) ASSERT_TRUE((*trainer)->Step().ok());
  EXPECT_TRUE((*trainer)->collapsed());
  ASSERT_EQ(warnings_.size(), 1u);
  EXPECT_THAT(warnings_[0], AllOf(HasSubstr("step 100"), HasSubstr("look alike"), HasSubstr("0.1")));
  EXPECT_THAT(ReadWholeFile(folder_ / "run/metrics.jsonl"), HasSubstr("\"collapsed\":1"));
  EXPECT_THAT(*(*trainer)->Finish(), HasSubstr("may have collapsed"));
}

TEST_F(TrainerTest, SamplesFromACheckpointAreThoseOfTheRun) {
  for (const char* family : {"dcgan", "sngan"}) {
    auto trainer = Make(family, family, "steps = 3\nema = 0.5\n");
    ASSERT_TRUE(trainer.ok()) << trainer.status();
    while (!(*trainer)->finished()) ASSERT_TRUE((*trainer)->Step().ok());
    ASSERT_TRUE((*trainer)->Finish().ok());
    for (bool ema : {true, false}) {
      const auto expected = (*trainer)->session().Sample(11, 5, ema);
      ASSERT_TRUE(expected.ok());
      const auto samples = SampleCheckpoint(folder_ / family, 11, 5, ema, *device_);
      ASSERT_TRUE(samples.ok()) << samples.status();
      EXPECT_THAT(samples->shape, ElementsAre(11, 1, 16, 16));
      EXPECT_EQ(samples->values, *expected);
    }
    EXPECT_NE(SampleCheckpoint(folder_ / family, 11, 5, true, *device_)->values,
              SampleCheckpoint(folder_ / family, 11, 6, true, *device_)->values);
    EXPECT_FALSE(SampleCheckpoint(folder_ / family, 0, 5, true, *device_).ok());
  }
}

TEST_F(TrainerTest, TrainsOnClips) {
  std::vector<float> clips(6 * 1 * 4 * 16 * 16);
  for (size_t i = 0; i < clips.size(); ++i) clips[i] = static_cast<float>(std::sin(0.01 * static_cast<double>(i)));
  ASSERT_TRUE(WriteNpy(folder_ / "clips.npy", *HostArray::FromValues<float>({6, 1, 4, 16, 16}, clips)).ok());
  const std::string text =
      "[model]\nfamily = \"video\"\nimage_size = 16\nwidth = 8\nlatent = 6\n[data]\npath = \"clips.npy\"\n[train]\n"
      "batch = 2\nsteps = 3\n[output]\ndirectory = \"clips\"\nsample_count = 3\n";
  const auto Run = [&](const std::string& toml) {
    std::ofstream(folder_ / "clips.toml") << toml;
    absl::StatusOr<RunConfig> config = LoadRunConfig(folder_ / "clips.toml");
    EXPECT_TRUE(config.ok()) << config.status();
    return Trainer::Create(*std::move(config), *device_, {});
  };
  const auto trainer = Run(text);
  ASSERT_TRUE(trainer.ok()) << trainer.status();
  EXPECT_EQ((*trainer)->session().sample_shape(), (Shape{2, 1, 4, 16, 16}));  // channels and frames are the data's
  while (!(*trainer)->finished()) ASSERT_TRUE((*trainer)->Step().ok());
  ASSERT_TRUE((*trainer)->Finish().ok());
  const auto samples = SampleCheckpoint(folder_ / "clips", 3, 5, false, *device_);
  ASSERT_TRUE(samples.ok()) << samples.status();
  EXPECT_THAT(samples->shape, ElementsAre(3, 1, 4, 16, 16));
  const auto pictures = Run(absl::StrReplaceAll(text, {{"clips.npy", "samples.npy"}}));
  EXPECT_THAT(std::string(pictures.status().message()), HasSubstr("takes clips, [channels,frames,height,width]"));
}

TEST_F(TrainerTest, TrainsNetworksFromFilesOnPlainVectors) {
  std::vector<float> points(200);
  for (size_t i = 0; i < points.size(); ++i)
    points[i] = static_cast<float>(std::cos(0.1 * static_cast<double>(i / 2) + (i % 2 == 0 ? 0.0 : 1.5)));
  ASSERT_TRUE(WriteNpy(folder_ / "ring.npy", *HostArray::FromValues<float>({100, 2}, points)).ok());
  const std::string text = absl::StrCat("[model]\ngenerator = \"", GANTRY_TEST_DATA,
                                        "/data/onnx/ring-mlp-generator.onnx\"\ndiscriminator = \"", GANTRY_TEST_DATA,
                                        "/data/onnx/ring-mlp-discriminator.onnx\"\n[data]\npath = "
                                        "\"ring.npy\"\n[train]\nbatch = 16\nsteps = 4\n[output]\n",
                                        "directory = \"ring\"\nsample_count = 5\n");
  std::ofstream(folder_ / "ring.toml") << text;
  auto config = LoadRunConfig(folder_ / "ring.toml");
  ASSERT_TRUE(config.ok()) << config.status();
  auto trainer = Trainer::Create(*config, *device_);
  ASSERT_TRUE(trainer.ok()) << trainer.status();
  while (!(*trainer)->finished()) ASSERT_TRUE((*trainer)->Step().ok());
  const auto summary = (*trainer)->Finish();
  ASSERT_TRUE(summary.ok()) << summary.status();
  const auto sheet = ReadNpy(folder_ / "ring/samples-000000000004.npy");
  ASSERT_TRUE(sheet.ok()) << sheet.status();
  EXPECT_THAT(sheet->shape(), ElementsAre(5, 2));
  const auto samples = SampleCheckpoint(folder_ / "ring", 5, config->seed, false, *device_);
  ASSERT_TRUE(samples.ok()) << samples.status();
  EXPECT_THAT(samples->values, testing::ElementsAreArray(sheet->values<float>()));
}

TEST_F(TrainerTest, ErrorsOfTheDescriptionNameWhatToDo) {
  EXPECT_THAT(std::string(Make("a", "dcgan", "steps = 1\n", {"data.path="}).status().message()),
              HasSubstr("data.path is not set"));
  const absl::Status missing = Make("a", "dcgan", "steps = 1\n", {"data.path=/no/such/folder"}).status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.message()), HasSubstr("/no/such/folder"));
  EXPECT_THAT(std::string(Make("a", "dcgan", "steps = 1\n", {"model.image_size=17"}).status().message()),
              HasSubstr("17"));
  EXPECT_THAT(std::string(Make("a", "dcgan", "steps = 1\n", {"model.channels=3"}).status().message()),
              AllOf(HasSubstr("[3,16,16]"), HasSubstr("[1,16,16]")));
  const std::vector<float> values(60);
  ASSERT_TRUE(WriteNpy(folder_ / "flat.npy", *HostArray::FromValues<float>({10, 6}, values)).ok());
  EXPECT_THAT(
      std::string(Make("a", "dcgan", "steps = 1\n", {"data.path=" + (folder_ / "flat.npy")}).status().message()),
      HasSubstr("no images"));
  EXPECT_THAT(std::string(Make("a", "dcgan", "steps = 1\n", {"model.generator=/no/g.onnx"}).status().message()),
              HasSubstr("/no/g.onnx"));
}

TEST_F(TrainerTest, AnUnwritableFolderIsSaidBeforeTheFirstStep) {
  std::ofstream(folder_ / "file") << "";
  auto trainer = Make("run", "dcgan", "steps = 1\n", {"output.directory=" + (folder_ / "file") + "/run"});
  ASSERT_TRUE(trainer.ok()) << trainer.status();
  EXPECT_THAT(std::string((*trainer)->Step().status().message()), HasSubstr("file/run"));
  EXPECT_EQ((*trainer)->progress().steps, 0);
}

TEST_F(TrainerTest, ASessionAloneGoesOnFromItsFile) {
  auto trainer = Make("run", "wgan-gp", "steps = 9\nn_critic = 1\n");
  ASSERT_TRUE(trainer.ok()) << trainer.status();
  GanSession& session = (*trainer)->session();
  std::vector<float> real(session.real_elements() * session.draws_per_step(), 0.25f);
  ASSERT_TRUE(session.Step({.real = real}).ok());
  ASSERT_TRUE(SaveSession(session, folder_ / "s", {{"mine", "1"}}).ok());
  ASSERT_TRUE(session.Step({.real = real}).ok());
  const double loss = *session.Scalar("discriminator_loss");
  ASSERT_TRUE(session.Step({.real = real}).ok());
  EXPECT_NE(*session.Scalar("discriminator_loss"), loss);
  ASSERT_TRUE(LoadSession(folder_ / "s", session).ok());
  EXPECT_EQ(session.progress().steps, 1);
  EXPECT_EQ(session.progress().images_seen, 8);
  ASSERT_TRUE(session.Step({.real = real}).ok());
  EXPECT_EQ(*session.Scalar("discriminator_loss"), loss);
}

TEST_F(TrainerTest, EndsByImagesOrTime) {
  auto trainer = Make("images", "dcgan", "images = 20\n");
  ASSERT_TRUE(trainer.ok()) << trainer.status();
  EXPECT_EQ((*trainer)->total_steps(), 3);
  while (!(*trainer)->finished()) ASSERT_TRUE((*trainer)->Step().ok());
  EXPECT_EQ((*trainer)->progress().images_seen, 24);
  auto short_one = Make("time", "dcgan", "steps = 1000000\nminutes = 1e-9\n");
  ASSERT_TRUE(short_one.ok()) << short_one.status();
  ASSERT_TRUE((*short_one)->Step().ok());
  EXPECT_TRUE((*short_one)->finished());
  EXPECT_THAT(*(*short_one)->Finish(), HasSubstr("Stopped after 1 of 1000000 steps"));
}

}  // namespace
}  // namespace gantry
