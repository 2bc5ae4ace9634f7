#include "memory/layout/layout_items.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <queue>
#include <set>
#include <unordered_map>
#include <utility>

namespace gantry {
namespace {

// A piece in the caller's time.
struct RawPiece {
  int64_t lower;
  int64_t upper;
  int64_t size;
  int32_t item;
};

// The largest live member of a group over time, as pieces; neighbours of one size are joined.
void AppendGroupPieces(const LayoutProblem& problem, const std::vector<int32_t>& members, int32_t item,
                       std::vector<RawPiece>& pieces) {
  std::vector<std::pair<int64_t, int32_t>> events;  // (time, ~buffer to end or buffer to start)
  for (const int32_t member : members) {
    const LayoutBuffer& buffer = problem.buffers[member];
    if (buffer.size == 0) continue;
    events.emplace_back(buffer.lower, member);
    events.emplace_back(buffer.upper, ~member);
  }
  std::sort(events.begin(), events.end());
  std::multiset<int64_t> sizes;
  const size_t begin = pieces.size();
  for (size_t e = 0; e < events.size(); ++e) {
    const int32_t member = events[e].second;
    if (member >= 0) {
      sizes.insert(problem.buffers[member].size);
    } else {
      sizes.erase(sizes.find(problem.buffers[~member].size));
    }
    if (e + 1 == events.size() || events[e + 1].first == events[e].first || sizes.empty()) continue;
    const int64_t size = *sizes.rbegin();
    if (pieces.size() > begin && pieces.back().upper == events[e].first && pieces.back().size == size) {
      pieces.back().upper = events[e + 1].first;
    } else {
      pieces.push_back({events[e].first, events[e + 1].first, size, item});
    }
  }
}

// One section for every set of pieces live together that no other such set contains: the last start before some end.
// Fills first and last of every piece.
int32_t MakeSections(const std::vector<RawPiece>& raw, std::vector<LayoutPiece>& pieces) {
  std::vector<int64_t> starts, ends;
  starts.reserve(raw.size());
  ends.reserve(raw.size());
  for (const RawPiece& piece : raw) {
    starts.push_back(piece.lower);
    ends.push_back(piece.upper);
  }
  std::sort(starts.begin(), starts.end());
  std::sort(ends.begin(), ends.end());
  std::vector<int64_t> section_times;
  size_t s = 0;
  for (const int64_t end : ends) {
    const size_t before = s;
    while (s < starts.size() && starts[s] < end) ++s;
    if (s > before) section_times.push_back(starts[s - 1]);
  }
  const auto rank = [&](int64_t time) {
    return static_cast<int32_t>(std::lower_bound(section_times.begin(), section_times.end(), time) - section_times.begin());
  };
  pieces.resize(raw.size());
  for (size_t p = 0; p < raw.size(); ++p) pieces[p] = {rank(raw[p].lower), rank(raw[p].upper), raw[p].size};
  return static_cast<int32_t>(section_times.size());
}

void MakeLoads(LayoutItems& items) {
  items.loads.assign(items.section_count + 1, 0);
  for (const LayoutPiece& piece : items.pieces) {
    items.loads[piece.first] += piece.size;
    items.loads[piece.last] -= piece.size;
  }
  std::partial_sum(items.loads.begin(), items.loads.end(), items.loads.begin());
  items.loads.pop_back();
}

// The bound of LowerBound() (layout_problem.h).
int64_t MakeLowerBound(const LayoutItems& items) {
  int64_t bound = items.loads.empty() ? 0 : *std::max_element(items.loads.begin(), items.loads.end());
  int64_t common = 0;
  for (const LayoutItem& item : items.items) {
    common = std::gcd(common, item.alignment);
    if (item.fixed_offset >= 0 && item.size > 0) bound = std::max(bound, item.fixed_offset + item.size);
  }
  if (common <= 1) return bound;
  std::vector<int32_t> by_first(items.pieces.size());
  std::iota(by_first.begin(), by_first.end(), 0);
  std::sort(by_first.begin(), by_first.end(),
            [&](int32_t a, int32_t b) { return items.pieces[a].first < items.pieces[b].first; });
  const auto padding = [&](const LayoutPiece& piece) { return (common - piece.size % common) % common; };
  std::vector<int64_t> padded(items.section_count + 1, 0);
  for (const LayoutPiece& piece : items.pieces) {
    padded[piece.first] += piece.size + padding(piece);
    padded[piece.last] -= piece.size + padding(piece);
  }
  std::priority_queue<std::pair<int64_t, int32_t>> paddings;  // (padding, last) of pieces begun, finished ones dropped late
  int64_t load = 0;
  size_t next = 0;
  for (int32_t section = 0; section < items.section_count; ++section) {
    load += padded[section];
    for (; next < by_first.size() && items.pieces[by_first[next]].first == section; ++next) {
      const LayoutPiece& piece = items.pieces[by_first[next]];
      paddings.emplace(padding(piece), piece.last);
    }
    while (!paddings.empty() && paddings.top().second <= section) paddings.pop();
    if (!paddings.empty()) bound = std::max(bound, load - paddings.top().first);
  }
  return bound;
}

}  // namespace

LayoutItems MakeLayoutItems(const LayoutProblem& problem) {
  LayoutItems result;
  const auto count = static_cast<int32_t>(problem.buffers.size());
  result.item_of_buffer.assign(count, -1);
  std::unordered_map<int32_t, int32_t> item_of_group;
  std::vector<std::vector<int32_t>> members;  // of each group
  std::vector<int32_t> group_of_item;         // index into members, -1: a buffer alone
  std::vector<int32_t> buffer_of_item;
  for (int32_t i = 0; i < count; ++i) {
    const LayoutBuffer& buffer = problem.buffers[i];
    if (buffer.alias_group < 0) {
      if (buffer.size == 0) continue;
      result.item_of_buffer[i] = static_cast<int32_t>(result.items.size());
      result.items.push_back({0, 0, 0, 0, 0, buffer.alignment, buffer.fixed_offset.value_or(-1)});
      group_of_item.push_back(-1);
      buffer_of_item.push_back(i);
      continue;
    }
    const auto [entry, is_new] = item_of_group.try_emplace(buffer.alias_group, static_cast<int32_t>(result.items.size()));
    if (is_new) {
      result.items.push_back({0, 0, 0, 0, 0, 1, -1});
      group_of_item.push_back(static_cast<int32_t>(members.size()));
      buffer_of_item.push_back(-1);
      members.emplace_back();
    }
    LayoutItem& item = result.items[entry->second];
    item.alignment = std::lcm(item.alignment, buffer.alignment);
    if (buffer.fixed_offset) item.fixed_offset = *buffer.fixed_offset;
    members[group_of_item[entry->second]].push_back(i);
    result.item_of_buffer[i] = entry->second;
  }

  std::vector<RawPiece> raw;
  raw.reserve(result.items.size());
  for (size_t i = 0; i < result.items.size(); ++i) {
    result.items[i].piece_begin = static_cast<int32_t>(raw.size());
    if (group_of_item[i] < 0) {
      const LayoutBuffer& buffer = problem.buffers[buffer_of_item[i]];
      raw.push_back({buffer.lower, buffer.upper, buffer.size, static_cast<int32_t>(i)});
    } else {
      AppendGroupPieces(problem, members[group_of_item[i]], static_cast<int32_t>(i), raw);
    }
    result.items[i].piece_end = static_cast<int32_t>(raw.size());
  }
  result.section_count = MakeSections(raw, result.pieces);
  for (LayoutItem& item : result.items) {
    item.first = item.piece_begin == item.piece_end ? 0 : std::numeric_limits<int32_t>::max();
    for (const LayoutPiece& piece : result.PiecesOf(item)) {
      item.first = std::min(item.first, piece.first);
      item.last = std::max(item.last, piece.last);
      item.size = std::max(item.size, piece.size);
    }
    result.all_rectangles = result.all_rectangles && item.is_rectangle();
    result.has_fixed = result.has_fixed || item.fixed_offset >= 0;
    result.has_alignment = result.has_alignment || item.alignment > 1;
  }
  MakeLoads(result);
  result.lower_bound = MakeLowerBound(result);
  return result;
}

}  // namespace gantry
