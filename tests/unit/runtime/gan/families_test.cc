#include "runtime/gan/families.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/data/npz.h"
#include "runtime/gan/network_builder.h"
#include "runtime/graph/differentiate.h"
#include "runtime/graph/onnx.h"
#include "tests/support/model_runner.h"
#include "tests/support/program_runner.h"

namespace gantry {
namespace {

using test::ModelResult;
using test::NamedContents;
using test::RunModel;
using testing::HasSubstr;

// All arrays of an archive of tests/data/make_onnx_fixtures.py as doubles, by name.
NamedContents ReadArrays(std::string_view file) {
  NamedContents contents;
  absl::StatusOr<std::vector<NamedArray>> arrays =
      ReadNpz(std::string(GANTRY_TEST_DATA) + "/data/onnx/" + std::string(file));
  EXPECT_TRUE(arrays.ok()) << arrays.status();
  if (!arrays.ok()) return contents;
  for (const NamedArray& array : *arrays) {
    std::vector<double>& values = contents[array.name];
    values.resize(array.array.element_count());
    ConvertToF64(array.array.type(), array.array.bytes().data(), array.array.element_count(), values.data());
  }
  return contents;
}

void ExpectNear(const std::vector<double>& got, const std::vector<double>& expected, double tolerance,
                const std::string& what) {
  ASSERT_EQ(got.size(), expected.size()) << what;
  double difference = 0.0, greatest = 1e-30;
  for (size_t i = 0; i < got.size(); ++i) {
    difference = std::max(difference, std::abs(got[i] - expected[i]));
    greatest = std::max(greatest, std::abs(expected[i]));
  }
  EXPECT_LE(difference, tolerance * greatest) << what;
}

std::map<std::string, Shape> StateShapes(const Model& model) {
  std::map<std::string, Shape> shapes;
  for (const State& state : model.program.states()) shapes[state.name] = model.program.TypeOf(state.first).shape;
  return shapes;
}

std::vector<double> Noise(int64_t count) {
  std::vector<double> values(count);
  for (int64_t i = 0; i < count; ++i) values[i] = std::sin(1.0 + 12.9898 * static_cast<double>(i));
  return values;
}

// The networks of the reference run dcgan32: PyTorch's names and shapes.
TEST(FamiliesTest, DcganHasPyTorchsStatesAtSize32) {
  const absl::StatusOr<Family> family = BuildFamily("dcgan", {.image_size = 32, .channels = 1, .batch = 8});
  ASSERT_TRUE(family.ok()) << family.status();
  const std::map<std::string, Shape> generator = {
      {"0.weight", {100, 256, 4, 4}},
      {"1.weight", {256}},
      {"1.bias", {256}},
      {"1.running_mean", {256}},
      {"1.running_var", {256}},
      {"3.weight", {256, 128, 4, 4}},
      {"4.weight", {128}},
      {"4.bias", {128}},
      {"4.running_mean", {128}},
      {"4.running_var", {128}},
      {"6.weight", {128, 64, 4, 4}},
      {"7.weight", {64}},
      {"7.bias", {64}},
      {"7.running_mean", {64}},
      {"7.running_var", {64}},
      {"9.weight", {64, 1, 4, 4}},
  };
  const std::map<std::string, Shape> discriminator = {
      {"0.weight", {64, 1, 4, 4}},
      {"2.weight", {128, 64, 4, 4}},
      {"3.weight", {128}},
      {"3.bias", {128}},
      {"3.running_mean", {128}},
      {"3.running_var", {128}},
      {"5.weight", {256, 128, 4, 4}},
      {"6.weight", {256}},
      {"6.bias", {256}},
      {"6.running_mean", {256}},
      {"6.running_var", {256}},
      {"8.weight", {1, 256, 4, 4}},
  };
  EXPECT_EQ(StateShapes(family->generator), generator);
  EXPECT_EQ(StateShapes(family->discriminator), discriminator);
}

TEST(FamiliesTest, DcganHasPyTorchsStatesAtSize64) {
  const absl::StatusOr<Family> family = BuildFamily("dcgan", {.image_size = 64, .width = 8, .batch = 8});
  ASSERT_TRUE(family.ok()) << family.status();
  const std::map<std::string, Shape> generator = StateShapes(family->generator);
  const std::map<std::string, Shape> discriminator = StateShapes(family->discriminator);
  EXPECT_EQ(generator.size(), 5u + 4 * 4);
  EXPECT_EQ(generator.at("0.weight"), (Shape{100, 64, 4, 4}));
  EXPECT_EQ(generator.at("10.running_var"), (Shape{8}));
  EXPECT_EQ(generator.at("12.weight"), (Shape{8, 3, 4, 4}));
  EXPECT_EQ(discriminator.size(), 5u + 3 * 4);
  EXPECT_EQ(discriminator.at("8.weight"), (Shape{64, 32, 4, 4}));
  EXPECT_EQ(discriminator.at("11.weight"), (Shape{1, 64, 4, 4}));
}

// The same network from PyTorch's ONNX file and from the family, with the file's weights: outputs and running
// statistics are what PyTorch computed in f64.
TEST(FamiliesTest, DcganComputesWhatPyTorchComputes) {
  const NamedContents arrays = ReadArrays("training.npz");
  const absl::StatusOr<Family> family = BuildFamily(
      "dcgan", {.image_size = 32, .channels = 3, .width = 2, .latent_size = 7, .batch = 2, .dtype = DataType::kF64});
  ASSERT_TRUE(family.ok()) << family.status();
  for (const auto& [name, model, input, output] :
       {std::tuple("script15_dcgan_generator", &family->generator, "noise", "sample"),
        std::tuple("script13_dcgan_discriminator", &family->discriminator, "sample", "logit")}) {
    const std::string key = name;
    const std::vector<double>& file = arrays.at(key + "/model");
    std::vector<std::byte> bytes;
    for (double byte : file) bytes.push_back(static_cast<std::byte>(byte));
    const absl::StatusOr<Model> imported = ImportOnnx(bytes, {.batch = 2, .dtype = DataType::kF64});
    ASSERT_TRUE(imported.ok()) << imported.status();
    EXPECT_EQ(StateShapes(*imported), StateShapes(*model));
    NamedContents weights;
    for (const State& state : imported->program.states()) weights[state.name] = test::InitialContent(*imported, state);
    const absl::StatusOr<ModelResult> result = RunModel(*model, {{input, arrays.at(key + "/in/x")}}, weights);
    ASSERT_TRUE(result.ok()) << result.status();
    ExpectNear(result->outputs.at(output), arrays.at(key + "/out/y"), 1e-12, key);
    int statistics = 0;
    for (const auto& [array, values] : arrays) {
      if (!array.starts_with(key + "/state/")) continue;
      ExpectNear(result->states.at(array.substr(key.size() + 7)), values, 1e-12, array);
      ++statistics;
    }
    EXPECT_GE(statistics, 4);
  }
}

TEST(FamiliesTest, DcganBeginsAsItsAuthorsSay) {
  const absl::StatusOr<Family> family = BuildFamily("dcgan", {});
  ASSERT_TRUE(family.ok());
  for (const State& state : family->generator.program.states()) {
    const Initializer& init = state.initializer;
    if (state.name.ends_with("running_mean") || state.name.ends_with(".bias")) {
      EXPECT_EQ(init.kind, Initializer::Kind::kConstant);
      EXPECT_EQ(init.a, 0.0) << state.name;
    } else if (state.name.ends_with("running_var")) {
      EXPECT_EQ(init.a, 1.0);
      EXPECT_EQ(state.role, StateRole::kStatistic);
    } else {
      const bool is_norm = family->generator.program.TypeOf(state.first).shape.rank() == 1;
      EXPECT_EQ(init.kind, Initializer::Kind::kNormal);
      EXPECT_EQ(init.a, is_norm ? 1.0 : 0.0) << state.name;
      EXPECT_EQ(init.b, 0.02);
    }
  }
}

class SpectralNormTest : public testing::TestWithParam<std::string> {};

// Two passes, each a step of power iteration: results, vectors and the weight's gradient.
TEST_P(SpectralNormTest, DoesWhatPyTorchDoes) {
  const std::string name = GetParam();
  const NamedContents arrays = ReadArrays("layers.npz");
  const bool is_conv = name == "conv";
  NetworkBuilder net("layer", DataType::kF64);
  const ValueId x = net.Input("x", is_conv ? Shape{2, 3, 5, 5} : Shape{3, 5});
  const ConvolutionLayer options = {.out_channels = 4, .kernel = 3, .pad = 1, .spectral_norm = true};
  const ValueId y = is_conv ? net.Conv("layer", x, options) : net.Linear("layer", x, options);
  Program& program = net.program();
  const ValueId weight = program.FindState("layer.weight_orig")->first;
  const ValueId outputs[] = {ops::ReduceSum(program, ops::Square(program, y), {})};
  const ValueId seeds[] = {kNoValue};
  const ValueId wanted[] = {weight};
  const absl::StatusOr<std::vector<ValueId>> gradient = Differentiate(program, outputs, seeds, wanted);
  ASSERT_TRUE(gradient.ok()) << gradient.status();
  program.AddOutput("gradient", (*gradient)[0]);
  const absl::StatusOr<Model> model = net.Finish("y", y);
  ASSERT_TRUE(model.ok()) << model.status();
  NamedContents states;
  for (const char* state : {"weight_orig", "weight_u", "weight_v", "bias"}) {
    states["layer." + std::string(state)] = arrays.at(name + "/before/" + state);
  }
  for (const char* pass : {"/1/", "/2/"}) {
    const absl::StatusOr<ModelResult> result = RunModel(*model, {{"x", arrays.at(name + pass + "x")}}, states);
    ASSERT_TRUE(result.ok()) << result.status();
    ExpectNear(result->outputs.at("y"), arrays.at(name + pass + "y"), 1e-12, "y");
    ExpectNear(result->outputs.at("gradient"), arrays.at(name + pass + "weight_gradient"), 1e-12, "gradient");
    ExpectNear(result->states.at("layer.weight_u"), arrays.at(name + pass + "u"), 1e-12, "u");
    ExpectNear(result->states.at("layer.weight_v"), arrays.at(name + pass + "v"), 1e-12, "v");
    states = result->states;
  }
}

INSTANTIATE_TEST_SUITE_P(Layers, SpectralNormTest, testing::Values("linear", "conv"),
                         [](const auto& info) { return info.param; });

class EveryFamilyTest : public testing::TestWithParam<std::string> {};

TEST_P(EveryFamilyTest, FitsTogetherAtEverySize) {
  for (int64_t size = 16; size <= 512; size *= 2) {
    const absl::StatusOr<Family> family =
        BuildFamily(GetParam(), {.image_size = size, .channels = 3, .width = 8, .latent_size = 12, .batch = 2});
    ASSERT_TRUE(family.ok()) << family.status();
    const Program& generator = family->generator.program;
    const Program& discriminator = family->discriminator.program;
    const Shape sample = GetParam() == kVideoFamily ? Shape{2, 3, size / 2, size, size} : Shape{2, 3, size, size};
    EXPECT_EQ(generator.TypeOf(generator.FindOutput("sample")).shape, sample);
    EXPECT_EQ(discriminator.TypeOf(discriminator.FindInput("sample")).shape, sample);
    EXPECT_EQ(discriminator.TypeOf(discriminator.FindOutput("logit")).shape, (Shape{2, 1}));
  }
}

TEST_P(EveryFamilyTest, IsJoinedToAStepByItsDefaults) {
  const absl::StatusOr<Family> family =
      BuildFamily(GetParam(), {.image_size = 16, .width = 8, .latent_size = 6, .batch = 3});
  ASSERT_TRUE(family.ok()) << family.status();
  const absl::StatusOr<FamilyDefaults> defaults = DefaultsOf(GetParam());
  ASSERT_TRUE(defaults.ok());
  const GanStepConfig config = {.loss = defaults->loss,
                                .r1 = defaults->r1,
                                .r2 = defaults->r2,
                                .gradient_penalty = defaults->gradient_penalty,
                                .n_critic = defaults->n_critic,
                                .ema = defaults->ema};
  const GanRole generator[] = {{"generator", family->generator, defaults->generator}};
  const GanRole discriminator[] = {{"discriminator", family->discriminator, defaults->discriminator}};
  const absl::StatusOr<Program> step = BuildGanStep(config, generator, discriminator);
  ASSERT_TRUE(step.ok()) << step.status();
  for (const State& state : step->states()) {
    if (state.role != StateRole::kParameter) continue;
    EXPECT_NE(state.last, state.first) << state.name << " is never updated";
  }
}

TEST_P(EveryFamilyTest, MakesAndJudgesFiniteSamples) {
  const absl::StatusOr<Family> family =
      BuildFamily(GetParam(), {.image_size = 16, .width = 8, .latent_size = 6, .batch = 3, .dtype = DataType::kF64});
  ASSERT_TRUE(family.ok()) << family.status();
  const absl::StatusOr<ModelResult> made = RunModel(family->generator, {{"noise", Noise(18)}});
  ASSERT_TRUE(made.ok()) << made.status();
  const std::vector<double>& sample = made->outputs.at("sample");
  const absl::StatusOr<ModelResult> judged = RunModel(family->discriminator, {{"sample", sample}});
  ASSERT_TRUE(judged.ok()) << judged.status();
  const std::vector<double>& logit = judged->outputs.at("logit");
  ASSERT_EQ(logit.size(), 3u);
  for (double value : logit) EXPECT_TRUE(std::isfinite(value));
  EXPECT_NE(logit[0], logit[1]);
  EXPECT_GT(*std::max_element(sample.begin(), sample.end()), *std::min_element(sample.begin(), sample.end()));
}

INSTANTIATE_TEST_SUITE_P(All, EveryFamilyTest, testing::ValuesIn(FamilyNames()), [](const auto& info) {
  std::string name = info.param;
  std::erase(name, '-');
  return name;
});

// A penalty on the gradient of each sample's logit needs logits that depend on that sample only.
// Table of the paper's section 3 for clips of 32 frames, and what changes where there are fewer.
TEST(FamiliesTest, VideoHasItsAuthorsLayers) {
  const absl::StatusOr<Family> family = BuildFamily(kVideoFamily, {.image_size = 64, .batch = 1});
  ASSERT_TRUE(family.ok()) << family.status();
  const std::map<std::string, Shape> generator = StateShapes(family->generator);
  const std::map<std::string, Shape> discriminator = StateShapes(family->discriminator);
  EXPECT_EQ(generator.at("0.weight"), (Shape{100, 512, 2, 4, 4}));
  EXPECT_EQ(generator.at("3.weight"), (Shape{512, 256, 4, 4, 4}));
  EXPECT_EQ(generator.at("6.weight"), (Shape{256, 128, 4, 4, 4}));
  EXPECT_EQ(generator.at("9.weight"), (Shape{128, 64, 4, 4, 4}));
  EXPECT_EQ(generator.at("12.weight"), (Shape{64, 3, 4, 4, 4}));
  EXPECT_EQ(generator.at("10.running_var"), (Shape{64}));
  EXPECT_EQ(discriminator.at("0.weight"), (Shape{64, 3, 4, 4, 4}));
  EXPECT_EQ(discriminator.at("2.weight"), (Shape{128, 64, 4, 4, 4}));
  EXPECT_EQ(discriminator.at("8.weight"), (Shape{512, 256, 4, 4, 4}));
  EXPECT_EQ(discriminator.at("11.weight"), (Shape{1, 512, 2, 4, 4}));
  EXPECT_EQ(discriminator.count("1.running_mean"), 0u) << "the first layer of the discriminator has no norm";
  const absl::StatusOr<Family> shorter = BuildFamily(kVideoFamily, {.image_size = 64, .frames = 16, .batch = 1});
  ASSERT_TRUE(shorter.ok()) << shorter.status();
  EXPECT_EQ(StateShapes(shorter->generator).at("0.weight"), (Shape{100, 512, 1, 4, 4}));
  const Program& program = shorter->generator.program;
  EXPECT_EQ(program.TypeOf(program.FindOutput("sample")).shape, (Shape{1, 3, 16, 64, 64}));
  const absl::Status odd = BuildFamily(kVideoFamily, {.image_size = 64, .frames = 24}).status();
  EXPECT_THAT(std::string(odd.message()), HasSubstr("a multiple of 16"));
  const absl::Status image = BuildFamily("dcgan", {.image_size = 64, .frames = 16}).status();
  EXPECT_THAT(std::string(image.message()), HasSubstr("only 'video' makes clips"));
}

TEST(FamiliesTest, TheWganCriticJudgesEverySampleByItself) {
  const absl::StatusOr<Family> family =
      BuildFamily("wgan-gp", {.image_size = 16, .channels = 1, .width = 4, .batch = 2, .dtype = DataType::kF64});
  ASSERT_TRUE(family.ok());
  for (const State& state : family->discriminator.program.states())
    EXPECT_EQ(state.role, StateRole::kParameter) << state.name;
  std::vector<double> samples = Noise(2 * 256);
  const absl::StatusOr<ModelResult> before = RunModel(family->discriminator, {{"sample", samples}});
  for (int i = 256; i < 512; ++i) samples[i] *= 3.0;
  const absl::StatusOr<ModelResult> after = RunModel(family->discriminator, {{"sample", samples}});
  ASSERT_TRUE(before.ok() && after.ok());
  EXPECT_EQ(before->outputs.at("logit")[0], after->outputs.at("logit")[0]);
  EXPECT_NE(before->outputs.at("logit")[1], after->outputs.at("logit")[1]);
}

// At the start a block passes its input on: what is inside does not matter.
TEST(FamiliesTest, R3ganBlocksBeginAsTheIdentity) {
  const FamilyOptions options = {
      .image_size = 16, .channels = 1, .width = 8, .latent_size = 5, .batch = 2, .dtype = DataType::kF64};
  const absl::StatusOr<Family> family = BuildFamily("r3gan", options);
  ASSERT_TRUE(family.ok());
  const NamedContents noise = {{"noise", Noise(10)}};
  NamedContents changed, trained;
  for (const State& state : family->generator.program.states()) {
    if (state.name.ends_with(".grouped.weight"))
      changed[state.name] = Noise(family->generator.program.TypeOf(state.first).element_count());
    if (state.name.ends_with(".project.weight"))
      trained[state.name] = Noise(family->generator.program.TypeOf(state.first).element_count());
  }
  EXPECT_EQ(changed.size(), 3u);
  const absl::StatusOr<ModelResult> as_is = RunModel(family->generator, noise);
  const absl::StatusOr<ModelResult> inside = RunModel(family->generator, noise, changed);
  const absl::StatusOr<ModelResult> after = RunModel(family->generator, noise, trained);
  ASSERT_TRUE(as_is.ok() && inside.ok() && after.ok());
  EXPECT_EQ(as_is->outputs.at("sample"), inside->outputs.at("sample"));
  EXPECT_NE(as_is->outputs.at("sample"), after->outputs.at("sample"));
}

TEST(FamiliesTest, ErrorsSayWhatIsPossible) {
  EXPECT_THAT(Message(BuildFamily("dcgam", {}).status()), HasSubstr("dcgan, wgan-gp, sngan, r3gan"));
  EXPECT_THAT(Message(DefaultsOf("").status()), HasSubstr("dcgan"));
  const auto Error = [](std::string_view family, const FamilyOptions& options) {
    const absl::Status status = BuildFamily(family, options).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(Message(status));
  };
  EXPECT_THAT(Error("dcgan", {.image_size = 48}), HasSubstr("image_size is 48; it must be a power of two"));
  EXPECT_THAT(Error("dcgan", {.image_size = 8}), HasSubstr("16 to 512"));
  EXPECT_THAT(Error("sngan", {.width = 0}), HasSubstr("width is 0"));
  EXPECT_THAT(Error("sngan", {.batch = 0}), HasSubstr("batch is 0"));
  EXPECT_THAT(Error("r3gan", {.width = 12}), HasSubstr("multiple of 8"));
  EXPECT_THAT(Error("dcgan", {.dtype = DataType::kI32}), HasSubstr("f32 or f64"));
  EXPECT_THAT(Error("dcgan", {.width = 4096}), HasSubstr("choose a smaller width"));
}

}  // namespace
}  // namespace gantry
