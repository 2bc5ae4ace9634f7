#include "runtime/data/npy.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <optional>

#include "absl/strings/str_join.h"

namespace gantry {
namespace {

constexpr std::string_view kMagic("\x93NUMPY", 6);
constexpr uint64_t kMaxHeaderBytes = 64 << 10;  // real ones have about a hundred
constexpr size_t kDataAlignmentBytes = 64;

struct Descriptor {
  HostType type;
  std::string_view code;  // kind and size, without the byte order
};
constexpr Descriptor kDescriptors[] = {
    {HostType::kBool, "b1"}, {HostType::kU8, "u1"},  {HostType::kI8, "i1"},  {HostType::kU16, "u2"},
    {HostType::kI16, "i2"},  {HostType::kU32, "u4"}, {HostType::kI32, "i4"}, {HostType::kU64, "u8"},
    {HostType::kI64, "i8"},  {HostType::kF16, "f2"}, {HostType::kF32, "f4"}, {HostType::kF64, "f8"},
};

// Reads the header's Python dictionary: text, True, False and tuples of integers are all it may hold.
class HeaderParser {
 public:
  HeaderParser(std::string_view text, std::string_view file) : text_(text), file_(file) {}

  absl::Status Parse(NpyHeader& header) {
    bool has_type = false, has_order = false, has_shape = false;
    GANTRY_RETURN_IF_ERROR(Expect('{'));
    while (!Accept('}')) {
      GANTRY_ASSIGN_OR_RETURN(const std::string_view key, Text());
      GANTRY_RETURN_IF_ERROR(Expect(':'));
      bool* seen = key == "descr"           ? &has_type
                   : key == "fortran_order" ? &has_order
                   : key == "shape"         ? &has_shape
                                            : nullptr;
      if (seen == nullptr) return Error("has an unknown key; known are descr, fortran_order and shape");
      if (*seen) return Error("has the same key twice");
      *seen = true;
      if (key == "descr") {
        GANTRY_RETURN_IF_ERROR(ParseType(header));
      } else if (key == "shape") {
        GANTRY_RETURN_IF_ERROR(ParseShape(header));
      } else if (AcceptWord("True")) {
        header.fortran_order = true;
      } else if (!AcceptWord("False")) {
        return Error("has a fortran_order that is neither True nor False");
      }
      if (Accept(',')) continue;
      GANTRY_RETURN_IF_ERROR(Expect('}'));
      break;
    }
    SkipSpace();
    if (at_ != text_.size()) return Error("goes on after its closing brace");
    if (!has_type || !has_order || !has_shape) return Error("lacks one of the keys descr, fortran_order and shape");
    return absl::OkStatus();
  }

 private:
  absl::Status Error(std::string_view what) const {
    return absl::InvalidArgumentError(absl::StrFormat("%s: its .npy header %s (at character %d)", file_, what, at_));
  }
  void SkipSpace() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\t')) ++at_;
  }
  bool Accept(char wanted) {
    SkipSpace();
    if (at_ >= text_.size() || text_[at_] != wanted) return false;
    ++at_;
    return true;
  }
  bool AcceptWord(std::string_view word) {
    SkipSpace();
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }
  absl::Status Expect(char wanted) {
    if (Accept(wanted)) return absl::OkStatus();
    return Error(absl::StrFormat("has no '%c' where one belongs", wanted));
  }
  absl::StatusOr<std::string_view> Text() {
    SkipSpace();
    const char quote = at_ < text_.size() ? text_[at_] : '\0';
    if (quote != '\'' && quote != '"') return Error("has no quoted text where one belongs");
    const size_t end = text_.find(quote, at_ + 1);
    if (end == std::string_view::npos) return Error("has a text without its closing quote");
    const std::string_view text = text_.substr(at_ + 1, end - at_ - 1);
    at_ = end + 1;
    return text;
  }
  absl::Status ParseType(NpyHeader& header) {
    SkipSpace();
    if (at_ < text_.size() && text_[at_] == '[') {
      return Error("describes records of several fields; only arrays of plain numbers are read");
    }
    GANTRY_ASSIGN_OR_RETURN(const std::string_view text, Text());
    const char order = text.empty() ? '\0' : text[0];
    if (order == '<' || order == '|' || order == '>' || order == '=') {
      for (const Descriptor& descriptor : kDescriptors) {
        if (text.substr(1) != descriptor.code) continue;
        header.type = descriptor.type;
        header.big_endian = order == '>';
        return absl::OkStatus();
      }
    }
    return Error("names an element type that is not read; known are b1, u1 to u8, i1 to i8, f2, f4 and f8");
  }
  absl::Status ParseShape(NpyHeader& header) {
    GANTRY_RETURN_IF_ERROR(Expect('('));
    while (!Accept(')')) {
      SkipSpace();
      int64_t dim = 0;
      const auto [end, error] = std::from_chars(text_.data() + at_, text_.data() + text_.size(), dim);
      if (error != std::errc()) return Error("has a dimension that is no 64-bit integer");
      at_ = static_cast<size_t>(end - text_.data());
      Accept('L');  // Python 2 wrote long integers so
      header.shape.push_back(dim);
      if (header.shape.size() > kMaxArrayRank) return Error("has more than 32 dimensions");
      if (Accept(',')) continue;
      GANTRY_RETURN_IF_ERROR(Expect(')'));
      break;
    }
    return absl::OkStatus();
  }

  const std::string_view text_, file_;
  size_t at_ = 0;
};

// Copies `count` elements that lie column-major in `from` to row-major order.
void ToRowMajor(const std::vector<int64_t>& shape, size_t element_bytes, const std::byte* from, std::byte* to,
                int64_t count) {
  const int rank = static_cast<int>(shape.size());
  std::vector<int64_t> strides(rank), index(rank, 0);
  int64_t stride = 1;
  for (int axis = 0; axis < rank; ++axis) {
    strides[axis] = stride;
    stride *= shape[axis];
  }
  int64_t at = 0;
  for (int64_t i = 0; i < count; ++i) {
    std::memcpy(to + i * element_bytes, from + at * element_bytes, element_bytes);
    for (int axis = rank - 1; axis >= 0; --axis) {
      at += strides[axis];
      if (++index[axis] < shape[axis]) break;
      at -= strides[axis] * shape[axis];
      index[axis] = 0;
    }
  }
}

}  // namespace

absl::StatusOr<NpyHeader> ReadNpyHeader(const ByteSource& source) {
  const auto error = [&](std::string_view what) {
    return absl::InvalidArgumentError(absl::StrFormat("%s: %s", source.name(), what));
  };
  std::byte prefix[12] = {};
  const uint64_t prefix_bytes = std::min<uint64_t>(source.size_bytes(), sizeof(prefix));
  if (prefix_bytes < 10) return error("is too short for a .npy file");
  GANTRY_RETURN_IF_ERROR(source.ReadAt(0, std::span(prefix, prefix_bytes)));
  if (std::memcmp(prefix, kMagic.data(), kMagic.size()) != 0)
    return error("is no .npy file: it does not begin with \\x93NUMPY");
  const auto byte = [&](int at) { return std::to_integer<uint64_t>(prefix[at]); };
  const uint64_t major = byte(6), minor = byte(7);
  if (major < 1 || major > 3 || minor != 0) {
    return error(absl::StrFormat("has .npy version %d.%d; known are 1.0, 2.0 and 3.0", major, minor));
  }
  if (major > 1 && prefix_bytes < 12) return error("is cut short within its .npy header");
  const uint64_t header_at = major == 1 ? 10 : 12;
  const uint64_t header_bytes = byte(8) | byte(9) << 8 | (major == 1 ? 0 : byte(10) << 16 | byte(11) << 24);
  if (header_bytes > kMaxHeaderBytes) {
    return error(absl::StrFormat("has a .npy header of %d bytes; the most read is %d", header_bytes, kMaxHeaderBytes));
  }
  if (header_bytes > source.size_bytes() - header_at) return error("is cut short within its .npy header");
  std::string text(header_bytes, '\0');
  GANTRY_RETURN_IF_ERROR(source.ReadAt(header_at, std::as_writable_bytes(std::span(text))));

  NpyHeader header;
  GANTRY_RETURN_IF_ERROR(HeaderParser(text, source.name()).Parse(header));
  header.data_offset = header_at + header_bytes;
  const absl::StatusOr<int64_t> count = CheckedElementCount(header.type, header.shape);
  if (!count.ok()) return Annotate(count.status(), source.name());
  const uint64_t wanted = static_cast<uint64_t>(*count) * SizeBytes(header.type);
  const uint64_t present = source.size_bytes() - header.data_offset;
  if (wanted != present) {
    return error(absl::StrFormat("%s%s needs %d bytes after the header, the file has %d; %s", Name(header.type),
                                 ShapeText(header.shape), wanted, present,
                                 present < wanted ? "it is cut short" : "files of several arrays are not read"));
  }
  return header;
}

absl::StatusOr<HostArray> ReadNpy(const ByteSource& source) {
  GANTRY_ASSIGN_OR_RETURN(NpyHeader header, ReadNpyHeader(source));
  GANTRY_ASSIGN_OR_RETURN(HostArray array, HostArray::Create(header.type, header.shape));
  GANTRY_RETURN_IF_ERROR(source.ReadAt(header.data_offset, array.mutable_bytes()));
  if (header.big_endian) ReverseByteOrder(header.type, array.mutable_bytes());
  if (!header.fortran_order || header.shape.size() < 2) return array;
  GANTRY_ASSIGN_OR_RETURN(HostArray ordered, HostArray::Create(header.type, header.shape));
  ToRowMajor(header.shape, SizeBytes(header.type), array.bytes().data(), ordered.mutable_bytes().data(),
             array.element_count());
  return ordered;
}

absl::StatusOr<HostArray> ReadNpy(const std::string& path) {
  GANTRY_ASSIGN_OR_RETURN(const auto source, OpenFile(path));
  return ReadNpy(*source);
}

absl::StatusOr<HostArray> DecodeNpy(std::span<const std::byte> bytes, std::string_view name) {
  return ReadNpy(*MemorySource(bytes, std::string(name)));
}

absl::StatusOr<std::string> EncodeNpyHeader(HostType type, std::span<const int64_t> shape) {
  const auto descriptor = std::ranges::find(kDescriptors, type, &Descriptor::type);
  if (descriptor == std::end(kDescriptors)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("NumPy files have no element type %s; convert to f32 or write safetensors", Name(type)));
  }
  std::string text =
      absl::StrFormat("{'descr': '%c%s', 'fortran_order': False, 'shape': (%s%s), }", SizeBytes(type) == 1 ? '|' : '<',
                      descriptor->code, absl::StrJoin(shape, ", "), shape.size() == 1 ? "," : "");
  // Version 1.0: 10 bytes, the text, spaces, a newline. kMaxArrayRank keeps it far below 65,536.
  const size_t total = (10 + text.size() + 1 + kDataAlignmentBytes - 1) / kDataAlignmentBytes * kDataAlignmentBytes;
  text.resize(total - 10 - 1, ' ');
  text.push_back('\n');
  std::string header(kMagic);
  header += {'\x01', '\x00', static_cast<char>(text.size() & 0xff), static_cast<char>(text.size() >> 8)};
  return header + text;
}

absl::Status WriteNpy(const std::string& path, const HostArray& array) {
  GANTRY_ASSIGN_OR_RETURN(const std::string header, EncodeNpyHeader(array.type(), array.shape()));
  GANTRY_ASSIGN_OR_RETURN(const auto file, AtomicFile::Create(path));
  GANTRY_RETURN_IF_ERROR(file->Write(header));
  GANTRY_RETURN_IF_ERROR(file->Write(array.bytes()));
  return file->Commit();
}

}  // namespace gantry
