#include "runtime/simulate/simulate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <tuple>

namespace gantry {
namespace {

using Lane = SimulatedLane;

// The same question answered another way: every begin and end is an unknown that is at least this much after others;
// all begin at 0 and are raised again and again until nothing changes. No queues, no events.
double BySlowRelaxation(const std::vector<SimulatedRank>& ranks, int rounds) {
  struct Bound {
    int after, what;
    double seconds;
  };
  std::vector<double> time;
  std::vector<Bound> bounds;
  const auto Unknown = [&] {
    time.push_back(0.0);
    return static_cast<int>(time.size()) - 1;
  };
  std::map<std::tuple<int, int, int>, std::vector<std::tuple<int, int, double>>>
      meetings;  // begin and end of each member, and its seconds
  std::vector<std::vector<int>> round_ends(ranks.size());
  for (size_t r = 0; r < ranks.size(); ++r) {
    const SimulatedSchedule& schedule = *ranks[r].schedule;
    const int length = static_cast<int>(schedule.size());
    // One unknown for "step s may begin" in every round, and one for the end of the last.
    std::vector<int> begins;
    for (int i = 0; i < rounds * length + length + 1; ++i) begins.push_back(Unknown());
    std::map<std::pair<int, int>, int> last_of_lane;  // the end of the last transfer, by lane and tier
    std::map<std::pair<int, int>, int> counts;
    for (int round = 0; round < rounds; ++round) {
      for (int s = 0; s < length; ++s) {
        const SimulatedOp& op = schedule[static_cast<size_t>(s)];
        const int begin = begins[static_cast<size_t>(round * length + s)],
                  next = begins[static_cast<size_t>(round * length + s + 1)];
        if (op.lane == Lane::kCompute) {
          bounds.push_back({begin, next, op.seconds / ranks[r].speed});
          continue;
        }
        const int transfer_begin = Unknown(), transfer_end = Unknown();
        bounds.push_back({begin, transfer_begin, 0.0});
        const bool copy = op.group < 0;
        const std::pair<int, int> lane{static_cast<int>(op.lane), copy ? op.tier : 0};
        if (op.done_by >= 0) {
          if (last_of_lane.contains(lane)) bounds.push_back({last_of_lane[lane], transfer_begin, 0.0});
          last_of_lane[lane] = transfer_end;
        }
        if (copy) {
          bounds.push_back({transfer_begin, transfer_end, op.seconds});
        } else {
          const int group = ranks[r].groups[static_cast<size_t>(op.group)];
          meetings[{group, static_cast<int>(op.lane), counts[{group, static_cast<int>(op.lane)}]++}].push_back(
              {transfer_begin, transfer_end, op.seconds});
        }
        bounds.push_back({begin, next, op.compute_seconds / ranks[r].speed});
        bounds.push_back(
            {transfer_end, op.done_by < 0 ? next : begins[static_cast<size_t>(round * length + op.done_by)], 0.0});
      }
      round_ends[r].push_back(begins[static_cast<size_t>((round + 1) * length)]);
    }
  }
  for (const auto& [key, members] : meetings) {
    double seconds = 0.0;
    for (const auto& member : members) seconds = std::max(seconds, std::get<2>(member));
    for (const auto& from : members) {
      for (const auto& to : members) bounds.push_back({std::get<0>(from), std::get<1>(to), seconds});
    }
  }
  for (bool changed = true; changed;) {
    changed = false;
    for (const Bound& bound : bounds) {
      const double least = time[static_cast<size_t>(bound.after)] + bound.seconds;
      if (least > time[static_cast<size_t>(bound.what)] + 1e-12) {
        time[static_cast<size_t>(bound.what)] = least;
        changed = true;
      }
    }
  }
  double last = 0.0, before = 0.0;
  for (const std::vector<int>& ends : round_ends) {
    last = std::max(last, time[static_cast<size_t>(ends.back())]);
    if (rounds > 1) before = std::max(before, time[static_cast<size_t>(ends[ends.size() - 2])]);
  }
  return last - before;
}

// Schedules of ranks on a mesh of rows and columns: the same exchanges in the same order on all, everything else at
// random.
struct RandomJob {
  std::vector<SimulatedSchedule> schedules;
  std::vector<SimulatedRank> ranks;
};
RandomJob MakeJob(uint64_t seed) {
  std::mt19937_64 random(seed);
  const auto Below = [&](int bound) { return static_cast<int>(random() % static_cast<uint64_t>(bound)); };
  const auto Seconds = [&] { return 0.001 * (1 + Below(1000)); };
  RandomJob job;
  const int rows = 1 + Below(3), columns = 1 + Below(3), length = 5 + Below(40);
  struct Step {
    Lane lane;
    int group;
  };
  std::vector<Step> steps;
  for (int s = 0; s < length; ++s) {
    const int kind = Below(9);
    const Lane lane = kind < 3    ? Lane::kCompute
                      : kind == 3 ? Lane::kCopyOut
                      : kind == 4 ? Lane::kCopyIn
                      : kind == 5 ? Lane::kExchange
                      : kind == 6 ? Lane::kGradients
                      : kind == 7 ? Lane::kGathers
                                  : Lane::kActivations;
    steps.push_back({lane, kind >= 5 ? Below(2) : -1});
  }
  for (int rank = 0; rank < rows * columns; ++rank) {
    SimulatedSchedule schedule;
    for (int s = 0; s < length; ++s) {
      const Step& step = steps[static_cast<size_t>(s)];
      SimulatedOp op{.seconds = Seconds(), .lane = step.lane, .group = step.group};
      const bool copy = step.lane == Lane::kCopyOut || step.lane == Lane::kCopyIn;
      if (copy) {
        op.tier = Below(2);
        op.compute_seconds = 0.1 * Seconds();
        op.done_by = s + 1 + Below(length);
      } else if (step.lane != Lane::kCompute && step.lane != Lane::kExchange) {
        op.compute_seconds = 0.1 * Seconds();
        op.done_by = s + 1 + Below(length - s);
      }
      schedule.push_back(op);
    }
    job.schedules.push_back(std::move(schedule));
  }
  for (int rank = 0; rank < rows * columns; ++rank) {
    job.ranks.push_back({.groups = {rank / columns, rows + rank % columns}, .speed = 0.25 * (1 + Below(4))});
  }
  for (size_t rank = 0; rank < job.ranks.size(); ++rank) job.ranks[rank].schedule = &job.schedules[rank];
  return job;
}

TEST(SimulateTest, RandomSchedulesAgreeWithTheSlowRelaxation) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    const RandomJob job = MakeJob(seed);
    for (const int rounds : {1, 2, 3}) {
      const absl::StatusOr<Simulation> simulation = Simulate(job.ranks, rounds);
      ASSERT_TRUE(simulation.ok()) << "seed " << seed << ": " << simulation.status();
      ASSERT_NEAR(simulation->seconds, BySlowRelaxation(job.ranks, rounds), 1e-9)
          << "seed " << seed << ", " << rounds << " rounds";
    }
  }
}

TEST(SimulateTest, EverySecondOfARankIsAccountedFor) {
  for (uint64_t seed = 0; seed < 100; ++seed) {
    const RandomJob job = MakeJob(seed);
    const absl::StatusOr<Simulation> simulation = Simulate(job.ranks, 1);
    ASSERT_TRUE(simulation.ok()) << simulation.status();
    for (const SimulatedTimes& times : simulation->ranks) {
      ASSERT_NEAR(times.compute + times.exchange_wait + times.peer_wait + times.copy_wait, times.end, 1e-9)
          << "seed " << seed;
    }
    double critical = 0.0;
    for (const double seconds : simulation->critical) critical += seconds;
    ASSERT_NEAR(critical, simulation->seconds, 1e-9) << "seed " << seed;
  }
}

TEST(SimulateTest, AnExchangeBesideComputeHidesAndOneInPlaceDoesNot) {
  SimulatedSchedule hidden = {{.seconds = 1},
                              {.seconds = 2, .lane = Lane::kGradients, .done_by = 3, .group = 0},
                              {.seconds = 3},
                              {.seconds = 1}};
  SimulatedSchedule in_place = hidden;
  in_place[1].lane = Lane::kExchange;
  in_place[1].done_by = -1;
  const auto Run = [](const SimulatedSchedule& schedule) {
    return *Simulate({{.schedule = &schedule, .groups = {0}}, {.schedule = &schedule, .groups = {0}, .speed = 0.5}}, 1);
  };
  const Simulation a = Run(hidden), b = Run(in_place);
  EXPECT_DOUBLE_EQ(a.seconds, 10);  // the slow rank's compute
  EXPECT_EQ(a.limit(), Lane::kCompute);
  EXPECT_DOUBLE_EQ(a.ranks[1].exchange_wait, 0);
  EXPECT_DOUBLE_EQ(b.seconds, 12);
  EXPECT_DOUBLE_EQ(b.ranks[0].peer_wait, 1);
  EXPECT_DOUBLE_EQ(b.ranks[0].exchange_wait, 2);
  EXPECT_DOUBLE_EQ(b.critical[static_cast<size_t>(Lane::kExchange)], 2);
}

TEST(SimulateTest, ACopyThatGoesOnIsWaitedForInTheNextRound) {
  const SimulatedSchedule schedule = {
      {.seconds = 1}, {.seconds = 1}, {.seconds = 5, .lane = Lane::kCopyOut, .done_by = 4}};
  EXPECT_DOUBLE_EQ(Simulate({{.schedule = &schedule}}, 1)->seconds, 2);
  const Simulation second = *Simulate({{.schedule = &schedule}}, 2);
  EXPECT_DOUBLE_EQ(second.seconds, 6);  // step 1 of round 2 waits until 7
  EXPECT_DOUBLE_EQ(second.ranks[0].copy_wait, 4);
}

TEST(SimulateTest, RanksThatWaitForEachOtherAreNamed) {
  const SimulatedSchedule first = {{.seconds = 1, .lane = Lane::kExchange, .group = 0},
                                   {.seconds = 1, .lane = Lane::kExchange, .group = 1}};
  const SimulatedSchedule second = {{.seconds = 1, .lane = Lane::kExchange, .group = 1},
                                    {.seconds = 1, .lane = Lane::kExchange, .group = 0}};
  const absl::StatusOr<Simulation> simulation =
      Simulate({{.schedule = &first, .groups = {0, 1}}, {.schedule = &second, .groups = {0, 1}}});
  EXPECT_EQ(simulation.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(std::string(simulation.status().message()).find("rank 1 at step 0"), std::string::npos)
      << simulation.status();
}

TEST(SimulateTest, SchedulesThatMakeNoSenseAreRefused) {
  const SimulatedSchedule no_group = {{.seconds = 1, .lane = Lane::kExchange, .group = 3}};
  EXPECT_EQ(Simulate({{.schedule = &no_group, .groups = {0}}}).status().code(), absl::StatusCode::kInvalidArgument);
  const SimulatedSchedule copy_in_place = {{.seconds = 1, .lane = Lane::kCopyIn}};
  EXPECT_EQ(Simulate({{.schedule = &copy_in_place}}).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace gantry
