// How much of the exchange of gradients compute hides, on a link that is slow on purpose. A rank of a job:
//   gantry run -n 2 -- overlap_bench [--size 64] [--width 64] [--batch 16] [--steps 16] [--share 0.4] [--family dcgan] [--split batch]
// The link's speed is chosen so that with one flat exchange of all gradients of a network, waited for where it stands after the backward
// pass, exchanges take `share` of the step. Printed by rank 0: step and exposed seconds (lower quartiles), flat and overlapped.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include "memory/device.h"
#include "runtime/gan/families.h"
#include "runtime/gan/gan_session.h"
#include "runtime/plan/overlap.h"

namespace gantry {
namespace {

struct Options {
  std::string family = "dcgan", split = "batch";
  int64_t size = 64, width = 64, batch = 16, bucket = 1 << 20;
  int steps = 16;
  double share = 0.4;
  double speed = 1.0;  // of this machine, as a multiple of what the planner assumes: as a calibration would tell it
};

struct Measured {
  double step = 0.0;                      // seconds, lower quartile
  std::map<std::string, double> exposed;  // seconds a step, likewise, by kind
  double sum = 0.0;                       // of them
  int64_t gradient_bytes = 0;             // that a step takes the link for gradients
  int64_t arena_bytes = 0;
  int exchanges = 0;
  OverlapEstimate predicted;
  double loss = 0.0;  // after the last step: the same bits for all
};

// The lower quartile: what a step takes when nothing else takes the cores.
double Quartile(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 4];
}

// A session and what its steps took. Several are stepped in turn, so that what else the machine does meets all of them alike.
class Candidate {
 public:
  static absl::StatusOr<std::unique_ptr<Candidate>> Create(const Options& options, JobRanks& ranks, bool overlap, int64_t bucket_bytes, const Throttle& link,
                                                           bool across = false) {
    GANTRY_ASSIGN_OR_RETURN(Family family, BuildFamily(options.family, {.image_size = options.size, .channels = 3, .width = options.width,
                                                                        .latent_size = 100, .batch = options.batch}));
    GANTRY_ASSIGN_OR_RETURN(const FamilyDefaults defaults, DefaultsOf(options.family));
    std::vector<GanRole> generators, discriminators;
    generators.push_back({.name = "generator", .model = std::move(family.generator)});
    discriminators.push_back({.name = "discriminator", .model = std::move(family.discriminator)});
    GanSessionOptions session{.step = {.loss = defaults.loss, .ema = 0.999}, .plan = {.thread_count = 1, .overlap = overlap, .link = link}, .seed = 1, .ranks = &ranks};
    GANTRY_ASSIGN_OR_RETURN(session.parallel, Parallel::Parse(options.split));
    session.parallel.exchanges.bucket_bytes = bucket_bytes;
    session.parallel.across_steps = across;
    MachineRates& rates = session.plan.rates;
    rates.flops_per_second *= options.speed;
    rates.bytes_per_second *= options.speed;
    rates.op_seconds /= options.speed;
    std::unique_ptr<Candidate> candidate(new Candidate());
    candidate->device_ = MakeCpuDevice({.thread_count = 1});
    GANTRY_ASSIGN_OR_RETURN(candidate->session_, GanSession::Create(session, std::move(generators), std::move(discriminators), *candidate->device_));
    candidate->real_.resize(candidate->session_->real_elements() * candidate->session_->draws_per_step());
    for (size_t i = 0; i < candidate->real_.size(); ++i) candidate->real_[i] = static_cast<float>(std::sin(0.01 * static_cast<double>(i)));
    candidate->exposed_.resize(candidate->session_->executor().exposed().size());
    return candidate;
  }

  absl::Status Step(bool counts) {
    const std::span<const ExposedWait> waits = session_->executor().exposed();
    std::vector<double> before;
    for (const ExposedWait& wait : waits) before.push_back(wait.seconds);
    GANTRY_RETURN_IF_ERROR(session_->AgreeOn(0.0).status());  // all begin together
    const auto begin = std::chrono::steady_clock::now();
    GANTRY_RETURN_IF_ERROR(session_->Step({.real = real_}));
    if (!counts) return absl::OkStatus();
    seconds_.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    for (size_t kind = 0; kind < before.size(); ++kind) exposed_[kind].push_back(waits[kind].seconds - before[kind]);
    return absl::OkStatus();
  }

  // A call of all ranks.
  absl::StatusOr<Measured> Result() {
    Measured result;
    result.arena_bytes = session_->plan().arena_bytes;
    result.predicted = EstimateOverlap(session_->plan());
    for (const StepCost& cost : session_->plan().costs) {
      result.exchanges += !cost.purpose.empty();
      if (cost.purpose == "gradient") result.gradient_bytes += cost.bytes;
    }
    for (size_t kind = 0; kind < exposed_.size(); ++kind) {
      GANTRY_ASSIGN_OR_RETURN(const double longest, session_->AgreeOn(Quartile(exposed_[kind])));  // kinds are the same on all ranks
      result.exposed[session_->executor().exposed()[kind].kind] = longest;
      result.sum += longest;
    }
    GANTRY_ASSIGN_OR_RETURN(result.loss, session_->Scalar("generator_loss"));
    GANTRY_ASSIGN_OR_RETURN(result.step, session_->AgreeOn(Quartile(seconds_)));
    return result;
  }

 private:
  Candidate() = default;

  std::unique_ptr<Device> device_;
  std::unique_ptr<GanSession> session_;
  std::vector<float> real_;
  std::vector<double> seconds_;
  std::vector<std::vector<double>> exposed_;  // by kind
};

absl::Status StepInTurn(std::span<const std::unique_ptr<Candidate>> candidates, int steps) {
  constexpr int kWarmUps = 2;
  for (int step = -kWarmUps; step < steps; ++step) {
    for (const std::unique_ptr<Candidate>& candidate : candidates) GANTRY_RETURN_IF_ERROR(candidate->Step(step >= 0));
  }
  return absl::OkStatus();
}

void Print(const char* name, const Measured& measured) {
  std::printf("%-22s step %8.2f ms  exposed %7.2f ms (", name, 1e3 * measured.step, 1e3 * measured.sum);
  bool first = true;
  for (const auto& [kind, seconds] : measured.exposed) {
    std::printf("%s%s %.2f", first ? "" : ", ", kind.c_str(), 1e3 * seconds);
    first = false;
  }
  std::printf(")  %d exchanges, arena %.1f MiB, predicted step %.2f ms, exposed %.2f ms\n", measured.exchanges,
              static_cast<double>(measured.arena_bytes) / (1 << 20), 1e3 * measured.predicted.seconds, 1e3 * measured.predicted.exposed_seconds);
}

absl::Status Run(Options options) {
  GANTRY_ASSIGN_OR_RETURN(const std::unique_ptr<JobRanks> ranks, JobRanks::Join());
  if (ranks == nullptr) return absl::InvalidArgumentError("run it as ranks of a job: gantry run -n 2 -- overlap_bench");
  constexpr int64_t kFlat = int64_t{1} << 40;
  std::vector<std::unique_ptr<Candidate>> candidates(1);
  GANTRY_ASSIGN_OR_RETURN(candidates[0], Candidate::Create(options, *ranks, false, kFlat, {}));
  GANTRY_RETURN_IF_ERROR(StepInTurn(candidates, options.steps));
  GANTRY_ASSIGN_OR_RETURN(const Measured alone, candidates[0]->Result());
  double computes = alone.step;
  for (const auto& [kind, seconds] : alone.exposed) computes -= seconds;
  options.speed = std::max(0.1, (alone.predicted.seconds - alone.predicted.exposed_seconds) / computes);
  // The same on all ranks, for they agreed on what it is made of.
  const double without = alone.step - alone.exposed.at("gradient");
  const double rate = std::round(static_cast<double>(alone.gradient_bytes) / (without * options.share / (1 - options.share)) / 1e3) * 1e3;
  const Throttle link{.bytes_per_second = rate, .latency_seconds = 50e-6};
  candidates.resize(6);
  GANTRY_ASSIGN_OR_RETURN(candidates[0], Candidate::Create(options, *ranks, false, kFlat, {}));
  GANTRY_ASSIGN_OR_RETURN(candidates[1], Candidate::Create(options, *ranks, true, options.bucket, {}));
  GANTRY_ASSIGN_OR_RETURN(candidates[2], Candidate::Create(options, *ranks, true, options.bucket, {}, true));
  GANTRY_ASSIGN_OR_RETURN(candidates[3], Candidate::Create(options, *ranks, false, kFlat, link));
  GANTRY_ASSIGN_OR_RETURN(candidates[4], Candidate::Create(options, *ranks, true, options.bucket, link));
  GANTRY_ASSIGN_OR_RETURN(candidates[5], Candidate::Create(options, *ranks, true, options.bucket, link, true));
  GANTRY_RETURN_IF_ERROR(StepInTurn(candidates, options.steps));
  std::vector<Measured> results;
  for (const std::unique_ptr<Candidate>& candidate : candidates) {
    GANTRY_ASSIGN_OR_RETURN(results.emplace_back(), candidate->Result());
  }
  const Measured &flat_free = results[0], &free = results[1], &across_free = results[2], &flat = results[3], &overlapped = results[4], &across = results[5];
  if (ranks->rank() != 0) return absl::OkStatus();
  std::printf("%s %ldx%ld, width %ld, batch %ld over %d ranks (%s), %.1f MB of gradients a step on a link of %.1f MB/s, 50 us\n", options.family.c_str(),
              options.size, options.size, options.width, options.batch, ranks->size(), options.split.c_str(),
              1e-6 * static_cast<double>(flat.gradient_bytes), 1e-6 * rate);
  Print("flat, free link", flat_free);
  Print("overlapped, free link", free);
  Print("flat, slow link", flat);
  Print("overlapped, slow link", overlapped);
  Print("across, free link", across_free);
  Print("across, slow link", across);
  std::printf("flat exchange          %.1f %% of the step\n", 100 * flat.exposed.at("gradient") / flat.step);
  for (const auto& [name, slow, fast] : {std::tuple("overlapped", &overlapped, &free), std::tuple("across", &across, &across_free)}) {
    std::printf("%-22s gradients exposed %.1f %% of the flat exchange's, step %.3f of that on a free link\n", name,
                100 * slow->exposed.at("gradient") / flat.exposed.at("gradient"), slow->step / fast->step);
  }
  bool same = true;
  for (const Measured* measured : {&flat, &free, &overlapped, &across_free, &across}) same = same && measured->loss == flat_free.loss;
  std::printf("results                %s\n", same ? "the same bits" : "DIFFER");
  return same ? absl::OkStatus() : absl::InternalError("results depend on the link or the schedule");
}

}  // namespace
}  // namespace gantry

int main(int argc, char** argv) {
  gantry::Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string key = argv[i], value = argv[i + 1];
    if (key == "--family") options.family = value;
    if (key == "--split") options.split = value;
    if (key == "--size") options.size = std::atoll(value.c_str());
    if (key == "--width") options.width = std::atoll(value.c_str());
    if (key == "--batch") options.batch = std::atoll(value.c_str());
    if (key == "--bucket") options.bucket = std::atoll(value.c_str());
    if (key == "--steps") options.steps = std::atoi(value.c_str());
    if (key == "--share") options.share = std::atof(value.c_str());
  }
  const absl::Status status = gantry::Run(options);
  if (!status.ok()) std::fprintf(stderr, "overlap_bench: %s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}
