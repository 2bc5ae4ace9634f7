#include <algorithm>
#include <cmath>

#include "ops/reference/move_kernel.h"
#include "ops/reference/reference_kernel.h"
#include "ops/reference/strided_walk.h"

namespace gantry::reference {
namespace {

// The kept dimensions of an input and the reduced ones, each with the input's strides.
struct ReductionWalks {
  StridedWalk<1> kept;
  StridedWalk<1> reduced;
  int64_t reduced_count = 1;
};

ReductionWalks SplitAxes(const Shape& shape, const std::vector<int>& axes) {
  ReductionWalks walks;
  const std::vector<int64_t> strides = shape.Strides();
  for (int axis = 0; axis < shape.rank(); ++axis) {
    if (std::find(axes.begin(), axes.end(), axis) == axes.end()) {
      walks.kept.AddDimension(shape[axis], {strides[axis]});
    } else {
      walks.reduced.AddDimension(shape[axis], {strides[axis]});
      walks.reduced_count *= shape[axis];
    }
  }
  return walks;
}

enum class Reduction { kSum, kMean, kMax };

template <Reduction kReduction>
std::unique_ptr<Kernel> MakeReduce(const KernelRequest& request) {
  const Shape& shape = request.inputs[0].shape;
  const absl::StatusOr<std::vector<int>> axes = infer::AxesAttribute(request.attributes, "axes", shape.rank());
  if (!axes.ok()) return nullptr;
  const ReductionWalks walks = SplitAxes(shape, *axes);
  return MakeFloatKernel(request, [walks](auto zero, const OpInstance&, const KernelArguments& arguments) {
    using T = decltype(zero);
    const T* x = Input<T>(arguments, 0);
    T* out = Output<T>(arguments, 0);
    walks.kept.ForEach([&](int64_t index, const auto& place) {
      double total = kReduction == Reduction::kMax ? -std::numeric_limits<double>::infinity() : 0.0;
      walks.reduced.ForEach(place, [&](int64_t, const auto& offset) {
        const double value = x[offset[0]];
        if constexpr (kReduction == Reduction::kMax) {
          if (value > total || std::isnan(value)) total = value;
        } else {
          total += value;
        }
      });
      if (kReduction == Reduction::kMean) total /= static_cast<double>(walks.reduced_count);
      out[index] = static_cast<T>(total);
    });
    return absl::OkStatus();
  });
}

std::unique_ptr<Kernel> MakeBroadcast(const KernelRequest& request) {
  const auto walk = BroadcastWalk<1>({request.inputs[0].shape}, request.outputs[0].shape);
  return MakeMoveKernel(request, [walk](auto zero, const OpInstance&, const KernelArguments& arguments) {
    using T = decltype(zero);
    const T* x = Input<T>(arguments, 0);
    T* out = Output<T>(arguments, 0);
    walk.ForEach([&](int64_t index, const auto& offset) { out[index] = x[offset[0]]; });
    return absl::OkStatus();
  });
}

std::unique_ptr<Kernel> MakeSoftmax(const KernelRequest& request) {
  const Shape& shape = request.inputs[0].shape;
  const absl::StatusOr<int> axis = infer::AxisAttribute(request.attributes, "axis", shape.rank());
  if (!axis.ok()) return nullptr;
  const ReductionWalks walks = SplitAxes(shape, {*axis});
  return MakeFloatKernel(request, [walks](auto zero, const OpInstance&, const KernelArguments& arguments) {
    using T = decltype(zero);
    const T* x = Input<T>(arguments, 0);
    T* out = Output<T>(arguments, 0);
    walks.kept.ForEach([&](int64_t, const auto& place) {
      T largest = -std::numeric_limits<T>::infinity();
      double total = 0.0;
      walks.reduced.ForEach(place, [&](int64_t, const auto& at) { largest = std::max(largest, x[at[0]]); });
      walks.reduced.ForEach(place,
                            [&](int64_t, const auto& at) { total += out[at[0]] = std::exp(x[at[0]] - largest); });
      walks.reduced.ForEach(place, [&](int64_t, const auto& at) { out[at[0]] = static_cast<T>(out[at[0]] / total); });
    });
    return absl::OkStatus();
  });
}

}  // namespace

KernelTable ReductionKernels() {
  return {
      {"reduce_sum", MakeReduce<Reduction::kSum>},
      {"reduce_mean", MakeReduce<Reduction::kMean>},
      {"reduce_max", MakeReduce<Reduction::kMax>},
      {"broadcast", MakeBroadcast},
      {"softmax", MakeSoftmax},
  };
}

}  // namespace gantry::reference
