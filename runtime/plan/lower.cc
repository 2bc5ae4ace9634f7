#include "runtime/plan/lower.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "ops/cpu/panel_ops.h"

namespace gantry {
namespace {

// Below these a panel is mostly padding, and plain images go straight into the convolution.
constexpr int64_t kFewestPanelChannels = 8;
constexpr int64_t kSmallestPanelBatch = 4;

class Lowering {
 public:
  Lowering(const Program& source, const PlanOptions& options)
      : source_(source), options_(options), copier_(source, target_), plain_(source.values().size(), kNoValue),
        panel_(source.values().size(), kNoValue), only_under_(source.values().size(), kNoValue) {
    for (ValueId input : source.inputs()) plain_[input] = copier_.Mapped(input);
    for (const State& state : source.states()) plain_[state.first] = copier_.Mapped(state.first);
    std::vector<bool> is_read(source.values().size(), false);
    for (const Op& op : source.ops()) {
      for (size_t i = static_cast<size_t>(UpdateCount(op)); i < op.inputs.size(); ++i) {
        const ValueId input = op.inputs[i];
        only_under_[input] = is_read[input] && only_under_[input] != op.condition ? kNoValue : op.condition;
        is_read[input] = true;
      }
    }
  }

  absl::StatusOr<Program> Run() {
    for (const Op& op : source_.ops()) {
      copier_.SetLabels(op);
      if (!LowerConvolution(op) && !KeepPanels(op) && !KeepPanelRows(op)) CopyPlain(op);
      GANTRY_RETURN_IF_ERROR(target_.status());
    }
    for (const State& state : source_.states()) copier_.Map(state.last, Plain(state.last));
    for (const NamedValue& output : source_.outputs()) copier_.Map(output.value, Plain(output.value));
    copier_.Finish();
    GANTRY_RETURN_IF_ERROR(target_.status());
    return std::move(target_);
  }

 private:
  // The value in one layout, reordered once where it exists in the other only.
  ValueId Plain(ValueId value) {
    if (plain_[value] == kNoValue) plain_[value] = Reorder(value, panel_[value], TensorLayout::kPlain);
    return plain_[value];
  }
  ValueId Panel(ValueId value) {
    if (panel_[value] == kNoValue) panel_[value] = Reorder(value, plain_[value], TensorLayout::kPanel);
    return panel_[value];
  }
  // The reorder runs whenever the value is made, whoever needs it first; of an input or a state, when all who read it do.
  ValueId Reorder(ValueId value, ValueId lowered, TensorLayout layout) {
    const ValueId inputs[] = {lowered};
    const Value& made = target_.values()[lowered];
    const ValueId condition = target_.condition();
    target_.SetCondition(made.kind == ValueKind::kComputed ? target_.ops()[made.producer].condition : copier_.Mapped(only_under_[value]));
    const ValueId result = target_.Emit("reorder", inputs, {{"layout", std::string(Name(layout))}})[0];
    target_.SetLayout(result, layout);
    target_.SetCondition(condition);
    return result;
  }
  ValueId In(ValueId value, cpu::ImageFormat format) {
    return format == cpu::ImageFormat::kPanel ? Panel(value) : Plain(value);
  }
  void Define(ValueId value, ValueId lowered, TensorLayout layout) {
    target_.SetLayout(lowered, layout);
    target_.NameValue(lowered, source_.values()[value].name);
    (layout == TensorLayout::kPanel ? panel_ : plain_)[value] = lowered;
  }

  void CopyPlain(const Op& op) {
    std::vector<ValueId> inputs;
    for (ValueId input : op.inputs) inputs.push_back(Plain(input));
    const std::vector<ValueId> outputs = target_.Emit(op.definition->name, inputs, op.attributes);
    for (size_t i = 0; i < op.outputs.size(); ++i) Define(op.outputs[i], outputs[i], TensorLayout::kPlain);
  }

  // An op between convolutions: if some operand is at hand in panels only, and there is a kernel that takes all operands of
  // that shape in panels, it stays there; so does an op that gives images of another size in panels.
  bool KeepPanels(const Op& op) {
    ValueId leader = SumInPanels(op);
    const bool adds_part = op.definition->name == "add_part";  // rows follow the image that they are added to
    for (ValueId input : op.inputs) {
      if (InPanelsOnly(input) && (!adds_part || input == op.inputs[0])) leader = input;
    }
    if (leader == kNoValue || op.definition->is_view || op.definition->updates != nullptr) return false;
    const Shape& shape = source_.TypeOf(leader).shape;
    const auto Typed = [&](const std::vector<ValueId>& values) {
      std::vector<TensorType> types;
      for (ValueId value : values) {
        types.push_back(source_.TypeOf(value));
        const bool alike = types.back().shape == shape || adds_part;
        if (alike && types.back().dtype == DataType::kF32) types.back().layout = TensorLayout::kPanel;
      }
      return types;
    };
    const std::vector<TensorType> inputs = Typed(op.inputs);
    std::vector<TensorType> outputs = Typed(op.outputs);
    const auto HasKernel = [&] {
      const auto kernel = CpuKernels().Make({*op.definition, op.attributes, inputs, outputs, options_.thread_count});
      return kernel.ok() && *kernel != nullptr;
    };
    if (!HasKernel()) {
      TensorType& image = outputs[0];
      if (image.layout == TensorLayout::kPanel || image.shape.rank() != 4 || image.dtype != DataType::kF32) return false;
      image.layout = TensorLayout::kPanel;
      if (!HasKernel()) return false;
    }
    std::vector<ValueId> lowered;
    for (size_t i = 0; i < op.inputs.size(); ++i) {
      lowered.push_back(inputs[i].layout == TensorLayout::kPanel ? Panel(op.inputs[i]) : Plain(op.inputs[i]));
    }
    const std::vector<ValueId> results = target_.Emit(op.definition->name, lowered, op.attributes);
    for (size_t i = 0; i < op.outputs.size(); ++i) Define(op.outputs[i], results[i], outputs[i].layout);
    return true;
  }

  // The images that an op of several ranks sums over, where it does so in panels whatever they are in at this place of the program: the sums are then
  // taken alike in all orders of ops, and in a part of a step that is carried over into the next one.
  ValueId SumInPanels(const Op& op) const {
    constexpr std::pair<std::string_view, size_t> kHalves[] = {{"moments", 0}, {"normalize_apply", 0}, {"normalize_grad_sums", 1}, {"normalize_grad_apply", 1}};
    const std::string_view name = op.definition->name;
    const auto half = std::find_if(std::begin(kHalves), std::end(kHalves), [&](const auto& entry) { return entry.first == name; });
    const bool sums = name == "reduce_sum";
    if (half == std::end(kHalves) && !sums) return kNoValue;
    const ValueId x = op.inputs[sums ? 0 : half->second];
    const TensorType& type = source_.TypeOf(x);
    const bool wide = type.shape.rank() == 4 && type.shape[0] >= kSmallestPanelBatch && type.shape[1] >= kFewestPanelChannels;
    const bool at_hand = panel_[x] != kNoValue || source_.values()[x].kind == ValueKind::kState;
    return type.dtype == DataType::kF32 && wide && (!sums || at_hand) ? x : kNoValue;
  }

  bool InPanelsOnly(ValueId value) const { return plain_[value] == kNoValue && panel_[value] != kNoValue; }

  // Rows that other ranks hold come in the layout of those that are here; what moves is the same in both.
  bool KeepPanelRows(const Op& op) {
    if (op.definition->name != "halo" || op.attributes.Int("axis") != 2 || !InPanelsOnly(op.inputs[0])) return false;
    const ValueId inputs[] = {Panel(op.inputs[0])};
    const std::vector<ValueId> rows = target_.Emit(op.definition->name, inputs, op.attributes);
    for (size_t i = 0; i < rows.size(); ++i) Define(op.outputs[i], rows[i], TensorLayout::kPanel);
    return true;
  }

  bool LowerConvolution(const Op& op) {
    const std::string_view name = op.definition->name;
    if (name == "conv") return LowerConv(op, cpu::Direction::kForward);
    if (name == "conv_transpose") return LowerConv(op, cpu::Direction::kInputGradient);
    if (name == "conv_weight_grad" || name == "conv_weight_grad_rows") return LowerConv(op, cpu::Direction::kWeightGradient);
    return false;
  }

  // `image` is the value on the input side of the convolution, `result` the one on its output side.
  static cpu::ConvGeometry Geometry(const Attributes& attributes, const Shape& image, const Shape& result,
                                    std::span<const int64_t> kernel) {
    const std::vector<int64_t> strides = attributes.Ints("strides", {1, 1}), pads = attributes.Ints("pads", {0, 0, 0, 0}),
                               dilations = attributes.Ints("dilations", {1, 1});
    cpu::ConvGeometry g;
    g.batch = image[0], g.in_channels = image[1], g.out_channels = result[1];
    g.in_h = image[2], g.in_w = image[3], g.out_h = result[2], g.out_w = result[3];
    g.kernel_h = kernel[0], g.kernel_w = kernel[1], g.stride_h = strides[0], g.stride_w = strides[1];
    g.pad_top = pads[0], g.pad_left = pads[1], g.dilation_h = dilations[0], g.dilation_w = dilations[1];
    return g;
  }

  bool LowerConv(const Op& op, cpu::Direction direction) {
    const bool weight_gradient = direction == cpu::Direction::kWeightGradient;
    const TensorType& first = source_.TypeOf(op.inputs[0]);
    const TensorType& second = source_.TypeOf(op.inputs[1]);
    const TensorType& result = source_.TypeOf(op.outputs[0]);
    if (first.dtype != DataType::kF32 || first.shape.rank() != 4 || op.attributes.Int("groups", 1) != 1) return false;
    if (first.shape[0] < kSmallestPanelBatch) return false;
    const Shape& weights = weight_gradient ? result.shape : second.shape;
    const int64_t kernel[] = {weights[2], weights[3]};
    const Shape& image = direction == cpu::Direction::kInputGradient ? result.shape : first.shape;
    const Shape& response = weight_gradient ? second.shape : direction == cpu::Direction::kForward ? result.shape : first.shape;
    const cpu::ConvGeometry geometry = Geometry(op.attributes, image, response, kernel);
    cpu::ConvOptions conv;
    if (geometry.in_channels < kFewestPanelChannels) conv.input_format = cpu::ImageFormat::kPlain;
    if (geometry.out_channels < kFewestPanelChannels) conv.output_format = cpu::ImageFormat::kPlain;
    if (!Choose(geometry, direction, conv)) return false;
    Attributes attributes = ConvAttributesOf(geometry, direction, conv);
    if (weight_gradient) {
      if (op.attributes.Has("rows")) {
        // The algorithm is that of all rows.
        const int64_t begin = op.attributes.Int("begin");
        if (begin % 16 != 0 || conv.output_format != cpu::ImageFormat::kPanel) return false;
        cpu::ConvGeometry of_rows = geometry;
        of_rows.out_channels = op.attributes.Int("rows");
        attributes = ConvAttributesOf(of_rows, direction, conv);
        attributes.Set("rows", std::vector<int64_t>{begin, geometry.out_channels});
      }
      const ValueId inputs[] = {In(op.inputs[0], conv.input_format), In(op.inputs[1], conv.output_format)};
      Define(op.outputs[0], target_.Emit("panel_conv_weight_grad", inputs, std::move(attributes))[0], TensorLayout::kPlain);
      return true;
    }
    const bool forward = direction == cpu::Direction::kForward;
    const ValueId weight_inputs[] = {Plain(op.inputs[1])};
    // How direct forms on panels read weights has nothing to do with the image: parts of one share them.
    cpu::ConvGeometry packing = geometry;
    if (conv.algorithm == cpu::Algorithm::kDirect && conv.input_format == cpu::ImageFormat::kPanel && conv.output_format == cpu::ImageFormat::kPanel) {
      packing.batch = packing.in_h = packing.in_w = packing.out_h = packing.out_w = 1;
      packing.pad_top = packing.pad_left = 0;
    }
    const ValueId packed = target_.Emit("pack_weights", weight_inputs, ConvAttributesOf(packing, direction, conv))[0];
    std::vector<ValueId> inputs = {In(op.inputs[0], forward ? conv.input_format : conv.output_format), packed};
    if (op.inputs.size() > 2) inputs.push_back(Plain(op.inputs[2]));
    if (op.attributes.Has("slope")) attributes.Set("slope", op.attributes.Float("slope"));
    const ValueId value = target_.Emit("panel_conv", inputs, std::move(attributes))[0];
    const cpu::ImageFormat format = forward ? conv.output_format : conv.input_format;
    Define(op.outputs[0], value, format == cpu::ImageFormat::kPanel ? TensorLayout::kPanel : TensorLayout::kPlain);
    return true;
  }

  // Completes `conv` with an algorithm, falling back from plain images to panels where the former has no kernel.
  bool Choose(const cpu::ConvGeometry& geometry, cpu::Direction direction, cpu::ConvOptions& conv) const {
    const bool panels = conv.input_format == conv.output_format;
    if (options_.winograd && panels) {
      conv.algorithm = cpu::ChooseAlgorithm(geometry, direction);
      if (cpu::PanelConv::Supports(geometry, direction, conv)) return true;
    }
    conv.algorithm = cpu::Algorithm::kDirect;
    if (cpu::PanelConv::Supports(geometry, direction, conv)) return true;
    conv.input_format = conv.output_format = cpu::ImageFormat::kPanel;
    return cpu::PanelConv::Supports(geometry, direction, conv);
  }

  const Program& source_;
  const PlanOptions& options_;
  Program target_;
  ProgramCopier copier_;
  std::vector<ValueId> plain_, panel_;  // per value of the source: where the target has it in either layout
  std::vector<ValueId> only_under_;     // likewise: the condition of all ops that read it, if they have the same
};

}  // namespace

absl::StatusOr<Program> Lower(const Program& program, const PlanOptions& options) {
  return Lowering(program, options).Run();
}

}  // namespace gantry
