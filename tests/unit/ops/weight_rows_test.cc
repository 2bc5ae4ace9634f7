// Convolutions by rows of their weights: several ops with some rows each give the bits of one op with all of them, on every kernel library.
#include "ops/weight_rows.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

namespace gantry {
namespace {

using Bytes = std::vector<std::byte>;

struct RowsCase {
  std::string name;
  int rank = 2;  // spatial
  int64_t batch = 1, in = 24, out = 40, size = 6, chunk = 16;
  bool bias = false, slope = false;
  DataType dtype = DataType::kF32;
};

void PrintTo(const RowsCase& one, std::ostream* out) { *out << one.name; }

Bytes Random(const TensorType& type, uint32_t seed) {
  Bytes bytes(type.size_bytes());
  for (int64_t i = 0; i < type.element_count(); ++i) {
    const double value = std::sin(0.7 * static_cast<double>(i + 1) * (seed + 1) + 0.01 * static_cast<double>(i % 977));
    if (type.dtype == DataType::kF64) {
      std::memcpy(&bytes[i * 8], &value, 8);
    } else {
      const auto single = static_cast<float>(value);
      std::memcpy(&bytes[i * 4], &single, 4);
    }
  }
  return bytes;
}

double ValueAt(const Bytes& bytes, DataType dtype, int64_t i) {
  if (dtype == DataType::kF64) {
    double value;
    std::memcpy(&value, &bytes[i * 8], 8);
    return value;
  }
  float value;
  std::memcpy(&value, &bytes[i * 4], 4);
  return value;
}

// 64-byte aligned memory with a copy of `bytes`.
class Memory {
 public:
  explicit Memory(const Bytes& bytes) : size_(bytes.size()), data_(std::aligned_alloc(64, (bytes.size() + 127) / 64 * 64)) {
    std::memcpy(data_, bytes.data(), bytes.size());
  }
  Memory(const Memory&) = delete;
  Memory(Memory&& other) noexcept : size_(other.size_), data_(std::exchange(other.data_, nullptr)) {}
  ~Memory() { std::free(data_); }
  void* data() const { return data_; }
  Bytes Read() const {
    Bytes bytes(size_);
    std::memcpy(bytes.data(), data_, size_);
    return bytes;
  }

 private:
  size_t size_;
  void* data_;
};

// Runs an op; the first output. `over_first`: in the memory of the first input.
absl::StatusOr<Bytes> RunRows(const KernelLibrary& library, std::string_view name, const Attributes& attributes,
                              const std::vector<TensorType>& types, const std::vector<Bytes>& inputs, bool over_first) {
  const OpDefinition& op = *FindOp(name);
  GANTRY_ASSIGN_OR_RETURN(const std::vector<TensorType> outputs, op.infer(types, attributes));
  const KernelRequest request{op, attributes, types, outputs, 2};
  std::unique_ptr<Kernel> kernel;
  if (IsByRows(op, attributes)) {
    GANTRY_ASSIGN_OR_RETURN(kernel, MakeRowsKernel(request, [&](const KernelRequest& chunk) { return library.Make(chunk); }));
  } else {
    GANTRY_ASSIGN_OR_RETURN(kernel, library.Make(request));
  }
  if (kernel == nullptr) return absl::UnimplementedError("no kernel");
  std::vector<Memory> memory;
  std::vector<const void*> pointers;
  for (const Bytes& input : inputs) {
    memory.emplace_back(input);
    pointers.push_back(memory.back().data());
  }
  const Memory result(Bytes(outputs[0].size_bytes(), std::byte{0x55}));
  const Memory scratch(Bytes(kernel->scratch_bytes() + 1, std::byte{0x7f}));
  void* const output[] = {over_first ? memory[0].data() : result.data()};
  GANTRY_RETURN_IF_ERROR(kernel->Run({pointers, output, scratch.data()}));
  return over_first ? memory[0].Read() : result.Read();
}

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
  static Attributes Without(const Attributes& attributes, std::string_view name) {
    Attributes rest;
    for (const auto& [key, value] : attributes.entries()) {
      if (key != name) rest.Set(key, value);
    }
    return rest;
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
      const absl::StatusOr<Bytes> whole = RunRows(*library, name, attributes, types, inputs, false);
      ASSERT_TRUE(whole.ok()) << whole.status();
      const absl::StatusOr<Bytes> plain = RunRows(*library, name, Without(attributes, "chunk"), types, inputs, false);
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
            const absl::StatusOr<Bytes> next = RunRows(*library, name + "_rows", part, part_types, part_inputs, in_place);
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
    const absl::StatusOr<Bytes> whole = RunRows(*library, "conv_weight_grad", attributes, {x, y}, inputs, false);
    ASSERT_TRUE(whole.ok()) << whole.status();
    const absl::StatusOr<Bytes> plain = RunRows(*library, "conv_weight_grad", Without(attributes, "chunk"), {x, y}, inputs, false);
    ASSERT_TRUE(plain.ok()) << plain.status();
    ExpectNear(*whole, *plain);
    for (const int64_t rows : {c.chunk, 2 * c.chunk}) {
      for (int64_t begin = 0; begin < c.out; begin += rows) {
        Attributes part = attributes;
        part.Set("begin", begin);
        part.Set("rows", std::min(rows, c.out - begin));
        const absl::StatusOr<Bytes> piece = RunRows(*library, "conv_weight_grad_rows", part, {x, y}, inputs, false);
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
