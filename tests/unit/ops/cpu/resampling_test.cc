// The fast kernels of resizing, pooling and softmax against the float64 reference on random shapes.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "tests/support/fast_op.h"

namespace gantry::test {
namespace {

using Ints = std::vector<int64_t>;

Ints SpatialOf(const Shape& shape) { return Ints(shape.dims().begin() + 2, shape.dims().end()); }

// Values of which many are the same.
Tensor Steps(const Shape& shape, std::mt19937_64& random) {
  Tensor tensor = Drawn(shape, random);
  for (double& value : tensor.values) value = std::round(value * 3.0);
  return tensor;
}

struct Resize {
  Shape x, y;
  Attributes forward, backward;
};

Resize RandomResize(std::mt19937_64& random, int rank) {
  const auto one_of = [&](const std::vector<std::string>& words) {
    return words[Draw(random, 0, static_cast<int64_t>(words.size()) - 1)];
  };
  Ints x = {Draw(random, 1, 3), Draw(random, 1, 35)}, y = x;
  const bool small = Draw(random, 0, 1) == 0;
  const int64_t kind = Draw(random, 0, 3);  // twice as large, half as large, the same, anything
  for (int axis = 0; axis < rank; ++axis) {
    const int64_t extent = Draw(random, 1, rank == 3 ? 7 : small ? 8 : 45);
    x.push_back(kind == 1 ? 2 * extent : extent);
    y.push_back(kind == 0 ? 2 * extent : kind == 3 ? Draw(random, 1, small ? 9 : 50) : extent);
  }
  const Attributes common = {{"mode", one_of({"nearest", "linear"})},
                             {"coordinates", one_of({"asymmetric", "half_pixel", "align_corners"})},
                             {"rounding", one_of({"floor", "round_prefer_floor", "round_prefer_ceil", "ceil"})}};
  const Ints part = {Draw(random, 0, rank - 1), 60, Draw(random, 0, 20), 60, Draw(random, 0, 20)};
  Resize resize{Shape(x), Shape(y), common, common};
  resize.forward.Set("output_spatial", SpatialOf(resize.y));
  resize.backward.Set("output_spatial", SpatialOf(resize.x));
  if (Draw(random, 0, 3) == 0) {
    resize.forward.Set("part", part);
    resize.backward.Set("part", part);
  }
  return resize;
}

TEST(FastResamplingTest, Resize) {
  std::mt19937_64 random(41);
  for (int round = 0; round < 240; ++round) {
    const Resize resize = RandomResize(random, 1 + round % 3);
    ExpectFast("resize", {Drawn(resize.x, random)}, resize.forward, {}, 1e-6, 0.3);
    // Sums of n random terms: their rounding error grows with the root of n.
    const double terms = static_cast<double>(resize.y.element_count()) / static_cast<double>(resize.x.element_count());
    const double floor = 3.0 + std::sqrt(terms);
    ExpectFast("resize_grad", {Drawn(resize.y, random)}, resize.backward, {}, 1e-6, floor);
    if (resize.x.rank() != 4) continue;
    ExpectFast("resize", {Drawn(resize.x, random)}, resize.forward, {.panels = {true}, .panel_output = true}, 1e-6,
               0.3);
    ExpectFast("resize_grad", {Drawn(resize.y, random)}, resize.backward, {.panels = {true}, .panel_output = true},
               1e-6, floor);
  }
}

struct Pool {
  Shape x, y;
  Attributes forward, backward;
};

Pool RandomPool(std::mt19937_64& random, int rank) {
  while (true) {
    Ints x = {Draw(random, 1, 3), Draw(random, 1, 35)}, kernel, strides, pads(2 * rank), dilations;
    const bool plain = Draw(random, 0, 1) == 0;  // the 2x2 that networks use
    const bool small = Draw(random, 0, 1) == 0;
    for (int axis = 0; axis < rank; ++axis) {
      x.push_back(Draw(random, 1, rank == 3 ? 7 : rank == 2 && small ? 12 : 45));
      kernel.push_back(plain ? 2 : Draw(random, 1, 4));
      strides.push_back(plain ? 2 : Draw(random, 1, 3));
      dilations.push_back(plain ? 1 : Draw(random, 1, 2));
      pads[axis] = plain ? 0 : Draw(random, 0, kernel[axis] / 2);
      pads[rank + axis] = plain ? 0 : Draw(random, 0, kernel[axis] / 2);
    }
    Pool pool{Shape(x), {}, {{"kernel", kernel}, {"strides", strides}, {"pads", pads}, {"dilations", dilations}}, {}};
    pool.forward.Set("ceil_mode", Draw(random, 0, 1));
    pool.forward.Set("count_include_pad", Draw(random, 0, 1));
    const TensorType types[] = {{DataType::kF64, pool.x}};
    const auto outputs = InferOp("avg_pool", types, pool.forward);
    if (!outputs.ok()) continue;  // the kernel does not fit
    pool.y = (*outputs)[0].shape;
    pool.backward = pool.forward;
    pool.backward.Set("output_spatial", SpatialOf(pool.x));
    return pool;
  }
}

TEST(FastResamplingTest, AveragePooling) {
  std::mt19937_64 random(42);
  for (int round = 0; round < 240; ++round) {
    const Pool pool = RandomPool(random, 1 + round % 3);
    ExpectFast("avg_pool", {Drawn(pool.x, random)}, pool.forward, {}, 1e-6, 0.5);
    ExpectFast("avg_pool_grad", {Drawn(pool.y, random)}, pool.backward, {}, 1e-6, 0.5);
    if (pool.x.rank() != 4) continue;
    ExpectFast("avg_pool", {Drawn(pool.x, random)}, pool.forward, {.panels = {true}, .panel_output = true}, 1e-6, 0.5);
    ExpectFast("avg_pool_grad", {Drawn(pool.y, random)}, pool.backward, {.panels = {true}, .panel_output = true}, 1e-6,
               0.5);
  }
}

TEST(FastResamplingTest, LargeEnoughForThreads) {
  std::mt19937_64 random(43);
  const Shape small{8, 20, 16, 16}, large{8, 20, 32, 32};
  const Attributes up = {{"mode", std::string("linear")}, {"output_spatial", Ints{32, 32}}};
  const Attributes down = {{"mode", std::string("linear")}, {"output_spatial", Ints{16, 16}}};
  const Attributes pool = {{"kernel", Ints{2, 2}}, {"strides", Ints{2, 2}}};
  Attributes pool_back = pool;
  pool_back.Set("output_spatial", Ints{32, 32});
  for (const bool panel : {false, true}) {
    const FastRun run = {.panels = {panel}, .panel_output = panel};
    ExpectFast("resize", {Drawn(small, random)}, up, run, 1e-6, 0.3);
    ExpectFast("resize_grad", {Drawn(large, random)}, down, run, 1e-6, 1.0);
    ExpectFast("avg_pool", {Drawn(large, random)}, pool, run, 1e-6, 0.5);
    ExpectFast("avg_pool_grad", {Drawn(small, random)}, pool_back, run, 1e-6, 0.5);
  }
  const Tensor x = Steps(large, random);
  ExpectFast("max_pool", {x}, pool, {}, 0.0);
  ExpectFast("max_pool_select", {Drawn(large, random), x}, pool, {}, 0.0);
  ExpectFast("max_pool_grad", {Drawn(small, random), x}, pool, {}, 0.0);
}

// What a place outside every window, or with weight 0, holds must not matter.
TEST(FastResamplingTest, WeightsOfZeroHideInfinity) {
  std::mt19937_64 random(44);
  Tensor x = Drawn({2, 17, 40, 40}, random);
  for (size_t i = 0; i < x.values.size(); ++i) {
    if (i % 2 == 1 || i / 40 % 2 == 1) x.values[i] = std::numeric_limits<double>::infinity();
  }
  const Attributes half = {
      {"mode", std::string("linear")}, {"coordinates", std::string("asymmetric")}, {"output_spatial", Ints{20, 20}}};
  const auto plain = RunFast("resize", {x}, half);
  const auto panel = RunFast("resize", {x}, half, {.panels = {true}, .panel_output = true});
  ASSERT_TRUE(plain.ok() && panel.ok()) << plain.status() << panel.status();
  const std::vector<double> expected = RunTruth("resize", {x}, half)[0].values;
  EXPECT_EQ((*plain)[0].values, expected);
  EXPECT_EQ((*panel)[0].values, expected);
}

TEST(FastMaxPoolingTest, AnyGeometry) {
  std::mt19937_64 random(45);
  for (int round = 0; round < 240; ++round) {
    const Pool pool = RandomPool(random, 1 + round % 3);
    Attributes attributes;
    for (const auto& [name, value] : pool.forward.entries()) {
      if (name != "count_include_pad") attributes.Set(name, value);
    }
    const Tensor x = Steps(pool.x, random);  // the first of equals is the one
    ExpectFast("max_pool", {x}, attributes, {}, 0.0);
    ExpectFast("max_pool_select", {Drawn(pool.x, random), x}, attributes, {}, 0.0);
    // Windows that overlap: sums of a few terms.
    ExpectFast("max_pool_grad", {Drawn(pool.y, random), x}, attributes, {}, 1e-6, 3.0);
  }
}

TEST(FastMaxPoolingTest, TheFirstNaNIsTheMaximum) {
  const double nan = std::nan(""), infinity = std::numeric_limits<double>::infinity();
  const Attributes attributes = {{"kernel", Ints{2}}, {"strides", Ints{2}}};
  const Tensor x =
      MakeTensor({1, 1, 12}, {1, nan, nan, 3, nan, nan, infinity, nan, -infinity, -infinity, 5, 5}, DataType::kF32);
  const Tensor g = MakeTensor({1, 1, 6}, {1, 2, 3, 4, 5, 6}, DataType::kF32);
  const auto gradient = RunFast("max_pool_grad", {g, x}, attributes);
  ASSERT_TRUE(gradient.ok()) << gradient.status();
  EXPECT_EQ((*gradient)[0].values, (std::vector<double>{0, 1, 2, 0, 3, 0, 0, 4, 5, 0, 6, 0}));
}

TEST(FastSoftmaxTest, AlongAnyAxis) {
  std::mt19937_64 random(46);
  for (int round = 0; round < 60; ++round) {
    Ints dims(Draw(random, 1, 4));
    for (int64_t& dim : dims) dim = Draw(random, 1, 23);
    const Tensor x = Drawn(Shape(dims), random, -20.0, 20.0);
    for (size_t axis = 0; axis < dims.size(); ++axis) {
      const Attributes attributes = {{"axis", static_cast<int64_t>(axis) - (round % 2 == 0 ? 0 : std::ssize(dims))}};
      ExpectFast("softmax", {x}, attributes, {}, 2e-6, 0.01);
      ExpectFast("softmax", {x}, attributes, {.in_place = {0}}, 2e-6, 0.01);
    }
  }
  for (const int64_t axis : {0, 1, 2}) {
    ExpectFast("softmax", {Drawn({6, 70, 701}, random, -90.0, 90.0)}, {{"axis", axis}}, {}, 2e-6, 0.01);
  }
}

}  // namespace
}  // namespace gantry::test
