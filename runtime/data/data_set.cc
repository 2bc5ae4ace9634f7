#include "runtime/data/data_set.h"

#include <cstring>
#include <filesystem>
#include <utility>

#include "absl/strings/str_join.h"
#include "runtime/data/array_data_set.h"
#include "runtime/data/npy.h"
#include "runtime/data/npz.h"
#include "runtime/data/png_folder.h"
#include "runtime/data/safetensors.h"

namespace gantry {
namespace {

using Source = std::shared_ptr<const ByteSource>;
using OpenedDataSet = absl::StatusOr<std::unique_ptr<DataSet>>;

OpenedDataSet OpenIdx(Source source, const DataSetOptions& options) {
  if (LooksLikeGzip(*source)) {
    GANTRY_ASSIGN_OR_RETURN(std::vector<std::byte> unpacked, Gunzip(*source, options.max_memory_bytes));
    source = OwnedMemorySource(std::move(unpacked), std::string(source->name()));
  }
  GANTRY_ASSIGN_OR_RETURN(IdxHeader header, ReadIdxHeader(*source));
  const ArrayExtent extent{header.type, std::move(header.shape), header.data_offset, /*big_endian=*/true};
  return MakeArrayDataSet(std::move(source), extent, "IDX file", options);
}

OpenedDataSet OpenNpy(Source source, std::string kind, const DataSetOptions& options) {
  GANTRY_ASSIGN_OR_RETURN(NpyHeader header, ReadNpyHeader(*source));
  if (header.fortran_order && header.shape.size() > 1) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: is in column-major order, so its samples do not lie together; save it anew with "
                        "numpy.ascontiguousarray",
                        source->name()));
  }
  const ArrayExtent extent{header.type, std::move(header.shape), header.data_offset, header.big_endian};
  return MakeArrayDataSet(std::move(source), extent, std::move(kind), options);
}

// The name to read: the options', or the only one there is.
absl::StatusOr<std::string> ChooseTensor(const ByteSource& source, const std::vector<std::string>& names,
                                         const DataSetOptions& options) {
  if (!options.tensor.empty()) return options.tensor;
  if (names.size() == 1) return names[0];
  const size_t shown = std::min<size_t>(names.size(), 20);
  return absl::InvalidArgumentError(
      absl::StrFormat("%s: has %d arrays; name the one to read: %s%s", source.name(), names.size(),
                      absl::StrJoin(names.begin(), names.begin() + static_cast<ptrdiff_t>(shown), ", "),
                      shown < names.size() ? ", ..." : ""));
}

OpenedDataSet OpenNpz(Source source, const DataSetOptions& options) {
  if (source->size_bytes() > options.max_memory_bytes) {
    return absl::ResourceExhaustedError(absl::StrFormat(
        "%s: has %d bytes; .npz files are read into memory, at most %d bytes: save a .npy file, which is "
        "read piece by piece",
        source->name(), source->size_bytes(), options.max_memory_bytes));
  }
  GANTRY_ASSIGN_OR_RETURN(const NpzFile file, NpzFile::Open(source));
  GANTRY_ASSIGN_OR_RETURN(const std::string name, ChooseTensor(*source, file.names(), options));
  GANTRY_ASSIGN_OR_RETURN(const uint64_t bytes, file.UnpackedBytes(name));
  if (bytes > options.max_memory_bytes) {
    return absl::ResourceExhaustedError(
        absl::StrFormat("%s: array '%s' unpacks to %d bytes, more than the %d allowed: save a .npy file, which is read "
                        "piece by piece",
                        source->name(), name, bytes, options.max_memory_bytes));
  }
  GANTRY_ASSIGN_OR_RETURN(std::vector<std::byte> npy, file.ReadBytes(name));
  return OpenNpy(OwnedMemorySource(std::move(npy), absl::StrFormat("%s: array '%s'", source->name(), name)), "array",
                 options);
}

OpenedDataSet OpenSafetensors(Source source, const DataSetOptions& options) {
  GANTRY_ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::Open(source));
  std::vector<std::string> names;
  for (const SafetensorsEntry& tensor : file.tensors()) names.push_back(tensor.name);
  GANTRY_ASSIGN_OR_RETURN(const std::string name, ChooseTensor(*source, names, options));
  const SafetensorsEntry* tensor = file.Find(name);
  if (tensor == nullptr) return file.Read(name).status();  // says what there is
  return MakeArrayDataSet(std::move(source), {tensor->type, tensor->shape, tensor->offset},
                          absl::StrFormat("tensor '%s' of", name), options);
}

OpenedDataSet OpenFolder(const std::string& folder, const DataSetOptions& options) {
  if (options.split != "train" && options.split != "test") {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: the split '%s' is neither train nor test", folder, options.split));
  }
  const std::string stem = options.split == "train" ? "train-images" : "t10k-images";
  for (const char* ending : {"-idx3-ubyte", ".idx3-ubyte", "-idx3-ubyte.gz", ".idx3-ubyte.gz"}) {
    const std::string path = folder + "/" + stem + ending;
    std::error_code error;
    if (!std::filesystem::exists(path, error)) continue;
    GANTRY_ASSIGN_OR_RETURN(Source source, OpenFile(path));
    return OpenIdx(std::move(source), options);
  }
  GANTRY_ASSIGN_OR_RETURN(FolderListing listing, ListPngFiles(folder));
  if (listing.png_paths.empty()) {
    return absl::NotFoundError(absl::StrFormat(
        "%s: no data set found. Looked for %s-idx3-ubyte, the same with .gz, and *.png files in it and its "
        "subfolders, among %d files. A .npy, .npz or .safetensors file is named by its own path.",
        folder, stem, listing.file_count));
  }
  return MakePngFolder(folder, std::move(listing.png_paths), options);
}

}  // namespace

int64_t DataSet::sample_elements() const {
  int64_t count = 1;
  for (int64_t dim : sample_shape()) count *= dim;
  return count;
}

OpenedDataSet OpenDataSet(const std::string& path, const DataSetOptions& options) {
  if (options.height < 0 || options.width < 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: a height of %d and width of %d were asked for", path, options.height, options.width));
  }
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) return OpenFolder(path, options);
  GANTRY_ASSIGN_OR_RETURN(Source source, OpenFile(path));
  std::byte magic[8] = {};
  GANTRY_RETURN_IF_ERROR(source->ReadAt(0, std::span(magic, std::min<uint64_t>(source->size_bytes(), sizeof(magic)))));
  if (std::memcmp(magic, "\x93NUMPY", 6) == 0) return OpenNpy(std::move(source), ".npy file", options);
  if (std::memcmp(magic, "PK\x03\x04", 4) == 0) return OpenNpz(std::move(source), options);
  if (path.ends_with(".safetensors")) return OpenSafetensors(std::move(source), options);
  if (LooksLikeGzip(*source) || LooksLikeIdx(*source)) return OpenIdx(std::move(source), options);
  return absl::InvalidArgumentError(absl::StrFormat(
      "%s: is no data set that is known: neither .npy, .npz, .safetensors nor IDX (plain or .gz). Of PNG "
      "images, name their folder.",
      path));
}

}  // namespace gantry
