// gantry check: replays a reference case and says how far from it this program is.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>

#include <unistd.h>

#include <nlohmann/json.hpp>

#include "tools/cli/case_session.h"
#include "tools/cli/check_case.h"
#include "tools/cli/commands.h"
#include "tools/cli/run.h"
#include "tools/cli/sha256.h"

namespace gantry::cli {
namespace {

// docs/reference/check.md states these.
constexpr double kF64LogTolerance = 1e-9;      // absolute
constexpr double kF64WeightTolerance = 1e-7;   // of the tensor's largest value
constexpr double kF64NormTolerance = 1e-9;     // relative
constexpr double kF32LogTolerance = 1e-5;      // absolute, or kDriftFactor x PyTorch's own float32 drift
constexpr double kDriftFactor = 10.0;
constexpr double kF32NormTolerance = 1e-4;     // relative
// A first gradient below kZeroShare of its network's largest is zero in exact arithmetic (IsNoise); ours may be this share of it.
constexpr double kZeroShare = 1e-10;
constexpr double kF32NoiseShare = 1e-6, kF64NoiseShare = 1e-15;

struct Worst {
  double error = 0.0;
  std::string where;
  void Take(double other, const std::string& name) {
    if (!(other <= error) || where.empty()) {
      error = other;
      where = name;
    }
  }
};

struct Tensor {
  std::string name;
  int32_t dtype = GANTRY_F32;
  std::vector<double> values;
};

class Replay {
 public:
  Replay(const CheckOptions& options, const ReferenceCase& reference) : reference_(reference), f64_(options.dtype == "f64") {
    gantry_gan_config config = reference.config;
    config.kernels = options.kernels == "reference" ? GANTRY_KERNELS_REFERENCE : GANTRY_KERNELS_FAST;
    config.disable_winograd = options.winograd ? 0 : 1;
    config.gradient_norms = 1;
    config.disable_health = 1;
    context_ = JoinRanks(options.threads);
    gan_ = MakeCaseSession(context_.get(), reference, f64_ ? GANTRY_F64 : GANTRY_F32, config);
    SetMemory(gan_.get(), options.memory);
    if (!options.ranks.parallel.empty() && gantry_gan_set_parallel(gan_.get(), options.ranks.parallel.c_str()) != GANTRY_OK) {
      throw Failure(kExitUsage, gantry_last_error());
    }
    if (gantry_gan_set_exchange(gan_.get(), options.ranks.overlap.c_str(), options.ranks.link.c_str()) != GANTRY_OK) {
      throw Failure(kExitUsage, gantry_last_error());
    }
    Together(context_.get(), [&] { Require(gantry_gan_plan(gan_.get(), &plan_), reference.folder); });
    Require(gantry_gan_sizes(gan_.get(), &sizes_));
    real_ = Load("real.npy", sizes_.real_elements);
    noise_ = Load("noise.npy", sizes_.noise_elements);
    if (sizes_.mix_elements > 0) mix_ = Load("mix.npy", sizes_.mix_elements);
    ResetRunningStatistics();
  }

  const gantry_plan_info& plan() const { return plan_; }

  // One step; its row of the log.
  std::vector<double> Step(int64_t step) {
    gantry_batch batch = GANTRY_BATCH_INIT;
    batch.real = Data(real_) + step * sizes_.real_elements;
    batch.real_count = sizes_.real_elements;
    batch.noise = Data(noise_) + step * sizes_.noise_elements;
    batch.noise_count = sizes_.noise_elements;
    if (mix_ != nullptr) {
      batch.mix = Data(mix_) + step * sizes_.mix_elements;
      batch.mix_count = sizes_.mix_elements;
    }
    Require(gantry_gan_step(gan_.get(), &batch), reference_.folder);
    std::vector<double> row;
    for (const std::string& column : reference_.columns) row.push_back(Scalar(column));
    return row;
  }

  double Scalar(const std::string& name) {
    double value = 0.0;
    const gantry_status status = gantry_gan_read_scalar(gan_.get(), name.c_str(), &value);
    if (status == GANTRY_NOT_FOUND) throw Failure(kExitBadData, reference_.folder + "/case.json: column '" + name + "': " + gantry_last_error());
    Require(status);
    return value;
  }
  // NaN where the tensor has no gradient.
  double GradientNorm(const std::string& tensor) {
    double value = NAN;
    return gantry_gan_read_scalar(gan_.get(), ("gradient_norm." + tensor).c_str(), &value) == GANTRY_OK ? value : NAN;
  }

  // Parameters and statistics, by name.
  std::vector<Tensor> Weights() {
    std::vector<Tensor> weights;
    for (size_t i = 0; i < gantry_gan_state_count(gan_.get()); ++i) {
      gantry_state_info info = GANTRY_STATE_INFO_INIT;
      Require(gantry_gan_state_get(gan_.get(), i, &info));
      if (info.kind != GANTRY_STATE_PARAMETER && info.kind != GANTRY_STATE_STATISTIC) continue;
      weights.push_back({info.name, info.dtype, Read(info.name, info.element_count)});
    }
    std::sort(weights.begin(), weights.end(), [](const Tensor& a, const Tensor& b) { return a.name < b.name; });
    return weights;
  }

  // The state for a name of expected.npz: averages are "ema.0.weight" there. Empty where there is none.
  std::vector<double> Find(const std::string& name) {
    const std::string own = name.starts_with("ema.") ? "ema.generator." + name.substr(4) : name;
    for (size_t i = 0; i < gantry_gan_state_count(gan_.get()); ++i) {
      gantry_state_info info = GANTRY_STATE_INFO_INIT;
      Require(gantry_gan_state_get(gan_.get(), i, &info));
      if (own == info.name) return Read(info.name, info.element_count);
    }
    return {};
  }

 private:
  // Exporting a network in training mode runs it once and moves its running statistics; the recorded run began from fresh ones.
  void ResetRunningStatistics() {
    for (size_t i = 0; i < gantry_gan_state_count(gan_.get()); ++i) {
      gantry_state_info info = GANTRY_STATE_INFO_INIT;
      Require(gantry_gan_state_get(gan_.get(), i, &info));
      const std::string_view name = info.name;
      if (info.kind != GANTRY_STATE_STATISTIC || (!name.ends_with(".running_mean") && !name.ends_with(".running_var"))) continue;
      const std::vector<double> fresh(info.element_count, name.ends_with("mean") ? 0.0 : 1.0);
      Require(gantry_gan_write_state(gan_.get(), info.name, fresh.data(), fresh.size()));
    }
  }

  static const float* Data(const Array& array) { return static_cast<const float*>(gantry_array_data(array.get())); }

  std::vector<double> Read(const char* name, size_t count) {
    std::vector<double> values(count);
    Require(gantry_gan_read_state(gan_.get(), name, values.data(), count));
    return values;
  }

  Array Load(const char* file, uint64_t elements_per_step) {
    const std::string path = reference_.folder + "/" + file;
    gantry_array* raw = nullptr;
    if (gantry_array_load(path.c_str(), nullptr, &raw) != GANTRY_OK) throw Failure(kExitBadData, path + ": " + gantry_last_error());
    const Array loaded(raw);
    Require(gantry_array_convert(loaded.get(), GANTRY_F32, &raw), path);
    Array array(raw);
    const int64_t* dims = gantry_array_dims(array.get());
    const int64_t draws = reference_.steps * reference_.config.n_critic;
    if (gantry_array_rank(array.get()) < 2 || dims[0] != draws || dims[1] != reference_.batch ||
        gantry_array_element_count(array.get()) != elements_per_step * static_cast<uint64_t>(reference_.steps)) {
      throw Failure(kExitBadData, Format("%s must have %lld draws (steps x n_critic) of a batch of %lld, %llu numbers in all; it has %zu", path.c_str(),
                                         static_cast<long long>(draws), static_cast<long long>(reference_.batch),
                                         static_cast<unsigned long long>(elements_per_step * reference_.steps),
                                         gantry_array_element_count(array.get())));
    }
    return array;
  }

  const ReferenceCase& reference_;
  const bool f64_;
  Context context_;
  Gan gan_;
  gantry_plan_info plan_ = GANTRY_PLAN_INFO_INIT;
  gantry_step_sizes sizes_ = GANTRY_STEP_SIZES_INIT;
  Array real_, noise_, mix_;
};

// The largest gradient norm of the tensor's network in the case.
double LargestNorm(const ReferenceCase& reference, const std::string& tensor) {
  const std::string network = tensor.substr(0, tensor.find('.') + 1);
  double largest = 0.0;
  for (const auto& [name, norm] : reference.gradient_norms) {
    if (name.starts_with(network)) largest = std::max(largest, std::abs(norm));
  }
  return largest;
}

// Whether rounding decides what the tensor's gradient is, as for a bias just before a batch norm.
bool IsNoise(const ReferenceCase& reference, const std::string& tensor) {
  const auto norm = reference.gradient_norms.find(tensor);
  return norm != reference.gradient_norms.end() && std::abs(norm->second) <= kZeroShare * LargestNorm(reference, tensor);
}

class Comparison {
 public:
  Comparison(const ReferenceCase& reference, bool f64) : reference_(reference), f64_(f64) {}

  bool agrees() const { return agrees_; }
  const Worst& log() const { return log_; }
  const Worst& norms() const { return norms_; }
  const Worst& weights() const { return weights_; }

  void Row(int64_t step, const std::vector<double>& row) {
    Worst worst;
    for (size_t i = 0; i < row.size(); ++i) worst.Take(std::abs(row[i] - reference_.log[step][i]), reference_.columns[i]);
    double allowed = kF64LogTolerance;
    if (!f64_) allowed = std::max(kF32LogTolerance, reference_.drift.empty() ? 0.0 : kDriftFactor * reference_.drift[step]);
    const bool ok = worst.error <= allowed;
    // PyTorch's own float32 beside ours.
    const bool drift = !f64_ && !reference_.drift.empty();
    if (step == 0) std::printf("%-6s %12s %12s %12s  %-24s\n", "step", "max error", "allowed", drift ? "PyTorch's" : "", "in");
    std::printf("%-6lld %12.3g %12.3g %12s  %-24s %s\n", static_cast<long long>(step + 1), worst.error, allowed,
                drift ? Format("%.3g", reference_.drift[step]).c_str() : "", worst.where.c_str(), Verdict(ok));
    log_.Take(worst.error, Format("step %lld %s", static_cast<long long>(step + 1), worst.where.c_str()));
    agrees_ = agrees_ && ok;
  }

  void GradientNorm(const std::string& tensor, double expected, double got) {
    if (std::isnan(got) && expected == 0.0) got = 0.0;  // a tensor that nothing depends on
    const double error = std::abs(got - expected);
    const bool noise = IsNoise(reference_, tensor);
    const double allowed = noise ? (f64_ ? kF64NoiseShare : kF32NoiseShare) * LargestNorm(reference_, tensor)
                                 : (f64_ ? kF64NormTolerance : kF32NormTolerance) * std::abs(expected);
    const bool ok = error <= allowed;
    if (!(noise && ok)) norms_.Take(expected == 0.0 ? error : error / std::abs(expected), tensor);
    if (!ok) std::printf("gradient norm of %s: %.9g, expected %.9g  %s\n", tensor.c_str(), got, expected, Verdict(false));
    agrees_ = agrees_ && ok;
  }

  void Weight(const std::string& name, const std::vector<double>& expected, const std::vector<double>& got) {
    double error = 0.0, largest = 0.0;
    for (size_t i = 0; i < expected.size(); ++i) {
      const double difference = got.size() == expected.size() ? std::abs(got[i] - expected[i]) : NAN;
      if (!(difference <= error)) error = difference;
      largest = std::max(largest, std::abs(expected[i]));
    }
    const double relative = error == 0.0 ? 0.0 : error / largest;
    const bool noise = IsNoise(reference_, name.starts_with("ema.") ? "generator." + name.substr(4) : name);
    const bool close = relative <= kF64WeightTolerance;
    const bool missing = got.size() != expected.size();
    const bool ok = !missing && (!f64_ || noise || close);
    const char* verdict = missing ? "MISSING" : f64_ && noise && !close ? "rounding noise" : f64_ ? Verdict(ok) : "";
    std::printf("%-36s %12.3g %12.3g  %s\n", name.c_str(), error, relative, verdict);
    if (!noise || close) weights_.Take(relative, name);
    agrees_ = agrees_ && ok;
  }

 private:
  static const char* Verdict(bool ok) { return ok ? "ok" : "OUTSIDE"; }

  const ReferenceCase& reference_;
  const bool f64_;
  bool agrees_ = true;
  Worst log_, norms_, weights_;
};

void CompareWeights(const ReferenceCase& reference, Replay& replay, Comparison& comparison) {
  const std::string path = reference.folder + "/expected.npz";
  gantry_archive* raw = nullptr;
  if (gantry_archive_open(path.c_str(), &raw) != GANTRY_OK) throw Failure(kExitBadData, path + ": " + gantry_last_error());
  const Archive archive(raw);
  std::printf("\n%-36s %12s %12s\n", "tensor", "max error", "relative");
  for (size_t i = 0; i < gantry_archive_count(archive.get()); ++i) {
    const std::string name = gantry_archive_name(archive.get(), i);
    gantry_array *loaded = nullptr, *converted = nullptr;
    if (gantry_archive_read(archive.get(), name.c_str(), &loaded) != GANTRY_OK) throw Failure(kExitBadData, path + ": " + gantry_last_error());
    const Array owned(loaded);
    if (name.ends_with("num_batches_tracked")) continue;  // PyTorch's counter, which enters no result
    Require(gantry_array_convert(loaded, GANTRY_F64, &converted), path);
    const Array expected(converted);
    const auto* data = static_cast<const double*>(gantry_array_data(converted));
    comparison.Weight(name, std::vector<double>(data, data + gantry_array_element_count(converted)), replay.Find(name));
  }
}

std::string HashWeights(const std::vector<Tensor>& weights) {
  Sha256 hash;
  for (const Tensor& tensor : weights) {
    if (tensor.dtype == GANTRY_F64) {
      hash.Update(tensor.values.data(), tensor.values.size() * sizeof(double));
    } else {
      const std::vector<float> values(tensor.values.begin(), tensor.values.end());
      hash.Update(values.data(), values.size() * sizeof(float));
    }
  }
  return hash.Finish();
}

}  // namespace

int RunCheck(const CheckOptions& given) {
  StartRanks(given.ranks.ranks);
  CheckOptions options = given;
  if (options.dtype.empty()) options.dtype = options.kernels == "reference" ? "f64" : "f32";
  const bool f64 = options.dtype == "f64";
  const ReferenceCase reference = ReadCase(options.folder);
  Replay replay(options, reference);
  std::printf("%s: %s kernels, %s, %lld steps of batch %lld; peak %s, lower bound %s\n\n", reference.name.c_str(), options.kernels.c_str(),
              options.dtype.c_str(), static_cast<long long>(reference.steps), static_cast<long long>(reference.batch),
              BytesText(replay.plan().arena_bytes).c_str(), BytesText(replay.plan().lower_bound_bytes).c_str());
  Comparison comparison(reference, f64);
  std::vector<std::vector<double>> log;
  for (int64_t step = 0; step < reference.steps; ++step) {
    log.push_back(replay.Step(step));
    comparison.Row(step, log.back());
    if (step == 0) {
      for (const auto& [tensor, norm] : reference.gradient_norms) comparison.GradientNorm(tensor, norm, replay.GradientNorm(tensor));
    }
    std::fflush(stdout);
  }
  CompareWeights(reference, replay, comparison);
  std::printf("\nlargest errors: log %.3g (%s), first gradient norms %.3g relative (%s), weights %.3g relative (%s)%s\n", comparison.log().error,
              comparison.log().where.c_str(), comparison.norms().error, comparison.norms().where.c_str(), comparison.weights().error,
              comparison.weights().where.c_str(), f64 ? "" : ", which f32 does not judge");
  std::printf("%s\n", comparison.agrees() ? "within tolerance" : "OUTSIDE tolerance");
  if (options.json) {
    const nlohmann::ordered_json result = {{"name", reference.name},
                                           {"kernels", options.kernels},
                                           {"dtype", options.dtype},
                                           {"within_tolerance", comparison.agrees()},
                                           {"max_log_error", comparison.log().error},
                                           {"max_gradient_norm_error", comparison.norms().error},
                                           {"max_weight_error", comparison.weights().error},
                                           {"arena_bytes", replay.plan().arena_bytes},
                                           {"footprint_bytes", replay.plan().footprint_bytes},
                                           {"weights_sha256", HashWeights(replay.Weights())},
                                           {"columns", reference.columns},
                                           {"log", log}};
    std::printf("%s\n", result.dump().c_str());
  }
  return comparison.agrees() ? kExitOk : kExitNegative;
}

}  // namespace gantry::cli
