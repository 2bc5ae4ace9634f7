// IDX files, the format of MNIST and Fashion-MNIST: yann.lecun.com/exdb/mnist, "The IDX file format". Big-endian.
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

// The most that a .gz file may unpack to unless the caller says otherwise.
inline constexpr uint64_t kDefaultMaxUnpackedBytes = uint64_t{8} << 30;

struct IdxHeader {
  HostType type = HostType::kU8;  // u8, i8, i16, i32, f32 or f64
  std::vector<int64_t> shape;     // at least one dimension
  uint64_t data_offset = 0;
};

// Whether `source` begins as an IDX file / a gzip file does.
bool LooksLikeIdx(const ByteSource& source);
bool LooksLikeGzip(const ByteSource& source);

// The header of an unpacked file, checked: the shape's bytes are exactly those that follow it.
absl::StatusOr<IdxHeader> ReadIdxHeader(const ByteSource& source);

// The whole array, little-endian. A gzip file is unpacked: kResourceExhausted beyond `max_unpacked_bytes`, kDataLoss
// where it is damaged.
absl::StatusOr<HostArray> ReadIdx(const ByteSource& source, uint64_t max_unpacked_bytes = kDefaultMaxUnpackedBytes);
absl::StatusOr<HostArray> ReadIdx(const std::string& path, uint64_t max_unpacked_bytes = kDefaultMaxUnpackedBytes);
absl::StatusOr<HostArray> DecodeIdx(std::span<const std::byte> bytes, std::string_view name = "idx",
                                    uint64_t max_unpacked_bytes = kDefaultMaxUnpackedBytes);

// The content of a gzip file (RFC 1952), members one behind the other included. Memory grows with what was really
// unpacked, up to `max_bytes`.
absl::StatusOr<std::vector<std::byte>> Gunzip(const ByteSource& source, uint64_t max_bytes);

}  // namespace gantry
