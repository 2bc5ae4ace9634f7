#include "runtime/plan/encode.h"

#include <algorithm>

#include "runtime/graph/rewrite.h"

namespace gantry {
namespace {

// Smaller values are not worth an op.
constexpr int64_t kLeastBytes = 16 << 10;
// Packing takes a core about as long as copying so many bytes a second: a faster link gains nothing.
constexpr double kPackingBytesPerSecond = 2e9;

// The input that an op reads for its sign alone; -1: none.
int SignInput(const Op& op) {
  if (op.definition->name == "leaky_relu_grad") return 1;
  return op.definition->name == "normalize_grad" && op.attributes.Has("slope") ? 5 : -1;
}

class SignKeeper {
 public:
  explicit SignKeeper(const Program& program) : program_(program) {}

  absl::StatusOr<Program> Run(int* masks) {
    FindReaders();
    const OpId count = static_cast<OpId>(program_.ops().size());
    std::vector<bool> from_bits(program_.values().size(), false);
    int values = 0;
    for (ValueId value = 0; value < static_cast<ValueId>(from_bits.size()); ++value) {
      from_bits[value] = Gains(value);
      values += from_bits[value];
    }
    if (masks != nullptr) *masks = values;
    if (values == 0) return program_;
    Program target;
    ProgramCopier copier(program_, target);
    std::vector<ValueId> bits(program_.values().size(), kNoValue);
    for (OpId id = 0; id < count; ++id) {
      const Op& op = program_.ops()[id];
      const int sign = SignInput(op);
      if (sign < 0 || !from_bits[op.inputs[sign]] || id <= last_whole_[op.inputs[sign]]) {
        copier.Copy(id);
      } else {
        EmitFromBits(op, sign, bits[op.inputs[sign]], copier, target);
      }
      for (ValueId output : op.outputs) {
        if (!from_bits[output]) continue;
        copier.SetLabels(op);
        const ValueId inputs[] = {copier.Mapped(output)};
        bits[output] = target.Emit("sign_bits", inputs, {})[0];
      }
      GANTRY_RETURN_IF_ERROR(target.status());
    }
    copier.Finish();
    GANTRY_RETURN_IF_ERROR(target.status());
    return target;
  }

 private:
  // Per value: the last op that reads more than its sign, by a view or otherwise; the first after it that reads its
  // sign.
  void FindReaders() {
    const size_t values = program_.values().size();
    const OpId count = static_cast<OpId>(program_.ops().size());
    last_whole_.assign(values, -1);
    first_sign_.assign(values, -1);
    std::vector<ValueId> base(values);
    for (ValueId value = 0; value < static_cast<ValueId>(values); ++value) base[value] = value;
    made_before_.assign(count + 1, 0);
    for (OpId id = 0; id < count; ++id) {
      const Op& op = program_.ops()[id];
      const int sign = SignInput(op);
      if (op.definition->is_view) base[op.outputs[0]] = base[op.inputs[0]];
      for (int i = 0; i < static_cast<int>(op.inputs.size()); ++i) {
        const ValueId value = op.inputs[i];
        if (i != sign || base[value] != value) last_whole_[base[value]] = id;
      }
      if (op.condition != kNoValue) last_whole_[op.condition] = id;
      made_before_[id + 1] = made_before_[id];
      if (op.definition->is_view || UpdateCount(op) > 0) continue;
      for (ValueId output : op.outputs) made_before_[id + 1] += program_.TypeOf(output).size_bytes();
    }
    for (const NamedValue& output : program_.outputs()) last_whole_[base[output.value]] = count;
    for (const State& state : program_.states()) last_whole_[base[state.last]] = count;
    for (OpId id = 0; id < count; ++id) {
      const Op& op = program_.ops()[id];
      if (const int sign = SignInput(op); sign >= 0) {
        const ValueId value = op.inputs[sign];
        if (id > last_whole_[value] && first_sign_[value] < 0) first_sign_[value] = id;
      }
    }
  }

  // The value would live on for its sign alone while ops make as many bytes as it has; or it would be the third large
  // operand of a normalize_grad, which is often what the whole step's peak is made of.
  bool Gains(ValueId value) const {
    const Value& v = program_.values()[value];
    if (v.kind != ValueKind::kComputed || !IsFloat(v.type.dtype) || first_sign_[value] < 0) return false;
    const Op& maker = program_.ops()[v.producer];
    if (maker.definition->is_view || UpdateCount(maker) > 0) return false;
    const int64_t bytes = v.type.size_bytes();
    const OpId last = std::max(last_whole_[value], v.producer);
    if (bytes < kLeastBytes) return false;
    return program_.ops()[first_sign_[value]].definition->name == "normalize_grad" ||
           made_before_[first_sign_[value]] - made_before_[last + 1] >= bytes;
  }

  // A fused gradient is taken apart again: the activation's by the bits, in place, then the rest, which does the same
  // arithmetic.
  static void EmitFromBits(const Op& op, int sign, ValueId bits, ProgramCopier& copier, Program& target) {
    copier.SetLabels(op);
    const ValueId gradient = copier.Mapped(op.inputs[0]);
    const ValueId inputs[] = {gradient, bits};
    const ValueId activation =
        target.Emit("leaky_relu_grad_bits", inputs, {{"slope", op.attributes.Float("slope")}})[0];
    if (activation == kNoValue) return;
    target.SetLayout(activation, target.TypeOf(gradient).layout);
    if (op.definition->name == "leaky_relu_grad") {
      copier.Map(op.outputs[0], activation);
      return;
    }
    std::vector<ValueId> rest = {activation};
    for (int i = 1; i < sign; ++i) rest.push_back(copier.Mapped(op.inputs[i]));
    Attributes attributes;
    for (const auto& [name, value] : op.attributes.entries()) {
      if (name != "slope") attributes.Set(name, value);
    }
    const std::vector<ValueId> outputs = target.Emit(op.definition->name, rest, std::move(attributes));
    for (size_t i = 0; i < outputs.size(); ++i) {
      if (outputs[i] == kNoValue) return;
      copier.Map(op.outputs[i], outputs[i]);
      if (i == 0) target.SetLayout(outputs[i], target.TypeOf(activation).layout);
    }
  }

  const Program& program_;
  std::vector<OpId> last_whole_, first_sign_;
  std::vector<int64_t> made_before_;  // bytes that ops before this one make
};

// About half of it is zero: a relu's result.
bool IsRelu(const Op& op) {
  const std::string_view name = op.definition->name;
  const bool activates =
      name == "leaky_relu" || name == "conv" || name == "conv_transpose" || name == "normalize" || name == "panel_conv";
  return activates && op.attributes.Has("slope") && op.attributes.Float("slope") == 0.0;
}

}  // namespace

absl::StatusOr<Program> KeepSigns(const Program& program, int* masks) {
  GANTRY_RETURN_IF_ERROR(program.status());
  return SignKeeper(program).Run(masks);
}

std::string_view StashEncoding(const Program& program, ValueId value, const TierOptions& tier,
                               const PlanOptions& options) {
  const Value& v = program.values()[value];
  if (v.kind != ValueKind::kComputed || v.type.dtype != DataType::kF32) return "";
  if (options.stash_dtype == StashDtype::kBf16) return "bf16";
  const double rate = tier.out.bytes_per_second;
  const bool slow = tier.kind == TierKind::kFile || tier.far || (rate > 0 && rate < kPackingBytesPerSecond);
  const Op& maker = program.ops()[v.producer];
  return options.encode && slow && v.output_index == 0 && IsRelu(maker) ? "zeros" : "";
}

bool IsDraw(const Op& op) {
  const std::string_view name = op.definition->name;
  return name == "dropout_mask" || name == "random_uniform" || name == "random_normal";
}

}  // namespace gantry
