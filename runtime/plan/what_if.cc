#include "runtime/plan/what_if.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>

#include "memory/residency/residency_gaps.h"
#include "nlohmann/json.hpp"
#include "runtime/plan/cost_model.h"
#include "runtime/plan/lay_out.h"
#include "runtime/plan/reside.h"

namespace gantry {
namespace {

// The search of each case: what a plan gains by more is little.
constexpr int kTrials = 60, kGreedyBudgets = 2;
constexpr int64_t kAnyLayout = 1;
// An idle network leaves where so much of the step runs without it.
constexpr double kIdleShare = 0.125;
constexpr int64_t kLargestBatch = 1 << 20;

// A step made ready to be asked about.
class Case {
 public:
  // `piece_bytes` as in PrepareProgram.
  static absl::StatusOr<std::unique_ptr<Case>> Make(const Program& program, const PlanOptions& options, int64_t piece_bytes) {
    std::unique_ptr<Case> made(new Case(options));
    GANTRY_ASSIGN_OR_RETURN(made->base_.program, PrepareProgram(program, options, piece_bytes));
    GANTRY_RETURN_IF_ERROR(ChooseKernels(made->base_, options));
    GANTRY_ASSIGN_OR_RETURN(const std::vector<TakeOver> taken_over, LayOut(made->base_, options, 0, kAnyLayout));
    made->resider_ = std::make_unique<Resider>(made->base_, taken_over, made->options_);
    return made;
  }

  int op_count() const { return static_cast<int>(base_.schedule.size()); }
  // The most that is live at once: layouts of training steps reach it, or nearly so.
  int64_t arena_bytes() const { return base_.lower_bound_bytes; }
  const ResidencyProblem& problem() const { return resider_->problem(); }
  const Program& program() const { return base_.program; }

  // Of a step; ops of lazy penalties count once in `penalty_every` steps.
  double Seconds(int penalty_every) const {
    const CostModel costs(options_);
    double seconds = 0;
    for (const PlannedOp& step : base_.schedule) {
      if (step.kernel == nullptr) continue;
      const ValueId condition = base_.program.ops()[step.op].condition;
      const bool lazy = condition != kNoValue && base_.program.values()[condition].name == "penalty";
      seconds += costs.Seconds(base_.program, step.op, step.kernel.get()) / (lazy ? penalty_every : 1);
    }
    return seconds;
  }

  // Everything kept.
  WhatIfAnswer Kept() const {
    WhatIfAnswer answer;
    answer.peak_bytes = arena_bytes();
    answer.seconds = Seconds(1);
    return answer;
  }

  // As a planner would choose for `budget`.
  absl::StatusOr<WhatIfAnswer> Within(int64_t budget, bool recompute, bool tiers) {
    ResidencyProblem within = problem();
    within.budget_bytes = budget;
    GANTRY_ASSIGN_OR_RETURN(const ResidencySolution solution, SolveResidency(within, {.recompute = recompute, .tiers = tiers, .trials = kTrials, .greedy_budgets = kGreedyBudgets}));
    WhatIfAnswer answer = From(solution.schedule);
    answer.fits = solution.fits;
    return answer;
  }

  // States for which `leaves` holds wait in the first tier, whatever the budget, for as long as nothing needs them: always, or where
  // that is a good part of the step.
  template <typename Leaves>
  std::optional<WhatIfAnswer> Moved(Leaves leaves, double least_share) const {
    const ResidencyProblem& problem = this->problem();
    if (problem.tiers.empty()) return std::nullopt;
    std::vector<double> start(problem.ops.size() + 1, 0.0);
    for (size_t op = 0; op < problem.ops.size(); ++op) start[op + 1] = start[op] + problem.ops[op].seconds;
    const double least = least_share * start.back();
    ResidencyChoice choice = KeepAll(problem);
    bool any = false;
    // Items begin with the states, in their order.
    for (size_t i = 0; i < base_.program.states().size(); ++i) {
      const ResidencyItem& item = problem.items[i];
      if ((item.tiers & 1) == 0 || item.uses.empty() || !leaves(base_.program.states()[i])) continue;
      const double between = start.back() - start[item.uses.back() + 1] + start[item.uses.front()];
      bool away = between >= least;
      for (size_t gap = 1; gap < item.uses.size(); ++gap) {
        if (start[item.uses[gap]] - start[item.uses[gap - 1] + 1] < std::max(least, 1e-12)) continue;
        choice[i][gap] = InTier(0);
        away = true;
      }
      if (!away) continue;
      choice[i].front() = choice[i].back() = InTier(0);
      any = true;
    }
    if (!any) return std::nullopt;
    ResidencyScheduler scheduler(problem);
    const ResidencySchedule schedule = scheduler.Judge(choice);
    if (!schedule.valid) return std::nullopt;
    return From(schedule);
  }

 private:
  explicit Case(const PlanOptions& options) : options_(options) {}
  WhatIfAnswer From(const ResidencySchedule& schedule) const {
    WhatIfAnswer answer;
    answer.peak_bytes = schedule.peak_bytes;
    for (const int64_t bytes : schedule.tier_peak_bytes) answer.tier_bytes += bytes;
    answer.seconds = schedule.seconds;
    return answer;
  }

  const PlanOptions options_;
  Plan base_;
  std::unique_ptr<Resider> resider_;
};

class Asker {
 public:
  Asker(const StepSource& source, const WhatIfOptions& what, const PlanOptions& options) : source_(source), what_(what), options_(options) {
    if (options_.tiers.empty()) options_.tiers = {TierOptions{.name = "host"}};
    plain_ = options_;
    plain_.tiers = options.tiers;
    allowed_tiers_ = !options.tiers.empty();
  }

  absl::StatusOr<WhatIf> Run() {
    GANTRY_ASSIGN_OR_RETURN(const Program program, source_({}));
    GANTRY_ASSIGN_OR_RETURN(const std::unique_ptr<Case> free, Case::Make(program, options_, 0));
    result_.op_count = free->op_count();
    result_.costs = CostText(options_);
    const MemoryBudget& memory = options_.device_memory;
    result_.budget_bytes = memory.bytes > 0      ? memory.bytes
                           : memory.fraction > 0 ? static_cast<int64_t>(std::floor(memory.fraction * static_cast<double>(free->arena_bytes())))
                                                 : free->arena_bytes() / 2;
    result_.assumed_budget = memory.bytes <= 0 && memory.fraction <= 0;
    budget_ = result_.budget_bytes;
    WhatIfAnswer now = free->Kept();
    now.seconds = free->Seconds(what_.penalty_every);
    Add("now", "the step as it is, nothing moved and nothing run again", "", now);
    GANTRY_RETURN_IF_ERROR(Policies(program, free->arena_bytes()));
    GANTRY_RETURN_IF_ERROR(States(program));
    GANTRY_RETURN_IF_ERROR(Penalties());
    GANTRY_RETURN_IF_ERROR(Accumulation());
    GANTRY_RETURN_IF_ERROR(Batches(free->arena_bytes()));
    return std::move(result_);
  }

 private:
  void Add(std::string topic, std::string what, std::string flags, WhatIfAnswer answer, int64_t batch = 0) {
    answer.topic = std::move(topic);
    answer.what = std::move(what);
    answer.flags = std::move(flags);
    answer.batch = batch > 0 ? batch : what_.batch;
    answer.fits = answer.fits && answer.peak_bytes <= budget_;
    result_.answers.push_back(std::move(answer));
  }
  int64_t Piece() const { return std::max<int64_t>(1, budget_ / 32); }
  std::string BudgetFlag() const { return absl::StrFormat("--device-memory %d", budget_); }

  absl::Status Policies(const Program& program, int64_t footprint) {
    if (budget_ >= footprint) return absl::OkStatus();
    GANTRY_ASSIGN_OR_RETURN(const std::unique_ptr<Case> tight, Case::Make(program, options_, Piece()));
    struct Policy {
      const char *topic, *what, *flags;
      bool recompute, tiers;
    };
    const bool file = std::any_of(options_.tiers.begin(), options_.tiers.end(), [](const TierOptions& tier) { return tier.kind == TierKind::kFile; });
    const char* const where = !allowed_tiers_ ? " --offload host" : file ? " (offload as it is)" : "";
    for (const Policy& policy : {Policy{"budget", "within the budget: values wait in tiers and ops run again", "", true, true},
                                 Policy{"offload", "within the budget: values wait in tiers, nothing runs again", " --no-recompute", false, true},
                                 Policy{"recompute", "within the budget: ops run again, nothing waits", " --offload none", true, false}}) {
      GANTRY_ASSIGN_OR_RETURN(const WhatIfAnswer answer, tight->Within(budget_, policy.recompute, policy.tiers));
      Add(policy.topic, policy.what, absl::StrCat(BudgetFlag(), policy.tiers ? where : "", policy.flags), answer);
    }
    return absl::OkStatus();
  }

  absl::Status States(const Program& program) {
    GANTRY_ASSIGN_OR_RETURN(const std::unique_ptr<Case> tight, Case::Make(program, options_, Piece()));
    const auto IsMoment = [](const State& state) { return state.role == StateRole::kMoment; };
    const auto IsAverage = [](const State& state) { return state.role == StateRole::kAverage; };
    if (const auto answer = tight->Moved(IsMoment, 0)) Add("states", "only the optimizers' moments wait in the host", "", *answer);
    if (const auto answer = tight->Moved(IsAverage, 0)) Add("states", "only the averages wait in the host", "", *answer);
    if (const auto answer = tight->Moved([&](const State& state) { return IsMoment(state) || IsAverage(state); }, 0)) {
      Add("states", "moments and averages wait in the host", "", *answer);
    }
    if (const auto answer = tight->Moved([](const State&) { return true; }, kIdleShare)) {
      Add("idle", "the network that is idle in a phase waits in the host, with its moments and averages", "", *answer);
    }
    return absl::OkStatus();
  }

  absl::Status Penalties() {
    if (!what_.penalty) return absl::OkStatus();
    // Any k above 1 builds the same program.
    GANTRY_ASSIGN_OR_RETURN(const Program program, source_({.penalty_every = 2}));
    GANTRY_ASSIGN_OR_RETURN(const std::unique_ptr<Case> lazy, Case::Make(program, options_, 0));
    for (const int every : {4, 16}) {
      if (every == what_.penalty_every) continue;
      WhatIfAnswer answer = lazy->Kept();
      answer.seconds = lazy->Seconds(every);
      Add("penalty", absl::StrFormat("penalties in every %d-th step", every), absl::StrFormat("--set train.penalty_every=%d", every), answer);
    }
    return absl::OkStatus();
  }

  absl::Status Accumulation() {
    int tried = 0;
    for (int accumulate = std::max(2, 2 * what_.accumulate); accumulate <= what_.batch && tried < 2; accumulate *= 2) {
      if (what_.batch % accumulate != 0) continue;
      const absl::StatusOr<Program> program = source_({.accumulate = accumulate});
      if (!program.ok()) break;
      GANTRY_ASSIGN_OR_RETURN(const std::unique_ptr<Case> parts, Case::Make(*program, options_, 0));
      Add("accumulate", absl::StrFormat("the batch of %d in %d parts", what_.batch, accumulate), absl::StrFormat("--set train.accumulate=%d", accumulate),
          parts->Kept());
      ++tried;
    }
    return absl::OkStatus();
  }

  // The largest batch within the budget, found by doubling and halving on the step built for each batch; at most `kBuilds` of them.
  absl::Status Batches(int64_t footprint) {
    constexpr int kBuilds = 8;
    const int64_t unit = std::max(1, what_.accumulate);
    std::map<int64_t, WhatIfAnswer> known;  // by batch
    // Nothing moved: bytes are nearly linear in the batch, so two points tell about where the limit is.
    const auto Kept = [&](int64_t batch) -> std::optional<WhatIfAnswer> {
      if (const auto found = known.find(batch); found != known.end()) return found->second;
      const absl::StatusOr<Program> program = source_({.batch = batch});
      if (!program.ok()) return std::nullopt;
      const auto made = Case::Make(*program, options_, 0);
      if (!made.ok()) return std::nullopt;
      return known[batch] = (*made)->Kept();
    };
    WhatIfAnswer now;
    now.peak_bytes = footprint;
    now.seconds = result_.answers[0].seconds;
    known[what_.batch] = now;
    int64_t low = 0, high = 0;  // fits, does not
    int64_t batch = what_.batch;
    for (int build = 0; build < kBuilds; ++build) {
      const std::optional<WhatIfAnswer> answer = Kept(batch);
      if (!answer) break;
      (answer->peak_bytes <= budget_ ? low : high) = batch;
      int64_t next = 0;
      if (known.size() < 2) {
        next = answer->peak_bytes <= budget_ ? 2 * batch : batch / 2;
      } else {
        // Through the two nearest points.
        auto above = known.lower_bound(batch);
        auto below = above == known.begin() ? above++ : std::prev(above);
        if (above == known.end()) --above, below = std::prev(above);
        const double slope = static_cast<double>(above->second.peak_bytes - below->second.peak_bytes) / static_cast<double>(above->first - below->first);
        next = slope > 0 ? below->first + static_cast<int64_t>(std::floor(static_cast<double>(budget_ - below->second.peak_bytes) / slope)) : high + high;
      }
      if (high > 0) next = std::min(next, high - unit);
      next = std::clamp(std::max(next, low + unit), unit, kLargestBatch) / unit * unit;
      if (next <= low || (high > 0 && next >= high) || known.contains(next)) break;
      batch = next;
    }
    if (low > 0) {
      Add("batch", "the largest batch with nothing moved and nothing run again", absl::StrFormat("--set train.batch=%d", low), known.at(low), low);
    }
    return WithinBatches(std::max(low, unit), unit);
  }

  // The same with what the planner may do: doubled for as long as it fits, then halfway.
  absl::Status WithinBatches(int64_t from, int64_t unit) {
    constexpr int kSolves = 5;
    std::optional<WhatIfAnswer> best;
    int64_t low = 0, high = 0, batch = 2 * from;
    for (int solve = 0; solve < kSolves; ++solve) {
      const absl::StatusOr<Program> program = source_({.batch = batch});
      if (!program.ok()) break;
      GANTRY_ASSIGN_OR_RETURN(const std::unique_ptr<Case> tight, Case::Make(*program, options_, Piece()));
      int64_t largest = 0;
      for (size_t op = 0; op < tight->problem().ops.size(); ++op) largest = std::max(largest, OperandBytes(tight->problem(), static_cast<int>(op)));
      bool fits = false;
      if (largest <= budget_) {
        GANTRY_ASSIGN_OR_RETURN(const WhatIfAnswer answer, tight->Within(budget_, options_.recompute, true));
        fits = answer.fits;
        if (fits) best = answer;
      }
      (fits ? low : high) = batch;
      batch = high == 0 ? 2 * low : (std::max(low, from) + high) / 2 / unit * unit;
      if (batch <= std::max(low, from) || (high > 0 && batch >= high) || batch > kLargestBatch) break;
    }
    if (best) {
      Add("batch", "about the largest batch with values that wait in tiers and ops that run again",
          absl::StrFormat("%s --set train.batch=%d", BudgetFlag(), low), *best, low);
    }
    return absl::OkStatus();
  }

  const StepSource& source_;
  const WhatIfOptions& what_;
  PlanOptions options_, plain_;
  bool allowed_tiers_ = false;
  int64_t budget_ = 0;
  WhatIf result_;
};

std::string MiB(int64_t bytes) { return absl::StrFormat("%.1f", static_cast<double>(bytes) / 1048576.0); }

}  // namespace

absl::StatusOr<WhatIf> AskWhatIf(const StepSource& source, const WhatIfOptions& what, const PlanOptions& options) {
  return Asker(source, what, options).Run();
}

std::string Describe(const WhatIf& what_if) {
  std::string text = absl::StrFormat("budget         %d bytes (%s MiB)%s\nops            %d\ncosts          %s\n\n%12s %10s %8s %8s %5s  \n",
                                     what_if.budget_bytes, MiB(what_if.budget_bytes),
                                     what_if.assumed_budget ? ", half of what the step takes, for none was given" : "", what_if.op_count, what_if.costs,
                                     "device MiB", "tiers MiB", "step s", "batch", "fits");
  for (const WhatIfAnswer& answer : what_if.answers) {
    absl::StrAppend(&text, absl::StrFormat("%12s %10s %8.4g %8d %5s  %s%s%s\n", MiB(answer.peak_bytes), MiB(answer.tier_bytes), answer.seconds, answer.batch,
                                           answer.fits ? "yes" : "no", answer.what, answer.flags.empty() ? "" : ": ", answer.flags));
  }
  return text;
}

std::string ToJson(const WhatIf& what_if) {
  nlohmann::ordered_json json = {{"budget_bytes", what_if.budget_bytes}, {"assumed_budget", what_if.assumed_budget},
                                 {"ops", what_if.op_count},              {"costs", what_if.costs}};
  json["answers"] = nlohmann::ordered_json::array();
  for (const WhatIfAnswer& answer : what_if.answers) {
    json["answers"].push_back({{"topic", answer.topic}, {"what", answer.what}, {"flags", answer.flags}, {"fits", answer.fits}, {"batch", answer.batch},
                               {"peak_bytes", answer.peak_bytes}, {"tier_bytes", answer.tier_bytes}, {"seconds", answer.seconds}});
  }
  return json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace gantry
