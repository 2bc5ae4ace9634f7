#include "runtime/partition/parallel.h"

#include <algorithm>
#include <deque>
#include <set>

#include "absl/strings/numbers.h"
#include "absl/strings/str_join.h"
#include "runtime/graph/rewrite.h"
#include "runtime/partition/defer_tail.h"
#include "runtime/partition/gradient_ops.h"
#include "runtime/partition/pipeline.h"
#include "runtime/partition/roles.h"
#include "runtime/partition/split_gradients.h"

namespace gantry {
namespace {

std::vector<int> Axis(int first, int step, int count) {
  std::vector<int> ranks(count);
  for (int i = 0; i < count; ++i) ranks[i] = first + i * step;
  return ranks;
}

// Norms of gradients, and what follows from them, just before the updates of their network: they would want each gradient at once, where
// exchanges of several can go together.
absl::StatusOr<Program> HoldNorms(const Program& program) {
  Program target;
  ProgramCopier copier(program, target);
  std::vector<OpId> held;
  std::vector<bool> of_held(program.values().size(), false);
  const auto Release = [&] {
    for (OpId id : held) copier.Copy(id);
    held.clear();
    of_held.assign(of_held.size(), false);
  };
  for (OpId id = 0; id < static_cast<OpId>(program.ops().size()); ++id) {
    const Op& op = program.ops()[id];
    const bool update = UpdateCount(op) > 0;
    bool waits = op.definition->name == "sum_squares";
    for (ValueId input : op.inputs) waits = waits || of_held[input];
    const bool same_network = !held.empty() && program.ops()[held.front()].network == op.network;
    if (update && (waits || same_network)) {
      Release();
      waits = false;
    }
    if (!waits) {
      copier.Copy(id);
      continue;
    }
    if (!held.empty() && op.definition->name == "sum_squares" && !same_network) Release();
    held.push_back(id);
    for (ValueId output : op.outputs) of_held[output] = true;
  }
  Release();
  copier.Finish();
  GANTRY_RETURN_IF_ERROR(target.status());
  return target;
}

// What only updates need goes as soon as it can: gradients in the order in which a backward pass reaches them, so that their exchanges begin
// while it goes on, whatever order was best for memory alone.
absl::StatusOr<Program> GradientsFirst(const Program& program) {
  const auto count = static_cast<OpId>(program.ops().size());
  const std::vector<bool> hastens = NeededByUpdatesOnly(program);
  std::vector<std::vector<OpId>> readers(program.values().size());
  std::vector<int> missing(count, 0);
  for (OpId id = 0; id < count; ++id) {
    for (ValueId input : program.ops()[id].inputs) {
      if (program.values()[input].kind != ValueKind::kComputed) continue;
      readers[input].push_back(id);
      ++missing[id];
    }
  }
  Program target;
  ProgramCopier copier(program, target);
  std::vector<bool> done(count, false);
  std::deque<OpId> ready;
  for (OpId id = 0; id < count; ++id) {
    if (!done[id]) ready.push_back(id);
    for (; !ready.empty(); ready.pop_front()) {
      const OpId next = ready.front();
      done[next] = true;
      copier.Copy(next);
      for (ValueId output : program.ops()[next].outputs) {
        for (OpId reader : readers[output]) {
          if (--missing[reader] == 0 && hastens[reader] && program.ops()[reader].condition == kNoValue && reader > next) ready.push_back(reader);
        }
      }
    }
  }
  copier.Finish();
  GANTRY_RETURN_IF_ERROR(target.status());
  return target;
}

}  // namespace

namespace {

absl::StatusOr<std::vector<double>> ParseShares(std::string_view text) {
  std::vector<double> shares;
  while (true) {
    const size_t colon = std::min(text.find(':'), text.size());
    double share = 0.0;
    if (!absl::SimpleAtod(ToAbsl(text.substr(0, colon)), &share) || !(share >= 1e-6 && share <= 1e6)) {
      return absl::InvalidArgumentError(
          absl::StrFormat("parallel.split has \"%s\" as a share of the work; shares are numbers from 1e-6 to 1e6, one a rank: \"batch=4:2:1\"", text.substr(0, colon)));
    }
    shares.push_back(share);
    if (colon == text.size()) return shares;
    text.remove_prefix(colon + 1);
  }
}

}  // namespace

absl::StatusOr<Parallel> Parallel::Parse(std::string_view text) {
  Parallel parallel;
  if (text == "auto") {
    parallel.automatic = true;
    return parallel;
  }
  const size_t equals = std::min(text.find('='), text.size());
  for (std::string_view rest = text.substr(0, equals); !rest.empty();) {
    const size_t plus = std::min(rest.find('+'), rest.size());
    std::string_view name = rest.substr(0, plus);
    if (name.starts_with("batch:") && parallel.batch_ranks == 0 && absl::SimpleAtoi(ToAbsl(name.substr(6)), &parallel.batch_ranks) &&
        parallel.batch_ranks > 0) {
      name = "batch";
    }
    if (name.starts_with("pipeline:") && parallel.stages == 0 && absl::SimpleAtoi(ToAbsl(name.substr(9)), &parallel.stages) && parallel.stages > 1) {
      name = "pipeline";
    }
    rest = plus < rest.size() ? rest.substr(plus + 1) : std::string_view();
    bool* const part = name == "batch"      ? &parallel.batch
                       : name == "space"    ? &parallel.space
                       : name == "channel"  ? &parallel.channel
                       : name == "shard"    ? &parallel.shard
                       : name == "roles"    ? &parallel.roles
                       : name == "pipeline" ? &parallel.pipeline
                                            : nullptr;
    if (part == nullptr || *part) {
      return absl::InvalidArgumentError(
          absl::StrFormat("parallel.split is \"%s\"; it must be \"auto\", or \"batch\", \"space\", \"channel\", \"shard\", \"roles\" or \"pipeline\", or several of them joined with \"+\", each once; "
                          "\"batch:4+space\" has 4 ranks along the batch, \"pipeline:3\" has 3 stages, \"batch=4:2:1\" has ranks with other shares of the work", text));
    }
    *part = true;
  }
  if (equals < text.size()) {
    GANTRY_ASSIGN_OR_RETURN(parallel.shares, ParseShares(text.substr(equals + 1)));
  }
  if (parallel.space && parallel.channel) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "parallel.split is \"%s\", but space and channels are not split together; choose \"space\" for large images, \"channel\" for wide layers", text));
  }
  if (parallel.roles && parallel.pipeline) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "parallel.split is \"%s\", but a pipeline puts all networks on all its ranks; choose \"roles\" for whole networks, \"pipeline\" for layers", text));
  }
  return parallel;
}

std::string Parallel::Text() const {
  if (automatic) return "auto";
  std::string text;
  for (const auto& [on, name] : {std::pair(batch, "batch"), std::pair(space, "space"), std::pair(channel, "channel"), std::pair(shard, "shard"),
                                 std::pair(roles, "roles"), std::pair(pipeline, "pipeline")}) {
    if (!on) continue;
    absl::StrAppend(&text, text.empty() ? "" : "+", name);
    if (name == std::string_view("batch") && batch_ranks > 0) absl::StrAppend(&text, ":", batch_ranks);
    if (name == std::string_view("pipeline") && stages > 0) absl::StrAppend(&text, ":", stages);
  }
  if (!shares.empty()) absl::StrAppend(&text, text.empty() ? "batch=" : "=", absl::StrJoin(shares, ":"));
  return text;
}

std::string Parallel::TextOrBatch() const {
  const std::string text = Text();
  return text.empty() ? "batch" : text;
}

int OutermostOf(const Parallel& parallel, int ranks) {
  if (parallel.roles) return 2;
  if (!parallel.pipeline) return 1;
  if (parallel.stages > 0) return parallel.stages;
  return parallel.batch || parallel.second() || parallel.shard ? 2 : ranks;
}

MeshSize MeshOf(const Parallel& parallel, int ranks) {
  ranks = std::max(1, ranks / OutermostOf(parallel, ranks));
  if (!parallel.second()) return {ranks, 1};
  if (!parallel.batch) return {1, ranks};
  if (parallel.batch_ranks > 0) return {parallel.batch_ranks, std::max(1, ranks / parallel.batch_ranks)};
  int batch = 1;
  for (int factor = 1; factor * factor <= ranks; ++factor) {
    if (ranks % factor == 0) batch = factor;
  }
  return {batch, ranks / batch};
}

bool TakesShares(const Parallel& parallel, int ranks) {
  const MeshSize mesh = MeshOf(parallel, ranks);
  return OutermostOf(parallel, ranks) == 1 && (mesh.batch == ranks || mesh.second == ranks);
}

namespace {

// Where a rank is: the ranks of its role or stage, or all, begin at `first`.
struct Place {
  int first, role, row, column;
};
Place PlaceOf(const MeshSize& mesh, int rank) {
  const int half = mesh.batch * mesh.second, role = rank / half;
  const int within = rank - role * half;
  return {role * half, role, within / mesh.second, within % mesh.second};
}

std::vector<int> BatchAxis(const Place& place, const MeshSize& mesh) { return Axis(place.first + place.column, mesh.second, mesh.batch); }
std::vector<int> SecondAxis(const Place& place, const MeshSize& mesh) { return Axis(place.first + place.row * mesh.second, 1, mesh.second); }
std::vector<int> OutermostAxis(const Place& place, const MeshSize& mesh, int count) {
  return Axis(place.row * mesh.second + place.column, mesh.batch * mesh.second, count);
}
std::vector<int> ShardAxis(const Place& place, const MeshSize& mesh) { return mesh.second > 1 ? SecondAxis(place, mesh) : BatchAxis(place, mesh); }

}  // namespace

std::vector<int> ShardGroup(const Parallel& parallel, int rank, int ranks) {
  const MeshSize mesh = MeshOf(parallel, ranks);
  const Place place = PlaceOf(mesh, rank);
  std::vector<int> group = parallel.states_in_parts() ? ShardAxis(place, mesh) : std::vector{rank};
  if (!parallel.by_homes()) return group;
  // One copy of each network's: the first role's or stage's parts, then the next one's.
  const int half = mesh.batch * mesh.second;
  for (int& member : group) member -= place.first;
  const size_t count = group.size();
  for (int role = 1; role < OutermostOf(parallel, ranks); ++role) {
    for (size_t i = 0; i < count; ++i) group.push_back(group[i] + role * half);
  }
  return group;
}

namespace {

// All pairs of `axis` with the one at `index`, in rounds in which everybody is in one pair, or alone: a round-robin tournament (the circle method).
void AppendPairs(const std::vector<int>& axis, int index, std::vector<std::vector<int>>& groups) {
  const int count = static_cast<int>(axis.size()), rounds = count % 2 == 0 ? count - 1 : count;
  for (int round = 0; round < rounds; ++round) {
    // Those whose places add up to the round meet; the one that would meet itself meets the last of an even number.
    int other = ((round - index) % rounds + rounds) % rounds;
    if (count % 2 == 0 && index == count - 1) {
      for (other = 0; 2 * other % rounds != round; ++other) continue;
    } else if (other == index && count % 2 == 0) {
      other = count - 1;
    }
    groups.push_back(other == index ? std::vector{axis[index]} : std::vector{axis[std::min(index, other)], axis[std::max(index, other)]});
  }
}

}  // namespace

std::vector<std::vector<int>> GroupsOf(const Parallel& parallel, int rank, int ranks) {
  const MeshSize mesh = MeshOf(parallel, ranks);
  const Place place = PlaceOf(mesh, rank);
  std::vector<std::vector<int>> groups;
  if (mesh.batch > 1) groups.push_back(BatchAxis(place, mesh));
  if (mesh.second > 1) groups.push_back(SecondAxis(place, mesh));
  if (parallel.by_homes()) {
    const std::vector<int> axis = OutermostAxis(place, mesh, OutermostOf(parallel, ranks));
    groups.push_back(axis);
    if (axis.size() > 2) AppendPairs(axis, place.role, groups);
  }
  groups.push_back(ShardGroup(parallel, rank, ranks));
  return groups;
}

namespace {

// How many samples the ranks of a row get of each input that the batch splits.
std::vector<int64_t> SamplesOf(const Program& program, const MeshSize& mesh, int row) {
  std::vector<int64_t> samples;
  for (const ValueId input : program.inputs()) {
    const Shape& shape = program.TypeOf(input).shape;
    if (shape.rank() == 0) continue;
    const std::vector<int64_t> cuts = CutsOf(shape[0], mesh.batch, {});
    if (!cuts.empty()) samples.push_back(cuts[row + 1] - cuts[row]);
  }
  return samples;
}

// `program` along the batch, then along space or channels, as the rank at `place` runs it.
absl::StatusOr<RankProgram> PartitionMesh(const Program& program, const Parallel& parallel, const MeshSize& mesh, const Place& place) {
  RankProgram result;
  result.program = program;
  const int ranks = mesh.batch * mesh.second;
  const auto Apply = [&](PartitionAxis axis, int index, bool last) -> absl::Status {
    if (axis.ranks.size() == 1) return absl::OkStatus();
    if (static_cast<int>(axis.ranks.size()) == ranks) axis.shares = parallel.shares;
    GANTRY_ASSIGN_OR_RETURN(RankProgram next, Partition(result.program, axis, index, result.input_parts));
    next.gathered.insert(next.gathered.end(), result.gathered.begin(), result.gathered.end());
    // Sums of this axis are early when the next one takes them up.
    GANTRY_ASSIGN_OR_RETURN(next.program, OrderExchanges(next.program, next.places, last ? parallel.exchanges : ExchangeOrder{.bucket_bytes = 0}));
    result = std::move(next);
    return absl::OkStatus();
  };
  const SplitKind second = parallel.channel ? SplitKind::kChannel : SplitKind::kSpace;
  const SplitKind batch = parallel.batch ? SplitKind::kBatch : SplitKind::kNone;
  GANTRY_RETURN_IF_ERROR(Apply({.split = batch, .shard_states = parallel.shard && mesh.second == 1, .ranks = BatchAxis(place, mesh)}, place.row, mesh.second == 1));
  PartitionAxis along{.split = second, .shard_states = parallel.shard, .ranks = SecondAxis(place, mesh)};
  // Rows with other numbers of samples weigh bytes in other ways: all do as the first one does.
  if (parallel.channel && mesh.second > 1 && place.row > 0 && SamplesOf(program, mesh, place.row) != SamplesOf(program, mesh, 0)) {
    Place first = place;
    first.row = 0;
    GANTRY_ASSIGN_OR_RETURN(const RankProgram theirs, PartitionMesh(program, parallel, mesh, first));
    along.choices = theirs.choices;
  }
  GANTRY_RETURN_IF_ERROR(Apply(std::move(along), place.column, true));
  return result;
}

// Space and channels are split by what a row's values look like. Rows with other numbers of samples may come to another answer where a model mixes
// samples and places in one dimension; what they exchange would then not fit together.
absl::Status CheckRows(const Program& program, const Parallel& parallel, const MeshSize& mesh, const Place& place, const RankProgram& mine) {
  if (mesh.batch == 1 || mesh.second == 1) return absl::OkStatus();
  std::set<std::vector<int64_t>> seen = {SamplesOf(program, mesh, place.row)};
  for (int other = 0; other < mesh.batch; ++other) {
    if (!seen.insert(SamplesOf(program, mesh, other)).second) continue;
    Place there = place;
    there.row = other;
    GANTRY_ASSIGN_OR_RETURN(const RankProgram theirs, PartitionMesh(program, parallel, mesh, there));
    if (theirs.crossings == mine.crossings) continue;
    const size_t at = std::mismatch(mine.crossings.begin(), mine.crossings.end(), theirs.crossings.begin(), theirs.crossings.end()).first -
                      mine.crossings.begin();
    const std::string_view second = parallel.channel ? "channel" : "space";
    const auto TextAt = [&](const RankProgram& of) { return at < of.crossings.size() ? of.crossings[at] : std::string("none"); };
    return absl::InvalidArgumentError(absl::StrFormat(
        "parallel.split %s: rows %d and %d of the %d x %d mesh have different numbers of samples, and this model's shapes make them split "
        "%s in different ways (exchange %d of the batch: %s and %s); choose a train.batch that %d divides, or parallel.split batch or %s",
        parallel.Text(), std::min(place.row, other), std::max(place.row, other), mesh.batch, mesh.second, second, at, TextAt(place.row < other ? mine : theirs),
        TextAt(place.row < other ? theirs : mine), mesh.batch, second));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<RankProgram> PartitionFor(const Program& program, const Parallel& given, int rank, int ranks) {
  Parallel parallel = given;
  if (!parallel.any()) parallel.batch = true;
  GANTRY_ASSIGN_OR_RETURN(Program whole, Simplify(program));
  RankProgram result;
  result.program = std::move(whole);
  if (ranks == 1) return result;
  const int outermost = OutermostOf(parallel, ranks);
  if (ranks % outermost != 0) {
    const std::string which = outermost == 2 ? "an even number" : absl::StrFormat("a multiple of %d", outermost);
    return absl::InvalidArgumentError(absl::StrFormat("parallel.split is \"%s\", which takes %s of ranks, not %d", parallel.Text(), which, ranks));
  }
  if (parallel.by_homes() && parallel.across_steps) {
    return absl::InvalidArgumentError(absl::StrFormat("parallel.overlap \"across\" does not go with parallel.split \"%s\": the other %s needs the new weights at once; "
                                                      "use \"on\"", parallel.Text(), parallel.roles ? "role" : "stage"));
  }
  if (parallel.roles && ranks > 2 && !parallel.batch && !parallel.second()) parallel.batch = !parallel.shard;
  if (parallel.automatic) return absl::InvalidArgumentError("parallel.split is \"auto\", which is not decided yet");
  if (!parallel.shares.empty() && (!TakesShares(parallel, ranks) || std::ssize(parallel.shares) != ranks)) {
    return absl::InvalidArgumentError(absl::StrFormat("parallel.split is \"%s\": %d shares for %d ranks; shares are one for each rank, where all of them share out one thing: "
                                                      "the batch, space or channels", parallel.Text(), parallel.shares.size(), ranks));
  }
  if (parallel.gradients_first) {
    GANTRY_ASSIGN_OR_RETURN(result.program, GradientsFirst(result.program));
  }
  GANTRY_ASSIGN_OR_RETURN(result.program, HoldNorms(result.program));
  const MeshSize mesh = MeshOf(parallel, ranks);
  if (mesh.batch * mesh.second != ranks / outermost) {
    return absl::InvalidArgumentError(absl::StrFormat("parallel.split is \"%s\": %d ranks do not make a mesh with %d along the batch", parallel.Text(),
                                                      ranks / outermost, parallel.batch_ranks));
  }
  const Place place = PlaceOf(mesh, rank);
  StagedProgram staged;
  if (parallel.pipeline) {
    GANTRY_ASSIGN_OR_RETURN(staged, AssignStages(result.program, parallel.generators, outermost));
    result.program = staged.program;
  }
  whole = std::move(result.program);
  GANTRY_ASSIGN_OR_RETURN(result, PartitionMesh(whole, parallel, mesh, place));
  GANTRY_RETURN_IF_ERROR(CheckRows(whole, parallel, mesh, place, result));
  if (parallel.gradients_first && outermost == 1) {
    GANTRY_ASSIGN_OR_RETURN(result.program, SplitGradients(result.program, parallel.exchanges.piece_bytes));
  }
  if (parallel.across_steps) {
    GANTRY_ASSIGN_OR_RETURN(result.program, DeferTail(result.program));
  }
  if (outermost == 1) return result;
  const std::vector<int> axis = OutermostAxis(place, mesh, outermost);
  if (parallel.roles) {
    GANTRY_ASSIGN_OR_RETURN(result.program, PartitionRoles(result.program, {.first = parallel.generators, .ranks = axis}, place.role));
  } else {
    GANTRY_ASSIGN_OR_RETURN(result.program, PartitionPipeline(result.program, staged, axis, place.role));
  }
  return result;
}

}  // namespace gantry
