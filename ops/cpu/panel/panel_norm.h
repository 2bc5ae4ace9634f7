// Batch norm over N, H and W and sums per channel, on the panel layout. Memory-bound: statistics take one pass over x,
// the result another. A block of at most 128 rows is summed in f32 about (nearly) its own mean, blocks are merged in
// double (T F Chan, G H Golub, R J LeVeque, Algorithms for Computing the Sample Variance, The American Statistician 37,
// 1983), in an order that does not depend on the number of threads.
//
// Buffers are 64-byte aligned. Per-channel arrays have `channels` floats. The tail of the last panel is written as
// zero.
#pragma once

#include <cstdint>

#include "ops/cpu/panel/panel_isa.h"
#include "ops/cpu/panel/panel_layout.h"

namespace gantry::cpu {

struct PanelShape {
  int64_t batch = 1, channels = 1, height = 1, width = 1;
};

// For every function below that takes a scratch.
int64_t NormScratchFloats(const PanelShape& shape);

// Mean and biased variance of every channel. `part` above 0: so many images are summed at a time, one part after the other, as AddMoments
// does it that sees each part alone: the same bits.
void BatchStatistics(const PanelShape& shape, const float* x, float* mean, float* variance, float* scratch,
                     int thread_count, Isa isa = BestIsa(), int64_t part = 0);

// The same in steps, for a batch of which only some images are at hand. `moments` are 2 x channels doubles, mean and sum of squared
// deviations of the `before` images seen so far (not read where there are none); those of the shape's images are merged into them.
void AddMoments(const PanelShape& shape, const float* x, int64_t before, double* moments, float* scratch, int thread_count,
                Isa isa = BestIsa(), int64_t part = 0);
// `count`: elements of one channel in all images together.
void FinishMoments(int64_t channels, int64_t count, const double* moments, float* mean, float* variance);

// y = v > 0 ? v : slope * v with v = gamma * (x - mean) / sqrt(variance + epsilon) + beta; slope 1: no activation.
// y may be x.
void BatchNormalize(const PanelShape& shape, const float* x, const float* mean, const float* variance,
                    const float* gamma, const float* beta, float epsilon, float slope, float* y, int thread_count,
                    Isa isa = BestIsa());

// The gradient of both together: statistics are functions of x. `y`: the result of BatchNormalize where an activation
// was fused (its sign tells which side), else null. `dx` may be `dy`.
struct BatchNormGradient {
  const float* dy;
  const float* x;
  const float* y = nullptr;
  const float* gamma;
  const float* mean;
  const float* variance;
  float epsilon;
  float slope = 1.0f;  // of the fused activation
  float* dx;
  float* dgamma;
  float* dbeta;
};
// `part` as of BatchStatistics.
void BatchNormBackward(const PanelShape& shape, const BatchNormGradient& arguments, float* scratch, int thread_count,
                       Isa isa = BestIsa(), int64_t part = 0);

// The same in steps. `sums` are 2 x channels doubles, of g and of g * (x - mean), g the gradient before the activation; those of the shape's
// images are added to them, or take their place where nothing was `before`. dx, dgamma, dbeta and gamma are not used.
void AddGradientSums(const PanelShape& shape, const BatchNormGradient& arguments, int64_t before, double* sums, float* scratch,
                     int thread_count, Isa isa = BestIsa(), int64_t part = 0);
// dgamma and dbeta from the sums of all images.
void FinishGradientSums(int64_t channels, const double* sums, const float* variance, float epsilon, float* dgamma, float* dbeta);
// dx of the shape's images; `count`: how many elements of a channel the sums are of.
void BatchNormInputGradient(const PanelShape& shape, const BatchNormGradient& arguments, double count, const double* sums,
                            float* scratch, int thread_count, Isa isa = BestIsa());

// The two halves of BatchNormBackward, for sums that several ranks make together: dgamma and dbeta of the shape's images, and dx from those of all.
void BatchNormParameterGradients(const PanelShape& shape, const BatchNormGradient& arguments, float* scratch, int thread_count,
                                 Isa isa = BestIsa(), int64_t part = 0);
void BatchNormInputGradient(const PanelShape& shape, const BatchNormGradient& arguments, double count, const float* dgamma, const float* dbeta,
                            float* scratch, int thread_count, Isa isa = BestIsa());

// sums[c] = sum of x over N, H and W: the gradient of a bias.
void ChannelSums(const PanelShape& shape, const float* x, float* sums, float* scratch, int thread_count,
                 Isa isa = BestIsa());

}  // namespace gantry::cpu
