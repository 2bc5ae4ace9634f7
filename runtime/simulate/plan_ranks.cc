#include "runtime/simulate/plan_ranks.h"

#include <algorithm>
#include <map>
#include <tuple>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_join.h"
#include "memory/hash.h"
#include "nlohmann/json.hpp"
#include "runtime/plan/cost_model.h"
#include "runtime/plan/lending.h"
#include "runtime/plan/memory_options.h"
#include "runtime/plan/plan_totals.h"
#include "runtime/plan/link_model.h"

namespace gantry {
namespace {

// What a plan of the program depends on: ranks with the same text may share one. Places in groups, and where a part
// begins, do not count.
std::string SignatureOf(const Program& program) {
  std::string text;
  for (const State& state : program.states()) absl::StrAppend(&text, program.TypeOf(state.first).ToString(), "\n");
  for (OpId id = 0; id < static_cast<OpId>(program.ops().size()); ++id) {
    const Op& op = program.ops()[id];
    absl::StrAppend(&text, ToAbsl(op.definition->name), " ", absl::StrJoin(op.inputs, ","), " ");
    for (ValueId input : op.inputs) absl::StrAppend(&text, program.TypeOf(input).ToString(), " ");
    for (ValueId output : op.outputs) absl::StrAppend(&text, program.TypeOf(output).ToString(), " ");
    if (op.definition->communicates) {
      absl::StrAppend(&text, LinkModel::Bytes(program, id));
    } else if (op.definition->name != "slice") {
      text += op.attributes.ToString();
    }
    text += '\n';
  }
  return text;
}

// Groups in which a rank exchanges, each once.
std::vector<std::vector<int>> DistinctGroups(const Parallel& parallel, int rank, int ranks) {
  std::vector<std::vector<int>> distinct;
  for (std::vector<int>& group : GroupsOf(parallel, rank, ranks)) {
    if (group.size() > 1 && std::find(distinct.begin(), distinct.end(), group) == distinct.end())
      distinct.push_back(std::move(group));
  }
  return distinct;
}

// For many ranks: which rank stands for each. Along space the first, the last, and the ones in between; along the batch
// all.
std::vector<int> Representatives(const Parallel& parallel, int ranks) {
  const MeshSize mesh = MeshOf(parallel, ranks);
  const int half = mesh.batch * mesh.second;
  std::vector<int> stands_for(static_cast<size_t>(ranks));
  for (int rank = 0; rank < ranks; ++rank) {
    const int column = rank % half % mesh.second;
    const int like = column == 0 || mesh.second < 3 ? column : column == mesh.second - 1 ? column : 1;
    stands_for[static_cast<size_t>(rank)] = rank / half * half + like;
  }
  return stands_for;
}

absl::StatusOr<SimulatedSchedule> ScheduleOf(const Plan& plan, const PlanOptions& options, const LinkModel& links,
                                             const std::vector<std::vector<int>>& groups) {
  const CostModel costs(options);
  std::vector<ResidencyTier> tiers;
  for (const PlannedTier& tier : plan.tiers) tiers.push_back(costs.TierOf(tier.options));
  SimulatedSchedule schedule;
  for (size_t step = 0; step < plan.schedule.size(); ++step) {
    const PlannedOp& planned = plan.schedule[step];
    const Op& op = plan.program.ops()[planned.op];
    const StepCost& cost = plan.costs[step];
    SimulatedOp simulated{.seconds = cost.seconds, .done_by = planned.done_by};
    if (op.definition->moves) {
      const ResidencyTier& tier = tiers[static_cast<size_t>(cost.tier)];
      simulated.lane = cost.out ? SimulatedLane::kCopyOut : SimulatedLane::kCopyIn;
      simulated.tier = cost.tier;
      simulated.compute_seconds = static_cast<double>(cost.bytes) *
                                  (cost.out ? tier.out_compute_seconds_per_byte : tier.in_compute_seconds_per_byte);
    } else if (op.definition->communicates) {
      const std::vector<int64_t> members = op.attributes.Ints("ranks");
      const auto found = std::find(groups.begin(), groups.end(), std::vector<int>(members.begin(), members.end()));
      if (found == groups.end())
        return absl::InternalError(
            absl::StrFormat("%s is for a group that the mesh does not have", plan.program.Describe(planned.op)));
      simulated.group = static_cast<int>(found - groups.begin());
      simulated.seconds = std::max(links.Seconds(plan.program, planned.op, *found), options.link.Seconds(LinkBytes(plan.program, planned.op)));
      if (planned.done_by >= 0) simulated.compute_seconds = links.StartSeconds(*found);
      simulated.lane = planned.done_by < 0                             ? SimulatedLane::kExchange
                       : op.attributes.String("purpose") == "gradient" ? SimulatedLane::kGradients
                       : cost.lane == PlanLane::kActivations           ? SimulatedLane::kActivations
                                                                       : SimulatedLane::kGathers;
    }
    schedule.push_back(simulated);
  }
  return schedule;
}

int64_t ExchangedBytes(const Plan& plan) {
  double bytes = 0.0;
  for (const PlannedOp& step : plan.schedule) {
    if (plan.program.ops()[step.op].definition->communicates) bytes += LinkModel::Bytes(plan.program, step.op);
  }
  return static_cast<int64_t>(bytes);
}

constexpr char kRankPayload[] = "gantry/rank";

absl::Status OfRank(const absl::Status& status, int rank, int ranks, const Parallel& parallel) {
  absl::Status named = Annotate(status, absl::StrFormat("rank %d of %d, --parallel %s", rank, ranks, parallel.Text()));
  named.SetPayload(kRankPayload, absl::Cord(absl::StrCat(rank)));
  return named;
}

std::vector<std::string> Assumptions(const JobPlan& job, const PlanOptions& options) {
  std::vector<std::string> lines = {absl::StrCat("costs of ops: ", CostText(options))};
  const Machine* const machine = options.machine.get();
  if (machine == nullptr || machine->links.empty()) {
    lines.push_back(absl::StrFormat("links are not described: %.3g bytes/s and %.3g s between any two ranks",
                                    LinkModel::kDefaultBandwidth, LinkModel::kDefaultLatency));
  }
  lines.emplace_back(
      "an exchange begins when the last rank of its group has come, and takes the closed form of its algorithm "
      "(docs/decisions/0015-simulation.md)");
  lines.emplace_back(
      "exchanges of different lanes do not slow each other down; kernels are those of the machine that plans");
  if (job.rank_count > kExactRanks) {
    lines.push_back(
        absl::StrFormat("of more than %d ranks, those with the same place along space (first, last, between) are taken "
                        "as equal: states in parts "
                        "may differ by an element, and a batch that does not divide by a sample",
                        kExactRanks));
  }
  return lines;
}

}  // namespace

int64_t JobPlan::peak_bytes() const {
  int64_t bytes = 0;
  for (const RankClass& alike : classes) bytes = std::max(bytes, DeviceBytes(alike.plan));
  return bytes;
}

const RankClass& JobPlan::ClassOf(int rank) const {
  return *std::find_if(classes.begin(), classes.end(), [&](const RankClass& alike) {
    return std::binary_search(alike.ranks.begin(), alike.ranks.end(), rank);
  });
}

std::optional<int> RankOf(const absl::Status& status) {
  const auto payload = status.GetPayload(kRankPayload);
  int rank = 0;
  if (!payload || !absl::SimpleAtoi(std::string(*payload), &rank)) return std::nullopt;
  return rank;
}

void SetSpeeds(const PlanOptions& options, int ranks, Parallel& parallel) {
  if (options.machine == nullptr || options.machine->rank_speeds.empty()) return;
  const std::vector<double>& described = options.machine->rank_speeds;
  parallel.speeds.resize(static_cast<size_t>(ranks));
  for (size_t rank = 0; rank < parallel.speeds.size(); ++rank)
    parallel.speeds[rank] = described[rank % described.size()];
}

namespace {

// Ranks with the same program and the same budget, planned without the others' memory.
struct PlannedAlone {
  std::vector<int> ranks;
  Program program;
  PlanOptions options;
  absl::StatusOr<Plan> plan;
};

// What each rank, planned by itself so far, borrows from the others.
absl::Status PlanLoans(std::deque<PlannedAlone>& ranks, const LinkModel& links) {
  std::vector<RankOffer> offers;
  for (const PlannedAlone& rank : ranks) {
    GANTRY_ASSIGN_OR_RETURN(offers.emplace_back(), OfferOf(rank.plan, rank.options, links.NodeOf(rank.ranks[0])));
  }
  const std::vector<Loan> loans = MatchLoans(offers, ranks[0].options);
  std::vector<LoanTrace> taken;
  for (PlannedAlone& rank : ranks) {
    rank.plan = PlanWithLoans(rank.program, rank.options, rank.ranks[0], loans, std::move(rank.plan));
    if (!rank.plan.ok()) return absl::OkStatus();  // the caller says which rank it is
    taken.push_back(LoansOf(*rank.plan, rank.ranks[0]));
  }
  for (PlannedAlone& rank : ranks) {
    Settle(taken, rank.ranks[0], *rank.plan);
    taken[static_cast<size_t>(rank.ranks[0])] = LoansOf(*rank.plan, rank.ranks[0]);
  }
  return VerifyLoans(taken);
}

}  // namespace

absl::StatusOr<JobPlan> PlanRanks(const Program& program, const Parallel& split, int ranks, const PlanOptions& given) {
  const LinkModel links(given.machine.get(), given.ranks_of_machine);
  GANTRY_RETURN_IF_ERROR(links.Check(ranks));
  Parallel parallel = split;
  PlanOptions options = given;
  SetOrder(parallel, options);
  JobPlan job{.parallel = parallel,
              .rank_count = ranks,
              .node_count = links.NodeOf(ranks - 1) + 1,
              .exchanges = std::make_shared<ExchangeKernels>()};
  options.ranks_of_machine = std::min(ranks, links.ranks_per_node());
  if (ranks > 1) options.exchanges = job.exchanges.get();
  if (ranks == 1) GANTRY_RETURN_IF_ERROR(RequireOneRank(options));
  const bool lending = ranks > 1 && MayBorrow(options);
  if (lending && ranks > kExactRanks) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "%d ranks that lend each other memory: of more than %d, ranks are taken as equal, and so not planned one by one; plan for fewer, or "
        "without \"peer\" and \"remote\" in memory.offload",
        ranks, kExactRanks));
  }
  std::deque<PlannedAlone> planned;
  std::vector<int> stands_for(static_cast<size_t>(ranks));
  std::map<std::string, size_t> known;                                 // place in `planned`, by program and budget
  std::map<std::tuple<int, int64_t, double>, size_t> of_representative;  // likewise, by representative and budget
  if (ranks > kExactRanks) stands_for = Representatives(parallel, ranks);
  for (int rank = 0; rank < ranks; ++rank) {
    if (ranks <= kExactRanks) stands_for[static_cast<size_t>(rank)] = rank;
    const int like = stands_for[static_cast<size_t>(rank)];
    PlanOptions mine = options;
    GANTRY_RETURN_IF_ERROR(TakeRankMemory(rank, ranks, mine));
    const MemoryBudget& budget = mine.device_memory;
    const auto [same, is_new] = of_representative.try_emplace({like, budget.bytes, budget.fraction}, 0);
    if (!is_new) {
      planned[same->second].ranks.push_back(rank);
      continue;
    }
    GANTRY_ASSIGN_OR_RETURN(RankProgram part, PartitionFor(program, parallel, like, ranks));
    for (const std::string& name : part.gathered) {
      if (std::find(job.gathered.begin(), job.gathered.end(), name) == job.gathered.end()) job.gathered.push_back(name);
    }
    const std::string key = absl::StrCat(SignatureOf(part.program), budget.bytes, " ", budget.fraction, " ", lending ? rank : 0);
    const auto [found, added] = known.try_emplace(key, planned.size());
    same->second = found->second;
    if (!added) {
      planned[found->second].ranks.push_back(rank);
      continue;
    }
    absl::StatusOr<Plan> plan = PlanAlone(part.program, mine);
    const bool may_borrow = lending && absl::IsResourceExhausted(plan.status());
    if (!plan.ok() && !may_borrow) return OfRank(plan.status(), rank, ranks, parallel);
    planned.push_back({{rank}, std::move(part.program), std::move(mine), std::move(plan)});
  }
  if (lending) GANTRY_RETURN_IF_ERROR(PlanLoans(planned, links));
  for (PlannedAlone& alike : planned) {
    if (!alike.plan.ok()) return OfRank(alike.plan.status(), alike.ranks[0], ranks, parallel);
    const int64_t exchanged = ExchangedBytes(*alike.plan);
    if (ranks > 1) alike.plan->origin.parallel = parallel.TextOrBatch();
    job.classes.push_back({*std::move(alike.plan), std::move(alike.ranks), exchanged});
  }
  // The rank whose program a class was planned for knows which of its groups an exchange is of.
  std::vector<SimulatedSchedule> schedules;
  for (const RankClass& alike : job.classes) {
    GANTRY_ASSIGN_OR_RETURN(
        SimulatedSchedule schedule,
        ScheduleOf(alike.plan, options, links,
                   DistinctGroups(parallel, stands_for[static_cast<size_t>(alike.ranks[0])], ranks)));
    schedules.push_back(std::move(schedule));
  }
  std::vector<SimulatedRank> simulated(static_cast<size_t>(ranks));
  for (size_t c = 0; c < job.classes.size(); ++c) {
    for (const int rank : job.classes[c].ranks) simulated[static_cast<size_t>(rank)].schedule = &schedules[c];
  }
  std::map<std::vector<int>, int> numbers;
  for (int rank = 0; rank < ranks; ++rank) {
    SimulatedRank& mine = simulated[static_cast<size_t>(rank)];
    if (!parallel.speeds.empty()) mine.speed = parallel.speeds[static_cast<size_t>(rank) % parallel.speeds.size()];
    for (const std::vector<int>& group : DistinctGroups(parallel, rank, ranks)) {
      mine.groups.push_back(numbers.try_emplace(group, static_cast<int>(numbers.size())).first->second);
    }
  }
  GANTRY_ASSIGN_OR_RETURN(job.simulation, Simulate(simulated));
  job.assumptions = Assumptions(job, options);
  return job;
}

namespace {

std::string RanksText(const std::vector<int>& ranks) {
  std::string text;
  for (size_t first = 0; first < ranks.size();) {
    size_t last = first;
    while (last + 1 < ranks.size() && ranks[last + 1] == ranks[last] + 1) ++last;
    absl::StrAppend(&text, text.empty() ? "" : ",", ranks[first]);
    if (last > first) absl::StrAppend(&text, "-", ranks[last]);
    first = last + 1;
  }
  return text.size() <= 24 ? text : absl::StrFormat("%d and %d like it", ranks[0], ranks.size() - 1);
}

int64_t StateBytes(const Plan& plan) {
  int64_t bytes = 0;
  for (const PlannedBuffer& buffer : plan.buffers)
    bytes += buffer.persistent && buffer.tier == kDeviceTier ? buffer.bytes : 0;
  return bytes;
}

}  // namespace

std::string Describe(const JobPlan& job) {
  const Simulation& simulation = job.simulation;
  const MeshSize mesh = MeshOf(job.parallel, job.rank_count);
  std::string text = absl::StrFormat(
      "ranks          %d on %d %s, %s, a mesh of %d x %d\nstep           %.4g s\nlimit          %s: of the step's "
      "longest chain",
      job.rank_count, job.node_count, job.node_count == 1 ? "node" : "nodes",
      job.parallel.TextOrBatch(), mesh.batch, mesh.second, simulation.seconds,
      Name(simulation.limit()));
  for (int lane = 0; lane < kSimulatedLanes; ++lane) {
    const double seconds = simulation.critical[static_cast<size_t>(lane)];
    if (seconds > 0)
      absl::StrAppend(&text, absl::StrFormat(" %.1f %% %s", 100 * seconds / simulation.seconds,
                                             Name(static_cast<SimulatedLane>(lane))));
  }
  absl::StrAppend(
      &text, absl::StrFormat("\n\n%-24s %14s %14s %14s %10s %10s %10s %10s\n", "ranks", "device bytes", "of it states",
                             "link bytes", "compute s", "exchange s", "peers s", "copies s"));
  for (const RankClass& alike : job.classes) {
    const SimulatedTimes& times = simulation.ranks[static_cast<size_t>(alike.ranks[0])];
    absl::StrAppend(&text, absl::StrFormat("%-24s %14d %14d %14d %10.4g %10.4g %10.4g %10.4g\n", RanksText(alike.ranks),
                                           DeviceBytes(alike.plan), StateBytes(alike.plan), alike.exchanged_bytes,
                                           times.compute, times.exchange_wait, times.peer_wait, times.copy_wait));
    for (const PlannedTier& tier : alike.plan.tiers) {
      if (tier.bytes > 0)
        absl::StrAppend(&text, absl::StrFormat("  tier %-17s %14d bytes, %d out and %d in\n", tier.options.name,
                                               tier.bytes, tier.out_bytes, tier.in_bytes));
    }
    for (const PlannedLoan& loan : alike.plan.loans) absl::StrAppend(&text, "  ", Describe(loan), "\n");
  }
  if (!job.gathered.empty())
    absl::StrAppend(&text, "\ncomputed whole by every rank: ", absl::StrJoin(job.gathered, ", "), "\n");
  absl::StrAppend(&text, "\nassumed:\n");
  for (const std::string& line : job.assumptions) absl::StrAppend(&text, "  ", line, "\n");
  return text;
}

std::string ToJson(const JobPlan& job) {
  nlohmann::ordered_json json;
  json["ranks"] = job.rank_count;
  json["nodes"] = job.node_count;
  json["parallel"] = job.parallel.TextOrBatch();
  json["seconds"] = job.simulation.seconds;
  json["limit"] = std::string(Name(job.simulation.limit()));
  for (int lane = 0; lane < kSimulatedLanes; ++lane) {
    json["critical"][std::string(Name(static_cast<SimulatedLane>(lane)))] =
        job.simulation.critical[static_cast<size_t>(lane)];
  }
  for (const RankClass& alike : job.classes) {
    const SimulatedTimes& times = job.simulation.ranks[static_cast<size_t>(alike.ranks[0])];
    nlohmann::ordered_json entry;
    entry["ranks"] = alike.ranks;
    entry["device_bytes"] = DeviceBytes(alike.plan);
    entry["state_bytes"] = StateBytes(alike.plan);
    entry["link_bytes"] = alike.exchanged_bytes;
    entry["compute_seconds"] = times.compute;
    entry["exchange_wait_seconds"] = times.exchange_wait;
    entry["peer_wait_seconds"] = times.peer_wait;
    entry["copy_wait_seconds"] = times.copy_wait;
    entry["tiers"] = nlohmann::ordered_json::array();
    for (const PlannedTier& tier : alike.plan.tiers) {
      entry["tiers"].push_back({{"name", tier.options.name},
                                {"bytes", tier.bytes},
                                {"out_bytes", tier.out_bytes},
                                {"in_bytes", tier.in_bytes}});
    }
    entry["loans"] = nlohmann::ordered_json::array();
    for (const PlannedLoan& loan : alike.plan.loans) {
      entry["loans"].push_back(
          {{"rank", loan.borrower}, {"of", std::string(LenderMemory(loan.kind))}, {"bytes", loan.bytes}});
    }
    json["classes"].push_back(std::move(entry));
  }
  json["assumed"] = job.assumptions;
  return json.dump();
}

}  // namespace gantry
