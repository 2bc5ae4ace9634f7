#include <algorithm>
#include <deque>
#include <limits>

#include "memory/residency/residency_problem.h"
#include "memory/status.h"

namespace gantry {
namespace {

constexpr int kDeepestRecompute = 4096;
// Memory under a copy out is taken back once the copy should have been done by this much of its own time.
constexpr double kStashSlack = 0.5;

}  // namespace

absl::Status ValidateResidencyProblem(const ResidencyProblem& problem) {
  const int ops = static_cast<int>(problem.ops.size()), items = static_cast<int>(problem.items.size());
  for (int i = 0; i < items; ++i) {
    const ResidencyItem& item = problem.items[i];
    const auto Wrong = [&](std::string_view what) {
      return absl::InvalidArgumentError(absl::StrFormat("residency item %d '%s': %s", i, item.name, what));
    };
    if (item.bytes < 0) return Wrong("negative size");
    if (item.made_by < -1 || item.made_by >= ops) return Wrong("made by an op that does not exist");
    int last = item.made_by;
    for (int use : item.uses) {
      if (use <= last || use >= ops) return Wrong("uses must ascend, follow the making op and exist");
      last = use;
    }
    for (int change : item.changes) {
      if (!std::binary_search(item.uses.begin(), item.uses.end(), change)) return Wrong("a change is not among its uses");
    }
    if (item.wraps && (item.made_by != -1 || !item.kept)) return Wrong("what wraps is there when the step begins and kept");
    if (item.taken_over_by < -1 || item.taken_over_by >= items) return Wrong("taken over by an item that does not exist");
  }
  for (int op = 0; op < ops; ++op) {
    const auto Wrong = [&](std::string_view what) {
      return absl::InvalidArgumentError(absl::StrFormat("residency op %d: %s", op, what));
    };
    if (!(problem.ops[op].seconds >= 0) || problem.ops[op].scratch_bytes < 0) return Wrong("negative cost");
    for (int item : problem.ops[op].reads) {
      if (item < 0 || item >= items || !std::binary_search(problem.items[item].uses.begin(), problem.items[item].uses.end(), op)) {
        return Wrong("reads an item that does not list it among its uses");
      }
    }
    for (int item : problem.ops[op].makes) {
      if (item < 0 || item >= items || problem.items[item].made_by != op) return Wrong("makes an item that is not made by it");
    }
  }
  if (problem.tiers.size() > 32) return absl::InvalidArgumentError("there may be at most 32 tiers");
  for (const ResidencyTier& tier : problem.tiers) {
    if (!(tier.out_bytes_per_second > 0) || !(tier.in_bytes_per_second > 0) || !(tier.latency_seconds >= 0) ||
        !(tier.out_compute_seconds_per_byte >= 0) || !(tier.in_compute_seconds_per_byte >= 0)) {
      return absl::InvalidArgumentError("a tier needs rates above 0, and a latency and costs for compute of at least 0");
    }
  }
  return absl::OkStatus();
}

ResidencyChoice KeepAll(const ResidencyProblem& problem) {
  ResidencyChoice choice;
  choice.reserve(problem.items.size());
  for (const ResidencyItem& item : problem.items) choice.emplace_back(item.uses.size() + 1, Residence::kKeep);
  return choice;
}

ResidencyScheduler::ResidencyScheduler(const ResidencyProblem& problem) : problem_(problem) {}

void ResidencyScheduler::Open(int item, int position, int fetch_tier) {
  states_[item].episode = states_[item].last_episode = static_cast<int>(episodes_.size());
  Episode episode{};
  episode.item = item;
  episode.begin = episode.end = position;
  episode.fetch_tier = fetch_tier;
  episode.stash_tier = episode.issue = episode.done_by = episode.wraps_to = -1;
  episodes_.push_back(episode);
}

void ResidencyScheduler::Touch(int item, int position) {
  Episode& episode = episodes_[states_[item].episode];
  episode.end = std::max(episode.end, position);
}

void ResidencyScheduler::Leave(int item, Residence residence) {
  states_[item].episode = -1;
  states_[item].left_as = residence;
}

bool ResidencyScheduler::InputsUnchanged(int op, int at_op) const {
  for (int item : problem_.ops[op].reads) {
    for (int change : problem_.items[item].changes) {
      if (change >= op && change < at_op) return false;
    }
  }
  return true;
}

// Brings `item` back before the position that comes next, which belongs to op `at_op` of the problem.
bool ResidencyScheduler::Materialize(int item, int at_op, int depth) {
  ItemState& state = states_[item];
  if (state.episode >= 0) return true;
  if (IsTier(state.left_as)) {
    const int tier = TierOf(state.left_as);
    if (state.tier_copy != tier) {
      if (state.last_episode < 0) return false;
      episodes_[state.last_episode].stash_tier = tier;
      state.tier_copy = tier;
    }
    Open(item, static_cast<int>(positions_.size()), tier);
    return true;
  }
  const int op = problem_.items[item].made_by;
  if (state.left_as != Residence::kRecompute || op < 0 || !problem_.ops[op].repeatable || depth > kDeepestRecompute ||
      !problem_.items[item].changes.empty() || !InputsUnchanged(op, at_op)) {
    return false;
  }
  for (int input : problem_.ops[op].reads) {
    if (!Materialize(input, at_op, depth + 1)) return false;
  }
  const int position = static_cast<int>(positions_.size());
  positions_.push_back({op, true, {}});
  for (int input : problem_.ops[op].reads) Touch(input, position);
  for (int made : problem_.ops[op].makes) {
    if (states_[made].episode >= 0 || states_[made].left_as != Residence::kRecompute) continue;
    Open(made, position, -1);
    positions_.back().items.push_back(made);
  }
  return states_[item].episode >= 0;
}

// Positions and episodes without any copy placed yet.
bool ResidencyScheduler::Expand(const ResidencyChoice& choice) {
  positions_.clear();
  episodes_.clear();
  shared_.clear();
  states_.assign(problem_.items.size(), {});
  for (int item = 0; item < static_cast<int>(problem_.items.size()); ++item) {
    const ResidencyItem& it = problem_.items[item];
    const std::vector<Residence>& gaps = choice[item];
    if (it.made_by >= 0) continue;
    if (it.wraps) {
      // Its memory at the end must be that of the beginning: it leaves either always between steps, or never.
      if (gaps.front() != gaps.back()) return false;
      for (Residence gap : gaps) {
        if (gap == Residence::kRecompute || (gap != Residence::kKeep && gap != gaps.front())) return false;
      }
    }
    if (gaps.front() == Residence::kKeep) {
      Open(item, 0, -1);
    } else {
      if (!IsTier(gaps.front())) return false;
      states_[item].left_as = gaps.front();
      states_[item].tier_copy = states_[item].home_tier = TierOf(gaps.front());
    }
  }
  for (int op = 0; op < static_cast<int>(problem_.ops.size()); ++op) {
    const ResidencyOp& it = problem_.ops[op];
    for (int item : it.reads) {
      if (!Materialize(item, op, 0)) return false;
    }
    const int position = static_cast<int>(positions_.size());
    positions_.push_back({op, false, {}});
    for (int item : it.reads) Touch(item, position);
    for (int item : it.makes) Open(item, position, -1);
    for (int item : it.reads) {
      const ResidencyItem& read = problem_.items[item];
      ItemState& state = states_[item];
      if (std::binary_search(read.changes.begin(), read.changes.end(), op)) state.tier_copy = -1;
      ++state.next_use;
    }
    const auto MayLeave = [&](int item) {
      const ResidencyItem& accessed = problem_.items[item];
      const size_t gap = states_[item].next_use;
      const Residence residence = choice[item][gap];
      if (residence == Residence::kKeep) return true;
      const int episode = states_[item].episode;
      Leave(item, residence);
      if (gap < accessed.uses.size() || !accessed.kept) return true;
      // The content must be in the tier when the step ends.
      if (!IsTier(residence)) return false;
      if (states_[item].tier_copy != TierOf(residence)) {
        episodes_[episode].stash_tier = TierOf(residence);
        states_[item].tier_copy = TierOf(residence);
      }
      return true;
    };
    for (int item : it.reads) {
      if (!MayLeave(item)) return false;
    }
    for (int item : it.makes) {
      if (!MayLeave(item)) return false;
    }
  }
  const int last = static_cast<int>(positions_.size()) - 1;
  for (int item = 0; item < static_cast<int>(problem_.items.size()); ++item) {
    if (problem_.items[item].kept && states_[item].episode >= 0) Touch(item, std::max(last, 0));
  }
  // What is taken over in place ends where its successor begins.
  for (Episode& episode : episodes_) {
    const ResidencyItem& item = problem_.items[episode.item];
    if (item.taken_over_by < 0 || item.uses.empty() || episode.stash_tier >= 0) continue;
    const Position& at = positions_[episode.end];
    if (at.again || at.op != item.uses.back() || problem_.items[item.taken_over_by].made_by != at.op) continue;
    if (episode.end > episode.begin) {
      --episode.end;
    } else {
      shared_.push_back({episode.end, item.bytes});
    }
  }
  return true;
}

// Each fetch starts as late as its lane lets it and still be ready, as far as there is room.
void ResidencyScheduler::PlaceFetches() {
  const int count = static_cast<int>(positions_.size());
  start_.assign(count + 1, 0.0);
  bytes_.assign(count + 1, 0);
  for (int p = 0; p < count; ++p) {
    const ResidencyOp& op = problem_.ops[positions_[p].op];
    start_[p + 1] = start_[p] + op.seconds;
    bytes_[p] += op.scratch_bytes;
    if (!positions_[p].again) continue;
    for (int made : op.makes) {
      const std::vector<int>& back = positions_[p].items;
      if (std::find(back.begin(), back.end(), made) == back.end()) bytes_[p] += problem_.items[made].bytes;
    }
  }
  std::vector<int64_t> change(count + 1, 0);
  for (const Episode& episode : episodes_) {
    change[episode.begin] += problem_.items[episode.item].bytes;
    change[std::min(episode.end + 1, count)] -= problem_.items[episode.item].bytes;
  }
  int64_t live = 0;
  for (int p = 0; p < count; ++p) bytes_[p] += live += change[p];
  for (const auto& [position, bytes] : shared_) bytes_[position] -= bytes;

  // When each stash should be through, lane by lane.
  Sort([](const Episode& episode) { return episode.stash_tier >= 0 ? episode.end : -1; }, stashes_);
  std::vector<double> lane(problem_.tiers.size(), 0.0), finish(episodes_.size(), 0.0);
  for (int index : stashes_.episodes) {
    const Episode& episode = episodes_[index];
    const ResidencyTier& tier = problem_.tiers[episode.stash_tier];
    double& free = lane[episode.stash_tier];
    free = std::max(free, start_[episode.end + 1]) + tier.latency_seconds +
           static_cast<double>(problem_.items[episode.item].bytes) / tier.out_bytes_per_second;
    finish[index] = free;
  }
  // Memory under a copy out is held meanwhile, of states into the next step.
  std::vector<int64_t> held(count + 1, 0);
  for (int index : stashes_.episodes) {
    const Episode& episode = episodes_[index];
    const int64_t size = problem_.items[episode.item].bytes;
    const auto Until = [&](double seconds) { return std::upper_bound(start_.begin(), start_.end() - 1, seconds) - start_.begin(); };
    held[episode.end + 1] += size;
    held[std::max<int64_t>(episode.end + 1, Until(finish[index]))] -= size;
    if (finish[index] > start_[count] && problem_.items[episode.item].wraps) {
      held[0] += size;
      held[Until(finish[index] - start_[count])] -= size;
    }
  }
  for (int p = 0; p < count; ++p) {
    held[p + 1] += held[p];
    bytes_[p] += held[p];
  }
  // A fetch begins after the stash before it, if any. Episodes of an item are in order of time.
  std::vector<double> earliest(episodes_.size(), 0.0);
  std::vector<int> earliest_position(episodes_.size(), 0);
  std::vector<int> latest(problem_.items.size(), -1);
  for (int index = 0; index < static_cast<int>(episodes_.size()); ++index) {
    int& before = latest[episodes_[index].item];
    if (before >= 0) {
      earliest_position[index] = episodes_[before].end + 1;
      earliest[index] = finish[before];
    }
    before = index;
  }
  // The fetch that is needed last first.
  Sort([](const Episode& episode) { return episode.fetch_tier >= 0 ? episode.begin : -1; }, needs_);
  // Just in time first, then a quarter of its time early where there is still room, for machines are not exact: what would be early must
  // not take the room of what would be late.
  for (const double early : {1.0, 1.25}) {
    std::vector<double> next(problem_.tiers.size(), std::numeric_limits<double>::infinity());
    for (auto at = needs_.episodes.rbegin(); at != needs_.episodes.rend(); ++at) {
      const int index = *at;
      Episode& episode = episodes_[index];
      const ResidencyTier& tier = problem_.tiers[episode.fetch_tier];
      const int64_t size = problem_.items[episode.item].bytes;
      double& until = next[episode.fetch_tier];
      const double seconds = tier.latency_seconds + static_cast<double>(size) / tier.in_bytes_per_second;
      const double wanted = std::min(until, start_[episode.begin]) - early * seconds;
      until = std::min(until, start_[episode.begin]) - seconds;
      int issue = episode.issue >= 0 ? episode.issue : episode.begin;
      while (issue > earliest_position[index] && start_[issue] > wanted && start_[issue - 1] >= earliest[index] &&
             bytes_[issue - 1] + size <= problem_.budget_bytes) {
        --issue;
        bytes_[issue] += size;
      }
      episode.issue = issue;
    }
  }
  for (int p = 0; p < count; ++p) bytes_[p] -= held[p];
}

// Counting sort of the episodes for which `position_of` is not negative; those of one position stay in their order.
template <typename PositionOf>
void ResidencyScheduler::Sort(PositionOf position_of, ByPosition& by) const {
  by.first.assign(positions_.size() + 2, 0);
  int count = 0;
  for (const Episode& episode : episodes_) {
    if (const int position = position_of(episode); position >= 0) ++by.first[position + 1], ++count;
  }
  for (size_t p = 1; p < by.first.size(); ++p) by.first[p] += by.first[p - 1];
  by.episodes.resize(count);
  std::vector<int>& next = by.first;  // moves to the end of each stretch, which is the begin of the following one
  for (int index = static_cast<int>(episodes_.size()) - 1; index >= 0; --index) {
    if (const int position = position_of(episodes_[index]); position >= 0) by.episodes[--next[position + 1]] = index;
  }
  // first[p + 1] is now where position p begins.
  by.first.erase(by.first.begin());
  by.first.push_back(count);
}

// Episodes whose fetch begins at each position, the one that is needed first before the others, those that must be there, and those
// that are stashed after it.
void ResidencyScheduler::SortCopies() {
  Sort([](const Episode& episode) { return episode.fetch_tier >= 0 ? episode.issue : -1; }, issues_);
  Sort([](const Episode& episode) { return episode.fetch_tier >= 0 ? episode.begin : -1; }, needs_);
  Sort([](const Episode& episode) { return episode.stash_tier >= 0 ? episode.end : -1; }, stashes_);
  for (size_t p = 0; p + 1 < issues_.first.size(); ++p) {
    if (issues_.first[p + 1] - issues_.first[p] < 2) continue;
    std::stable_sort(issues_.episodes.begin() + issues_.first[p], issues_.episodes.begin() + issues_.first[p + 1],
                     [&](int a, int b) { return episodes_[a].begin < episodes_[b].begin; });
  }
}

void ResidencyScheduler::WalkClock(ResidencySchedule& schedule) {
  SortCopies();
  const std::vector<Carried> carried = WalkClock({}, schedule);
  if (carried.empty()) return;
  schedule = {};
  schedule.valid = true;
  WalkClock(carried, schedule);
}

// Runs everything on a clock, and settles when the memory under copies out is taken back. `before` are copies that the step before has left, in the
// order of their lanes; those of them that are under way again when the step ends are left to the next one. Where there are none, any of
// what wraps may be left. Returns what is.
std::vector<ResidencyScheduler::Carried> ResidencyScheduler::WalkClock(const std::vector<Carried>& before, ResidencySchedule& schedule) {
  const int count = static_cast<int>(positions_.size());
  const size_t tiers = problem_.tiers.size();
  std::vector<double> out_free(tiers, 0.0), in_free(tiers, 0.0), finish(episodes_.size(), 0.0), stash_finish(episodes_.size(), 0.0);
  std::vector<int64_t> tier_bytes(tiers, 0);
  schedule.tier_peak_bytes.assign(tiers, 0);
  schedule.out_bytes.assign(tiers, 0);
  schedule.in_bytes.assign(tiers, 0);
  std::vector<int> tier_readers(problem_.items.size(), 0), holder(problem_.items.size(), -1);
  for (const Episode& episode : episodes_) {
    if (episode.fetch_tier >= 0) ++tier_readers[episode.item];
  }
  const auto Hold = [&](int item, int tier) {
    if (holder[item] >= 0) return;
    holder[item] = tier;
    tier_bytes[tier] += problem_.items[item].bytes;
    schedule.tier_peak_bytes[tier] = std::max(schedule.tier_peak_bytes[tier], tier_bytes[tier]);
  };
  for (int item = 0; item < static_cast<int>(problem_.items.size()); ++item) {
    if (states_[item].home_tier >= 0) Hold(item, states_[item].home_tier);
  }
  std::deque<int> pending;
  int64_t in_flight = 0;
  double clock = 0.0, beside = 0.0;
  op_bytes_.assign(problem_.ops.size(), 0);
  op_waits_.assign(problem_.ops.size(), 0.0);
  int at_op = 0;
  const auto WaitUntil = [&](double time) {
    if (time <= clock) return;
    schedule.wait_seconds += time - clock;
    if (!op_waits_.empty()) op_waits_[at_op] += time - clock;
    clock = time;
  };
  std::vector<bool> carried(before.empty() ? 0 : episodes_.size(), false), may_stay(carried);
  const auto TakeBack = [&](int position) {
    const int index = pending.front();
    Episode& episode = episodes_[index];
    WaitUntil(stash_finish[index]);
    if (!carried.empty() && carried[index]) {
      episode.wraps_to = position;
      carried[index] = false;
    } else {
      episode.done_by = position;
    }
    in_flight -= problem_.items[episode.item].bytes;
    pending.pop_front();
  };
  for (const Carried& copy : before) {
    const Episode& episode = episodes_[copy.episode];
    carried[copy.episode] = may_stay[copy.episode] = true;
    stash_finish[copy.episode] = copy.seconds;
    out_free[episode.stash_tier] = std::max(out_free[episode.stash_tier], copy.seconds);
    in_flight += problem_.items[episode.item].bytes;
    pending.push_back(copy.episode);
  }
  // From the end of the op before to the end of the copy.
  const auto Took = [&](int index) {
    const bool from_before = !carried.empty() && carried[index];
    return stash_finish[index] - (from_before ? 0.0 : start_[episodes_[index].end + 1]);
  };
  for (int p = 0; p < count; ++p) {
    at_op = positions_[p].op;
    const auto Waiting = [&](int item) {
      return std::any_of(pending.begin(), pending.end(), [&](int index) { return episodes_[index].item == item; });
    };
    for (int index : issues_.at(p)) {
      while (Waiting(episodes_[index].item)) TakeBack(p);
    }
    while (!pending.empty() && (bytes_[p] + in_flight > problem_.budget_bytes ||
                                clock >= stash_finish[pending.front()] + kStashSlack * Took(pending.front()))) {
      TakeBack(p);
    }
    for (int index : issues_.at(p)) {
      const Episode& episode = episodes_[index];
      const ResidencyTier& tier = problem_.tiers[episode.fetch_tier];
      const int64_t size = problem_.items[episode.item].bytes;
      double& free = in_free[episode.fetch_tier];
      free = std::max(free, clock) + tier.latency_seconds + static_cast<double>(size) / tier.in_bytes_per_second;
      finish[index] = free;
      schedule.in_bytes[episode.fetch_tier] += size;
      beside += static_cast<double>(size) * tier.in_compute_seconds_per_byte;
    }
    const int64_t live = bytes_[p] + in_flight;
    int64_t& here = op_bytes_[positions_[p].op];
    if (!positions_[p].again) here = std::max(here, live);
    if (live > schedule.peak_bytes) {
      schedule.peak_bytes = live;
      schedule.peak_op = positions_[p].op;
    }
    for (int index : needs_.at(p)) {
      WaitUntil(finish[index]);
      const int item = episodes_[index].item;
      if (--tier_readers[item] == 0 && holder[item] >= 0 && !problem_.items[item].kept) {
        tier_bytes[holder[item]] -= problem_.items[item].bytes;
        holder[item] = -1;
      }
    }
    const double seconds = problem_.ops[positions_[p].op].seconds;
    // What copies take from compute is charged to the op that runs when they begin.
    clock += seconds + beside;
    schedule.beside_seconds += beside;
    beside = 0.0;
    schedule.compute_seconds += seconds;
    if (positions_[p].again) schedule.recompute_seconds += seconds;
    for (int index : stashes_.at(p)) {
      const Episode& episode = episodes_[index];
      const ResidencyTier& tier = problem_.tiers[episode.stash_tier];
      const int64_t size = problem_.items[episode.item].bytes;
      double& free = out_free[episode.stash_tier];
      free = std::max(free, clock) + tier.latency_seconds + static_cast<double>(size) / tier.out_bytes_per_second;
      stash_finish[index] = free;
      in_flight += size;
      pending.push_back(index);
      schedule.out_bytes[episode.stash_tier] += size;
      beside += static_cast<double>(size) * tier.out_compute_seconds_per_byte;
      Hold(episode.item, episode.stash_tier);
    }
  }
  clock += beside;
  schedule.beside_seconds += beside;
  std::vector<Carried> after;
  for (; !pending.empty(); pending.pop_front()) {
    const int index = pending.front();
    const bool may = problem_.items[episodes_[index].item].wraps && (before.empty() || may_stay[index]);
    if (may && stash_finish[index] > clock) {
      after.push_back({index, stash_finish[index]});
    } else {
      WaitUntil(stash_finish[index]);
      episodes_[index].wraps_to = -1;
    }
    episodes_[index].done_by = count;
  }
  // Others have been waited for meanwhile.
  for (Carried& copy : after) copy.seconds = std::max(0.0, copy.seconds - clock);
  for (const Carried& copy : before) {
    if (std::none_of(after.begin(), after.end(), [&](const Carried& other) { return other.episode == copy.episode; })) {
      episodes_[copy.episode].wraps_to = -1;
    }
  }
  schedule.seconds = clock;
  return after;
}

void ResidencyScheduler::Emit(ResidencySchedule& schedule) const {
  const int count = static_cast<int>(positions_.size());
  std::vector<int> first_action(count + 1), run_action(count + 1);
  int next = 0;
  for (int p = 0; p < count; ++p) {
    first_action[p] = next;
    next += static_cast<int>(issues_.at(p).size());
    run_action[p] = next;
    next += 1 + static_cast<int>(stashes_.at(p).size());
  }
  first_action[count] = run_action[count] = next;
  schedule.actions.reserve(next);
  for (int p = 0; p < count; ++p) {
    for (int index : issues_.at(p)) {
      const Episode& episode = episodes_[index];
      schedule.actions.push_back({ResidencyAction::Kind::kFetch, -1, episode.item, episode.fetch_tier, run_action[episode.begin], {}});
    }
    const Position& position = positions_[p];
    schedule.actions.push_back({position.again ? ResidencyAction::Kind::kAgain : ResidencyAction::Kind::kRun, position.op, -1, -1, -1,
                                position.items});
    for (int index : stashes_.at(p)) {
      const Episode& episode = episodes_[index];
      schedule.actions.push_back({ResidencyAction::Kind::kStash, -1, episode.item, episode.stash_tier,
                                  episode.wraps_to >= 0 ? next + first_action[episode.wraps_to] : first_action[std::max(episode.done_by, p + 1)], {}});
    }
  }
}

ResidencySchedule ResidencyScheduler::Judge(const ResidencyChoice& choice) {
  ResidencySchedule schedule;
  if (!Expand(choice)) return schedule;
  schedule.valid = true;
  PlaceFetches();
  WalkClock(schedule);
  return schedule;
}

ResidencySchedule ResidencyScheduler::Run(const ResidencyChoice& choice) {
  ResidencySchedule schedule = Judge(choice);
  if (schedule.valid) Emit(schedule);
  return schedule;
}

}  // namespace gantry
