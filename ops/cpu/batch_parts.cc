// Ops on a part of a batch: what splitting by batch (runtime/plan/split_batch.h) puts in place of ops whose operands of all images do not
// fit at once. They exist only in programs of fast kernels, in f32, and have no gradient. The planner sets the layouts of their results.
//
//   "take_images"(x) {begin, count}: those images of x, in x's layout.
//   "put_images"(x [, into]) {begin, batch}: `into` with the images from `begin` on replaced by those of x; without it, `batch` images of
//     zeros otherwise. All have one layout.
// Batch norm on the panel layout, whose sums are over all images: they are taken part after part, in doubles, f64[2, C], and each op
// that sums takes what the images before gave, unless there are none. `before`: how many those are; `images`: how many are summed at a time.
// The same bits as normalize and normalize_grad with that {images} (panel_normalization.cc).
//   "batch_norm_sums"(x [, sums]) {before, images}: per channel mean and sum of squared deviations.
//   "batch_norm_statistics"(sums) {count}: mean and variance [1, C, 1, 1] of `count` elements a channel.
//   "normalize_apply" (ops/functional.h) makes normalize's first result of them.
//   "batch_norm_grad_sums"(g, x, mean [, y] [, sums]) {before, images [, slope]}: per channel the sum of g and of g * (x - mean), g before the
//     activation; y and slope as of normalize_grad.
//   "batch_norm_grad_parameters"(sums, variance) {eps, dims}: normalize_grad's second and third result, of shape `dims`.
//   "batch_norm_grad_apply"(g, x, scale, mean, variance, sums [, y]) {eps, batch [, slope]}: its first result; the sums are of `batch`
//     images.
#include <cstring>

#include "memory/cpu/parallel.h"
#include "ops/cpu/cpu_kernels.h"
#include "ops/cpu/panel/panel_norm.h"
#include "ops/infer.h"

namespace gantry::cpu {
namespace {

using infer::Inputs;
using infer::Outputs;

bool IsPanel(const TensorType& type) { return type.layout == TensorLayout::kPanel; }

// Images of a tensor: `rows` times an image's part of `part_bytes`, one part every `stride` bytes.
struct ImageParts {
  int64_t rows, part_bytes, stride;

  ImageParts(const TensorType& type, int64_t images)
      : rows(IsPanel(type) ? type.shape[2] * type.shape[3] * PanelCount(type.shape[1]) : 1),
        part_bytes(type.size_bytes() / std::max<int64_t>(type.shape[0], 1) / rows * images),
        stride(type.size_bytes() / rows) {}
};

// Images from a whole tensor to a part of it, and back.
class MoveImagesKernel final : public Kernel {
 public:
  explicit MoveImagesKernel(const KernelRequest& request)
      : put_(request.op.name == "put_images"), has_into_(request.inputs.size() > 1), threads_(request.thread_count),
        whole_bytes_(Whole(request).size_bytes()), whole_(Whole(request), Part(request).shape[0]), part_(Part(request), Part(request).shape[0]),
        begin_bytes_(request.attributes.Int("begin") * ImageParts(Whole(request), 1).part_bytes) {}
  std::string_view implementation() const override { return "copy"; }
  absl::Status Run(const KernelArguments& arguments) override {
    auto* const out = static_cast<std::byte*>(arguments.outputs[0]);
    if (has_into_ && arguments.inputs[1] != out) std::memcpy(out, arguments.inputs[1], whole_bytes_);
    if (put_ && !has_into_) std::memset(out, 0, whole_bytes_);
    const auto* const from = static_cast<const std::byte*>(arguments.inputs[0]) + (put_ ? 0 : begin_bytes_);
    std::byte* const to = out + (put_ ? begin_bytes_ : 0);
    const int64_t to_stride = put_ ? whole_.stride : part_.stride, from_stride = put_ ? part_.stride : whole_.stride;
    ParallelFor(threads_, part_.rows, [&](int64_t row) {
      std::memcpy(to + row * to_stride, from + row * from_stride, static_cast<size_t>(part_.part_bytes));
    });
    return absl::OkStatus();
  }

 private:
  static const TensorType& Part(const KernelRequest& request) {
    return request.op.name == "put_images" ? request.inputs[0] : request.outputs[0];
  }
  static const TensorType& Whole(const KernelRequest& request) {
    return request.op.name == "put_images" ? request.outputs[0] : request.inputs[0];
  }

  const bool put_, has_into_;
  const int threads_;
  const int64_t whole_bytes_;
  const ImageParts whole_, part_;
  const int64_t begin_bytes_;
};

// What all steps of a batch norm have.
class BatchNormPart : public Kernel {
 public:
  BatchNormPart(const KernelRequest& request, const TensorType& x)
      : shape_{x.shape[0], x.shape[1], x.shape[2], x.shape[3]}, threads_(request.thread_count),
        before_(request.attributes.Int("before", 0)), part_(request.attributes.Int("images", 0)), activates_(request.attributes.Has("slope")),
        epsilon_(static_cast<float>(request.attributes.Float("eps", 0.0))),
        slope_(static_cast<float>(request.attributes.Float("slope", 1.0))) {}
  size_t scratch_bytes() const override { return NormScratchFloats(shape_) * sizeof(float); }
  std::string_view implementation() const override { return "panel"; }

 protected:
  static const float* In(const KernelArguments& arguments, size_t i) { return static_cast<const float*>(arguments.inputs[i]); }
  static float* Out(const KernelArguments& arguments, size_t i) { return static_cast<float*>(arguments.outputs[i]); }
  static float* Scratch(const KernelArguments& arguments) { return static_cast<float*>(arguments.scratch); }
  // Output 0, with the sums of the images before in it; they are the last input.
  double* Sums(const KernelArguments& arguments) const {
    auto* const sums = static_cast<double*>(arguments.outputs[0]);
    const void* const so_far = arguments.inputs.back();
    if (before_ > 0 && so_far != sums) std::memcpy(sums, so_far, static_cast<size_t>(shape_.channels) * 2 * sizeof(double));
    return sums;
  }

  const PanelShape shape_;
  const int threads_;
  const int64_t before_, part_;
  const bool activates_;
  const float epsilon_, slope_;
};

class SumsKernel final : public BatchNormPart {
 public:
  explicit SumsKernel(const KernelRequest& request) : BatchNormPart(request, request.inputs[0]) {}
  absl::Status Run(const KernelArguments& arguments) override {
    AddMoments(shape_, In(arguments, 0), before_, Sums(arguments), Scratch(arguments), threads_, BestIsa(), part_);
    return absl::OkStatus();
  }
};

class StatisticsKernel final : public Kernel {
 public:
  explicit StatisticsKernel(const KernelRequest& request)
      : channels_(request.inputs[0].shape[1]), count_(request.attributes.Int("count")) {}
  std::string_view implementation() const override { return "panel"; }
  absl::Status Run(const KernelArguments& arguments) override {
    FinishMoments(channels_, count_, static_cast<const double*>(arguments.inputs[0]), static_cast<float*>(arguments.outputs[0]),
                  static_cast<float*>(arguments.outputs[1]));
    return absl::OkStatus();
  }

 private:
  const int64_t channels_, count_;
};

class GradSumsKernel final : public BatchNormPart {
 public:
  explicit GradSumsKernel(const KernelRequest& request) : BatchNormPart(request, request.inputs[1]) {}
  absl::Status Run(const KernelArguments& arguments) override {
    const BatchNormGradient gradient{.dy = In(arguments, 0), .x = In(arguments, 1), .y = activates_ ? In(arguments, 3) : nullptr,
                                     .mean = In(arguments, 2), .slope = slope_};
    AddGradientSums(shape_, gradient, before_, Sums(arguments), Scratch(arguments), threads_, BestIsa(), part_);
    return absl::OkStatus();
  }
};

class GradParametersKernel final : public Kernel {
 public:
  explicit GradParametersKernel(const KernelRequest& request)
      : channels_(request.inputs[0].shape[1]), epsilon_(static_cast<float>(request.attributes.Float("eps"))) {}
  std::string_view implementation() const override { return "panel"; }
  absl::Status Run(const KernelArguments& arguments) override {
    FinishGradientSums(channels_, static_cast<const double*>(arguments.inputs[0]), static_cast<const float*>(arguments.inputs[1]), epsilon_,
                       static_cast<float*>(arguments.outputs[0]), static_cast<float*>(arguments.outputs[1]));
    return absl::OkStatus();
  }

 private:
  const int64_t channels_;
  const float epsilon_;
};

class GradApplyKernel final : public BatchNormPart {
 public:
  explicit GradApplyKernel(const KernelRequest& request) : BatchNormPart(request, request.inputs[1]), count_(static_cast<double>(request.attributes.Int("batch") * shape_.height * shape_.width)) {}
  absl::Status Run(const KernelArguments& arguments) override {
    const BatchNormGradient gradient{.dy = In(arguments, 0), .x = In(arguments, 1), .y = activates_ ? In(arguments, 6) : nullptr,
                                     .gamma = In(arguments, 2), .mean = In(arguments, 3), .variance = In(arguments, 4),
                                     .epsilon = epsilon_, .slope = slope_, .dx = Out(arguments, 0)};
    BatchNormInputGradient(shape_, gradient, count_, static_cast<const double*>(arguments.inputs[5]), Scratch(arguments), threads_);
    return absl::OkStatus();
  }

 private:
  const double count_;
};

absl::Status RequireImages(const TensorType& x, std::string_view what) {
  GANTRY_RETURN_IF_ERROR(infer::RequireRank(x, what, 4, 4));
  if (x.dtype == DataType::kF32) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat("%s is %s; it must be f32", what, x.ToString()));
}

absl::Status RequireInputs(Inputs inputs, size_t count) {
  if (inputs.size() == count) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat("takes %d inputs with these attributes, got %d", count, inputs.size()));
}

TensorType SumsOf(int64_t channels) { return {DataType::kF64, Shape{2, channels}}; }

absl::Status RequireSums(const TensorType& type, int64_t channels) {
  if (type == SumsOf(channels)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat("the sums of %d channels are %s, got %s", channels, SumsOf(channels).ToString(), type.ToString()));
}

absl::Status RequirePerChannel(Inputs inputs, int64_t channels) {
  for (const TensorType& input : inputs) {
    if (input.dtype != DataType::kF32 || input.element_count() != channels) {
      return absl::InvalidArgumentError(absl::StrFormat("%s does not have one f32 for each of %d channels", input.ToString(), channels));
    }
  }
  return absl::OkStatus();
}

Outputs InferTake(Inputs inputs, const Attributes& attributes) {
  GANTRY_RETURN_IF_ERROR(infer::RequireRank(inputs[0], "x", 1, infer::kMaxRank));
  GANTRY_ASSIGN_OR_RETURN(const int64_t begin, infer::IntAttribute(attributes, "begin", 0, inputs[0].shape[0]));
  GANTRY_ASSIGN_OR_RETURN(const int64_t count, infer::IntAttribute(attributes, "count", 1, inputs[0].shape[0] - begin));
  Shape shape = inputs[0].shape;
  shape[0] = count;
  return infer::One(inputs[0].dtype, std::move(shape));
}

Outputs InferPut(Inputs inputs, const Attributes& attributes) {
  GANTRY_RETURN_IF_ERROR(infer::RequireRank(inputs[0], "x", 1, infer::kMaxRank));
  Shape shape = inputs[0].shape;
  GANTRY_ASSIGN_OR_RETURN(shape[0], infer::IntAttribute(attributes, "batch", inputs[0].shape[0]));
  GANTRY_RETURN_IF_ERROR(infer::IntAttribute(attributes, "begin", 0, shape[0] - inputs[0].shape[0]).status());
  if (inputs.size() > 1) GANTRY_RETURN_IF_ERROR(infer::RequireShape(inputs[1], "into", shape));
  return infer::One(inputs[0].dtype, std::move(shape));
}

Outputs InferSums(Inputs inputs, const Attributes& attributes) {
  GANTRY_RETURN_IF_ERROR(RequireImages(inputs[0], "x"));
  GANTRY_ASSIGN_OR_RETURN(const int64_t before, infer::IntAttribute(attributes, "before", 0));
  GANTRY_RETURN_IF_ERROR(infer::IntAttribute(attributes, "images", 1).status());
  GANTRY_RETURN_IF_ERROR(RequireInputs(inputs, before > 0 ? 2 : 1));
  const int64_t channels = inputs[0].shape[1];
  if (before > 0) GANTRY_RETURN_IF_ERROR(RequireSums(inputs[1], channels));
  return std::vector<TensorType>{SumsOf(channels)};
}

Outputs InferStatistics(Inputs inputs, const Attributes& attributes) {
  GANTRY_RETURN_IF_ERROR(infer::RequireRank(inputs[0], "sums", 2, 2));
  const int64_t channels = inputs[0].shape[1];
  GANTRY_RETURN_IF_ERROR(RequireSums(inputs[0], channels));
  GANTRY_RETURN_IF_ERROR(infer::IntAttribute(attributes, "count", 1).status());
  const TensorType statistics{DataType::kF32, Shape{1, channels, 1, 1}};
  return std::vector<TensorType>{statistics, statistics};
}

Outputs InferGradSums(Inputs inputs, const Attributes& attributes) {
  GANTRY_RETURN_IF_ERROR(RequireImages(inputs[1], "x"));
  GANTRY_ASSIGN_OR_RETURN(const int64_t before, infer::IntAttribute(attributes, "before", 0));
  GANTRY_RETURN_IF_ERROR(infer::IntAttribute(attributes, "images", 1).status());
  const size_t y = attributes.Has("slope") ? 1 : 0;
  GANTRY_RETURN_IF_ERROR(RequireInputs(inputs, 3 + y + (before > 0 ? 1 : 0)));
  const int64_t channels = inputs[1].shape[1];
  GANTRY_RETURN_IF_ERROR(infer::RequireShape(inputs[0], "g", inputs[1].shape));
  GANTRY_RETURN_IF_ERROR(RequirePerChannel(inputs.subspan(2, 1), channels));
  if (y > 0) GANTRY_RETURN_IF_ERROR(infer::RequireShape(inputs[3], "y", inputs[1].shape));
  if (before > 0) GANTRY_RETURN_IF_ERROR(RequireSums(inputs.back(), channels));
  return std::vector<TensorType>{SumsOf(channels)};
}

Outputs InferGradParameters(Inputs inputs, const Attributes& attributes) {
  GANTRY_RETURN_IF_ERROR(infer::RequireRank(inputs[0], "sums", 2, 2));
  const int64_t channels = inputs[0].shape[1];
  GANTRY_RETURN_IF_ERROR(RequireSums(inputs[0], channels));
  GANTRY_RETURN_IF_ERROR(RequirePerChannel(inputs.subspan(1), channels));
  GANTRY_RETURN_IF_ERROR(infer::FloatAttribute(attributes, "eps").status());
  GANTRY_ASSIGN_OR_RETURN(const Shape shape, infer::ShapeAttribute(attributes, "dims"));
  const TensorType parameter{DataType::kF32, shape};
  const TensorType both[] = {parameter, parameter};
  GANTRY_RETURN_IF_ERROR(RequirePerChannel(both, channels));
  return std::vector<TensorType>{parameter, parameter};
}

Outputs InferGradApply(Inputs inputs, const Attributes& attributes) {
  GANTRY_RETURN_IF_ERROR(RequireImages(inputs[1], "x"));
  GANTRY_RETURN_IF_ERROR(RequireInputs(inputs, attributes.Has("slope") ? 7 : 6));
  const int64_t channels = inputs[1].shape[1];
  GANTRY_RETURN_IF_ERROR(infer::RequireShape(inputs[0], "g", inputs[1].shape));
  GANTRY_RETURN_IF_ERROR(RequirePerChannel(inputs.subspan(2, 3), channels));
  GANTRY_RETURN_IF_ERROR(RequireSums(inputs[5], channels));
  if (inputs.size() > 6) GANTRY_RETURN_IF_ERROR(infer::RequireShape(inputs[6], "y", inputs[1].shape));
  GANTRY_RETURN_IF_ERROR(infer::FloatAttribute(attributes, "eps").status());
  GANTRY_RETURN_IF_ERROR(infer::IntAttribute(attributes, "batch", inputs[1].shape[0]).status());
  return infer::One(DataType::kF32, inputs[1].shape);
}

template <int kPerElement>
Cost CostOf(Inputs inputs, std::span<const TensorType>, const Attributes&) {
  return {kPerElement * static_cast<double>(inputs[0].element_count())};
}

template <typename Maker>
std::unique_ptr<Kernel> OnPanels(const KernelRequest& request, const TensorType& x) {
  if (!IsPanel(x)) return nullptr;
  return std::make_unique<Maker>(request);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Kernel>> MakeBatchParts(const KernelRequest& request) {
  const std::string_view op = request.op.name;
  if (op == "take_images" || op == "put_images") {
    const TensorType& result = request.outputs[0];
    for (const TensorType& input : request.inputs) {
      if (input.layout != result.layout || input.dtype != result.dtype) return nullptr;
    }
    return std::make_unique<MoveImagesKernel>(request);
  }
  if (op == "batch_norm_sums") return OnPanels<SumsKernel>(request, request.inputs[0]);
  if (op == "batch_norm_statistics") return std::make_unique<StatisticsKernel>(request);
  if (op == "batch_norm_grad_sums") return OnPanels<GradSumsKernel>(request, request.inputs[1]);
  if (op == "batch_norm_grad_parameters") return std::make_unique<GradParametersKernel>(request);
  if (op == "batch_norm_grad_apply") return OnPanels<GradApplyKernel>(request, request.inputs[1]);
  return nullptr;
}

}  // namespace gantry::cpu

namespace gantry {

std::vector<OpDefinition> BatchPartsOps() {
  using namespace cpu;
  return {
      {.name = "take_images", .infer = InferTake, .planner_only = true},
      {.name = "put_images", .min_inputs = 1, .max_inputs = 2, .infer = InferPut, .in_place = {{0, 1}}, .planner_only = true},
      {.name = "batch_norm_sums", .min_inputs = 1, .max_inputs = 2, .infer = InferSums, .cost = CostOf<4>, .in_place = {{0, 1}},
       .planner_only = true},
      {.name = "batch_norm_statistics", .infer = InferStatistics, .planner_only = true},
      {.name = "batch_norm_grad_sums", .min_inputs = 3, .max_inputs = 5, .infer = InferGradSums, .cost = CostOf<6>,
       .planner_only = true},
      {.name = "batch_norm_grad_parameters", .min_inputs = 2, .max_inputs = 2, .infer = InferGradParameters, .planner_only = true},
      {.name = "batch_norm_grad_apply", .min_inputs = 6, .max_inputs = 7, .infer = InferGradApply, .cost = CostOf<6>,
       .in_place = {{0, 0}, {0, 1}}, .planner_only = true},
  };
}

}  // namespace gantry
