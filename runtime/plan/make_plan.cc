#include <algorithm>
#include <cmath>
#include <optional>

#include "absl/strings/str_join.h"
#include "memory/hash.h"
#include "memory/residency/residency_gaps.h"
#include "ops/cpu/panel/panel_isa.h"
#include "runtime/graph/rewrite.h"
#include "runtime/plan/cost_model.h"
#include "runtime/plan/encode.h"
#include "runtime/plan/lay_out.h"
#include "runtime/plan/lending.h"
#include "runtime/plan/lower.h"
#include "runtime/plan/order.h"
#include "runtime/plan/overlap.h"
#include "runtime/plan/plan_totals.h"
#include "runtime/plan/plan.h"
#include "runtime/plan/reside.h"
#include "runtime/plan/split_batch.h"
#include "runtime/plan/split_space.h"
#include "runtime/plan/split_weights.h"
#include "runtime/plan/too_small.h"

namespace gantry {
namespace {

// Gaps between buffers that the layout could not fill are taken from the budget, and residency is solved again.
constexpr int kBudgetRounds = 12;
// Once a plan fits, larger targets are tried until the next is nearer than this part of the budget.
constexpr int kTargetShare = 64;
// Targets nearer to each other than this part of the budget are not worth another round.
constexpr int kNearestTargets = 256;
// Ops on so many pieces' worth of images are split by batch where it is needed: an eighth of the budget.
constexpr int64_t kSplitPieces = 4;
// Images of a convolution in plain layout are taken in bands of about so many chunks.
constexpr int64_t kBandChunks = 2;
// Layout search: about a third of a second, for training programs meet their bound much earlier or not at all; a second for a budget, where
// what does not fit makes each step longer; none where only the order matters.
constexpr int64_t kBestLayout = 300'000'000, kLayoutWithin = 1'000'000'000, kAnyLayout = 1;

std::string Describe(const PlannedBuffer& buffer) {
  return absl::StrFormat("%14d  %s%s%s%s%s", buffer.bytes, buffer.name, buffer.network.empty() ? "" : ", ", buffer.network,
                         buffer.phase.empty() ? "" : ", ", buffer.phase);
}

// How much is copied, and in which form.
void CountEncodings(Plan& plan) {
  const Program& program = plan.program;
  for (const Op& op : program.ops()) {
    plan.residency.masks += op.definition->name == "sign_bits";
    if (!op.definition->moves) continue;
    const bool in = op.definition->name == "fetch";
    const Value& in_tier = program.values()[in ? op.inputs[0] : op.outputs[0]];
    PlannedTier& tier = plan.tiers[in_tier.tier];
    (in ? tier.in_bytes : tier.out_bytes) += in_tier.type.size_bytes();
    if (in) continue;
    plan.residency.zero_stashes += op.attributes.String("encoding") == "zeros";
    plan.residency.bf16_stashes += op.attributes.String("encoding") == "bf16";
  }
}

int64_t LargestOpBytes(const ResidencyProblem& problem) {
  int64_t largest = 0;
  for (int op = 0; op < static_cast<int>(problem.ops.size()); ++op) largest = std::max(largest, OperandBytes(problem, op));
  return largest;
}

// A weight, its gradient and a few pieces on their way in and out should be most of what an update takes.
int64_t PieceBytes(int64_t budget) { return std::max<int64_t>(1, budget / 32); }

// `prepared` is `program` in so many parts of the batch as SplitBatch takes. Without `last`, kResourceExhausted says nothing.
absl::StatusOr<Plan> PlanInParts(const Program& program, Program prepared, const PlanOptions& options, int64_t budget, int64_t footprint,
                                 int batch_parts, bool last) {
  Plan base;
  base.program = std::move(prepared);
  GANTRY_RETURN_IF_ERROR(ChooseKernels(base, options));
  GANTRY_ASSIGN_OR_RETURN(const std::vector<TakeOver> taken_over, LayOut(base, options, budget, kAnyLayout));
  Resider resider(base, taken_over, options);
  if (!last && LargestOpBytes(resider.problem()) > budget) return absl::ResourceExhaustedError("");
  const double unlimited = CostModel(options).Seconds(base);
  int64_t target = budget;
  ResidencySolution best;  // of those that do not fit
  int64_t best_bytes = INT64_MAX;
  int64_t low = 0, high = budget;  // targets between them are open
  // A gap may stay as large as it was when the target sinks by its size, so steps grow.
  int64_t step_back = 0;
  std::optional<Plan> fits;
  for (int round = 0; round < kBudgetRounds && target > 0 && (round == 0 || high - low >= budget / kNearestTargets); ++round) {
    GANTRY_ASSIGN_OR_RETURN(ResidencySolution solution, resider.Solve(target, options.recompute));
    if (!solution.fits && options.recompute) {
      // Where copies are slow the search runs ops again until what those need does not fit any more.
      GANTRY_ASSIGN_OR_RETURN(ResidencySolution copies, resider.Solve(target, false));
      if (copies.fits) solution = std::move(copies);
    }
    if (!solution.fits) {
      if (best_bytes == INT64_MAX && !fits) {
        best_bytes = solution.schedule.peak_bytes;
        best = std::move(solution);
        break;
      }
      // The step back was too long: half of it, of what is more than the search came down to.
      low = std::clamp(solution.schedule.peak_bytes, target, high);
      target = low + (high - low) / 2;
      continue;
    }
    GANTRY_ASSIGN_OR_RETURN(ResidentProgram resident, resider.Rewrite(solution));
    Plan plan;
    plan.program = std::move(resident.program);
    for (const TierOptions& tier : options.tiers) plan.tiers.push_back({tier});
    GANTRY_RETURN_IF_ERROR(ChooseKernels(plan, options));
    for (size_t op = 0; op < plan.schedule.size(); ++op) plan.schedule[op].done_by = resident.done_by[op];
    SetWaits(plan, options, budget);
    GANTRY_RETURN_IF_ERROR(LayOut(plan, options, budget, kLayoutWithin).status());
    int64_t tiers_over = 0;
    for (size_t tier = 0; tier < plan.tiers.size(); ++tier) {
      const int64_t over = plan.tiers[tier].bytes - plan.tiers[tier].options.budget_bytes;
      if (over <= 0) continue;
      resider.Tighten(static_cast<int>(tier), over);
      tiers_over += over;
    }
    if (tiers_over > 0) {
      if (best_bytes == INT64_MAX) {
        best_bytes = budget + tiers_over;
        best = std::move(solution);
      }
      continue;
    }
    if (plan.arena_bytes > budget) {
      high = std::max(low, std::min(target, solution.schedule.peak_bytes));
      if (plan.arena_bytes < best_bytes) {
        best_bytes = plan.arena_bytes;
        best = std::move(solution);
      }
      step_back = std::max({plan.arena_bytes - budget, 2 * step_back, budget / 128});
      target = fits ? low + (high - low) / 2 : std::max(high - step_back, low + (high - low) / 2);
    } else {
      if (!fits || solution.schedule.seconds < fits->residency.seconds) {
        const ResidencySchedule& schedule = solution.schedule;
        plan.residency = {.used = true, .budget_bytes = budget, .piece_bytes = PieceBytes(budget), .batch_parts = batch_parts, .footprint_bytes = footprint, .seconds = schedule.seconds,
                          .wait_seconds = schedule.wait_seconds, .recompute_seconds = schedule.recompute_seconds,
                          .unlimited_seconds = unlimited, .bound_seconds = solution.bound_seconds};
        for (const ResidencyAction& action : schedule.actions) {
          plan.residency.stashes += action.kind == ResidencyAction::Kind::kStash;
          plan.residency.fetches += action.kind == ResidencyAction::Kind::kFetch;
          plan.residency.repeats += action.kind == ResidencyAction::Kind::kAgain;
        }
        plan.origin = {.program = Fingerprint(program), .prepared = Fingerprint(base.program), .machine = MachineText(options), .costs = CostText(options),
                       .choice = solution.choice, .actions = schedule.actions};
        fits = std::move(plan);
      }
      low = target;
      target = low + (high - low) / 2;
    }
    // Where nobody asks for advice, many plans are compared, and programs in parts are long.
    const bool good = high - low < budget / kTargetShare || options.any_plan_will_do || (batch_parts > 1 && !options.advise);
    if (fits && good) break;
  }
  if (fits) {
    CountEncodings(*fits);
    fits->checksums = options.checksums;
    fits->costs = StepCosts(*fits, options);
    GANTRY_RETURN_IF_ERROR(VerifyPlan(*fits));
    return *std::move(fits);
  }
  if (!last) return absl::ResourceExhaustedError("");
  return TooSmall(program, base, resider, options, budget, best, best_bytes);
}

// Whole batches where they fit, else the fewest parts that do.
absl::StatusOr<Plan> PlanWithin(const Program& program, const PlanOptions& options, int64_t budget, int64_t footprint) {
  const auto Prepare = [&](int batch_parts) { return PrepareProgram(program, options, PieceBytes(budget), batch_parts); };
  const auto InParts = [&](Program prepared, int batch_parts, bool last) {
    return PlanInParts(program, std::move(prepared), options, budget, footprint, batch_parts, last);
  };
  GANTRY_ASSIGN_OR_RETURN(Program whole, Prepare(1));
  GANTRY_ASSIGN_OR_RETURN(Program most, Prepare(kMostBatchParts));
  // What no number of parts changes is planned once.
  if (Fingerprint(whole) == Fingerprint(most)) return InParts(std::move(whole), 1, true);
  absl::StatusOr<Plan> plan = InParts(std::move(whole), 1, false);
  for (int batch_parts = 2; batch_parts < kMostBatchParts && absl::IsResourceExhausted(plan.status()); batch_parts *= 2) {
    GANTRY_ASSIGN_OR_RETURN(Program some, Prepare(batch_parts));
    plan = InParts(std::move(some), batch_parts, false);
  }
  return absl::IsResourceExhausted(plan.status()) ? InParts(std::move(most), kMostBatchParts, true) : std::move(plan);
}

}  // namespace

absl::StatusOr<Program> PrepareProgram(const Program& program, const PlanOptions& options, int64_t piece_bytes, int batch_parts) {
  const bool tight = piece_bytes > 0;
  GANTRY_ASSIGN_OR_RETURN(Program result, Simplify(program));
  if (options.fuse) {
    // One update for many weights needs them all at once.
    GANTRY_ASSIGN_OR_RETURN(result, Fuse(result, FuseOptions{.buckets = !tight, .buckets_by_exchange = options.overlap}));
    GANTRY_ASSIGN_OR_RETURN(result, Simplify(result));
  }
  if (options.kernels == KernelChoice::kFast) {
    GANTRY_ASSIGN_OR_RETURN(result, Lower(result, options));
    GANTRY_ASSIGN_OR_RETURN(result, Simplify(result));
  }
  GANTRY_ASSIGN_OR_RETURN(result, ChunkWeights(result, options.chunk_bytes));
  GANTRY_ASSIGN_OR_RETURN(result, ChunkBatches(result, options.chunk_bytes));
  GANTRY_ASSIGN_OR_RETURN(result, ChunkImages(result, kBandChunks * options.chunk_bytes));
  if (!tight) return OrderForOverlap(result, options);
  if (options.encode) {
    GANTRY_ASSIGN_OR_RETURN(result, KeepSigns(result));
  }
  GANTRY_ASSIGN_OR_RETURN(result, SplitBatch(result, batch_parts, kSplitPieces * piece_bytes));
  GANTRY_ASSIGN_OR_RETURN(result, SplitSpace(result, batch_parts, kSplitPieces * piece_bytes));
  GANTRY_ASSIGN_OR_RETURN(result, SplitWeights(result, piece_bytes));
  GANTRY_ASSIGN_OR_RETURN(result, SplitUpdates(result, piece_bytes));
  return UpdateEarly(result);
}

std::string Fingerprint(const Program& program) {
  return absl::StrFormat("%016x", HashText(program.Dump()));
}

std::string MachineText(const PlanOptions& options) {
  const std::string_view kernels =
      options.kernels == KernelChoice::kFast ? cpu::Name(cpu::BestIsa()) : std::string_view("reference");
  return absl::StrFormat("%s kernels, %d threads%s%s%s", kernels, options.thread_count, options.fuse ? "" : ", not fused",
                         options.in_place ? "" : ", not in place", options.winograd ? "" : ", no Winograd forms");
}

namespace {

// Of what begins with `own` bytes, and has loans of the kind behind them.
int64_t EndOfLoans(const Plan& plan, TierKind kind, int64_t own) {
  int64_t end = own;
  for (const PlannedLoan& loan : plan.loans) {
    if (loan.kind == kind) end = std::max(end, loan.offset + loan.bytes);
  }
  return end;
}

}  // namespace

int64_t DeviceBytes(const Plan& plan) { return EndOfLoans(plan, TierKind::kPeer, plan.arena_bytes); }

int64_t LentHostBytes(const Plan& plan) { return EndOfLoans(plan, TierKind::kRemoteHost, 0); }

absl::StatusOr<Plan> MakePlan(const Program& program, const PlanOptions& options) {
  GANTRY_RETURN_IF_ERROR(RequireOneRank(options));
  Plan plan;
  GANTRY_ASSIGN_OR_RETURN(plan.program, PrepareProgram(program, options, 0));
  GANTRY_RETURN_IF_ERROR(ChooseKernels(plan, options));
  SetWaits(plan, options, 0);
  GANTRY_RETURN_IF_ERROR(LayOut(plan, options, 0, kBestLayout).status());
  const MemoryBudget& memory = options.device_memory;
  const int64_t budget = memory.bytes > 0      ? memory.bytes
                         : memory.fraction > 0 ? static_cast<int64_t>(std::floor(memory.fraction * static_cast<double>(plan.arena_bytes)))
                                               : 0;
  if (budget > 0 && plan.arena_bytes > budget) return PlanWithin(program, options, budget, plan.arena_bytes);
  plan.residency.budget_bytes = budget;
  plan.residency.footprint_bytes = plan.arena_bytes;
  plan.residency.seconds = plan.residency.unlimited_seconds = plan.residency.bound_seconds = CostModel(options).Seconds(plan);
  plan.origin.program = Fingerprint(program);
  plan.origin.prepared = Fingerprint(plan.program);
  plan.origin.machine = MachineText(options);
  plan.origin.costs = CostText(options);
  plan.costs = StepCosts(plan, options);
  GANTRY_RETURN_IF_ERROR(VerifyPlan(plan));
  return plan;
}

std::string DescribeEncodings(const PlannedResidency& residency) {
  std::string text;
  if (residency.masks + residency.zero_stashes > 0) {
    text = absl::StrFormat("encoded        %d values kept as sign bits, %d copies without zeros: lossless\n", residency.masks,
                           residency.zero_stashes);
  }
  if (residency.bf16_stashes > 0) {
    absl::StrAppend(&text, absl::StrFormat("LOSSY          %d copies rounded to bf16, as asked for: results differ from those of "
                                           "another budget\n",
                                           residency.bf16_stashes));
  }
  return text;
}

std::string Describe(const Plan& plan) {
  int64_t persistent = 0;
  for (const PlannedBuffer& buffer : plan.buffers) {
    if (buffer.persistent && buffer.tier == kDeviceTier) persistent += buffer.bytes;
  }
  const std::vector<const PlannedBuffer*> at_peak = LargestAtPeak(plan, 10);
  std::string text = absl::StrFormat(
      "ops            %d\nbuffers        %d\narena          %d bytes (lower bound %d, gap %.3f %%, %s)\n"
      "state          %d bytes of it\n",
      plan.schedule.size(), plan.buffers.size(), plan.arena_bytes, plan.lower_bound_bytes,
      plan.lower_bound_bytes > 0 ? 100.0 * static_cast<double>(plan.arena_bytes - plan.lower_bound_bytes) /
                                       static_cast<double>(plan.lower_bound_bytes)
                                 : 0.0,
      plan.layout_method, persistent);
  if (const PlannedResidency& residency = plan.residency; residency.used) {
    absl::StrAppend(&text, absl::StrFormat(
        "budget         %d bytes, %.1f %% of the %d that nothing offloaded takes\n"
        "residency      %d copies out, %d in, %d ops run again\n"
        "predicted      %.4g s a step (%.4g s with nothing offloaded): %.4g s waiting, %.4g s running again; bound %.4g s, gap %.1f %%\n",
        residency.budget_bytes, 100.0 * static_cast<double>(residency.budget_bytes) / static_cast<double>(residency.footprint_bytes),
        residency.footprint_bytes, residency.stashes, residency.fetches, residency.repeats, residency.seconds,
        residency.unlimited_seconds, residency.wait_seconds, residency.recompute_seconds, residency.bound_seconds,
        100.0 * (residency.seconds / residency.bound_seconds - 1.0)));
    if (residency.batch_parts > 1) {
      absl::StrAppend(&text, absl::StrFormat("split          ops on many or large images in up to %d parts of the batch or of their rows\n", residency.batch_parts));
    }
    absl::StrAppend(&text, DescribeEncodings(residency));
  }
  if (!plan.residency.used) absl::StrAppend(&text, absl::StrFormat("predicted      %.4g s a step\n", plan.residency.seconds));
  absl::StrAppend(&text, "costs          ", plan.origin.costs, "\n");
  std::vector<std::pair<std::string, int64_t>> tiers;
  for (const PlannedTier& tier : plan.tiers) {
    tiers.emplace_back(tier.options.name, tier.bytes);
    absl::StrAppend(&text, absl::StrFormat("tier %-9s %d bytes (lower bound %d), %d bytes out and %d in a step\n", tier.options.name,
                                           tier.bytes, tier.lower_bound_bytes, tier.out_bytes, tier.in_bytes));
  }
  for (const PlannedLoan& loan : plan.loans) absl::StrAppend(&text, Describe(loan), "\n");
  text += Describe(TotalsOf(plan.costs, plan.buffers, tiers));
  absl::StrAppend(&text, "largest at the peak:\n");
  for (const PlannedBuffer* buffer : at_peak) absl::StrAppend(&text, Describe(*buffer), "\n");
  if (!plan.fallbacks.empty()) {
    absl::StrAppend(&text, "on reference kernels:");
    for (const std::string& name : plan.fallbacks) absl::StrAppend(&text, " ", name);
    text += '\n';
  }
  return text;
}

}  // namespace gantry
