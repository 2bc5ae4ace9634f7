#include "runtime/data/array_data_set.h"

#include <algorithm>
#include <array>
#include <utility>

namespace gantry {
namespace {

// Elements converted at a time, on the stack.
constexpr int64_t kPartElements = 8192;
constexpr size_t kMaxElementBytes = 8;

// Where the elements of a sample go: the file's [planes, rows, columns] or [rows, columns, planes] into a larger
// [planes, height, width].
struct Placement {
  int64_t planes = 1, rows = 1, columns = 1;
  int64_t height = 1, width = 1;  // with the padding
  bool planes_last = false;

  bool plain() const { return rows == height && columns == width && (!planes_last || planes == 1); }
  int64_t IndexOf(int64_t element) const {
    const int64_t plane = planes_last ? element % planes : element / (rows * columns);
    const int64_t pixel = planes_last ? element / planes : element % (rows * columns);
    const int64_t row = pixel / columns + (height - rows) / 2, column = pixel % columns + (width - columns) / 2;
    return (plane * height + row) * width + column;
  }
};

class ArrayDataSet final : public DataSet {
 public:
  ArrayDataSet(std::shared_ptr<const ByteSource> source, ArrayExtent extent, std::string kind,
               std::vector<int64_t> sample_shape, Placement placement, float padding)
      : source_(std::move(source)),
        extent_(std::move(extent)),
        kind_(std::move(kind)),
        sample_shape_(std::move(sample_shape)),
        placement_(placement),
        padding_(padding),
        file_elements_(placement.planes * placement.rows * placement.columns),
        elements_(placement.planes * placement.height * placement.width) {
    for (int value = 0; value < 256; ++value) scaled_[value] = static_cast<float>(value) / 127.5f - 1.0f;
  }

  int64_t size() const override { return extent_.shape[0]; }
  const std::vector<int64_t>& sample_shape() const override { return sample_shape_; }
  std::string Describe() const override {
    return absl::StrFormat("%d samples %s of %s %s (%s%s)", size(), ShapeText(sample_shape_), kind_, source_->name(),
                           Name(extent_.type), ShapeText(extent_.shape));
  }

  absl::Status Read(int64_t index, std::span<float> to) const override {
    if (index < 0 || index >= size() || to.size() != static_cast<size_t>(elements_)) {
      return absl::InvalidArgumentError(
          absl::StrFormat("%s: sample %d into %d values was asked for; it has %d samples of %d values", source_->name(),
                          index, to.size(), size(), elements_));
    }
    const size_t element_bytes = SizeBytes(extent_.type);
    const uint64_t begin = extent_.offset + static_cast<uint64_t>(index * file_elements_) * element_bytes;
    if (elements_ != file_elements_) std::ranges::fill(to, padding_);
    std::array<std::byte, kPartElements * kMaxElementBytes> raw;
    for (int64_t done = 0; done < file_elements_; done += kPartElements) {
      const int64_t count = std::min(kPartElements, file_elements_ - done);
      const std::span<std::byte> part(raw.data(), static_cast<size_t>(count) * element_bytes);
      GANTRY_RETURN_IF_ERROR(source_->ReadAt(begin + static_cast<uint64_t>(done) * element_bytes, part));
      if (placement_.plain()) {
        Convert(part, to.data() + done);
      } else if (placement_.planes_last && placement_.planes > 1) {
        Spread(part, done, count, to.data());
      } else {
        for (int64_t at = done; at < done + count;) {  // row by row
          const int64_t run = std::min(placement_.columns - at % placement_.columns, done + count - at);
          Convert(part.subspan((at - done) * element_bytes, run * element_bytes), to.data() + placement_.IndexOf(at));
          at += run;
        }
      }
    }
    return absl::OkStatus();
  }

 private:
  // Elements `done` to `done` + `count` of a sample whose planes come last.
  void Spread(std::span<std::byte> part, int64_t done, int64_t count, float* to) const {
    std::array<float, kPartElements> values;
    Convert(part, values.data());
    const int64_t plane_elements = placement_.height * placement_.width;
    int64_t plane = done % placement_.planes, pixel = done / placement_.planes;
    int64_t index = placement_.IndexOf(done - plane);
    for (int64_t i = 0; i < count; ++i) {
      to[index + plane * plane_elements] = values[i];
      if (++plane == placement_.planes) {
        plane = 0;
        index += ++pixel % placement_.columns == 0 ? placement_.width - placement_.columns + 1 : 1;
      }
    }
  }
  void Convert(std::span<std::byte> part, float* to) const {
    if (extent_.type == HostType::kU8) {
      for (size_t i = 0; i < part.size(); ++i) to[i] = scaled_[std::to_integer<size_t>(part[i])];
      return;
    }
    if (extent_.big_endian) ReverseByteOrder(extent_.type, part);
    ConvertToF32(extent_.type, part.data(), static_cast<int64_t>(part.size() / SizeBytes(extent_.type)), to);
  }

  const std::shared_ptr<const ByteSource> source_;
  const ArrayExtent extent_;
  const std::string kind_;
  const std::vector<int64_t> sample_shape_;
  const Placement placement_;
  const float padding_;
  const int64_t file_elements_, elements_;  // of a sample
  std::array<float, 256> scaled_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<DataSet>> MakeArrayDataSet(std::shared_ptr<const ByteSource> source, ArrayExtent extent,
                                                          std::string kind, const DataSetOptions& options) {
  const auto error = [&](std::string_view what) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: %s%s %s", source->name(), Name(extent.type), ShapeText(extent.shape), what));
  };
  GANTRY_ASSIGN_OR_RETURN(const int64_t count, CheckedElementCount(extent.type, extent.shape));
  if (extent.shape.empty() || count == 0) return error("is no data set: it has no samples or empty ones");
  std::vector<int64_t> shape(extent.shape.begin() + 1, extent.shape.end());
  if (shape.size() == 2 && extent.type == HostType::kU8) {
    shape.insert(options.channels_last ? shape.end() : shape.begin(), 1);
  }
  if (options.channels_last) {
    if (shape.size() != 3) return error("has no [H, W, C] samples, so channels_last does not apply");
    std::rotate(shape.begin(), shape.begin() + 2, shape.end());  // now [C, H, W]
  }
  Placement placement{.planes_last = options.channels_last};
  if (shape.size() < 2) {
    if (options.height != 0 || options.width != 0) return error("has no images to pad to a height and width");
    placement.columns = placement.width = count / extent.shape[0];
  } else {
    int64_t& height = shape[shape.size() - 2];
    int64_t& width = shape[shape.size() - 1];
    placement.rows = height;
    placement.columns = width;
    placement.planes = count / extent.shape[0] / (height * width);
    height = options.height == 0 ? height : options.height;
    width = options.width == 0 ? width : options.width;
    if (height < placement.rows || width < placement.columns) {
      return error(
          absl::StrFormat("has images of %d x %d, more than the %d x %d asked for; arrays are padded, not scaled "
                          "down",
                          placement.columns, placement.rows, width, height));
    }
    placement.height = height;
    placement.width = width;
  }
  const absl::StatusOr<int64_t> padded = CheckedElementCount(HostType::kF32, shape);
  if (!padded.ok()) return Annotate(padded.status(), source->name());
  return std::make_unique<ArrayDataSet>(std::move(source), std::move(extent), std::move(kind), std::move(shape),
                                        placement, options.padding);
}

}  // namespace gantry
