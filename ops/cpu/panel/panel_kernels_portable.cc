#include "ops/cpu/panel/panel_kernels.h"

namespace gantry::cpu {
namespace {

constexpr int kVectorFloats = 4;
constexpr int kTileRows = 2;
#if defined(__FMA__) || defined(__aarch64__)
constexpr bool kDoubleSums = false;
#else
constexpr bool kDoubleSums = true;
#endif

#include "ops/cpu/panel/gemm_kernels.inc"
#include "ops/cpu/panel/norm_kernels.inc"
#include "ops/cpu/panel/winograd_kernels.inc"

}  // namespace

const PanelKernels kPortableKernels = {
    .gemm = Gemm,
    .gemm_pair = nullptr,
    .gemm_transposed = GemmTransposed,
    .gemm_transposed_pair = nullptr,
    .transpose = Transpose,
    .winograd = {{MakeWinogradKernels<FormM2R2>(), MakeWinogradKernels<FormM3R2>(), MakeWinogradKernels<FormM4R2>()},
                 {MakeWinogradKernels<FormM2R3>(), MakeWinogradKernels<FormM3R3>(), MakeWinogradKernels<FormM4R3>()}},
    .moments = Moments,
    .normalize = Normalize,
    .gradient_sums = GradientSums,
    .normalize_gradient = NormalizeGradient,
    .row_sums = RowSums,
};

}  // namespace gantry::cpu
