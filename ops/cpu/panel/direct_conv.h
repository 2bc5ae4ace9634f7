// The direct form of each direction; called through PanelConv. Images are panels unless the name says otherwise.
#pragma once

#include "ops/cpu/panel/panel_conv.h"

namespace gantry::cpu::direct {

// The weights of one (out panel, in panel) as a 16 x 16 block per tap, `tap_stride` floats apart: rows of inputs and
// columns of outputs or the reverse; zero outside the channels.
void GatherWeights(const ConvGeometry& geometry, const PanelKernels& kernels, const float* weights, int64_t out_panel,
                   int64_t in_panel, bool rows_are_inputs, float* blocks, int64_t tap_stride);

// Weights for Forward: [out panel][tap][in panel][16 in][16 out].
int64_t ForwardWeightFloats(const ConvGeometry& geometry);
void PackForward(const ConvGeometry& geometry, const PanelKernels& kernels, const float* weights, float* packed,
                 int thread_count);
void Forward(const ConvGeometry& geometry, const PanelKernels& kernels, const float* input, const float* packed,
             const Epilogue& epilogue, float* output, int thread_count);

// Weights for InputGradient: [in panel][tap][out panel][16 out][16 in].
int64_t InputGradientWeightFloats(const ConvGeometry& geometry);
void PackInputGradient(const ConvGeometry& geometry, const PanelKernels& kernels, const float* weights, float* packed,
                       int thread_count);
void InputGradient(const ConvGeometry& geometry, const PanelKernels& kernels, const float* output_gradient,
                   const float* packed, const Epilogue& epilogue, float* input_gradient, int thread_count);

int64_t WeightGradientScratchFloats(const ConvGeometry& geometry);
void WeightGradient(const ConvGeometry& geometry, const GradientOperands& operands, const PanelKernels& kernels, const float* input,
                    const float* output_gradient, bool accumulate, float* weight_gradient, float* scratch,
                    int thread_count);

// From [tap][out panel][in panel][16 in][16 out] to the row-major weights.
void StoreWeightGradient(const ConvGeometry& geometry, const PanelKernels& kernels, const float* blocks,
                         bool accumulate, float* weight_gradient, int thread_count);

// The same with a row-major image on the input's side, for images of few channels: the taps of all channels together
// are the k (or the columns) of one product per output pixel, so 1 or 3 channels are not padded to 16. Weights: [out
// panel][tap panel][16 taps][16 out].
int64_t PlainForwardWeightFloats(const ConvGeometry& geometry);
int64_t PlainForwardScratchFloats(const ConvGeometry& geometry, int thread_count);
void PackPlainForward(const ConvGeometry& geometry, const float* weights, float* packed, int thread_count);
void PlainForward(const ConvGeometry& geometry, const PanelKernels& kernels, const float* input_nchw,
                  const float* packed, const Epilogue& epilogue, float* output, float* scratch, int thread_count);

// Weights: [tap panel][out panel][16 out][16 taps].
int64_t PlainInputGradientWeightFloats(const ConvGeometry& geometry);
int64_t PlainInputGradientScratchFloats(const ConvGeometry& geometry, int thread_count);
void PackPlainInputGradient(const ConvGeometry& geometry, const float* weights, float* packed, int thread_count);
void PlainInputGradient(const ConvGeometry& geometry, const PanelKernels& kernels, const float* output_gradient,
                        const float* packed, const Epilogue& epilogue, float* input_gradient_nchw, float* scratch,
                        int thread_count);

int64_t PlainWeightGradientScratchFloats(const ConvGeometry& geometry);
void PlainWeightGradient(const ConvGeometry& geometry, const GradientOperands& operands, const PanelKernels& kernels,
                         const float* input_nchw, const float* output_gradient, bool accumulate, float* weight_gradient, float* scratch,
                         int thread_count);

}  // namespace gantry::cpu::direct
