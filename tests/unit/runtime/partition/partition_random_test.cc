// Random chains of ops with random attributes over 2 to 5 ranks: values, gradients and gradients of gradients are those
// of one rank. What is drawn follows from the seed alone; a failure prints the program.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "ops/functional.h"
#include "ops/window.h"
#include "runtime/graph/differentiate.h"
#include "runtime/graph/rewrite.h"
#include "runtime/partition/parallel.h"
#include "runtime/partition/partition.h"
#include "tests/support/partition_check.h"

namespace gantry {
namespace {

using test::RunRanks;
using test::Scalars;

class Draw {
 public:
  explicit Draw(uint64_t seed) : engine_(seed) {}
  int64_t operator()(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(engine_() % static_cast<uint64_t>(high - low + 1));
  }
  bool Chance(int percent) { return (*this)(1, 100) <= percent; }
  std::vector<int64_t> Many(size_t count, int64_t low, int64_t high) {
    std::vector<int64_t> values(count);
    for (int64_t& value : values) value = (*this)(low, high);
    return values;
  }
  const char* OneOf(std::vector<const char*> texts) {
    return texts[(*this)(0, static_cast<int64_t>(texts.size()) - 1)];
  }

 private:
  std::mt19937_64 engine_;
};

constexpr int64_t kMostElements = 4000;

// A step of a chain: emits ops that make something of `x`. It may draw what cannot be: the program's status then says
// so.
struct Chain {
  Program& program;
  Draw& draw;
  int weights = 0;

  const Shape& ShapeOf(ValueId value) const { return program.TypeOf(value).shape; }
  ValueId Weight(const std::vector<int64_t>& dims) {
    return program.AddState("w" + std::to_string(weights++), "net", StateRole::kParameter,
                            {DataType::kF64, Shape(dims)}, Initializer{});
  }
  // One that may be named from the end.
  int64_t Axis(int rank) {
    const int64_t axis = draw(0, rank - 1);
    return draw.Chance(50) ? axis - rank : axis;
  }
  std::vector<int64_t> Axes(int rank) {
    std::vector<int64_t> axes;
    for (int axis = 0; axis < rank; ++axis) {
      if (draw.Chance(45)) axes.push_back(draw.Chance(50) ? axis - rank : axis);
    }
    if (axes.empty()) axes.push_back(Axis(rank));
    return axes;
  }

  ops::ConvAttributes Window(int spatial) {
    return {.strides = draw.Many(spatial, 1, draw.Chance(30) ? 5 : 2),
            .pads = draw.Many(2 * spatial, 0, draw.Chance(50) ? 3 : 1),
            .dilations = draw.Many(spatial, 1, draw.Chance(30) ? 3 : 1)};
  }

  ValueId Convolution(ValueId x) {
    const Shape shape = ShapeOf(x);
    const int spatial = shape.rank() - 2;
    ops::ConvAttributes attributes = Window(spatial);
    attributes.groups = shape[1] % 2 == 0 && draw.Chance(30) ? 2 : 1;
    std::vector<int64_t> kernel = draw.Many(spatial, 1, 4);
    const bool transposed = draw.Chance(50);
    const int64_t others = 2 * draw(1, 2);
    std::vector<int64_t> dims = transposed ? std::vector<int64_t>{shape[1], others / attributes.groups}
                                           : std::vector<int64_t>{others, shape[1] / attributes.groups};
    dims.insert(dims.end(), kernel.begin(), kernel.end());
    const ValueId weight = Weight(dims);
    const ValueId bias = draw.Chance(50) ? Weight({others}) : kNoValue;
    if (!transposed) return ops::Conv(program, x, weight, bias, attributes);
    std::vector<int64_t> more(spatial);
    for (int axis = 0; axis < spatial; ++axis) more[axis] = draw(0, attributes.strides[axis] - 1);
    return ops::ConvTranspose(program, x, weight, bias, attributes,
                              ops::ConvTransposeOutput(SpatialDims(shape), kernel, attributes, more));
  }

  ValueId Pool(ValueId x) {
    const int spatial = ShapeOf(x).rank() - 2;
    ops::PoolAttributes attributes{.kernel = draw.Many(spatial, 1, 4)};
    const bool plain = draw.Chance(30);
    const ops::ConvAttributes window = Window(spatial);
    attributes.strides = plain ? attributes.kernel : window.strides;
    if (!plain) {
      attributes.pads = window.pads;
      attributes.dilations = window.dilations;
    }
    attributes.ceil_mode = draw.Chance(40);
    attributes.count_include_pad = draw.Chance(50);
    return draw.Chance(50) ? ops::AvgPool(program, x, attributes) : ops::MaxPool(program, x, attributes);
  }

  ValueId Resize(ValueId x) {
    std::vector<int64_t> spatial;
    for (int axis = 2; axis < ShapeOf(x).rank(); ++axis)
      spatial.push_back(draw.Chance(40) ? 2 * ShapeOf(x)[axis] : draw(1, 9));
    return ops::Resize(
        program, x, spatial,
        {{"mode", std::string(draw.OneOf({"nearest", "linear"}))},
         {"coordinates", std::string(draw.OneOf({"asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel"}))},
         {"rounding", std::string(draw.OneOf({"floor", "round_prefer_floor", "round_prefer_ceil", "ceil"}))}});
  }

  ValueId Norm(ValueId x) {
    const Shape shape = ShapeOf(x);
    const std::vector<int64_t> axes = Axes(shape.rank());
    std::vector<int64_t> dims(shape.rank(), 1), other(shape.rank(), 1);
    for (int axis = 0; axis < shape.rank(); ++axis) {
      if (draw.Chance(40)) dims[axis] = shape[axis];
      if (draw.Chance(40)) other[axis] = shape[axis];
    }
    const ops::Normalized result =
        ops::Normalize(program, x, Weight(dims), Weight(draw.Chance(50) ? dims : other), axes, 0.1);
    return draw.Chance(80) ? result.y : ops::Add(program, result.y, ops::Mul(program, result.mean, result.variance));
  }

  ValueId Slice(ValueId x) {
    const Shape shape = ShapeOf(x);
    std::vector<int64_t> starts, counts, steps;
    for (int axis = 0; axis < shape.rank(); ++axis) {
      const bool all = draw.Chance(50);
      const int64_t step = all ? 1 : draw(1, 2) * (draw.Chance(30) ? -1 : 1);
      const int64_t count = all ? shape[axis] : draw(1, (shape[axis] - 1) / std::abs(step) + 1);
      const int64_t room = shape[axis] - 1 - (count - 1) * std::abs(step);
      const int64_t low = draw(0, room);
      starts.push_back(step > 0 ? low : low + (count - 1) * -step);
      counts.push_back(count);
      steps.push_back(step);
    }
    return ops::Slice(program, x, starts, counts, steps);
  }

  ValueId Concatenation(ValueId x) {
    std::vector<ValueId> parts = {x, ops::Scale(program, x, -0.5, 0.25)};
    if (draw.Chance(40)) {
      std::vector<int64_t> dims = ShapeOf(x).dims();
      parts.push_back(Weight(dims));
    }
    std::shuffle(parts.begin(), parts.end(), std::mt19937(draw(0, 99)));
    return ops::Concat(program, parts, Axis(ShapeOf(x).rank()));
  }

  ValueId Padding(ValueId x) {
    std::vector<int64_t> pads = draw.Many(2 * ShapeOf(x).rank(), 0, 2);
    for (int64_t& pad : pads) pad = draw.Chance(50) ? 0 : pad;
    return ops::Pad(program, x, pads, 0.5);
  }

  ValueId Reduction(ValueId x) {
    const std::vector<int64_t> axes = Axes(ShapeOf(x).rank());
    const bool keep = draw.Chance(70);
    const int64_t which = draw(0, 2);
    const ValueId reduced = which == 0   ? ops::ReduceSum(program, x, axes, keep)
                            : which == 1 ? ops::ReduceMean(program, x, axes, keep)
                                         : ops::ReduceMax(program, x, axes, keep);
    return keep && draw.Chance(60) ? ops::Mul(program, x, reduced) : reduced;
  }

  ValueId Product(ValueId x) {
    const Shape shape = ShapeOf(x);
    if (shape.rank() < 2) return x;
    const bool left = draw.Chance(50), transposed = draw.Chance(50);
    const int64_t inner = left ? shape[shape.rank() - 1] : shape[shape.rank() - 2], outer = draw(1, 4);
    const bool swap = left == transposed;
    std::vector<int64_t> dims = swap ? std::vector<int64_t>{outer, inner} : std::vector<int64_t>{inner, outer};
    if (draw.Chance(20)) return ops::Matmul(program, x, x, false, true);
    return left ? ops::Matmul(program, x, Weight(dims), false, transposed)
                : ops::Matmul(program, Weight(dims), x, transposed, false);
  }

  ValueId Rearranged(ValueId x) {
    const Shape shape = ShapeOf(x);
    std::vector<int64_t> perm(shape.rank());
    for (int axis = 0; axis < shape.rank(); ++axis) perm[axis] = axis;
    if (draw.Chance(50)) {
      std::shuffle(perm.begin(), perm.end(), std::mt19937(draw(0, 99)));
      return ops::Transpose(program, x, perm);
    }
    // Two axes become one, or one becomes two.
    std::vector<int64_t> dims = shape.dims();
    const auto at = static_cast<size_t>(draw(0, shape.rank() - 1));
    if (at + 1 < dims.size() && draw.Chance(50)) {
      dims[at] *= dims[at + 1];
      dims.erase(dims.begin() + static_cast<std::ptrdiff_t>(at) + 1);
    } else {
      const int64_t factor = dims[at] % 3 == 0 ? 3 : dims[at] % 2 == 0 ? 2 : 1;
      dims[at] /= factor;
      dims.insert(dims.begin() + static_cast<std::ptrdiff_t>(at) + draw(0, 1), factor);
    }
    return ops::Reshape(program, x, Shape(dims));
  }

  ValueId Elementwise(ValueId x) {
    const Shape shape = ShapeOf(x);
    std::vector<int64_t> dims;
    for (int axis = static_cast<int>(draw(0, shape.rank() - 1)); axis < shape.rank(); ++axis)
      dims.push_back(draw.Chance(50) ? shape[axis] : 1);
    switch (draw(0, 6)) {
      case 0:
        return ops::Mul(program, x, Weight(dims));
      case 1:
        return ops::Add(program, Weight(dims), x);
      case 2:
        return ops::LeakyRelu(program, x, 0.2);
      case 3:
        return ops::Tanh(program, x);
      case 4:
        return ops::Maximum(program, x, Weight(dims));
      case 5:
        return ops::Softmax(program, x, Axis(shape.rank()));
      default:
        return ops::Div(program, x, ops::Scale(program, ops::Square(program, Weight(dims)), 1.0, 1.0));
    }
  }

  ValueId Rows(ValueId x) {
    const int64_t axis = Axis(ShapeOf(x).rank());
    const int at = static_cast<int>(axis < 0 ? axis + ShapeOf(x).rank() : axis);
    const ValueId indices =
        program.AddInput("indices" + std::to_string(weights++) + "." + std::to_string(ShapeOf(x)[at]),
                         {DataType::kI64, Shape(draw.Many(draw(1, 2), 1, 4))});
    return ops::Gather(program, x, indices, axis);
  }

  ValueId Next(ValueId x) {
    const bool image = ShapeOf(x).rank() >= 3 && ShapeOf(x).rank() <= 5;
    switch (draw(0, 13)) {
      case 0:
      case 1:
      case 2:
        return image ? Convolution(x) : Elementwise(x);
      case 3:
      case 4:
        return image ? Pool(x) : Product(x);
      case 5:
        return image ? Resize(x) : Rearranged(x);
      case 6:
        return Norm(x);
      case 7:
        return Slice(x);
      case 8:
        return Concatenation(x);
      case 9:
        return Padding(x);
      case 10:
        return Reduction(x);
      case 11:
        return Product(x);
      case 12:
        return draw.Chance(50) ? Rearranged(x) : Rows(x);
      default:
        return Elementwise(x);
    }
  }
};

// Chains end in scalars: what is compared are inner products with any numbers, of values, gradients, and gradients of a
// penalty on gradients.
Program MakeProgram(Draw& draw, std::string& made) {
  const int rank = static_cast<int>(draw(3, 5));
  std::vector<int64_t> dims = {draw(1, 6), draw(1, 4)};
  for (int axis = 2; axis < rank; ++axis) dims.push_back(draw(1, rank == 3 ? 24 : rank == 4 ? 10 : 6));
  Program program;
  const ValueId x = program.AddInput("real.0.0", {DataType::kF64, Shape(dims)});
  ValueId y = x;
  int weights = 0;
  for (int64_t length = draw(1, 3), tries = 0; length > 0 && tries < 60; ++tries) {
    Program trial = program;
    Chain chain{trial, draw, weights};
    const ValueId next = chain.Next(y);
    if (!trial.status().ok() || next == kNoValue || trial.TypeOf(next).shape.element_count() > kMostElements ||
        trial.TypeOf(next).shape.element_count() == 0 || trial.TypeOf(next).shape.rank() < 1 ||
        trial.TypeOf(next).shape.rank() > 6) {
      continue;
    }
    program = std::move(trial);
    weights = chain.weights;
    y = next;
    --length;
  }
  int probes = 0;
  const auto Probe = [&](ValueId value, const std::string& name) {
    if (value == kNoValue) return;
    const ValueId numbers = program.AddInput("probe" + std::to_string(probes++), program.TypeOf(value));
    const ValueId terms = ops::Mul(program, value, numbers);
    program.AddOutput(name, ops::ReduceSum(program, terms, {}));
    program.AddOutput("size of " + name,
                      ops::ReduceSum(program, ops::Abs(program, terms), {}));  // what rounding is measured by
  };
  Probe(y, "value");
  const ValueId target = program.AddInput("target", program.TypeOf(y));
  const ValueId loss = ops::ReduceSum(program, ops::Square(program, ops::Sub(program, y, target)), {});
  program.AddOutput("loss", loss);
  std::vector<ValueId> variables = {x};
  for (const State& state : program.states()) variables.push_back(state.first);
  const ValueId outputs[] = {loss}, ones[] = {kNoValue};
  const absl::StatusOr<std::vector<ValueId>> gradients = Differentiate(program, outputs, ones, variables);
  EXPECT_TRUE(gradients.ok()) << gradients.status();
  if (!gradients.ok()) return program;
  for (size_t i = 0; i < variables.size(); ++i) Probe((*gradients)[i], "gradient " + std::to_string(i));
  if ((*gradients)[0] != kNoValue) {
    const ValueId penalty[] = {ops::ReduceSum(program, ops::Square(program, (*gradients)[0]), {})};
    program.AddOutput("penalty", penalty[0]);
    const absl::StatusOr<std::vector<ValueId>> second = Differentiate(program, penalty, ones, variables);
    EXPECT_TRUE(second.ok()) << second.status();
    if (!second.ok()) return program;
    for (size_t i = 0; i < variables.size(); ++i) Probe((*second)[i], "second gradient " + std::to_string(i));
  }
  EXPECT_TRUE(program.status().ok()) << program.status();
  absl::StatusOr<Program> simple = Simplify(program);
  EXPECT_TRUE(simple.ok()) << simple.status();
  made = simple->Dump();
  return *std::move(simple);
}

double NumberAt(const std::string& name, int64_t element) {
  if (name.starts_with("indices")) {
    const int64_t extent = std::stoll(name.substr(name.find('.') + 1));
    return static_cast<double>((element * 5 + 1) % extent);
  }
  uint64_t mixed = static_cast<uint64_t>(element) * 0x9e3779b97f4a7c15u;
  for (const char letter : name) mixed = (mixed ^ static_cast<unsigned char>(letter)) * 0x100000001b3u;
  mixed ^= mixed >> 31;
  mixed *= 0xbf58476d1ce4e5b9u;
  mixed ^= mixed >> 29;
  return static_cast<double>(mixed % 100003) / 50001.5 - 1.0;
}

// Ops that a case partitioned without gathering their operands, by kind: so that the test shows what it has tested.
using Coverage = std::map<std::string, int>;

bool CheckCase(uint64_t seed, Coverage& apart, Coverage& gathered) {
  Draw draw(seed);
  std::string text;
  const Program program = MakeProgram(draw, text);
  if (testing::Test::HasFailure()) return false;
  std::vector<RankProgram> one(1);
  one[0].program = program;
  const absl::StatusOr<std::vector<Scalars>> expected = RunRanks(one, NumberAt);
  EXPECT_TRUE(expected.ok()) << expected.status() << "\n" << text;
  if (!expected.ok()) return false;
  for (const char* split : {"batch", "space", "shard", "batch+shard", "space+shard", "batch+space", "channel", "channel+shard", "pipeline"}) {
    const int count = std::string_view(split) == "batch+space" ? 4 : static_cast<int>(draw(2, 5));
    PartitionAxis axis{.shard_states = std::string_view(split).find("shard") != std::string_view::npos,
                       .least_rows = draw(1, 3),
                       .least_channels = 1,
                       .least_elements = draw(1, 4)};
    axis.split = split[0] == 'b'                                ? SplitKind::kBatch
                 : split[0] == 'c'                              ? SplitKind::kChannel
                 : std::string_view(split).starts_with("space") ? SplitKind::kSpace
                                                                : SplitKind::kNone;
    for (int rank = 0; rank < count; ++rank) axis.ranks.push_back(rank);
    if (draw.Chance(40)) {
      for (int rank = 0; rank < count; ++rank) axis.shares.push_back(static_cast<double>(draw(1, 4)));
    }
    std::vector<RankProgram> ranks;
    int refused = 0;
    for (int rank = 0; rank < count; ++rank) {
      absl::StatusOr<RankProgram> mine;
      if (std::string_view(split) == "batch+space") {
        mine = PartitionFor(program, {.batch = true, .space = true}, rank, count);
        // Rows that differ in their samples may not fit together: every rank says so, or none.
        if (absl::IsInvalidArgument(mine.status()) &&
            mine.status().message().find("different numbers of samples") != std::string::npos) {
          EXPECT_EQ(program.TypeOf(program.inputs()[0]).shape[0] % 2, 1) << text;
          ++refused;
          continue;
        }
      } else if (std::string_view(split) == "pipeline") {
        mine = PartitionFor(program, {.pipeline = true}, rank, count);
      } else {
        mine = Partition(program, axis, rank);
      }
      EXPECT_TRUE(mine.ok()) << mine.status() << "\nseed " << seed << ", " << split << " over " << count << "\n"
                             << text;
      if (!mine.ok()) return false;
      ranks.push_back(*std::move(mine));
    }
    EXPECT_TRUE(refused == 0 || refused == count) << "seed " << seed << "\n" << text;
    if (refused > 0) {
      ++gathered["mesh_refused"];
      continue;
    }
    const absl::StatusOr<std::vector<Scalars>> actual = RunRanks(ranks, NumberAt);
    EXPECT_TRUE(actual.ok()) << actual.status() << "\nseed " << seed << ", " << split << " over " << count << "\n"
                             << text;
    if (!actual.ok()) return false;
    for (const std::string& op : ranks[0].gathered) ++gathered[op];
    for (const Op& op : ranks[0].program.ops()) ++apart[std::string(op.definition->name)];
    double largest = 0.0;
    for (const auto& [name, value] : expected->front()) largest = std::max(largest, std::fabs(value));
    for (int rank = 0; rank < count; ++rank) {
      for (const auto& [name, value] : expected->front()) {
        const double other = (*actual)[rank].at(name);
        const auto size = expected->front().find("size of " + name);
        const double terms = std::max({1.0, std::fabs(value), size == expected->front().end() ? 0.0 : size->second});
        const bool near = std::fabs(value - other) <= 1e-10 * terms + 1e-14 * largest;
        EXPECT_TRUE(near || (std::isnan(value) && std::isnan(other)))
            << name << " of rank " << rank << " is " << other << ", not " << value << "\nseed " << seed << ", " << split
            << " over " << count << "\n"
            << text << "\nrank's program\n"
            << ranks[rank].program.Dump();
        if (!near) return false;
      }
    }
  }
  return true;
}

// The batch becomes a spatial dimension: 15 samples are 8 and 7, of which eight places are enough for two ranks, and
// seven are not.
TEST(PartitionMeshTest, RowsThatWouldNotFitTogetherAreRefused) {
  const auto Make = [](int64_t batch) {
    Program program;
    const ValueId x = program.AddInput("real.0.0", {DataType::kF64, Shape{batch, 3, 11}});
    const ValueId weight =
        program.AddState("weight", "net", StateRole::kParameter, {DataType::kF64, Shape{2, 11, 2}}, Initializer{});
    const ValueId y = ops::Conv(program, ops::Transpose(program, x, {1, 2, 0}), weight, kNoValue, {.pads = {0, 1}});
    program.AddOutput("loss", ops::ReduceSum(program, ops::Square(program, y), {}));
    return program;
  };
  for (int rank = 0; rank < 4; ++rank) {
    const absl::StatusOr<RankProgram> refused = PartitionFor(Make(15), {.batch = true, .space = true}, rank, 4);
    ASSERT_FALSE(refused.ok());
    EXPECT_NE(refused.status().message().find("rows 0 and 1 of the 2 x 2 mesh have different numbers of samples"),
              std::string::npos)
        << refused.status();
    EXPECT_TRUE(PartitionFor(Make(16), {.batch = true, .space = true}, rank, 4).ok());
    EXPECT_TRUE(PartitionFor(Make(15), {.batch = true}, rank, 4).ok());
  }
}

class PartitionRandomTest : public testing::TestWithParam<int> {};

// GANTRY_TEST_CASES draws more.
int CaseCount() {
  const char* text = std::getenv("GANTRY_TEST_CASES");
  return text == nullptr ? 300 : std::atoi(text);
}

TEST_P(PartitionRandomTest, EqualsOneRank) {
  Coverage apart, gathered;
  const int count = CaseCount();
  int failures = 0;
  for (int i = 0; i < count && failures < 3; ++i) {
    const uint64_t seed = static_cast<uint64_t>(GetParam()) * 1000003 + static_cast<uint64_t>(i);
    failures += CheckCase(seed, apart, gathered) ? 0 : 1;
    if (HasFailure()) break;
  }
  for (const auto& [op, times] : gathered) RecordProperty("gathered_" + op, times);
  for (const auto& [op, times] : apart) RecordProperty("ran_" + op, times);
}

INSTANTIATE_TEST_SUITE_P(Seeds, PartitionRandomTest, testing::Range(0, 8));

}  // namespace
}  // namespace gantry
