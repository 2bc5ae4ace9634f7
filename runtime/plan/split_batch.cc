#include "runtime/plan/split_batch.h"

#include <algorithm>
#include <map>
#include <span>

#include "runtime/plan/part_splitter.h"

namespace gantry {
namespace {

// Fewer images at a time cost kernels speed: matrix products want rows, and every sum has an end.
constexpr int64_t kFewestImages = 32;

// Images that sums over a batch take at a time; the whole batch where it is too small to be cut.
int64_t ImagesAtATime(int64_t batch) {
  const int64_t images = (batch + kMostBatchParts - 1) / kMostBatchParts;
  return (images + kFewestImages - 1) / kFewestImages * kFewestImages;
}

bool IsPanel(const TensorType& type) { return type.layout == TensorLayout::kPanel; }

// A sum over the batch that may carry {images}, and the images it is over; null for other ops.
const TensorType* SummedImages(const Program& program, const Op& op) {
  const std::string_view name = op.definition->name;
  if (name == "panel_conv_weight_grad") {
    const TensorType& x = program.TypeOf(op.inputs[0]);
    const TensorType& g = program.TypeOf(op.inputs[1]);
    return x.size_bytes() > g.size_bytes() ? &x : &g;
  }
  if (name != "normalize" && name != "normalize_grad") return nullptr;
  const TensorType& x = program.TypeOf(op.inputs[name == "normalize" ? 0 : 1]);
  if (!IsPanel(x) || !IsPanel(program.TypeOf(op.outputs[0]))) return nullptr;
  // Over batch, height and width: statistics are per channel.
  std::vector<int64_t> axes = op.attributes.Ints("axes");
  for (int64_t& axis : axes) axis += axis < 0 ? 4 : 0;
  std::sort(axes.begin(), axes.end());
  return axes == std::vector<int64_t>{0, 2, 3} ? &x : nullptr;
}

class BatchSplitter final : public PartSplitter {
 public:
  BatchSplitter(const Program& source, int parts, int64_t least_bytes) : PartSplitter(source, /*axis=*/0, parts, least_bytes) {}

 private:
  // What is done for each part. An op with sums that its other result needs is two steps.
  enum class StepKind : uint8_t { kEach, kWeightGradient, kNormSums, kNormApply, kNormGradSums, kNormGradApply };
  struct Step {
    OpId op;
    StepKind kind;
    ValueId sum = kNoValue;  // in the target, of the parts so far
  };

  int64_t SizeOfPart(int64_t batch) const override { return ImagesAtATime(batch) * (kMostBatchParts / part_count_); }

  ValueId Put(ValueId part, ValueId into, int64_t begin, int64_t batch) override {
    std::vector<ValueId> inputs = {part};
    if (into != kNoValue) inputs.push_back(into);
    return target_.Emit("put_images", inputs, {{"begin", begin}, {"batch", batch}})[0];
  }
  ValueId TakeOut(ValueId whole, const TensorType&, int64_t begin, int64_t count) override {
    return target_.Emit("take_images", std::span(&whole, 1), {{"begin", begin}, {"count", count}})[0];
  }

  // Which inputs of an op come in parts where the op runs in parts; empty for ops that never do.
  std::vector<bool> InParts(const Op& op) const {
    const std::string_view name = op.definition->name;
    std::vector<bool> in_parts(op.inputs.size(), false);
    if (name == "panel_conv" || name == "sign_bits") {
      in_parts[0] = true;
      return in_parts;
    }
    if (name == "leaky_relu_grad_bits") return std::vector<bool>(2, true);
    if (op.attributes.Has("images")) {
      // x and g; g, x and y; x.
      const bool gradient = name == "normalize_grad";
      in_parts[0] = true;
      in_parts[1] = name != "normalize";
      if (gradient && in_parts.size() > 5) in_parts[5] = true;
      return in_parts;
    }
    if (!IsElementwise(name)) return {};
    const Shape& result = source_.TypeOf(op.outputs[0]).shape;
    if (result.rank() < 2) return {};
    for (size_t i = 0; i < op.inputs.size(); ++i) {
      const Shape& shape = source_.TypeOf(op.inputs[i]).shape;
      in_parts[i] = shape.rank() == result.rank() && shape[0] == result[0];
    }
    return in_parts;
  }

  // Whether the op runs in parts, and over how many images: 0 where it stays whole.
  int64_t BatchInParts(const Op& op, const std::vector<bool>& in_parts) const {
    if (in_parts.empty()) return 0;
    const std::string_view name = op.definition->name;
    // Bits lie in memory as the values that they are of, so they are in parts where those are.
    if (name == "sign_bits") return IsInParts(op.inputs[0]) ? source_.TypeOf(op.inputs[0]).shape[0] : 0;
    if (name == "leaky_relu_grad_bits") return IsInParts(op.inputs[1]) ? source_.TypeOf(op.inputs[0]).shape[0] : 0;
    int64_t bytes = 0, batch = 0;
    bool any = false;
    for (size_t i = 0; i < in_parts.size(); ++i) {
      if (!in_parts[i]) continue;
      bytes += source_.TypeOf(op.inputs[i]).size_bytes();
      batch = source_.TypeOf(op.inputs[i]).shape[0];
      any = any || IsInParts(op.inputs[i]);
    }
    if (batch == 0 || PartsOf(batch) < 2) return 0;
    if (name != "panel_conv_weight_grad") bytes += source_.TypeOf(op.outputs[0]).size_bytes();
    // Elementwise ops, whose operands may be anything, follow what they read.
    const bool images = !IsElementwise(name) || IsPanel(source_.TypeOf(op.inputs[0])) || IsPanel(source_.TypeOf(op.outputs[0]));
    return bytes >= least_bytes_ && (any || images) ? batch : 0;
  }

  bool IsInParts(ValueId value) const { return in_parts_[value] && !whole_[value]; }

  void Take(OpId id) override {
    const Op& op = source_.ops()[id];
    const std::vector<bool> in_parts = InParts(op);
    const int64_t batch = BatchInParts(op, in_parts);
    if (batch == 0) return CopyWhole(id);
    const std::string_view name = op.definition->name;
    if (name == "normalize") {
      Push({id, StepKind::kNormSums}, batch, in_parts);
      Flush();
      Push({id, StepKind::kNormApply}, batch, in_parts);
    } else if (name == "normalize_grad") {
      Push({id, StepKind::kNormGradSums}, batch, in_parts);
      Flush();
      Push({id, StepKind::kNormGradApply}, batch, in_parts);
    } else {
      Push({id, name == "panel_conv_weight_grad" ? StepKind::kWeightGradient : StepKind::kEach}, batch, in_parts);
    }
  }

  // Adds a step to the run of those that go part by part together.
  void Push(const Step& step, int64_t batch, const std::vector<bool>& in_parts) {
    const Op& op = source_.ops()[step.op];
    const std::string_view name = op.definition->name;
    const bool heavy = name == "panel_conv" || name == "panel_conv_weight_grad";
    bool ends = !run_.empty() && (batch != run_batch_ || (heavy && run_is_heavy_));
    for (size_t i = 0; i < in_parts.size(); ++i) ends = ends || (pending_[op.inputs[i]] && !(in_parts[i] && IsInParts(op.inputs[i])));
    if (ends) Flush();
    for (size_t i = 0; i < in_parts.size(); ++i) {
      if (!in_parts[i]) Whole(op.inputs[i]);
    }
    run_batch_ = batch;
    run_is_heavy_ = run_is_heavy_ || heavy;
    run_.push_back(step);
    // The parts of a result, or a sum that is there once all parts are.
    const bool sums = step.kind == StepKind::kNormSums || step.kind == StepKind::kNormGradSums;
    for (size_t o = 0; o < op.outputs.size(); ++o) {
      if (sums != (o > 0) && step.kind != StepKind::kWeightGradient) continue;
      pending_[op.outputs[o]] = true;
      in_parts_[op.outputs[o]] = !sums && step.kind != StepKind::kWeightGradient;
    }
  }

  void Flush() override {
    std::vector<Step> run = std::move(run_);
    run_.clear();
    run_is_heavy_ = false;
    for (int64_t part = 0; !run.empty() && part < PartsOf(run_batch_); ++part) {
      for (Step& step : run) {
        EmitPart(step, part);
        if (!target_.status().ok()) return;
      }
    }
    for (const Step& step : run) {
      EmitEnd(step);
      for (ValueId output : source_.ops()[step.op].outputs) pending_[output] = false;
    }
  }

  void EmitPart(Step& step, int64_t part) {
    const Op& op = source_.ops()[step.op];
    const std::vector<bool> in_parts = InParts(op);
    copier_.SetLabels(op);
    std::vector<ValueId> in;
    for (size_t i = 0; i < op.inputs.size(); ++i) in.push_back(in_parts[i] ? Part(op.inputs[i], part) : copier_.Mapped(op.inputs[i]));
    const int64_t before = part * SizeOfPart(run_batch_), images = std::min(SizeOfPart(run_batch_), run_batch_ - before);
    const auto AddSum = [&](std::vector<ValueId> inputs) {
      if (step.sum != kNoValue) inputs.push_back(step.sum);
      return inputs;
    };
    // Statistics of a batch norm, and the attributes that its steps share.
    Attributes attributes;
    if (step.kind == StepKind::kNormSums || step.kind == StepKind::kNormGradSums) {
      attributes.Set("before", before);
      attributes.Set("images", op.attributes.Int("images"));
    }
    for (const std::string_view name : {"eps", "slope"}) {
      const bool of_step = step.kind != StepKind::kNormSums && (name == "slope" || step.kind != StepKind::kNormGradSums);
      if (of_step && op.attributes.Has(name)) attributes.Set(std::string(name), op.attributes.Float(name));
    }
    switch (step.kind) {
      case StepKind::kEach:
        Define(op.outputs[0], target_.Emit(op.definition->name, in, OfImages(op.attributes, images))[0]);
        break;
      case StepKind::kWeightGradient:
        step.sum = target_.Emit("panel_conv_weight_grad", AddSum(in), OfImages(op.attributes, images))[0];
        break;
      case StepKind::kNormSums:
        step.sum = target_.Emit("batch_norm_sums", AddSum({in[0]}), std::move(attributes))[0];
        break;
      case StepKind::kNormApply:
        in.push_back(copier_.Mapped(op.outputs[1]));
        in.push_back(copier_.Mapped(op.outputs[2]));
        Define(op.outputs[0], target_.Emit("normalize_apply", in, std::move(attributes))[0]);
        break;
      case StepKind::kNormGradSums: {
        std::vector<ValueId> inputs = {in[0], in[1], in[3]};
        if (in.size() > 5) inputs.push_back(in[5]);
        step.sum = target_.Emit("batch_norm_grad_sums", AddSum(std::move(inputs)), std::move(attributes))[0];
        break;
      }
      case StepKind::kNormGradApply: {
        std::vector<ValueId> inputs(in.begin(), in.begin() + 5);
        inputs.push_back(sums_.at(step.op));
        if (in.size() > 5) inputs.push_back(in[5]);
        attributes.Set("batch", run_batch_);
        Define(op.outputs[0], target_.Emit("batch_norm_grad_apply", inputs, std::move(attributes))[0]);
        break;
      }
    }
  }

  // Once all parts are summed: the results that are sums.
  void EmitEnd(const Step& step) {
    const Op& op = source_.ops()[step.op];
    copier_.SetLabels(op);
    if (step.kind == StepKind::kWeightGradient) DefineWhole(op.outputs[0], step.sum);
    if (step.kind == StepKind::kNormSums) {
      const Shape& x = source_.TypeOf(op.inputs[0]).shape;
      const ValueId inputs[] = {step.sum};
      const std::vector<ValueId> statistics = target_.Emit("batch_norm_statistics", inputs, {{"count", x[0] * x[2] * x[3]}});
      for (int i = 0; i < 2; ++i) DefineWhole(op.outputs[1 + i], statistics[i]);
    }
    if (step.kind == StepKind::kNormGradSums) {
      sums_[step.op] = step.sum;
      const ValueId inputs[] = {step.sum, copier_.Mapped(op.inputs[4])};
      const std::vector<ValueId> gradients =
          target_.Emit("batch_norm_grad_parameters", inputs,
                       {{"eps", op.attributes.Float("eps")}, {"dims", source_.TypeOf(op.outputs[1]).shape.dims()}});
      for (int i = 0; i < 2; ++i) DefineWhole(op.outputs[1 + i], gradients[i]);
    }
  }

  // The attributes of an op on so many images: a convolution's geometry names them.
  static Attributes OfImages(const Attributes& attributes, int64_t images) {
    Attributes changed = attributes;
    if (attributes.Has("geometry")) {
      std::vector<int64_t> geometry = attributes.Ints("geometry");
      geometry[0] = images;
      changed.Set("geometry", geometry);
    }
    return changed;
  }

  std::vector<Step> run_;  // steps that go part by part together
  int64_t run_batch_ = 0;
  bool run_is_heavy_ = false;     // it has an op with weights, which are held for all parts
  std::map<OpId, ValueId> sums_;  // of a normalize_grad, for its second step
};

}  // namespace

bool IsElementwise(std::string_view name) {
  constexpr std::string_view kNames[] = {"add",     "sub",       "mul",  "div",     "minimum",      "maximum",    "scale", "neg",      "abs",
                                         "sqrt",    "rsqrt",     "exp",  "log",     "square",       "reciprocal", "clip",  "sigmoid",  "sigmoid_grad",
                                         "tanh",    "tanh_grad", "silu", "softplus", "leaky_relu", "leaky_relu_grad", "gelu", "reorder", "add_if",
                                         "stop_gradient"};
  return std::find(std::begin(kNames), std::end(kNames), name) != std::end(kNames);
}

absl::StatusOr<Program> ChunkBatches(const Program& program, int64_t chunk_bytes) {
  GANTRY_RETURN_IF_ERROR(program.status());
  Program target = program;
  for (OpId id = 0; id < static_cast<OpId>(program.ops().size()); ++id) {
    const TensorType* const summed = SummedImages(program, program.ops()[id]);
    if (summed == nullptr || summed->size_bytes() < 2 * chunk_bytes) continue;
    const int64_t images = ImagesAtATime(summed->shape[0]);
    if (images < summed->shape[0]) target.SetAttribute(id, "images", images);
  }
  return target;
}

absl::StatusOr<Program> SplitBatch(const Program& program, int parts, int64_t least_bytes) {
  GANTRY_RETURN_IF_ERROR(program.status());
  if (!IsBatchParts(parts)) return absl::InvalidArgumentError(absl::StrFormat("a batch cannot be taken in %d parts", parts));
  if (parts == 1) return program;
  return BatchSplitter(program, parts, least_bytes).Run();
}

}  // namespace gantry
