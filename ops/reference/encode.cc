#include <algorithm>

#include "ops/reference/reference_kernel.h"

namespace gantry::reference {
namespace {

template <typename T>
absl::Status SignBits(const OpInstance& op, const KernelArguments& arguments) {
  const T* y = Input<T>(arguments, 0);
  uint8_t* bits = Output<uint8_t>(arguments, 0);
  const int64_t count = op.inputs[0].element_count();
  std::fill_n(bits, (count + 7) / 8, uint8_t{0});
  for (int64_t i = 0; i < count; ++i) {
    if (y[i] > T{0}) bits[i / 8] = static_cast<uint8_t>(bits[i / 8] | (1u << (i % 8)));
  }
  return absl::OkStatus();
}

}  // namespace

KernelTable EncodeKernels() {
  return {{"sign_bits",
           [](const KernelRequest& request) -> std::unique_ptr<Kernel> {
             if (request.inputs[0].dtype == DataType::kF64) return MakeKernel(request, SignBits<double>);
             return request.inputs[0].dtype == DataType::kF32 ? MakeKernel(request, SignBits<float>) : nullptr;
           }},
          {"leaky_relu_grad_bits", [](const KernelRequest& request) {
             return MakeFloatKernel(request, [](auto zero, const OpInstance& op, const KernelArguments& arguments) {
               using T = decltype(zero);
               const T* g = Input<T>(arguments, 0);
               const uint8_t* bits = Input<uint8_t>(arguments, 1);
               T* result = Output<T>(arguments, 0);
               const T slope = static_cast<T>(op.attributes.Float("slope"));
               const int64_t count = op.outputs[0].element_count();
               for (int64_t i = 0; i < count; ++i) result[i] = (bits[i / 8] >> (i % 8) & 1) != 0 ? g[i] : slope * g[i];
               return absl::OkStatus();
             });
           }}};
}

}  // namespace gantry::reference
