#include "runtime/partition/parallel.h"

#include <algorithm>
#include <set>

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

namespace {

// `program` along the batch, then along space, as the rank at `row` and `column` of the mesh runs it.
absl::StatusOr<RankProgram> PartitionMesh(const Program& program, const Parallel& parallel, const MeshSize& mesh, int row, int column) {
  RankProgram result;
  result.program = program;
  const int ranks = mesh.batch * mesh.space;
  const auto Apply = [&](PartitionAxis axis, int index) -> absl::Status {
    if (axis.ranks.size() == 1) return absl::OkStatus();
    if (static_cast<int>(axis.ranks.size()) == ranks) axis.shares = parallel.shares;
    GANTRY_ASSIGN_OR_RETURN(RankProgram next, Partition(result.program, axis, index, result.input_parts));
    next.gathered.insert(next.gathered.end(), result.gathered.begin(), result.gathered.end());
    result = std::move(next);
    return absl::OkStatus();
  };
  const SplitKind batch = parallel.batch ? SplitKind::kBatch : SplitKind::kNone;
  GANTRY_RETURN_IF_ERROR(Apply({.split = batch, .shard_states = parallel.shard && mesh.space == 1, .ranks = Axis(column, mesh.space, mesh.batch)}, row));
  GANTRY_RETURN_IF_ERROR(Apply({.split = SplitKind::kSpace, .shard_states = parallel.shard, .ranks = Axis(row * mesh.space, 1, mesh.space)}, column));
  return result;
}

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

}  // namespace

absl::StatusOr<RankProgram> PartitionFor(const Program& program, const Parallel& given, int rank, int ranks) {
  Parallel parallel = given;
  if (!parallel.any()) parallel.batch = true;
  GANTRY_ASSIGN_OR_RETURN(Program whole, Simplify(program));
  if (ranks == 1) {
    RankProgram alone;
    alone.program = std::move(whole);
    return alone;
  }
  const MeshSize mesh = MeshOf(parallel, ranks);
  const int row = rank / mesh.space, column = rank % mesh.space;
  GANTRY_ASSIGN_OR_RETURN(RankProgram mine, PartitionMesh(whole, parallel, mesh, row, column));
  if (mesh.batch == 1 || mesh.space == 1) return mine;
  // Space is split by what a row's values look like. Rows with other numbers of samples may come to another answer where a model mixes
  // samples and places in one dimension; what they exchange would then not fit together.
  std::set<std::vector<int64_t>> seen = {SamplesOf(whole, mesh, row)};
  for (int other = 0; other < mesh.batch; ++other) {
    if (!seen.insert(SamplesOf(whole, mesh, other)).second) continue;
    GANTRY_ASSIGN_OR_RETURN(const RankProgram theirs, PartitionMesh(whole, parallel, mesh, other, column));
    if (theirs.crossings == mine.crossings) continue;
    const size_t at = std::mismatch(mine.crossings.begin(), mine.crossings.end(), theirs.crossings.begin(), theirs.crossings.end()).first -
                      mine.crossings.begin();
    const auto TextAt = [&](const RankProgram& of) { return at < of.crossings.size() ? of.crossings[at] : std::string("none"); };
    return absl::InvalidArgumentError(absl::StrFormat(
        "parallel.split batch+space: rows %d and %d of the %d x %d mesh have different numbers of samples, and this model's shapes make them split "
        "space in different ways (exchange %d of the batch: %s and %s); choose a train.batch that %d divides, or parallel.split batch or space",
        std::min(row, other), std::max(row, other), mesh.batch, mesh.space, at, TextAt(row < other ? mine : theirs),
        TextAt(row < other ? theirs : mine), mesh.batch));
  }
  return mine;
}

}  // namespace gantry
