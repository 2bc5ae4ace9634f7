// What the residency solver makes of built-in families: predicted seconds, gap to the bound and time to answer, by budget.
//   residency_bench [--machine FILE] [--threads N] [--link BYTES_PER_SECOND] [FAMILY SIZE WIDTH BATCH]...
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "runtime/gan/families.h"
#include "runtime/gan/machine_file.h"
#include "runtime/plan/cost_model.h"
#include "runtime/plan/lay_out.h"
#include "runtime/plan/reside.h"

namespace gantry {
namespace {

struct Setup {
  std::string family;
  int64_t size, width, batch;
};

double Now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

absl::StatusOr<Program> Step(const Setup& model) {
  GANTRY_ASSIGN_OR_RETURN(Family family, BuildFamily(model.family, {.image_size = model.size, .width = model.width, .batch = model.batch}));
  GANTRY_ASSIGN_OR_RETURN(const FamilyDefaults defaults, DefaultsOf(model.family));
  GanStepConfig config;
  config.loss = defaults.loss;
  config.r1 = defaults.r1;
  config.r2 = defaults.r2;
  config.gradient_penalty = defaults.gradient_penalty;
  config.ema = 0.999;
  std::vector<GanRole> generators, discriminators;
  generators.push_back({"generator", std::move(family.generator), {}});
  discriminators.push_back({"discriminator", std::move(family.discriminator), {}});
  return BuildGanStep(config, generators, discriminators);
}

absl::Status Bench(const Setup& model, const std::string& machine, int threads, double link) {
  GANTRY_ASSIGN_OR_RETURN(const Program program, Step(model));
  PlanOptions options;
  options.thread_count = threads;
  options.tiers = {TierOptions{.name = "host"}};
  if (link > 0) options.tiers[0].out = options.tiers[0].in = {.bytes_per_second = link, .latency_seconds = 1e-5};
  GANTRY_ASSIGN_OR_RETURN(options.machine, FindMachine(machine));
  double begin = Now();
  Plan free;
  GANTRY_ASSIGN_OR_RETURN(free.program, PrepareProgram(program, options, 0));
  GANTRY_RETURN_IF_ERROR(ChooseKernels(free, options));
  GANTRY_RETURN_IF_ERROR(LayOut(free, options, 0, 1).status());
  std::printf("%s %lldx%lld width %lld batch %lld: %.1f MiB, %.4f s predicted (%s), prepared in %.3f s\n", model.family.c_str(),
              static_cast<long long>(model.size), static_cast<long long>(model.size), static_cast<long long>(model.width),
              static_cast<long long>(model.batch), static_cast<double>(free.arena_bytes) / 1048576, CostModel(options).Seconds(free),
              CostText(options).c_str(), Now() - begin);
  std::printf("%8s %6s %6s %10s %10s %8s %8s %8s %8s %9s %9s %7s\n", "budget", "ops", "items", "seconds", "bound", "gap %", "wait s", "again s",
              "beside s", "out MiB", "in MiB", "solve s");
  for (const int share : {2, 3, 4, 6, 8, 12, 16}) {
    const int64_t budget = free.arena_bytes / share;
    Plan base;
    GANTRY_ASSIGN_OR_RETURN(base.program, PrepareProgram(program, options, std::max<int64_t>(1, budget / 32)));
    GANTRY_RETURN_IF_ERROR(ChooseKernels(base, options));
    GANTRY_ASSIGN_OR_RETURN(const std::vector<TakeOver> taken_over, LayOut(base, options, budget, 1));
    Resider resider(base, taken_over, options);
    begin = Now();
    GANTRY_ASSIGN_OR_RETURN(const ResidencySolution solution, resider.Solve(budget, true));
    const double seconds = Now() - begin;
    const ResidencySchedule& s = solution.schedule;
    std::printf("%6s1/%-2d %5zu %6zu %10.4f %10.4f %8.1f %8.4f %8.4f %8.4f %9.1f %9.1f %7.3f%s\n", "", share, resider.problem().ops.size(),
                resider.problem().items.size(), s.seconds, solution.bound_seconds, 100 * solution.gap(), s.wait_seconds, s.recompute_seconds,
                s.beside_seconds, static_cast<double>(s.out_bytes[0]) / 1048576, static_cast<double>(s.in_bytes[0]) / 1048576, seconds,
                solution.fits ? "" : " does not fit");
    if (!solution.fits) break;
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace gantry

int main(int argc, char** argv) {
  std::string machine;
  int threads = 2;
  double link = 0;
  std::vector<gantry::Setup> models;
  for (int i = 1; i < argc; ++i) {
    if (std::string(argv[i]) == "--machine" && i + 1 < argc) {
      machine = argv[++i];
    } else if (std::string(argv[i]) == "--threads" && i + 1 < argc) {
      threads = std::atoi(argv[++i]);
    } else if (std::string(argv[i]) == "--link" && i + 1 < argc) {
      link = std::atof(argv[++i]);
    } else if (i + 3 < argc) {
      models.push_back({argv[i], std::atoll(argv[i + 1]), std::atoll(argv[i + 2]), std::atoll(argv[i + 3])});
      i += 3;
    }
  }
  if (models.empty()) models = {{"dcgan", 256, 64, 1}, {"dcgan", 64, 64, 64}, {"wgan-gp", 64, 32, 16}, {"sngan", 64, 32, 16}, {"r3gan", 64, 32, 16}};
  for (const gantry::Setup& model : models) {
    if (const absl::Status status = gantry::Bench(model, machine, threads, link); !status.ok()) {
      std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
      return 1;
    }
  }
  return 0;
}
