#include "runtime/data/png_folder.h"

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <utility>

#include "runtime/data/png.h"
#include "runtime/data/resize.h"

namespace gantry {
namespace {

class PngFolder final : public DataSet {
 public:
  PngFolder(std::string folder, std::vector<std::string> paths, std::vector<int64_t> sample_shape, bool resize,
            bool convert)
      : folder_(std::move(folder)),
        paths_(std::move(paths)),
        sample_shape_(std::move(sample_shape)),
        resize_(resize),
        convert_(convert) {}

  int64_t size() const override { return static_cast<int64_t>(paths_.size()); }
  const std::vector<int64_t>& sample_shape() const override { return sample_shape_; }
  std::string Describe() const override {
    return absl::StrFormat("%d samples %s of the PNG files in %s", size(), ShapeText(sample_shape_), folder_);
  }

  absl::Status Read(int64_t index, std::span<float> to) const override {
    if (index < 0 || index >= size() || to.size() != static_cast<size_t>(sample_elements())) {
      return absl::InvalidArgumentError(
          absl::StrFormat("%s: sample %d into %d values was asked for; it has %d samples of %d values", folder_, index,
                          to.size(), size(), sample_elements()));
    }
    const int64_t channels = sample_shape_[0], height = sample_shape_[1], width = sample_shape_[2];
    const std::string path = folder_ + "/" + paths_[index];
    GANTRY_ASSIGN_OR_RETURN(HostArray image, ReadPng(path));
    const int64_t rows = image.shape()[0], columns = image.shape()[1], file_channels = image.shape()[2];
    if (!resize_ && (rows != height || columns != width)) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "%s: has %d x %d pixels, the first image of the data set has %d x %d; set a height and width to "
          "scale all to",
          path, columns, rows, width, height));
    }
    if (!convert_ && channels == 1 && file_channels >= 3) {
      return absl::InvalidArgumentError(
          absl::StrFormat("%s: has colours, the first image of the data set is grey; set channels to 1 or 3", path));
    }
    uint8_t* const pixels = image.mutable_values<uint8_t>().data();
    // In place where the pixels do not grow, else spread into `wide`.
    HostArray wide;
    uint8_t* packed = pixels;
    if (channels > file_channels) {
      GANTRY_ASSIGN_OR_RETURN(wide, HostArray::Create(HostType::kU8, {rows, columns, channels}));
      packed = wide.mutable_values<uint8_t>().data();
    }
    ConvertChannels(pixels, rows * columns, file_channels, packed, channels);
    GANTRY_RETURN_IF_ERROR(Annotate(ResizeAndCrop(packed, rows, columns, channels, height, width, to.data()), path));
    for (float& value : to) value = value / 127.5f - 1.0f;
    return absl::OkStatus();
  }

 private:
  // Pixels of `from_channels` to `to_channels` (1 or 3): alpha is dropped, grey is repeated, colours become their luma
  // (ITU-R BT.601). `to` may be `from` where the pixels do not grow.
  static void ConvertChannels(const uint8_t* from, int64_t count, int64_t from_channels, uint8_t* to,
                              int64_t to_channels) {
    for (int64_t i = 0; i < count; ++i, from += from_channels, to += to_channels) {
      if (from_channels < 3) {
        std::fill_n(to, to_channels, *from);
      } else if (to_channels == 3) {
        std::copy_n(from, 3, to);
      } else {
        *to = static_cast<uint8_t>((299 * from[0] + 587 * from[1] + 114 * from[2] + 500) / 1000);
      }
    }
  }

  const std::string folder_;
  const std::vector<std::string> paths_;
  const std::vector<int64_t> sample_shape_;
  const bool resize_, convert_;  // whether images of other sizes / colours are brought to the shape
};

bool IsPng(const std::filesystem::path& path) {
  std::string extension = path.extension().string();
  std::ranges::transform(extension, extension.begin(), [](unsigned char c) { return std::tolower(c); });
  return extension == ".png";
}

}  // namespace

absl::StatusOr<FolderListing> ListPngFiles(const std::string& folder) {
  namespace fs = std::filesystem;
  FolderListing listing;
  std::error_code error;
  fs::recursive_directory_iterator entry(folder, error);
  for (; !error && entry != fs::recursive_directory_iterator(); entry.increment(error)) {
    std::error_code unknown;  // a dangling link or a file removed meanwhile is no file
    if (!entry->is_regular_file(unknown)) continue;
    ++listing.file_count;
    if (IsPng(entry->path())) listing.png_paths.push_back(entry->path().lexically_relative(folder).string());
  }
  if (error) return ErrnoStatus(error.value(), absl::StrCat(folder, ": cannot list its files"));
  std::ranges::sort(listing.png_paths);
  return listing;
}

absl::StatusOr<std::unique_ptr<DataSet>> MakePngFolder(std::string folder, std::vector<std::string> paths,
                                                       const DataSetOptions& options) {
  if (options.channels != 0 && options.channels != 1 && options.channels != 3) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "%s: %d channels asked for; PNG images are read as 1 (grey) or 3 (RGB)", folder, options.channels));
  }
  if (paths.empty()) return absl::NotFoundError(absl::StrCat(folder, ": has no PNG files"));
  const std::string first = folder + "/" + paths[0];
  GANTRY_ASSIGN_OR_RETURN(const std::vector<std::byte> bytes, ReadFile(first, PngLimits().max_file_bytes));
  GANTRY_ASSIGN_OR_RETURN(const PngInfo info, DecodePngInfo(bytes, first));
  const int64_t channels = options.channels != 0 ? options.channels : info.channels < 3 ? 1 : 3;
  std::vector<int64_t> shape = {channels, options.height != 0 ? options.height : info.height,
                                options.width != 0 ? options.width : info.width};
  const absl::StatusOr<int64_t> count = CheckedElementCount(HostType::kF32, shape);
  if (!count.ok()) return Annotate(count.status(), folder);
  return std::make_unique<PngFolder>(std::move(folder), std::move(paths), std::move(shape),
                                     options.height != 0 || options.width != 0, options.channels != 0);
}

}  // namespace gantry
