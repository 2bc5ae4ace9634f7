// kernel_bench [--threads N] [--rounds N] [--batch N] [--channels N] [--size N] [--filter TEXT] [--json]: ops between
// convolutions on their fast kernels beside the reference kernels and, where it has the op, oneDNN, all in f32. Images
// are [batch, channels, size, size] on their large side. Results are compared before anything is timed; candidates take
// turns, and the fastest of the rounds counts. `ratio` is the best other candidate's time over the fast kernel's;
// `reference_ratio` the reference's.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "ops/cpu/panel/panel_layout.h"
#if defined(GANTRY_HAVE_ONEDNN)
#include "ops/cpu/onednn.h"
#endif
#include "ops/kernel.h"

namespace gantry {
namespace {

struct Options {
  int threads = 1, rounds = 7;
  int64_t batch = 16, channels = 64, size = 32;
  std::string filter;
  bool json = false;
};

struct Case {
  std::string name;
  std::string_view op;
  Attributes attributes;
  std::vector<Shape> inputs;
  bool panel = false;
};

using Ints = std::vector<int64_t>;

std::vector<Case> Cases(const Options& o) {
  const Shape large{o.batch, o.channels, o.size, o.size}, small{o.batch, o.channels, o.size / 2, o.size / 2};
  const Ints large_spatial = {o.size, o.size}, small_spatial = {o.size / 2, o.size / 2};
  std::vector<Case> cases;
  const Attributes pool = {{"kernel", Ints{2, 2}}, {"strides", Ints{2, 2}}};
  Attributes pool_back = pool;
  pool_back.Set("output_spatial", large_spatial);
  for (const bool panel : {false, true}) {
    const std::string layout = panel ? ", panel" : "";
    for (const char* mode : {"nearest", "linear"}) {
      const Attributes up = {{"mode", std::string(mode)}, {"output_spatial", large_spatial}};
      const Attributes back = {{"mode", std::string(mode)}, {"output_spatial", small_spatial}};
      cases.push_back({std::string("resize ") + mode + layout, "resize", up, {small}, panel});
      cases.push_back({std::string("resize_grad ") + mode + layout, "resize_grad", back, {large}, panel});
    }
    cases.push_back({"avg_pool" + layout, "avg_pool", pool, {large}, panel});
    cases.push_back({"avg_pool_grad" + layout, "avg_pool_grad", pool_back, {small}, panel});
  }
  cases.push_back({"max_pool", "max_pool", pool, {large}});
  cases.push_back({"max_pool_grad", "max_pool_grad", pool, {small, large}});
  cases.push_back({"max_pool_select", "max_pool_select", pool, {large, large}});
  const int64_t rows = o.batch * o.channels;
  cases.push_back({"softmax rows", "softmax", {{"axis", int64_t{1}}}, {Shape{rows, o.size * o.size}}});
  cases.push_back({"softmax columns", "softmax", {{"axis", int64_t{1}}}, {large}});
  return cases;
}

// One way to compute a case. Memory is this candidate's own.
struct Candidate {
  std::string name;
  std::unique_ptr<Kernel> kernel;
  std::vector<std::vector<float>> inputs;
  std::vector<float> output;
  std::vector<double> scratch;
  TensorType type;  // of the output
  double best_s = 1e30;

  void Run() {
    std::vector<const void*> in;
    for (const auto& input : inputs) in.push_back(input.data());
    void* const out[] = {output.data()};
    const absl::Status status = kernel->Run({.inputs = in, .outputs = out, .scratch = scratch.data()});
    if (status.ok()) return;
    std::fprintf(stderr, "%s: %s\n", name.c_str(), std::string(status.message()).c_str());
    std::exit(1);
  }
  std::vector<float> Plain() const {
    if (type.layout == TensorLayout::kPlain) return output;
    const Shape& s = type.shape;
    std::vector<float> plain(s.element_count());
    cpu::PanelToPlain(output.data(), s[0], s[1], s[2], s[3], plain.data(), 1);
    return plain;
  }
};

using Maker = absl::StatusOr<std::unique_ptr<Kernel>> (*)(const KernelRequest&);

// A candidate without a kernel where `make` has none.
Candidate Make(const Case& c, const std::string& name, Maker make, bool panel, int threads) {
  Candidate candidate{.name = name};
  const TensorLayout layout = panel ? TensorLayout::kPanel : TensorLayout::kPlain;
  std::vector<TensorType> types;
  for (const Shape& shape : c.inputs) types.push_back({DataType::kF32, shape});
  const OpDefinition& op = *FindOp(c.op);
  std::vector<TensorType> outputs = op.infer(types, c.attributes).value();
  for (TensorType& type : types) type.layout = layout;
  outputs[0].layout = layout;
  auto kernel = make({op, c.attributes, types, outputs, threads});
  if (!kernel.ok() || *kernel == nullptr) return candidate;
  candidate.kernel = *std::move(kernel);
  candidate.type = outputs[0];
  std::mt19937_64 random(1);
  std::normal_distribution<float> normal;
  for (const Shape& s : c.inputs) {
    std::vector<float> plain(s.element_count());
    for (float& value : plain) value = normal(random);
    if (panel) {
      std::vector<float> packed(cpu::PanelFloats(s[0], s[1], s[2], s[3]));
      cpu::PlainToPanel(plain.data(), s[0], s[1], s[2], s[3], packed.data(), 1);
      plain = std::move(packed);
    }
    candidate.inputs.push_back(std::move(plain));
  }
  candidate.output.resize(outputs[0].size_bytes() / sizeof(float));
  candidate.scratch.resize(candidate.kernel->scratch_bytes() / sizeof(double) + 1);
  return candidate;
}

double Difference(const std::vector<float>& a, const std::vector<float>& b) {
  double error = 0, size = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    error += (1.0 * a[i] - b[i]) * (1.0 * a[i] - b[i]);
    size += 1.0 * b[i] * b[i];
  }
  return a.size() == b.size() ? std::sqrt(error / size) : 1.0;
}

// Runs until a hundredth of a second has passed; seconds a run.
double Time(Candidate& candidate) {
  using Clock = std::chrono::steady_clock;
  int runs = 0;
  const auto start = Clock::now();
  double seconds = 0;
  while (seconds < 0.01) {
    candidate.Run();
    ++runs;
    seconds = std::chrono::duration<double>(Clock::now() - start).count();
  }
  return seconds / runs;
}

int Bench(const Case& c, const Options& options) {
  std::vector<Candidate> candidates;
  const auto fast = [](const KernelRequest& request) { return CpuKernels().Make(request); };
  const auto reference = [](const KernelRequest& request) { return ReferenceKernels().Make(request); };
  candidates.push_back(Make(c, "fast", fast, c.panel, options.threads));
  candidates.push_back(Make(c, "reference", reference, false, options.threads));
#if defined(GANTRY_HAVE_ONEDNN)
  candidates.push_back(Make(c, "oneDNN", cpu::MakeOneDnnKernel, false, options.threads));
#endif
  std::erase_if(candidates, [](const Candidate& candidate) { return candidate.kernel == nullptr; });
  if (candidates.size() < 2) return std::fprintf(stderr, "%s: there is no fast kernel\n", c.name.c_str()), 1;
  for (Candidate& candidate : candidates) candidate.Run();
  for (const Candidate& candidate : candidates) {
    const double difference = Difference(candidate.Plain(), candidates[1].output);
    if (!(difference < 1e-5)) {
      std::fprintf(stderr, "%s, %s: wrong result, relative RMS difference %g\n", c.name.c_str(), candidate.name.c_str(),
                   difference);
      return 1;
    }
  }
  for (int round = 0; round < options.rounds; ++round) {
    for (Candidate& candidate : candidates) candidate.best_s = std::min(candidate.best_s, Time(candidate));
  }
  const Candidate& ours = candidates[0];
  double other = 1e30;
  for (size_t i = 1; i < candidates.size(); ++i) other = std::min(other, candidates[i].best_s);
  const double one_dnn = candidates.size() > 2 ? candidates[2].best_s : 0;
  const std::string kernel(ours.kernel->implementation());
  if (options.json) {
    std::printf(
        "{\"name\":\"%s\",\"kernel\":\"%s\",\"threads\":%d,\"fast_us\":%.3f,\"reference_us\":%.3f,\"onednn_us\":%s,"
        "\"ratio\":%.3f,\"reference_ratio\":%.3f}\n",
        c.name.c_str(), kernel.c_str(), options.threads, ours.best_s * 1e6, candidates[1].best_s * 1e6,
        one_dnn > 0 ? std::to_string(one_dnn * 1e6).c_str() : "null", other / ours.best_s,
        candidates[1].best_s / ours.best_s);
  } else {
    std::printf("%-28s %-18s %10.1f %12.1f %10s %8.2f %10.2f\n", c.name.c_str(), kernel.c_str(), ours.best_s * 1e6,
                candidates[1].best_s * 1e6, one_dnn > 0 ? std::to_string(std::lround(one_dnn * 1e6)).c_str() : "-",
                other / ours.best_s, candidates[1].best_s / ours.best_s);
  }
  return 0;
}

}  // namespace
}  // namespace gantry

int main(int argc, char** argv) {
  gantry::Options options;
  const char* const usage =
      "usage: kernel_bench [--threads N] [--rounds N] [--batch N] [--channels N] [--size N] [--filter TEXT] [--json]\n";
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--help") return std::fputs(usage, stdout), 0;
    if (word == "--json") {
      options.json = true;
      continue;
    }
    if (++i == argc) return std::fputs(usage, stderr), 64;
    const int64_t number = std::atoll(argv[i]);
    if (word == "--filter")
      options.filter = argv[i];
    else if (number < 1)
      return std::fputs(usage, stderr), 64;
    else if (word == "--threads")
      options.threads = static_cast<int>(number);
    else if (word == "--rounds")
      options.rounds = static_cast<int>(number);
    else if (word == "--batch")
      options.batch = number;
    else if (word == "--channels")
      options.channels = number;
    else if (word == "--size")
      options.size = number / 2 * 2;
    else
      return std::fputs(usage, stderr), 64;
  }
  if (!options.json) {
    std::printf("%-28s %-18s %10s %12s %10s %8s %10s\n", "case", "kernel", "fast us", "reference us", "oneDNN us",
                "ratio", "reference");
  }
  int status = 0;
  for (const gantry::Case& c : gantry::Cases(options)) {
    if (c.name.find(options.filter) != std::string::npos) status |= gantry::Bench(c, options);
  }
  return status;
}
