#include "ops/cpu/panel/panel_kernels.h"

namespace gantry::cpu {

const PanelKernels& KernelsFor(Isa isa) {
#if defined(GANTRY_PANEL_X86)
  if (isa == Isa::kAvx2) return kAvx2Kernels;
  if (isa == Isa::kAvx512) return kAvx512Kernels;
#endif
  (void)isa;
  return kPortableKernels;
}

}  // namespace gantry::cpu
