#include "memory/layout/layout_search.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <numeric>
#include <utility>

#include "memory/layout/deep_stack.h"
#include "memory/layout/layout_failed_states.h"

namespace gantry {
namespace {

constexpr int64_t kFar = std::numeric_limits<int64_t>::max() / 4;
constexpr int32_t kNone = -1;

enum class Side { kFloor, kCeiling };
enum class Kind { kLeftEdge, kRightEdge, kPivot };
// Which branch is taken: the one with the fewest choices, that too but rather on a low run, or the lowest run.
enum class Policy { kFewest, kFewestLow, kLowest };

// What one round of the search goes by.
struct Style {
  bool use_floor = true;
  bool use_ceiling = false;
  Policy policy = Policy::kFewest;
  // Choices are tried by falling duration^a * size^b * heaviest load^c.
  double duration_power = 1, size_power = 0, load_power = 0;
  double inner_penalty = 0.3;  // on items that do not lie at the edge
  double fill_bonus = 0;       // on items as long as the run
  double noise = 0;            // added to the number of choices of a branch
  double failure_weight = 0.02;
};

// Where to branch: on run [begin, end) of one side.
struct Branch {
  Side side = Side::kFloor;
  Kind kind = Kind::kLeftEdge;
  int32_t begin = 0;
  int32_t end = 0;
  int32_t pivot = 0;
  int32_t count = std::numeric_limits<int32_t>::max();  // choices
  double score = std::numeric_limits<double>::max();
  int64_t left_wall = 0;   // how far the run can be raised on either side
  int64_t right_wall = 0;
};

struct Choice {
  int32_t item;  // kNone: raise the whole run
  double rank;   // smaller is tried first
};

}  // namespace

class LayoutSearch::Impl {
 public:
  Impl(const LayoutItems& source, uint64_t seed) : source_(source), random_(MixBits(seed + 1)) {
    exact_ = source.all_rectangles;
    for (size_t i = 0; i < source.items.size(); ++i) {
      const LayoutItem& item = source.items[i];
      if (item.piece_begin == item.piece_end) continue;
      if (item.fixed_offset >= 0) {
        exact_ = false;
      } else {
        index_.push_back(static_cast<int32_t>(i));
      }
    }
    // Identical items become neighbours: each is placed only after the one before it. Of items of one stretch of time the
    // larger comes first, as under every order that choices are tried in.
    std::sort(index_.begin(), index_.end(), [&](int32_t a, int32_t b) {
      const LayoutItem& x = source.items[a];
      const LayoutItem& y = source.items[b];
      return std::tuple(x.first, x.last, -x.size, x.alignment, a) < std::tuple(y.first, y.last, -y.size, y.alignment, b);
    });
    sections_ = source.section_count;
    for (const int32_t index : index_) items_.push_back(MakeItem(source.items[index]));
    const auto count = static_cast<int32_t>(items_.size());
    next_twin_.assign(count, kNone);
    is_twin_.assign(count, false);
    for (int32_t i = 1; i < count; ++i) {
      const Item& a = items_[i - 1];
      const Item& b = items_[i];
      if (std::tie(a.first, a.last, a.size, a.alignment) != std::tie(b.first, b.last, b.size, b.alignment)) continue;
      next_twin_[i - 1] = i;
      is_twin_[i] = true;
    }
    // Which items stand on which only matters to what may follow, so only where there is another of the same stretch.
    stacked_key_.assign(count, 0);
    for (int32_t i = 0; i < count; ++i) {
      const bool has_elder = i > 0 && items_[i - 1].first == items_[i].first && items_[i - 1].last == items_[i].last;
      if (has_elder) stacked_key_[i] = MixBits(items_[i].key);
    }
    words_ = (count + 63) / 64;
    covers_.assign(static_cast<size_t>(sections_) * words_, 0);
    starts_from_.assign(static_cast<size_t>(sections_ + 1) * words_, 0);
    ends_by_.assign(static_cast<size_t>(sections_ + 1) * words_, 0);
    starting_.resize(sections_);
    ending_.resize(sections_ + 1);
    for (int32_t i = 0; i < count; ++i) {
      const uint64_t bit = uint64_t{1} << (i & 63);
      for (int32_t t = items_[i].first; t < items_[i].last; ++t) covers_[t * words_ + i / 64] |= bit;
      for (int32_t t = 0; t <= items_[i].first; ++t) starts_from_[t * words_ + i / 64] |= bit;
      for (int32_t t = items_[i].last; t <= sections_; ++t) ends_by_[t * words_ + i / 64] |= bit;
      starting_[items_[i].first].push_back(i);
      ending_[items_[i].last].push_back(i);
    }
    weights_.assign(sections_, 0);
  }

  SearchOutcome Find(int64_t height, int64_t work_limit, int64_t& work, const std::function<bool()>& stop) {
    work_ = &work;
    stop_ = &stop;
    if (height != height_) {
      failed_.Clear();
      round_ = 0;
    }
    height_ = height;
    while (true) {
      if (!Reset()) return exact_ ? SearchOutcome::kImpossible : SearchOutcome::kExhausted;
      BeginRound(round_++);
      round_limit_ = work_limit;
      out_of_work_ = false;
      const bool found = Solve(0, sections_);
      if (found) {
        SaveOffsets();
        return SearchOutcome::kFound;
      }
      if (!out_of_work_) return exact_ ? SearchOutcome::kImpossible : SearchOutcome::kExhausted;
      if (*work_ >= work_limit || stop()) return SearchOutcome::kGaveUp;
    }
  }

  const std::vector<int64_t>& offsets() const { return found_offsets_; }

 private:
  static constexpr int64_t kRoundNodes = 200, kRoundNodesPerItem = 6;
  static constexpr double kForgetting = 0.9;  // what is left of a failure's weight after a round

  struct Item {
    int32_t first, last;
    int64_t size, alignment;
    uint64_t key;
    double heaviest_load;  // of its sections, as a part of the lower bound
  };
  struct Cell {
    int64_t floor, ceiling;
    int64_t rest;        // bytes still to be placed here
    int32_t floor_item;  // what the floor is the top of; kNone after raising
    int32_t ceiling_item;
    int32_t crossing;  // unplaced items live both here and in the next section
    uint64_t key;      // of the unplaced items live here
    int64_t slack() const { return ceiling - floor - rest; }
  };
  // Where an unplaced item can still go: not below the highest floor nor above the lowest ceiling of its sections.
  struct Range {
    int64_t floor, ceiling;
  };
  // What Undo puts back: a level of a cell, an item's range, or (both kNone) an item to be taken out.
  enum class What : uint8_t { kLevel, kRange, kItem };
  struct Change {
    What what;
    Side side;
    int32_t cell;
    int32_t item;
    int64_t level;
  };

  // Every round goes by another style, drawn by chance: how long a search takes varies by orders of magnitude, and a portfolio
  // of short ones rarely misses all the quick answers (Gomes, Selman, Crato, Kautz, J. Automated Reasoning 24, 2000). Lengths
  // follow Luby, Sinclair, Zuckerman (Inf. Process. Lett. 47, 1993).
  void BeginRound(int64_t round) {
    style_ = Style{};
    style_.use_floor = round % 2 == 0;
    style_.use_ceiling = !style_.use_floor;
    if (round % 8 == 5) style_.use_floor = style_.use_ceiling = true;
    if (round > 1) {
      style_.policy = Draw({Policy::kFewest, Policy::kFewestLow, Policy::kFewest, Policy::kFewestLow, Policy::kLowest});
      style_.duration_power = Draw({0.5, 1.0, 1.5});
      style_.size_power = Draw({0.0, 0.0, 0.0, 0.5, 1.0});
      style_.load_power = Draw({0.0, 4.0, 8.0, 12.0});
      style_.inner_penalty = Draw({0.0, 0.3, 0.3, 0.3, 1.0});
      style_.fill_bonus = Draw({0.0, 0.5, 10.0});
      style_.noise = Draw({0.5, 1.0, 2.0, 4.0});
      style_.failure_weight = Draw({0.0, 0.02, 0.1, 0.5});
    }
    for (double& weight : weights_) weight *= kForgetting;
    ranks_.resize(items_.size());
    for (size_t i = 0; i < items_.size(); ++i) {
      const Item& item = items_[i];
      ranks_[i] = -std::pow(static_cast<double>(item.last - item.first) / sections_, style_.duration_power) *
                  std::pow(static_cast<double>(item.size) / static_cast<double>(height_), style_.size_power) *
                  std::pow(item.heaviest_load, style_.load_power);
    }
    round_nodes_ = (kRoundNodes + kRoundNodesPerItem * static_cast<int64_t>(items_.size())) * LubyTerm(round + 1);
  }

  template <typename T>
  T Draw(std::initializer_list<T> values) {
    return values.begin()[NextRandom() % values.size()];
  }

  // 1 1 2 1 1 2 4 1 1 2 1 1 2 4 8 ..., counted from 1.
  static int64_t LubyTerm(int64_t index) {
    while (true) {
      const auto power = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(index + 1)));
      if (power == index + 1) return power / 2;
      index -= power / 2 - 1;
    }
  }

  Item MakeItem(const LayoutItem& item) {
    const int64_t heaviest = *std::max_element(source_.loads.begin() + item.first, source_.loads.begin() + item.last);
    return {item.first, item.last, item.size, item.alignment, NextRandom() | 1,
            static_cast<double>(heaviest) / static_cast<double>(std::max<int64_t>(1, source_.lower_bound))};
  }

  uint64_t NextRandom() { return MixBits(random_ += 0x9e3779b97f4a7c15ULL); }
  double Uniform() { return static_cast<double>(NextRandom() >> 11) * 0x1.0p-53; }

  // The state before anything is placed; false if the loads alone show that nothing fits.
  bool Reset() {
    changes_.clear();
    offsets_.assign(items_.size(), kNone);
    unplaced_.assign(words_, 0);
    ranges_.assign(items_.size(), Range{0, height_});
    contradiction_ = false;
    available_.assign(words_, 0);
    cells_.assign(sections_, Cell{0, height_, 0, kNone, kNone, 0, 0});
    for (const LayoutItem& item : source_.items) {
      if (item.fixed_offset < 0) continue;
      for (int32_t t = item.first; t < item.last; ++t) {
        cells_[t].floor = std::max(cells_[t].floor, item.fixed_offset + item.size);
      }
    }
    for (size_t i = 0; i < items_.size(); ++i) {
      const Item& item = items_[i];
      unplaced_[i / 64] |= uint64_t{1} << (i & 63);
      for (int32_t t = item.first; t < item.last; ++t) ranges_[i].floor = std::max(ranges_[i].floor, cells_[t].floor);
      if (!is_twin_[i]) available_[i / 64] |= uint64_t{1} << (i & 63);
      for (int32_t t = item.first; t < item.last; ++t) {
        cells_[t].rest += item.size;
        cells_[t].key ^= item.key;
        cells_[t].crossing += t + 1 < item.last;
      }
    }
    return std::all_of(cells_.begin(), cells_.end(), [](const Cell& cell) { return cell.slack() >= 0; });
  }

  void SaveOffsets() {
    found_offsets_.assign(source_.items.size(), 0);
    for (size_t i = 0; i < source_.items.size(); ++i) {
      found_offsets_[i] = std::max<int64_t>(0, source_.items[i].fixed_offset);
    }
    for (size_t i = 0; i < items_.size(); ++i) found_offsets_[index_[i]] = offsets_[i];
  }

  // Places everything left in sections [begin, end), or changes nothing and returns false.
  bool Solve(int32_t begin, int32_t end) {
    std::vector<std::pair<int32_t, int32_t>> parts;
    for (int32_t t = begin; t < end;) {
      const int32_t part_begin = t;
      while (t + 1 < end && cells_[t].crossing > 0) ++t;
      ++t;
      if (cells_[part_begin].rest > 0) parts.emplace_back(part_begin, t);
    }
    *work_ += end - begin;
    if (parts.size() == 1) return SolvePart(parts[0].first, parts[0].second);
    std::sort(parts.begin(), parts.end(),
              [](const auto& a, const auto& b) { return a.second - a.first < b.second - b.first; });
    const size_t mark = changes_.size();
    for (const auto& [part_begin, part_end] : parts) {
      if (SolvePart(part_begin, part_end)) continue;
      Undo(mark);
      return false;
    }
    return true;
  }

  bool SolvePart(int32_t begin, int32_t end) {
    if (--round_nodes_ <= 0 || *work_ >= round_limit_) out_of_work_ = true;
    if ((round_nodes_ & 1023) == 0 && (*stop_)()) out_of_work_ = true;
    if (out_of_work_) return false;
    const Branch branch = ChooseBranch(begin, end);
    if (branch.count == 0) {
      ++weights_[branch.pivot];
      return false;
    }
    uint64_t low = 0, high = 0;
    if (branch.count > 1) {
      HashState(begin, end, low, high);
      if (failed_.Contains(low, high)) return false;
    }
    const std::vector<Choice> choices = ListChoices(branch);
    for (const Choice& choice : choices) {
      const size_t mark = changes_.size();
      Apply(branch, choice.item);
      if (!contradiction_ && Solve(begin, end)) return true;
      Undo(mark);
      if (out_of_work_) return false;
    }
    ++weights_[branch.pivot];
    if (branch.count > 1) failed_.Insert(low, high);
    return false;
  }

  void HashState(int32_t begin, int32_t end, uint64_t& low, uint64_t& high) const {
    low = MixBits(begin * 0x10001ULL + 7);
    high = MixBits(end * 0x20003ULL + 3);
    for (int32_t t = begin; t < end; ++t) {
      const Cell& cell = cells_[t];
      low = (low ^ (cell.key + static_cast<uint64_t>(cell.floor))) * 0x9e3779b97f4a7c15ULL;
      if (cell.floor_item != kNone) low += stacked_key_[cell.floor_item];
      if (cell.ceiling_item != kNone) high += stacked_key_[cell.ceiling_item];
      low ^= low >> 29;
      high = (high ^ (cell.key * 3 + static_cast<uint64_t>(cell.ceiling) * 0x85ebca6bULL +
                      static_cast<uint64_t>(cell.floor) * 0xc2b2ae35ULL)) * 0xff51afd7ed558ccdULL;
      high ^= high >> 31;
    }
  }

  // -- Choosing where to branch --

  // A level such that higher means less room, on either side.
  int64_t Level(Side side, int32_t t) const { return side == Side::kFloor ? cells_[t].floor : height_ - cells_[t].ceiling; }

  Branch ChooseBranch(int32_t begin, int32_t end) {
    Branch best;
    best.pivot = begin;
    *work_ += 4 * (end - begin);
    for (const Side side : {Side::kFloor, Side::kCeiling}) {
      if (!(side == Side::kFloor ? style_.use_floor : style_.use_ceiling)) continue;
      int64_t left = kFar;
      for (int32_t a = begin; a < end;) {
        const int64_t level = Level(side, a);
        int32_t b = a + 1;
        while (b < end && Level(side, b) == level) ++b;
        const int64_t right = b < end ? Level(side, b) : kFar;
        if (left > level && right > level) {
          ConsiderRun(side, a, b, left - level, right - level, best);
          if (best.count == 0) return best;
        }
        left = level;
        a = b;
      }
    }
    return best;
  }

  void ConsiderRun(Side side, int32_t a, int32_t b, int64_t left_wall, int64_t right_wall, Branch& best) {
    int64_t least_slack = kFar;
    for (int32_t t = a; t < b; ++t) least_slack = std::min(least_slack, cells_[t].slack());
    const int64_t wall = std::min(left_wall, right_wall);
    if (wall < kFar && wall > least_slack) {
      const int32_t unfilled = FindUnfilled(a, b, wall);
      if (unfilled != kNone) {
        best.count = 0;
        best.pivot = unfilled;
        return;
      }
    }
    const bool may_raise = wall <= least_slack;
    const double level = static_cast<double>(Level(side, a)) / static_cast<double>(std::max<int64_t>(1, height_));
    const auto offer = [&](Kind kind, int32_t pivot, int32_t count) {
      const double score = Score(count, pivot, level) + 1e-3 * (b - a) / sections_;
      if (count == 0 || (best.count != 0 && score < best.score)) {
        best = {side, kind, a, b, pivot, count, score, left_wall, right_wall};
      }
    };
    if (least_slack == 0) {
      const uint64_t* from = &starts_from_[static_cast<size_t>(a) * words_];
      const uint64_t* by = &ends_by_[static_cast<size_t>(b) * words_];
      for (int32_t t = a; t < b; ++t) {
        if (cells_[t].slack() != 0) continue;
        const uint64_t* cover = &covers_[static_cast<size_t>(t) * words_];
        int32_t count = 0;
        for (int32_t w = 0; w < words_; ++w) count += std::popcount(from[w] & by[w] & cover[w] & available_[w]);
        *work_ += words_;
        offer(Kind::kPivot, t, count);
        if (count == 0) return;
      }
    }
    int32_t count = may_raise;
    int64_t slack = kFar;
    for (int32_t t = a; t < b && slack > 0; ++t) {
      for (const int32_t i : starting_[t]) {
        count += IsAvailable(i) && items_[i].last <= b && std::min(left_wall, items_[i].size) * (t > a) <= slack;
      }
      *work_ += 1 + starting_[t].size();
      slack = std::min(slack, cells_[t].slack());
    }
    offer(Kind::kLeftEdge, a, count);
    count = may_raise;
    slack = kFar;
    for (int32_t t = b; t > a && slack > 0; --t) {
      for (const int32_t i : ending_[t]) {
        count += IsAvailable(i) && items_[i].first >= a && std::min(right_wall, items_[i].size) * (t < b) <= slack;
      }
      *work_ += 1 + ending_[t].size();
      slack = std::min(slack, cells_[t - 1].slack());
    }
    offer(Kind::kRightEdge, b - 1, count);
  }

  // Of a branch with `count` choices on a run at `level` of the height; the branch with the least is taken.
  double Score(int32_t count, int32_t pivot, double level) {
    const double noise = style_.noise > 0 ? style_.noise * Uniform() : 0.0;
    const double weight = 1.0 + style_.failure_weight * weights_[pivot];
    switch (style_.policy) {
      case Policy::kFewest:
        return count / weight + noise;
      case Policy::kFewestLow:
        return (count / weight + noise) * (0.2 + level);
      case Policy::kLowest:
        return count <= 1 ? noise : 1 + 1000 * level + noise;
    }
    return 0;
  }

  // A section of run [a, b) that cannot be filled up to the lower neighbour, `wall` above it, or kNone. Whatever reaches out
  // of the run lies above that, so only items within it count.
  int32_t FindUnfilled(int32_t a, int32_t b, int64_t wall) {
    fill_.assign(b - a + 1, 0);
    const uint64_t* from = &starts_from_[static_cast<size_t>(a) * words_];
    const uint64_t* by = &ends_by_[static_cast<size_t>(b) * words_];
    *work_ += words_ + b - a;
    for (int32_t w = 0; w < words_; ++w) {
      for (uint64_t bits = unplaced_[w] & from[w] & by[w]; bits != 0; bits &= bits - 1) {
        const Item& item = items_[64 * w + std::countr_zero(bits)];
        fill_[item.first - a] += item.size;
        fill_[item.last - a] -= item.size;
        ++*work_;
      }
    }
    int64_t fill = 0;
    for (int32_t t = a; t < b; ++t) {
      fill += fill_[t - a];
      if (fill + cells_[t].slack() < std::min(wall, cells_[t].ceiling - cells_[t].floor)) return t;
    }
    return kNone;
  }

  bool IsAvailable(int32_t item) const { return available_[item / 64] >> (item & 63) & 1; }

  // -- Choices --

  std::vector<Choice> ListChoices(const Branch& branch) {
    std::vector<Choice> choices;
    int64_t least_slack = kFar;  // between the edge and the item
    const auto add = [&](int32_t i) {
      if (IsAllowed(branch, i, least_slack)) choices.push_back({i, Rank(branch, i)});
    };
    if (branch.kind == Kind::kPivot) {
      for (int32_t w = 0; w < words_; ++w) {
        uint64_t bits = starts_from_[static_cast<size_t>(branch.begin) * words_ + w] &
                        ends_by_[static_cast<size_t>(branch.end) * words_ + w] &
                        covers_[static_cast<size_t>(branch.pivot) * words_ + w] & available_[w];
        for (; bits != 0; bits &= bits - 1) add(64 * w + std::countr_zero(bits));
      }
    } else if (branch.kind == Kind::kLeftEdge) {
      for (int32_t t = branch.begin; t < branch.end && least_slack > 0; ++t) {
        for (const int32_t i : starting_[t]) {
          if (IsAvailable(i) && items_[i].last <= branch.end) add(i);
        }
        least_slack = std::min(least_slack, cells_[t].slack());
      }
    } else {
      for (int32_t t = branch.end; t > branch.begin && least_slack > 0; --t) {
        for (const int32_t i : ending_[t]) {
          if (IsAvailable(i) && items_[i].first >= branch.begin) add(i);
        }
        least_slack = std::min(least_slack, cells_[t - 1].slack());
      }
    }
    std::stable_sort(choices.begin(), choices.end(), [](const Choice& a, const Choice& b) { return a.rank < b.rank; });
    if (branch.kind != Kind::kPivot) {
      least_slack = kFar;
      for (int32_t t = branch.begin; t < branch.end; ++t) least_slack = std::min(least_slack, cells_[t].slack());
      if (std::min(branch.left_wall, branch.right_wall) <= least_slack) choices.push_back({kNone, 0});
    }
    *work_ += 20 * choices.size() + branch.end - branch.begin;
    return choices;
  }

  // The offset of `item` on the run.
  int64_t OffsetOn(const Branch& branch, int32_t item) const {
    const Item& it = items_[item];
    if (branch.side == Side::kFloor) {
      const int64_t floor = cells_[it.first].floor;
      return it.alignment == 1 ? floor : (floor + it.alignment - 1) / it.alignment * it.alignment;
    }
    const int64_t offset = cells_[it.first].ceiling - it.size;
    return it.alignment == 1 ? offset : offset - offset % it.alignment;
  }

  // What lies empty between the run and `item` because of alignment.
  int64_t PaddingOn(const Branch& branch, int32_t item) const {
    const int64_t offset = OffsetOn(branch, item);
    return branch.side == Side::kFloor ? offset - cells_[items_[item].first].floor
                                       : cells_[items_[item].first].ceiling - items_[item].size - offset;
  }

  // `least_slack`: of the sections of the run that lie between its edge and the item, which would be raised.
  bool IsAllowed(const Branch& branch, int32_t i, int64_t least_slack) const {
    const Item& item = items_[i];
    const int64_t padding = PaddingOn(branch, i);
    if (padding > 0) {
      for (int32_t t = item.first; t < item.last; ++t) {
        if (cells_[t].slack() < padding) return false;
      }
    } else {
      // Of two items stacked on the same stretch of time only one order is tried.
      const Cell& cell = cells_[item.first];
      const int32_t below = branch.side == Side::kFloor ? cell.floor_item : cell.ceiling_item;
      if (below > i && items_[below].first == item.first && items_[below].last == item.last &&
          items_[below].alignment == 1 && item.alignment == 1) {
        return false;
      }
    }
    if (branch.kind == Kind::kLeftEdge) return std::min(branch.left_wall, padding + item.size) <= least_slack;
    if (branch.kind == Kind::kRightEdge) return std::min(branch.right_wall, padding + item.size) <= least_slack;
    return true;
  }

  double Rank(const Branch& branch, int32_t i) const {
    const Item& item = items_[i];
    double rank = ranks_[i];
    if (branch.kind == Kind::kLeftEdge && item.first > branch.begin) rank += style_.inner_penalty;
    if (branch.kind == Kind::kRightEdge && item.last < branch.end) rank += style_.inner_penalty;
    if (item.first == branch.begin && item.last == branch.end) rank -= style_.fill_bonus;
    return rank;
  }

  // -- Changing the state --

  void Apply(const Branch& branch, int32_t i) {
    if (i == kNone) {
      Raise(branch, branch.begin, branch.end, std::min(branch.left_wall, branch.right_wall));
      return;
    }
    const Item& item = items_[i];
    const int64_t offset = OffsetOn(branch, i);
    const int64_t step = PaddingOn(branch, i) + item.size;
    offsets_[i] = offset;
    for (int32_t t = item.first; t < item.last; ++t) {
      Cell& cell = cells_[t];
      SetLevel(branch.side, t, branch.side == Side::kFloor ? cell.floor + step : cell.ceiling - step, i);
      cell.rest -= item.size;
      cell.key ^= item.key;
      cell.crossing -= t + 1 < item.last;
    }
    available_[i / 64] &= ~(uint64_t{1} << (i & 63));
    if (next_twin_[i] != kNone) available_[next_twin_[i] / 64] |= uint64_t{1} << (next_twin_[i] & 63);
    unplaced_[i / 64] &= ~(uint64_t{1} << (i & 63));
    changes_.push_back({What::kItem, branch.side, kNone, i, 0});
    Tighten(branch.side, item.first, item.last);
    if (branch.kind == Kind::kLeftEdge) Raise(branch, branch.begin, item.first, std::min(branch.left_wall, step));
    if (branch.kind == Kind::kRightEdge) Raise(branch, item.last, branch.end, std::min(branch.right_wall, step));
    *work_ += 4 * (item.last - item.first);
  }

  void Raise(const Branch& branch, int32_t begin, int32_t end, int64_t step) {
    for (int32_t t = begin; t < end; ++t) {
      const Cell& cell = cells_[t];
      SetLevel(branch.side, t, branch.side == Side::kFloor ? cell.floor + step : cell.ceiling - step, kNone);
    }
    *work_ += 2 * (end - begin);
    if (begin < end) Tighten(branch.side, begin, end);
  }

  // Updates the ranges of the unplaced items live in [begin, end), whose sections have one level. Notes a contradiction where
  // an item no longer fits its range.
  void Tighten(Side side, int32_t begin, int32_t end) {
    const int64_t floor = cells_[begin].floor;
    const int64_t ceiling = cells_[begin].ceiling;
    const uint64_t* ended = &ends_by_[static_cast<size_t>(begin) * words_];
    const uint64_t* later = &starts_from_[static_cast<size_t>(end) * words_];
    for (int32_t w = 0; w < words_; ++w) {
      for (uint64_t bits = unplaced_[w] & ~ended[w] & ~later[w]; bits != 0; bits &= bits - 1) {
        const int32_t i = 64 * w + std::countr_zero(bits);
        Range& range = ranges_[i];
        ++*work_;
        if (side == Side::kFloor) {
          if (range.floor >= floor) continue;
          changes_.push_back({What::kRange, side, kNone, i, range.floor});
          range.floor = floor;
        } else {
          if (range.ceiling <= ceiling) continue;
          changes_.push_back({What::kRange, side, kNone, i, range.ceiling});
          range.ceiling = ceiling;
        }
        contradiction_ = contradiction_ || range.floor + items_[i].size > range.ceiling;
      }
    }
    *work_ += words_;
  }

  void SetLevel(Side side, int32_t t, int64_t level, int32_t item) {
    Cell& cell = cells_[t];
    if (side == Side::kFloor) {
      changes_.push_back({What::kLevel, side, t, cell.floor_item, cell.floor});
      cell.floor = level;
      cell.floor_item = item;
    } else {
      changes_.push_back({What::kLevel, side, t, cell.ceiling_item, cell.ceiling});
      cell.ceiling = level;
      cell.ceiling_item = item;
    }
  }

  void Undo(size_t mark) {
    while (changes_.size() > mark) {
      const Change change = changes_.back();
      changes_.pop_back();
      if (change.what == What::kItem) {
        TakeOut(change.item);
      } else if (change.what == What::kRange) {
        (change.side == Side::kFloor ? ranges_[change.item].floor : ranges_[change.item].ceiling) = change.level;
      } else if (change.side == Side::kFloor) {
        cells_[change.cell].floor = change.level;
        cells_[change.cell].floor_item = change.item;
      } else {
        cells_[change.cell].ceiling = change.level;
        cells_[change.cell].ceiling_item = change.item;
      }
    }
    contradiction_ = false;
  }

  void TakeOut(int32_t i) {
    const Item& item = items_[i];
    for (int32_t t = item.first; t < item.last; ++t) {
      cells_[t].rest += item.size;
      cells_[t].key ^= item.key;
      cells_[t].crossing += t + 1 < item.last;
    }
    offsets_[i] = kNone;
    unplaced_[i / 64] |= uint64_t{1} << (i & 63);
    available_[i / 64] |= uint64_t{1} << (i & 63);
    if (next_twin_[i] != kNone) available_[next_twin_[i] / 64] &= ~(uint64_t{1} << (next_twin_[i] & 63));
  }

  const LayoutItems& source_;
  bool exact_ = true;
  int32_t sections_ = 0;
  int32_t words_ = 0;             // of a set of items
  std::vector<int32_t> index_;    // of items_ in source_.items
  std::vector<Item> items_;       // the free ones
  std::vector<int32_t> next_twin_;  // the next identical item
  std::vector<bool> is_twin_;
  std::vector<uint64_t> stacked_key_;  // 0 where what lies below an item does not restrict what follows
  std::vector<uint64_t> covers_, starts_from_, ends_by_;  // sets of items, one a section
  std::vector<std::vector<int32_t>> starting_, ending_;   // items by first and by last section

  int64_t height_ = -1;
  int64_t round_ = 0;  // at this height
  std::vector<Cell> cells_;
  std::vector<uint64_t> available_;  // unplaced items whose twin before them is placed
  std::vector<uint64_t> unplaced_;
  std::vector<Range> ranges_;
  bool contradiction_ = false;
  std::vector<int64_t> fill_;
  std::vector<int64_t> offsets_;
  std::vector<Change> changes_;
  FailedStates failed_;
  std::vector<double> weights_;  // failures seen at each section

  uint64_t random_;
  Style style_;
  std::vector<double> ranks_;  // of items, under style_; the least is tried first
  int64_t round_nodes_ = 0;
  int64_t round_limit_ = 0;
  bool out_of_work_ = false;
  int64_t* work_ = nullptr;
  const std::function<bool()>* stop_ = nullptr;
  std::vector<int64_t> found_offsets_;
};

LayoutSearch::LayoutSearch(const LayoutItems& items, uint64_t seed) : impl_(std::make_unique<Impl>(items, seed)) {}
LayoutSearch::~LayoutSearch() = default;

SearchOutcome LayoutSearch::Find(int64_t height, int64_t work_limit, int64_t& work, const std::function<bool()>& stop) {
  // The search is as deep as there are items, two calls an item: with sanitizers more than a thread's usual 8 MiB hold.
  constexpr size_t kStackBytes = size_t{64} << 20;
  SearchOutcome outcome = SearchOutcome::kGaveUp;
  if (!CallOnDeepStack(kStackBytes, [&] { outcome = impl_->Find(height, work_limit, work, stop); })) work = std::max(work, work_limit);
  return outcome;
}

const std::vector<int64_t>& LayoutSearch::offsets() const { return impl_->offsets(); }

}  // namespace gantry
