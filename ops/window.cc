#include "ops/window.h"

#include <algorithm>

#include "absl/strings/str_join.h"
#include "ops/infer.h"

namespace gantry {
namespace {

constexpr int64_t kMaxEntry = INT32_MAX;

absl::StatusOr<std::vector<int64_t>> Entries(const Attributes& attributes, std::string_view name, int size, int64_t min,
                                             int64_t fallback) {
  const AttributeValue* value = attributes.Find(name);
  const auto* entries = value == nullptr ? nullptr : std::get_if<std::vector<int64_t>>(value);
  if (value == nullptr || (entries != nullptr && entries->empty())) return std::vector<int64_t>(size, fallback);
  return infer::IntsAttribute(attributes, name, size, min, kMaxEntry);
}

}  // namespace

absl::StatusOr<Window> ParseWindow(const Attributes& attributes, std::span<const int64_t> kernel) {
  const int rank = static_cast<int>(kernel.size());
  if (rank < 1 || rank > 3) {
    return absl::InvalidArgumentError(absl::StrFormat("a kernel of %d spatial dimensions; there may be 1 to 3", rank));
  }
  for (int64_t extent : kernel) {
    if (extent < 1 || extent > kMaxEntry) {
      return absl::InvalidArgumentError(
          absl::StrFormat("kernel [%s]: every extent must lie in [1, %d]", absl::StrJoin(kernel, ","), kMaxEntry));
    }
  }
  GANTRY_ASSIGN_OR_RETURN(const std::vector<int64_t> strides, Entries(attributes, "strides", rank, 1, 1));
  GANTRY_ASSIGN_OR_RETURN(const std::vector<int64_t> pads, Entries(attributes, "pads", 2 * rank, 0, 0));
  GANTRY_ASSIGN_OR_RETURN(const std::vector<int64_t> dilations, Entries(attributes, "dilations", rank, 1, 1));
  Window window;
  window.rank = rank;
  for (int index = 0; index < rank; ++index) {
    window.spatial(index) = {.kernel = kernel[index],
                             .stride = strides[index],
                             .pad_begin = pads[index],
                             .pad_end = pads[rank + index],
                             .dilation = dilations[index]};
  }
  return window;
}

absl::StatusOr<std::vector<int64_t>> WindowCounts(const Window& window, std::span<const int64_t> spatial,
                                                  bool ceil_mode) {
  if (static_cast<int>(spatial.size()) != window.rank) {
    return absl::InvalidArgumentError(absl::StrFormat("a kernel of %d spatial dimensions on an input that has %d: [%s]",
                                                      window.rank, spatial.size(), absl::StrJoin(spatial, ",")));
  }
  std::vector<int64_t> counts(window.rank);
  for (int index = 0; index < window.rank; ++index) {
    const WindowAxis& axis = window.spatial(index);
    const int64_t room = spatial[index] + axis.pad_begin + axis.pad_end - axis.extent();
    if (room < 0 || spatial[index] < 1) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "spatial dimension %d: a kernel of %d with dilation %d spans %d places, but the input has %d and pads %d + "
          "%d",
          index, axis.kernel, axis.dilation, axis.extent(), spatial[index], axis.pad_begin, axis.pad_end));
    }
    counts[index] = (room + (ceil_mode ? axis.stride - 1 : 0)) / axis.stride + 1;
    if (ceil_mode && (counts[index] - 1) * axis.stride >= spatial[index] + axis.pad_begin) --counts[index];
  }
  return counts;
}

std::span<const int64_t> SpatialDims(const Shape& shape) { return std::span(shape.dims()).subspan(2); }

std::array<int64_t, 3> SpatialDims3(const Shape& shape) {
  std::array<int64_t, 3> dims = {1, 1, 1};
  const std::span<const int64_t> spatial = SpatialDims(shape);
  std::copy(spatial.begin(), spatial.end(), dims.end() - static_cast<int64_t>(spatial.size()));
  return dims;
}

WindowRange WindowsInside(const WindowAxis& axis, int64_t tap, int64_t input, int64_t windows) {
  const int64_t offset = tap * axis.dilation - axis.pad_begin;  // of window 0
  const int64_t first = offset >= 0 ? 0 : (-offset + axis.stride - 1) / axis.stride;
  const int64_t last = offset >= input ? 0 : (input - 1 - offset) / axis.stride + 1;
  return {std::min(first, windows), std::max(std::min(last, windows), std::min(first, windows))};
}

}  // namespace gantry
