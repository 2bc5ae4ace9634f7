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
    Rank rank{program};
    for (const Value& value : program->values()) rank.memory.emplace_back(Units(value.type.size_bytes()));
    size_t scratch_bytes = 0;
    for (size_t id = 0; id < program->ops().size(); ++id) {
      const Op& op = program->ops()[id];
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
  const void* const data = ranks_[rank].memory[value].data();
  const TensorType& type = ranks_[rank].program->TypeOf(value);
  if (type.dtype == DataType::kI64) {
    const auto* const numbers = static_cast<const int64_t*>(data);
    return {numbers, numbers + type.element_count()};
  }
  const auto* const numbers = static_cast<const double*>(data);
  return {numbers, numbers + type.element_count()};
}

// By the definition in ops/exchange.cc: the whole tensor is put together, then everyone takes a part. Groups whose ranks are all there; how
// many ranks went on.
absl::StatusOr<int> LockstepRunner::Exchange() {
  std::vector<bool> done(ranks_.size(), false);
  int count = 0;
  for (size_t start = 0; start < ranks_.size(); ++start) {
    if (done[start] || Ended(start)) continue;
    const Op& first = NextOp(start);
    // Ranks of this program that are one group.
    const std::vector<int64_t> wanted = first.attributes.Ints("ranks");
    std::vector<size_t> members(wanted.begin(), wanted.end());
    bool here = true;
    for (size_t i = 0; i < members.size(); ++i) {
      if (members[i] >= ranks_.size()) return absl::InternalError("a group names ranks that are not there");
      here = here && !done[members[i]] && !Ended(members[i]) && NextOp(members[i]).attributes.Ints("ranks") == wanted;
    }
    if (!here) continue;
    for (size_t i = 0; i < members.size(); ++i) {
      const Op& op = NextOp(members[i]);
      const Attributes& theirs = op.attributes;
      if (op.definition != first.definition || theirs.Int("index") != static_cast<int64_t>(i) || theirs.Int("sequence") != first.attributes.Int("sequence")) {
        return absl::InternalError(absl::StrFormat("rank %d comes to %s %d, but rank %d to %s %d, or they disagree about their places", members[i],
                                                   op.definition->name, theirs.Int("sequence"), start, first.definition->name,
                                                   first.attributes.Int("sequence")));
      }
      done[members[i]] = true;
    }
    const std::string_view name = first.definition->name;
    if (name == "all_reduce") {
      // Each operand by itself.
      for (size_t operand = 0; operand < first.inputs.size(); ++operand) {
        std::vector<double> sum;
        for (const size_t member : members) {
          const std::vector<double> addend = Get(static_cast<int>(member), NextOp(member).inputs[operand]);
          sum.resize(addend.size());
          for (size_t e = 0; e < sum.size(); ++e) sum[e] += addend[e];
        }
        for (const size_t member : members) Set(static_cast<int>(member), NextOp(member).outputs[operand], sum);
      }
      count += static_cast<int>(members.size());
      continue;
    }
    std::vector<std::vector<double>> inputs;
    std::vector<Shape> shapes;
    for (const size_t member : members) {
      const Op& op = NextOp(member);
      inputs.push_back(Get(static_cast<int>(member), op.inputs[0]));
      shapes.push_back(ranks_[member].program->TypeOf(op.inputs[0]).shape);
    }
    for (size_t i = 0; i < members.size(); ++i) {
      const Op& op = NextOp(members[i]);
      if (name == "reduce_scatter") {
        std::vector<double> out(ranks_[members[i]].program->TypeOf(op.outputs[0]).element_count());
        const int64_t row = shapes[i].rank() == 0 || shapes[i][0] == 0 ? 1 : shapes[i].element_count() / shapes[i][0];
        const int64_t begin = op.attributes.Ints("begins")[i] * row;
        for (const std::vector<double>& input : inputs) {
          for (size_t e = 0; e < out.size(); ++e) out[e] += input[begin + e];
        }
        Set(static_cast<int>(members[i]), op.outputs[0], out);
        continue;
      }
      const int axis = static_cast<int>(op.attributes.Int("axis"));
      const std::vector<int64_t> from = op.attributes.Ints("from_begins");
      // A halo's second result is what lies behind the places that are held.
      const int64_t firsts[] = {op.attributes.Ints("to_begins")[i], op.attributes.Ints("from_ends")[i]};
      for (size_t o = 0; o < op.outputs.size(); ++o) {
        const Shape& result = ranks_[members[i]].program->TypeOf(op.outputs[o]).shape;
        std::vector<double> out(result.element_count());
        int64_t outer = 1, inner = 1;
        for (int a = 0; a < axis; ++a) outer *= result[a];
        for (int a = axis + 1; a < result.rank(); ++a) inner *= result[a];
        for (int64_t before = 0; before < outer; ++before) {
          for (int64_t p = 0; p < result[axis]; ++p) {
            const int64_t place = firsts[o] + p;
            size_t owner = members.size() - 1;
            while (from[owner] > place || shapes[owner][axis] == 0) --owner;
            const double* row = inputs[owner].data() + (before * shapes[owner][axis] + place - from[owner]) * inner;
            std::copy(row, row + inner, out.begin() + (before * result[axis] + p) * inner);
          }
        }
        Set(static_cast<int>(members[i]), op.outputs[o], out);
      }
    }
    count += static_cast<int>(members.size());
  }
  for (size_t number = 0; number < ranks_.size(); ++number) ranks_[number].next += done[number] ? 1 : 0;
  return count;
}

// Up to the next exchange that this rank takes part in, or the end.
absl::Status LockstepRunner::RunAlone(size_t number) {
  Rank& rank = ranks_[number];
  for (; rank.next < rank.program->ops().size(); ++rank.next) {
    const Op& op = NextOp(number);
    if (op.condition != kNoValue && Get(static_cast<int>(number), op.condition)[0] == 0.0) continue;
    if (op.definition->communicates) return absl::OkStatus();
    std::vector<const void*> inputs;
    std::vector<void*> outputs;
    for (ValueId input : op.inputs) inputs.push_back(rank.memory[input].data());
    for (ValueId output : op.outputs) outputs.push_back(rank.memory[output].data());
    Kernel* const kernel = rank.kernels[rank.next].get();
    if (kernel == nullptr) {
      std::memcpy(outputs[0], inputs[0], rank.program->TypeOf(op.outputs[0]).size_bytes());
      continue;
    }
    void* scratch = rank.scratch.data();
    size_t space = rank.scratch.size() * sizeof(std::max_align_t);
    scratch = std::align(64, 1, scratch, space);
    // An update's kernel may rely on writing in place: its outputs begin as its inputs are.
    for (int u = 0; u < UpdateCount(op); ++u) std::memcpy(outputs[u], inputs[u], rank.program->TypeOf(op.outputs[u]).size_bytes());
    GANTRY_RETURN_IF_ERROR(Annotate(kernel->Run({.inputs = inputs, .outputs = outputs, .scratch = scratch}),
                                    rank.program->Describe(static_cast<OpId>(rank.next))));
  }
  return absl::OkStatus();
}

absl::Status LockstepRunner::Run() {
  for (Rank& rank : ranks_) rank.next = 0;
  for (;;) {
    bool ended = true;
    for (size_t number = 0; number < ranks_.size(); ++number) {
      GANTRY_RETURN_IF_ERROR(RunAlone(number));
      ended = ended && Ended(number);
    }
    if (ended) return absl::OkStatus();
    GANTRY_ASSIGN_OR_RETURN(const int count, Exchange());
    if (count == 0) return absl::InternalError("no rank can go on: each waits for one that is at another exchange, or at its end");
  }
}

}  // namespace gantry::test
