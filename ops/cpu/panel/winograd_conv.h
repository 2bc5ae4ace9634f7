// Winograd's form of convolutions with a square kernel of stride * taps, taps 2 or 3: a stride-2 4x4 convolution is the
// sum of 4 convolutions, one per phase of the input's rows and columns, each with 2x2 taps and stride 1 (A Lavin, S
// Gray, CVPR 2016, for the transforms; the phases are the polyphase form of a strided filter). All phases are summed in
// the transformed domain, so an output tile has one inverse transform. F(2,2) needs 9 products for 16, F(3,2) 16 for 36, F(4,2) 25
// for 64, F(2,3) 16 for 36, F(3,3) 25 for 81, F(4,3) 36 for 144. A last tile that is not full leaves out the products of the point
// at infinity, on which only its missing outputs depend: 8 outputs need 3 + 3 + 2 of F(3,2), 11 points instead of 12. A last tile of
// one output of F(3,2) needs only the first and the last point: 16 outputs are 5 x 4 + 2 points.
//
// The input gradient is the adjoint of the whole algorithm (not a convolution with flipped weights), the weight
// gradient its derivative; both use the same transforms, transposed.
//
// RMS (largest) error against float64 over the RMS of the result, normal data, 64 -> 128 channels, as panel_conv_test
// prints it, and the factor by which the transforms enlarge the errors of products (WinogradKernels::amplification):
//                   direct             F(2,.)             F(3,.)             F(4,.)
//   4x4 forward     1.1e-7 (5.6e-7)    1.4e-7 (8.7e-7)    1.9e-7 (1.2e-6)    4.0e-7 (2.2e-6)
//       input       1.1e-7 (9.2e-7)    1.3e-7 (6.5e-7)    1.7e-7 (1.1e-6)    3.5e-7 (2.3e-6)
//       weights     1.4e-7 (1.3e-6)    1.4e-7 (1.0e-6)    1.5e-7 (1.1e-6)    2.8e-7 (2.3e-6)
//       factor      1                  1.15               1.7                2.8
//   3x3 forward     1.0e-7 (5.4e-7)    1.9e-7 (9.3e-7)    3.2e-7 (1.8e-6)    5.9e-7 (5.5e-6)
//       input       1.1e-7 (5.5e-7)    2.0e-7 (8.4e-7)    3.2e-7 (1.7e-6)    6.1e-7 (3.7e-6)
//       weights     1.4e-7 (1.2e-6)    2.1e-7 (1.7e-6)    3.8e-7 (3.7e-6)    4.8e-7 (3.5e-6)
//       factor      1                  1.7                2.6                4.8
#pragma once

#include "ops/cpu/panel/panel_conv.h"

namespace gantry::cpu::winograd {

// Whether the form serves: square kernel of stride * taps and equal strides of 1 or 2, no dilation, pads >= 0, and no
// input pixel behind the last tile.
bool Supports(const ConvGeometry& geometry, const WinogradKernels& transforms);

// Forward: [point][chunk of (phase, in panel)][out panel][(phase, in panel) of the chunk][16 in][16 out]; input
// gradient: [point] [chunk of out panels][(phase, in panel)][out panel of the chunk][16 out][16 in]. A chunk is
// kChunkPanels panels or the rest.
int64_t WeightFloats(const ConvGeometry& geometry, const WinogradKernels& transforms);
void PackForward(const ConvGeometry& geometry, const PanelKernels& kernels, const WinogradKernels& transforms,
                 const float* weights, float* packed, int thread_count);
void PackInputGradient(const ConvGeometry& geometry, const PanelKernels& kernels, const WinogradKernels& transforms,
                       const float* weights, float* packed, int thread_count);

int64_t ImageScratchFloats(const ConvGeometry& geometry,
                           const WinogradKernels& transforms);  // of Forward and InputGradient
void Forward(const ConvGeometry& geometry, const PanelKernels& kernels, const WinogradKernels& transforms,
             const float* input, const float* packed, const Epilogue& epilogue, float* output, float* scratch,
             int thread_count);
void InputGradient(const ConvGeometry& geometry, const PanelKernels& kernels, const WinogradKernels& transforms,
                   const float* output_gradient, const float* packed, const Epilogue& epilogue, float* input_gradient,
                   float* scratch, int thread_count);

int64_t WeightGradientScratchFloats(const ConvGeometry& geometry, const WinogradKernels& transforms, int thread_count);
void WeightGradient(const ConvGeometry& geometry, const GradientOperands& operands, const PanelKernels& kernels, const WinogradKernels& transforms,
                    const float* input, const float* output_gradient, bool accumulate, float* weight_gradient,
                    float* scratch, int thread_count);

}  // namespace gantry::cpu::winograd
