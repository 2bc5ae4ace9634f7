// Memory of the machine that is there when it is asked for: no page is faulted in later, and a lack of it is an error,
// not a signal in a kernel.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "memory/status.h"

namespace gantry {

// Owns a mapping of memory, of which nothing is left when a process dies. Shared: a memfd, sealed against changes of its size, that
// other ranks can map. In huge pages where the machine gives them on request (huge_pages.h).
// Move-only; zero-filled, 4096-byte aligned, data() is null for 0 bytes.
class BackedMemory {
 public:
  static constexpr int64_t kPageBytes = 4096;

  // `bytes` (>= 0), rounded up to whole pages. kResourceExhausted where the machine does not have them: `owner`
  // ("cpu:0", "tier host") says who asked, `advice` what to do about it.
  static absl::StatusOr<BackedMemory> Map(std::string_view owner, int64_t bytes, std::string_view advice, bool shared = true);

  BackedMemory() = default;
  BackedMemory(BackedMemory&& from) noexcept;
  BackedMemory& operator=(BackedMemory&& from) noexcept;
  ~BackedMemory();

  std::byte* data() const { return data_; }
  int64_t mapped_bytes() const { return mapped_bytes_; }
  // The memfd, of mapped_bytes() bytes, open as long as this object; -1 for private memory and for 0 bytes.
  int descriptor() const { return descriptor_; }

 private:
  BackedMemory(std::byte* data, int64_t mapped_bytes, int descriptor)
      : data_(data), mapped_bytes_(mapped_bytes), descriptor_(descriptor) {}

  std::byte* data_ = nullptr;
  int64_t mapped_bytes_ = 0;
  int descriptor_ = -1;
};

}  // namespace gantry
