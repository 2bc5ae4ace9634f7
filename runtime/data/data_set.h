// Data sets: a fixed number of samples of one shape, read one by one as f32. Files are recognised by what is in them.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "memory/status.h"
#include "runtime/data/idx.h"

namespace gantry {

// Thread-safe: several threads may read at once.
class DataSet {
 public:
  virtual ~DataSet() = default;
  virtual int64_t size() const = 0;                              // > 0
  virtual const std::vector<int64_t>& sample_shape() const = 0;  // images are C, H, W
  // What it is and where from, for logs: "60000 samples [1,28,28] of IDX file train-images-idx3-ubyte.gz".
  virtual std::string Describe() const = 0;
  // Writes sample `index` (0 <= index < size) to `to`, sample_elements() floats. Pixels of 8 bits are scaled to [-1,
  // 1], x / 127.5 - 1; other numbers are converted as they are. kInvalidArgument for a wrong index or span; else what
  // the file's reader says, with the file's name.
  virtual absl::Status Read(int64_t index, std::span<float> to) const = 0;

  int64_t sample_elements() const;
};

struct DataSetOptions {
  // Which array of a .npz or .safetensors file; may be empty where there is only one.
  std::string tensor;
  // "train" or "test": which of MNIST's files in a folder.
  std::string split = "train";
  // The images' size; 0: as in the file (of a PNG folder: as its first image). Arrays are padded to it on all sides
  // with `padding`, the odd row and column below and right; PNG images are scaled to cover it and cropped in the
  // middle.
  int64_t height = 0, width = 0;
  float padding = -1.0f;
  // PNG folders: 1 or 3, other images are converted; 0: as the first image. Alpha is dropped.
  int64_t channels = 0;
  // Array samples are [H, W, C] in the file instead of [C, H, W].
  bool channels_last = false;
  // For what cannot be read from the disk piece by piece: .gz and .npz.
  uint64_t max_memory_bytes = kDefaultMaxUnpackedBytes;
};

// `path` is one of
//   - an IDX file, plain (read piece by piece) or .gz (unpacked into memory): images [N, H, W] become [1, H, W];
//   - a .npy file, row-major, read piece by piece; a .npz file, in memory; a .safetensors file, piece by piece. The
//   first
//     dimension counts the samples; u8 [N, H, W] are grey images, [1, H, W]; other samples keep their shape;
//   - a folder with MNIST's file names: train-images-idx3-ubyte or t10k-images-idx3-ubyte, with or without .gz;
//   - a folder of PNG files, subfolders included, in the order of their paths, decoded as they are read.
// kNotFound says what was looked for.
absl::StatusOr<std::unique_ptr<DataSet>> OpenDataSet(const std::string& path, const DataSetOptions& options = {});

}  // namespace gantry
