#include "ops/cpu/cpu_kernels.h"

#if defined(GANTRY_HAVE_ONEDNN)
#include "ops/cpu/onednn.h"
#endif

namespace gantry {
namespace {

// In order of preference.
constexpr cpu::KernelMaker kMakers[] = {
    cpu::MakePanelKernel,
    cpu::MakePanelNormalization,
    cpu::MakeBatchParts,
    cpu::MakePlainNormalization,
    cpu::MakeFastElementwise,
    cpu::MakeFastReduction,
    cpu::MakeFastSoftmax,
    cpu::MakeFastMaxPooling,
    cpu::MakeFastOptimizer,
    cpu::MakeFastEncoding,
    cpu::MakeRowParts,
#if defined(GANTRY_HAVE_ONEDNN)
    cpu::MakeOneDnnKernel,
#endif
    cpu::MakeFastResampling,
};

class CpuLibrary final : public KernelLibrary {
 public:
  std::string_view name() const override { return "cpu"; }
  absl::StatusOr<std::unique_ptr<Kernel>> Make(const KernelRequest& request) const override {
    for (cpu::KernelMaker maker : kMakers) {
      GANTRY_ASSIGN_OR_RETURN(std::unique_ptr<Kernel> kernel, maker(request));
      if (kernel != nullptr) return kernel;
    }
    return nullptr;
  }
};

}  // namespace

const KernelLibrary& CpuKernels() {
  static const CpuLibrary* const library = new CpuLibrary();
  return *library;
}

}  // namespace gantry
