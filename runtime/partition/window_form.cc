#include "runtime/partition/window_form.h"

#include <algorithm>
#include <utility>

namespace gantry {
namespace {

// Both spans.
Span Hull(const Span& a, const Span& b) {
  if (a.empty() || b.empty()) return a.empty() ? b : a;
  return {std::min(a.begin, b.begin), std::max(a.end, b.end)};
}

Attributes WithEntry(Attributes attributes, std::string_view name, int place, int64_t entry) {
  std::vector<int64_t> entries = attributes.Ints(name);
  entries[place] = entry;
  attributes.Set(std::string(name), std::move(entries));
  return attributes;
}

// With {output_spatial} where it is there: the op's result has the places.
Attributes WithPlaces(Attributes attributes, int spatial_axis, const Span& places) {
  if (!attributes.Has("output_spatial")) return attributes;
  return WithEntry(std::move(attributes), "output_spatial", spatial_axis, places.size());
}

}  // namespace

Span Common(const Span& a, const Span& b) { return {std::max(a.begin, b.begin), std::min(a.end, b.end)}; }

WindowForm::WindowForm(std::vector<Span> reads, int64_t places, Local local) : reads_(std::move(reads)), places_(places), local_(std::move(local)) {}

WindowForm WindowForm::Sliding(const WindowAxis& axis, int64_t places, int64_t windows, Attributes attributes, int spatial_rank,
                               int spatial_axis, bool pooling) {
  const auto First = [axis](int64_t window) { return window * axis.stride - axis.pad_begin; };
  std::vector<Span> reads;
  for (int64_t window = 0; window < windows; ++window) reads.push_back(Common({First(window), First(window) + axis.extent()}, {0, places}));
  if (attributes.Ints("pads").empty()) attributes.Set("pads", std::vector<int64_t>(2 * spatial_rank, 0));
  const auto local = [=](const Span& places, const Span& windows) -> std::optional<Attributes> {
    const int64_t begin = places.begin - First(windows.begin), end = First(windows.end - 1) + axis.extent() - places.end;
    // Places behind the last window, fewer than a stride, belong to no window anyway.
    if (begin < 0 || end <= -axis.stride) return std::nullopt;
    if (pooling && std::max(begin, end) >= axis.extent()) return std::nullopt;
    Attributes result = WithEntry(attributes, "pads", spatial_axis, begin);
    result = WithEntry(std::move(result), "pads", spatial_rank + spatial_axis, std::max<int64_t>(end, 0));
    return WithPlaces(std::move(result), spatial_axis, places);
  };
  return WindowForm(std::move(reads), places, local);
}

WindowForm WindowForm::Resizing(Attributes attributes, int spatial_axis, int64_t places, int64_t windows, bool gradient) {
  std::vector<Span> reads;
  for (const ResizeSample& sample : ResizeSamples(attributes, spatial_axis, places, windows)) reads.push_back({sample.low, sample.high + 1});
  const auto local = [=](const Span& here, const Span& there) -> std::optional<Attributes> {
    Attributes result = WithEntry(attributes, "output_spatial", spatial_axis, gradient ? here.size() : there.size());
    result.Set("part", std::vector<int64_t>{spatial_axis, places, here.begin, windows, there.begin});
    return result;
  };
  return WindowForm(std::move(reads), places, local);
}

Span WindowForm::Reached(WindowSide side, const Span& span) const {
  Span reached;
  if (side == WindowSide::kWindows) {
    for (int64_t window = span.begin; window < span.end; ++window) reached = Hull(reached, reads_[window]);
    return reached;
  }
  for (int64_t window = 0; window < static_cast<int64_t>(reads_.size()); ++window) {
    if (!Common(reads_[window], span).empty()) reached = Hull(reached, {window, window + 1});
  }
  return reached;
}

std::optional<WindowForm::Block> WindowForm::Over(WindowSide side, const Span& here, const Span& there) const {
  std::optional<Attributes> attributes = side == WindowSide::kPlaces ? local_(here, there) : local_(there, here);
  if (!attributes.has_value()) return std::nullopt;
  return Block{here, there, *std::move(attributes)};
}

std::vector<WindowForm::Block> WindowForm::InParts(WindowSide side, const Span& held, const Span& there) const {
  const WindowSide other = side == WindowSide::kPlaces ? WindowSide::kWindows : WindowSide::kPlaces;
  const Span wanted = Reached(other, there);
  if (Common(wanted, held).empty()) return {};
  std::vector<Block> blocks;
  for (const Span& here : {held, Span{wanted.begin, held.begin}, Span{held.end, wanted.end}}) {
    const Span reached = blocks.empty() ? there : here.empty() ? Span{} : Common(Reached(side, here), there);
    if (reached.empty()) continue;
    std::optional<Block> block = Over(side, here, reached);
    if (!block.has_value()) return {};
    blocks.push_back(*std::move(block));
  }
  return blocks;
}

std::optional<WindowForm::Block> WindowForm::InOne(WindowSide side, const Span& there) const {
  const bool of_places = side == WindowSide::kPlaces;
  const int64_t extent = of_places ? places_ : static_cast<int64_t>(reads_.size());
  Span here = Reached(of_places ? WindowSide::kWindows : WindowSide::kPlaces, there);
  if (here.empty()) return std::nullopt;
  // Windows that read nothing of it may be needed for there to be attributes.
  for (;;) {
    if (std::optional<Block> block = Over(side, here, there); block.has_value()) return block;
    if (here.begin > 0) {
      --here.begin;
    } else if (here.end < extent) {
      ++here.end;
    } else {
      return std::nullopt;
    }
  }
}

}  // namespace gantry
