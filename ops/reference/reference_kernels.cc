#include <map>

#include "ops/reference/reference_kernel.h"

namespace gantry {
namespace {

class ReferenceLibrary final : public KernelLibrary {
 public:
  ReferenceLibrary() {
    using namespace reference;  // NOLINT: the tables only
    for (const KernelTable& table :
         {ElementwiseKernels(), ReductionKernels(), ShapeKernels(), MatmulKernels(), ConvolutionKernels(), PoolingKernels(),
          ResizeKernels(), NormalizationKernels(), IndexKernels(), RandomKernels(), OptimizerKernels(),
          ControlKernels(), EncodeKernels()}) {
      makers_.insert(table.begin(), table.end());
    }
  }
  std::string_view name() const override { return "reference"; }
  absl::StatusOr<std::unique_ptr<Kernel>> Make(const KernelRequest& request) const override {
    for (std::span<const TensorType> types : {request.inputs, request.outputs}) {
      for (const TensorType& type : types) {
        if (type.layout != TensorLayout::kPlain) return std::unique_ptr<Kernel>();
      }
    }
    const auto maker = makers_.find(request.op.name);
    return maker == makers_.end() ? std::unique_ptr<Kernel>() : maker->second(request);
  }

 private:
  std::map<std::string_view, reference::KernelMaker> makers_;
};

}  // namespace

const KernelLibrary& ReferenceKernels() {
  static const ReferenceLibrary* const library = new ReferenceLibrary();
  return *library;
}

}  // namespace gantry
