// Inner loops over runs of f32, compiled for each instruction set and chosen at run time. They know nothing of shapes:
// elementwise.cc, reduction.cc and optimizer.cc cut tensors into runs and share them between threads.
#pragma once

#include <cstdint>

#include "ops/cpu/panel/panel_isa.h"

namespace gantry::cpu {

// out[i] = f(x[i]). Parameters: kScale alpha, beta; kClip low, high; kLeakyRelu slope.
enum class UnaryOp : uint8_t {
  kCopy, kNeg, kAbs, kSign, kSqrt, kRsqrt, kExp, kLog, kSquare, kReciprocal, kErf, kScale, kClip, kLeakyRelu, kSigmoid, kTanh,
  kSoftplus, kSilu, kGelu, kCount
};
// out[i] = f(x[i], y[i]). Parameter: kLeakyReluGrad slope.
enum class BinaryOp : uint8_t {
  kAdd, kSub, kMul, kDiv, kPow, kMinimum, kMaximum, kGreater, kEqual, kLeakyReluGrad, kSigmoidGrad, kTanhGrad, kCount
};
// How the operands of a binary run are read. A lane operand holds 16 values, one per channel of a panel, used again and again.
enum class BinaryForm : uint8_t { kBothRuns, kScalarLeft, kScalarRight, kLanesLeft, kLanesRight, kCount };

inline constexpr int kLanes = 16;

// The scalars of an Adam step, as ops/functional.h defines it.
struct AdamScalars {
  float gradient_scale, decay, shrink, beta1, one_minus_beta1, beta2, one_minus_beta2, step_size, root_scale, epsilon;
};
struct SgdScalars {
  float gradient_scale, decay, learning_rate, momentum, one_minus_dampening;
  bool first_step, nesterov;
};

// Sums along a row whose places repeat: out[up * i + p] = the sum over k < count[p] of weights[p][k] *
// x[down * i + offsets[p][k]].
inline constexpr int kMostPatternTaps = 8;
struct TapPattern {
  int count[2];
  int64_t offsets[2][kMostPatternTaps];
  float weights[2][kMostPatternTaps];
};

// `count` counts elements. Results may lie exactly over an input; they do not overlap otherwise.
struct VectorKernels {
  using Unary = void (*)(const float* x, float* out, int64_t count, const float* parameters);
  using Binary = void (*)(const float* x, const float* y, float* out, int64_t count, const float* parameters);

  Isa isa;
  Unary unary[static_cast<int>(UnaryOp::kCount)];
  Binary binary[static_cast<int>(BinaryOp::kCount)][static_cast<int>(BinaryForm::kCount)];
  void (*fill)(float value, float* out, int64_t count);

  // Sums and sums of squares in double.
  double (*sum)(const float* x, int64_t count);
  double (*sum_squares)(const float* x, int64_t count);
  float (*max)(const float* x, int64_t count);  // count > 0; NaN where there is one
  // totals[i] += x[i], largest[i] = max(largest[i], x[i]).
  void (*add_to)(const float* x, double* totals, int64_t count);
  void (*max_to)(const float* x, float* largest, int64_t count);
  // Where x[stride * i] is larger than largest[i], or is the first NaN, or places[i] is negative, largest[i] becomes it and
  // places[i] becomes place + stride * i.
  void (*take_larger)(const float* x, int64_t stride, int32_t place, float* largest, int32_t* places, int64_t count);
  // totals[lane] += x[lane] + x[stride + lane] + ..., `steps` terms for each of kLanes lanes.
  void (*sum_lanes)(const float* x, int64_t steps, int64_t stride, double* totals);

  void (*adam)(const float* w, const float* m, const float* v, const float* g, float* new_w, float* new_m, float* new_v,
               int64_t count, const AdamScalars& scalars);
  // `momentum` and `new_momentum` are null without momentum.
  void (*sgd)(const float* w, const float* momentum, const float* g, float* new_w, float* new_momentum, int64_t count,
              const SgdScalars& scalars);
  // out = a * x + b * y.
  void (*weighted_sum)(const float* x, const float* y, float* out, int64_t count, float a, float b);
  // out[i] = the sum of weights[r] * x[rows[r] * pitch + i] over the `row_count` rows, which may be none.
  void (*weighted_rows)(const float* x, int64_t pitch, const int64_t* rows, const float* weights, int64_t row_count,
                        float* out, int64_t count);
  // `groups` times `up` results; (up, down) is (1, 1), (1, 2) or (2, 1).
  void (*repeat_pattern)(const float* x, float* out, int64_t groups, int up, int down, const TapPattern& pattern);

  // Bit i % 8 of bits[i / 8]: x[i] > 0. The last byte is filled up with zeros.
  void (*sign_bits)(const float* x, uint8_t* bits, int64_t count);
  // out[i] = bit i ? x[i] : slope * x[i].
  void (*scale_by_bits)(const float* x, const uint8_t* bits, float* out, int64_t count, float slope);
};

// The kernels for `isa`, which must be available.
const VectorKernels& VectorKernelsFor(Isa isa);
// Those for BestIsa().
const VectorKernels& BestVectorKernels();

// One of each, where the program has it.
extern const VectorKernels kVectorKernelsPortable;
extern const VectorKernels kVectorKernelsAvx2;
extern const VectorKernels kVectorKernelsAvx512;

}  // namespace gantry::cpu
