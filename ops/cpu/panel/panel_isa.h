// The instruction sets that the panel kernels are compiled for; one is chosen at run time.
#pragma once

#include <cstdint>
#include <string_view>

namespace gantry::cpu {

enum class Isa : uint8_t {
  kPortable,  // plain C++ on 16-byte vectors: SSE2 on x86-64, NEON on AArch64
  kAvx2,      // AVX2 and FMA
  kAvx512,    // AVX-512F
};

// "portable", "avx2", "avx512".
std::string_view Name(Isa isa);
// Whether this program has the kernels and this processor and system can run them.
bool IsaAvailable(Isa isa);
// The widest available one, or the one that the environment variable GANTRY_ISA names, where that is narrower
// ("portable", "avx2"): for comparing them. Asks once.
Isa BestIsa();

}  // namespace gantry::cpu
