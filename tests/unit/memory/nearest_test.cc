#include "memory/nearest.h"

#include <vector>

#include "gtest/gtest.h"

namespace gantry {
namespace {

TEST(NearestTest, DistanceCountsLettersAndSwaps) {
  EXPECT_EQ(EditDistance("", ""), 0u);
  EXPECT_EQ(EditDistance("", "abc"), 3u);
  EXPECT_EQ(EditDistance("kitten", "sitting"), 3u);
  EXPECT_EQ(EditDistance("bacth", "batch"), 1u);  // a swap
  EXPECT_EQ(EditDistance("ca", "abc"), 3u);       // the restricted form: no edit between swapped letters
  EXPECT_EQ(EditDistance(std::string(100000, 'a'), std::string(100000, 'b')), 200u);
}

TEST(NearestTest, FindsTheMeantNameOnly) {
  const std::vector<std::string> known = {"batch", "beta1", "beta2", "learning_rate"};
  EXPECT_EQ(Nearest("bacth", known), "batch");
  EXPECT_EQ(Nearest("learningrate", known), "learning_rate");
  EXPECT_EQ(Nearest("beta3", known), "beta1");
  EXPECT_EQ(Nearest("xyz", known), "");
  EXPECT_EQ(Nearest("", known), "");
}

}  // namespace
}  // namespace gantry
