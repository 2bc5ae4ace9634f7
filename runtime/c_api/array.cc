#include <algorithm>
#include <array>
#include <cmath>
#include <variant>

#include "runtime/c_api/call.h"
#include "runtime/c_api/handles.h"
#include "runtime/data/image_grid.h"
#include "runtime/data/npy.h"
#include "runtime/data/npz.h"
#include "runtime/data/safetensors.h"

using namespace gantry;
using namespace gantry::c_api;

struct gantry_archive {
  std::variant<HostArray, NpzFile, SafetensorsFile> file;
  std::vector<std::string> names;
};

namespace gantry::c_api {
namespace {

struct TypePair {
  HostType host;
  int32_t public_type;
};
constexpr TypePair kTypes[] = {
    {HostType::kF32, GANTRY_F32},       {HostType::kF64, GANTRY_F64},       {HostType::kI32, GANTRY_I32},
    {HostType::kI64, GANTRY_I64},       {HostType::kU8, GANTRY_U8},         {HostType::kBool, GANTRY_BOOL},
    {HostType::kI8, GANTRY_I8},         {HostType::kU16, GANTRY_U16},       {HostType::kI16, GANTRY_I16},
    {HostType::kU32, GANTRY_U32},       {HostType::kU64, GANTRY_U64},       {HostType::kF16, GANTRY_F16},
    {HostType::kBF16, GANTRY_BF16},     {HostType::kF8E4M3, GANTRY_F8_E4M3}, {HostType::kF8E5M2, GANTRY_F8_E5M2},
};

// Recognises the format by its first bytes: NumPy's magic, ZIP's, or the length and '{' of a safetensors header.
absl::StatusOr<gantry_archive> OpenArchive(const std::string& path) {
  GANTRY_ASSIGN_OR_RETURN(std::shared_ptr<const ByteSource> source, OpenFile(path));
  std::array<std::byte, 9> head{};
  const size_t count = std::min<uint64_t>(head.size(), source->size_bytes());
  GANTRY_RETURN_IF_ERROR(source->ReadAt(0, std::span(head).first(count)));
  const std::string_view text(reinterpret_cast<const char*>(head.data()), count);
  gantry_archive archive;
  if (text.starts_with("\x93NUMPY")) {
    GANTRY_ASSIGN_OR_RETURN(archive.file, ReadNpy(*source));
    archive.names = {""};
  } else if (text.starts_with("PK")) {
    GANTRY_ASSIGN_OR_RETURN(NpzFile file, NpzFile::Open(std::move(source)));
    archive.names = file.names();
    archive.file = std::move(file);
  } else if (count == 9 && text[8] == '{') {
    GANTRY_ASSIGN_OR_RETURN(SafetensorsFile file, SafetensorsFile::Open(std::move(source)));
    for (const SafetensorsEntry& entry : file.tensors()) archive.names.push_back(entry.name);
    archive.file = std::move(file);
  } else {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s is neither a .npy, a .npz nor a .safetensors file (judged by its first bytes)", path));
  }
  return archive;
}

absl::StatusOr<HostArray> ReadFrom(const gantry_archive& archive, std::string_view name) {
  if (const auto* array = std::get_if<HostArray>(&archive.file)) {
    if (!name.empty()) return absl::NotFoundError(absl::StrFormat("a .npy file has one array without a name, not '%s'", name));
    return *array;
  }
  if (std::find(archive.names.begin(), archive.names.end(), name) == archive.names.end()) {
    return absl::NotFoundError(absl::StrFormat("no array '%s'%s; the file has %d arrays", name,
                                               NearestName(name, archive.names), archive.names.size()));
  }
  if (const auto* npz = std::get_if<NpzFile>(&archive.file)) return npz->Read(name);
  return std::get<SafetensorsFile>(archive.file).Read(name);
}

}  // namespace

int32_t FromHostType(HostType type) {
  for (const TypePair& pair : kTypes) {
    if (pair.host == type) return pair.public_type;
  }
  return 0;
}

absl::StatusOr<HostType> ToHostType(int32_t dtype) {
  for (const TypePair& pair : kTypes) {
    if (pair.public_type == dtype) return pair.host;
  }
  return Error(GANTRY_INVALID_ARGUMENT, absl::StrFormat("%d is no gantry_dtype", dtype));
}

int32_t FromDataType(DataType type) {
  switch (type) {
    case DataType::kF32: return GANTRY_F32;
    case DataType::kF64: return GANTRY_F64;
    case DataType::kI32: return GANTRY_I32;
    case DataType::kI64: return GANTRY_I64;
    case DataType::kU8: return GANTRY_U8;
  }
  return 0;
}

absl::StatusOr<DataType> ToDataType(int32_t dtype) {
  switch (dtype) {
    case GANTRY_F32: return DataType::kF32;
    case GANTRY_F64: return DataType::kF64;
    case GANTRY_I32: return DataType::kI32;
    case GANTRY_I64: return DataType::kI64;
    case GANTRY_U8: return DataType::kU8;
    default: {
      const char* name = gantry_dtype_name(dtype);
      return Error(GANTRY_INVALID_ARGUMENT,
                   absl::StrFormat("networks have no values of type %s; they have f32, f64, i32, i64 and u8",
                                   name == nullptr ? std::to_string(dtype) : std::string(name)));
    }
  }
}

absl::StatusOr<Shape> ToShape(DataType type, size_t rank, const int64_t* dims) {
  if (rank > 8) return Error(GANTRY_INVALID_ARGUMENT, absl::StrFormat("rank %d is more than 8 dimensions", rank));
  if (rank > 0) GANTRY_RETURN_IF_ERROR(RequireNonNull("dims", dims));
  Shape shape(std::vector<int64_t>(dims, dims + rank));
  int64_t bytes = static_cast<int64_t>(gantry::SizeBytes(type));
  for (int64_t extent : shape.dims()) {
    if (extent < 1) {
      return Error(GANTRY_INVALID_ARGUMENT, absl::StrFormat("shape %s has the extent %d; all must be 1 or more", shape.ToString(), extent));
    }
    if (extent > (int64_t{1} << 60) / bytes) {
      return Error(GANTRY_INVALID_ARGUMENT, absl::StrFormat("shape %s is larger than any memory", shape.ToString()));
    }
    bytes *= extent;
  }
  return shape;
}

}  // namespace gantry::c_api

extern "C" {

const char* gantry_dtype_name(int32_t dtype) {
  const absl::StatusOr<HostType> type = ToHostType(dtype);
  return type.ok() ? Name(*type).data() : nullptr;  // names are literals
}

size_t gantry_dtype_size(int32_t dtype) {
  const absl::StatusOr<HostType> type = ToHostType(dtype);
  return type.ok() ? SizeBytes(*type) : 0;
}

gantry_status gantry_array_create(int32_t dtype, size_t rank, const int64_t* dims, const void* data, gantry_array** array) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("array", array));
    GANTRY_ASSIGN_OR_RETURN(const HostType type, ToHostType(dtype));
    if (rank > kMaxArrayRank) return absl::InvalidArgumentError(absl::StrFormat("rank %d is above %d", rank, kMaxArrayRank));
    if (rank > 0) GANTRY_RETURN_IF_ERROR(RequireNonNull("dims", dims));
    GANTRY_ASSIGN_OR_RETURN(HostArray made, HostArray::Create(type, std::vector<int64_t>(dims, dims + rank)));
    if (data != nullptr && made.size_bytes() > 0) std::memcpy(made.mutable_bytes().data(), data, made.size_bytes());
    *array = new gantry_array{std::move(made)};
    return absl::OkStatus();
  });
}

gantry_status gantry_array_load(const char* path, const char* name, gantry_array** array) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("path, array", path, array));
    absl::StatusOr<gantry_archive> archive = OpenArchive(path);
    if (!archive.ok()) return FromFile(archive.status());
    std::string_view chosen = Text(name);
    if (name == nullptr) {
      if (archive->names.size() != 1) {
        return Error(GANTRY_INVALID_ARGUMENT,
                     absl::StrFormat("%s has %d arrays: say which one", path, archive->names.size()));
      }
      chosen = archive->names[0];
    }
    absl::StatusOr<HostArray> read = ReadFrom(*archive, chosen);
    if (!read.ok()) return FromFile(Annotate(read.status(), path));
    *array = new gantry_array{*std::move(read)};
    return absl::OkStatus();
  });
}

gantry_status gantry_array_convert(const gantry_array* array, int32_t dtype, gantry_array** converted) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("array, converted", array, converted));
    if (dtype != GANTRY_F32 && dtype != GANTRY_F64) {
      return Error(GANTRY_INVALID_ARGUMENT, "an array can be converted to GANTRY_F32 and GANTRY_F64 only");
    }
    GANTRY_ASSIGN_OR_RETURN(HostArray made, dtype == GANTRY_F32 ? array->array.ToF32() : array->array.ToF64());
    *converted = new gantry_array{std::move(made)};
    return absl::OkStatus();
  });
}

gantry_status gantry_array_save(const gantry_array* array, const char* path) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("array, path", array, path));
    return ToFile(WriteNpy(path, array->array));
  });
}

void gantry_array_destroy(gantry_array* array) { delete array; }
int32_t gantry_array_dtype(const gantry_array* array) { return array == nullptr ? 0 : FromHostType(array->array.type()); }
size_t gantry_array_rank(const gantry_array* array) { return array == nullptr ? 0 : array->array.shape().size(); }
const int64_t* gantry_array_dims(const gantry_array* array) { return array == nullptr ? nullptr : array->array.shape().data(); }
size_t gantry_array_element_count(const gantry_array* array) {
  return array == nullptr ? 0 : static_cast<size_t>(array->array.element_count());
}
size_t gantry_array_size_bytes(const gantry_array* array) { return array == nullptr ? 0 : array->array.size_bytes(); }
const void* gantry_array_data(const gantry_array* array) { return array == nullptr ? nullptr : array->array.bytes().data(); }

gantry_status gantry_archive_open(const char* path, gantry_archive** archive) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("path, archive", path, archive));
    absl::StatusOr<gantry_archive> opened = OpenArchive(path);
    if (!opened.ok()) return FromFile(opened.status());
    *archive = new gantry_archive(*std::move(opened));
    return absl::OkStatus();
  });
}

void gantry_archive_destroy(gantry_archive* archive) { delete archive; }
size_t gantry_archive_count(const gantry_archive* archive) { return archive == nullptr ? 0 : archive->names.size(); }
const char* gantry_archive_name(const gantry_archive* archive, size_t index) {
  return archive == nullptr || index >= archive->names.size() ? nullptr : archive->names[index].c_str();
}

gantry_status gantry_archive_read(const gantry_archive* archive, const char* name, gantry_array** array) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("archive, name, array", archive, name, array));
    absl::StatusOr<HostArray> read = ReadFrom(*archive, name);
    if (!read.ok()) return FromFile(read.status());
    *array = new gantry_array{*std::move(read)};
    return absl::OkStatus();
  });
}

gantry_status gantry_image_grid_write(const char* path, const float* images, int64_t count, int64_t channels, int64_t height,
                                      int64_t width, int64_t columns) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("path, images", path, images));
    const int64_t dims[] = {count, channels, height, width};
    GANTRY_ASSIGN_OR_RETURN(const Shape shape, ToShape(DataType::kF32, 4, dims));
    if (columns < 0) return Error(GANTRY_INVALID_ARGUMENT, "columns is negative");
    if (columns == 0) columns = static_cast<int64_t>(std::ceil(std::sqrt(static_cast<double>(count))));
    const std::span<const float> values(images, static_cast<size_t>(shape.element_count()));
    return ToFile(WriteImageGrid(path, values, shape.dims(), columns));
  });
}

}  // extern "C"
