// NumPy's .npy files: one array each. Format: numpy.lib.format, versions 1.0, 2.0 and 3.0.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "memory/status.h"
#include "runtime/data/file.h"
#include "runtime/data/host_array.h"

namespace gantry {

struct NpyHeader {
  HostType type = HostType::kF32;
  std::vector<int64_t> shape;
  bool fortran_order = false;  // the first index moves fastest in the file
  bool big_endian = false;
  uint64_t data_offset = 0;  // of the first element, in bytes from the start of the file
};

// The header, checked: the shape's bytes are exactly those that follow it. kInvalidArgument says what is wrong;
// element types that HostType lacks (complex, structured, text) are refused by name.
absl::StatusOr<NpyHeader> ReadNpyHeader(const ByteSource& source);

// The whole array, little-endian and row-major whatever the file has.
absl::StatusOr<HostArray> ReadNpy(const ByteSource& source);
absl::StatusOr<HostArray> ReadNpy(const std::string& path);
absl::StatusOr<HostArray> DecodeNpy(std::span<const std::byte> bytes, std::string_view name = "npy");

// The header that belongs before `shape` elements of `type`, little-endian and row-major; the elements start at a
// multiple of 64 bytes. kInvalidArgument for bf16 and the f8 types, which NumPy does not have.
absl::StatusOr<std::string> EncodeNpyHeader(HostType type, std::span<const int64_t> shape);
// Written beside, synced, renamed.
absl::Status WriteNpy(const std::string& path, const HostArray& array);

}  // namespace gantry
