#include "runtime/graph/onnx/host_tensor.h"

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <cmath>
#include <cstring>
#include <fstream>
#include <numbers>

#include "ops/infer.h"

namespace gantry::onnx {
namespace {

// TensorProto.DataType of ONNX.
enum OnnxType : int32_t {
  kFloat = 1,
  kUint8 = 2,
  kInt8 = 3,
  kUint16 = 4,
  kInt16 = 5,
  kInt32 = 6,
  kInt64 = 7,
  kBool = 9,
  kFloat16 = 10,
  kDouble = 11,
  kUint32 = 12,
  kUint64 = 13,
  kBfloat16 = 16,
};
constexpr int32_t kExternal = 1;  // TensorProto.DataLocation

double HalfToDouble(uint16_t bits) {
  const int exponent = (bits >> 10) & 31;
  const int mantissa = bits & 1023;
  const double sign = bits >> 15 != 0 ? -1.0 : 1.0;
  if (exponent == 31) return mantissa == 0 ? sign * INFINITY : NAN;
  return exponent == 0 ? sign * std::ldexp(mantissa, -24) : sign * std::ldexp(mantissa + 1024, exponent - 25);
}

double Bfloat16ToDouble(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

template <typename T>
T Load(const char* bytes, int64_t index) {
  static_assert(std::endian::native == std::endian::little, "ONNX raw data is little-endian");
  T value;
  std::memcpy(&value, bytes + index * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

// `bytes` holds element_count * element_bytes bytes.
void ReadRaw(const char* bytes, int32_t type, int64_t count, HostTensor& result) {
  const auto Floats = [&](auto convert) {
    result.floats.resize(count);
    for (int64_t i = 0; i < count; ++i) result.floats[i] = convert(i);
  };
  const auto Ints = [&](auto zero) {
    result.ints.resize(count);
    for (int64_t i = 0; i < count; ++i) result.ints[i] = static_cast<int64_t>(Load<decltype(zero)>(bytes, i));
  };
  switch (type) {
    case kFloat:
      return Floats([&](int64_t i) { return static_cast<double>(Load<float>(bytes, i)); });
    case kDouble:
      return Floats([&](int64_t i) { return Load<double>(bytes, i); });
    case kFloat16:
      return Floats([&](int64_t i) { return HalfToDouble(Load<uint16_t>(bytes, i)); });
    case kBfloat16:
      return Floats([&](int64_t i) { return Bfloat16ToDouble(Load<uint16_t>(bytes, i)); });
    case kUint8:
      return Ints(uint8_t{});
    case kInt8:
      return Ints(int8_t{});
    case kUint16:
      return Ints(uint16_t{});
    case kInt16:
      return Ints(int16_t{});
    case kInt32:
      return Ints(int32_t{});
    case kUint32:
      return Ints(uint32_t{});
    case kInt64:
      return Ints(int64_t{});
    case kUint64:
      return Ints(uint64_t{});
    case kBool:
      Ints(uint8_t{});
      for (int64_t& value : result.ints) value = value != 0;
      return;
    default:
      return;
  }
}

absl::Status WrongCount(int64_t want, int64_t got, std::string_view what) {
  return absl::InvalidArgumentError(
      absl::StrFormat("its shape needs %d %s, the file has %d; the model is damaged or cut short", want, what, got));
}

// The typed arrays (float_data and so on) that stand in for raw_data.
absl::Status ReadTyped(const TensorProto& tensor, int32_t type, int64_t count, HostTensor& result) {
  const auto Check = [&](int64_t size) {
    return size == count ? absl::OkStatus() : WrongCount(count, size, "elements");
  };
  switch (type) {
    case kFloat:
      GANTRY_RETURN_IF_ERROR(Check(tensor.float_data_size()));
      result.floats.assign(tensor.float_data().begin(), tensor.float_data().end());
      return absl::OkStatus();
    case kDouble:
      GANTRY_RETURN_IF_ERROR(Check(tensor.double_data_size()));
      result.floats.assign(tensor.double_data().begin(), tensor.double_data().end());
      return absl::OkStatus();
    case kFloat16:
    case kBfloat16:
      GANTRY_RETURN_IF_ERROR(Check(tensor.int32_data_size()));
      for (int32_t bits : tensor.int32_data()) {
        const auto word = static_cast<uint16_t>(bits);
        result.floats.push_back(type == kFloat16 ? HalfToDouble(word) : Bfloat16ToDouble(word));
      }
      return absl::OkStatus();
    case kInt64:
      GANTRY_RETURN_IF_ERROR(Check(tensor.int64_data_size()));
      result.ints.assign(tensor.int64_data().begin(), tensor.int64_data().end());
      return absl::OkStatus();
    case kUint32:
    case kUint64:
      GANTRY_RETURN_IF_ERROR(Check(tensor.uint64_data_size()));
      for (uint64_t value : tensor.uint64_data()) result.ints.push_back(static_cast<int64_t>(value));
      return absl::OkStatus();
    default:
      GANTRY_RETURN_IF_ERROR(Check(tensor.int32_data_size()));
      for (int32_t value : tensor.int32_data()) result.ints.push_back(type == kBool ? value != 0 : value);
      return absl::OkStatus();
  }
}

absl::StatusOr<std::string> ReadExternal(const TensorProto& tensor, const std::filesystem::path& folder,
                                         int64_t want_bytes) {
  if (folder.empty()) {
    return absl::InvalidArgumentError("its data lies in another file; import the model by its path");
  }
  std::string location;
  int64_t offset = 0;
  int64_t length = want_bytes;
  for (const StringStringEntryProto& entry : tensor.external_data()) {
    if (entry.key() == "location") location = entry.value();
    if (entry.key() != "offset" && entry.key() != "length") continue;
    int64_t& number = entry.key() == "offset" ? offset : length;
    const char* end = entry.value().data() + entry.value().size();
    const auto [rest, error] = std::from_chars(entry.value().data(), end, number);
    if (error != std::errc() || rest != end || number < 0) {
      return absl::InvalidArgumentError(
          absl::StrFormat("external data: %s is '%s', not a number of bytes", entry.key(), entry.value()));
    }
  }
  if (length != want_bytes) return WrongCount(want_bytes, length, "bytes of external data");
  if (location.empty() || location.find('\0') != std::string::npos) {
    return absl::InvalidArgumentError("external data: no file is named");
  }
  std::error_code error;
  const std::filesystem::path root = std::filesystem::canonical(folder, error);
  if (error) return absl::NotFoundError(absl::StrFormat("the folder '%s': %s", folder.string(), error.message()));
  const std::filesystem::path file = std::filesystem::weakly_canonical(root / location, error);
  if (error) return absl::NotFoundError(absl::StrFormat("external data '%s': %s", location, error.message()));
  // The canonical path, links resolved, must go on from the canonical folder.
  const auto [root_end, rest] = std::mismatch(root.begin(), root.end(), file.begin(), file.end());
  if (std::filesystem::path(location).is_absolute() || root_end != root.end() || rest == file.end()) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "external data '%s' lies outside the model's folder '%s'; move it there", location, root.string()));
  }
  if (!std::filesystem::is_regular_file(file, error)) {
    return absl::NotFoundError(absl::StrFormat("external data '%s' is no file in '%s'", location, root.string()));
  }
  const auto file_bytes = static_cast<int64_t>(std::filesystem::file_size(file, error));
  if (error || offset > file_bytes || want_bytes > file_bytes - offset) {
    return absl::OutOfRangeError(absl::StrFormat("external data '%s' has %d bytes, needed are %d from offset %d",
                                                 location, file_bytes, want_bytes, offset));
  }
  std::ifstream stream(file, std::ios::binary);
  std::string bytes(static_cast<size_t>(want_bytes), '\0');
  if (!stream.seekg(offset) || !stream.read(bytes.data(), want_bytes)) {
    return absl::DataLossError(absl::StrFormat("external data '%s' cannot be read", location));
  }
  return bytes;
}

}  // namespace

int64_t ToInt64(double value) {
  if (std::isnan(value)) return 0;
  if (value >= 0x1p63) return INT64_MAX;
  if (value <= -0x1p63) return INT64_MIN;
  return static_cast<int64_t>(value);
}

int64_t HostTensor::Integer(int64_t index) const {
  const size_t place = is_splat() ? 0 : static_cast<size_t>(index);
  return kind == ElementKind::kFloat ? ToInt64(floats[place]) : ints[place];
}

void HostTensor::CollapseSplat() {
  const auto Collapse = [](auto& values) {
    if (values.size() < 2) return;
    if (std::adjacent_find(values.begin(), values.end(), std::not_equal_to<>()) != values.end()) return;
    values.erase(values.begin() + 1, values.end());
    values.shrink_to_fit();
  };
  Collapse(floats);
  Collapse(ints);
}

absl::StatusOr<ElementKind> KindOf(int32_t onnx_type, int* element_bytes) {
  switch (onnx_type) {
    case kFloat:
      *element_bytes = 4;
      return ElementKind::kFloat;
    case kDouble:
      *element_bytes = 8;
      return ElementKind::kFloat;
    case kFloat16:
    case kBfloat16:
      *element_bytes = 2;
      return ElementKind::kFloat;
    case kInt64:
    case kUint64:
      *element_bytes = 8;
      return ElementKind::kInt;
    case kInt32:
    case kUint32:
      *element_bytes = 4;
      return ElementKind::kInt;
    case kInt16:
    case kUint16:
      *element_bytes = 2;
      return ElementKind::kInt;
    case kInt8:
    case kUint8:
      *element_bytes = 1;
      return ElementKind::kInt;
    case kBool:
      *element_bytes = 1;
      return ElementKind::kBool;
    default:
      return absl::UnimplementedError(
          absl::StrFormat("ONNX element type %d is not supported; export with floats, integers or bools", onnx_type));
  }
}

absl::StatusOr<TensorHeader> ReadHeader(const TensorProto& tensor) {
  TensorHeader header;
  GANTRY_ASSIGN_OR_RETURN(header.kind, KindOf(tensor.data_type(), &header.element_bytes));
  if (tensor.dims_size() > infer::kMaxRank) {
    return absl::InvalidArgumentError(
        absl::StrFormat("has %d dimensions; at most %d are supported", tensor.dims_size(), infer::kMaxRank));
  }
  header.shape = Shape(std::vector<int64_t>(tensor.dims().begin(), tensor.dims().end()));
  GANTRY_RETURN_IF_ERROR(infer::CheckShape(header.shape));
  return header;
}

absl::StatusOr<HostTensor> ReadTensor(const TensorProto& tensor, const std::filesystem::path& folder) {
  GANTRY_ASSIGN_OR_RETURN(TensorHeader header, ReadHeader(tensor));
  HostTensor result{header.kind, header.shape, {}, {}};
  const int64_t count = header.shape.element_count();
  const int64_t bytes = count * header.element_bytes;
  if (tensor.data_location() == kExternal) {
    GANTRY_ASSIGN_OR_RETURN(const std::string data, ReadExternal(tensor, folder, bytes));
    ReadRaw(data.data(), tensor.data_type(), count, result);
  } else if (tensor.has_raw_data()) {
    const auto size = static_cast<int64_t>(tensor.raw_data().size());
    if (size != bytes) return WrongCount(bytes, size, "bytes");
    ReadRaw(tensor.raw_data().data(), tensor.data_type(), count, result);
  } else {
    GANTRY_RETURN_IF_ERROR(ReadTyped(tensor, tensor.data_type(), count, result));
  }
  return result;
}

double BeforeRounding(float value) {
  if (!std::isfinite(value) || value == 0.0f) return value;
  char text[64];
  char* const end = std::to_chars(text, text + sizeof(text), value, std::chars_format::scientific).ptr;
  double decimal = value;
  std::from_chars(text, end, decimal, std::chars_format::scientific);
  // A decimal of few digits was typed by somebody; one of 8 or 9 may be a rounded formula.
  const auto digits = std::count_if(text, std::find(text, end, 'e'), [](char c) { return c >= '0' && c <= '9'; });
  if (digits < 7) return decimal;
  const double magnitude = std::abs(static_cast<double>(value));
  std::vector<double> candidates = {std::numbers::pi, std::numbers::e, std::numbers::ln2, 2 / std::numbers::pi};
  candidates.push_back(std::sqrt(2 / std::numbers::pi));
  constexpr double kLargest = 4096;
  const auto Add = [&](double integer, auto formula) {
    const double rounded = std::round(integer);
    if (rounded >= 1 && rounded <= kLargest) candidates.push_back(formula(rounded));
  };
  Add(1 / magnitude, [](double n) { return 1 / n; });
  Add(magnitude * magnitude, [](double n) { return std::sqrt(n); });
  Add(1 / (magnitude * magnitude), [](double n) { return 1 / std::sqrt(n); });
  Add(2 / (magnitude * magnitude), [](double n) { return std::sqrt(2 / n); });
  for (double candidate : candidates) {
    if (static_cast<float>(candidate) == static_cast<float>(magnitude)) return std::copysign(candidate, value);
  }
  return decimal;
}

double BeforeRounding(double value) {
  const auto single = static_cast<float>(value);
  return static_cast<double>(single) == value ? BeforeRounding(single) : value;
}

}  // namespace gantry::onnx
