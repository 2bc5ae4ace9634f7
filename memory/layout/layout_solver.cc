#include "memory/layout/layout_solver.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "memory/layout/layout_check.h"
#include "memory/layout/layout_greedy.h"
#include "memory/layout/layout_items.h"
#include "memory/layout/layout_placed.h"
#include "memory/layout/layout_repair.h"
#include "memory/layout/layout_search.h"
#include "memory/layout/layout_skyline.h"
#include "memory/status.h"

namespace gantry {
namespace {

constexpr std::pair<GreedyOrder, GreedyFit> kGreedyPortfolio[] = {
    {GreedyOrder::kLoad, GreedyFit::kFirst},     {GreedyOrder::kDuration, GreedyFit::kBest},
    {GreedyOrder::kSize, GreedyFit::kFirst},     {GreedyOrder::kArea, GreedyFit::kBest},
    {GreedyOrder::kLoad, GreedyFit::kBest},      {GreedyOrder::kDuration, GreedyFit::kFirst},
    {GreedyOrder::kSize, GreedyFit::kBest},      {GreedyOrder::kArea, GreedyFit::kFirst},
    {GreedyOrder::kStart, GreedyFit::kFirst},    {GreedyOrder::kEnd, GreedyFit::kFirst},
    {GreedyOrder::kStart, GreedyFit::kBest},     {GreedyOrder::kEnd, GreedyFit::kBest}};

// The best layout so far and what may still be spent.
class Attempt {
 public:
  Attempt(const LayoutItems& items, const LayoutOptions& options)
      : items_(items),
        options_(options),
        goal_(std::max(items.lower_bound, std::min(options.capacity.value_or(0), kLayoutMaxBytes))),
        deadline_(options.time_limit ? absl::Now() + *options.time_limit : absl::InfiniteFuture()) {}

  // Nothing left to do, or nothing to do it with.
  bool done() const {
    return best_.height <= std::max(goal_, lower_bound_) || work_ >= options_.work_limit || rest_is_not_worth_it() || past_deadline();
  }

  // Of many items, for which it takes a small part of one of the passes below; what it leaves above the bound is repaired.
  void TrySkyline() {
    if (!many_ || !items_.all_rectangles || items_.has_fixed) return;
    GreedyResult result = PlaceOnSkyline(items_, work_);
    best_.offsets = std::move(result.offsets);
    best_.height = result.height;
    best_.method = "skyline";
  }

  // Greedy orders, each followed by passes in which the items that ended too high go first, "squeaky wheel optimization"
  // (Joslin, Clements, J. Artificial Intelligence Research 10, 1999).
  void TryGreedyOrders() {
    for (const auto& [order, fit] : std::span(kGreedyPortfolio).subspan(many_ ? 1 : 0)) {
      std::vector<int32_t> sequence = MakeGreedyOrder(items_, order);
      for (int pass = 0; pass < kPassesPerOrder; ++pass) {
        if (!best_.offsets.empty() && (done() || many_)) return;
        GreedyResult result = PlaceGreedily(items_, sequence, fit, work_);
        if (pass + 1 < kPassesPerOrder) PromoteHighItems(result, sequence);
        if (pass == 0) greedy_offsets_.push_back(result.offsets);
        if (result.height >= best_.height) continue;
        best_.offsets = std::move(result.offsets);
        best_.height = result.height;
        best_.method = absl::StrCat("greedy ", ToAbsl(GreedyOrderName(order)),
                                    fit == GreedyFit::kBest ? " best-fit" : " first-fit");
        if (pass > 0) absl::StrAppend(&best_.method, " pass ", pass + 1);
      }
    }
  }

  // Repairs and exact searches in turn, each round with twice the work. Neither is the better one: search settles tight problems
  // of some hundred items in milliseconds, repair brings problems of a few large and many small items near their bound;
  // it gets less where it did not help.
  void Improve() {
    std::optional<LayoutSearch> search;
    const size_t count = items_.items.size();
    if (options_.exact_search && count <= LayoutSearch::kMaxItems) search.emplace(items_, options_.seed);
    // Only to look at many items takes so long that each repair gets all the work there is.
    for (int64_t share = many_ ? options_.work_limit : kFirstShare; !done(); share *= 2) {
      const int64_t work = work_;
      if (search && search_least_ < best_.height) SearchFor(std::max(goal_, search_least_), work_ + share, *search);
      const int64_t height = best_.height;
      const int64_t repair_share = repair_pays_ || !search ? share / kRepairsPerRound : share / 8;
      for (int i = 0; i < kRepairsPerRound && !done(); ++i) Repair(work_ + repair_share);
      repair_pays_ = best_.height < height;
      if (search && !done()) SearchBetween(share / (options_.capacity ? 32 : 8), *search);
      if (work_ == work) return;  // the search finds nothing lower, and nothing can be moved
    }
  }

  // The best layout, its offsets given to buffers instead of items.
  Layout TakeLayout() {
    Layout layout = std::move(best_);
    std::vector<int64_t> offsets;
    offsets.reserve(items_.item_of_buffer.size());
    for (const int32_t item : items_.item_of_buffer) offsets.push_back(item < 0 ? 0 : layout.offsets[item]);
    layout.offsets = std::move(offsets);
    layout.lower_bound = lower_bound_;
    layout.optimal = layout.height == layout.lower_bound;
    layout.work = work_;
    return layout;
  }

 private:
  static constexpr int kPassesPerOrder = 3;
  static constexpr int64_t kFirstShare = 20'000'000;  // units of work
  static constexpr int kRepairsPerRound = 2;

  bool rest_is_not_worth_it() const {
    if (!options_.work_per_byte || options_.capacity) return false;
    return static_cast<double>(work_) >= static_cast<double>(*options_.work_per_byte) * static_cast<double>(best_.height - lower_bound_);
  }

  bool past_deadline() const { return options_.time_limit && absl::Now() >= deadline_; }

  // Moves the items that end well above the goal to a tenth of their place in the sequence.
  void PromoteHighItems(const GreedyResult& result, std::vector<int32_t>& sequence) const {
    const int64_t close = goal_ + goal_ / 1024;
    const int64_t limit = result.height > close ? close : goal_;
    std::vector<std::pair<double, int32_t>> places;
    places.reserve(sequence.size());
    for (size_t i = 0; i < sequence.size(); ++i) {
      const int32_t item = sequence[i];
      const bool high = result.offsets[item] + items_.items[item].size > limit && items_.items[item].fixed_offset < 0;
      places.emplace_back(high ? 0.1 * static_cast<double>(i) - 0.5 : static_cast<double>(i), item);
    }
    // Fixed items stay in front: everything else is placed around them.
    std::stable_sort(places.begin(), places.end(), [&](const auto& a, const auto& b) {
      const bool a_free = items_.items[a.second].fixed_offset < 0, b_free = items_.items[b.second].fixed_offset < 0;
      return std::pair(a_free, a.first) < std::pair(b_free, b.first);
    });
    for (size_t i = 0; i < sequence.size(); ++i) sequence[i] = places[i].second;
  }

  // Repairs the best layout, or in every second call one of the greedy ones, which lie elsewhere.
  void Repair(int64_t work_limit) {
    const bool from_best = ++repair_count_ % 2 != 0 || greedy_offsets_.empty();
    const std::vector<int64_t>& start = from_best ? best_.offsets : greedy_offsets_[repair_count_ / 2 % greedy_offsets_.size()];
    RepairResult result = RepairLayout(items_, start, best_.height, std::max(goal_, lower_bound_), options_.seed + repair_count_,
                                       std::min(work_limit, options_.work_limit), work_, [&] { return past_deadline(); });
    if (!result.complete || result.height >= best_.height) return;
    best_.offsets = std::move(result.offsets);
    best_.height = result.height;
    best_.method = "repair";
  }

  // Halves the distance between what is found and what is not, so that the height sinks or the bound rises.
  void SearchBetween(int64_t share, LayoutSearch& search) {
    int64_t low = search_least_;  // not found below, if only for lack of work
    while (!done() && low < best_.height) {
      const int64_t height = low + (best_.height - low) / 2;
      const SearchOutcome outcome = SearchFor(height, work_ + share, search);
      if (outcome != SearchOutcome::kFound) low = height + 1;
      if (outcome == SearchOutcome::kGaveUp && best_.height - low < best_.height >> 10) return;
    }
  }

  SearchOutcome SearchFor(int64_t height, int64_t work_limit, LayoutSearch& search) {
    const SearchOutcome outcome = search.Find(height, std::min(work_limit, options_.work_limit), work_,
                                              [&] { return past_deadline(); });
    if (outcome == SearchOutcome::kImpossible) lower_bound_ = std::max(lower_bound_, height + 1);
    if (outcome == SearchOutcome::kImpossible || outcome == SearchOutcome::kExhausted) search_least_ = std::max(search_least_, height + 1);
    if (outcome != SearchOutcome::kFound) return outcome;
    best_.offsets = search.offsets();
    best_.height = 0;
    for (size_t i = 0; i < items_.items.size(); ++i) {
      if (items_.items[i].size == 0) continue;
      best_.height = std::max(best_.height, best_.offsets[i] + items_.items[i].size);
    }
    best_.method = "search";
    return outcome;
  }

  const LayoutItems& items_;
  const LayoutOptions& options_;
  const bool many_ = items_.items.size() > PlacedPieces::kFlatPieces;
  const int64_t goal_;
  const absl::Time deadline_;
  Layout best_{.height = std::numeric_limits<int64_t>::max()};
  std::vector<std::vector<int64_t>> greedy_offsets_;  // of every order's first pass
  uint64_t repair_count_ = 0;
  bool repair_pays_ = true;  // lowered the height when tried last
  int64_t lower_bound_ = items_.lower_bound;
  int64_t search_least_ = items_.lower_bound;  // the search finds nothing below: the bound, or more where it is not exact
  int64_t work_ = 0;
};

// kInvalidArgument if two buffers with fixed offsets, their own or their alias group's, collide.
absl::Status CheckFixedOffsets(const LayoutProblem& problem, const LayoutItems& items) {
  if (!items.has_fixed) return absl::OkStatus();
  LayoutProblem fixed;
  std::vector<int64_t> offsets;
  for (size_t i = 0; i < problem.buffers.size(); ++i) {
    const int32_t item = items.item_of_buffer[i];
    if (item < 0 || items.items[item].fixed_offset < 0) continue;
    fixed.buffers.push_back(problem.buffers[i]);
    fixed.names.push_back(problem.Name(i));
    offsets.push_back(items.items[item].fixed_offset);
  }
  return Annotate(CheckLayoutOffsets(fixed, offsets), "fixed offsets");
}

}  // namespace

absl::StatusOr<Layout> SolveLayout(const LayoutProblem& problem, const LayoutOptions& options) {
  GANTRY_RETURN_IF_ERROR(ValidateLayoutProblem(problem));
  const LayoutItems items = MakeLayoutItems(problem);
  GANTRY_RETURN_IF_ERROR(CheckFixedOffsets(problem, items));
  Attempt attempt(items, options);
  attempt.TrySkyline();
  attempt.TryGreedyOrders();
  attempt.Improve();
  Layout layout = attempt.TakeLayout();
  for (size_t i = 0; i < problem.buffers.size(); ++i) {
    if (items.item_of_buffer[i] < 0) layout.offsets[i] = problem.buffers[i].fixed_offset.value_or(0);
  }
  return layout;
}

}  // namespace gantry
