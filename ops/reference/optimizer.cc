#include <cmath>

#include "ops/kernel_parts.h"
#include "ops/reference/reference_kernel.h"

namespace gantry::reference {
namespace {

std::unique_ptr<Kernel> MakeAdam(const KernelRequest& request) {
  const UpdatePiece piece(request.inputs, request.attributes, 4);
  const auto count = static_cast<int>(request.attributes.Int("count"));
  const double beta1 = request.attributes.Float("beta1"), beta2 = request.attributes.Float("beta2");
  const double epsilon = request.attributes.Float("epsilon"), decay = request.attributes.Float("weight_decay");
  const bool decoupled = request.attributes.Int("decoupled") != 0;
  return MakeFloatKernel(request, [=](auto zero, const OpInstance& op, const KernelArguments& arguments) {
    using T = decltype(zero);
    const double learning_rate = *Input<T>(arguments, 4 * count);
    const double step = *Input<T>(arguments, 4 * count + 1);
    const T gradient_scale = *Input<T>(arguments, 4 * count + 2);
    const auto step_size = static_cast<T>(learning_rate / (1.0 - std::pow(beta1, step)));
    const auto root_correction = static_cast<T>(std::sqrt(1.0 - std::pow(beta2, step)));
    const auto shrink = static_cast<T>(decoupled ? 1.0 - learning_rate * decay : 1.0);
    const auto added_decay = static_cast<T>(decoupled ? 0.0 : decay);
    for (int tensor = 0; tensor < count; ++tensor) {
      const T* w = Input<T>(arguments, tensor) + piece.begins[0];
      const T* m = Input<T>(arguments, count + tensor) + piece.begins[1];
      const T* v = Input<T>(arguments, 2 * count + tensor) + piece.begins[2];
      const T* g = Input<T>(arguments, 3 * count + tensor) + piece.begins[3];
      T* new_w = Output<T>(arguments, tensor) + piece.begins[0];
      T* new_m = Output<T>(arguments, count + tensor) + piece.begins[1];
      T* new_v = Output<T>(arguments, 2 * count + tensor) + piece.begins[2];
      const int64_t elements = op.inputs[piece.group * count + tensor].element_count();
      for (int64_t i = 0; i < elements; ++i) {
        const T gradient = g[i] * gradient_scale + added_decay * w[i];
        const T first = static_cast<T>(beta1) * m[i] + static_cast<T>(1.0 - beta1) * gradient;
        const T second = static_cast<T>(beta2) * v[i] + static_cast<T>(1.0 - beta2) * gradient * gradient;
        const T denominator = std::sqrt(second) / root_correction + static_cast<T>(epsilon);
        new_w[i] = w[i] * shrink - step_size * first / denominator;
        new_m[i] = first;
        new_v[i] = second;
      }
    }
    return absl::OkStatus();
  });
}

std::unique_ptr<Kernel> MakeSgd(const KernelRequest& request) {
  const UpdatePiece piece(request.inputs, request.attributes, request.attributes.Float("momentum") != 0.0 ? 3 : 2);
  const auto count = static_cast<int>(request.attributes.Int("count"));
  const double momentum = request.attributes.Float("momentum"), decay = request.attributes.Float("weight_decay");
  const double dampening = request.attributes.Float("dampening");
  const bool nesterov = request.attributes.Int("nesterov") != 0;
  return MakeFloatKernel(request, [=](auto zero, const OpInstance& op, const KernelArguments& arguments) {
    using T = decltype(zero);
    const int groups = momentum != 0.0 ? 3 : 2;
    const T learning_rate = *Input<T>(arguments, groups * count);
    const bool first_step = *Input<T>(arguments, groups * count + 1) <= T{1};
    const T gradient_scale = *Input<T>(arguments, groups * count + 2);
    for (int tensor = 0; tensor < count; ++tensor) {
      const T* w = Input<T>(arguments, tensor) + piece.begins[0];
      const T* g = Input<T>(arguments, (groups - 1) * count + tensor) + piece.begins[groups - 1];
      T* new_w = Output<T>(arguments, tensor) + piece.begins[0];
      const int64_t elements = op.inputs[piece.group * count + tensor].element_count();
      for (int64_t i = 0; i < elements; ++i) {
        const T gradient = g[i] * gradient_scale + static_cast<T>(decay) * w[i];
        T direction = gradient;
        if (momentum != 0.0) {
          const T old = Input<T>(arguments, count + tensor)[piece.begins[1] + i];
          const T velocity =
              first_step ? gradient : static_cast<T>(momentum) * old + static_cast<T>(1.0 - dampening) * gradient;
          direction = nesterov ? gradient + static_cast<T>(momentum) * velocity : velocity;
          Output<T>(arguments, count + tensor)[piece.begins[1] + i] = velocity;
        }
        new_w[i] = w[i] - learning_rate * direction;
      }
    }
    return absl::OkStatus();
  });
}

std::unique_ptr<Kernel> MakeLerp(const KernelRequest& request) {
  const UpdatePiece piece(request.inputs, request.attributes, 2);
  const auto count = static_cast<int>(request.attributes.Int("count"));
  const double weight = request.attributes.Float("weight"), scale = request.attributes.Float("scale");
  return MakeFloatKernel(request, [=](auto zero, const OpInstance& op, const KernelArguments& arguments) {
    using T = decltype(zero);
    for (int tensor = 0; tensor < count; ++tensor) {
      const T* target = Input<T>(arguments, tensor) + piece.begins[0];
      const T* source = Input<T>(arguments, count + tensor) + piece.begins[1];
      T* out = Output<T>(arguments, tensor) + piece.begins[0];
      const int64_t elements = op.inputs[piece.group * count + tensor].element_count();
      for (int64_t i = 0; i < elements; ++i) {
        out[i] = static_cast<T>(1.0 - weight) * target[i] + static_cast<T>(weight * scale) * source[i];
      }
    }
    return absl::OkStatus();
  });
}

std::unique_ptr<Kernel> MakeSumSquares(const KernelRequest& request) {
  return MakeFloatKernel(request, [](auto zero, const OpInstance& op, const KernelArguments& arguments) {
    using T = decltype(zero);
    double total = 0.0;
    for (size_t tensor = 0; tensor < op.inputs.size(); ++tensor) {
      const T* x = Input<T>(arguments, static_cast<int>(tensor));
      const int64_t elements = op.inputs[tensor].element_count();
      for (int64_t i = 0; i < elements; ++i) total += static_cast<double>(x[i]) * static_cast<double>(x[i]);
    }
    *Output<T>(arguments, 0) = static_cast<T>(total);
    return absl::OkStatus();
  });
}

// The sum so far, and the squares of one more tensor after it.
std::unique_ptr<Kernel> MakeSumSquaresRows(const KernelRequest& request) {
  return MakeKernel(request, [](const OpInstance& op, const KernelArguments& arguments) {
    double total = *Input<double>(arguments, 0);
    const auto Add = [&](const auto* x) {
      for (int64_t i = 0; i < op.inputs[1].element_count(); ++i) total += static_cast<double>(x[i]) * static_cast<double>(x[i]);
    };
    op.inputs[1].dtype == DataType::kF64 ? Add(Input<double>(arguments, 1)) : Add(Input<float>(arguments, 1));
    if (op.outputs[0].dtype == DataType::kF64) {
      *Output<double>(arguments, 0) = total;
    } else {
      *Output<float>(arguments, 0) = static_cast<float>(total);
    }
    return absl::OkStatus();
  });
}

}  // namespace

KernelTable OptimizerKernels() {
  return {
      {"adam_update", MakeAdam}, {"sgd_update", MakeSgd}, {"lerp_update", MakeLerp}, {"sum_squares", MakeSumSquares},
      {"sum_squares_rows", MakeSumSquaresRows}};
}

}  // namespace gantry::reference
