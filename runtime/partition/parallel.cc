#include "runtime/partition/parallel.h"

#include "runtime/graph/rewrite.h"

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
  for (std::string_view rest = text; !rest.empty();) {
    const size_t plus = std::min(rest.find('+'), rest.size());
    const std::string_view name = rest.substr(0, plus);
    rest = plus < rest.size() ? rest.substr(plus + 1) : std::string_view();
    bool* const part = name == "batch" ? &parallel.batch : name == "space" ? &parallel.space : name == "shard" ? &parallel.shard : nullptr;
    if (part == nullptr || *part) {
      return absl::InvalidArgumentError(
          absl::StrFormat("parallel.split is \"%s\"; it must be \"batch\", \"space\" or \"shard\", or several of them joined with \"+\", each once", text));
    }
    *part = true;
  }
  return parallel;
}

std::string Parallel::Text() const {
  std::string text;
  for (const auto& [on, name] : {std::pair(batch, "batch"), std::pair(space, "space"), std::pair(shard, "shard")}) {
    if (on) text += (text.empty() ? "" : "+") + std::string(name);
  }
  return text;
}

MeshSize MeshOf(const Parallel& parallel, int ranks) {
  if (!parallel.space) return {ranks, 1};
  if (!parallel.batch) return {1, ranks};
  int batch = 1;
  for (int factor = 1; factor * factor <= ranks; ++factor) {
    if (ranks % factor == 0) batch = factor;
  }
  return {batch, ranks / batch};
}

std::vector<int> ShardGroup(const Parallel& parallel, int rank, int ranks) {
  if (!parallel.shard) return {rank};
  const MeshSize mesh = MeshOf(parallel, ranks);
  if (mesh.space > 1) return Axis(rank / mesh.space * mesh.space, 1, mesh.space);
  return Axis(0, 1, ranks);
}

absl::StatusOr<RankProgram> PartitionFor(const Program& program, const Parallel& given, int rank, int ranks) {
  Parallel parallel = given;
  if (!parallel.any()) parallel.batch = true;
  GANTRY_ASSIGN_OR_RETURN(Program whole, Simplify(program));
  RankProgram result;
  result.program = std::move(whole);
  if (ranks == 1) return result;
  const MeshSize mesh = MeshOf(parallel, ranks);
  const auto Apply = [&](PartitionAxis axis, int index) -> absl::Status {
    if (axis.ranks.size() == 1) return absl::OkStatus();
    if (static_cast<int>(axis.ranks.size()) == ranks) axis.shares = parallel.shares;
    GANTRY_ASSIGN_OR_RETURN(RankProgram next, Partition(result.program, axis, index, result.input_parts));
    next.gathered.insert(next.gathered.end(), result.gathered.begin(), result.gathered.end());
    result = std::move(next);
    return absl::OkStatus();
  };
  const int row = rank / mesh.space, column = rank % mesh.space;
  const SplitKind batch = parallel.batch ? SplitKind::kBatch : SplitKind::kNone;
  GANTRY_RETURN_IF_ERROR(Apply({.split = batch, .shard_states = parallel.shard && mesh.space == 1, .ranks = Axis(column, mesh.space, mesh.batch)}, row));
  GANTRY_RETURN_IF_ERROR(Apply({.split = SplitKind::kSpace, .shard_states = parallel.shard, .ranks = Axis(row * mesh.space, 1, mesh.space)}, column));
  return result;
}

}  // namespace gantry
