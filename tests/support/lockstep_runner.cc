#include "tests/support/lockstep_runner.h"

#include <algorithm>
#include <cstring>

namespace gantry::test {
namespace {

size_t Units(size_t bytes) { return bytes / sizeof(std::max_align_t) + 1; }

}  // namespace

absl::StatusOr<LockstepRunner> LockstepRunner::Create(std::vector<const Program*> programs) {
  LockstepRunner runner;
  for (const Program* program : programs) {
    GANTRY_RETURN_IF_ERROR(program->status());
    if (program->ops().size() != programs[0]->ops().size()) {
      return absl::InvalidArgumentError(absl::StrFormat("a rank has %d ops, the first one %d", program->ops().size(), programs[0]->ops().size()));
    }
    Rank rank{program};
    for (const Value& value : program->values()) rank.memory.emplace_back(Units(value.type.size_bytes()));
    size_t scratch_bytes = 0;
    for (size_t id = 0; id < program->ops().size(); ++id) {
      const Op& op = program->ops()[id];
      if (op.definition->name != programs[0]->ops()[id].definition->name) {
        return absl::InvalidArgumentError(absl::StrFormat("%s is %s on the first rank", program->Describe(static_cast<OpId>(id)),
                                                          programs[0]->Describe(static_cast<OpId>(id))));
      }
      rank.kernels.emplace_back();
      if (op.definition->is_view || op.definition->communicates) continue;
      std::vector<TensorType> inputs, outputs;
      for (ValueId input : op.inputs) inputs.push_back(program->TypeOf(input));
      for (ValueId output : op.outputs) outputs.push_back(program->TypeOf(output));
      GANTRY_ASSIGN_OR_RETURN(rank.kernels.back(), ReferenceKernels().Make({.op = *op.definition,
                                                                            .attributes = op.attributes,
                                                                            .inputs = inputs,
                                                                            .outputs = outputs}));
      if (rank.kernels.back() == nullptr) {
        return absl::UnimplementedError(absl::StrFormat("no kernel for %s", program->Describe(static_cast<OpId>(id))));
      }
      scratch_bytes = std::max(scratch_bytes, rank.kernels.back()->scratch_bytes());
    }
    rank.scratch.resize(Units(scratch_bytes + 64));
    runner.ranks_.push_back(std::move(rank));
  }
  return runner;
}

void LockstepRunner::Set(int rank, ValueId value, std::span<const double> content) {
  void* const data = ranks_[rank].memory[value].data();
  const DataType type = ranks_[rank].program->TypeOf(value).dtype;
  for (size_t i = 0; i < content.size(); ++i) {
    if (type == DataType::kF64) static_cast<double*>(data)[i] = content[i];
    if (type == DataType::kI64) static_cast<int64_t*>(data)[i] = static_cast<int64_t>(content[i]);
  }
}

std::vector<double> LockstepRunner::Get(int rank, ValueId value) const {
  const auto* data = reinterpret_cast<const double*>(ranks_[rank].memory[value].data());
  return {data, data + ranks_[rank].program->TypeOf(value).element_count()};
}

// By the definition in ops/exchange.cc: the whole tensor is put together, then everyone takes a part.
absl::Status LockstepRunner::Exchange(size_t id) {
  const Op& first = ranks_[0].program->ops()[id];
  const std::vector<int64_t> group = first.attributes.Ints("ranks");
  std::vector<bool> done(ranks_.size(), false);
  for (size_t start = 0; start < ranks_.size(); ++start) {
    if (done[start]) continue;
    // Ranks of this program that are one group.
    std::vector<size_t> members(ranks_[start].program->ops()[id].attributes.Ints("ranks").size());
    const std::vector<int64_t> wanted = ranks_[start].program->ops()[id].attributes.Ints("ranks");
    for (size_t i = 0; i < wanted.size(); ++i) {
      members[i] = static_cast<size_t>(wanted[i]);
      if (members[i] >= ranks_.size() || done[members[i]]) return absl::InternalError("groups overlap, or name ranks that are not there");
      const Attributes& theirs = ranks_[members[i]].program->ops()[id].attributes;
      if (theirs.Ints("ranks") != wanted || theirs.Int("index") != static_cast<int64_t>(i)) {
        return absl::InternalError(absl::StrFormat("rank %d disagrees about its group in %s", members[i], first.definition->name));
      }
      done[members[i]] = true;
    }
    const std::string_view name = first.definition->name;
    if (name == "all_reduce") {
      // Each operand by itself.
      for (size_t operand = 0; operand < first.inputs.size(); ++operand) {
        std::vector<double> sum;
        for (const size_t member : members) {
          const std::vector<double> addend = Get(static_cast<int>(member), ranks_[member].program->ops()[id].inputs[operand]);
          sum.resize(addend.size());
          for (size_t e = 0; e < sum.size(); ++e) sum[e] += addend[e];
        }
        for (const size_t member : members) Set(static_cast<int>(member), ranks_[member].program->ops()[id].outputs[operand], sum);
      }
      continue;
    }
    std::vector<std::vector<double>> inputs;
    std::vector<Shape> shapes;
    for (const size_t member : members) {
      const Op& op = ranks_[member].program->ops()[id];
      inputs.push_back(Get(static_cast<int>(member), op.inputs[0]));
      shapes.push_back(ranks_[member].program->TypeOf(op.inputs[0]).shape);
    }
    for (size_t i = 0; i < members.size(); ++i) {
      const Op& op = ranks_[members[i]].program->ops()[id];
      const Shape& result = ranks_[members[i]].program->TypeOf(op.outputs[0]).shape;
      std::vector<double> out(result.element_count());
      if (name == "reduce_scatter") {
        const int64_t row = shapes[i].rank() == 0 || shapes[i][0] == 0 ? 1 : shapes[i].element_count() / shapes[i][0];
        const int64_t begin = op.attributes.Ints("begins")[i] * row;
        for (const std::vector<double>& input : inputs) {
          for (size_t e = 0; e < out.size(); ++e) out[e] += input[begin + e];
        }
      } else {
        const int axis = static_cast<int>(op.attributes.Int("axis"));
        int64_t outer = 1, inner = 1;
        for (int a = 0; a < axis; ++a) outer *= result[a];
        for (int a = axis + 1; a < result.rank(); ++a) inner *= result[a];
        const std::vector<int64_t> from = op.attributes.Ints("from_begins"), to = op.attributes.Ints("to_begins");
        for (int64_t o = 0; o < outer; ++o) {
          for (int64_t p = 0; p < result[axis]; ++p) {
            const int64_t place = to[i] + p;
            size_t owner = members.size() - 1;
            while (from[owner] > place || shapes[owner][axis] == 0) --owner;
            const double* row = inputs[owner].data() + (o * shapes[owner][axis] + place - from[owner]) * inner;
            std::copy(row, row + inner, out.begin() + (o * result[axis] + p) * inner);
          }
        }
      }
      Set(static_cast<int>(members[i]), op.outputs[0], out);
    }
  }
  return absl::OkStatus();
}

absl::Status LockstepRunner::Run() {
  for (size_t id = 0; id < ranks_[0].program->ops().size(); ++id) {
    const Op& first = ranks_[0].program->ops()[id];
    if (first.condition != kNoValue && Get(0, first.condition)[0] == 0.0) continue;
    if (first.definition->communicates) {
      GANTRY_RETURN_IF_ERROR(Exchange(id));
      continue;
    }
    for (Rank& rank : ranks_) {
      const Op& op = rank.program->ops()[id];
      std::vector<const void*> inputs;
      std::vector<void*> outputs;
      for (ValueId input : op.inputs) inputs.push_back(rank.memory[input].data());
      for (ValueId output : op.outputs) outputs.push_back(rank.memory[output].data());
      if (rank.kernels[id] == nullptr) {
        std::memcpy(outputs[0], inputs[0], rank.program->TypeOf(op.outputs[0]).size_bytes());
        continue;
      }
      void* scratch = rank.scratch.data();
      size_t space = rank.scratch.size() * sizeof(std::max_align_t);
      scratch = std::align(64, 1, scratch, space);
      // An update's kernel may rely on writing in place: its outputs begin as its inputs are.
      for (int u = 0; u < UpdateCount(op); ++u) std::memcpy(outputs[u], inputs[u], rank.program->TypeOf(op.outputs[u]).size_bytes());
      GANTRY_RETURN_IF_ERROR(Annotate(rank.kernels[id]->Run({.inputs = inputs, .outputs = outputs, .scratch = scratch}),
                                      rank.program->Describe(static_cast<OpId>(id))));
    }
  }
  return absl::OkStatus();
}

}  // namespace gantry::test
