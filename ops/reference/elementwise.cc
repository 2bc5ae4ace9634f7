#include <algorithm>
#include <cmath>
#include <numbers>

#include "ops/reference/convert.h"
#include "ops/reference/reference_kernel.h"
#include "ops/reference/strided_walk.h"

namespace gantry::reference {
namespace {

template <auto kFunction>
std::unique_ptr<Kernel> MakeBinary(const KernelRequest& request) {
  const auto walk = BroadcastWalk<2>({request.inputs[0].shape, request.inputs[1].shape}, request.outputs[0].shape);
  return MakeFloatKernel(request, [walk](auto zero, const OpInstance&, const KernelArguments& arguments) {
    using T = decltype(zero);
    const T* x = Input<T>(arguments, 0);
    const T* y = Input<T>(arguments, 1);
    T* out = Output<T>(arguments, 0);
    walk.ForEach([&](int64_t index, const auto& offsets) { out[index] = kFunction(x[offsets[0]], y[offsets[1]]); });
    return absl::OkStatus();
  });
}

template <typename Function>
std::unique_ptr<Kernel> MakeUnaryOf(const KernelRequest& request, Function function) {
  return MakeFloatKernel(request, [function](auto zero, const OpInstance& op, const KernelArguments& arguments) {
    using T = decltype(zero);
    const T* x = Input<T>(arguments, 0);
    T* out = Output<T>(arguments, 0);
    const int64_t count = op.outputs[0].element_count();
    for (int64_t i = 0; i < count; ++i) out[i] = function(x[i]);
    return absl::OkStatus();
  });
}

template <auto kFunction>
std::unique_ptr<Kernel> MakeUnary(const KernelRequest& request) {
  return MakeUnaryOf(request, kFunction);
}

std::unique_ptr<Kernel> MakeScale(const KernelRequest& request) {
  const double alpha = request.attributes.Float("alpha"), beta = request.attributes.Float("beta");
  return MakeUnaryOf(request, [alpha, beta](auto x) {
    using T = decltype(x);
    return static_cast<T>(alpha) * x + static_cast<T>(beta);
  });
}

std::unique_ptr<Kernel> MakeClip(const KernelRequest& request) {
  const double low = request.attributes.Float("low"), high = request.attributes.Float("high");
  return MakeUnaryOf(request, [low, high](auto x) {
    using T = decltype(x);
    return x < static_cast<T>(low) ? static_cast<T>(low) : x > static_cast<T>(high) ? static_cast<T>(high) : x;
  });
}

std::unique_ptr<Kernel> MakeLeakyRelu(const KernelRequest& request) {
  const double slope = request.attributes.Float("slope");
  return MakeUnaryOf(request, [slope](auto x) { return x > 0 ? x : static_cast<decltype(x)>(slope) * x; });
}

std::unique_ptr<Kernel> MakeLeakyReluGrad(const KernelRequest& request) {
  const double slope = request.attributes.Float("slope");
  return MakeFloatKernel(request, [slope](auto zero, const OpInstance& op, const KernelArguments& arguments) {
    using T = decltype(zero);
    const T* g = Input<T>(arguments, 0);
    const T* y = Input<T>(arguments, 1);
    T* out = Output<T>(arguments, 0);
    const int64_t count = op.outputs[0].element_count();
    for (int64_t i = 0; i < count; ++i) out[i] = y[i] > 0 ? g[i] : static_cast<T>(slope) * g[i];
    return absl::OkStatus();
  });
}

// Calls body(T{}) with the C++ type of `type`.
template <typename Body>
std::unique_ptr<Kernel> ForType(DataType type, Body body) {
  switch (type) {
    case DataType::kF32:
      return body(float{});
    case DataType::kF64:
      return body(double{});
    case DataType::kI32:
      return body(int32_t{});
    case DataType::kI64:
      return body(int64_t{});
    case DataType::kU8:
      return body(uint8_t{});
  }
  return nullptr;
}

std::unique_ptr<Kernel> MakeCast(const KernelRequest& request) {
  return ForType(request.inputs[0].dtype, [&](auto from) {
    return ForType(request.outputs[0].dtype, [&](auto to) {
      return MakeKernel(request, [from, to](const OpInstance& op, const KernelArguments& arguments) {
        using From = std::remove_const_t<decltype(from)>;
        using To = std::remove_const_t<decltype(to)>;
        const From* x = Input<From>(arguments, 0);
        To* out = Output<To>(arguments, 0);
        const int64_t count = op.outputs[0].element_count();
        for (int64_t i = 0; i < count; ++i) out[i] = Convert<To>(x[i]);
        return absl::OkStatus();
      });
    });
  });
}

std::unique_ptr<Kernel> MakeFill(const KernelRequest& request) {
  const double value = request.attributes.Float("value");
  return ForType(request.outputs[0].dtype, [&](auto zero) {
    return MakeKernel(request, [value, zero](const OpInstance& op, const KernelArguments& arguments) {
      using T = std::remove_const_t<decltype(zero)>;
      std::fill_n(Output<T>(arguments, 0), op.outputs[0].element_count(), Convert<T>(value));
      return absl::OkStatus();
    });
  });
}

// For x > 0 and for x < 0 alike the exponential does not overflow.
constexpr auto kSigmoid = [](auto x) {
  using T = decltype(x);
  if (x >= 0) return T{1} / (T{1} + std::exp(-x));
  const T e = std::exp(x);
  return e / (T{1} + e);
};

}  // namespace

KernelTable ElementwiseKernels() {
  return {
      {"add", MakeBinary<[](auto x, auto y) { return x + y; }>},
      {"sub", MakeBinary<[](auto x, auto y) { return x - y; }>},
      {"mul", MakeBinary<[](auto x, auto y) { return x * y; }>},
      {"div", MakeBinary<[](auto x, auto y) { return x / y; }>},
      {"pow", MakeBinary<[](auto x, auto y) { return std::pow(x, y); }>},
      // A NaN on either side is the result.
      {"minimum", MakeBinary<[](auto x, auto y) { return (x < y) || x != x ? x : y; }>},
      {"maximum", MakeBinary<[](auto x, auto y) { return (x > y) || x != x ? x : y; }>},
      {"greater", MakeBinary<[](auto x, auto y) { return static_cast<decltype(x)>(x > y); }>},
      {"equal", MakeBinary<[](auto x, auto y) { return static_cast<decltype(x)>(x == y); }>},
      {"neg", MakeUnary<[](auto x) { return -x; }>},
      {"abs", MakeUnary<[](auto x) { return std::abs(x); }>},
      {"sign", MakeUnary<[](auto x) { return static_cast<decltype(x)>((x > 0) - (x < 0)); }>},
      {"sqrt", MakeUnary<[](auto x) { return std::sqrt(x); }>},
      {"rsqrt", MakeUnary<[](auto x) { return decltype(x){1} / std::sqrt(x); }>},
      {"exp", MakeUnary<[](auto x) { return std::exp(x); }>},
      {"log", MakeUnary<[](auto x) { return std::log(x); }>},
      {"square", MakeUnary<[](auto x) { return x * x; }>},
      {"reciprocal", MakeUnary<[](auto x) { return decltype(x){1} / x; }>},
      {"erf", MakeUnary<[](auto x) { return std::erf(x); }>},
      {"scale", MakeScale},
      {"clip", MakeClip},
      {"leaky_relu", MakeLeakyRelu},
      {"leaky_relu_grad", MakeLeakyReluGrad},
      {"sigmoid", MakeUnary<kSigmoid>},
      {"sigmoid_grad", MakeBinary<[](auto g, auto y) { return g * y * (1 - y); }>},
      {"tanh", MakeUnary<[](auto x) { return std::tanh(x); }>},
      {"tanh_grad", MakeBinary<[](auto g, auto y) { return g * (1 - y * y); }>},
      {"softplus", MakeUnary<[](auto x) { return (x > 0 ? x : 0) + std::log1p(std::exp(-std::abs(x))); }>},
      {"silu", MakeUnary<[](auto x) { return x * kSigmoid(x); }>},
      {"gelu", MakeUnary<[](auto x) {
         using T = decltype(x);
         return x * (T{1} + std::erf(x / std::numbers::sqrt2_v<T>)) / T{2};
       }>},
      {"cast", MakeCast},
      {"fill", MakeFill},
  };
}

}  // namespace gantry::reference
