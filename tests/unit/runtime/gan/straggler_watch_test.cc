#include "runtime/gan/straggler_watch.h"

#include <gtest/gtest.h>

#include <random>

namespace gantry {
namespace {

using Times = StragglerWatch::Times;

TEST(StragglerWatchTest, NamesWhoMakesOthersWait) {
  StragglerWatch watch(3);
  const Times times[] = {{0.5, 0.5}, {1.0, 0.0}, {0.55, 0.45}};
  EXPECT_EQ(watch.Add(10, times), std::nullopt);  // not long enough
  std::optional<std::string> line;
  for (int i = 0; i < 9 && !line; ++i) {
    line = watch.Add(10, times);
    EXPECT_EQ(line.has_value(), i == 8);  // the second time in a row
  }
  ASSERT_TRUE(line.has_value());
  EXPECT_EQ(*line,
            "rank 1 keeps the others waiting: in the last 50 steps it computed 100 ms a step, the others 55 ms, and "
            "these stood in exchanges for 50 ms");
  EXPECT_EQ(watch.named(), 1);
  // Once, until it was none.
  for (int i = 0; i < 10; ++i) EXPECT_EQ(watch.Add(10, times), std::nullopt);
  const Times even[] = {{1, 0.1}, {1, 0.1}, {1, 0.1}};
  for (int i = 0; i < 5; ++i) EXPECT_EQ(watch.Add(10, even), std::nullopt);
  EXPECT_EQ(watch.named(), -1);
  line.reset();
  for (int i = 0; i < 10; ++i) line = watch.Add(10, times);
  EXPECT_TRUE(line.has_value());
}

TEST(StragglerWatchTest, NoFalseAlarms) {
  std::mt19937 random(3);
  std::normal_distribution<double> noise(1.0, 0.3);
  StragglerWatch watch(4);
  for (int i = 0; i < 2000; ++i) {
    Times times[4];
    double longest = 0.0;
    for (Times& rank : times) {
      rank.busy = std::max(0.1, 0.2 * noise(random));
      longest = std::max(longest, rank.busy);
    }
    for (Times& rank : times) rank.waiting = longest - rank.busy + 0.02;
    EXPECT_EQ(watch.Add(5, times), std::nullopt);
  }
  // Slow, but nobody waits for it; and waiting for a slow link, all alike.
  const Times alone[] = {{1, 0.01}, {2, 0.0}, {1, 0.01}, {1, 0.01}}, link[] = {{1, 3}, {1.1, 2.9}, {1, 3}, {1, 3}};
  StragglerWatch unwaited(4), linked(4);
  for (int i = 0; i < 50; ++i) {
    EXPECT_EQ(unwaited.Add(5, alone), std::nullopt);
    EXPECT_EQ(linked.Add(5, link), std::nullopt);
  }
  StragglerWatch one(1);
  const Times single[] = {{9, 0}};
  EXPECT_EQ(one.Add(100, single), std::nullopt);
}

}  // namespace
}  // namespace gantry
