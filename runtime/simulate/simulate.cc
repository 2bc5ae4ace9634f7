#include "runtime/simulate/simulate.h"

#include <algorithm>
#include <deque>
#include <map>
#include <tuple>
#include <utility>

namespace gantry {
namespace {

using Path = std::array<double, kSimulatedLanes>;

// A point in time, and what the time before it was spent on along the longest chain that leads to it.
struct Moment {
  double time = 0.0;
  Path path = {};
  Moment After(SimulatedLane lane, double seconds) const {
    Moment later = *this;
    later.time += seconds;
    later.path[static_cast<size_t>(lane)] += seconds;
    return later;
  }
};
const Moment& Later(const Moment& a, const Moment& b) { return b.time > a.time ? b : a; }

constexpr int kExchangeLanes = 4;  // each with communicators of its own
constexpr SimulatedLane kLanes[kExchangeLanes] = {SimulatedLane::kExchange, SimulatedLane::kGradients, SimulatedLane::kGathers,
                                                  SimulatedLane::kActivations};
int ExchangeLane(SimulatedLane lane) {
  const auto found = std::find(std::begin(kLanes), std::end(kLanes), lane);
  return found == std::end(kLanes) ? 0 : static_cast<int>(found - std::begin(kLanes));
}

// Something that runs beside compute and that a step waits for.
struct Transfer {
  bool known = false;
  Moment end;
  double begin = 0.0;  // of an exchange: when the last rank had come
  bool copy = false;
};

// One exchange: who has come.
struct Meeting {
  int missing = 0;
  Moment begin;
  double seconds = 0.0;
  struct Member {
    int rank = 0;
    int transfer = -1;  // of the rank; -1: it waits in place
  };
  std::vector<Member> members;
};

class Clock {
 public:
  Clock(const std::vector<SimulatedRank>& ranks, int rounds) : ranks_(ranks), rounds_(rounds), states_(ranks.size()) {}

  absl::StatusOr<Simulation> Run() {
    for (const SimulatedRank& rank : ranks_) {
      for (const int group : rank.groups) ++sizes_[group];
    }
    for (size_t r = 0; r < ranks_.size(); ++r) {
      states_[r].waits.resize(static_cast<size_t>(rounds_) * ranks_[r].schedule->size() + ranks_[r].schedule->size() +
                              1);
      ready_.push_back(static_cast<int>(r));
    }
    while (!ready_.empty()) {
      const int rank = ready_.front();
      ready_.pop_front();
      GANTRY_RETURN_IF_ERROR(Go(rank));
    }
    std::string stuck;
    for (size_t r = 0; r < ranks_.size(); ++r) {
      if (states_[r].done) continue;
      absl::StrAppend(&stuck, absl::StrFormat("%srank %d at step %d", stuck.empty() ? "" : ", ", r, states_[r].at));
    }
    if (!stuck.empty())
      return absl::FailedPreconditionError(absl::StrCat("ranks wait for each other for ever: ", stuck));
    return Result();
  }

 private:
  struct State {
    int round = 0, at = 0;
    bool waited = false;  // for what step `at` waits for
    bool blocked = false;
    bool done = false;
    Moment now;
    std::vector<Transfer> transfers;
    std::vector<std::vector<int>> waits;               // per step of all rounds: transfers that must be done
    std::map<std::pair<int, int>, Moment> copy_lanes;  // by tier and lane
    std::deque<int> queues[kExchangeLanes];  // ops whose exchanges have begun to wait for their lane, as transfers
    std::vector<int> queued_groups;          // per transfer: the group's number
    std::vector<double> queued_seconds;
    std::vector<Moment> queued_at;
    Moment lane_free[kExchangeLanes];
    bool lane_busy[kExchangeLanes] = {};
    std::map<std::pair<int, int>, int64_t> next;  // by group and lane: exchanges that this rank has come to
    std::vector<SimulatedTimes> times = {};
    std::vector<Moment> round_ends;
  };

  absl::Status Go(int r) {
    State& state = states_[r];
    if (state.blocked || state.done) return absl::OkStatus();
    const SimulatedSchedule& schedule = *ranks_[r].schedule;
    if (state.times.empty()) state.times.emplace_back();
    for (;;) {
      const size_t place = static_cast<size_t>(state.round) * schedule.size() + static_cast<size_t>(state.at);
      if (!state.waited) {
        for (const int transfer : state.waits[place]) {
          if (!state.transfers[transfer].known) return absl::OkStatus();  // woken when it is
        }
        for (const int transfer : state.waits[place]) WaitFor(state, state.transfers[transfer]);
        state.waits[place].clear();
        state.waited = true;
      }
      if (state.at == static_cast<int>(schedule.size())) {
        // The end of a round is where the next one begins; what goes on into it is waited for there.
        state.round_ends.push_back(state.now);
        if (++state.round == rounds_) {
          state.done = true;
          return absl::OkStatus();
        }
        state.times.emplace_back();
        state.at = 0;
        state.waited = false;
        continue;
      }
      const SimulatedOp& op = schedule[static_cast<size_t>(state.at)];
      SimulatedTimes& times = state.times.back();
      if (op.group >= 0) {
        const int lane = ExchangeLane(op.lane);
        const int group = ranks_[r].groups[static_cast<size_t>(op.group)];
        if (op.done_by < 0) {
          state.blocked = true;
          Come(r, group, 0, state.now, op.seconds, -1);
          if (state.blocked) return absl::OkStatus();
        } else {
          const int transfer = Add(state, op, schedule.size());
          state.queued_groups[static_cast<size_t>(transfer)] = group;
          state.queued_seconds[static_cast<size_t>(transfer)] = op.seconds;
          state.queued_at[static_cast<size_t>(transfer)] = state.now;
          state.queues[lane].push_back(transfer);
          Feed(r, lane);
          Compute(state, times, op.compute_seconds / ranks_[r].speed);
        }
      } else if (op.lane == SimulatedLane::kCopyOut || op.lane == SimulatedLane::kCopyIn) {
        Moment& lane = state.copy_lanes[{op.tier, static_cast<int>(op.lane)}];
        lane = Later(state.now, lane).After(op.lane, op.seconds);
        times.busy[static_cast<size_t>(op.lane)] += op.seconds;
        const int transfer = Add(state, op, schedule.size());
        state.transfers[static_cast<size_t>(transfer)] = {.known = true, .end = lane, .copy = true};
        Compute(state, times, op.compute_seconds / ranks_[r].speed);
      } else {
        Compute(state, times, op.seconds / ranks_[r].speed);
      }
      ++state.at;
      state.waited = false;
    }
  }

  static void Compute(State& state, SimulatedTimes& times, double seconds) {
    state.now = state.now.After(SimulatedLane::kCompute, seconds);
    times.compute += seconds;
    times.busy[0] += seconds;
  }

  static void WaitFor(State& state, const Transfer& transfer) {
    if (transfer.end.time <= state.now.time) return;
    SimulatedTimes& times = state.times.back();
    const double wait = transfer.end.time - state.now.time;
    const double peers = transfer.copy ? 0.0 : std::clamp(transfer.begin - state.now.time, 0.0, wait);
    (transfer.copy ? times.copy_wait : times.exchange_wait) += wait - peers;
    times.peer_wait += peers;
    state.now = transfer.end;
  }

  // A transfer that begins at the rank's current step.
  int Add(State& state, const SimulatedOp& op, size_t length) {
    const int transfer = static_cast<int>(state.transfers.size());
    state.transfers.emplace_back();
    state.queued_groups.push_back(-1);
    state.queued_seconds.push_back(0.0);
    state.queued_at.emplace_back();
    const size_t round = static_cast<size_t>(state.round) * length;
    // The end of a round and the begin of the next one are one place of `waits`: who waits at the end waits in this
    // round.
    state.waits[round + static_cast<size_t>(std::max(op.done_by, state.at + 1))].push_back(transfer);
    return transfer;
  }

  // The next exchange of a lane comes to its group once the one before is done.
  void Feed(int r, int lane) {
    State& state = states_[r];
    if (state.lane_busy[lane] || state.queues[lane].empty()) return;
    const auto transfer = static_cast<size_t>(state.queues[lane].front());
    state.queues[lane].pop_front();
    state.lane_busy[lane] = true;
    Come(r, state.queued_groups[transfer], lane, Later(state.queued_at[transfer], state.lane_free[lane]),
         state.queued_seconds[transfer], static_cast<int>(transfer));
  }

  void Come(int r, int group, int lane, const Moment& at, double seconds, int transfer) {
    const int64_t number = states_[r].next[{group, lane}]++;
    const auto [found, added] = meetings_.try_emplace({group, lane, number});
    Meeting& meeting = found->second;
    if (added) {
      meeting.missing = sizes_[group];
      meeting.begin = at;
    }
    meeting.begin = Later(meeting.begin, at);
    meeting.seconds = std::max(meeting.seconds, seconds);
    meeting.members.push_back({r, transfer});
    if (--meeting.missing > 0) return;
    const Meeting done = std::move(meeting);
    meetings_.erase(found);
    const Moment end = done.begin.After(kLanes[lane], done.seconds);
    for (const Meeting::Member& member : done.members) {
      State& state = states_[member.rank];
      state.times.back().busy[static_cast<size_t>(kLanes[lane])] += done.seconds;
      ready_.push_back(member.rank);
      if (member.transfer < 0) {
        WaitFor(state, {.known = true, .end = end, .begin = done.begin.time});
        state.blocked = false;
        if (member.rank != r) {
          ++state.at;
          state.waited = false;
        }
      } else {
        state.transfers[static_cast<size_t>(member.transfer)] = {.known = true, .end = end, .begin = done.begin.time};
        state.lane_free[lane] = end;
        state.lane_busy[lane] = false;
      }
    }
    for (const Meeting::Member& member : done.members) {
      if (member.transfer >= 0) Feed(member.rank, lane);
    }
  }

  Simulation Result() const {
    Simulation result;
    Moment last, before;
    for (const State& state : states_) {
      last = Later(last, state.round_ends.back());
      if (rounds_ > 1) before = Later(before, state.round_ends[static_cast<size_t>(rounds_) - 2]);
    }
    result.seconds = last.time - before.time;
    double sum = 0.0;
    for (const double seconds : last.path) sum += seconds;
    for (int lane = 0; lane < kSimulatedLanes; ++lane) {
      result.critical[static_cast<size_t>(lane)] =
          sum > 0 ? last.path[static_cast<size_t>(lane)] / sum * result.seconds : 0.0;
    }
    for (const State& state : states_) {
      result.ranks.push_back(state.times.back());
      result.ranks.back().end = state.round_ends.back().time - before.time;
    }
    return result;
  }

  const std::vector<SimulatedRank>& ranks_;
  const int rounds_;
  std::vector<State> states_;
  std::map<int, int> sizes_;  // ranks of a group
  std::map<std::tuple<int, int, int64_t>, Meeting> meetings_;
  std::deque<int> ready_;
};

}  // namespace

std::string_view Name(SimulatedLane lane) {
  switch (lane) {
    case SimulatedLane::kCompute:
      return "compute";
    case SimulatedLane::kCopyOut:
      return "copy out";
    case SimulatedLane::kCopyIn:
      return "copy in";
    case SimulatedLane::kGradients:
      return "gradients";
    case SimulatedLane::kExchange:
      return "exchanges";
    case SimulatedLane::kGathers:
      return "gathers";
    case SimulatedLane::kActivations:
      return "activations";
  }
  return "unknown";
}

SimulatedLane Simulation::limit() const {
  return static_cast<SimulatedLane>(std::max_element(critical.begin(), critical.end()) - critical.begin());
}

absl::StatusOr<Simulation> Simulate(const std::vector<SimulatedRank>& ranks, int rounds) {
  if (ranks.empty() || rounds < 1) return absl::InvalidArgumentError("a simulation needs a rank and a round");
  for (const SimulatedRank& rank : ranks) {
    if (!(rank.speed > 0))
      return absl::InvalidArgumentError(absl::StrFormat("a rank's speed is %g; it must be above 0", rank.speed));
    const auto length = static_cast<int>(rank.schedule->size());
    for (int at = 0; at < length; ++at) {
      const SimulatedOp& op = (*rank.schedule)[static_cast<size_t>(at)];
      const bool copy = op.lane == SimulatedLane::kCopyOut || op.lane == SimulatedLane::kCopyIn;
      const bool exchange = op.group >= 0,
                 in_place = op.lane == SimulatedLane::kCompute || op.lane == SimulatedLane::kExchange;
      const bool right = op.group < static_cast<int>(rank.groups.size()) && op.done_by <= 2 * length &&
                         exchange == (op.lane != SimulatedLane::kCompute && !copy) && in_place == (op.done_by < 0) &&
                         (in_place || op.done_by > at);
      if (!right)
        return absl::InvalidArgumentError(
            absl::StrFormat("step %d of a schedule of %d has no such lane, group or end", at, length));
    }
  }
  return Clock(ranks, rounds).Run();
}

}  // namespace gantry
