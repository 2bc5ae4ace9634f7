#include "runtime/gan/families.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_join.h"
#include "runtime/gan/network_builder.h"

namespace gantry {
namespace {

using Result = absl::StatusOr<Model>;

constexpr int64_t kBaseSize = 4;  // where every generator begins and every discriminator ends

// How often the image halves down to 4x4.
int StageCount(const FamilyOptions& options) {
  int stages = 0;
  for (int64_t size = options.image_size; size > kBaseSize; size /= 2) ++stages;
  return stages;
}

// Channels after `halvings` halvings of the image, beginning with `width`.
int64_t Channels(const FamilyOptions& options, int halvings) {
  return options.width * std::min<int64_t>(8, int64_t{1} << halvings);
}

Shape ImageShape(const FamilyOptions& options) {
  return Shape{options.batch, options.channels, options.image_size, options.image_size};
}

std::string Layer(int index) { return absl::StrCat(index); }

// --- dcgan and wgan-gp ----------------------------------------------------------------------------------------------

Result DcganGenerator(const FamilyOptions& options) {
  NetworkBuilder net("generator", options.dtype);
  const int stages = StageCount(options);
  ValueId x = net.Input("noise", Shape{options.batch, options.latent_size, 1, 1});
  int index = 0;
  for (int stage = 0; stage < stages; ++stage) {
    const int64_t channels = Channels(options, stages - 1 - stage);
    const bool first = stage == 0;
    x = net.ConvTranspose(
        Layer(index), x,
        {.out_channels = channels, .kernel = 4, .stride = first ? 1 : 2, .pad = first ? 0 : 1, .bias = false});
    x = ops::Relu(net.program(), net.BatchNorm(Layer(index + 1), x, 0.02));
    index += 3;
  }
  x = net.ConvTranspose(Layer(index), x,
                        {.out_channels = options.channels, .kernel = 4, .stride = 2, .pad = 1, .bias = false});
  return net.Finish("sample", ops::Tanh(net.program(), x));
}

enum class DiscriminatorNorm { kBatch, kLayer };

Result DcganDiscriminator(const FamilyOptions& options, DiscriminatorNorm norm) {
  NetworkBuilder net("discriminator", options.dtype);
  const int stages = StageCount(options);
  ValueId x = net.Input("sample", ImageShape(options));
  int index = 0;
  for (int stage = 0; stage < stages; ++stage) {
    x = net.Conv(Layer(index++), x,
                 {.out_channels = Channels(options, stage), .kernel = 4, .stride = 2, .pad = 1, .bias = false});
    if (stage > 0)
      x = norm == DiscriminatorNorm::kBatch ? net.BatchNorm(Layer(index), x, 0.02) : net.LayerNorm(Layer(index), x);
    if (stage > 0) ++index;
    x = ops::LeakyRelu(net.program(), x, 0.2);
    ++index;
  }
  x = net.Conv(Layer(index), x, {.out_channels = 1, .kernel = 4, .bias = false});
  return net.Finish("logit", ops::Reshape(net.program(), x, Shape{options.batch, 1}));
}

// --- video ----------------------------------------------------------------------------------------------------------

constexpr double kVideoDeviation = 0.01;

int64_t Frames(const FamilyOptions& options) { return options.frames > 0 ? options.frames : options.image_size / 2; }

// Frames that are left where the image is 4x4.
int64_t BaseFrames(const FamilyOptions& options) { return Frames(options) >> StageCount(options); }

Result VideoGenerator(const FamilyOptions& options) {
  NetworkBuilder net("generator", options.dtype);
  const int stages = StageCount(options);
  ValueId x = net.Input("noise", Shape{options.batch, options.latent_size, 1, 1, 1});
  int index = 0;
  for (int stage = 0; stage < stages; ++stage) {
    const bool first = stage == 0;
    x = net.ConvTranspose(Layer(index), x,
                          {.out_channels = Channels(options, stages - 1 - stage),
                           .kernel = 4,
                           .depth_kernel = first ? BaseFrames(options) : 4,
                           .stride = first ? 1 : 2,
                           .pad = first ? 0 : 1,
                           .bias = false,
                           .init = {.deviation = kVideoDeviation}});
    x = ops::Relu(net.program(), net.BatchNorm(Layer(index + 1), x, kVideoDeviation));
    index += 3;
  }
  x = net.ConvTranspose(Layer(index), x,
                        {.out_channels = options.channels,
                         .kernel = 4,
                         .stride = 2,
                         .pad = 1,
                         .bias = false,
                         .init = {.deviation = kVideoDeviation}});
  return net.Finish("sample", ops::Tanh(net.program(), x));
}

Result VideoDiscriminator(const FamilyOptions& options) {
  NetworkBuilder net("discriminator", options.dtype);
  const int stages = StageCount(options);
  ValueId x = net.Input("sample", Shape{options.batch, options.channels, Frames(options), options.image_size, options.image_size});
  int index = 0;
  for (int stage = 0; stage < stages; ++stage) {
    x = net.Conv(Layer(index++), x,
                 {.out_channels = Channels(options, stage),
                  .kernel = 4,
                  .stride = 2,
                  .pad = 1,
                  .bias = false,
                  .init = {.deviation = kVideoDeviation}});
    if (stage > 0) x = net.BatchNorm(Layer(index++), x, kVideoDeviation);
    x = ops::LeakyRelu(net.program(), x, 0.2);
    ++index;
  }
  x = net.Conv(Layer(index), x,
               {.out_channels = 1,
                .kernel = 4,
                .depth_kernel = BaseFrames(options),
                .bias = false,
                .init = {.deviation = kVideoDeviation}});
  return net.Finish("logit", ops::Reshape(net.program(), x, Shape{options.batch, 1}));
}

// --- sngan ----------------------------------------------------------------------------------------------------------

Result SnganGenerator(const FamilyOptions& options) {
  NetworkBuilder net("generator", options.dtype);
  Program& p = net.program();
  const int stages = StageCount(options);
  const int64_t base = Channels(options, stages);
  ValueId x = net.Input("noise", Shape{options.batch, options.latent_size});
  x = net.Linear("dense", x, {.out_channels = base * kBaseSize * kBaseSize});
  x = ops::Reshape(p, x, Shape{options.batch, base, kBaseSize, kBaseSize});
  for (int stage = 0; stage < stages; ++stage) {
    const int64_t channels = Channels(options, stages - 1 - stage);
    const std::string name = absl::StrCat("up", stage);
    x = net.ConvTranspose(name + ".deconv", x,
                          {.out_channels = channels, .kernel = 4, .stride = 2, .pad = 1, .bias = false});
    x = ops::Relu(p, net.BatchNorm(name + ".norm", x, 0.0));
  }
  x = net.Conv("to_image", x, {.out_channels = options.channels, .kernel = 3, .pad = 1});
  return net.Finish("sample", ops::Tanh(p, x));
}

Result SnganDiscriminator(const FamilyOptions& options) {
  NetworkBuilder net("discriminator", options.dtype);
  Program& p = net.program();
  constexpr double kSlope = 0.1;
  const int stages = StageCount(options);
  ValueId x = net.Input("sample", ImageShape(options));
  for (int stage = 0; stage < stages; ++stage) {
    const int64_t channels = Channels(options, stage);
    const std::string name = absl::StrCat("down", stage);
    x = net.Conv(name + ".conv", x, {.out_channels = channels, .kernel = 3, .pad = 1, .spectral_norm = true});
    x = ops::LeakyRelu(p, x, kSlope);
    x = net.Conv(name + ".halve", x,
                 {.out_channels = channels, .kernel = 4, .stride = 2, .pad = 1, .spectral_norm = true});
    x = ops::LeakyRelu(p, x, kSlope);
  }
  x = net.Conv("last", x, {.out_channels = Channels(options, stages), .kernel = 3, .pad = 1, .spectral_norm = true});
  x = ops::LeakyRelu(p, x, kSlope);
  x = ops::Reshape(p, x, Shape{options.batch, net.ShapeOf(x).element_count() / options.batch});
  return net.Finish("logit", net.Linear("dense", x, {.out_channels = 1, .spectral_norm = true}));
}

// --- r3gan ----------------------------------------------------------------------------------------------------------

constexpr int64_t kGroupWidth = 16;  // channels of a group of the 3x3 convolutions
constexpr int64_t kExpansion = 2;    // of the channels inside a block
constexpr double kR3Slope = 0.2;

// He et al. 2015, for leaky ReLU.
WeightInit R3Init(double gain) { return {.kind = WeightInit::Kind::kFanInNormal, .deviation = gain}; }

// x + conv1x1(act(conv3x3(act(conv1x1(x))))). With L = 3 layers in each of `blocks` blocks the first two are scaled by
// blocks^(-1 / (2L - 2)) (Fixup).
ValueId R3Block(NetworkBuilder& net, const std::string& name, ValueId x, int blocks) {
  const int64_t channels = net.ShapeOf(x)[1];
  const int64_t expanded = channels * kExpansion;
  const double gain = std::sqrt(2.0 / (1.0 + kR3Slope * kR3Slope)) * std::pow(blocks, -1.0 / 4.0);
  ValueId y =
      net.Conv(name + ".expand", x, {.out_channels = expanded, .kernel = 1, .bias = false, .init = R3Init(gain)});
  y = net.BiasedLeakyRelu(name + ".activation1", y, kR3Slope);
  y = net.Conv(name + ".grouped", y,
               {.out_channels = expanded,
                .kernel = 3,
                .pad = 1,
                .groups = expanded / kGroupWidth,
                .bias = false,
                .init = R3Init(gain)});
  y = net.BiasedLeakyRelu(name + ".activation2", y, kR3Slope);
  y = net.Conv(name + ".project", y,
               {.out_channels = channels, .kernel = 1, .bias = false, .init = {.kind = WeightInit::Kind::kZero}});
  return ops::Add(net.program(), x, y);
}

// A 1x1 convolution where the channels change.
ValueId R3Match(NetworkBuilder& net, const std::string& name, ValueId x, int64_t channels) {
  if (net.ShapeOf(x)[1] == channels) return x;
  return net.Conv(name, x, {.out_channels = channels, .kernel = 1, .bias = false, .init = R3Init(1.0)});
}

Result R3Generator(const FamilyOptions& options) {
  NetworkBuilder net("generator", options.dtype);
  Program& p = net.program();
  const int stages = StageCount(options);
  const int64_t base = Channels(options, stages);
  const ValueId noise = net.Input("noise", Shape{options.batch, options.latent_size});
  // A learned 4x4 pattern per channel, modulated by the noise.
  const ValueId pattern = net.Parameter("basis", Shape{1, base, kBaseSize, kBaseSize}, {.deviation = 1.0}, 1);
  const ValueId strength =
      net.Linear("basis_strength", noise, {.out_channels = base, .bias = false, .init = R3Init(1.0)});
  ValueId x = ops::Mul(p, pattern, ops::Reshape(p, strength, Shape{options.batch, base, 1, 1}));
  x = R3Block(net, "stage0.block", x, stages + 1);
  int64_t size = kBaseSize;
  for (int stage = 1; stage <= stages; ++stage) {
    const std::string name = absl::StrCat("stage", stage);
    x = R3Match(net, name + ".match", x, Channels(options, stages - stage));
    size *= 2;
    x = ops::Resize(p, x, {size, size}, {{"mode", "linear"}, {"coordinates", "half_pixel"}, {"rounding", "floor"}});
    x = R3Block(net, name + ".block", x, stages + 1);
  }
  x = net.Conv("to_image", x, {.out_channels = options.channels, .kernel = 1, .bias = false, .init = R3Init(1.0)});
  return net.Finish("sample", x);
}

Result R3Discriminator(const FamilyOptions& options) {
  NetworkBuilder net("discriminator", options.dtype);
  Program& p = net.program();
  const int stages = StageCount(options);
  ValueId x = net.Input("sample", ImageShape(options));
  x = net.Conv("from_image", x, {.out_channels = options.width, .kernel = 1, .bias = false, .init = R3Init(1.0)});
  for (int stage = 0; stage < stages; ++stage) {
    const std::string name = absl::StrCat("stage", stage);
    x = R3Block(net, name + ".block", x, stages + 1);
    x = ops::AvgPool(p, x, {.kernel = {2, 2}, .strides = {2, 2}});  // bilinear halving
    x = R3Match(net, name + ".match", x, Channels(options, stage + 1));
  }
  x = R3Block(net, absl::StrCat("stage", stages, ".block"), x, stages + 1);
  const int64_t base = net.ShapeOf(x)[1];
  x = net.Conv("basis", x,
               {.out_channels = base, .kernel = kBaseSize, .groups = base, .bias = false, .init = R3Init(1.0)});
  x = ops::Reshape(p, x, Shape{options.batch, base});
  return net.Finish("logit", net.Linear("to_logit", x, {.out_channels = 1, .bias = false, .init = R3Init(1.0)}));
}

// --- the table ------------------------------------------------------------------------------------------------------

OptimizerConfig Adam(double learning_rate, double beta1, double beta2) {
  return {.kind = OptimizerConfig::Kind::kAdam, .learning_rate = learning_rate, .beta1 = beta1, .beta2 = beta2};
}

struct Entry {
  std::string_view name;
  Result (*generator)(const FamilyOptions& options);
  Result (*discriminator)(const FamilyOptions& options);
  FamilyDefaults defaults;
};

const std::vector<Entry>& Entries() {
  static const auto* const entries = new std::vector<Entry>{
      {"dcgan",
       DcganGenerator,
       [](const FamilyOptions& options) { return DcganDiscriminator(options, DiscriminatorNorm::kBatch); },
       {.loss = GanLoss::kNonSaturating, .generator = Adam(2e-4, 0.5, 0.999), .discriminator = Adam(2e-4, 0.5, 0.999)}},
      {"wgan-gp",
       DcganGenerator,
       [](const FamilyOptions& options) { return DcganDiscriminator(options, DiscriminatorNorm::kLayer); },
       {.loss = GanLoss::kWasserstein,
        .gradient_penalty = 10.0,
        .n_critic = 5,
        .generator = Adam(1e-4, 0.0, 0.9),
        .discriminator = Adam(1e-4, 0.0, 0.9)}},
      {"sngan",
       SnganGenerator,
       SnganDiscriminator,
       {.loss = GanLoss::kHinge,
        .n_critic = 5,
        .generator = Adam(2e-4, 0.0, 0.9),
        .discriminator = Adam(2e-4, 0.0, 0.9)}},
      {"r3gan",
       R3Generator,
       R3Discriminator,
       {.loss = GanLoss::kRelativistic,
        .r1 = 1.0,
        .r2 = 1.0,
        .ema = 0.999,
        .generator = Adam(2e-4, 0.0, 0.99),
        .discriminator = Adam(2e-4, 0.0, 0.99)}},
      {kVideoFamily,
       VideoGenerator,
       VideoDiscriminator,
       {.loss = GanLoss::kNonSaturating, .generator = Adam(2e-4, 0.5, 0.999), .discriminator = Adam(2e-4, 0.5, 0.999)}},
  };
  return *entries;
}

absl::StatusOr<const Entry*> FindEntry(std::string_view family) {
  for (const Entry& entry : Entries()) {
    if (entry.name == family) return &entry;
  }
  return absl::NotFoundError(
      absl::StrFormat("there is no model family '%s'; there are %s", family, absl::StrJoin(FamilyNames(), ", ")));
}

absl::Status CheckRange(std::string_view what, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat("%s is %d; it must be %d to %d", what, value, low, high));
}

absl::Status CheckOptions(const Entry& entry, const FamilyOptions& options) {
  GANTRY_RETURN_IF_ERROR(CheckRange("image_size", options.image_size, 16, 512));
  if ((options.image_size & (options.image_size - 1)) != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("image_size is %d; it must be a power of two", options.image_size));
  }
  GANTRY_RETURN_IF_ERROR(CheckRange("channels", options.channels, 1, 1024));
  GANTRY_RETURN_IF_ERROR(CheckRange("width", options.width, 1, 4096));
  GANTRY_RETURN_IF_ERROR(CheckRange("latent_size", options.latent_size, 1, 65536));
  // Batch norm of a 1x1 ... 4x4 layer needs more than one value a channel, which every batch from 1 on has.
  GANTRY_RETURN_IF_ERROR(CheckRange("batch", options.batch, 1, 1 << 20));
  if (!IsFloat(options.dtype))
    return absl::InvalidArgumentError(absl::StrFormat("dtype is %s; it must be f32 or f64", Name(options.dtype)));
  if (entry.name == "r3gan" && options.width % (kGroupWidth / kExpansion) != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("width is %d; r3gan needs a multiple of %d", options.width, kGroupWidth / kExpansion));
  }
  if (entry.name != kVideoFamily && options.frames != 0) {
    return absl::InvalidArgumentError(absl::StrFormat("frames is %d; only '%s' makes clips", options.frames, kVideoFamily));
  }
  const int64_t unit = options.image_size / kBaseSize;
  if (entry.name == kVideoFamily && (options.frames < 0 || options.frames > 512 || options.frames % unit != 0)) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "frames is %d; clips of %dx%d have a multiple of %d, at most 512, for frames halve as often as the image down to 4x4",
        options.frames, options.image_size, options.image_size, unit));
  }
  return absl::OkStatus();
}

absl::Status CheckWeights(const Model& model) {
  constexpr int64_t kMostWeights = int64_t{1} << 31;
  int64_t weights = 0;
  for (const State& state : model.program.states()) weights += model.program.TypeOf(state.first).element_count();
  if (weights <= kMostWeights) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat(
      "the %s would have %d weights, more than %d; choose a smaller width", model.name, weights, kMostWeights));
}

}  // namespace

std::vector<std::string> FamilyNames() {
  std::vector<std::string> names;
  for (const Entry& entry : Entries()) names.emplace_back(entry.name);
  return names;
}

absl::StatusOr<Family> BuildFamily(std::string_view family, const FamilyOptions& options) {
  GANTRY_ASSIGN_OR_RETURN(const Entry* entry, FindEntry(family));
  const absl::Status checked = CheckOptions(*entry, options);
  if (!checked.ok()) return Annotate(checked, absl::StrFormat("model family '%s'", family));
  Family result;
  GANTRY_ASSIGN_OR_RETURN(result.generator, entry->generator(options));
  GANTRY_ASSIGN_OR_RETURN(result.discriminator, entry->discriminator(options));
  GANTRY_RETURN_IF_ERROR(CheckWeights(result.generator));
  GANTRY_RETURN_IF_ERROR(CheckWeights(result.discriminator));
  return result;
}

absl::StatusOr<FamilyDefaults> DefaultsOf(std::string_view family) {
  GANTRY_ASSIGN_OR_RETURN(const Entry* entry, FindEntry(family));
  return entry->defaults;
}

}  // namespace gantry
