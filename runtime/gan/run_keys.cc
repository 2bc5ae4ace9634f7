#include "runtime/gan/run_keys.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <optional>
#include <type_traits>

#include "absl/strings/ascii.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "memory/nearest.h"
#include "runtime/gan/families.h"

namespace gantry {
namespace {

constexpr double kMost = 9007199254740992.0;  // 2^53: every whole number up to it is a double
constexpr double kLargest = std::numeric_limits<double>::max();

// The member that `get` finds, as a field.
template <typename Get>
std::function<RunField(RunConfig&, size_t)> Of(Get get) {
  return [get](RunConfig& config, size_t index) -> RunField {
    auto& member = get(config, index);
    if constexpr (std::is_enum_v<std::remove_reference_t<decltype(member)>>) {
      return reinterpret_cast<uint8_t*>(&member);
    } else {
      return &member;
    }
  };
}

// Optimizer and schedule keys, for each place where they may stand.
template <typename Training>
void AddTraining(const std::string& section, Training training, std::vector<RunKeyEntry>& keys) {
  using C = RunConfig&;
  using I = size_t;
  const auto Add = [&](std::string_view name, RunKeyEntry entry) {
    entry.name = absl::StrCat(section, ".", ToAbsl(name));
    keys.push_back(std::move(entry));
  };
  Add("kind", {.help = "how weights follow from gradients",
               .choices = {"adam", "adamw", "sgd"},
               .field = Of([training](C c, I i) -> auto& { return training(c, i).optimizer.kind; })});
  Add("learning_rate",
      {.help = "before the schedule", .low = 0, .high = 1e6, .field = Of([training](C c, I i) -> auto& {
                                                               return training(c, i).optimizer.learning_rate;
                                                             })});
  Add("beta1", {.help = "decay of the gradient's mean (adam, adamw)",
                .low = 0,
                .high = 1,
                .below_high = true,
                .field = Of([training](C c, I i) -> auto& { return training(c, i).optimizer.beta1; })});
  Add("beta2", {.help = "decay of the squared gradient's mean (adam, adamw)",
                .low = 0,
                .high = 1,
                .below_high = true,
                .field = Of([training](C c, I i) -> auto& { return training(c, i).optimizer.beta2; })});
  Add("epsilon", {.help = "added to the root of the squared gradient's mean (adam, adamw)",
                  .low = 0,
                  .high = 1,
                  .field = Of([training](C c, I i) -> auto& { return training(c, i).optimizer.epsilon; })});
  Add("momentum",
      {.help = "of sgd", .low = 0, .high = 1, .below_high = true, .field = Of([training](C c, I i) -> auto& {
                                                                    return training(c, i).optimizer.momentum;
                                                                  })});
  Add("nesterov", {.help = "sgd looks ahead by the momentum",
                   .field = Of([training](C c, I i) -> auto& { return training(c, i).optimizer.nesterov; })});
  Add("weight_decay", {.help = "adam, sgd: times the weights, added to the gradients; adamw: taken from the weights",
                       .low = 0,
                       .high = 1e6,
                       .field = Of([training](C c, I i) -> auto& { return training(c, i).optimizer.weight_decay; })});
  Add("clip_norm", {.help = "gradients are scaled so that their joint norm is at most this; 0: never",
                    .low = 0,
                    .high = kLargest,
                    .field = Of([training](C c, I i) -> auto& { return training(c, i).optimizer.clip_norm; })});
  Add("schedule", {.help = "how the learning rate falls after the warm-up",
                   .choices = {"constant", "linear", "cosine"},
                   .field = Of([training](C c, I i) -> auto& { return training(c, i).schedule.kind; })});
  Add("warmup_images", {.help = "the learning rate rises linearly from 0 while these many images are seen",
                        .low = 0,
                        .high = kMost,
                        .field = Of([training](C c, I i) -> auto& { return training(c, i).schedule.warmup_images; })});
  Add("decay_images", {.help = "then falls over these many images; 0: over the rest of the run",
                       .low = 0,
                       .high = kMost,
                       .field = Of([training](C c, I i) -> auto& { return training(c, i).schedule.decay_images; })});
  Add("final_factor", {.help = "to this share of the learning rate, where it stays",
                       .low = 0,
                       .high = 1,
                       .field = Of([training](C c, I i) -> auto& { return training(c, i).schedule.final_factor; })});
}

std::vector<RunKeyEntry> MakeTable() {
  using C = RunConfig&;
  using I = size_t;
  std::vector<RunKeyEntry> keys = {
      {.name = "model.family",
       .help = "the built-in networks, and the defaults of training that go with them",
       .choices = FamilyNames(),
       .field = Of([](C c, I) -> auto& { return c.model.family; })},
      {.name = "model.generator",
       .help = "an ONNX file instead of the family's generator",
       .is_path = true,
       .field = Of([](C c, I) -> auto& { return c.model.generator; })},
      {.name = "model.discriminator",
       .help = "an ONNX file instead of the family's discriminator",
       .is_path = true,
       .field = Of([](C c, I) -> auto& { return c.model.discriminator; })},
      {.name = "model.image_size",
       .help = "height and width of the family's images, a power of two from 16 on; 0: 64",
       .low = 0,
       .high = 512,
       .field = Of([](C c, I) -> auto& { return c.model.image_size; })},
      {.name = "model.channels",
       .help = "channels of the family's images; 0: as the data has",
       .low = 0,
       .high = 1024,
       .field = Of([](C c, I) -> auto& { return c.model.channels; })},
      {.name = "model.frames",
       .help = "frames of a clip of the family video, a multiple of image_size / 4; 0: as the data has",
       .low = 0,
       .high = 512,
       .field = Of([](C c, I) -> auto& { return c.model.frames; })},
      {.name = "model.width",
       .help = "channels at the family's highest resolution; they double with every halving, up to 8 times; 0: 64",
       .low = 0,
       .high = 4096,
       .field = Of([](C c, I) -> auto& { return c.model.width; })},
      {.name = "model.latent",
       .help = "numbers of noise for one of the family's images; 0: 100",
       .low = 0,
       .high = 65536,
       .field = Of([](C c, I) -> auto& { return c.model.latent; })},
      {.name = "data.path",
       .help = "samples: an IDX, .npy, .npz or .safetensors file, a folder of MNIST's, or one of PNG images",
       .is_path = true,
       .field = Of([](C c, I) -> auto& { return c.data.path; })},
      {.name = "data.tensor",
       .help = "which array of an .npz or .safetensors file; may be empty where there is one",
       .field = Of([](C c, I) -> auto& { return c.data.tensor; })},
      {.name = "data.split",
       .help = "which part of a folder with MNIST's file names",
       .choices = {"train", "test"},
       .field = Of([](C c, I) -> auto& { return c.data.split; })},
      {.name = "data.image_size",
       .help = "arrays are padded, PNG images scaled and cropped to this size; 0: as the networks take them",
       .low = 0,
       .high = 4096,
       .field = Of([](C c, I) -> auto& { return c.data.image_size; })},
      {.name = "data.padding",
       .help = "the value that arrays are padded with",
       .low = -kLargest,
       .high = kLargest,
       .field = Of([](C c, I) -> auto& { return c.data.padding; })},
      {.name = "data.channels_last", .help = "array samples are [H,W,C] in the file", .field = Of([](C c, I) -> auto& {
                                                                                        return c.data.channels_last;
                                                                                      })},
      {.name = "data.shuffle",
       .help = "every epoch in an order of its own, from train.seed",
       .field = Of([](C c, I) -> auto& { return c.data.shuffle; })},
      {.name = "data.drop_tail",
       .help = "leave out what is left of an epoch when it does not fill a batch",
       .field = Of([](C c, I) -> auto& { return c.data.drop_tail; })},
      {.name = "data.read_ahead", .help = "batches held ready", .low = 1, .high = 1024, .field = Of([
                                                                                        ](C c, I) -> auto& {
                                                                                          return c.data.read_ahead;
                                                                                        })},
      {.name = "data.threads", .help = "threads that read and decode", .low = 1, .high = 64, .field = Of([
                                                                                              ](C c, I) -> auto& {
                                                                                                return c.data.threads;
                                                                                              })},
      {.name = "data.max_memory_mib",
       .help = "most memory for files that cannot be read in pieces (.gz, .npz)",
       .low = 1,
       .high = 1 << 24,
       .field = Of([](C c, I) -> auto& { return c.data.max_memory_mib; })},
      {.name = "train.batch", .help = "samples per update", .low = 1, .high = 1048576, .field = Of([](C c, I) -> auto& {
                                                                                         return c.batch;
                                                                                       })},
      {.name = "train.accumulate",
       .help = "an update's samples go through the networks in this many parts, which takes less memory",
       .low = 1,
       .high = 65536,
       .field = Of([](C c, I) -> auto& { return c.step.accumulate; })},
      {.name = "train.steps",
       .help = "the run ends after this many steps; 0: only train.images counts",
       .low = 0,
       .high = kMost,
       .field = Of([](C c, I) -> auto& { return c.steps; })},
      {.name = "train.images",
       .help = "the run ends after this many real samples; 0: only train.steps counts",
       .low = 0,
       .high = kMost,
       .field = Of([](C c, I) -> auto& { return c.images; })},
      {.name = "train.minutes",
       .help = "the process stops after these many minutes of training, to be resumed; 0: no limit",
       .low = 0,
       .high = 1e9,
       .field = Of([](C c, I) -> auto& { return c.minutes; })},
      {.name = "train.n_critic",
       .help = "updates of the discriminators in a step",
       .low = 1,
       .high = 1024,
       .field = Of([](C c, I) -> auto& { return c.step.n_critic; })},
      {.name = "train.loss",
       .help = "what the networks minimize: non-saturating, hinge, Wasserstein, least squares or relativistic pairing",
       .choices = GanLossNames(),
       .field = Of([](C c, I) -> auto& { return c.step.loss; })},
      {.name = "train.r1",
       .help = "weight of the gradient penalty on real samples",
       .low = 0,
       .high = kLargest,
       .field = Of([](C c, I) -> auto& { return c.step.r1; })},
      {.name = "train.r2",
       .help = "weight of the gradient penalty on made samples",
       .low = 0,
       .high = kLargest,
       .field = Of([](C c, I) -> auto& { return c.step.r2; })},
      {.name = "train.penalty_every",
       .help = "r1 and r2 in every k-th step only",
       .low = 1,
       .high = 1048576,
       .field = Of([](C c, I) -> auto& { return c.step.penalty_every; })},
      {.name = "train.gradient_penalty",
       .help = "weight of WGAN-GP's penalty between real and made samples",
       .low = 0,
       .high = kLargest,
       .field = Of([](C c, I) -> auto& { return c.step.gradient_penalty; })},
      {.name = "train.ema",
       .help = "share that the generator's average keeps in a step; 0: no average",
       .low = 0,
       .high = 1,
       .below_high = true,
       .field = Of([](C c, I) -> auto& { return c.step.ema; })},
      {.name = "train.seed",
       .help = "of first weights, noise and the order of the data",
       .low = 0,
       .high = 9223372036854774784.0,
       .field = Of([](C c, I) -> auto& { return c.seed; })},
      {.name = "train.dtype",
       .help = "what is computed in",
       .choices = {"f32", "f64"},
       .field = Of([](C c, I) -> auto& { return c.step.dtype; })},
      {.name = "train.threads",
       .help = "threads that compute; 0: one for each core, or a rank's part of them",
       .low = 0,
       .high = 4096,
       .field = Of([](C c, I) -> auto& { return c.threads; })},
      {.name = "train.kernels",
       .help = "reference: plain loops, slow, the truth that fast kernels are tested against",
       .choices = {"fast", "reference"},
       .field = Of([](C c, I) -> auto& { return c.plan.kernels; })},
      {.name = "train.winograd",
       .help = "allow Winograd forms of convolutions, which round more",
       .field = Of([](C c, I) -> auto& { return c.plan.winograd; })},
      {.name = "train.fuse", .help = "join ops into fewer", .field = Of([](C c, I) -> auto& { return c.plan.fuse; })},
  };
  std::vector<RunKeyEntry> memory = {
      {.name = "memory.device",
       .help = "what a step may take of the device: a size (\"64MiB\") or a share of what it takes with nothing offloaded (\"1/4\"); of "
               "several ranks one each (\"64MiB,128MiB,none\"); empty: no limit",
       .field = Of([](C c, I) -> auto& { return c.memory.device; })},
      {.name = "memory.offload",
       .help = "where values wait that do not fit: \"none\", or several of \"peer\" (what other ranks' plans leave of their devices), \"host\", "
               "\"remote\" (host memory of a rank on another node) and \"file\", joined with \"+\"",
       .field = Of([](C c, I) -> auto& { return c.memory.offload; })},
      {.name = "memory.host",
       .help = "most bytes that wait in a rank's host memory, those of other ranks included (\"4GiB\"); empty: no limit",
       .field = Of([](C c, I) -> auto& { return c.memory.host; })},
      {.name = "memory.file",
       .help = "most bytes that wait in the file; empty: no limit",
       .field = Of([](C c, I) -> auto& { return c.memory.file; })},
      {.name = "memory.directory",
       .help = "a folder on a fast disk, for the file",
       .is_path = true,
       .field = Of([](C c, I) -> auto& { return c.memory.directory; })},
      {.name = "memory.recompute",
       .help = "ops may run again instead of what they made being kept",
       .field = Of([](C c, I) -> auto& { return c.memory.recompute; })},
      {.name = "memory.encode",
       .help = "keep signs where that is all that is read again, and leave zeros out of slow copies: lossless",
       .field = Of([](C c, I) -> auto& { return c.memory.encode; })},
      {.name = "memory.stash",
       .help = "what activations are rounded to while they wait in a tier; bf16 halves copies and changes results",
       .choices = {"f32", "bf16"},
       .field = Of([](C c, I) -> auto& { return c.memory.stash; })},
      {.name = "memory.checksums",
       .help = "compare what tiers give back with what they were given",
       .field = Of([](C c, I) -> auto& { return c.memory.checksums; })},
      {.name = "memory.plan",
       .help = "a plan file to carry out instead of planning, or a folder with one for each rank; empty: plan",
       .is_path = true,
       .field = Of([](C c, I) -> auto& { return c.plan_file; })},
      {.name = "memory.machine",
       .help = "a machine file to plan for; empty: that of GANTRY_MACHINE, else this machine's calibration where there is one",
       .is_path = true,
       .field = Of([](C c, I) -> auto& { return c.memory.machine; })},
      {.name = "memory.link",
       .help = "holds copies to the speed of a link (\"out=2GB/s,in=2GB/s,latency=10us,jitter=1ms\"); empty: as fast as they go",
       .field = Of([](C c, I) -> auto& { return c.memory.link; })},
  };
  keys.insert(keys.end(), memory.begin(), memory.end());
  keys.push_back({.name = "parallel.split",
                  .help = "how several ranks share out the step: \"batch\" (samples), \"space\" (rows or frames), \"channel\" (channels of layers), "
                          "\"shard\" (weights, moments and averages are held once), \"roles\" (networks), \"pipeline\" (layers), joined with \"+\"; \"auto\": as is predicted to be fastest",
                  .field = Of([](C c, I) -> auto& { return c.parallel; })});
  keys.push_back({.name = "parallel.overlap",
                  .help = "whether exchanges of gradients and gathers of weights run beside compute; \"across\": the last network's beside the next "
                          "step, too; \"off\": each is waited for where it begins. The same bits",
                  .choices = {"on", "across", "off"},
                  .field = Of([](C c, I) -> auto& { return c.exchanges.overlap; })});
  keys.push_back({.name = "parallel.bucket",
                  .help = "small gradients of one network go in one exchange until they have so many bytes (\"1MiB\"); \"0\": each alone",
                  .field = Of([](C c, I) -> auto& { return c.exchanges.bucket; })});
  keys.push_back({.name = "parallel.link",
                  .help = "holds exchanges to the speed of a link (\"1GB/s,50us\"); empty: as fast as they go",
                  .field = Of([](C c, I) -> auto& { return c.exchanges.link; })});
  AddTraining(
      "generator.optimizer", [](C c, I) -> auto& { return c.generator; }, keys);
  AddTraining(
      "discriminator.optimizer", [](C c, I) -> auto& { return c.discriminator; }, keys);
  keys.push_back({.name = "generators[].name",
                  .help = "begins the names of its weights; empty: generator, generator2, ...",
                  .field = Of([](C c, I i) -> auto& { return c.generators[i].name; })});
  keys.push_back({.name = "generators[].file",
                  .help = "an ONNX file; empty: the family's generator",
                  .is_path = true,
                  .field = Of([](C c, I i) -> auto& { return c.generators[i].file; })});
  keys.push_back({.name = "generators[].family",
                  .help = "where there is no file; empty: model.family",
                  .choices = FamilyNames(),
                  .field = Of([](C c, I i) -> auto& { return c.generators[i].family; })});
  AddTraining(
      "generators[].optimizer", [](C c, I i) -> auto& { return c.generators[i].training; }, keys);
  keys.push_back({.name = "discriminators[].name",
                  .help = "begins the names of its weights; empty: discriminator, discriminator2, ...",
                  .field = Of([](C c, I i) -> auto& { return c.discriminators[i].name; })});
  keys.push_back({.name = "discriminators[].file",
                  .help = "an ONNX file; empty: the family's discriminator",
                  .is_path = true,
                  .field = Of([](C c, I i) -> auto& { return c.discriminators[i].file; })});
  keys.push_back({.name = "discriminators[].family",
                  .help = "where there is no file; empty: model.family",
                  .choices = FamilyNames(),
                  .field = Of([](C c, I i) -> auto& { return c.discriminators[i].family; })});
  AddTraining(
      "discriminators[].optimizer", [](C c, I i) -> auto& { return c.discriminators[i].training; }, keys);
  std::vector<RunKeyEntry> output = {
      {.name = "output.directory",
       .help = "where everything goes; empty: runs/ and the run file's name, in the working directory",
       .is_path = true,
       .field = Of([](C c, I) -> auto& { return c.output.directory; })},
      {.name = "output.log_every",
       .help = "steps between two lines of metrics.jsonl",
       .low = 1,
       .high = kMost,
       .field = Of([](C c, I) -> auto& { return c.output.log_every; })},
      {.name = "output.sample_every",
       .help = "steps between two sheets of samples; 0: only at the end",
       .low = 0,
       .high = kMost,
       .field = Of([](C c, I) -> auto& { return c.output.sample_every; })},
      {.name = "output.sample_count",
       .help = "samples on a sheet",
       .low = 1,
       .high = 65536,
       .field = Of([](C c, I) -> auto& { return c.output.sample_count; })},
      {.name = "output.checkpoint_every",
       .help = "steps between two checkpoints; 0: only at the end",
       .low = 0,
       .high = kMost,
       .field = Of([](C c, I) -> auto& { return c.output.checkpoint_every; })},
      {.name = "output.keep_checkpoints",
       .help = "how many of the newest checkpoints stay; 0: all",
       .low = 0,
       .high = 1048576,
       .field = Of([](C c, I) -> auto& { return c.output.keep_checkpoints; })},
      {.name = "output.checkpoint_memory",
       .help = "steps between two copies of the states in memory that outlives a lost rank (gantry run --restarts); 0: none",
       .low = 0,
       .high = kMost,
       .field = Of([](C c, I) -> auto& { return c.output.checkpoint_memory; })},
  };
  std::move(output.begin(), output.end(), std::back_inserter(keys));
  return keys;
}

// TOML basic string.
std::string Quoted(std::string_view text) {
  std::string result = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') {
      result += {'\\', c};
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      result += absl::StrFormat("\\u%04X", static_cast<unsigned char>(c));
    } else {
      result += c;
    }
  }
  return result + "\"";
}

std::string NumberText(double value) {
  char buffer[32];
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), value).ptr;
  return std::string(buffer, end);
}

// The whole text as a number.
template <typename T>
bool Parse(std::string_view text, T& to) {
  if (text.starts_with('+')) text.remove_prefix(1);
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), to);
  return error == std::errc() && end == text.data() + text.size() && !text.empty();
}

bool IsIn(const RunKeyEntry& key, double value) {
  return value >= key.low && (key.below_high ? value < key.high : value <= key.high);
}

RunField FieldOf(const RunKeyEntry& key) {
  static RunConfig* const sample = [] {
    auto* config = new RunConfig();
    config->generators.resize(1);
    config->discriminators.resize(1);
    return config;
  }();
  return key.field(*sample, 0);
}

// What an integer or number key is given, as double; nullopt where it is none. Whole numbers may be written 1e6.
std::optional<double> AsNumber(const RunValue& given) {
  if (const auto* integer = std::get_if<int64_t>(&given.value)) return static_cast<double>(*integer);
  if (const auto* number = std::get_if<double>(&given.value)) return *number;
  double value = 0;
  if (const auto* text = std::get_if<std::string>(&given.value);
      text != nullptr && given.is_text_form && Parse(*text, value))
    return value;
  return std::nullopt;
}

}  // namespace

const std::vector<RunKeyEntry>& RunKeyTable() {
  static const auto* const table = new std::vector<RunKeyEntry>(MakeTable());
  return *table;
}

const std::vector<std::string>& RunSections() {
  static const auto* const sections = [] {
    auto* names = new std::vector<std::string>();
    for (const RunKeyEntry& key : RunKeyTable()) {
      for (size_t dot = key.name.find('.'); dot != std::string::npos; dot = key.name.find('.', dot + 1)) {
        const std::string section = key.name.substr(0, dot);
        if (std::find(names->begin(), names->end(), section) == names->end()) names->push_back(section);
      }
    }
    return names;
  }();
  return *sections;
}

const RunKeyEntry* FindRunKey(std::string_view name) {
  for (const RunKeyEntry& key : RunKeyTable()) {
    if (key.name == name) return &key;
  }
  return nullptr;
}

std::string SuggestRunKey(std::string_view name) {
  const auto Meant = [](std::string_view key) { return absl::StrFormat("; did you mean '%s'?", key); };
  const size_t dot = name.rfind('.');
  const std::string_view last = dot == std::string_view::npos ? name : name.substr(dot + 1);
  const std::string_view section = dot == std::string_view::npos ? "" : name.substr(0, dot);
  std::vector<std::string> names, same_section;
  std::string elsewhere;
  for (const RunKeyEntry& key : RunKeyTable()) {
    names.push_back(key.name);
    const size_t key_dot = key.name.rfind('.');
    const std::string key_section = key.name.substr(0, key_dot), key_last = key.name.substr(key_dot + 1);
    if (key_section == section) same_section.push_back(key_last);
    if (key_last == last && elsewhere.empty()) elsewhere = key.name;
  }
  if (const std::string_view near = Nearest(last, same_section); !near.empty())
    return Meant(absl::StrCat(ToAbsl(section), ".", ToAbsl(near)));
  if (!elsewhere.empty()) return Meant(elsewhere);
  if (const std::string_view near = Nearest(name, names); !near.empty()) return Meant(near);
  if (!same_section.empty())
    return absl::StrFormat("; the keys of [%s] are %s", section, absl::StrJoin(same_section, ", "));
  return absl::StrCat("; the sections are ", absl::StrJoin(RunSections(), ", "));
}

std::string EnvironmentName(const RunKeyEntry& key) {
  return absl::StrCat("GANTRY_", absl::AsciiStrToUpper(absl::StrReplaceAll(key.name, {{".", "_"}})));
}

std::string ToToml(const RunValue& value) {
  if (const auto* integer = std::get_if<int64_t>(&value.value)) return absl::StrCat(*integer);
  if (const auto* number = std::get_if<double>(&value.value)) return NumberText(*number);
  if (const auto* boolean = std::get_if<bool>(&value.value)) return *boolean ? "true" : "false";
  return Quoted(std::get<std::string>(value.value));
}

std::string TypeName(const RunKeyEntry& key) {
  const RunField field = FieldOf(key);
  if (std::holds_alternative<bool*>(field)) return "boolean";
  if (std::holds_alternative<double*>(field)) return "number";
  if (std::holds_alternative<std::string*>(field) || std::holds_alternative<uint8_t*>(field)) return "text";
  return "integer";
}

std::string AllowedText(const RunKeyEntry& key) {
  if (!key.choices.empty()) {
    std::vector<std::string> quoted;
    for (const std::string& choice : key.choices) quoted.push_back(Quoted(choice));
    const std::string last = quoted.back();
    quoted.pop_back();
    return quoted.empty() ? last : absl::StrCat(absl::StrJoin(quoted, ", "), " or ", last);
  }
  if (key.low == key.high || key.low == -kLargest) return "";
  const auto Bound = [](double value) {
    return value < 9.3e18 && value == std::floor(value) ? absl::StrCat(static_cast<int64_t>(value)) : NumberText(value);
  };
  if (key.high == kLargest || key.high == kMost) return absl::StrCat("at least ", Bound(key.low));
  return absl::StrCat(Bound(key.low), key.below_high ? " to below " : " to ", Bound(key.high));
}

absl::Status SetRunKey(const RunKeyEntry& key, size_t index, const RunValue& given, std::string_view origin,
                       RunConfig& config) {
  const auto Wrong = [&](std::string_view why) {
    const std::string allowed = AllowedText(key);
    const std::string type = TypeName(key);
    return absl::InvalidArgumentError(absl::StrFormat("%s: %s = %s %s; expected %s %s%s", origin, key.name,
                                                      ToToml(given), why, type == "integer" ? "an" : "a",
                                                      type == "integer" ? "integer (a whole number)"
                                                      : type == "text" && !key.choices.empty() ? "text,"
                                                                                               : type,
                                                      allowed.empty()       ? ""
                                                      : key.choices.empty() ? absl::StrCat(", ", allowed)
                                                                            : absl::StrCat(" one of ", allowed)));
  };
  const RunField field = key.field(config, index);
  if (bool* const* boolean = std::get_if<bool*>(&field)) {
    const auto* text = std::get_if<std::string>(&given.value);
    if (const bool* value = std::get_if<bool>(&given.value)) {
      **boolean = *value;
    } else if (given.is_text_form && (*text == "true" || *text == "1")) {
      **boolean = true;
    } else if (given.is_text_form && (*text == "false" || *text == "0")) {
      **boolean = false;
    } else {
      return Wrong("is not true or false");
    }
    return absl::OkStatus();
  }
  if (std::holds_alternative<std::string*>(field) || std::holds_alternative<uint8_t*>(field)) {
    const auto* text = std::get_if<std::string>(&given.value);
    if (text == nullptr) return Wrong("is not text");
    const auto choice = std::find(key.choices.begin(), key.choices.end(), *text);
    if (!key.choices.empty() && choice == key.choices.end()) {
      const std::string_view near = Nearest(*text, key.choices);
      return Wrong(near.empty() ? "is not known" : absl::StrFormat("is not known, did you mean \"%s\"", near));
    }
    if (text->find('\0') != std::string::npos) return Wrong("holds a zero byte");
    if (std::string* const* member = std::get_if<std::string*>(&field)) {
      **member = *text;
    } else {
      *std::get<uint8_t*>(field) = static_cast<uint8_t>(choice - key.choices.begin());
    }
    return absl::OkStatus();
  }
  const std::optional<double> number = AsNumber(given);
  if (!number.has_value()) return Wrong("is not a number");
  if (!IsIn(key, *number)) return Wrong("is out of range");  // NaN too
  if (double* const* member = std::get_if<double*>(&field)) {
    **member = *number;
    return absl::OkStatus();
  }
  if (*number != std::floor(*number)) return Wrong("is not whole");
  // Integers beyond 2^53 keep all their digits.
  int64_t integer = 0;
  if (const auto* exact = std::get_if<int64_t>(&given.value)) {
    integer = *exact;
  } else if (const auto* text = std::get_if<std::string>(&given.value); text == nullptr || !Parse(*text, integer)) {
    integer = static_cast<int64_t>(*number);
  }
  if (int64_t* const* member = std::get_if<int64_t*>(&field)) **member = integer;
  if (uint64_t* const* member = std::get_if<uint64_t*>(&field)) **member = static_cast<uint64_t>(integer);
  if (int* const* member = std::get_if<int*>(&field)) **member = static_cast<int>(integer);
  return absl::OkStatus();
}

std::string GetRunKey(const RunKeyEntry& key, size_t index, const RunConfig& config) {
  const RunField field = key.field(const_cast<RunConfig&>(config), index);  // only read
  if (uint8_t* const* member = std::get_if<uint8_t*>(&field)) return Quoted(key.choices[**member]);
  if (std::string* const* member = std::get_if<std::string*>(&field)) return Quoted(**member);
  if (bool* const* member = std::get_if<bool*>(&field)) return **member ? "true" : "false";
  if (double* const* member = std::get_if<double*>(&field)) return NumberText(**member);
  if (int64_t* const* member = std::get_if<int64_t*>(&field)) return absl::StrCat(**member);
  if (uint64_t* const* member = std::get_if<uint64_t*>(&field)) return absl::StrCat(**member);
  return absl::StrCat(*std::get<int*>(field));
}

}  // namespace gantry
