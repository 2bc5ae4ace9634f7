// Convolutions by bands of rows: several ops with some rows each give the bits of one op with all of them, on every kernel library, and what
// the convolution without bands gives, but for rounding.
#include "ops/conv_bands.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "tests/support/part_op.h"

namespace gantry {
namespace {

using test::Bytes;
using test::Random;
using test::RunPartOp;
using test::ValueAt;
using test::Without;

struct BandsCase {
  std::string name;
  std::vector<int64_t> spatial = {16, 10};  // of x
  std::vector<int64_t> kernel = {3, 3}, strides = {1, 1}, dilations = {1, 1}, pads = {1, 1, 1, 1};
  int64_t batch = 1, in = 6, out = 8, groups = 1, band = 4;
  bool bias = false, slope = false;
  DataType dtype = DataType::kF32;
};

void PrintTo(const BandsCase& one, std::ostream* out) { *out << one.name; }

struct Tensor {
  TensorType type;
  Bytes bytes;
};

int64_t Rows(const TensorType& type) { return type.shape[kRowAxis]; }

// Rows [begin, end) of a tensor [N, C, rows, ...].
Tensor RowsOf(const Tensor& whole, const RowSpan& rows) {
  Tensor part{whole.type, {}};
  part.type.shape[kRowAxis] = rows.end - rows.begin;
  const int64_t planes = whole.type.shape[0] * whole.type.shape[1], plane = std::ssize(whole.bytes) / planes, row = plane / Rows(whole.type);
  for (int64_t i = 0; i < planes; ++i) {
    part.bytes.insert(part.bytes.end(), whole.bytes.begin() + i * plane + rows.begin * row, whole.bytes.begin() + i * plane + rows.end * row);
  }
  return part;
}

class ConvBandsTest : public ::testing::TestWithParam<BandsCase> {
 protected:
  TensorType Type(int64_t first, int64_t second, std::vector<int64_t> spatial) const {
    spatial.insert(spatial.begin(), {first, second});
    return {GetParam().dtype, Shape(spatial)};
  }
  Tensor Filled(const TensorType& type, uint32_t seed) const { return {type, Random(type, seed)}; }

  std::vector<const KernelLibrary*> Libraries() const {
    if (GetParam().dtype == DataType::kF64) return {&ReferenceKernels()};
    return {&ReferenceKernels(), &CpuKernels()};
  }

  void ExpectNear(const Bytes& got, const Bytes& plain) const {
    ASSERT_EQ(got.size(), plain.size());
    const auto count = static_cast<int64_t>(got.size() / SizeBytes(GetParam().dtype));
    const double tolerance = GetParam().dtype == DataType::kF64 ? 1e-11 : 2e-4;
    for (int64_t i = 0; i < count; ++i) {
      ASSERT_NEAR(ValueAt(got, GetParam().dtype, i), ValueAt(plain, GetParam().dtype, i), tolerance) << i;
    }
  }

  // What `count` rows of the side make from an operand in runs of `run` rows, of which those that are read are there.
  absl::StatusOr<Bytes> RunBands(const KernelLibrary& library, const std::string& name, Attributes attributes, const Tensor& operand,
                                 const std::vector<Tensor>& rest, const RowSpan& reads, const RowSpan& rows, int64_t run) const {
    std::vector<TensorType> types;
    std::vector<Bytes> inputs;
    const int64_t first = reads.begin / run * run, extent = Rows(operand.type);
    for (int64_t row = first; row < reads.end; row += run) {
      const Tensor part = RowsOf(operand, {row, std::min(row + run, extent)});
      types.push_back(part.type);
      inputs.push_back(part.bytes);
    }
    attributes.Set("parts", static_cast<int64_t>(types.size()));
    attributes.Set("first", first);
    attributes.Set("extent", extent);
    attributes.Set("row", rows.begin);
    attributes.Set("count", rows.end - rows.begin);
    for (const Tensor& tensor : rest) {
      types.push_back(tensor.type);
      inputs.push_back(tensor.bytes);
    }
    return RunPartOp(library, name + "_bands", attributes, types, inputs, false);
  }

  // The op on x, or y, and w; weight gradients have rows of g in their inputs. Whole, and in parts of one and of two bands.
  void Check(const std::string& name, const Attributes& attributes, const std::vector<Tensor>& operands) const {
    const BandsCase& c = GetParam();
    const bool weight_grad = name == "conv_weight_grad";
    std::vector<TensorType> types;
    std::vector<Bytes> inputs;
    for (const Tensor& operand : operands) {
      types.push_back(operand.type);
      inputs.push_back(operand.bytes);
    }
    for (const KernelLibrary* library : Libraries()) {
      const absl::StatusOr<Bytes> whole = RunPartOp(*library, name, attributes, types, inputs, false);
      ASSERT_TRUE(whole.ok()) << whole.status();
      const absl::StatusOr<Bytes> plain = RunPartOp(*library, name, Without(attributes, "band"), types, inputs, false);
      ASSERT_TRUE(plain.ok()) << plain.status();
      ExpectNear(*whole, *plain);
      const std::vector<TensorType> outputs = *FindOp(name)->infer(types, attributes);
      const TensorType& side = weight_grad ? types[1] : outputs[0];
      for (const int64_t step : {c.band, 2 * c.band}) {
        for (const int64_t run : {Rows(types[0]), int64_t{4}}) {
          Bytes sum;
          for (int64_t begin = 0; begin < Rows(side); begin += step) {
            const RowSpan rows{begin, std::min(begin + step, Rows(side))};
            const RowSpan reads = RowsRead(name, types, outputs, attributes, rows);
            std::vector<Tensor> rest(operands.begin() + 1, operands.end());
            Attributes part = attributes;
            if (weight_grad) {
              // All of g, or the rows that are needed.
              part.Set("g_first", run == 4 ? begin : 0);
              if (run == 4) rest[0] = RowsOf(rest[0], rows);
              if (begin > 0) rest.push_back({outputs[0], sum});
            }
            const absl::StatusOr<Bytes> made = RunBands(*library, name, part, operands[0], rest, reads, rows, run);
            ASSERT_TRUE(made.ok()) << made.status();
            if (weight_grad) {
              sum = *made;
            } else {
              EXPECT_TRUE(*made == RowsOf({outputs[0], *whole}, rows).bytes) << library->name() << " " << name << " from row " << begin;
            }
          }
          if (weight_grad) {
            EXPECT_TRUE(sum == *whole) << library->name() << " in parts of " << step << " rows";
          }
        }
      }
    }
  }
};

TEST_P(ConvBandsTest, PartsGiveTheBitsOfTheWhole) {
  const BandsCase& c = GetParam();
  const Attributes attributes = {{"strides", c.strides}, {"pads", c.pads}, {"dilations", c.dilations}, {"groups", c.groups}, {"band", c.band}};
  const TensorType x = Type(c.batch, c.in, c.spatial), w = Type(c.out, c.in / c.groups, c.kernel);
  const std::vector<TensorType> types = {x, w};
  const absl::StatusOr<std::vector<TensorType>> made = FindOp("conv")->infer(types, attributes);
  ASSERT_TRUE(made.ok()) << made.status();
  const TensorType y = (*made)[0];
  Attributes activated = attributes;
  if (c.slope) activated.Set("slope", 0.2);
  std::vector<Tensor> forward = {Filled(x, 1), Filled(w, 2)}, backward = {Filled(y, 3), Filled(w, 2)};
  if (c.bias) {
    forward.push_back(Filled({c.dtype, Shape{c.out}}, 4));
    backward.push_back(Filled({c.dtype, Shape{c.in}}, 5));
  }
  Check("conv", activated, forward);
  activated.Set("output_spatial", c.spatial);
  Check("conv_transpose", activated, backward);
  Attributes weights = attributes;
  weights.Set("kernel", c.kernel);
  Check("conv_weight_grad", weights, {Filled(x, 6), Filled(y, 7)});
}

INSTANTIATE_TEST_SUITE_P(
    Cases, ConvBandsTest,
    ::testing::Values(
        BandsCase{.name = "Square"}, BandsCase{.name = "ThreeImages", .batch = 3}, BandsCase{.name = "OneRow", .band = 1},
        BandsCase{.name = "UnevenEnd", .spatial = {19, 7}, .band = 4}, BandsCase{.name = "Points", .kernel = {1, 1}, .pads = {0, 0, 0, 0}},
        BandsCase{.name = "HalvingFours", .spatial = {24, 16}, .kernel = {4, 4}, .strides = {2, 2}},
        BandsCase{.name = "HalvingThrees", .spatial = {17, 12}, .strides = {2, 2}, .band = 2},
        BandsCase{.name = "StrideThree", .spatial = {25, 9}, .kernel = {5, 3}, .strides = {3, 2}, .pads = {2, 0, 1, 1}, .band = 2},
        BandsCase{.name = "RowsThatNoWindowHas", .spatial = {18, 8}, .kernel = {4, 2}, .strides = {4, 2}, .pads = {0, 0, 0, 0}, .band = 2},
        BandsCase{.name = "GapsBetweenWindows", .spatial = {15, 8}, .kernel = {1, 1}, .strides = {2, 2}, .pads = {0, 0, 0, 0}, .band = 2},
        BandsCase{.name = "Dilated", .spatial = {20, 12}, .dilations = {3, 2}, .pads = {3, 2, 3, 2}},
        BandsCase{.name = "UnevenPads", .spatial = {14, 11}, .kernel = {5, 4}, .pads = {4, 1, 0, 2}},
        BandsCase{.name = "NoPads", .spatial = {18, 9}, .pads = {0, 0, 0, 0}},
        BandsCase{.name = "WholeWindows", .spatial = {4, 4}, .kernel = {4, 4}, .pads = {3, 0, 3, 0}, .band = 2},
        BandsCase{.name = "Groups", .batch = 2, .in = 12, .out = 8, .groups = 4}, BandsCase{.name = "EachChannel", .in = 8, .groups = 8},
        BandsCase{.name = "BiasAndActivation", .batch = 2, .bias = true, .slope = true}, BandsCase{.name = "Activation", .slope = true},
        BandsCase{.name = "Bias", .bias = true}, BandsCase{.name = "ManyChannels", .in = 32, .out = 48, .band = 8},
        BandsCase{.name = "OneChannel", .in = 1, .out = 1},
        BandsCase{.name = "Clips", .spatial = {8, 6, 6}, .kernel = {4, 4, 4}, .strides = {2, 2, 2}, .dilations = {1, 1, 1},
                  .pads = {1, 1, 1, 1, 1, 1}, .batch = 2, .band = 2},
        BandsCase{.name = "ClipsInGroups", .spatial = {7, 5, 6}, .kernel = {3, 3, 1}, .strides = {1, 1, 1}, .dilations = {1, 1, 1},
                  .pads = {1, 1, 0, 1, 1, 0}, .in = 4, .out = 4, .groups = 2, .band = 2},
        BandsCase{.name = "Lines", .spatial = {24}, .kernel = {5}, .strides = {2}, .dilations = {1}, .pads = {2, 2}, .batch = 2},
        BandsCase{.name = "Double", .spatial = {15, 8}, .kernel = {4, 4}, .strides = {2, 2}, .batch = 2, .band = 2, .bias = true, .slope = true,
                  .dtype = DataType::kF64}),
    [](const auto& info) { return info.param.name; });

// Weights by rows, and the images of each of their chunks by bands.
TEST(ConvBandsAndRowsTest, ChunksOfWeightsGoOverBands) {
  const TensorType x{DataType::kF32, Shape{2, 8, 12, 12}}, w{DataType::kF32, Shape{40, 8, 4, 4}}, y{DataType::kF32, Shape{2, 40, 6, 6}};
  Attributes attributes = {{"strides", std::vector<int64_t>{2, 2}}, {"pads", std::vector<int64_t>{1, 1, 1, 1}},
                           {"dilations", std::vector<int64_t>{1, 1}}, {"groups", int64_t{1}}, {"chunk", int64_t{16}}};
  attributes.Set("output_spatial", std::vector<int64_t>{12, 12});
  attributes.Set("kernel", std::vector<int64_t>{4, 4});
  const auto Run = [&](std::string_view name, const Attributes& by, const TensorType& a, const TensorType& b) {
    return *RunPartOp(CpuKernels(), name, by, {a, b}, {Random(a, 1), Random(b, 2)}, false);
  };
  Attributes banded = attributes;
  banded.Set("band", int64_t{2});
  for (const auto& [name, a, b] : {std::tuple{"conv", x, w}, {"conv_transpose", y, w}, {"conv_weight_grad", x, y}}) {
    const Bytes got = Run(name, banded, a, b), plain = Run(name, attributes, a, b);
    ASSERT_EQ(got.size(), plain.size());
    for (int64_t i = 0; i < std::ssize(got) / 4; ++i) {
      ASSERT_NEAR(ValueAt(got, DataType::kF32, i), ValueAt(plain, DataType::kF32, i), 2e-4) << name << " " << i;
    }
  }
}

TEST(PutRowsTest, RowsAreReplacedAndOthersStay) {
  const TensorType type{DataType::kF64, Shape{2, 3, 5, 2}};
  const Tensor whole{type, Random(type, 1)};
  const Tensor head = RowsOf(whole, {0, 2}), tail = RowsOf(whole, {2, 5});
  const Attributes at_head = {{"begin", int64_t{0}}, {"extent", int64_t{5}}}, at_tail = {{"begin", int64_t{2}}, {"extent", int64_t{5}}};
  const absl::StatusOr<Bytes> first = RunPartOp(ReferenceKernels(), "put_rows", at_tail, {tail.type}, {tail.bytes}, false);
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_TRUE(RowsOf({type, *first}, {0, 2}).bytes == Bytes(head.bytes.size()));
  const absl::StatusOr<Bytes> both = RunPartOp(ReferenceKernels(), "put_rows", at_head, {head.type, type}, {head.bytes, *first}, false);
  ASSERT_TRUE(both.ok()) << both.status();
  EXPECT_TRUE(*both == whole.bytes);
  const std::vector<TensorType> too_many = {type};
  EXPECT_FALSE(FindOp("put_rows")->infer(too_many, at_tail).ok());
}

TEST(ConvBandsInferenceTest, RefusesWhatIsNoBand) {
  const TensorType x{DataType::kF32, Shape{1, 8, 8, 16}}, w{DataType::kF32, Shape{4, 8, 3, 3}};
  // Rows 4 to 12 of 16, of which rows 3 to 11 are there of x, and 12 to 19 are not.
  const Attributes good = {{"strides", std::vector<int64_t>{1, 1}}, {"pads", std::vector<int64_t>{1, 1, 1, 1}},
                           {"dilations", std::vector<int64_t>{1, 1}}, {"groups", int64_t{1}}, {"band", int64_t{2}}, {"row", int64_t{4}},
                           {"count", int64_t{6}}, {"parts", int64_t{1}}, {"first", int64_t{3}}, {"extent", int64_t{16}}};
  const auto Infer = [&](const std::vector<TensorType>& types, const Attributes& attributes) {
    return FindOp("conv_bands")->infer(types, attributes);
  };
  ASSERT_TRUE(Infer({x, w}, good).ok()) << Infer({x, w}, good).status();
  EXPECT_EQ((*Infer({x, w}, good))[0].shape, (Shape{1, 4, 6, 16}));
  for (const auto& [name, value] : std::vector<std::pair<std::string, int64_t>>{
           {"row", 3}, {"row", -2}, {"row", 12}, {"count", 5}, {"count", 0}, {"count", 8}, {"band", 0}, {"band", 4}, {"parts", 0}, {"parts", 2},
           {"first", 4}, {"first", -1}, {"first", 9}, {"extent", 0}, {"extent", 10}}) {
    Attributes bad = good;
    bad.Set(name, value);
    EXPECT_FALSE(Infer({x, w}, bad).ok()) << name << " " << value;
  }
  EXPECT_FALSE(Infer({x, {DataType::kF32, Shape{1, 8, 2, 8}}, w}, good).ok());
  EXPECT_FALSE(Infer({x, w, {DataType::kF32, Shape{5}}}, good).ok());
}

}  // namespace
}  // namespace gantry
