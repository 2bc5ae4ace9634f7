// Every fast kernel against the float64 reference on random shapes, plain and in panels, on one thread and on three.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <set>

#include "ops/kernel.h"
#include "tests/support/fast_op.h"

namespace gantry::test {
namespace {

using Ints = std::vector<int64_t>;

struct OpCase {
  std::string_view op;
  Attributes attributes = {};
  double low = -2.0, high = 2.0;  // of the inputs
};

const std::vector<OpCase>& Unaries() {
  static const auto* const cases = new std::vector<OpCase>{
      {"neg"},
      {"abs"},
      {"sign"},
      {"square"},
      {"exp"},
      {"erf"},
      {"sigmoid"},
      {"tanh"},
      {"softplus"},
      {"silu"},
      {"gelu"},
      {"sqrt", {}, 0.1, 4.0},
      {"log", {}, 0.1, 4.0},
      {"rsqrt", {}, 0.1, 4.0},
      {"reciprocal", {}, 0.1, 4.0},
      {"scale", {{"alpha", 1.5}, {"beta", -0.25}}},
      {"clip", {{"low", -0.5}, {"high", 0.75}}},
      {"leaky_relu", {{"slope", 0.2}}},
      {"leaky_relu", {{"slope", 0.0}}},
      {"cast", {{"dtype", std::string("f32")}}},
  };
  return *cases;
}

const std::vector<OpCase>& Binaries() {
  static const auto* const cases = new std::vector<OpCase>{
      {"add"},
      {"sub"},
      {"mul"},
      {"minimum"},
      {"maximum"},
      {"greater"},
      {"equal"},
      {"div", {}, 0.5, 2.0},
      {"pow", {}, 0.5, 2.0},
  };
  return *cases;
}

const std::vector<OpCase>& Gradients() {
  static const auto* const cases =
      new std::vector<OpCase>{{"leaky_relu_grad", {{"slope", 0.2}}}, {"sigmoid_grad"}, {"tanh_grad"}};
  return *cases;
}

Shape RandomShape(std::mt19937_64& random) {
  std::vector<int64_t> dims(Draw(random, 0, 4));
  for (int64_t& dim : dims) dim = Draw(random, 1, 19);
  return Shape(std::move(dims));
}

TEST(FastElementwiseTest, UnaryPlain) {
  std::mt19937_64 random(1);
  for (const OpCase& one : Unaries()) {
    for (const Shape& shape : {Shape{}, Shape{0, 3}, RandomShape(random), RandomShape(random), Shape{3, 5, 41, 101}}) {
      const Tensor x = Drawn(shape, random, one.low, one.high);
      ExpectFast(one.op, {x}, one.attributes, {});
      ExpectFast(one.op, {x}, one.attributes, {.in_place = {0}});
    }
  }
}

TEST(FastElementwiseTest, UnaryPanel) {
  std::mt19937_64 random(2);
  for (const OpCase& one : Unaries()) {
    for (const Shape& shape : {Shape{3, 16, 4, 5}, Shape{2, 3, 5, 3}, Shape{5, 37, 3, 2}, Shape{64, 40, 8, 8}}) {
      const Tensor x = Drawn(shape, random, one.low, one.high);
      ExpectFast(one.op, {x}, one.attributes, {.panels = {true}, .panel_output = true});
      ExpectFast(one.op, {x}, one.attributes, {.panels = {true}, .panel_output = true, .in_place = {0}});
    }
  }
}

// A shape that broadcasts with `shape`: some axes 1, some leading axes gone.
Shape Shrunk(const Shape& shape, std::mt19937_64& random) {
  std::vector<int64_t> dims;
  for (int axis = static_cast<int>(Draw(random, 0, shape.rank())); axis < shape.rank(); ++axis) {
    dims.push_back(Draw(random, 0, 1) == 0 ? 1 : shape[axis]);
  }
  return Shape(std::move(dims));
}

TEST(FastElementwiseTest, BinaryPlainBroadcasts) {
  std::mt19937_64 random(3);
  for (const OpCase& one : Binaries()) {
    for (int round = 0; round < 12; ++round) {
      const Shape shape = RandomShape(random);
      const Tensor x = Drawn(shape, random, one.low, one.high);
      Tensor y = Drawn(Shrunk(shape, random), random, one.low, one.high);
      if (one.op == "equal" && y.type.shape == shape) y.values = x.values;
      ExpectFast(one.op, {x, y}, one.attributes, {.in_place = {0}});
      ExpectFast(one.op, {y, x}, one.attributes, {.in_place = {1}});
      // Both broadcast.
      ExpectFast(one.op, {Drawn(Shrunk(shape, random), random, one.low, one.high), y}, one.attributes, {});
    }
    const Tensor image = Drawn({4, 6, 40, 50}, random, one.low, one.high);
    for (const Shape& shape :
         {Shape{}, Shape{1, 6, 1, 1}, Shape{6, 1, 1}, Shape{4, 1, 1, 1}, Shape{50}, Shape{4, 6, 40, 50}}) {
      ExpectFast(one.op, {image, Drawn(shape, random, one.low, one.high)}, one.attributes, {});
      ExpectFast(one.op, {Drawn(shape, random, one.low, one.high), image}, one.attributes, {});
    }
  }
}

TEST(FastElementwiseTest, BinaryPanel) {
  std::mt19937_64 random(4);
  std::vector<OpCase> cases = Binaries();
  for (const OpCase& one : cases) {
    for (const Shape& shape : {Shape{3, 16, 4, 5}, Shape{2, 3, 5, 3}, Shape{5, 37, 3, 2}, Shape{64, 40, 8, 8}}) {
      const Tensor x = Drawn(shape, random, one.low, one.high);
      const FastRun both = {.panels = {true, true}, .panel_output = true};
      ExpectFast(one.op, {x, Drawn(shape, random, one.low, one.high)}, one.attributes, both);
      for (const Shape& small : {Shape{}, Shape{1, 1, 1, 1}, Shape{1, shape[1], 1, 1}, Shape{shape[1], 1, 1}}) {
        const Tensor y = Drawn(small, random, one.low, one.high);
        ExpectFast(one.op, {x, y}, one.attributes, {.panels = {true, false}, .panel_output = true, .in_place = {0}});
        ExpectFast(one.op, {y, x}, one.attributes, {.panels = {false, true}, .panel_output = true, .in_place = {1}});
      }
    }
  }
}

TEST(FastElementwiseTest, ActivationGradients) {
  std::mt19937_64 random(5);
  for (const OpCase& one : Gradients()) {
    for (const Shape& shape : {Shape{}, Shape{7}, Shape{2, 3, 5, 3}, Shape{9, 37, 11, 13}}) {
      const std::vector<Tensor> inputs = {Drawn(shape, random), Drawn(shape, random)};
      ExpectFast(one.op, inputs, one.attributes, {.in_place = {1}});
      if (shape.rank() == 4) ExpectFast(one.op, inputs, one.attributes, {.panels = {true, true}, .panel_output = true});
    }
  }
}

TEST(FastElementwiseTest, WhatPanelsDoNotCoverIsLeftToOthers) {
  std::mt19937_64 random(6);
  const Tensor x = Drawn({4, 20, 3, 3}, random);
  for (const Shape& shape : {Shape{4, 1, 1, 1}, Shape{3, 3}, Shape{4, 20, 1, 1}, Shape{4, 20, 3, 3}}) {
    const auto run = RunFast("add", {x, Drawn(shape, random)}, {}, {.panels = {true, false}, .panel_output = true});
    EXPECT_EQ(run.status().code(), absl::StatusCode::kUnimplemented) << shape.ToString();
  }
}

TEST(FastElementwiseTest, BroadcastFillAndAddIf) {
  std::mt19937_64 random(7);
  for (int round = 0; round < 20; ++round) {
    const Shape shape = RandomShape(random);
    ExpectFast("broadcast", {Drawn(Shrunk(shape, random), random)}, {{"dims", shape.dims()}}, {}, 0.0);
  }
  const auto fill = RunFast("fill", {}, {{"value", 0.25}, {"dims", Ints{300, 400}}, {"dtype", std::string("f32")}},
                            {.thread_count = 3});
  ASSERT_TRUE(fill.ok()) << fill.status();
  EXPECT_EQ((*fill)[0].values, std::vector<double>(120000, 0.25));
  for (double flag : {0.0, 1.0}) {
    Tensor x = Drawn({3, 20, 11, 40}, random), y = Drawn({3, 20, 11, 40}, random);
    // Nobody may look at y where the flag is 0.
    if (flag == 0.0) y.values.assign(y.values.size(), std::nan(""));
    const Tensor when = MakeTensor({}, {flag}, DataType::kF32);
    ExpectFast("add_if", {x, y, when}, {}, {});
    ExpectFast("add_if", {x, y, when}, {}, {.in_place = {0}});
    ExpectFast("add_if", {x, y, when}, {}, {.panels = {true, true}, .panel_output = true});
  }
}

TEST(FastReductionTest, PlainOverAnyAxes) {
  std::mt19937_64 random(8);
  for (std::string_view op : {"reduce_sum", "reduce_mean", "reduce_max"}) {
    for (int round = 0; round < 40; ++round) {
      const Tensor x = Drawn(RandomShape(random), random);
      Ints axes;
      for (int axis = 0; axis < x.type.shape.rank(); ++axis) {
        if (Draw(random, 0, 1) == 0) axes.push_back(axis);
      }
      ExpectFast(op, {x}, {{"axes", axes}, {"keep_dims", Draw(random, 0, 1)}}, {}, 2e-7, 1.0);
    }
    // Long ones, which are cut into parts and shared.
    for (const Ints& axes : {Ints{}, Ints{0, 2}, Ints{1}, Ints{0}, Ints{2}, Ints{1, 2}}) {
      ExpectFast(op, {Drawn({6, 70, 701}, random)}, {{"axes", axes}, {"keep_dims", int64_t{0}}}, {}, 2e-7, 1.0);
    }
  }
  ExpectFast("reduce_sum", {Drawn({0, 3}, random)}, {{"axes", Ints{0}}, {"keep_dims", int64_t{0}}}, {});
  ExpectFast("reduce_sum", {Drawn({3, 0}, random)}, {{"axes", Ints{1}}, {"keep_dims", int64_t{0}}}, {});
  ExpectFast("reduce_sum", {Drawn({3, 0}, random)}, {{"axes", Ints{0}}, {"keep_dims", int64_t{0}}}, {});
}

TEST(FastReductionTest, PanelSums) {
  std::mt19937_64 random(9);
  for (const Shape& shape :
       {Shape{3, 16, 4, 5}, Shape{2, 3, 5, 3}, Shape{5, 37, 3, 2}, Shape{64, 40, 8, 8}, Shape{1, 1, 1, 1}}) {
    for (std::string_view op : {"reduce_sum", "reduce_mean"}) {
      for (const Ints& axes : {Ints{}, Ints{0, 2, 3}, Ints{1, 2, 3}, Ints{2, 3}}) {
        for (int64_t keep_dims : {0, 1}) {
          ExpectFast(op, {Drawn(shape, random)}, {{"axes", axes}, {"keep_dims", keep_dims}}, {.panels = {true}}, 2e-7,
                     1.0);
        }
      }
    }
  }
}

TEST(FastReductionTest, ThreadsDoNotChangeABit) {
  std::mt19937_64 random(10);
  const Tensor x = Drawn({8, 24, 33, 50}, random);
  for (const Ints& axes : {Ints{}, Ints{0, 2, 3}, Ints{1}, Ints{0}}) {
    for (bool panel : {false, true}) {
      if (panel && (axes == Ints{1} || axes == Ints{0})) continue;
      const Attributes attributes = {{"axes", axes}, {"keep_dims", int64_t{0}}};
      const auto one = RunFast("reduce_sum", {x}, attributes, {.panels = {panel}, .thread_count = 1});
      const auto five = RunFast("reduce_sum", {x}, attributes, {.panels = {panel}, .thread_count = 5});
      ASSERT_TRUE(one.ok() && five.ok());
      EXPECT_EQ((*one)[0].values, (*five)[0].values);
    }
  }
  const auto one = RunFast("sum_squares", {x, x}, {}, {.thread_count = 1});
  const auto five = RunFast("sum_squares", {x, x}, {}, {.thread_count = 5});
  ASSERT_TRUE(one.ok() && five.ok());
  EXPECT_EQ((*one)[0].values, (*five)[0].values);
}

TEST(FastCastTest, BetweenF32AndF64) {
  std::mt19937_64 random(15);
  for (const auto& [from, to] : {std::pair(DataType::kF32, DataType::kF64), std::pair(DataType::kF64, DataType::kF32)}) {
    const Tensor x = RandomTensor({3, 1000}, random, from);
    const Attributes attributes = {{"dtype", std::string(Name(to))}};
    const auto fast = RunOp("cast", {x}, attributes, {.library = &CpuKernels(), .thread_count = 2});
    const auto plain = RunOp("cast", {x}, attributes);
    ASSERT_TRUE(fast.ok() && plain.ok()) << fast.status() << plain.status();
    EXPECT_EQ((*fast)[0].type.dtype, to);
    EXPECT_EQ((*fast)[0].values, (*plain)[0].values);
  }
}

class FastOptimizerTest : public ::testing::Test {
 protected:
  // `groups` tensors of each shape, the groups at `positive` not negative, and the three scalars.
  std::vector<Tensor> Inputs(int groups, std::set<int> positive, double step, bool scalars = true) {
    std::vector<Tensor> inputs;
    for (int group = 0; group < groups; ++group) {
      for (const Shape& shape : shapes_)
        inputs.push_back(Drawn(shape, random_, positive.contains(group) ? 0.0 : -1.0, 1.0));
    }
    if (scalars) {
      for (double value : {0.01, step, 0.5})
        inputs.push_back(MakeTensor({}, {static_cast<float>(value)}, DataType::kF32));
    }
    return inputs;
  }
  int64_t count() const { return static_cast<int64_t>(shapes_.size()); }
  std::vector<int> InPlace(int groups) const {
    std::vector<int> places;
    for (int i = 0; i < groups * static_cast<int>(shapes_.size()); ++i) places.push_back(i);
    return places;
  }

  const std::vector<Shape> shapes_ = {{}, {7}, {130, 257}, {0}, {3, 3, 3}};
  std::mt19937_64 random_{11};
};

TEST_F(FastOptimizerTest, Adam) {
  for (int64_t decoupled : {0, 1}) {
    for (double step : {1.0, 7.0, 5000.0}) {
      const Attributes attributes = {{"count", count()}, {"beta1", 0.9},         {"beta2", 0.999},
                                     {"epsilon", 1e-8},  {"weight_decay", 0.02}, {"decoupled", decoupled}};
      ExpectFast("adam_update", Inputs(4, {2}, step), attributes, {.in_place = InPlace(3)}, 3e-6, 0.02);
    }
  }
}

TEST_F(FastOptimizerTest, Sgd) {
  for (double momentum : {0.0, 0.9}) {
    for (int64_t nesterov : {0, 1}) {
      if (nesterov == 1 && momentum == 0.0) continue;
      for (double step : {1.0, 2.0}) {
        const Attributes attributes = {{"count", count()},
                                       {"momentum", momentum},
                                       {"nesterov", nesterov},
                                       {"weight_decay", 0.02},
                                       {"dampening", nesterov == 1 ? 0.0 : 0.25}};
        const int groups = momentum == 0.0 ? 2 : 3;
        ExpectFast("sgd_update", Inputs(groups, {}, step), attributes, {.in_place = InPlace(groups - 1)}, 1e-6, 0.1);
      }
    }
  }
}

// Any of the tensors may be the piece alone: where memory is short moments and averages, where gradients come in pieces those.
TEST_F(FastOptimizerTest, APieceOfOneTensorHasTheBitsOfTheWhole) {
  constexpr int64_t kPlaces = 16384;
  const auto IsPart = [](const Tensor& part, const Tensor& whole, int64_t begin, int64_t count) {
    const int64_t first = std::ssize(part.values) == count ? 0 : begin;
    return std::equal(part.values.begin() + first, part.values.begin() + first + count, whole.values.begin() + begin);
  };
  const std::vector<std::tuple<std::string, int, Attributes>> updates = {
      {"adam_update", 4, {{"beta1", 0.9}, {"beta2", 0.999}, {"epsilon", 1e-8}, {"weight_decay", 0.02}, {"decoupled", int64_t{0}}}},
      {"sgd_update", 3, {{"momentum", 0.9}, {"nesterov", int64_t{0}}, {"weight_decay", 0.02}, {"dampening", 0.25}}},
      {"sgd_update", 2, {{"momentum", 0.0}, {"nesterov", int64_t{0}}, {"weight_decay", 0.02}, {"dampening", 0.0}}},
      {"lerp_update", 2, {{"weight", 0.1}, {"scale", 1.25}}}};
  for (auto [name, groups, attributes] : updates) {
    attributes.Set("count", int64_t{1});
    std::vector<Tensor> inputs;
    for (int group = 0; group < groups; ++group) inputs.push_back(Drawn({3, kPlaces}, random_, group == 2 ? 0.0 : -1.0, 1.0));
    if (name != "lerp_update") {
      for (double value : {0.01, 7.0, 0.5}) inputs.push_back(MakeTensor({}, {static_cast<float>(value)}, DataType::kF32));
    }
    const auto whole = RunFast(name, inputs, attributes);
    const auto truth = RunOp(name, inputs, attributes);
    ASSERT_TRUE(whole.ok() && truth.ok());
    for (const auto& [begin, count] : {std::pair(kPlaces, kPlaces), std::pair(2 * kPlaces, kPlaces / 2), std::pair(int64_t{0}, 2 * kPlaces)}) {
      for (unsigned pieces = 1; pieces + 1 < 1u << groups; ++pieces) {
        std::vector<Tensor> parts = inputs;
        for (int group = 0; group < groups; ++group) {
          if ((pieces >> group & 1) == 0) continue;
          const auto first = inputs[group].values.begin() + begin;
          parts[group] = MakeTensor({count}, {first, first + count}, DataType::kF32);
        }
        Attributes part = attributes;
        part.Set("begin", begin);
        const auto fast = RunFast(name, parts, part, {.thread_count = 2});
        const auto plain = RunOp(name, parts, part);
        ASSERT_TRUE(fast.ok() && plain.ok()) << fast.status() << plain.status();
        for (size_t o = 0; o < fast->size(); ++o) {
          EXPECT_TRUE(IsPart((*fast)[o], (*whole)[o], begin, count)) << name << " output " << o << " pieces " << pieces;
          EXPECT_TRUE(IsPart((*plain)[o], (*truth)[o], begin, count)) << name << " output " << o << " pieces " << pieces;
        }
      }
    }
  }
}

TEST_F(FastOptimizerTest, LerpAndSumSquares) {
  ExpectFast("lerp_update", Inputs(2, {}, 1.0, false), {{"count", count()}, {"weight", 0.1}, {"scale", 1.25}},
             {.in_place = InPlace(1)});
  ExpectFast("sum_squares", Inputs(2, {}, 1.0, false), {}, {}, 2e-7);
  ExpectFast("sum_squares", {Drawn({4, 20, 9, 9}, random_)}, {}, {.panels = {true}}, 2e-7);
}

// The fast library has what it says it has: nothing of these families falls to the reference in f32.
// A way to normalize `x`: over which axes, and the shape of scale and bias.
struct NormCase {
  Shape x;
  Ints axes;
  Shape parameter;
};

// Batch, instance, group and layer norm of random sizes, 1-D to 3-D.
std::vector<NormCase> NormCases(std::mt19937_64& random) {
  std::vector<NormCase> cases;
  for (int rank = 3; rank <= 5; ++rank) {
    for (int trial = 0; trial < 4; ++trial) {
      Ints dims = {Draw(random, 1, 3), 2 * Draw(random, 1, 4)}, spatial, all = {1};
      for (int axis = 2; axis < rank; ++axis) {
        dims.push_back(rank == 3 ? Draw(random, 16, 5000) : Draw(random, 4, rank == 4 ? 60 : 14));
        spatial.push_back(axis);
        all.push_back(axis);
      }
      if (rank > 3) dims[2] += 12;  // rows are long enough, so that there is a fast kernel
      Ints parameter(dims.size(), 1);
      parameter[1] = dims[1];
      Ints batch = spatial;
      batch.insert(batch.begin(), 0);
      cases.push_back({Shape(dims), batch, Shape(parameter)});
      cases.push_back({Shape(dims), spatial, Shape(parameter)});
      cases.push_back({Shape(dims), all, Shape(parameter)});
      Ints grouped = dims, grouped_parameter = parameter, grouped_axes;
      grouped.insert(grouped.begin() + 1, 2), grouped[2] /= 2;
      grouped_parameter.insert(grouped_parameter.begin() + 1, 2), grouped_parameter[2] /= 2;
      for (int axis = 2; axis <= rank; ++axis) grouped_axes.push_back(axis);
      cases.push_back({Shape(grouped), grouped_axes, Shape(grouped_parameter)});
    }
  }
  return cases;
}

TEST(FastNormalizationTest, PlainOverAnyAxes) {
  std::mt19937_64 random(31);
  int turn = 0;
  for (const NormCase& c : NormCases(random)) {
    const bool activation = ++turn % 2 == 0;
    Attributes attributes = {{"axes", c.axes}, {"eps", 1e-5}};
    if (activation) attributes.Set("slope", 0.2);
    const std::vector<Tensor> inputs = {Drawn(c.x, random, 1.0, 5.0), Drawn(c.parameter, random, 0.5, 1.5), Drawn(c.parameter, random)};
    ExpectFast("normalize", inputs, attributes, {}, 2e-6, 1.0);
    const std::vector<Tensor> truth = RunTruth("normalize", inputs, attributes);
    std::vector<Tensor> gradient = {Drawn(c.x, random), inputs[0], inputs[1]};
    for (int i = 1; i < 3; ++i) gradient.push_back(MakeTensor(truth[i].type.shape, truth[i].values, DataType::kF32));
    // As f32 stores them, so that the truth sees the same sides of the kink.
    for (Tensor* tensor : {&gradient[3], &gradient[4]}) {
      for (double& value : tensor->values) value = static_cast<float>(value);
    }
    if (activation) {
      gradient.push_back(Drawn(c.x, random));
    }
    // Sums of n random terms: their rounding error grows with the root of n.
    const double floor = std::sqrt(static_cast<double>(c.x.element_count()));
    ExpectFast("normalize_grad", gradient, attributes, {}, 1e-6, floor);
  }
}

// What ranks compute of a norm between their exchanges.
TEST(FastNormalizationTest, HalvesOfANorm) {
  std::mt19937_64 random(33);
  int turn = 0;
  for (const NormCase& c : NormCases(random)) {
    bool same_for_all = true;  // that share a mean: what the gradient's halves are made for
    for (const int64_t axis : c.axes) same_for_all = same_for_all && c.parameter[static_cast<int>(axis)] == 1;
    Attributes eps = {{"eps", 1e-5}};
    const bool activation = ++turn % 2 == 0;
    if (activation) eps.Set("slope", 0.2);
    const auto AsF32 = [](Tensor tensor) {
      for (double& value : tensor.values) value = static_cast<float>(value);
      return MakeTensor(tensor.type.shape, tensor.values, DataType::kF32);
    };
    const Tensor x = Drawn(c.x, random, 1.0, 5.0), g = Drawn(c.x, random), scale = Drawn(c.parameter, random, 0.5, 1.5);
    const Attributes axes = {{"axes", c.axes}};
    ExpectFast("moments", {x}, axes, {}, 2e-6, 1.0);
    const std::vector<Tensor> moments = RunTruth("moments", {x}, axes);
    const Tensor mean = AsF32(moments[0]), variance = AsF32(moments[1]);
    ExpectFast("normalize_apply", {x, scale, Drawn(c.parameter, random), mean, variance}, eps, {}, 2e-6, 1.0);
    if (!same_for_all) continue;
    std::vector<Tensor> sums = {g, x, mean, variance};
    if (activation) sums.push_back(Drawn(c.x, random));
    const double floor = std::sqrt(static_cast<double>(c.x.element_count()));
    ExpectFast("normalize_grad_sums", sums, eps, {}, 1e-6, floor);
    const std::vector<Tensor> of_all = RunTruth("normalize_grad_sums", sums, eps);
    std::vector<Tensor> apply = {g, x, scale, mean, variance, AsF32(of_all[0]), AsF32(of_all[1])};
    if (activation) apply.push_back(sums.back());
    Attributes with_count = eps;
    with_count.Set("count", static_cast<double>(c.x.element_count()) / static_cast<double>(mean.type.element_count()));
    ExpectFast("normalize_grad_apply", apply, with_count, {}, 2e-6, 1.0);
  }
}

TEST(FastNormalizationTest, HalvesOfABatchNormOnPanels) {
  std::mt19937_64 random(34);
  const auto AsF32 = [](const Tensor& tensor) {
    Tensor rounded = MakeTensor(tensor.type.shape, tensor.values, DataType::kF32);
    for (double& value : rounded.values) value = static_cast<float>(value);
    return rounded;
  };
  for (const Shape& shape : {Shape{6, 20, 5, 7}, Shape{16, 3, 9, 4}, Shape{130, 33, 1, 1}}) {
    const Shape parameter{1, shape[1], 1, 1};
    for (const bool activation : {false, true}) {
      Attributes eps = {{"eps", 1e-5}};
      if (activation) eps.Set("slope", 0.2);
      const Attributes axes = {{"axes", Ints{0, 2, 3}}};
      const Tensor x = Drawn(shape, random, 1.0, 5.0), g = Drawn(shape, random), scale = Drawn(parameter, random, 0.5, 1.5);
      ExpectFast("moments", {x}, axes, {.panels = {true}}, 2e-6, 1.0);
      const std::vector<Tensor> moments = RunTruth("moments", {x}, axes);
      const Tensor mean = AsF32(moments[0]), variance = AsF32(moments[1]);
      ExpectFast("normalize_apply", {x, scale, Drawn(parameter, random), mean, variance}, eps,
                 {.panels = {true, false, false, false, false}, .panel_output = true}, 2e-6, 1.0);
      std::vector<Tensor> sums = {g, x, mean, variance};
      std::vector<bool> panels = {true, true, false, false};
      if (activation) {
        sums.push_back(Drawn(shape, random));
        panels.push_back(true);
      }
      ExpectFast("normalize_grad_sums", sums, eps, {.panels = panels}, 1e-6, std::sqrt(static_cast<double>(shape.element_count())));
      const std::vector<Tensor> own = RunTruth("normalize_grad_sums", sums, eps);
      // As of two and a half times the elements: those of other ranks, which may have other numbers of them.
      std::vector<Tensor> apply = {g, x, scale, mean, variance, AsF32(own[0]), AsF32(own[1])};
      panels = {true, true, false, false, false, false, false};
      if (activation) {
        apply.push_back(sums.back());
        panels.push_back(true);
      }
      Attributes with_count = eps;
      with_count.Set("count", 2.5 * static_cast<double>(shape.element_count()) / static_cast<double>(shape[1]));
      for (const std::vector<int>& in_place : {std::vector<int>{}, {0}, {1}}) {
        ExpectFast("normalize_grad_apply", apply, with_count, {.panels = panels, .panel_output = true, .in_place = in_place}, 2e-6, 1.0);
      }
    }
  }
}

TEST(FastNormalizationTest, ResultsOverInputs) {
  std::mt19937_64 random(32);
  const Shape shape{2, 3, 5, 7}, parameter{1, 3, 1, 1};
  const Attributes attributes = {{"axes", Ints{0, 2, 3}}, {"eps", 1e-5}};
  const std::vector<Tensor> inputs = {Drawn(shape, random), Drawn(parameter, random), Drawn(parameter, random)};
  ExpectFast("normalize", inputs, attributes, {.in_place = {0}}, 2e-6, 1.0);
  const std::vector<Tensor> gradient = {Drawn(shape, random), Drawn(shape, random), Drawn(parameter, random), Drawn(parameter, random),
                                        Drawn(parameter, random, 0.5, 1.0)};
  ExpectFast("normalize_grad", gradient, attributes, {.in_place = {0}}, 1e-6, 15.0);
  ExpectFast("normalize_grad", gradient, attributes, {.in_place = {1}}, 1e-6, 15.0);
}

TEST(FastNormalizationTest, ThreadsDoNotChangeABit) {
  std::mt19937_64 random(33);
  const Shape shape{4, 16, 40, 40}, parameter{1, 16, 1, 1}, statistics{4, 16, 1, 1};
  const Attributes attributes = {{"axes", Ints{2, 3}}, {"eps", 1e-5}};
  const std::vector<Tensor> inputs = {Drawn(shape, random), Drawn(shape, random), Drawn(parameter, random), Drawn(statistics, random),
                                      Drawn(statistics, random, 0.5, 1.0)};
  const auto one = RunFast("normalize_grad", inputs, attributes, {.thread_count = 1});
  const auto three = RunFast("normalize_grad", inputs, attributes, {.thread_count = 3});
  ASSERT_TRUE(one.ok() && three.ok());
  for (size_t i = 0; i < one->size(); ++i) EXPECT_EQ((*one)[i].values, (*three)[i].values);
}

TEST(FastRowsTest, PartsAreAddedAndTakenInAnyLayout) {
  std::mt19937_64 random(61);
  for (int round = 0; round < 40; ++round) {
    Shape whole{Draw(random, 1, 5), Draw(random, 1, 35), Draw(random, 1, 9), Draw(random, 1, 9)};
    const int64_t axis = round % 4 == 0 ? Draw(random, 0, 3) : 2, begin = Draw(random, 0, whole[static_cast<int>(axis)] - 1);
    Shape part = whole;
    part[static_cast<int>(axis)] = Draw(random, 0, whole[static_cast<int>(axis)] - begin);
    const std::vector<Tensor> inputs = {Drawn(whole, random), Drawn(part, random)};
    const Attributes added = {{"axis", axis}, {"begin", begin}};
    ExpectFast("add_part", inputs, added, {});
    ExpectFast("add_part", inputs, added, {.in_place = {0}});
    if (axis != 2) continue;
    const Attributes taken = {{"starts", Ints{0, 0, begin, 0}}, {"counts", part.dims()}, {"steps", Ints{1, 1, 1, 1}}};
    ExpectFast("slice", {inputs[0]}, taken, {});
    ExpectFast("add_part", inputs, added, {.panels = {true, true}, .panel_output = true});
    ExpectFast("add_part", inputs, added, {.panels = {true, true}, .panel_output = true, .in_place = {0}});
    ExpectFast("slice", {inputs[0]}, taken, {.panels = {true}, .panel_output = true});
  }
}

TEST(FastKernelsTest, EveryElementwiseOpIsCoveredHere) {
  std::set<std::string_view> checked = {"broadcast", "fill", "add_if", "stop_gradient"};
  for (const auto& cases : {Unaries(), Binaries(), Gradients()}) {
    for (const OpCase& one : cases) checked.insert(one.op);
  }
  for (const OpDefinition& op : ElementwiseOps()) EXPECT_TRUE(checked.contains(op.name)) << op.name;
}

}  // namespace
}  // namespace gantry::test
