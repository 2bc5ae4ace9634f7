// The panel convolutions as ops of a lowered program: how their attributes hold a geometry.
#pragma once

#include <vector>

#include "ops/attributes.h"
#include "ops/cpu/panel/panel_conv.h"
#include "ops/kernel.h"

namespace gantry::cpu {

// Attributes of "pack_weights", "panel_conv" and "panel_conv_weight_grad", and back.
Attributes ConvAttributesOf(const ConvGeometry& geometry, Direction direction, const ConvOptions& options);
ConvGeometry GeometryOf(const Attributes& attributes);
Direction DirectionOf(const Attributes& attributes);
ConvOptions OptionsOf(const Attributes& attributes);

// Kernels of "reorder" and of the ops above; null for others.
absl::StatusOr<std::unique_ptr<Kernel>> MakePanelKernel(const KernelRequest& request);

}  // namespace gantry::cpu
