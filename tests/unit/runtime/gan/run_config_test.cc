#include "runtime/gan/run_config.h"

#include <cmath>
#include <filesystem>
#include <fstream>

#include "absl/strings/str_replace.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace gantry {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

std::string Error(std::string_view toml, const RunConfigSources& sources = {}) {
  const auto config = ParseRunConfig(toml, sources);
  EXPECT_FALSE(config.ok()) << toml;
  return std::string(config.status().message());
}

TEST(RunConfigTest, ReadsEverySection) {
  const auto config = ParseRunConfig(R"(
[model]
family = "dcgan"
image_size = 64
[data]
path = "images"
[train]
batch = 32
accumulate = 4
images = 1e6
loss = "hinge"
dtype = "f64"
kernels = "reference"
ema = 0.999
[generator.optimizer]
learning_rate = 1e-3
schedule = "cosine"
warmup_images = 100
[discriminator]
optimizer.kind = "sgd"
optimizer.momentum = 0.5
[output]
directory = "/tmp/run"
)",
                                     {.name = "a/cats.toml", .folder = "a"});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->model.image_size, 64);
  EXPECT_EQ(config->data.path, "a/images");
  EXPECT_EQ(config->batch, 32);
  EXPECT_EQ(config->micro_batch(), 8);
  EXPECT_EQ(config->images, 1'000'000);
  EXPECT_EQ(config->step.loss, GanLoss::kHinge);
  EXPECT_EQ(config->step.dtype, DataType::kF64);
  EXPECT_EQ(config->plan.kernels, KernelChoice::kReference);
  EXPECT_EQ(config->step.ema, 0.999);
  EXPECT_EQ(config->output.directory, "/tmp/run");
  ASSERT_EQ(config->generators.size(), 1u);
  EXPECT_EQ(config->generators[0].name, "generator");
  EXPECT_EQ(config->generators[0].family, "dcgan");
  EXPECT_EQ(config->generators[0].training.optimizer.learning_rate, 1e-3);
  EXPECT_EQ(config->generators[0].training.schedule.kind, RateSchedule::Kind::kCosine);
  EXPECT_EQ(config->generators[0].training.schedule.warmup_images, 100);
  ASSERT_EQ(config->discriminators.size(), 1u);
  EXPECT_EQ(config->discriminators[0].training.optimizer.kind, OptimizerConfig::Kind::kSgd);
  EXPECT_EQ(config->discriminators[0].training.optimizer.momentum, 0.5);
}

TEST(RunConfigTest, AnEmptyFileIsARun) {
  const auto config = ParseRunConfig("", {.name = "dir/cats.toml"});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->model.family, "dcgan");
  EXPECT_EQ(config->output.directory, "runs/cats");
  EXPECT_EQ(config->images, 1'000'000);
}

TEST(RunConfigTest, EnvironmentIsStrongerThanTheFileAndOverridesThanBoth) {
  RunConfigSources sources{.environment = {"GANTRY_TRAIN_BATCH=16", "GANTRY_GENERATOR_OPTIMIZER_LEARNING_RATE=0.5",
                                           "HOME=/", "GANTRY_STRICT=1", "GANTRY_DATA_SHUFFLE=false"}};
  const std::string_view toml = "[train]\nbatch = 8\nsteps = 3\n";
  auto config = ParseRunConfig(toml, sources);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->batch, 16);
  EXPECT_EQ(config->generators[0].training.optimizer.learning_rate, 0.5);
  EXPECT_FALSE(config->data.shuffle);
  EXPECT_EQ(config->steps, 3);
  EXPECT_EQ(config->images, 0);
  sources.overrides = {"train.batch=4", "train.batch = 12 "};
  EXPECT_THAT(Error(toml, sources), AllOf(HasSubstr("--set train.batch = 12 "), HasSubstr("not a number")));
  sources.overrides = {"train.batch=4", "train.batch=12", "train.loss=wgan", "data.path=x/y",
                       "train.seed=9007199254740993"};
  config = ParseRunConfig(toml, sources);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->batch, 12);
  EXPECT_EQ(config->step.loss, GanLoss::kWasserstein);
  EXPECT_EQ(config->data.path, "x/y");
  EXPECT_EQ(config->seed, 9007199254740993u);
}

TEST(RunConfigTest, ErrorsNameFileLineKeyAndTheNearest) {
  EXPECT_THAT(Error("[train]\n\nbacth = 8\n"),
              AllOf(HasSubstr("run.toml:3: "), HasSubstr("'train.bacth'"), HasSubstr("did you mean 'train.batch'?")));
  EXPECT_THAT(Error("[data]\nbatch = 8\n"), HasSubstr("did you mean 'train.batch'?"));
  EXPECT_THAT(Error("batch = 8\n"), HasSubstr("did you mean 'train.batch'?"));
  EXPECT_THAT(Error("[trian]\nbatch = 8\n"), HasSubstr("did you mean [train]?"));
  EXPECT_THAT(Error("[generator.optimiser]\nkind = \"sgd\"\n"), HasSubstr("did you mean [generator.optimizer]?"));
  EXPECT_THAT(Error("[zzzzzzzz]\n"), HasSubstr("the sections are model, data, train"));
  EXPECT_THAT(Error("[train]\nzzzzzzzz = 1\n"), HasSubstr("the keys of [train] are batch, accumulate"));
  EXPECT_THAT(Error("train = 5\n"), HasSubstr("write [train]"));
  EXPECT_THAT(Error("[train.batch]\n"), HasSubstr("is a table"));
  EXPECT_THAT(Error("[generators]\nname = \"a\"\n"), HasSubstr("write [[generators]]"));
  EXPECT_THAT(Error("generators = [1]\n"), HasSubstr("[[generators]]"));
  EXPECT_THAT(Error("generators = 1\n"), HasSubstr("[[generators]]"));
  EXPECT_THAT(Error("[[train]]\nbatch = 1\n"), HasSubstr("train"));
  EXPECT_THAT(Error("[train\n"), AllOf(HasSubstr("run.toml:1:"), HasSubstr("not TOML")));
  EXPECT_THAT(Error("", {.environment = {"GANTRY_TRAIN_BACTH=1"}}),
              AllOf(HasSubstr("GANTRY_TRAIN_BACTH"), HasSubstr("did you mean GANTRY_TRAIN_BATCH")));
  EXPECT_THAT(Error("", {.overrides = {"train.bacth=1"}}),
              AllOf(HasSubstr("--set train.bacth=1"), HasSubstr("did you mean 'train.batch'?")));
  EXPECT_THAT(Error("", {.overrides = {"train.batch"}}), HasSubstr("no '='"));
  EXPECT_THAT(Error("", {.overrides = {"generators[].name=g"}}), HasSubstr("in the run file only"));
}

TEST(RunConfigTest, ErrorsNameValueAndRange) {
  EXPECT_THAT(Error("[train]\nbatch = \"many\"\n"),
              AllOf(HasSubstr("train.batch = \"many\""), HasSubstr("integer"), HasSubstr("1 to 1048576")));
  EXPECT_THAT(Error("[train]\nbatch = 0\n"), AllOf(HasSubstr("out of range"), HasSubstr("1 to 1048576")));
  EXPECT_THAT(Error("[train]\nbatch = 2.5\n"), HasSubstr("not whole"));
  EXPECT_THAT(Error("[train]\nbatch = true\n"), HasSubstr("not a number"));
  EXPECT_THAT(Error("[train]\nbatch = [1]\n"), HasSubstr("is a list"));
  EXPECT_THAT(Error("[train]\nbatch = 1979-05-27\n"), HasSubstr("is a date"));
  EXPECT_THAT(Error("[train]\nema = 1.0\n"), HasSubstr("0 to below 1"));
  EXPECT_THAT(Error("[train]\nr1 = nan\n"), AllOf(HasSubstr("train.r1"), HasSubstr("at least 0")));
  EXPECT_THAT(Error("[train]\nr1 = inf\n"), HasSubstr("out of range"));
  EXPECT_THAT(Error("[train]\nloss = \"hinges\"\n"), AllOf(HasSubstr("did you mean \"hinge\""), HasSubstr("\"wgan\"")));
  EXPECT_THAT(Error("[data]\nshuffle = 1\n"), HasSubstr("not true or false"));
  EXPECT_THAT(Error("[model]\nfamily = 3\n"), HasSubstr("not text"));
  EXPECT_THAT(Error("[train]\nbatch = 10\naccumulate = 4\n"),
              AllOf(HasSubstr("10"), HasSubstr("not a multiple of train.accumulate = 4")));
  EXPECT_THAT(Error("[train]\nsteps = 0\n"), HasSubstr("one of them must say"));
}

TEST(RunConfigTest, ListsOfNetworksTakeTheirSideDefaults) {
  const auto config = ParseRunConfig(R"(
[model]
generator = "g.onnx"
[discriminator.optimizer]
learning_rate = 0.25
[[discriminators]]
file = "patch.onnx"
name = "patch"
optimizer.beta1 = 0.25
[[discriminators]]
family = "sngan"
[discriminators.optimizer]
learning_rate = 0.125
)");
  ASSERT_TRUE(config.ok()) << config.status();
  ASSERT_EQ(config->discriminators.size(), 2u);
  EXPECT_EQ(config->discriminators[0].name, "patch");
  EXPECT_EQ(config->discriminators[0].file, "patch.onnx");
  EXPECT_EQ(config->discriminators[0].family, "");
  EXPECT_EQ(config->discriminators[0].training.optimizer.learning_rate, 0.25);
  EXPECT_EQ(config->discriminators[0].training.optimizer.beta1, 0.25);
  EXPECT_EQ(config->discriminators[1].name, "discriminator2");
  EXPECT_EQ(config->discriminators[1].family, "sngan");
  EXPECT_EQ(config->discriminators[1].training.optimizer.learning_rate, 0.125);
  EXPECT_EQ(config->generators[0].file, "g.onnx");
  EXPECT_EQ(config->model.family, "dcgan");
  const auto files =
      ParseRunConfig("[model]\ngenerator = \"g.onnx\"\ndiscriminator = \"d.onnx\"\n", {.folder = "nets"});
  ASSERT_TRUE(files.ok()) << files.status();
  EXPECT_EQ(files->model.family, "");
  EXPECT_EQ(files->discriminators[0].file, "nets/d.onnx");
  EXPECT_THAT(Error("[[generators]]\nname = \"a\"\n[[discriminators]]\nname = \"a\"\n"),
              HasSubstr("two networks are named 'a'"));
  EXPECT_THAT(Error("[[generators]]\nname = \"a.b\"\n"), HasSubstr("may not be named 'a.b'"));
  EXPECT_THAT(Error("[[generators]]\nfile = \"a\"\nfamily = \"dcgan\"\n"), HasSubstr("both a file and a family"));
  EXPECT_THAT(Error("[model]\ngenerator = \"g\"\n[[generators]]\nfile = \"a\"\n"),
              HasSubstr("both model.generator and [[generators]]"));
  EXPECT_THAT(Error("[[generators]]\n[[generators]]\nnmae = \"b\"\n"),
              AllOf(HasSubstr("run.toml:3"), HasSubstr("'generators[].name'")));
}

TEST(RunConfigTest, WritesWhatItReads) {
  RunConfigSources sources{.name = "quoted \"name\".toml", .folder = "some where"};
  const auto config = ParseRunConfig(R"(
[data]
path = "im\"ages\t\u0001"
padding = -0.1
[train]
seed = 9007199254740993
steps = 17
r1 = 1e-7
[generator.optimizer]
nesterov = true
[[discriminators]]
name = "one"
file = "/abs/d.onnx"
optimizer.final_factor = 0.5
[[discriminators]]
name = "two"
)",
                                     sources);
  ASSERT_TRUE(config.ok()) << config.status();
  const std::string text = ToToml(*config);
  const auto again = ParseRunConfig(text, {.folder = "else where"});
  ASSERT_TRUE(again.ok()) << again.status() << "\n" << text;
  EXPECT_EQ(ToToml(*again), text);
  EXPECT_EQ(again->data.path, std::filesystem::absolute("some where/im\"ages\t\x01").string());
  EXPECT_EQ(again->seed, 9007199254740993u);
  RunConfig other = *again;
  EXPECT_THAT(Differences(*again, other), IsEmpty());
  other.batch = 3;
  other.discriminators[1].training.optimizer.beta1 = 0.75;
  EXPECT_THAT(Differences(*again, other),
              ElementsAre("train.batch: 64 -> 3", "discriminators[1].optimizer.beta1: 0.5 -> 0.75"));
  other.generators.resize(3);
  EXPECT_THAT(Differences(*again, other), testing::Contains("generators: 1 networks -> 3"));
}

TEST(RunConfigTest, FilesAreReadFromTheirFolder) {
  std::string folder = testing::TempDir() + "/gantry_run_XXXXXX";
  ASSERT_NE(mkdtemp(folder.data()), nullptr);
  std::ofstream(folder + "/cats.toml") << "[data]\npath = \"images\"\n";
  const auto config = LoadRunConfig(folder + "/cats.toml");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->data.path, folder + "/images");
  EXPECT_EQ(config->output.directory, "runs/cats");
  EXPECT_EQ(LoadRunConfig(folder + "/none.toml").status().code(), absl::StatusCode::kNotFound);
  std::ofstream(folder + "/large.toml") << std::string((1 << 20) + 1, '#');
  EXPECT_EQ(LoadRunConfig(folder + "/large.toml").status().code(), absl::StatusCode::kResourceExhausted);
  std::filesystem::remove_all(folder);
}

TEST(RunConfigTest, DeepNestingIsRefused) {
  std::string dots;
  for (int i = 0; i < 200000; ++i) dots += "a.";
  EXPECT_THAT(Error("x = 1\n" + dots + "a = 1\n"), HasSubstr("run.toml:2: "));
  EXPECT_THAT(Error("[" + dots + "a]\n"), HasSubstr("dots"));
  EXPECT_THAT(Error("x = " + std::string(100000, '[') + "\n"), HasSubstr("not TOML"));
  std::string nested = "x = ";
  for (int i = 0; i < 80000; ++i) nested += "[{a.a.a =\n";
  EXPECT_THAT(Error(nested), HasSubstr("not TOML"));
  EXPECT_TRUE(ParseRunConfig("# " + std::string(1000, '.') + "\n").ok());
}

// Every key can be set to its default by file, and all but those of lists by variable and override.
TEST(RunConfigTest, EveryKeyIsSettableEverywhere) {
  for (const RunKey& key : RunKeys()) {
    EXPECT_FALSE(key.help.empty()) << key.name;
    const size_t dot = key.name.rfind('.');
    std::string section = key.name.substr(0, dot);
    const bool list = section.find("[]") != std::string::npos;
    if (list) section = absl::StrReplaceAll(section, {{"[]", ""}});
    const bool empty_choice = key.fallback == "\"\"" && !key.allowed.empty();
    if (empty_choice) continue;
    const bool brackets = list && section.find('.') == std::string::npos;
    std::string toml = absl::StrCat(brackets ? "[[" : "[", section, brackets ? "]]" : "]", "\n",
                                    key.name.substr(dot + 1), " = ", key.fallback, "\n");
    if (list && !brackets) toml = absl::StrCat("[[", section.substr(0, section.find('.')), "]]\n", toml);
    RunConfigSources sources;
    if (key.name == "train.steps") sources.overrides = {"train.images=5"};
    const auto config = ParseRunConfig(toml, sources);
    EXPECT_TRUE(config.ok()) << toml << config.status();
    if (list) continue;
    std::string value = key.fallback;
    if (value.starts_with('"')) value = value.substr(1, value.size() - 2);
    RunConfigSources by_override{.overrides = {absl::StrCat(key.name, "=", value), "train.images=5"}};
    EXPECT_TRUE(ParseRunConfig("", by_override).ok()) << ParseRunConfig("", by_override).status();
  }
}

TEST(RunConfigTest, TheReferencePageIsComplete) {
  std::ifstream page(GANTRY_TEST_DATA "/../docs/reference/run-file.md");
  const std::string text(std::istreambuf_iterator<char>(page), {});
  EXPECT_THAT(text, HasSubstr(RunKeysMarkdown())) << "docs/reference/run-file.md is out of date; its tables are:\n"
                                                  << RunKeysMarkdown();
}

TEST(RateScheduleTest, WarmsUpHoldsAndDecays) {
  RateSchedule schedule;
  EXPECT_EQ(schedule.Factor(0, 100), 1.0);
  EXPECT_EQ(schedule.Factor(1000, 100), 1.0);
  schedule.warmup_images = 10;
  EXPECT_EQ(schedule.Factor(5, 100), 0.5);
  EXPECT_EQ(schedule.Factor(10, 100), 1.0);
  schedule = {.kind = RateSchedule::Kind::kLinear, .warmup_images = 10, .decay_images = 40, .final_factor = 0.2};
  EXPECT_EQ(schedule.Factor(1, 100), 0.1);
  EXPECT_EQ(schedule.Factor(10, 100), 1.0);
  EXPECT_DOUBLE_EQ(schedule.Factor(30, 100), 0.6);
  EXPECT_DOUBLE_EQ(schedule.Factor(50, 100), 0.2);
  EXPECT_DOUBLE_EQ(schedule.Factor(100, 100), 0.2);
  schedule.decay_images = 0;  // the rest of the run: 90
  EXPECT_DOUBLE_EQ(schedule.Factor(55, 100), 0.6);
  schedule.kind = RateSchedule::Kind::kCosine;
  EXPECT_DOUBLE_EQ(schedule.Factor(55, 100), 0.6);
  EXPECT_NEAR(schedule.Factor(32, 100), 0.2 + 0.8 * 0.5 * (1 + std::cos(M_PI * 22 / 90)), 1e-15);
  EXPECT_DOUBLE_EQ(schedule.Factor(100, 100), 0.2);
  EXPECT_DOUBLE_EQ(schedule.Factor(10, 10), 0.2);
}

}  // namespace
}  // namespace gantry
