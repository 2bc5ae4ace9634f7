#include "ops/cpu/panel/panel_kernels.h"

namespace gantry::cpu {
namespace {

constexpr int kVectorFloats = 16;
constexpr int kTileRows = 16;
constexpr int kPairTileRows = 8;
constexpr bool kDoubleSums = false;

#include "ops/cpu/panel/gemm_kernels.inc"
#include "ops/cpu/panel/gemm_pair_kernels.inc"
#include "ops/cpu/panel/norm_kernels.inc"
#include "ops/cpu/panel/winograd_kernels.inc"

}  // namespace

const PanelKernels kAvx512Kernels = {
    .gemm = Gemm,
    .gemm_pair = GemmPair,
    .gemm_transposed = GemmTransposed,
    .gemm_transposed_pair = GemmTransposedPair,
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
