// Convolutions by rows of their weights: several ops with some rows each give the bits of one op with all of them, on every kernel library.
#include "ops/weight_rows.h"

#include <gtest/gtest.h>

#include "tests/support/part_op.h"

namespace gantry {
namespace {

using test::Bytes;
using test::Random;
using test::RunPartOp;
using test::ValueAt;
using test::Without;

struct RowsCase {
  std::string name;
  int rank = 2;  // spatial
  int64_t batch = 1, in = 24, out = 40, size = 6, chunk = 16;
  bool bias = false, slope = false;
  DataType dtype = DataType::kF32;
};

void PrintTo(const RowsCase& one, std::ostream* out) { *out << one.name; }

// Rows [begin, begin + rows) of axis 0.
Bytes Part(const Bytes& whole, int64_t axis, int64_t begin, int64_t rows) {
  const int64_t row = static_cast<int64_t>(whole.size()) / axis;
  return {whole.begin() + begin * row, whole.begin() + (begin + rows) * row};
}

class WeightRowsTest : public ::testing::TestWithParam<RowsCase> {
 protected:
  std::vector<int64_t> Spatial(int64_t extent) const { return std::vector<int64_t>(GetParam().rank, extent); }
  TensorType Type(int64_t first, int64_t second, int64_t spatial) const {
    std::vector<int64_t> dims = {first, second};
    dims.resize(2 + GetParam().rank, spatial);
    return {GetParam().dtype, Shape(dims)};
  }
  std::vector<const KernelLibrary*> Libraries() const {
    if (GetParam().dtype == DataType::kF64) return {&ReferenceKernels()};
    return {&ReferenceKernels(), &CpuKernels()};
  }
  // 4x4 of stride 2, as GANs have.
  Attributes Conv() const {
    return {{"strides", Spatial(2)}, {"pads", std::vector<int64_t>(2 * GetParam().rank, 1)}, {"dilations", Spatial(1)},
            {"groups", int64_t{1}}, {"chunk", GetParam().chunk}};
  }
  // The same values as the op without chunks, but for rounding.
  void ExpectNear(const Bytes& got, const Bytes& plain) const {
    ASSERT_EQ(got.size(), plain.size());
    const int64_t count = static_cast<int64_t>(got.size()) / (GetParam().dtype == DataType::kF64 ? 8 : 4);
    const double tolerance = GetParam().dtype == DataType::kF64 ? 1e-11 : 2e-4;
    for (int64_t i = 0; i < count; ++i) {
      ASSERT_NEAR(ValueAt(got, GetParam().dtype, i), ValueAt(plain, GetParam().dtype, i), tolerance) << i;
    }
  }
};

// conv and conv_transpose: whole, and as chains of pieces of one and of two chunks.
TEST_P(WeightRowsTest, ChainsGiveTheBitsOfTheWhole) {
  const RowsCase& c = GetParam();
  const TensorType w = Type(c.out, c.in, 4), x = Type(c.batch, c.in, 2 * c.size), y = Type(c.batch, c.out, c.size);
  for (const bool transpose : {false, true}) {
    const std::string name = transpose ? "conv_transpose" : "conv";
    Attributes attributes = Conv();
    if (transpose) attributes.Set("output_spatial", Spatial(2 * c.size));
    if (c.slope) attributes.Set("slope", 0.2);
    const TensorType& image = transpose ? y : x;
    const TensorType& result = transpose ? x : y;
    std::vector<TensorType> types = {image, w};
    std::vector<Bytes> inputs = {Random(image, 1), Random(w, 2)};
    const int64_t channels = transpose ? c.in : c.out;
    if (c.bias) {
      types.push_back({c.dtype, Shape{channels}});
      inputs.push_back(Random(types[2], 3));
    }
    for (const KernelLibrary* library : Libraries()) {
      const absl::StatusOr<Bytes> whole = RunPartOp(*library, name, attributes, types, inputs, false);
      ASSERT_TRUE(whole.ok()) << whole.status();
      const absl::StatusOr<Bytes> plain = RunPartOp(*library, name, Without(attributes, "chunk"), types, inputs, false);
      ASSERT_TRUE(plain.ok()) << plain.status();
      ExpectNear(*whole, *plain);
      for (const int64_t rows : {c.chunk, 2 * c.chunk}) {
        for (const bool in_place : {false, true}) {
          Bytes chain(result.size_bytes(), std::byte{0});
          for (int64_t begin = 0; begin < c.out; begin += rows) {
            const int64_t count = std::min(rows, c.out - begin);
            const bool last = begin + count == c.out;
            Attributes part = transpose && !last ? Without(attributes, "slope") : attributes;
            part.Set("begin", begin);
            std::vector<TensorType> part_types = {result, image, Type(count, c.in, 4)};
            std::vector<Bytes> part_inputs = {chain, inputs[0], Part(inputs[1], c.out, begin, count)};
            if (c.bias && (!transpose || last)) {
              part_types.push_back({c.dtype, Shape{transpose ? channels : count}});
              part_inputs.push_back(transpose ? inputs[2] : Part(inputs[2], c.out, begin, count));
            }
            const absl::StatusOr<Bytes> next = RunPartOp(*library, name + "_rows", part, part_types, part_inputs, in_place);
            ASSERT_TRUE(next.ok()) << next.status();
            chain = *next;
          }
          EXPECT_TRUE(chain == *whole) << library->name() << " " << name << " in pieces of " << rows << " rows";
        }
      }
    }
  }
}

TEST_P(WeightRowsTest, GradientsOfRowsAreRowsOfTheGradient) {
  const RowsCase& c = GetParam();
  const TensorType w = Type(c.out, c.in, 4), x = Type(c.batch, c.in, 2 * c.size), y = Type(c.batch, c.out, c.size);
  Attributes attributes = Conv();
  attributes.Set("kernel", Spatial(4));
  const std::vector<Bytes> inputs = {Random(x, 4), Random(y, 5)};
  for (const KernelLibrary* library : Libraries()) {
    const absl::StatusOr<Bytes> whole = RunPartOp(*library, "conv_weight_grad", attributes, {x, y}, inputs, false);
    ASSERT_TRUE(whole.ok()) << whole.status();
    const absl::StatusOr<Bytes> plain = RunPartOp(*library, "conv_weight_grad", Without(attributes, "chunk"), {x, y}, inputs, false);
    ASSERT_TRUE(plain.ok()) << plain.status();
    ExpectNear(*whole, *plain);
    for (const int64_t rows : {c.chunk, 2 * c.chunk}) {
      for (int64_t begin = 0; begin < c.out; begin += rows) {
        Attributes part = attributes;
        part.Set("begin", begin);
        part.Set("rows", std::min(rows, c.out - begin));
        const absl::StatusOr<Bytes> piece = RunPartOp(*library, "conv_weight_grad_rows", part, {x, y}, inputs, false);
        ASSERT_TRUE(piece.ok()) << piece.status();
        EXPECT_TRUE(*piece == Part(*whole, c.out, begin, std::min(rows, c.out - begin))) << library->name() << " from row " << begin;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Cases, WeightRowsTest,
    ::testing::Values(RowsCase{.name = "OneImage"}, RowsCase{.name = "ThreeImages", .batch = 3},
                      RowsCase{.name = "BiasAndActivation", .batch = 2, .bias = true, .slope = true},
                      RowsCase{.name = "Activation", .slope = true}, RowsCase{.name = "Bias", .bias = true},
                      RowsCase{.name = "Volumes", .rank = 3, .in = 16, .out = 36, .size = 3, .chunk = 8},
                      RowsCase{.name = "ManyChannels", .in = 96, .out = 160, .chunk = 32},
                      RowsCase{.name = "Lines", .rank = 1, .batch = 2, .size = 12},
                      RowsCase{.name = "Double", .batch = 2, .bias = true, .slope = true, .dtype = DataType::kF64}),
    [](const auto& info) { return info.param.name; });

TEST(WeightRowsInferenceTest, RefusesWhatIsNoPiece) {
  const TensorType into{DataType::kF32, Shape{1, 32, 4, 4}}, x{DataType::kF32, Shape{1, 8, 8, 8}}, w{DataType::kF32, Shape{16, 8, 4, 4}};
  const Attributes good = {{"strides", std::vector<int64_t>{2, 2}}, {"pads", std::vector<int64_t>{1, 1, 1, 1}},
                           {"dilations", std::vector<int64_t>{1, 1}}, {"groups", int64_t{1}}, {"chunk", int64_t{16}}, {"begin", int64_t{16}}};
  const auto Infer = [&](const std::vector<TensorType>& types, const Attributes& attributes) {
    return FindOp("conv_rows")->infer(types, attributes).status();
  };
  EXPECT_TRUE(Infer({into, x, w}, good).ok()) << Infer({into, x, w}, good);
  for (const auto& [name, value] : std::vector<std::pair<std::string, int64_t>>{{"begin", 8}, {"begin", 32}, {"begin", -16}, {"chunk", 0}, {"groups", 2}}) {
    Attributes bad = good;
    bad.Set(name, value);
    EXPECT_FALSE(Infer({into, x, w}, bad).ok()) << name << " " << value;
  }
  EXPECT_FALSE(Infer({{DataType::kF32, Shape{1, 32, 5, 4}}, x, w}, good).ok());
  EXPECT_FALSE(Infer({into, x, {DataType::kF32, Shape{12, 8, 4, 4}}}, good).ok());
  EXPECT_FALSE(Infer({into, x, {DataType::kF32, Shape{16}}}, good).ok());
}

}  // namespace
}  // namespace gantry
