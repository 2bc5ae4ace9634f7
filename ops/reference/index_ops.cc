#include <algorithm>

#include "ops/infer.h"
#include "ops/reference/move_kernel.h"

namespace gantry::reference {
namespace {

// A tensor as [outer, extent, inner] around the axis that is chosen from, and how many indices choose.
struct Rows {
  int64_t outer = 1, extent = 1, inner = 1, chosen = 1;
};

absl::StatusOr<Rows> RowsOf(const KernelRequest& request, const Shape& whole) {
  GANTRY_ASSIGN_OR_RETURN(const int axis, infer::AxisAttribute(request.attributes, "axis", whole.rank()));
  Rows rows;
  for (int i = 0; i < axis; ++i) rows.outer *= whole[i];
  rows.extent = whole[axis];
  for (int i = axis + 1; i < whole.rank(); ++i) rows.inner *= whole[i];
  rows.chosen = request.inputs[1].element_count();
  return rows;
}

// Calls visit(place of the row in the whole tensor, place of the row among the chosen).
template <typename Index, typename Visit>
absl::Status ForEachRow(const Rows& rows, const Index* indices, Visit visit) {
  for (int64_t i = 0; i < rows.chosen; ++i) {
    const int64_t index = indices[i] < 0 ? indices[i] + rows.extent : indices[i];
    if (index < 0 || index >= rows.extent) {
      return absl::OutOfRangeError(absl::StrFormat("index %d (at place %d) is outside an axis of %d",
                                                   static_cast<int64_t>(indices[i]), i, rows.extent));
    }
    for (int64_t outer = 0; outer < rows.outer; ++outer) {
      visit((outer * rows.extent + index) * rows.inner, (outer * rows.chosen + i) * rows.inner);
    }
  }
  return absl::OkStatus();
}

template <typename Visit>
absl::Status ForEachRow(const Rows& rows, DataType index_type, const KernelArguments& arguments, Visit visit) {
  if (index_type == DataType::kI32) return ForEachRow(rows, Input<int32_t>(arguments, 1), visit);
  return ForEachRow(rows, Input<int64_t>(arguments, 1), visit);
}

std::unique_ptr<Kernel> MakeGather(const KernelRequest& request) {
  const absl::StatusOr<Rows> rows = RowsOf(request, request.inputs[0].shape);
  if (!rows.ok()) return nullptr;
  return MakeMoveKernel(request, [rows = *rows](auto zero, const OpInstance& op, const KernelArguments& arguments) {
    using T = decltype(zero);
    const T* x = Input<T>(arguments, 0);
    T* out = Output<T>(arguments, 0);
    return ForEachRow(rows, op.inputs[1].dtype, arguments,
                      [&](int64_t whole, int64_t chosen) { std::copy_n(x + whole, rows.inner, out + chosen); });
  });
}

std::unique_ptr<Kernel> MakeGatherGrad(const KernelRequest& request) {
  const absl::StatusOr<Rows> rows = RowsOf(request, request.outputs[0].shape);
  if (!rows.ok()) return nullptr;
  return MakeFloatKernel(request, [rows = *rows](auto zero, const OpInstance& op, const KernelArguments& arguments) {
    using T = decltype(zero);
    const T* g = Input<T>(arguments, 0);
    T* out = Output<T>(arguments, 0);
    std::fill_n(out, op.outputs[0].element_count(), T{0});
    return ForEachRow(rows, op.inputs[1].dtype, arguments, [&](int64_t whole, int64_t chosen) {
      for (int64_t i = 0; i < rows.inner; ++i) out[whole + i] += g[chosen + i];
    });
  });
}

}  // namespace

KernelTable IndexKernels() { return {{"gather", MakeGather}, {"gather_grad", MakeGatherGrad}}; }

}  // namespace gantry::reference
