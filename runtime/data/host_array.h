// Arrays in ordinary host memory: what the file readers give and the file writers take. Little-endian, row-major,
// owned.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "memory/status.h"

namespace gantry {

static_assert(std::endian::native == std::endian::little, "the readers and writers assume a little-endian host");

// Every element type that a file may hold. Gantry computes in a few of them only (ops/tensor_type.h); the others are
// converted on the way in.
enum class HostType : uint8_t {
  kBool,  // one byte, 0 or not 0
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kU64,
  kI64,
  kF8E4M3,  // 4 exponent bits, no infinity ("fn"); kF8E5M2 has IEEE infinities. OCP 8-bit floating point, 2023.
  kF8E5M2,
  kF16,   // IEEE binary16
  kBF16,  // the upper half of an f32
  kF32,
  kF64,
};

// "bool", "u8", "i8", ..., "f8_e4m3", "f16", "bf16", "f32", "f64".
std::string_view Name(HostType type);
size_t SizeBytes(HostType type);

template <typename T>
constexpr HostType HostTypeOf();  // for uint8_t .. int64_t, float and double

// "[64,3,32,32]"; "[]" for a scalar.
std::string ShapeText(std::span<const int64_t> shape);

// Most dimensions an array may have; the formats' own limits are higher, real data is far below.
inline constexpr size_t kMaxArrayRank = 32;

// The number of elements of `shape` (1 for a scalar) after checks: kInvalidArgument for more than kMaxArrayRank
// dimensions, a negative one, or a size in bytes that does not fit in 63 bits.
absl::StatusOr<int64_t> CheckedElementCount(HostType type, std::span<const int64_t> shape);

// `bytes` zero bytes. kResourceExhausted, naming `what`, instead of std::bad_alloc.
absl::StatusOr<std::vector<std::byte>> AllocateBytes(uint64_t bytes, std::string_view what);

// `count` elements of `type` at `from` (any alignment) as f32 / f64. Integers beyond the mantissa round to nearest.
void ConvertToF32(HostType type, const std::byte* from, int64_t count, float* to);
void ConvertToF64(HostType type, const std::byte* from, int64_t count, double* to);

// Big-endian elements to little-endian ones, or back, in place.
void ReverseByteOrder(HostType type, std::span<std::byte> elements);

float F16ToF32(uint16_t bits);
float BF16ToF32(uint16_t bits);
// Round to nearest even; NaN stays NaN, overflow becomes infinity.
uint16_t F32ToF16(float value);
uint16_t F32ToBF16(float value);

class HostArray {
 public:
  HostArray() = default;  // f32, shape [0]

  // All elements zero. kInvalidArgument as CheckedElementCount, kResourceExhausted where memory is short.
  static absl::StatusOr<HostArray> Create(HostType type, std::vector<int64_t> shape);
  // Takes `bytes`, whose size must be that of the shape.
  static absl::StatusOr<HostArray> FromBytes(HostType type, std::vector<int64_t> shape, std::vector<std::byte> bytes);
  // A copy of `values`, whose count must be that of the shape.
  template <typename T>
  static absl::StatusOr<HostArray> FromValues(std::vector<int64_t> shape, std::span<const T> values);

  HostType type() const { return type_; }
  const std::vector<int64_t>& shape() const { return shape_; }
  int64_t element_count() const { return static_cast<int64_t>(bytes_.size() / SizeBytes(type_)); }
  uint64_t size_bytes() const { return bytes_.size(); }
  std::span<const std::byte> bytes() const { return bytes_; }
  std::span<std::byte> mutable_bytes() { return bytes_; }

  // The elements as T; empty if T is not the array's type.
  template <typename T>
  std::span<const T> values() const {
    if (HostTypeOf<T>() != type_) return {};
    return {reinterpret_cast<const T*>(bytes_.data()), static_cast<size_t>(element_count())};
  }
  template <typename T>
  std::span<T> mutable_values() {
    if (HostTypeOf<T>() != type_) return {};
    return {reinterpret_cast<T*>(bytes_.data()), static_cast<size_t>(element_count())};
  }

  // The same values as another type: kF32 or kF64. kResourceExhausted where memory is short.
  absl::StatusOr<HostArray> ToF32() const;
  absl::StatusOr<HostArray> ToF64() const;

  // "f32[64,3,32,32]".
  std::string ToString() const;
  friend bool operator==(const HostArray&, const HostArray&) = default;  // bitwise

 private:
  HostType type_ = HostType::kF32;
  std::vector<int64_t> shape_ = {0};
  std::vector<std::byte> bytes_;
};

template <>
constexpr HostType HostTypeOf<uint8_t>() {
  return HostType::kU8;
}
template <>
constexpr HostType HostTypeOf<int8_t>() {
  return HostType::kI8;
}
template <>
constexpr HostType HostTypeOf<uint16_t>() {
  return HostType::kU16;
}
template <>
constexpr HostType HostTypeOf<int16_t>() {
  return HostType::kI16;
}
template <>
constexpr HostType HostTypeOf<uint32_t>() {
  return HostType::kU32;
}
template <>
constexpr HostType HostTypeOf<int32_t>() {
  return HostType::kI32;
}
template <>
constexpr HostType HostTypeOf<uint64_t>() {
  return HostType::kU64;
}
template <>
constexpr HostType HostTypeOf<int64_t>() {
  return HostType::kI64;
}
template <>
constexpr HostType HostTypeOf<float>() {
  return HostType::kF32;
}
template <>
constexpr HostType HostTypeOf<double>() {
  return HostType::kF64;
}

template <typename T>
absl::StatusOr<HostArray> HostArray::FromValues(std::vector<int64_t> shape, std::span<const T> values) {
  GANTRY_ASSIGN_OR_RETURN(HostArray array, Create(HostTypeOf<T>(), std::move(shape)));
  if (array.element_count() != static_cast<int64_t>(values.size())) {
    return absl::InvalidArgumentError(absl::StrFormat("%s has %d elements, but %d values were given", array.ToString(),
                                                      array.element_count(), values.size()));
  }
  const auto from = std::as_bytes(values);
  std::copy(from.begin(), from.end(), array.bytes_.begin());
  return array;
}

}  // namespace gantry
