// Times training steps of a built-in DCGAN, alone or for step_compare: see tools/bench/peers/README.md for the protocol.
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <map>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "memory/device.h"
#include "ops/functional.h"
#include "ops/philox.h"
#include "runtime/data/npy.h"
#include "runtime/gan/families.h"
#include "runtime/gan/gan_session.h"
#include "runtime/graph/onnx.h"
#include "runtime/graph/rewrite.h"
#include "runtime/plan/memory_options.h"

namespace gantry {
namespace {

struct Options {
  std::string model = "dcgan32";
  std::string data;  // a reference case to check against
  int64_t batch = 64;
  int threads = 1;
  int iterations = 10;
  bool serve = false, json = false, profile = false, winograd = true;
  int64_t size = 0, width = 64;  // size: of images; 0: as the model's name says
  double flops_rate = 0;  // that the planner assumes of a thread; 0: its own
  MemoryOptions memory;
};

struct Bench {
  std::unique_ptr<Device> device;
  std::unique_ptr<GanSession> session;
  std::vector<float> real;

  absl::StatusOr<double> Step(std::span<const float> noise = {}) {
    const auto start = std::chrono::steady_clock::now();
    GANTRY_RETURN_IF_ERROR(session->Step({.real = real, .noise = noise}));
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
};

absl::StatusOr<Bench> Make(const Options& options, Model generator, Model discriminator) {
  Bench bench;
  bench.device = MakeCpuDevice({.thread_count = options.threads, .shared = false});
  std::vector<GanRole> generators, discriminators;
  generators.push_back({"generator", std::move(generator), {}});
  discriminators.push_back({"discriminator", std::move(discriminator), {}});
  GanSessionOptions session;
  session.step.health = false;
  session.plan.thread_count = options.threads;
  session.plan.winograd = options.winograd;
  GANTRY_RETURN_IF_ERROR(SetMemory(options.memory, session.plan));
  if (options.flops_rate > 0) session.plan.rates.flops_per_second = options.flops_rate;
  GANTRY_ASSIGN_OR_RETURN(bench.session, GanSession::Create(session, std::move(generators), std::move(discriminators), *bench.device));
  bench.real.resize(bench.session->real_elements());
  for (size_t i = 0; i < bench.real.size(); ++i) bench.real[i] = std::sin(0.37f * static_cast<float>(i));
  return bench;
}

absl::StatusOr<Bench> MakeTimed(const Options& options) {
  const bool small = options.model == "dcgan32";
  if (!small && options.model != "dcgan64") {
    return absl::InvalidArgumentError("unknown model '" + options.model + "'; known are dcgan32, dcgan64");
  }
  FamilyOptions family;
  family.image_size = options.size > 0 ? options.size : small ? 32 : 64;
  family.channels = small ? 1 : 3;
  family.width = options.width;
  family.latent_size = 100;
  family.batch = options.batch;
  GANTRY_ASSIGN_OR_RETURN(Family models, BuildFamily("dcgan", family));
  return Make(options, std::move(models.generator), std::move(models.discriminator));
}

// Losses of the first steps of a reference case, [[D, G], ...].
absl::StatusOr<nlohmann::json> CaseLosses(const Options& options) {
  GANTRY_ASSIGN_OR_RETURN(const HostArray real, ReadNpy(options.data + "/real.npy"));
  GANTRY_ASSIGN_OR_RETURN(const HostArray noise, ReadNpy(options.data + "/noise.npy"));
  const OnnxOptions onnx{.batch = real.shape()[1]};
  GANTRY_ASSIGN_OR_RETURN(Model generator, ImportOnnxFile(options.data + "/generator.onnx", onnx));
  GANTRY_ASSIGN_OR_RETURN(Model discriminator, ImportOnnxFile(options.data + "/discriminator.onnx", onnx));
  GANTRY_ASSIGN_OR_RETURN(Bench bench, Make(options, std::move(generator), std::move(discriminator)));
  const auto Floats = [](const HostArray& array) {
    std::vector<float> values(array.element_count());
    ConvertToF32(array.type(), array.bytes().data(), array.element_count(), values.data());
    return values;
  };
  const std::vector<float> reals = Floats(real), noises = Floats(noise);
  nlohmann::json losses = nlohmann::json::array();
  for (int64_t step = 0; step < std::min<int64_t>(3, real.shape()[0]); ++step) {
    const int64_t reals_each = bench.session->real_elements(), noise_each = bench.session->noise_elements();
    bench.real.assign(reals.begin() + step * reals_each, reals.begin() + (step + 1) * reals_each);
    GANTRY_RETURN_IF_ERROR(bench.Step(std::span(noises).subspan(step * noise_each, noise_each)).status());
    losses.push_back({*bench.session->Scalar("discriminator_loss"), *bench.session->Scalar("generator_loss")});
  }
  return losses;
}

// Bytes of states, wherever they are, and of what a step makes or is given at its fullest moment on the device.
nlohmann::json MemoryOf(const GanSession& session) {
  const Plan& plan = session.plan();
  int64_t states = 0;
  for (const State& state : plan.program.states()) states += plan.program.TypeOf(state.first).size_bytes();
  std::vector<int64_t> change(plan.schedule.size() + 2, 0);
  for (const PlannedBuffer& buffer : plan.buffers) {
    if (buffer.tier != kDeviceTier || buffer.persistent) continue;
    // States that are here for their uses only are states all the same.
    if (plan.program.FindState(buffer.name) != nullptr) continue;
    change[buffer.lower] += buffer.bytes;
    change[buffer.upper] -= buffer.bytes;
  }
  int64_t live = 0, peak = 0;
  for (const int64_t bytes : change) peak = std::max(peak, live += bytes);
  nlohmann::json tiers = nlohmann::json::array();
  for (const PlannedTier& tier : plan.tiers) {
    tiers.push_back({{"name", tier.options.name}, {"bytes", tier.bytes}, {"out_bytes", tier.out_bytes}, {"in_bytes", tier.in_bytes}});
  }
  const PlannedResidency& residency = plan.residency;
  return {{"arena_bytes", plan.arena_bytes}, {"footprint_bytes", residency.footprint_bytes}, {"state_bytes", states},
          {"activation_peak_bytes", peak}, {"tiers", tiers}, {"stashes", residency.stashes}, {"fetches", residency.fetches},
          {"repeats", residency.repeats}, {"masks", residency.masks}, {"zero_stashes", residency.zero_stashes},
          {"predicted_s", residency.seconds}, {"predicted_unlimited_s", residency.unlimited_seconds},
          {"predicted_wait_s", residency.wait_seconds}, {"predicted_repeat_s", residency.recompute_seconds}};
}

void PrintProfile(Executor& executor, int steps) {
  std::map<std::string, std::pair<double, int>> rows;
  const Program& program = executor.program();
  double total = 0;
  size_t index = 0;
  for (const PlannedOp& step : executor.plan().schedule) {
    const Op& op = program.ops()[step.op];
    if (op.definition->is_view) continue;
    std::string name = absl::StrFormat("%s (%s) %s", op.definition->name, step.kernel == nullptr ? "copy" : step.kernel->implementation(),
                                       program.TypeOf(op.outputs[0]).ToString());
    auto& row = rows[name];
    row.first += executor.op_seconds()[index] / steps;
    ++row.second;
    total += executor.op_seconds()[index++] / steps;
  }
  std::vector<std::pair<double, std::string>> sorted;
  for (const auto& [name, row] : rows) sorted.emplace_back(row.first, absl::StrFormat("%2dx %s", row.second, name));
  std::sort(sorted.rbegin(), sorted.rend());
  for (const auto& [seconds, name] : sorted) std::printf("%9.3f ms %5.1f %%  %s\n", seconds * 1e3, 100 * seconds / total, name.c_str());
}

// Multiplications and additions of the step program, convolutions counted as they are defined: a Winograd form does fewer.
absl::StatusOr<double> StepFlops(const GanSession& session) {
  GANTRY_ASSIGN_OR_RETURN(const Program built, BuildGanStep(session.options().step, session.generators(), session.discriminators()));
  GANTRY_ASSIGN_OR_RETURN(const Program program, Simplify(built));
  double flops = 0;
  for (const Op& op : program.ops()) {
    if (op.definition->cost == nullptr) continue;
    std::vector<TensorType> inputs, outputs;
    for (ValueId input : op.inputs) inputs.push_back(program.TypeOf(input));
    for (ValueId output : op.outputs) outputs.push_back(program.TypeOf(output));
    flops += op.definition->cost(inputs, outputs, op.attributes).flops;
  }
  return flops;
}

// What the machine reaches in a large matrix product, the library's, best of ten.
absl::StatusOr<double> MatrixPeak(const Options& options) {
  constexpr int64_t kSize = 1536;
  Program program;
  const ValueId a = program.AddInput("a", {DataType::kF32, Shape{kSize, kSize}});
  const ValueId b = program.AddInput("b", {DataType::kF32, Shape{kSize, kSize}});
  program.AddOutput("c", ops::Matmul(program, a, b));
  GANTRY_ASSIGN_OR_RETURN(Plan plan, MakePlan(program, {.thread_count = options.threads}));
  const std::unique_ptr<Device> device = MakeCpuDevice({.thread_count = options.threads});
  GANTRY_ASSIGN_OR_RETURN(const std::unique_ptr<Executor> executor, Executor::Create(std::move(plan), *device));
  for (const ValueId input : {a, b}) {
    const std::span<std::byte> data = executor->Data(input);
    std::fill_n(reinterpret_cast<float*>(data.data()), data.size() / sizeof(float), 0.5f);
  }
  double best = 0;
  for (int i = 0; i < 10; ++i) {
    const auto start = std::chrono::steady_clock::now();
    GANTRY_RETURN_IF_ERROR(executor->Run());
    best = std::max(best, 2.0 * kSize * kSize * kSize / std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

absl::Status Serve(const Options& options) {
  nlohmann::json ready = {{"ready", true}};
  if (!options.data.empty()) {
    GANTRY_ASSIGN_OR_RETURN(ready["losses"], CaseLosses(options));
  }
  GANTRY_ASSIGN_OR_RETURN(Bench bench, MakeTimed(options));
  nlohmann::json trace = nlohmann::json::array();  // to the bit, so that two budgets can be compared
  for (int i = 0; i < 2; ++i) {
    GANTRY_RETURN_IF_ERROR(bench.Step().status());
    for (const std::string& name : bench.session->ScalarNames()) trace.push_back(absl::StrFormat("%a", *bench.session->Scalar(name)));
  }
  ready["trace"] = trace;
  ready["memory"] = MemoryOf(*bench.session);
  GANTRY_ASSIGN_OR_RETURN(ready["flops"], StepFlops(*bench.session));
  GANTRY_ASSIGN_OR_RETURN(ready["matrix_peak_flops_per_s"], MatrixPeak(options));
  std::cout << ready.dump() << std::endl;
  std::string command;
  int count = 0;
  while (std::cin >> command >> count && command == "run") {
    nlohmann::json samples = nlohmann::json::array();
    for (int i = 0; i < count; ++i) {
      GANTRY_ASSIGN_OR_RETURN(const double seconds, bench.Step());
      samples.push_back(seconds);
    }
    const CopyLanes* const copies = bench.session->executor().copies();
    std::cout << nlohmann::json{{"samples_s", samples}, {"waited_s", copies == nullptr ? 0.0 : copies->waited_seconds()}}.dump() << std::endl;
  }
  return absl::OkStatus();
}

absl::Status Measure(const Options& options) {
  GANTRY_ASSIGN_OR_RETURN(Bench bench, MakeTimed(options));
  GANTRY_RETURN_IF_ERROR(bench.Step().status());
  if (options.profile) bench.session->executor().SetProfiling(true);
  std::vector<double> samples;
  for (int i = 0; i < options.iterations; ++i) {
    GANTRY_ASSIGN_OR_RETURN(const double seconds, bench.Step());
    samples.push_back(seconds);
  }
  if (options.profile) PrintProfile(bench.session->executor(), options.iterations);
  std::vector<double> sorted = samples;
  std::sort(sorted.begin(), sorted.end());
  const double median = sorted[sorted.size() / 2];
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  const double images = static_cast<double>(options.batch) / median;
  const Plan& plan = bench.session->plan();
  GANTRY_ASSIGN_OR_RETURN(const double flops, StepFlops(*bench.session));
  GANTRY_ASSIGN_OR_RETURN(const double peak, MatrixPeak(options));
  if (options.json) {
    std::cout << nlohmann::json{{"name", "step"}, {"model", options.model}, {"threads", options.threads}, {"samples_s", samples},
                                {"images_per_s", images}, {"arena_bytes", plan.arena_bytes},
                                {"arena_lower_bound_bytes", plan.lower_bound_bytes},
                                {"peak_rss_bytes", usage.ru_maxrss * 1024},
                                {"memory", MemoryOf(*bench.session)},
                                {"flops", flops}, {"matrix_peak_flops_per_s", peak}, {"share_of_matrix_peak", flops / median / peak}}.dump()
              << std::endl;
  } else {
    std::printf("%s, %d threads: median %.4f s, best %.4f s, %.1f images/s; arena %.1f MB (%.3f x lower bound), peak RSS %.1f MB\n",
                options.model.c_str(), options.threads, median, sorted[0], images, plan.arena_bytes / 1e6,
                static_cast<double>(plan.arena_bytes) / static_cast<double>(plan.lower_bound_bytes), usage.ru_maxrss / 1e3);
    std::printf("%.1f GFLOP a step, %.1f GFLOP/s: %.0f %% of the %.1f GFLOP/s that a matrix product reaches here\n", flops / 1e9,
                flops / median / 1e9, 100 * flops / median / peak, peak / 1e9);
  }
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    const auto Value = [&]() -> std::string { return i + 1 < argc ? argv[++i] : ""; };
    if (flag == "--model") options.model = Value();
    else if (flag == "--data") options.data = Value();
    else if (flag == "--batch") options.batch = std::atoll(Value().c_str());
    else if (flag == "--threads") options.threads = std::atoi(Value().c_str());
    else if (flag == "--iterations") options.iterations = std::atoi(Value().c_str());
    else if (flag == "--serve") options.serve = true;
    else if (flag == "--json") options.json = true;
    else if (flag == "--profile") options.profile = true;
    else if (flag == "--no-winograd") options.winograd = false;
    else if (flag == "--size") options.size = std::atoll(Value().c_str());
    else if (flag == "--width") options.width = std::atoll(Value().c_str());
    else if (flag == "--device-memory") options.memory.device = Value();
    else if (flag == "--offload") options.memory.offload = Value();
    else if (flag == "--link") options.memory.link = Value();
    else if (flag == "--stash-dtype") options.memory.stash = Value();
    else if (flag == "--flops-rate") options.flops_rate = std::atof(Value().c_str());
    else if (flag == "--no-recompute") options.memory.recompute = false;
    else if (flag == "--no-encode") options.memory.encode = false;
    else {
      std::fprintf(stderr, "step_bench [--model dcgan32|dcgan64] [--threads N] [--batch N] [--iterations N] [--data CASE] "
                           "[--no-winograd] [--profile] [--json] [--serve]\n"
                           "  [--size N] [--width N] [--device-memory SIZE] [--offload none|host] [--link SPEED] [--no-recompute] "
                           "[--no-encode] [--stash-dtype f32|bf16] [--flops-rate RATE]\n");
      return 64;
    }
  }
  if (options.batch < 1 || options.threads < 1 || options.iterations < 1) {
    std::fprintf(stderr, "step_bench: --batch, --threads and --iterations must be at least 1\n");
    return 64;
  }
  const absl::Status status = options.serve ? Serve(options) : Measure(options);
  if (status.ok()) return 0;
  std::fprintf(stderr, "step_bench: %s\n", std::string(status.message()).c_str());
  return 70;
}

}  // namespace
}  // namespace gantry

int main(int argc, char** argv) { return gantry::Main(argc, argv); }
