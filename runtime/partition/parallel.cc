#include "runtime/partition/parallel.h"

#include <algorithm>

#include "absl/strings/numbers.h"
#include "runtime/graph/rewrite.h"
#include "runtime/partition/roles.h"

namespace gantry {
namespace {

std::vector<int> Axis(int first, int step, int count) {
  std::vector<int> ranks(count);
  for (int i = 0; i < count; ++i) ranks[i] = first + i * step;
  return ranks;
}

}  // namespace

absl::StatusOr<Parallel> Parallel::Parse(std::string_view text) {
  Parallel parallel;
  if (text == "auto") {
    parallel.automatic = true;
    return parallel;
  }
  for (std::string_view rest = text; !rest.empty();) {
    const size_t plus = std::min(rest.find('+'), rest.size());
    std::string_view name = rest.substr(0, plus);
    if (name.starts_with("batch:") && parallel.batch_ranks == 0 && absl::SimpleAtoi(ToAbsl(name.substr(6)), &parallel.batch_ranks) &&
        parallel.batch_ranks > 0) {
      name = "batch";
    }
    rest = plus < rest.size() ? rest.substr(plus + 1) : std::string_view();
    bool* const part = name == "batch"   ? &parallel.batch
                       : name == "space" ? &parallel.space
                       : name == "shard" ? &parallel.shard
                       : name == "roles" ? &parallel.roles
                                         : nullptr;
    if (part == nullptr || *part) {
      return absl::InvalidArgumentError(
          absl::StrFormat("parallel.split is \"%s\"; it must be \"auto\", or \"batch\", \"space\", \"shard\" or \"roles\", or several of them joined with \"+\", each once; "
                          "\"batch:4+space\" has 4 ranks along the batch", text));
    }
    *part = true;
  }
  return parallel;
}

std::string Parallel::Text() const {
  if (automatic) return "auto";
  std::string text;
  for (const auto& [on, name] : {std::pair(batch, "batch"), std::pair(space, "space"), std::pair(shard, "shard"), std::pair(roles, "roles")}) {
    if (!on) continue;
    absl::StrAppend(&text, text.empty() ? "" : "+", name);
    if (name == std::string_view("batch") && batch_ranks > 0) absl::StrAppend(&text, ":", batch_ranks);
  }
  return text;
}

MeshSize MeshOf(const Parallel& parallel, int ranks) {
  if (parallel.roles) ranks /= 2;
  if (!parallel.space) return {ranks, 1};
  if (!parallel.batch) return {1, ranks};
  if (parallel.batch_ranks > 0) return {parallel.batch_ranks, std::max(1, ranks / parallel.batch_ranks)};
  int batch = 1;
  for (int factor = 1; factor * factor <= ranks; ++factor) {
    if (ranks % factor == 0) batch = factor;
  }
  return {batch, ranks / batch};
}

namespace {

// Where a rank is: the ranks of its half, or of all, begin at `first`.
struct Place {
  int first, role, row, column;
};
Place PlaceOf(const Parallel& parallel, const MeshSize& mesh, int rank) {
  const int half = mesh.batch * mesh.space, role = parallel.roles ? rank / half : 0;
  const int within = rank - role * half;
  return {role * half, role, within / mesh.space, within % mesh.space};
}

std::vector<int> BatchAxis(const Place& place, const MeshSize& mesh) { return Axis(place.first + place.column, mesh.space, mesh.batch); }
std::vector<int> SpaceAxis(const Place& place, const MeshSize& mesh) { return Axis(place.first + place.row * mesh.space, 1, mesh.space); }
std::vector<int> RoleAxisOf(const Place& place, const MeshSize& mesh) {
  const int within = place.row * mesh.space + place.column;
  return {within, within + mesh.batch * mesh.space};
}
std::vector<int> ShardAxis(const Place& place, const MeshSize& mesh) { return mesh.space > 1 ? SpaceAxis(place, mesh) : BatchAxis(place, mesh); }

}  // namespace

std::vector<int> ShardGroup(const Parallel& parallel, int rank, int ranks) {
  const MeshSize mesh = MeshOf(parallel, ranks);
  const Place place = PlaceOf(parallel, mesh, rank);
  std::vector<int> group = parallel.shard ? ShardAxis(place, mesh) : std::vector{rank};
  if (!parallel.roles) return group;
  // One copy of each network's: the first role's parts, then the second's.
  const int half = mesh.batch * mesh.space;
  for (int& member : group) member -= place.first;
  const size_t count = group.size();
  for (size_t i = 0; i < count; ++i) group.push_back(group[i] + half);
  return group;
}

std::vector<std::vector<int>> GroupsOf(const Parallel& parallel, int rank, int ranks) {
  const MeshSize mesh = MeshOf(parallel, ranks);
  const Place place = PlaceOf(parallel, mesh, rank);
  std::vector<std::vector<int>> groups;
  if (mesh.batch > 1) groups.push_back(BatchAxis(place, mesh));
  if (mesh.space > 1) groups.push_back(SpaceAxis(place, mesh));
  if (parallel.roles) groups.push_back(RoleAxisOf(place, mesh));
  groups.push_back(ShardGroup(parallel, rank, ranks));
  return groups;
}

absl::StatusOr<RankProgram> PartitionFor(const Program& program, const Parallel& given, int rank, int ranks) {
  Parallel parallel = given;
  if (!parallel.any()) parallel.batch = true;
  GANTRY_ASSIGN_OR_RETURN(Program whole, Simplify(program));
  RankProgram result;
  result.program = std::move(whole);
  if (ranks == 1) return result;
  if (parallel.roles && ranks % 2 != 0) {
    return absl::InvalidArgumentError(absl::StrFormat("parallel.split is \"%s\", which takes an even number of ranks, not %d", parallel.Text(), ranks));
  }
  if (parallel.roles && ranks > 2 && !parallel.batch && !parallel.space) parallel.batch = !parallel.shard;
  if (parallel.automatic) return absl::InvalidArgumentError("parallel.split is \"auto\", which is not decided yet");
  const MeshSize mesh = MeshOf(parallel, ranks);
  if (mesh.batch * mesh.space != (parallel.roles ? ranks / 2 : ranks)) {
    return absl::InvalidArgumentError(absl::StrFormat("parallel.split is \"%s\": %d ranks do not make a mesh with %d along the batch", parallel.Text(),
                                                      parallel.roles ? ranks / 2 : ranks, parallel.batch_ranks));
  }
  const Place place = PlaceOf(parallel, mesh, rank);
  const auto Apply = [&](PartitionAxis axis, int index) -> absl::Status {
    if (axis.ranks.size() == 1) return absl::OkStatus();
    if (static_cast<int>(axis.ranks.size()) == ranks) axis.shares = parallel.shares;
    GANTRY_ASSIGN_OR_RETURN(RankProgram next, Partition(result.program, axis, index, result.input_parts));
    next.gathered.insert(next.gathered.end(), result.gathered.begin(), result.gathered.end());
    result = std::move(next);
    return absl::OkStatus();
  };
  const SplitKind batch = parallel.batch ? SplitKind::kBatch : SplitKind::kNone;
  GANTRY_RETURN_IF_ERROR(Apply({.split = batch, .shard_states = parallel.shard && mesh.space == 1, .ranks = BatchAxis(place, mesh)}, place.row));
  GANTRY_RETURN_IF_ERROR(Apply({.split = SplitKind::kSpace, .shard_states = parallel.shard, .ranks = SpaceAxis(place, mesh)}, place.column));
  if (!parallel.roles) return result;
  const RoleAxis roles{.first = parallel.generators, .ranks = RoleAxisOf(place, mesh)};
  GANTRY_ASSIGN_OR_RETURN(result.program, PartitionRoles(result.program, roles, place.role));
  return result;
}

}  // namespace gantry
