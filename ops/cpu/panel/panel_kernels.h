// The inner loops of the panel kernels, one table per instruction set. All pointers are to f32; rows of 16 floats are
// 64-byte aligned. Nothing here allocates or starts threads.
#pragma once

#include <cstdint>

#include "ops/cpu/panel/panel_isa.h"

namespace gantry::cpu {

// What happens to a finished result: + bias[channel], then v > 0 ? v : slope * v.
struct Epilogue {
  const float* bias = nullptr;  // null: no bias
  float slope = 1.0f;           // 1: no activation, 0: relu
};

// Panels of 16 k that one gemm call sums: B is then 16 KiB and stays in the first-level cache over the rows of A.
inline constexpr int64_t kChunkPanels = 16;

// What a transform does with each result besides storing it.
enum TransformMode : uint8_t {
  kAddToResult = 1,    // what the result held is added
  kApplyEpilogue = 2,  // then bias and activation
};

struct TransformFinish {
  const uint8_t* modes;  // TransformMode bits of every result
  const float* bias;     // 16 floats or null
  float slope;
};

// The transforms of one F(outputs x outputs, taps x taps), n = outputs + taps - 1. Each turns the arrays sources[...]
// of `count` floats (a multiple of 16) into results[...]; both are square, row by row. `finish` is used by
// input_adjoint and output, where results may be null (not wanted); the others ignore it.
struct WinogradKernels {
  using Function = void (*)(int64_t count, const float* const* sources, float* const* results,
                            const TransformFinish* finish);

  int outputs;
  int taps;
  // How much larger a result's rounding error is than that of the products and sums in the transformed domain: with
  // random data and products off by e of their own size each, a result is off by `amplification` x e of its size.
  double amplification;
  // [rows][columns]: 1 for a tile of one output in that dimension, where taps == 2 and the first point is 0; otherwise null. y = d0 w0 +
  // d1 w1 needs no transform: the weights of the first point are w0, those of the last one w1, so only these two points and the first
  // two inputs take part, and the pointers to others are not looked at.
  Function input[2][2];           // n x n -> n x n
  Function input_adjoint[2][2];   // n x n -> n x n
  Function output[2][2];          // n x n -> outputs x outputs
  Function output_adjoint[2][2];  // outputs x outputs -> n x n
  Function weight;                // taps x taps -> n x n
  Function weight_past_caches;    // the same with stores past the caches; results are multiples of 64 bytes, and a fence follows
  Function weight_adjoint;        // n x n -> taps x taps

  int points() const { return outputs + taps - 1; }
  bool has_singles() const { return input[1][1] != nullptr; }
};

// Most sources or results that a transform has.
inline constexpr int kMostPoints = 36;

struct PanelKernels {
  // c[row][0..16) = (accumulate ? c : 0) + sum over panel i, k < k_count of a[i][row * 16 + k] * b[b_offsets[i] + k *
  // 16 + 0..16), then bias[0..16) where bias is not null and the activation where slope != 1. Rows of c are 16 floats
  // apart. `next_b`, if not null, is where the 256 * panel_count floats of b of a later call lie: they are fetched into
  // the cache.
  void (*gemm)(int64_t rows, int64_t panel_count, const float* const* a, const float* b, const int64_t* b_offsets,
               int64_t k_count, float* c, bool accumulate, const float* bias, float slope, const float* next_b);
  // Two panels of results at once, each to the bit as gemm makes it: panel q < 2 at c + q * c_step from the weights b +
  // q * b_step and bias[q * 16 ...]. `next_b` are two such runs of weights, b_step apart. Null, as the other pair is,
  // where it is no faster than two calls.
  void (*gemm_pair)(int64_t rows, int64_t panel_count, const float* const* a, const float* b, int64_t b_step,
                    const int64_t* b_offsets, int64_t k_count, float* c, int64_t c_step, bool accumulate,
                    const float* bias, float slope, const float* next_b);
  // c[row][0..16) = (accumulate ? c : 0) + sum over panel i, k < k_count of a[i][k * 16 + row] * b[i][k * 16 + 0..16),
  // rows <= 16. `next`, if not null, are panel_count operands of a later call, to be fetched into the cache.
  void (*gemm_transposed)(int64_t rows, int64_t panel_count, const float* const* a, const float* const* b,
                          int64_t k_count, float* c, bool accumulate, const float* const* next);
  // Two panels of results at once, each to the bit as gemm_transposed makes it: panel q < 2 at c + q * c_step from b[i]
  // + q * b_step; `next` are such pairs.
  void (*gemm_transposed_pair)(int64_t rows, int64_t panel_count, const float* const* a, const float* const* b,
                               int64_t b_step, int64_t k_count, float* c, int64_t c_step, bool accumulate,
                               const float* const* next);
  // to[c * to_stride + r] = (accumulate ? itself : 0) + from[r * from_stride + c], 16 rows and columns, any alignment.
  void (*transpose)(const float* from, int64_t from_stride, float* to, int64_t to_stride, bool accumulate);
  WinogradKernels winograd[2][3];  // [taps 2, 3][outputs 2, 3, 4]

  // Norms; see norm_kernels.inc. Per-channel arguments are 16 floats, images are rows of 16.
  void (*moments)(int64_t rows, const float* x, float* center, float* sum, float* squares);
  void (*normalize)(int64_t rows, const float* x, const float* mean, const float* scale, const float* shift,
                    float slope, float* y);
  void (*gradient_sums)(int64_t rows, const float* gradient, const float* x, const float* y, float slope,
                        const float* mean, float* sum, float* products);
  void (*normalize_gradient)(int64_t rows, const float* gradient, const float* x, const float* y, float slope,
                             const float* mean, const float* scale, const float* x_scale, const float* shift,
                             float* result);
  void (*row_sums)(int64_t rows, const float* x, float* sum);
};

// The table of `isa`, which must be available.
const PanelKernels& KernelsFor(Isa isa);

// One per translation unit; reached through KernelsFor.
extern const PanelKernels kPortableKernels;
#if defined(GANTRY_PANEL_X86)
extern const PanelKernels kAvx2Kernels;
extern const PanelKernels kAvx512Kernels;
#endif

}  // namespace gantry::cpu
