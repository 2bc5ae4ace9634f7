#include "ops/weight_rows.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>

#include "memory/cpu/parallel.h"
#include "ops/infer.h"
#include "ops/kernel_parts.h"

namespace gantry {
namespace {

using infer::Inputs;
using infer::Outputs;

using Kind = ConvKind;

constexpr std::array<std::string_view, 3> kRows = {"conv_rows", "conv_transpose_rows", "conv_weight_grad_rows"};

Kind KindOf(std::string_view op) { return ConvKindOf(op, kRows); }

// The op as a convolution of its rows alone: what inference and cost of the whole op can take.
struct Part {
  std::vector<TensorType> inputs;
  int64_t begin = 0, rows = 0;
};

// `inputs` of one of the ops by rows. The ranks and counts that are read here are checked here, the rest by the whole op's inference.
absl::StatusOr<Part> PartOf(Kind kind, Inputs inputs, const Attributes& attributes) {
  const bool weight_grad = kind == Kind::kWeightGrad;
  Part part;
  GANTRY_ASSIGN_OR_RETURN(part.begin, infer::IntAttribute(attributes, "begin", 0, infer::kMaxElements));
  GANTRY_ASSIGN_OR_RETURN(const int64_t chunk, infer::IntAttribute(attributes, "chunk", 1, infer::kMaxElements));
  for (const TensorType& input : inputs.first(2)) GANTRY_RETURN_IF_ERROR(infer::RequireRank(input, "an operand", 3, 5));
  if (attributes.Int("groups", 1) != 1) return absl::InvalidArgumentError("there must be one group");
  if (weight_grad) {
    GANTRY_ASSIGN_OR_RETURN(part.rows, infer::IntAttribute(attributes, "rows", 1, infer::kMaxElements));
    part.inputs.assign(inputs.begin(), inputs.end());
  } else {
    GANTRY_RETURN_IF_ERROR(infer::RequireRank(inputs[2], "w", 3, 5));
    part.rows = inputs[2].shape[0];
    part.inputs.assign(inputs.begin() + 1, inputs.end());
  }
  const TensorType& side = kind == Kind::kConv ? inputs[0] : inputs[1];
  const int64_t left = side.shape[1] - part.begin;
  if (part.rows < 1 || part.rows > left || part.begin % chunk != 0 || (part.rows % chunk != 0 && part.rows != left)) {
    return absl::InvalidArgumentError(absl::StrFormat("rows %d to %d are no chunks of %d of the %d channels of %s", part.begin,
                                                      part.begin + part.rows, chunk, side.shape[1], side.ToString()));
  }
  if (weight_grad) part.inputs[1] = WithDim(part.inputs[1], 1, part.rows);
  if (kind == Kind::kTranspose) part.inputs[0] = WithDim(part.inputs[0], 1, part.rows);
  return part;
}

template <Kind kKind>
Outputs InferRows(Inputs inputs, const Attributes& attributes) {
  GANTRY_ASSIGN_OR_RETURN(const Part part, PartOf(kKind, inputs, attributes));
  GANTRY_ASSIGN_OR_RETURN(std::vector<TensorType> made, FindOp(kConvs[static_cast<int>(kKind)])->infer(part.inputs, attributes));
  if (kKind == Kind::kWeightGrad) return made;
  const TensorType whole = kKind == Kind::kConv ? WithDim(made[0], 1, inputs[0].shape[1]) : made[0];
  if (!(whole == inputs[0])) {
    return absl::InvalidArgumentError(absl::StrFormat("it makes a part of %s, not of %s", whole.ToString(), inputs[0].ToString()));
  }
  return std::vector<TensorType>{inputs[0]};
}

template <Kind kKind>
Cost CostOfRows(Inputs inputs, std::span<const TensorType> outputs, const Attributes& attributes) {
  const auto part = PartOf(kKind, inputs, attributes);
  if (!part.ok()) return {};
  std::vector<TensorType> made(outputs.begin(), outputs.end());
  if (kKind == Kind::kConv) made[0] = WithDim(made[0], 1, part->rows);
  return FindOp(kConvs[static_cast<int>(kKind)])->cost(part->inputs, made, attributes);
}

// --- the kernel -----------------------------------------------------------------------------------------------------

// Channels [begin, begin + rows) of images [batch, channels, places] as images of their own, and back.
struct ChannelSlice {
  int64_t batch, channels, place_bytes;

  void Gather(const std::byte* images, int64_t begin, int64_t rows, std::byte* slice) const {
    for (int64_t n = 0; n < batch; ++n) {
      std::memcpy(slice + n * rows * place_bytes, images + (n * channels + begin) * place_bytes, rows * place_bytes);
    }
  }
  void Scatter(const std::byte* slice, int64_t begin, int64_t rows, std::byte* images) const {
    for (int64_t n = 0; n < batch; ++n) {
      std::memcpy(images + (n * channels + begin) * place_bytes, slice + n * rows * place_bytes, rows * place_bytes);
    }
  }
};

// Bias of every channel, which may be absent, then leaky_relu.
template <typename T>
void Activate(void* data, const void* biases, double slope, int64_t batch, int64_t channels, int64_t places, int threads) {
  ParallelFor(threads, batch * channels, [&](int64_t plane) {
    T* const values = static_cast<T*>(data) + plane * places;
    const T bias = biases == nullptr ? T{0} : static_cast<const T*>(biases)[plane % channels];
    for (int64_t place = 0; place < places; ++place) {
      const T value = values[place] + bias;
      values[place] = value > T{0} ? value : static_cast<T>(slope) * value;
    }
  });
}

class RowsKernel final : public Kernel {
 public:
  static absl::StatusOr<std::unique_ptr<Kernel>> Make(const KernelRequest& request, const KernelFactory& make) {
    std::unique_ptr<RowsKernel> kernel(new RowsKernel(request));
    GANTRY_ASSIGN_OR_RETURN(const bool made, kernel->MakeChunks(request, make));
    if (!made) return nullptr;
    return kernel;
  }

  size_t scratch_bytes() const override { return kernel_scratch_ + slice_scratch_ + part_scratch_; }
  std::string_view implementation() const override { return implementation_; }

  absl::Status Run(const KernelArguments& arguments) override {
    std::byte* const out = static_cast<std::byte*>(arguments.outputs[0]);
    if (has_into_ && arguments.inputs[0] != out) std::memcpy(out, arguments.inputs[0], out_bytes_);
    if (!has_into_ && kind_ == Kind::kTranspose) std::memset(out, 0, out_bytes_);
    const int first = has_into_ ? 1 : 0;  // the convolution's own operands
    std::byte* const slice = static_cast<std::byte*>(arguments.scratch) + kernel_scratch_;
    std::byte* const part = slice + slice_scratch_;
    for (int64_t begin = 0; begin < rows_; begin += chunk_) {
      const int64_t rows = std::min(chunk_, rows_ - begin);
      Kernel& kernel = rows == chunk_ ? *whole_chunk_ : *last_chunk_;
      const std::byte* const a = static_cast<const std::byte*>(arguments.inputs[first]);
      const std::byte* const b = static_cast<const std::byte*>(arguments.inputs[first + 1]);
      const std::byte* inputs[3] = {a, b, nullptr};
      size_t input_count = 2;
      std::byte* result = nullptr;
      switch (kind_) {
        case Kind::kConv:
          inputs[1] = b + begin * row_bytes_;
          if (has_bias_) {
            inputs[2] = static_cast<const std::byte*>(arguments.inputs[first + 2]) + begin * element_bytes_;
            input_count = 3;
          }
          result = side_.batch == 1 ? out + (begin_ + begin) * side_.place_bytes : slice;
          break;
        case Kind::kTranspose:
          inputs[0] = Side(a, begin, rows, slice);
          inputs[1] = b + begin * row_bytes_;
          result = part;
          break;
        case Kind::kWeightGrad:
          inputs[1] = Side(b, begin, rows, slice);
          result = out + begin * row_bytes_;
          break;
      }
      const void* const input_pointers[3] = {inputs[0], inputs[1], inputs[2]};
      void* const output_pointers[1] = {result};
      GANTRY_RETURN_IF_ERROR(kernel.Run({{input_pointers, input_count}, output_pointers, arguments.scratch}));
      if (kind_ == Kind::kConv && side_.batch > 1) side_.Scatter(slice, begin_ + begin, rows, out);
      if (kind_ == Kind::kTranspose) {
        AddTo(dtype_, out, part, out_bytes_ / element_bytes_, threads_);
      }
    }
    if (kind_ == Kind::kTranspose && activates_) {
      const void* const bias = has_bias_ ? arguments.inputs[first + 2] : nullptr;
      const auto run = dtype_ == DataType::kF64 ? Activate<double> : Activate<float>;
      run(out, bias, slope_, side_.batch, out_channels_, out_bytes_ / element_bytes_ / side_.batch / out_channels_, threads_);
    }
    return absl::OkStatus();
  }

 private:
  explicit RowsKernel(const KernelRequest& request)
      : kind_(KindOf(request.op.name)),
        has_into_(request.op.name == kRows[0] || request.op.name == kRows[1]),
        threads_(request.thread_count),
        chunk_(request.attributes.Int("chunk")),
        begin_(request.op.name == kConvs[static_cast<int>(kind_)] ? 0 : request.attributes.Int("begin")),
        dtype_(request.outputs[0].dtype),
        element_bytes_(static_cast<int64_t>(SizeBytes(dtype_))),
        out_bytes_(request.outputs[0].size_bytes()),
        out_channels_(request.outputs[0].shape[1]),
        slope_(request.attributes.Float("slope", 1.0)) {
    const size_t operands = request.inputs.size() - (has_into_ ? 1 : 0);
    has_bias_ = operands > 2;
    activates_ = has_bias_ || request.attributes.Has("slope");
  }

  // False where a chunk has no kernel.
  absl::StatusOr<bool> MakeChunks(const KernelRequest& request, const KernelFactory& make) {
    const std::span<const TensorType> operands = request.inputs.subspan(has_into_ ? 1 : 0);
    const TensorType& weights = kind_ == Kind::kWeightGrad ? request.outputs[0] : operands[1];
    const TensorType& side = kind_ == Kind::kConv ? request.outputs[0] : kind_ == Kind::kTranspose ? operands[0] : operands[1];
    rows_ = weights.shape[0];
    row_bytes_ = weights.size_bytes() / rows_;
    side_ = {side.shape[0], side.shape[1], side.size_bytes() / side.shape[0] / side.shape[1]};
    const OpDefinition& whole = *FindOp(kConvs[static_cast<int>(kind_)]);
    size_t kernel_scratch = 0;
    const auto MakeOne = [&](int64_t rows, std::unique_ptr<Kernel>& kernel) -> absl::Status {
      std::vector<TensorType> inputs = {operands[0], operands[1]}, outputs = {request.outputs[0]};
      (kind_ == Kind::kWeightGrad ? outputs[0] : inputs[1]) = WithDim(weights, 0, rows);
      (kind_ == Kind::kConv ? outputs[0] : kind_ == Kind::kTranspose ? inputs[0] : inputs[1]) = WithDim(side, 1, rows);
      Attributes attributes = request.attributes;
      if (kind_ == Kind::kConv && has_bias_) inputs.push_back({side.dtype, Shape{rows}});
      // Nothing but a leaky_relu of slope 1 is the identity to the bit.
      if (kind_ == Kind::kTranspose && attributes.Has("slope")) attributes = Without(attributes, "slope");
      GANTRY_ASSIGN_OR_RETURN(kernel, make({whole, attributes, inputs, outputs, request.thread_count}));
      if (kernel != nullptr) kernel_scratch = std::max(kernel_scratch, kernel->scratch_bytes());
      return absl::OkStatus();
    };
    if (rows_ >= chunk_) GANTRY_RETURN_IF_ERROR(MakeOne(chunk_, whole_chunk_));
    if (rows_ % chunk_ != 0) GANTRY_RETURN_IF_ERROR(MakeOne(rows_ % chunk_, last_chunk_));
    if ((rows_ >= chunk_ && whole_chunk_ == nullptr) || (rows_ % chunk_ != 0 && last_chunk_ == nullptr)) return false;
    kernel_scratch_ = AlignedBytes(kernel_scratch);
    if (side_.batch > 1) slice_scratch_ = AlignedBytes(side_.batch * std::min(chunk_, rows_) * side_.place_bytes);
    if (kind_ == Kind::kTranspose) part_scratch_ = AlignedBytes(out_bytes_);
    implementation_ = absl::StrFormat("%s, %d rows at a time", (whole_chunk_ ? whole_chunk_ : last_chunk_)->implementation(), chunk_);
    return true;
  }

  static Attributes Without(const Attributes& attributes, std::string_view name) {
    Attributes rest;
    for (const auto& [key, value] : attributes.entries()) {
      if (key != name) rest.Set(key, value);
    }
    return rest;
  }

  const std::byte* Side(const std::byte* images, int64_t begin, int64_t rows, std::byte* slice) const {
    if (side_.batch == 1) return images + (begin_ + begin) * side_.place_bytes;
    side_.Gather(images, begin_ + begin, rows, slice);
    return slice;
  }

  const Kind kind_;
  const bool has_into_;
  const int threads_;
  const int64_t chunk_, begin_;
  const DataType dtype_;
  const int64_t element_bytes_, out_bytes_, out_channels_;
  const double slope_;
  bool has_bias_ = false, activates_ = false;
  int64_t rows_ = 0, row_bytes_ = 0;
  ChannelSlice side_ = {};  // of the tensor whose channels are the weights' rows
  std::unique_ptr<Kernel> whole_chunk_, last_chunk_;
  size_t kernel_scratch_ = 0, slice_scratch_ = 0, part_scratch_ = 0;
  std::string implementation_;
};

}  // namespace

// Kernels like whole blocks of 16 channels, or at least of 8 or 4, and vectors of 16 elements must not straddle two chunks.
int64_t WeightChunkRows(const TensorType& weight, int64_t bytes) {
  const int64_t row_elements = weight.element_count() / weight.shape[0];
  const int64_t wanted = bytes * weight.shape[0] / weight.size_bytes();
  int64_t rows = wanted >= 16 ? wanted / 16 * 16 : wanted >= 8 ? 8 : 4;
  while (rows * row_elements % 16 != 0) rows *= 2;
  return rows;
}

bool IsByRows(const OpDefinition& op, const Attributes& attributes) {
  if (std::find(kRows.begin(), kRows.end(), op.name) != kRows.end()) return true;
  return attributes.Has("chunk") && std::find(kConvs.begin(), kConvs.end(), op.name) != kConvs.end();
}

absl::StatusOr<std::unique_ptr<Kernel>> MakeRowsKernel(const KernelRequest& request, const KernelFactory& make) {
  return RowsKernel::Make(request, make);
}

std::vector<OpDefinition> WeightRowsOps() {
  return {
      {.name = kRows[0],
       .min_inputs = 3,
       .max_inputs = 4,
       .infer = InferRows<Kind::kConv>,
       .cost = CostOfRows<Kind::kConv>,
       .in_place = {{0, 0}},
       .planner_only = true},
      {.name = kRows[1],
       .min_inputs = 3,
       .max_inputs = 4,
       .infer = InferRows<Kind::kTranspose>,
       .cost = CostOfRows<Kind::kTranspose>,
       .in_place = {{0, 0}},
       .planner_only = true},
      {.name = kRows[2],
       .min_inputs = 2,
       .max_inputs = 2,
       .infer = InferRows<Kind::kWeightGrad>,
       .cost = CostOfRows<Kind::kWeightGrad>,
       .planner_only = true},
  };
}

}  // namespace gantry
