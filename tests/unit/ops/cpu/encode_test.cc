// Sign bits and what is made of them, against the ops on whole values.
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <random>

#include "ops/cpu/panel/panel_layout.h"
#include "ops/cpu/vector/vector_kernels.h"
#include "ops/kernel.h"
#include "tests/support/run_op.h"

namespace gantry::test {
namespace {

template <typename T>
std::vector<T> Values(int64_t count, std::mt19937_64& random) {
  std::vector<T> values(count);
  for (T& value : values) value = static_cast<T>(std::normal_distribution<>()(random));
  constexpr T kOdd[] = {T{0},
                        -T{0},
                        std::numeric_limits<T>::quiet_NaN(),
                        std::numeric_limits<T>::infinity(),
                        -std::numeric_limits<T>::infinity(),
                        std::numeric_limits<T>::denorm_min(),
                        -std::numeric_limits<T>::denorm_min()};
  for (const T odd : kOdd) values[random() % values.size()] = odd;
  return values;
}

std::unique_ptr<Kernel> Make(const KernelLibrary& library, std::string_view op, std::span<const TensorType> inputs,
                             TensorType& output, const Attributes& attributes, int threads) {
  const OpDefinition& definition = *FindOp(op);
  auto types = definition.infer(inputs, attributes);
  EXPECT_TRUE(types.ok()) << types.status();
  const TensorLayout layout = output.layout;
  output = types->at(0);
  output.layout = layout;
  const TensorType outputs[] = {output};
  auto kernel = library.Make({definition, attributes, inputs, outputs, threads});
  EXPECT_TRUE(kernel.ok()) << kernel.status();
  EXPECT_NE(*kernel, nullptr) << op;
  return *std::move(kernel);
}

// Both ways to the gradient, over memory that is compared to the bit.
template <typename T>
void ExpectSame(const KernelLibrary& library, const TensorType& type, double slope, int threads,
                std::mt19937_64& random) {
  const auto count = type.size_bytes() / static_cast<int64_t>(sizeof(T));
  std::vector<T> y = Values<T>(count, random), g = Values<T>(count, random);
  if (type.layout == TensorLayout::kPanel) {  // the tail of the last panel is zero
    for (std::vector<T>* values : {&y, &g}) {
      std::vector<float> plain(type.element_count());
      cpu::PanelToPlain(reinterpret_cast<float*>(values->data()), type.shape[0], type.shape[1], type.shape[2],
                        type.shape[3], plain.data(), 1);
      cpu::PlainToPanel(plain.data(), type.shape[0], type.shape[1], type.shape[2], type.shape[3],
                        reinterpret_cast<float*>(values->data()), 1);
    }
  }
  const Attributes attributes{{"slope", slope}};
  const TensorType pair[] = {type, type};
  TensorType out{.layout = type.layout}, bits_type, from_bits{.layout = type.layout};
  const auto whole = Make(library, "leaky_relu_grad", pair, out, attributes, threads);
  const auto signs = Make(library, "sign_bits", std::span(pair, 1), bits_type, {}, threads);
  EXPECT_EQ(bits_type.size_bytes(), (count + 7) / 8);
  const TensorType inputs[] = {type, bits_type};
  const auto gradient = Make(library, "leaky_relu_grad_bits", inputs, from_bits, attributes, threads);
  if (whole == nullptr || signs == nullptr || gradient == nullptr) return;
  EXPECT_EQ(from_bits, type);
  std::vector<T> expected(count), found(count);
  std::vector<uint8_t> bits(bits_type.size_bytes(), 0xa5);
  const void* const whole_in[] = {g.data(), y.data()};
  void* const whole_out[] = {expected.data()};
  ASSERT_TRUE(whole->Run({whole_in, whole_out, nullptr}).ok());
  const void* const signs_in[] = {y.data()};
  void* const signs_out[] = {bits.data()};
  ASSERT_TRUE(signs->Run({signs_in, signs_out, nullptr}).ok());
  for (int64_t i = 0; i < 8 * bits_type.size_bytes(); ++i) {
    ASSERT_EQ(bits[i / 8] >> (i % 8) & 1, i < count && y[i] > 0 ? 1 : 0) << i;
  }
  for (const bool in_place : {false, true}) {
    std::vector<T> copy = g;
    const void* const in[] = {copy.data(), bits.data()};
    void* const to[] = {in_place ? copy.data() : found.data()};
    ASSERT_TRUE(gradient->Run({in, to, nullptr}).ok());
    ASSERT_EQ(std::memcmp(to[0], expected.data(), count * sizeof(T)), 0) << type.ToString() << " " << in_place;
  }
}

TEST(SignBitsTest, FastKernelsGiveTheSameBitsInAnyLayout) {
  std::mt19937_64 random(1);
  for (const int threads : {1, 3}) {
    for (const double slope : {0.0, 0.2, 1.0}) {
      for (const int64_t count : {1, 7, 8, 9, 63, 1000, 300001}) {
        ExpectSame<float>(CpuKernels(), {DataType::kF32, Shape{count}}, slope, threads, random);
      }
      for (const Shape& shape : {Shape{4, 3, 5, 7}, Shape{5, 33, 8, 8}, Shape{8, 64, 32, 32}}) {
        ExpectSame<float>(CpuKernels(), {DataType::kF32, shape, TensorLayout::kPanel}, slope, threads, random);
      }
    }
  }
}

TEST(SignBitsTest, SoDoReferenceKernelsInBothTypes) {
  std::mt19937_64 random(2);
  for (const int64_t count : {1, 8, 9, 1000}) {
    ExpectSame<float>(ReferenceKernels(), {DataType::kF32, Shape{count}}, 0.2, 1, random);
    ExpectSame<double>(ReferenceKernels(), {DataType::kF64, Shape{count}}, 0.2, 1, random);
  }
}

TEST(SignBitsTest, EveryInstructionSetDoesTheSame) {
  std::mt19937_64 random(3);
  const std::vector<float> x = Values<float>(1013, random);
  std::vector<uint8_t> expected(127), bits(127);
  std::vector<float> scaled(1013), found(1013);
  cpu::VectorKernelsFor(cpu::Isa::kPortable).sign_bits(x.data(), expected.data(), 1013);
  cpu::VectorKernelsFor(cpu::Isa::kPortable).scale_by_bits(x.data(), expected.data(), scaled.data(), 1013, 0.3f);
  for (const cpu::Isa isa : {cpu::Isa::kAvx2, cpu::Isa::kAvx512}) {
    if (!cpu::IsaAvailable(isa)) continue;
    cpu::VectorKernelsFor(isa).sign_bits(x.data(), bits.data(), 1013);
    EXPECT_EQ(bits, expected) << cpu::Name(isa);
    cpu::VectorKernelsFor(isa).scale_by_bits(x.data(), bits.data(), found.data(), 1013, 0.3f);
    EXPECT_EQ(std::memcmp(found.data(), scaled.data(), found.size() * sizeof(float)), 0) << cpu::Name(isa);
  }
}

TEST(SignBitsTest, WrongTypesAreRefused) {
  const OpDefinition& gradient = *FindOp("leaky_relu_grad_bits");
  const TensorType g{DataType::kF32, Shape{20}}, bits{DataType::kU8, Shape{3}};
  const Attributes slope{{"slope", 0.1}};
  EXPECT_TRUE(gradient.infer(std::vector{g, bits}, slope).ok());
  EXPECT_FALSE(gradient.infer(std::vector{g, bits}, {}).ok());
  EXPECT_FALSE(gradient.infer(std::vector{g, bits}, {{"slope", -0.1}}).ok());
  EXPECT_FALSE(gradient.infer(std::vector{g, g}, slope).ok());
  EXPECT_FALSE(gradient.infer(std::vector{g, TensorType{DataType::kU8, Shape{2}}}, slope).ok());
  EXPECT_FALSE(FindOp("sign_bits")->infer(std::vector{bits}, {}).ok());
}

}  // namespace
}  // namespace gantry::test
