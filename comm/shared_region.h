// Memory that several ranks of a node map: an anonymous file (memfd) whose descriptor travels over the links. It has no
// name, so that nothing is left of it when its processes are killed, and its size is sealed, so that no rank can take
// it away under another.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <utility>

#include "comm/socket.h"
#include "memory/status.h"

namespace gantry {

enum class Access : uint8_t { kRead, kReadWrite };

// A mapping; unmapped with the object. Move-only.
class SharedRegion {
 public:
  // New memory of this process, zero-filled and backed (memory/cpu/backed_memory.h). `owner` says in errors who asked.
  static absl::StatusOr<SharedRegion> Create(std::string_view owner, int64_t bytes);
  // Maps the first `bytes` of what another rank sent; takes the descriptor over. kFailedPrecondition where the file is
  // smaller or its size is not sealed: touching it could then end this process. kPermissionDenied where it is lent to
  // be read only and `access` is more.
  static absl::StatusOr<SharedRegion> Map(std::string_view owner, Descriptor descriptor, int64_t bytes, Access access);
  // From now on nobody can map the file of `descriptor` to write to it; mappings that exist stay as they are.
  static absl::Status LendReadOnly(int descriptor);

  SharedRegion() = default;
  SharedRegion(SharedRegion&& from) noexcept
      : data_(std::exchange(from.data_, nullptr)),
        bytes_(std::exchange(from.bytes_, 0)),
        descriptor_(std::move(from.descriptor_)) {}
  SharedRegion& operator=(SharedRegion&& from) noexcept {
    std::swap(data_, from.data_);
    std::swap(bytes_, from.bytes_);
    std::swap(descriptor_, from.descriptor_);
    return *this;
  }
  ~SharedRegion();

  std::byte* data() const { return data_; }
  int64_t size_bytes() const { return bytes_; }
  int descriptor() const { return descriptor_.get(); }  // open as long as the object

 private:
  SharedRegion(std::byte* data, int64_t bytes, Descriptor descriptor)
      : data_(data), bytes_(bytes), descriptor_(std::move(descriptor)) {}

  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
  Descriptor descriptor_;
};

}  // namespace gantry
