// Fast updates of many tensors at once, in f32: all elements of all tensors are shared between the threads in blocks.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "ops/cpu/cpu_kernels.h"
#include "ops/cpu/runs.h"
#include "ops/cpu/vector/vector_kernels.h"
#include "ops/kernel_parts.h"

namespace gantry::cpu {
namespace {

constexpr int64_t kBlockElements = 16384;

// A piece of one tensor of a bucket.
struct Block {
  int tensor;
  int64_t begin, count;
};

// No block lies in two chunks of `chunk` elements, if positive.
std::vector<Block> BlocksOf(std::span<const TensorType> tensors, int64_t chunk = 0) {
  std::vector<Block> blocks;
  for (size_t tensor = 0; tensor < tensors.size(); ++tensor) {
    // A panel tensor with its zero tail counts as flat.
    const int64_t floats = tensors[tensor].size_bytes() / static_cast<int64_t>(sizeof(float));
    for (int64_t begin = 0; begin < floats;) {
      const int64_t end = chunk > 0 ? std::min(floats, begin / chunk * chunk + chunk) : floats;
      blocks.push_back({static_cast<int>(tensor), begin, std::min(kBlockElements, end - begin)});
      begin += blocks.back().count;
    }
  }
  return blocks;
}

// What the updates share: `count` tensors per group of inputs, cut into blocks.
class BucketKernel : public Kernel {
 public:
  BucketKernel(const KernelRequest& request, int groups)
      : count_(static_cast<int>(request.attributes.Int("count"))),
        piece_(request.inputs, request.attributes, groups),
        blocks_(BlocksOf(request.inputs.subspan(static_cast<size_t>(piece_.group * count_), static_cast<size_t>(count_)))),
        threads_(UsefulThreads(request.thread_count, static_cast<int64_t>(blocks_.size()) * kBlockElements)) {}
  std::string_view implementation() const override { return VectorImplementation(); }

 protected:
  template <typename Body>
  void ForEachBlock(Body body) const {
    ParallelFor(threads_, static_cast<int64_t>(blocks_.size()), [&](int64_t block) { body(blocks_[block]); });
  }
  const float* In(const KernelArguments& arguments, int group, const Block& block) const {
    return static_cast<const float*>(arguments.inputs[group * count_ + block.tensor]) + block.begin + piece_.begins[group];
  }
  float* Out(const KernelArguments& arguments, int group, const Block& block) const {
    return static_cast<float*>(arguments.outputs[group * count_ + block.tensor]) + block.begin + piece_.begins[group];
  }
  // The scalar behind `groups` groups of tensors.
  double Scalar(const KernelArguments& arguments, int groups, int index) const {
    return *static_cast<const float*>(arguments.inputs[groups * count_ + index]);
  }

 private:
  const int count_;
  const UpdatePiece piece_;
  const std::vector<Block> blocks_;
  const int threads_;
};

class AdamKernel final : public BucketKernel {
 public:
  explicit AdamKernel(const KernelRequest& request)
      : BucketKernel(request, 4),
        beta1_(request.attributes.Float("beta1")),
        beta2_(request.attributes.Float("beta2")),
        epsilon_(request.attributes.Float("epsilon")),
        weight_decay_(request.attributes.Float("weight_decay")),
        decoupled_(request.attributes.Int("decoupled") != 0) {}
  absl::Status Run(const KernelArguments& arguments) override {
    const double learning_rate = Scalar(arguments, 4, 0), step = Scalar(arguments, 4, 1);
    const AdamScalars scalars = {
        .gradient_scale = static_cast<float>(Scalar(arguments, 4, 2)),
        .decay = static_cast<float>(decoupled_ ? 0.0 : weight_decay_),
        .shrink = static_cast<float>(decoupled_ ? 1.0 - learning_rate * weight_decay_ : 1.0),
        .beta1 = static_cast<float>(beta1_),
        .one_minus_beta1 = static_cast<float>(1.0 - beta1_),
        .beta2 = static_cast<float>(beta2_),
        .one_minus_beta2 = static_cast<float>(1.0 - beta2_),
        .step_size = static_cast<float>(learning_rate / (1.0 - std::pow(beta1_, step))),
        .root_scale = static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(beta2_, step))),
        .epsilon = static_cast<float>(epsilon_),
    };
    ForEachBlock([&](const Block& block) {
      BestVectorKernels().adam(In(arguments, 0, block), In(arguments, 1, block), In(arguments, 2, block),
                               In(arguments, 3, block), Out(arguments, 0, block), Out(arguments, 1, block),
                               Out(arguments, 2, block), block.count, scalars);
    });
    return absl::OkStatus();
  }

 private:
  const double beta1_, beta2_, epsilon_, weight_decay_;
  const bool decoupled_;
};

class SgdKernel final : public BucketKernel {
 public:
  explicit SgdKernel(const KernelRequest& request)
      : BucketKernel(request, request.attributes.Float("momentum") != 0.0 ? 3 : 2),
        momentum_(request.attributes.Float("momentum")),
        weight_decay_(request.attributes.Float("weight_decay")),
        dampening_(request.attributes.Float("dampening")),
        nesterov_(request.attributes.Int("nesterov") != 0) {}
  absl::Status Run(const KernelArguments& arguments) override {
    const bool momentum = momentum_ != 0.0;
    const int groups = momentum ? 3 : 2;
    const SgdScalars scalars = {
        .gradient_scale = static_cast<float>(Scalar(arguments, groups, 2)),
        .decay = static_cast<float>(weight_decay_),
        .learning_rate = static_cast<float>(Scalar(arguments, groups, 0)),
        .momentum = static_cast<float>(momentum_),
        .one_minus_dampening = static_cast<float>(1.0 - dampening_),
        .first_step = Scalar(arguments, groups, 1) <= 1.0,
        .nesterov = nesterov_,
    };
    ForEachBlock([&](const Block& block) {
      BestVectorKernels().sgd(In(arguments, 0, block), momentum ? In(arguments, 1, block) : nullptr,
                              In(arguments, groups - 1, block), Out(arguments, 0, block),
                              momentum ? Out(arguments, 1, block) : nullptr, block.count, scalars);
    });
    return absl::OkStatus();
  }

 private:
  const double momentum_, weight_decay_, dampening_;
  const bool nesterov_;
};

class LerpKernel final : public BucketKernel {
 public:
  explicit LerpKernel(const KernelRequest& request)
      : BucketKernel(request, 2),
        target_weight_(static_cast<float>(1.0 - request.attributes.Float("weight"))),
        source_weight_(static_cast<float>(request.attributes.Float("weight") * request.attributes.Float("scale"))) {}
  absl::Status Run(const KernelArguments& arguments) override {
    ForEachBlock([&](const Block& block) {
      BestVectorKernels().weighted_sum(In(arguments, 0, block), In(arguments, 1, block), Out(arguments, 0, block),
                                       block.count, target_weight_, source_weight_);
    });
    return absl::OkStatus();
  }

 private:
  const float target_weight_, source_weight_;
};

// One partial sum per block, added up in order: the number of threads does not change the result.
// sum_squares, and sum_squares_rows, whose first input is the sum to begin with.
class SumSquaresKernel final : public Kernel {
 public:
  explicit SumSquaresKernel(const KernelRequest& request)
      : carries_(request.op.name == "sum_squares_rows"),
        is_double_(request.outputs[0].dtype == DataType::kF64),
        blocks_(BlocksOf(request.inputs.subspan(carries_ ? 1 : 0), request.attributes.Int("chunk"))),
        threads_(UsefulThreads(request.thread_count, static_cast<int64_t>(blocks_.size()) * kBlockElements)) {}
  size_t scratch_bytes() const override { return blocks_.size() * sizeof(double); }
  std::string_view implementation() const override { return VectorImplementation(); }
  absl::Status Run(const KernelArguments& arguments) override {
    auto* partial = static_cast<double*>(arguments.scratch);
    ParallelFor(threads_, static_cast<int64_t>(blocks_.size()), [&](int64_t i) {
      const Block& block = blocks_[i];
      partial[i] = BestVectorKernels().sum_squares(
          static_cast<const float*>(arguments.inputs[block.tensor + (carries_ ? 1 : 0)]) + block.begin, block.count);
    });
    double total = carries_ ? *static_cast<const double*>(arguments.inputs[0]) : 0.0;
    for (size_t i = 0; i < blocks_.size(); ++i) total += partial[i];
    if (is_double_) {
      *static_cast<double*>(arguments.outputs[0]) = total;
    } else {
      *static_cast<float*>(arguments.outputs[0]) = static_cast<float>(total);
    }
    return absl::OkStatus();
  }

 private:
  const bool carries_, is_double_;
  const std::vector<Block> blocks_;
  const int threads_;
};

}  // namespace

namespace {

class AssignKernel final : public Kernel {
 public:
  explicit AssignKernel(const KernelRequest& request) : bytes_(static_cast<size_t>(request.inputs[1].size_bytes())) {}
  std::string_view implementation() const override { return "copy"; }
  absl::Status Run(const KernelArguments& arguments) override {
    std::memcpy(arguments.outputs[0], arguments.inputs[1], bytes_);
    return absl::OkStatus();
  }

 private:
  const size_t bytes_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Kernel>> MakeFastOptimizer(const KernelRequest& request) {
  const std::string_view name = request.op.name;
  if (name == "sum_squares_rows" && request.inputs[1].dtype == DataType::kF32) return std::make_unique<SumSquaresKernel>(request);
  if (!AllF32(request)) return nullptr;
  if (name == "sum_squares") return std::make_unique<SumSquaresKernel>(request);
  for (const TensorType& type : request.inputs) {
    if (type.layout != TensorLayout::kPlain) return nullptr;
  }
  if (name == "assign") return std::make_unique<AssignKernel>(request);
  if (name == "adam_update") return std::make_unique<AdamKernel>(request);
  if (name == "sgd_update") return std::make_unique<SgdKernel>(request);
  if (name == "lerp_update") return std::make_unique<LerpKernel>(request);
  return nullptr;
}

}  // namespace gantry::cpu
