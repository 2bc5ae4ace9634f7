#include "runtime/data/host_array.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <stdexcept>

#include "absl/strings/str_join.h"

namespace gantry {
namespace {

// The value of a float with few bits: `exponent_bits` and `mantissa_bits` below a sign, IEEE but for the special
// values, which the caller has handled.
float SmallFloat(uint32_t bits, int exponent_bits, int mantissa_bits) {
  const uint32_t mantissa = bits & ((1u << mantissa_bits) - 1);
  const int exponent = static_cast<int>((bits >> mantissa_bits) & ((1u << exponent_bits) - 1));
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const float magnitude =
      exponent == 0 ? std::ldexp(static_cast<float>(mantissa), 1 - bias - mantissa_bits)
                    : std::ldexp(static_cast<float>(mantissa | (1u << mantissa_bits)), exponent - bias - mantissa_bits);
  return (bits >> (exponent_bits + mantissa_bits)) & 1 ? -magnitude : magnitude;
}

float F8E4M3ToF32(uint8_t bits) {
  if ((bits & 0x7f) == 0x7f) return std::numeric_limits<float>::quiet_NaN();
  return SmallFloat(bits, 4, 3);
}

float F8E5M2ToF32(uint8_t bits) { return F16ToF32(static_cast<uint16_t>(bits << 8)); }

template <typename T>
T Load(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

template <typename From, typename To, typename Convert>
void ConvertEach(const std::byte* from, int64_t count, To* to, Convert convert) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<To>(convert(Load<From>(from + i * sizeof(From))));
}

template <typename To>
void ConvertTo(HostType type, const std::byte* from, int64_t count, To* to) {
  const auto same = [](auto value) { return value; };
  switch (type) {
    case HostType::kBool:
      return ConvertEach<uint8_t>(from, count, to, [](uint8_t value) { return value != 0; });
    case HostType::kU8:
      return ConvertEach<uint8_t>(from, count, to, same);
    case HostType::kI8:
      return ConvertEach<int8_t>(from, count, to, same);
    case HostType::kU16:
      return ConvertEach<uint16_t>(from, count, to, same);
    case HostType::kI16:
      return ConvertEach<int16_t>(from, count, to, same);
    case HostType::kU32:
      return ConvertEach<uint32_t>(from, count, to, same);
    case HostType::kI32:
      return ConvertEach<int32_t>(from, count, to, same);
    case HostType::kU64:
      return ConvertEach<uint64_t>(from, count, to, same);
    case HostType::kI64:
      return ConvertEach<int64_t>(from, count, to, same);
    case HostType::kF8E4M3:
      return ConvertEach<uint8_t>(from, count, to, F8E4M3ToF32);
    case HostType::kF8E5M2:
      return ConvertEach<uint8_t>(from, count, to, F8E5M2ToF32);
    case HostType::kF16:
      return ConvertEach<uint16_t>(from, count, to, F16ToF32);
    case HostType::kBF16:
      return ConvertEach<uint16_t>(from, count, to, BF16ToF32);
    case HostType::kF32:
      return ConvertEach<float>(from, count, to, same);
    case HostType::kF64:
      return ConvertEach<double>(from, count, to, same);
  }
}

}  // namespace

std::string_view Name(HostType type) {
  switch (type) {
    case HostType::kBool:
      return "bool";
    case HostType::kU8:
      return "u8";
    case HostType::kI8:
      return "i8";
    case HostType::kU16:
      return "u16";
    case HostType::kI16:
      return "i16";
    case HostType::kU32:
      return "u32";
    case HostType::kI32:
      return "i32";
    case HostType::kU64:
      return "u64";
    case HostType::kI64:
      return "i64";
    case HostType::kF8E4M3:
      return "f8_e4m3";
    case HostType::kF8E5M2:
      return "f8_e5m2";
    case HostType::kF16:
      return "f16";
    case HostType::kBF16:
      return "bf16";
    case HostType::kF32:
      return "f32";
    case HostType::kF64:
      return "f64";
  }
  return "?";
}

size_t SizeBytes(HostType type) {
  switch (type) {
    case HostType::kBool:
    case HostType::kU8:
    case HostType::kI8:
    case HostType::kF8E4M3:
    case HostType::kF8E5M2:
      return 1;
    case HostType::kU16:
    case HostType::kI16:
    case HostType::kF16:
    case HostType::kBF16:
      return 2;
    case HostType::kU32:
    case HostType::kI32:
    case HostType::kF32:
      return 4;
    case HostType::kU64:
    case HostType::kI64:
    case HostType::kF64:
      return 8;
  }
  return 1;
}

std::string ShapeText(std::span<const int64_t> shape) { return absl::StrCat("[", absl::StrJoin(shape, ","), "]"); }

absl::StatusOr<int64_t> CheckedElementCount(HostType type, std::span<const int64_t> shape) {
  if (shape.size() > kMaxArrayRank) {
    return absl::InvalidArgumentError(
        absl::StrFormat("an array of %d dimensions; the most supported is %d", shape.size(), kMaxArrayRank));
  }
  // Zero dimensions count as one in the overflow check, so that [2^62, 2^62, 0] is refused whatever the order.
  int64_t bytes = static_cast<int64_t>(SizeBytes(type));
  int64_t count = 1;
  for (int64_t dim : shape) {
    if (dim < 0)
      return absl::InvalidArgumentError(absl::StrFormat("shape %s has a negative dimension", ShapeText(shape)));
    if (__builtin_mul_overflow(bytes, dim == 0 ? 1 : dim, &bytes)) {
      return absl::InvalidArgumentError(
          absl::StrFormat("%s%s has more bytes than a 64-bit size can hold", Name(type), ShapeText(shape)));
    }
    count *= dim;
  }
  return count;
}

absl::StatusOr<std::vector<std::byte>> AllocateBytes(uint64_t bytes, std::string_view what) {
  try {
    return std::vector<std::byte>(bytes);
  } catch (const std::bad_alloc&) {
  } catch (const std::length_error&) {
  }
  return absl::ResourceExhaustedError(absl::StrFormat("no memory for the %d bytes of %s", bytes, what));
}

void ConvertToF32(HostType type, const std::byte* from, int64_t count, float* to) { ConvertTo(type, from, count, to); }
void ConvertToF64(HostType type, const std::byte* from, int64_t count, double* to) { ConvertTo(type, from, count, to); }

void ReverseByteOrder(HostType type, std::span<std::byte> elements) {
  const size_t element_bytes = SizeBytes(type);
  if (element_bytes == 1) return;
  for (size_t at = 0; at + element_bytes <= elements.size(); at += element_bytes) {
    std::reverse(elements.begin() + at, elements.begin() + at + element_bytes);
  }
}

float BF16ToF32(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

float F16ToF32(uint16_t bits) {
  if ((bits & 0x7c00) == 0x7c00) {  // infinity or NaN
    return std::bit_cast<float>((bits & 0x8000u) << 16 | 0x7f800000u | (bits & 0x3ffu) << 13);
  }
  if ((bits & 0x7c00) == 0) return SmallFloat(bits, 5, 10);
  return std::bit_cast<float>((bits & 0x8000u) << 16 | ((bits & 0x7fffu) + ((127 - 15) << 10)) << 13);
}

uint16_t F32ToBF16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if (std::isnan(value)) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

uint16_t F32ToF16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  if (std::isnan(value)) return static_cast<uint16_t>(sign | 0x7e00 | (bits >> 13 & 0x3ff));
  const float magnitude = std::fabs(value);
  if (magnitude >= 65520.0f) return sign | 0x7c00;  // the halfway point to the value after the largest
  if (magnitude < 0x1p-14f) {                       // subnormal: nearbyint rounds to even
    return static_cast<uint16_t>(sign | static_cast<uint16_t>(std::nearbyint(magnitude * 0x1p24f)));
  }
  const uint32_t rounded = (bits & 0x7fffffff) + 0xfff + (bits >> 13 & 1);
  return static_cast<uint16_t>(sign | ((rounded >> 13) - ((127 - 15) << 10)));
}

absl::StatusOr<HostArray> HostArray::Create(HostType type, std::vector<int64_t> shape) {
  GANTRY_ASSIGN_OR_RETURN(const int64_t count, CheckedElementCount(type, shape));
  HostArray array;
  array.type_ = type;
  array.shape_ = std::move(shape);
  GANTRY_ASSIGN_OR_RETURN(array.bytes_, AllocateBytes(static_cast<uint64_t>(count) * SizeBytes(type),
                                                      absl::StrCat(ToAbsl(Name(type)), ShapeText(array.shape_))));
  return array;
}

absl::StatusOr<HostArray> HostArray::FromBytes(HostType type, std::vector<int64_t> shape,
                                               std::vector<std::byte> bytes) {
  GANTRY_ASSIGN_OR_RETURN(const int64_t count, CheckedElementCount(type, shape));
  if (static_cast<uint64_t>(count) * SizeBytes(type) != bytes.size()) {
    return absl::InvalidArgumentError(absl::StrFormat("%s%s has %d bytes, but %d were given", Name(type),
                                                      ShapeText(shape), count * SizeBytes(type), bytes.size()));
  }
  HostArray array;
  array.type_ = type;
  array.shape_ = std::move(shape);
  array.bytes_ = std::move(bytes);
  return array;
}

absl::StatusOr<HostArray> HostArray::ToF32() const {
  GANTRY_ASSIGN_OR_RETURN(HostArray to, Create(HostType::kF32, shape_));
  ConvertToF32(type_, bytes_.data(), element_count(), to.mutable_values<float>().data());
  return to;
}

absl::StatusOr<HostArray> HostArray::ToF64() const {
  GANTRY_ASSIGN_OR_RETURN(HostArray to, Create(HostType::kF64, shape_));
  ConvertToF64(type_, bytes_.data(), element_count(), to.mutable_values<double>().data());
  return to;
}

std::string HostArray::ToString() const { return absl::StrCat(ToAbsl(Name(type_)), ShapeText(shape_)); }

}  // namespace gantry
