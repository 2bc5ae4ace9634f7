#include <algorithm>

#include "ops/reference/reference_kernel.h"

namespace gantry::reference {

KernelTable ControlKernels() {
  return {{"add_if", [](const KernelRequest& request) {
             return MakeFloatKernel(request, [](auto zero, const OpInstance& op, const KernelArguments& arguments) {
               using T = decltype(zero);
               const T* x = Input<T>(arguments, 0);
               const T* y = Input<T>(arguments, 1);
               T* result = Output<T>(arguments, 0);
               const int64_t count = op.outputs[0].element_count();
               if (*Input<T>(arguments, 2) != T{0}) {
                 for (int64_t i = 0; i < count; ++i) result[i] = x[i] + y[i];
               } else if (result != x) {
                 std::copy(x, x + count, result);
               }
               return absl::OkStatus();
             });
           }},
          {"assign", [](const KernelRequest& request) {
             return MakeFloatKernel(request, [](auto zero, const OpInstance& op, const KernelArguments& arguments) {
               using T = decltype(zero);
               const T* value = Input<T>(arguments, 1);
               std::copy(value, value + op.outputs[0].element_count(), Output<T>(arguments, 0));
               return absl::OkStatus();
             });
           }}};
}

}  // namespace gantry::reference
