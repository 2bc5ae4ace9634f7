// Rules of the split over channels: a layer's weights are in parts along their first axis, so that each rank makes a part of the layer's
// channels of all its input (column parallel), or a part of the sum over its input channels (row parallel; Shoeybi et al. 2019, section 3).
#include "ops/convolution.h"
#include "ops/functional.h"
#include "runtime/partition/partitioner.h"

namespace gantry {
namespace {

bool IsConvolution(std::string_view op) { return op == "conv" || op == "conv_transpose" || op == "conv_weight_grad"; }

}  // namespace

// States of the same shape, moments and averages among them, are split alike: where the weights of a grouped convolution are, at groups.
void Partitioner::FindChannelStates() {
  for (const State& state : source_.states()) {
    const Shape& shape = source_.TypeOf(state.first).shape;
    int dim = 0;
    while (dim < shape.rank() && shape[dim] == 1) ++dim;
    if (dim == shape.rank() || !state.whole.empty() || !WideEnough(shape[dim])) continue;
    channel_states_[shape.dims()] = Placement::Split(dim, Cuts(shape[dim]));
  }
  for (const Op& op : source_.ops()) {
    const int64_t groups = IsConvolution(op.definition->name) ? op.attributes.Int("groups", 1) : 1;
    if (groups == 1 || !Splittable(groups)) continue;
    const Shape& weight = source_.TypeOf(op.definition->name == "conv_weight_grad" ? op.outputs[0] : op.inputs[1]).shape;
    const auto found = channel_states_.find(weight.dims());
    if (found == channel_states_.end() || found->second.dim != 0) continue;
    found->second.cuts = Cuts(groups);
    for (int64_t& cut : found->second.cuts) cut *= weight[0] / groups;
  }
}

int Partitioner::Choose(std::span<const int64_t> bytes) {
  auto choice = static_cast<int>(std::min_element(bytes.begin(), bytes.end()) - bytes.begin());
  if (choices_.size() < axis_.choices.size()) choice = axis_.choices[choices_.size()];
  choices_.push_back(choice);
  if (choice >= 0 && choice < static_cast<int>(bytes.size()) && bytes[choice] != kImpossible) return choice;
  Fail(absl::InvalidArgumentError(absl::StrFormat("rows of the mesh would split channels in different ways (choice %d of the first row cannot be made in this one); "
                                                  "choose a train.batch that the rows divide", choices_.size() - 1)));
  return -1;
}

int64_t Partitioner::BytesToMove(ValueId id, const Placement& wanted) const {
  const WholeValue& value = values_[id];
  if (value.placement.whole() || value.placement == wanted || (value.placement.split() && value.gathered != kNoValue)) return 0;
  for (const auto& [placement, local] : value.parts) {
    if (placement == wanted) return 0;
  }
  const int64_t bytes = value.type.size_bytes();
  return wanted.split() && value.placement.split(wanted.dim) ? bytes / ranks() : bytes;
}

int64_t Partitioner::BytesToSum(const TensorType& type) const {
  return type.shape.rank() >= 2 && WideEnough(type.shape[1]) ? type.size_bytes() : 2 * type.size_bytes();
}

int64_t Partitioner::BytesToState(const TensorType& type, int dim) const {
  const auto state = channel_states_.find(type.shape.dims());
  return state == channel_states_.end() || state->second.dim == dim ? 0 : type.size_bytes();
}

Partitioner::Locals Partitioner::ConvolutionOverChannels(std::string_view op, std::span<const ValueId> inputs, const Attributes& attributes,
                                                         const TensorType& output) {
  if (attributes.Int("groups", 1) != 1) return GroupedConvolutionOverChannels(op, inputs, attributes, output);
  // The axes that each operand and the result have in common with each other: first and second, first and result, second and result.
  const bool weight_gradient = op == "conv_weight_grad", transposed = op == "conv_transpose";
  constexpr int kNone = -1;
  struct Way {
    int first, second, result;  // the axis that is in parts; kNone: whole. The result: kNone where it is a sum
  };
  const Way by_first = weight_gradient ? Way{1, kNone, 1} : Way{1, transposed ? 0 : 1, kNone};
  const Way by_second = weight_gradient ? Way{kNone, 1, 0} : Way{kNone, transposed ? 1 : 0, 1};
  const bool any_apart = values_[inputs[0]].placement.split() || values_[inputs[1]].placement.split();
  const Way ways[] = {by_second, by_first};
  std::vector<int64_t> cuts_of[2], bytes_of(2, kImpossible);
  for (size_t number = 0; number < 2; ++number) {
    const Way& way = ways[number];
    if (way.result == kNone && attributes.Has("slope")) continue;  // not of a sum
    // At cuts that an operand has already.
    std::vector<int64_t> cuts;
    for (const auto& [input, axis] : {std::pair(inputs[1], way.second), std::pair(inputs[0], way.first)}) {
      if (axis != kNone && cuts.empty() && values_[input].placement.split(axis)) cuts = values_[input].placement.cuts;
    }
    if (cuts.empty() && any_apart) {
      const int64_t extent = way.second != kNone ? TypeOf(inputs[1]).shape[way.second] : TypeOf(inputs[0]).shape[way.first];
      if (WideEnough(extent)) cuts = Cuts(extent);
    }
    if (cuts.empty()) continue;
    const auto Wanted = [&](int axis) { return axis == kNone ? Placement::Whole() : Placement::Split(axis, cuts); };
    bytes_of[number] = BytesToMove(inputs[0], Wanted(way.first)) + BytesToMove(inputs[1], Wanted(way.second)) +
                       (way.result == kNone ? BytesToSum(output) : BytesToState(output, way.result));
    cuts_of[number] = std::move(cuts);
  }
  if (cuts_of[0].empty() && cuts_of[1].empty()) return {};
  const int choice = Choose(bytes_of);
  if (choice < 0) return {};
  const Way& best = ways[choice];
  const std::vector<int64_t>& best_cuts = cuts_of[choice];
  const auto Part = [&](ValueId input, int axis) { return axis == kNone ? AsWhole(input) : AsSplit(input, axis, best_cuts); };
  std::vector<ValueId> locals = {Part(inputs[0], best.first), Part(inputs[1], best.second)};
  if (best.result != kNone) {
    if (inputs.size() > 2) locals.push_back(AsSplit(inputs[2], 0, best_cuts));
    return {{Placement::Split(best.result, best_cuts), EmitLocal(op, locals, attributes)[0]}};
  }
  const Local sum{Placement::Partial(), EmitLocal(op, locals, attributes)[0]};
  if (inputs.size() == 2) return {sum};
  // A bias counts once: it follows the sum.
  const ValueId product = Add(output, sum);
  std::vector<int64_t> dims(output.shape.rank(), 1);
  dims[1] = output.shape[1];
  const ValueId biased = ops::Add(*this, product, ops::Reshape(*this, inputs[2], Shape(std::move(dims))));
  if (biased == kNoValue) return {};
  return {{values_[biased].placement, values_[biased].local}};
}

// Groups know nothing of each other: each rank has some of them, in all three operands.
Partitioner::Locals Partitioner::GroupedConvolutionOverChannels(std::string_view op, std::span<const ValueId> inputs,
                                                                const Attributes& attributes, const TensorType& output) {
  const int64_t groups = attributes.Int("groups", 1);
  const std::vector<int64_t> cuts = Cuts(groups);
  if (cuts.empty()) return {};
  const auto Part = [&](const Shape& shape, int axis) {
    std::vector<int64_t> places = cuts;
    for (int64_t& cut : places) cut *= shape[axis] / groups;
    return Placement::Split(axis, std::move(places));
  };
  const bool weight_gradient = op == "conv_weight_grad";
  std::vector<ValueId> locals;
  for (size_t i = 0; i < inputs.size(); ++i) locals.push_back(As(inputs[i], Part(TypeOf(inputs[i]).shape, i == 0 || (i == 1 && weight_gradient) ? 1 : 0)));
  Attributes local = attributes;
  local.Set("groups", cuts[index_ + 1] - cuts[index_]);
  return {{Part(output.shape, weight_gradient ? 0 : 1), EmitLocal(op, locals, std::move(local))[0]}};
}

}  // namespace gantry
