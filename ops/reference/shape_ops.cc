#include <algorithm>
#include <bit>
#include <functional>
#include <numeric>

#include "ops/reference/convert.h"
#include "ops/reference/move_kernel.h"
#include "ops/reference/strided_walk.h"

namespace gantry::reference {
namespace {

std::unique_ptr<Kernel> MakeTranspose(const KernelRequest& request) {
  const std::vector<int64_t> perm = request.attributes.Ints("perm");
  const std::vector<int64_t> strides = request.inputs[0].shape.Strides();
  StridedWalk<1> walk;
  for (int axis = 0; axis < request.outputs[0].shape.rank(); ++axis) {
    walk.AddDimension(request.outputs[0].shape[axis], {strides[perm[axis]]});
  }
  return MakeMoveKernel(request, [walk](auto zero, const OpInstance&, const KernelArguments& arguments) {
    using T = decltype(zero);
    const T* x = Input<T>(arguments, 0);
    T* out = Output<T>(arguments, 0);
    walk.ForEach([&](int64_t index, const auto& offset) { out[index] = x[offset[0]]; });
    return absl::OkStatus();
  });
}

// A walk over `part` that gives the offsets in `whole` of a slice, and the offset of its first element.
struct SlicePlaces {
  StridedWalk<1> walk;
  int64_t first = 0;
};

SlicePlaces PlacesOf(const Shape& whole, const Shape& part, const std::vector<int64_t>& starts,
                     const std::vector<int64_t>& steps) {
  const std::vector<int64_t> strides = whole.Strides();
  SlicePlaces places;
  for (int axis = 0; axis < whole.rank(); ++axis) {
    // A step is only taken where there is more than one element; one that is not may be huge.
    const int64_t step = part[axis] > 1 ? steps[axis] : 0;
    places.walk.AddDimension(part[axis], {step * strides[axis]});
    places.first += starts[axis] * strides[axis];
  }
  return places;
}

std::unique_ptr<Kernel> MakeSlice(const KernelRequest& request) {
  const SlicePlaces places = PlacesOf(request.inputs[0].shape, request.outputs[0].shape,
                                      request.attributes.Ints("starts"), request.attributes.Ints("steps"));
  return MakeMoveKernel(request, [places](auto zero, const OpInstance&, const KernelArguments& arguments) {
    using T = decltype(zero);
    const T* x = Input<T>(arguments, 0);
    T* out = Output<T>(arguments, 0);
    places.walk.ForEach({places.first}, [&](int64_t index, const auto& offset) { out[index] = x[offset[0]]; });
    return absl::OkStatus();
  });
}

// slice_grad and pad: `background` everywhere, the input at its places.
template <typename Convert>
std::unique_ptr<Kernel> MakeScatter(const KernelRequest& request, const SlicePlaces& places, Convert background) {
  return MakeMoveKernel(
      request, [places, background](auto zero, const OpInstance& op, const KernelArguments& arguments) {
        using T = decltype(zero);
        const T* x = Input<T>(arguments, 0);
        T* out = Output<T>(arguments, 0);
        std::fill_n(out, op.outputs[0].element_count(), static_cast<T>(background));
        places.walk.ForEach({places.first}, [&](int64_t index, const auto& offset) { out[offset[0]] = x[index]; });
        return absl::OkStatus();
      });
}

std::unique_ptr<Kernel> MakeSliceGrad(const KernelRequest& request) {
  return MakeScatter(request,
                     PlacesOf(request.outputs[0].shape, request.inputs[0].shape, request.attributes.Ints("starts"),
                              request.attributes.Ints("steps")),
                     uint64_t{0});
}

// The bits of `value` as an element of `type`.
uint64_t BitsOf(double value, DataType type) {
  switch (type) {
    case DataType::kF32:
      return std::bit_cast<uint32_t>(static_cast<float>(value));
    case DataType::kF64:
      return std::bit_cast<uint64_t>(value);
    case DataType::kI32:
      return static_cast<uint32_t>(Convert<int32_t>(value));
    case DataType::kI64:
      return static_cast<uint64_t>(Convert<int64_t>(value));
    case DataType::kU8:
      return Convert<uint8_t>(value);
  }
  return 0;
}

std::unique_ptr<Kernel> MakePad(const KernelRequest& request) {
  const std::vector<int64_t> steps(request.inputs[0].shape.rank(), 1);
  return MakeScatter(
      request, PlacesOf(request.outputs[0].shape, request.inputs[0].shape, request.attributes.Ints("pads"), steps),
      BitsOf(request.attributes.Float("value"), request.outputs[0].dtype));
}

std::unique_ptr<Kernel> MakeConcat(const KernelRequest& request) {
  const Shape& shape = request.outputs[0].shape;
  const absl::StatusOr<int> axis = infer::AxisAttribute(request.attributes, "axis", shape.rank());
  if (!axis.ok()) return nullptr;
  // Each input is `outer` runs of what lies inside the axis.
  const auto first = shape.dims().begin();
  const int64_t outer = std::accumulate(first, first + *axis, int64_t{1}, std::multiplies<>());
  const int64_t inner = std::accumulate(first + *axis + 1, shape.dims().end(), int64_t{1}, std::multiplies<>());
  return MakeMoveKernel(
      request, [outer, inner, axis = *axis](auto zero, const OpInstance& op, const KernelArguments& arguments) {
        using T = decltype(zero);
        T* out = Output<T>(arguments, 0);
        for (int64_t i = 0; i < outer; ++i) {
          for (size_t part = 0; part < op.inputs.size(); ++part) {
            const int64_t run = op.inputs[part].shape[axis] * inner;
            out = std::copy_n(Input<T>(arguments, static_cast<int>(part)) + i * run, run, out);
          }
        }
        return absl::OkStatus();
      });
}

std::unique_ptr<Kernel> MakeAddPart(const KernelRequest& request) {
  const Shape &whole = request.inputs[0].shape, &part = request.inputs[1].shape;
  const absl::StatusOr<int> axis = infer::AxisAttribute(request.attributes, "axis", whole.rank());
  if (!axis.ok()) return nullptr;
  const std::vector<int64_t> strides = whole.Strides();
  const int64_t first = request.attributes.Int("begin") * strides[*axis];
  StridedWalk<1> walk;
  for (int dimension = 0; dimension < whole.rank(); ++dimension) walk.AddDimension(part[dimension], {strides[dimension]});
  return MakeFloatKernel(request, [walk, first](auto zero, const OpInstance& op, const KernelArguments& arguments) {
    using T = decltype(zero);
    const T* const x = Input<T>(arguments, 0);
    const T* const part = Input<T>(arguments, 1);
    T* const out = Output<T>(arguments, 0);
    if (out != x) std::copy_n(x, op.outputs[0].element_count(), out);
    walk.ForEach({first}, [&](int64_t index, const auto& offset) { out[offset[0]] += part[index]; });
    return absl::OkStatus();
  });
}

}  // namespace

KernelTable ShapeKernels() {
  return {{"transpose", MakeTranspose},
          {"slice", MakeSlice},
          {"slice_grad", MakeSliceGrad},
          {"pad", MakePad},
          {"concat", MakeConcat},
          {"add_part", MakeAddPart}};
}

}  // namespace gantry::reference
