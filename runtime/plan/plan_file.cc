#include "runtime/plan/plan_file.h"

#include <algorithm>
#include <map>

#include "absl/strings/str_join.h"
#include "memory/layout/layout_check.h"
#include "nlohmann/json.hpp"
#include "runtime/plan/lay_out.h"
#include "runtime/plan/lending.h"
#include "runtime/plan/overlap.h"
#include "runtime/plan/plan_totals.h"
#include "runtime/plan/cost_model.h"
#include "runtime/plan/reside.h"
#include "runtime/plan/split_batch.h"

namespace gantry {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kMostBytes = int64_t{1} << 40;  // of a buffer or slab: sums of them are no overflow
constexpr std::string_view kActionNames[] = {"run", "again", "fetch", "stash"};

absl::Status Damaged(std::string_view what) {
  return absl::InvalidArgumentError(absl::StrFormat("is no plan that this version can read: %s", what));
}

Json BuffersToJson(const Plan& plan) {
  Json buffers = Json::array();
  for (const PlannedBuffer& buffer : plan.buffers) {
    buffers.push_back({{"name", buffer.name}, {"network", buffer.network}, {"phase", buffer.phase}, {"tier", buffer.tier},
                       {"offset", buffer.offset}, {"bytes", buffer.bytes}, {"lower", buffer.lower}, {"upper", buffer.upper},
                       {"persistent", buffer.persistent}});
  }
  return buffers;
}

// Reads with types checked; the first error sticks.
class Reader {
 public:
  explicit Reader(const Json& json) : json_(json) {}

  const absl::Status& status() const { return status_; }

  template <typename T>
  T Get(const Json& from, std::string_view key, T fallback) {
    const auto found = from.is_object() ? from.find(std::string(key)) : from.end();
    if (!from.is_object() || found == from.end()) {
      Fail(absl::StrFormat("'%s' is missing", key));
      return fallback;
    }
    if constexpr (std::is_same_v<T, std::string>) {
      if (found->is_string()) return found->template get<std::string>();
    } else if constexpr (std::is_same_v<T, bool>) {
      if (found->is_boolean()) return found->template get<bool>();
    } else if constexpr (std::is_same_v<T, double>) {
      if (found->is_number()) return found->template get<double>();
    } else {
      if (found->is_number_integer()) {
        const int64_t value = found->template get<int64_t>();
        if (value >= std::numeric_limits<T>::min() && value <= std::numeric_limits<T>::max()) return static_cast<T>(value);
      }
    }
    Fail(absl::StrFormat("'%s' has a wrong type or range", key));
    return fallback;
  }
  template <typename T>
  T Get(std::string_view key, T fallback) {
    return Get<T>(json_, key, fallback);
  }
  const Json& Array(const Json& from, std::string_view key) {
    static const Json* const empty = new Json(Json::array());
    const auto found = from.is_object() ? from.find(std::string(key)) : from.end();
    if (from.is_object() && found != from.end() && found->is_array()) return *found;
    Fail(absl::StrFormat("'%s' is no list", key));
    return *empty;
  }
  const Json& Array(std::string_view key) { return Array(json_, key); }
  std::vector<int> Integers(const Json& list, std::string_view what) {
    std::vector<int> values;
    if (!list.is_array()) Fail(absl::StrFormat("'%s' is no list", what));
    for (const Json& value : list) {
      if (!value.is_number_integer() || value.get<int64_t>() < INT32_MIN || value.get<int64_t>() > INT32_MAX) {
        Fail(absl::StrFormat("'%s' holds something that is no number", what));
        return values;
      }
      values.push_back(static_cast<int>(value.get<int64_t>()));
    }
    return values;
  }
  void Fail(std::string_view what) {
    if (status_.ok()) status_ = Damaged(what);
  }

 private:
  const Json& json_;
  absl::Status status_;
};

absl::StatusOr<Json> Parse(std::string_view text) {
  if (text.size() > kMaxPlanFileBytes) return Damaged("it is larger than 1 GiB");
  // Depth is bounded before the parser recurses.
  int depth = 0;
  for (const char c : text) {
    depth += c == '[' || c == '{';
    depth -= c == ']' || c == '}';
    if (depth > 64) return Damaged("it is nested too deep");
  }
  Json json = Json::parse(text.begin(), text.end(), nullptr, false);
  if (json.is_discarded() || !json.is_object()) return Damaged("it is not JSON, or was cut short");
  const auto format = json.find("format");
  if (format == json.end() || !format->is_string()) return Damaged("it has no 'format'");
  if (format->get<std::string>() != kPlanFormat) {
    return Damaged(absl::StrFormat("its format is \"%s\", not \"%s\"", format->get<std::string>(), kPlanFormat));
  }
  return json;
}

bool ReadBuffer(Reader& reader, const Json& json, PlannedBuffer& buffer) {
  buffer.name = reader.Get<std::string>(json, "name", "");
  buffer.network = reader.Get<std::string>(json, "network", "");
  buffer.phase = reader.Get<std::string>(json, "phase", "");
  buffer.tier = reader.Get<int>(json, "tier", 0);
  buffer.offset = reader.Get<int64_t>(json, "offset", 0);
  buffer.bytes = reader.Get<int64_t>(json, "bytes", 0);
  buffer.lower = reader.Get<int>(json, "lower", 0);
  buffer.upper = reader.Get<int>(json, "upper", 0);
  buffer.persistent = reader.Get<bool>(json, "persistent", false);
  if (buffer.offset < 0 || buffer.offset > kMostBytes || buffer.bytes < 0 || buffer.bytes > kMostBytes || buffer.lower < 0 ||
      buffer.upper <= buffer.lower) {
    reader.Fail(absl::StrFormat("buffer '%s' has an impossible place, size or life", buffer.name));
  }
  return reader.status().ok();
}

// Of memory of other ranks; others have none of it.
TierKind ReadLentKind(Reader& reader, const Json& json) {
  const std::string name = reader.Get<std::string>(json, "kind", "");
  for (const TierKind kind : {TierKind::kPeer, TierKind::kRemoteHost}) {
    if (name == Name(kind)) return kind;
  }
  reader.Fail(absl::StrFormat("'kind' is \"%s\", not \"peer\" or \"remote\"", name));
  return TierKind::kPeer;
}

std::vector<PlannedLoan> ReadLoans(Reader& reader) {
  std::vector<PlannedLoan> loans;
  for (const Json& entry : reader.Array("loans")) {
    PlannedLoan& loan = loans.emplace_back();
    loan = {.borrower = reader.Get<int>(entry, "borrower", 0), .kind = ReadLentKind(reader, entry), .offset = reader.Get<int64_t>(entry, "offset", 0),
            .bytes = reader.Get<int64_t>(entry, "bytes", 0)};
    if (loan.borrower < 0 || loan.offset < 0 || loan.offset > kMostBytes || loan.bytes <= 0 || loan.bytes > kMostBytes) {
      reader.Fail("a loan has an impossible place or size");
    }
    if (!reader.status().ok()) break;
  }
  return loans;
}

PlannedResidency ReadResidency(Reader& reader, const Json& json) {
  PlannedResidency residency;
  const auto found = json.find("residency");
  if (found == json.end()) {
    reader.Fail("'residency' is missing");
    return residency;
  }
  residency.used = reader.Get<bool>(*found, "used", false);
  residency.budget_bytes = reader.Get<int64_t>(*found, "budget_bytes", 0);
  residency.piece_bytes = reader.Get<int64_t>(*found, "piece_bytes", 0);
  residency.batch_parts = reader.Get<int>(*found, "batch_parts", 1);
  if (!IsBatchParts(residency.batch_parts)) reader.Fail(absl::StrFormat("batch_parts is %d; a batch is in 1, 2, 4 or 8 parts", residency.batch_parts));
  residency.footprint_bytes = reader.Get<int64_t>(*found, "footprint_bytes", 0);
  residency.seconds = reader.Get<double>(*found, "seconds", 0);
  residency.wait_seconds = reader.Get<double>(*found, "wait_seconds", 0);
  residency.recompute_seconds = reader.Get<double>(*found, "recompute_seconds", 0);
  residency.unlimited_seconds = reader.Get<double>(*found, "unlimited_seconds", 0);
  residency.bound_seconds = reader.Get<double>(*found, "bound_seconds", 0);
  residency.stashes = reader.Get<int>(*found, "stashes", 0);
  residency.fetches = reader.Get<int>(*found, "fetches", 0);
  residency.repeats = reader.Get<int>(*found, "repeats", 0);
  residency.masks = reader.Get<int>(*found, "masks", 0);
  residency.zero_stashes = reader.Get<int>(*found, "zero_stashes", 0);
  residency.bf16_stashes = reader.Get<int>(*found, "bf16_stashes", 0);
  return residency;
}

}  // namespace

std::string PlanToJson(const Plan& plan) {
  Json json = {{"format", kPlanFormat},
               {"gantry_version", GANTRY_VERSION_TEXT},
               {"program", plan.origin.program},
               {"prepared", plan.origin.prepared},
               {"machine", plan.origin.machine},
               {"costs", plan.origin.costs},
               {"arena_bytes", plan.arena_bytes},
               {"lower_bound_bytes", plan.lower_bound_bytes},
               {"layout_method", plan.layout_method}};
  if (!plan.origin.parallel.empty()) json["parallel"] = plan.origin.parallel;
  const PlannedResidency& residency = plan.residency;
  json["residency"] = {{"used", residency.used},
                       {"budget_bytes", residency.budget_bytes},
                       {"piece_bytes", residency.piece_bytes},
                       {"batch_parts", residency.batch_parts},
                       {"footprint_bytes", residency.footprint_bytes},
                       {"seconds", residency.seconds},
                       {"wait_seconds", residency.wait_seconds},
                       {"recompute_seconds", residency.recompute_seconds},
                       {"unlimited_seconds", residency.unlimited_seconds},
                       {"bound_seconds", residency.bound_seconds},
                       {"stashes", residency.stashes},
                       {"fetches", residency.fetches},
                       {"repeats", residency.repeats},
                       {"masks", residency.masks},
                       {"zero_stashes", residency.zero_stashes},
                       {"bf16_stashes", residency.bf16_stashes}};
  json["tiers"] = Json::array();
  for (const PlannedTier& tier : plan.tiers) {
    json["tiers"].push_back({{"name", tier.options.name}, {"bytes", tier.bytes}, {"lower_bound_bytes", tier.lower_bound_bytes},
                             {"out_bytes", tier.out_bytes}, {"in_bytes", tier.in_bytes}});
    if (!IsLent(tier.options.kind)) continue;
    json["tiers"].back()["kind"] = std::string(Name(tier.options.kind));
    json["tiers"].back()["lender"] = tier.options.lender;
    json["tiers"].back()["far"] = tier.options.far;
    json["tiers"].back()["lender_offset"] = tier.lender_offset;
  }
  json["loans"] = Json::array();
  for (const PlannedLoan& loan : plan.loans) {
    json["loans"].push_back(
        {{"borrower", loan.borrower}, {"kind", std::string(Name(loan.kind))}, {"offset", loan.offset}, {"bytes", loan.bytes}});
  }
  json["choice"] = Json::array();
  for (const std::vector<Residence>& gaps : plan.origin.choice) {
    Json list = Json::array();
    for (const Residence gap : gaps) list.push_back(static_cast<int>(gap));
    json["choice"].push_back(std::move(list));
  }
  json["actions"] = Json::array();
  for (const ResidencyAction& action : plan.origin.actions) {
    Json entry = {{"do", kActionNames[static_cast<int>(action.kind)]}};
    if (action.op >= 0) entry["op"] = action.op;
    if (action.item >= 0) {
      entry["item"] = action.item;
      entry["tier"] = action.tier;
      entry["done_by"] = action.done_by;
    }
    if (!action.items.empty()) entry["items"] = action.items;
    json["actions"].push_back(std::move(entry));
  }
  json["schedule"] = Json::array();
  for (size_t index = 0; index < plan.schedule.size(); ++index) {
    const PlannedOp& step = plan.schedule[index];
    const Op& op = plan.program.ops()[step.op];
    Json entry = {{"op", std::string(op.definition->name)}, {"phase", plan.program.labels()[op.phase]},
                  {"network", plan.program.labels()[op.network]}};
    if (step.kernel != nullptr) entry["kernel"] = std::string(step.kernel->implementation());
    if (step.scratch_offset != kNoOffset) {
      entry["scratch_offset"] = step.scratch_offset;
      entry["scratch_bytes"] = step.kernel->scratch_bytes();
    }
    if (step.done_by >= 0) entry["done_by"] = step.done_by;
    if (index < plan.costs.size()) {
      const StepCost& cost = plan.costs[index];
      entry["seconds"] = cost.seconds;
      if (cost.lane != PlanLane::kCompute) entry["lane"] = std::string(Name(cost.lane));
      if (!cost.purpose.empty()) {
        entry["purpose"] = cost.purpose;
        entry["bytes"] = cost.bytes;
      }
      if (cost.tier != kDeviceTier) {
        entry["tier"] = cost.tier;
        entry["out"] = cost.out;
        entry["bytes"] = cost.bytes;
      }
    }
    if (const std::string encoding = op.attributes.String("encoding"); !encoding.empty()) entry["encoding"] = encoding;
    json["schedule"].push_back(std::move(entry));
  }
  json["offsets"] = plan.offsets;
  json["buffers"] = BuffersToJson(plan);
  // A line for every buffer and op would be long; one for every key is enough to look at.
  std::string text = "{\n";
  for (auto entry = json.begin(); entry != json.end(); ++entry) {
    if (entry != json.begin()) text += ",\n";
    absl::StrAppend(&text, Json(entry.key()).dump(), ": ");
    if (entry->is_array() && entry->size() > 8) {
      text += "[\n";
      for (size_t i = 0; i < entry->size(); ++i) {
        absl::StrAppend(&text, i == 0 ? "" : ",\n", (*entry)[i].dump(-1, ' ', false, Json::error_handler_t::replace));
      }
      text += "\n]";
    } else {
      text += entry->dump(-1, ' ', false, Json::error_handler_t::replace);
    }
  }
  return text + "\n}\n";
}

absl::StatusOr<Plan> PlanFromJson(std::string_view text, const Program& program, const PlanOptions& given) {
  PlanOptions options = given;
  GANTRY_ASSIGN_OR_RETURN(const Json json, Parse(text));
  Reader reader(json);
  const auto Differs = [&](std::string_view what, std::string_view there, std::string_view here) {
    return absl::InvalidArgumentError(
        absl::StrFormat("the plan was made for another %s: %s, here it is %s; make a new plan", what, there, here));
  };
  if (const std::string version = reader.Get<std::string>("gantry_version", ""); version != GANTRY_VERSION_TEXT) {
    return Differs("version of gantry", version, GANTRY_VERSION_TEXT);
  }
  Plan plan;
  plan.origin.program = reader.Get<std::string>("program", "");
  plan.origin.prepared = reader.Get<std::string>("prepared", "");
  plan.origin.machine = reader.Get<std::string>("machine", "");
  GANTRY_RETURN_IF_ERROR(reader.status());
  if (const std::string here = Fingerprint(program); here != plan.origin.program) {
    return Differs("model, batch or loss", absl::StrCat("step program ", plan.origin.program), here);
  }
  if (const std::string here = MachineText(options); here != plan.origin.machine) return Differs("machine", plan.origin.machine, here);
  plan.residency = ReadResidency(reader, json);
  const PlannedResidency& residency = plan.residency;
  plan.arena_bytes = reader.Get<int64_t>("arena_bytes", 0);
  plan.lower_bound_bytes = reader.Get<int64_t>("lower_bound_bytes", 0);
  plan.layout_method = reader.Get<std::string>("layout_method", "");
  for (const Json& entry : reader.Array("tiers")) {
    PlannedTier tier;
    const std::string name = reader.Get<std::string>(entry, "name", "");
    const bool lent = entry.is_object() && entry.contains("lender");
    // Of the memory of others, the options say only that it may be borrowed.
    const std::string place = lent ? std::string(Name(ReadLentKind(reader, entry))) : name;
    const auto here = std::find_if(given.tiers.begin(), given.tiers.end(), [&](const TierOptions& t) { return t.name == place; });
    if (here == given.tiers.end()) return Differs("place to offload to", name, "not allowed");
    tier.options = *here;
    tier.options.name = name;
    if (lent) {
      tier.options.lender = reader.Get<int>(entry, "lender", 0);
      tier.options.far = reader.Get<bool>(entry, "far", false);
      tier.lender_offset = reader.Get<int64_t>(entry, "lender_offset", 0);
      if (tier.options.lender < 0 || tier.lender_offset < 0 || tier.lender_offset > kMostBytes) reader.Fail("a tier's lender or place is impossible");
    }
    tier.bytes = reader.Get<int64_t>(entry, "bytes", 0);
    tier.lower_bound_bytes = reader.Get<int64_t>(entry, "lower_bound_bytes", 0);
    tier.out_bytes = reader.Get<int64_t>(entry, "out_bytes", 0);
    tier.in_bytes = reader.Get<int64_t>(entry, "in_bytes", 0);
    if (tier.bytes < 0 || tier.bytes > kMostBytes) reader.Fail("a tier's size is impossible");
    plan.tiers.push_back(std::move(tier));
  }
  plan.loans = ReadLoans(reader);
  GANTRY_RETURN_IF_ERROR(reader.status());
  // What numbers of tiers mean is the file's to say.
  options.tiers.clear();
  for (const PlannedTier& tier : plan.tiers) options.tiers.push_back(tier.options);
  if (plan.arena_bytes < 0 || plan.arena_bytes > kMostBytes) return Damaged("the arena's size is impossible");

  Plan base;
  GANTRY_ASSIGN_OR_RETURN(base.program, PrepareProgram(program, options, residency.used ? std::max<int64_t>(1, residency.piece_bytes) : 0,
                                                       residency.batch_parts));
  if (const std::string here = Fingerprint(base.program); here != plan.origin.prepared) {
    return Differs("way of lowering", plan.origin.prepared, here);
  }
  std::vector<int> done_by;
  if (residency.used) {
    for (OpId op = 0; op < static_cast<OpId>(base.program.ops().size()); ++op) base.schedule.push_back({.op = op});
    const Resider resider(base, {}, options);
    ResidencySolution solution;
    for (const Json& gaps : reader.Array("choice")) {
      solution.choice.emplace_back();
      for (const int gap : reader.Integers(gaps, "choice")) {
        if (gap < 0 || gap >= 2 + static_cast<int>(plan.tiers.size())) return Damaged("'choice' names a tier that does not exist");
        solution.choice.back().push_back(static_cast<Residence>(gap));
      }
    }
    for (const Json& entry : reader.Array("actions")) {
      ResidencyAction action;
      const std::string kind = reader.Get<std::string>(entry, "do", "");
      const auto found = std::find(std::begin(kActionNames), std::end(kActionNames), kind);
      if (found == std::end(kActionNames)) return Damaged(absl::StrFormat("there is no action '%s'", kind));
      action.kind = static_cast<ResidencyAction::Kind>(found - std::begin(kActionNames));
      if (action.kind == ResidencyAction::Kind::kFetch || action.kind == ResidencyAction::Kind::kStash) {
        action.item = reader.Get<int>(entry, "item", -1);
        action.tier = reader.Get<int>(entry, "tier", -1);
        action.done_by = reader.Get<int>(entry, "done_by", -1);
      } else {
        action.op = reader.Get<int>(entry, "op", -1);
      }
      if (action.kind == ResidencyAction::Kind::kAgain) action.items = reader.Integers(reader.Array(entry, "items"), "items");
      solution.schedule.actions.push_back(std::move(action));
    }
    GANTRY_RETURN_IF_ERROR(reader.status());
    GANTRY_RETURN_IF_ERROR(CheckActions(resider.problem(), static_cast<int>(plan.tiers.size()), solution));
    GANTRY_ASSIGN_OR_RETURN(ResidentProgram resident, resider.Rewrite(solution));
    plan.program = std::move(resident.program);
    done_by = std::move(resident.done_by);
    plan.origin.choice = std::move(solution.choice);
    plan.origin.actions = std::move(solution.schedule.actions);
  } else {
    plan.program = std::move(base.program);
    done_by.assign(plan.program.ops().size(), -1);
  }
  GANTRY_RETURN_IF_ERROR(ChooseKernels(plan, options));
  SetWaits(plan, options, residency.used ? residency.budget_bytes : 0);
  const Json& schedule = reader.Array("schedule");
  if (schedule.size() != plan.schedule.size()) return Damaged("'schedule' has another number of ops than the program");
  for (size_t i = 0; i < schedule.size(); ++i) {
    PlannedOp& step = plan.schedule[i];
    if (done_by[i] >= 0) step.done_by = done_by[i];
    const Op& op = plan.program.ops()[step.op];
    const std::string encoding = schedule[i].is_object() && schedule[i].contains("encoding") ? reader.Get<std::string>(schedule[i], "encoding", "")
                                                                                           : std::string();
    if (const std::string here = op.attributes.String("encoding"); encoding != here) {
      return Differs("encoding of what waits in tiers (memory.stash, memory.encode, memory.link)", encoding.empty() ? "none" : encoding,
                     here.empty() ? "none" : here);
    }
    const size_t scratch = step.kernel == nullptr ? 0 : step.kernel->scratch_bytes();
    if (scratch == 0) continue;
    step.scratch_offset = reader.Get<int64_t>(schedule[i], "scratch_offset", kNoOffset);
    if (const auto bytes = reader.Get<int64_t>(schedule[i], "scratch_bytes", 0); static_cast<size_t>(bytes) != scratch) {
      return Differs("build", absl::StrFormat("%s took %d bytes of scratch", plan.program.Describe(step.op), bytes),
                     absl::StrFormat("%d", scratch));
    }
  }
  for (const Json& offset : reader.Array("offsets")) {
    if (!offset.is_number_integer()) return Damaged("'offsets' holds something that is no number");
    plan.offsets.push_back(offset.get<int64_t>());
  }
  for (const Json& entry : reader.Array("buffers")) {
    PlannedBuffer buffer;
    if (!ReadBuffer(reader, entry, buffer)) break;
    plan.buffers.push_back(std::move(buffer));
  }
  GANTRY_RETURN_IF_ERROR(reader.status());
  plan.origin.costs = CostText(options);
  plan.costs = StepCosts(plan, options);
  plan.checksums = options.checksums;
  GANTRY_RETURN_IF_ERROR(Annotate(VerifyPlan(plan), "the plan does not hold"));
  return plan;
}

absl::StatusOr<PlanSummary> SummarizePlan(std::string_view text) {
  GANTRY_ASSIGN_OR_RETURN(const Json json, Parse(text));
  Reader reader(json);
  PlanSummary plan;
  plan.version = reader.Get<std::string>("gantry_version", "");
  plan.program = reader.Get<std::string>("program", "");
  plan.machine = reader.Get<std::string>("machine", "");
  plan.arena_bytes = reader.Get<int64_t>("arena_bytes", 0);
  plan.lower_bound_bytes = reader.Get<int64_t>("lower_bound_bytes", 0);
  plan.residency = ReadResidency(reader, json);
  plan.costs = reader.Get<std::string>("costs", "");
  plan.parallel = json.contains("parallel") ? reader.Get<std::string>("parallel", "") : "";
  for (const Json& entry : reader.Array("schedule")) {
    StepCost step{.phase = reader.Get<std::string>(entry, "phase", ""), .network = reader.Get<std::string>(entry, "network", ""),
                  .seconds = reader.Get<double>(entry, "seconds", 0)};
    if (entry.is_object() && entry.contains("tier")) {
      step.tier = reader.Get<int>(entry, "tier", 0);
      step.out = reader.Get<bool>(entry, "out", false);
      step.bytes = reader.Get<int64_t>(entry, "bytes", 0);
      if (step.bytes < 0 || step.bytes > kMostBytes || step.tier < 0) reader.Fail("a copy of the schedule is impossible");
    }
    if (!reader.status().ok()) return reader.status();
    plan.steps.push_back(std::move(step));
  }
  plan.ops = static_cast<int>(plan.steps.size());
  for (const Json& entry : reader.Array("tiers")) {
    plan.tiers.push_back({reader.Get<std::string>(entry, "name", ""), reader.Get<int64_t>(entry, "bytes", 0)});
  }
  plan.loans = ReadLoans(reader);
  for (const Json& entry : reader.Array("buffers")) {
    PlannedBuffer buffer;
    if (!ReadBuffer(reader, entry, buffer)) break;
    plan.buffers.push_back(std::move(buffer));
  }
  GANTRY_RETURN_IF_ERROR(reader.status());
  return plan;
}

absl::Status CheckSummary(const PlanSummary& plan) {
  int64_t taken[2] = {plan.arena_bytes, 0};  // of the device, of the host memory that is lent
  for (const PlannedLoan& loan : plan.loans) {
    int64_t& behind = taken[loan.kind == TierKind::kPeer ? 0 : 1];
    if (loan.offset < behind) {
      return absl::FailedPreconditionError(absl::StrFormat("what is lent to rank %d, %d bytes of the %s from offset %d on, overlaps what lies "
                                                           "before it, up to byte %d",
                                                           loan.borrower, loan.bytes, LenderMemory(loan.kind), loan.offset, behind));
    }
    behind = loan.offset + loan.bytes;
  }
  if (plan.residency.budget_bytes > 0 && taken[0] > plan.residency.budget_bytes) {
    return absl::FailedPreconditionError(
        absl::StrFormat("the arena%s takes %d bytes, the budget is %d", plan.loans.empty() ? "" : " with what is lent behind it",
                        taken[0], plan.residency.budget_bytes));
  }
  for (int tier = kDeviceTier; tier < static_cast<int>(plan.tiers.size()); ++tier) {
    LayoutProblem problem;
    Layout layout;
    const int64_t end = tier == kDeviceTier ? plan.arena_bytes : plan.tiers[tier].bytes;
    for (const PlannedBuffer& buffer : plan.buffers) {
      if (buffer.tier != tier) continue;
      problem.buffers.push_back({.lower = buffer.lower, .upper = buffer.upper, .size = buffer.bytes, .alignment = 64});
      problem.names.push_back(buffer.name);
      layout.offsets.push_back(buffer.offset);
      layout.height = std::max(layout.height, buffer.offset + buffer.bytes);
    }
    const std::string where = tier == kDeviceTier ? "the arena" : plan.tiers[tier].name;
    if (absl::Status status = CheckLayout(problem, layout); !status.ok()) {
      return absl::FailedPreconditionError(absl::StrCat(where, ": ", ToAbsl(Message(status))));
    }
    if (layout.height > end) {
      return absl::FailedPreconditionError(absl::StrFormat("%s has %d bytes, its buffers reach %d", where, end, layout.height));
    }
  }
  for (const PlannedBuffer& buffer : plan.buffers) {
    if (buffer.tier < kDeviceTier || buffer.tier >= static_cast<int>(plan.tiers.size())) {
      return absl::FailedPreconditionError(absl::StrFormat("'%s' is in a tier that the plan does not have", buffer.name));
    }
  }
  return absl::OkStatus();
}

namespace {

PlanTotals TotalsOf(const PlanSummary& plan) {
  std::vector<std::pair<std::string, int64_t>> tiers;
  for (const PlanSummary::Tier& tier : plan.tiers) tiers.emplace_back(tier.name, tier.bytes);
  return TotalsOf(plan.steps, plan.buffers, tiers);
}

}  // namespace

std::string Describe(const PlanSummary& plan) {
  std::string text = absl::StrFormat(
      "version        %s\nprogram        %s\nmachine        %s\nops            %d\narena          %d bytes (lower bound %d)\n", plan.version,
      plan.program, plan.machine, plan.ops, plan.arena_bytes, plan.lower_bound_bytes);
  if (plan.residency.budget_bytes > 0) absl::StrAppend(&text, absl::StrFormat("budget         %d bytes\n", plan.residency.budget_bytes));
  absl::StrAppend(&text, absl::StrFormat("footprint      %d bytes with nothing offloaded\n", plan.residency.footprint_bytes));
  for (const PlanSummary::Tier& tier : plan.tiers) absl::StrAppend(&text, absl::StrFormat("tier %-9s %d bytes\n", tier.name, tier.bytes));
  for (const PlannedLoan& loan : plan.loans) absl::StrAppend(&text, Describe(loan), "\n");
  absl::StrAppend(&text, absl::StrFormat("residency      %d copies out, %d in, %d ops run again\npredicted      %.4g s a step\n",
                                         plan.residency.stashes, plan.residency.fetches, plan.residency.repeats, plan.residency.seconds));
  absl::StrAppend(&text, "costs          ", plan.costs, "\n", Describe(TotalsOf(plan)));
  return text + DescribeEncodings(plan.residency);
}

std::string DescribeDifference(const PlanSummary& from, const PlanSummary& to) {
  std::string text;
  const auto Number = [&](std::string_view name, int64_t before, int64_t after) {
    if (before == after) return;
    absl::StrAppend(&text, absl::StrFormat("%-14s %d -> %d (%+d)\n", name, before, after, after - before));
  };
  if (from.program != to.program) absl::StrAppend(&text, "program        ", from.program, " -> ", to.program, "\n");
  if (from.machine != to.machine) absl::StrAppend(&text, "machine        ", from.machine, " -> ", to.machine, "\n");
  if (from.costs != to.costs) absl::StrAppend(&text, "costs          ", from.costs, " -> ", to.costs, "\n");
  Number("arena", from.arena_bytes, to.arena_bytes);
  Number("budget", from.residency.budget_bytes, to.residency.budget_bytes);
  Number("footprint", from.residency.footprint_bytes, to.residency.footprint_bytes);
  Number("ops", from.ops, to.ops);
  const auto Lent = [](const PlanSummary& plan) {
    int64_t bytes = 0;
    for (const PlannedLoan& loan : plan.loans) bytes += loan.bytes;
    return bytes;
  };
  Number("lent", Lent(from), Lent(to));
  Number("copies out", from.residency.stashes, to.residency.stashes);
  Number("copies in", from.residency.fetches, to.residency.fetches);
  Number("run again", from.residency.repeats, to.residency.repeats);
  Number("sign bits", from.residency.masks, to.residency.masks);
  Number("without zeros", from.residency.zero_stashes, to.residency.zero_stashes);
  Number("lossy copies", from.residency.bf16_stashes, to.residency.bf16_stashes);
  if (from.residency.seconds != to.residency.seconds) absl::StrAppend(&text, absl::StrFormat("predicted      %.4g s -> %.4g s\n", from.residency.seconds, to.residency.seconds));
  text += DescribeDifference(TotalsOf(from), TotalsOf(to));
  // Buffers have no identity of their own: those of the same name and place in the step are compared by their number and bytes.
  struct Sum {
    int count = 0;
    int64_t bytes = 0;
  };
  std::map<std::string, std::pair<Sum, Sum>> groups;
  const auto TierName = [](const PlanSummary& plan, int tier) {
    return tier >= 0 && tier < static_cast<int>(plan.tiers.size()) ? plan.tiers[tier].name : std::string("device");
  };
  const auto Add = [&](const PlanSummary& plan, bool second) {
    for (const PlannedBuffer& buffer : plan.buffers) {
      auto& pair = groups[absl::StrJoin({buffer.name, buffer.network, buffer.phase, TierName(plan, buffer.tier)}, " | ")];
      Sum& sum = second ? pair.second : pair.first;
      ++sum.count;
      sum.bytes += buffer.bytes;
    }
  };
  Add(from, false);
  Add(to, true);
  for (const auto& [name, sums] : groups) {
    const auto& [before, after] = sums;
    if (before.count == after.count && before.bytes == after.bytes) continue;
    absl::StrAppend(&text, absl::StrFormat("  %s: %d of %d bytes -> %d of %d bytes\n", name, before.count, before.bytes, after.count,
                                           after.bytes));
  }
  return text.empty() ? "no difference\n" : text;
}

}  // namespace gantry
