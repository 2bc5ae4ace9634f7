#include "ops/cpu/panel/panel_isa.h"

#include <cstdlib>

namespace gantry::cpu {

std::string_view Name(Isa isa) {
  switch (isa) {
    case Isa::kPortable:
      return "portable";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
  }
  return "unknown";
}

bool IsaAvailable(Isa isa) {
#if defined(GANTRY_PANEL_X86)
  // These built-ins also check that the system saves the wide registers.
  if (isa == Isa::kAvx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == Isa::kAvx512) return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("fma");
#endif
  return isa == Isa::kPortable;
}

Isa BestIsa() {
  static const Isa best = [] {
    Isa widest = Isa::kPortable;
    const char* const most = std::getenv("GANTRY_ISA");
    for (Isa isa : {Isa::kAvx2, Isa::kAvx512}) {
      if (most != nullptr && most == Name(widest)) break;
      if (IsaAvailable(isa)) widest = isa;
    }
    return widest;
  }();
  return best;
}

}  // namespace gantry::cpu
