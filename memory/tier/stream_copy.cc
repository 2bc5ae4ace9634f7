#include "memory/tier/stream_copy.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

// Sanitizers do not see streaming stores, so that with them memcpy is used.
#if defined(__SSE2__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define GANTRY_STREAM_STORES 1
#include <emmintrin.h>
#endif

namespace gantry {
namespace {

// From here on most of what comes in has left the caches before it is read, and the copy is what counts.
constexpr size_t kStreamInBytes = 256 << 10;

}  // namespace

void StreamCopy(std::byte* to, const std::byte* from, size_t bytes) {
#ifdef GANTRY_STREAM_STORES
  constexpr size_t kLine = 64;
  const size_t head = std::min(bytes, (kLine - reinterpret_cast<uintptr_t>(to) % kLine) % kLine);
  std::memcpy(to, from, head);
  to += head, from += head, bytes -= head;
  for (; bytes >= kLine; to += kLine, from += kLine, bytes -= kLine) {
    const auto* source = reinterpret_cast<const __m128i*>(from);
    auto* target = reinterpret_cast<__m128i*>(to);
    const __m128i a = _mm_loadu_si128(source), b = _mm_loadu_si128(source + 1), c = _mm_loadu_si128(source + 2),
                  d = _mm_loadu_si128(source + 3);
    _mm_stream_si128(target, a);
    _mm_stream_si128(target + 1, b);
    _mm_stream_si128(target + 2, c);
    _mm_stream_si128(target + 3, d);
  }
  _mm_sfence();  // streaming stores are ordered by this alone
#endif
  std::memcpy(to, from, bytes);
}

void StreamCopyIn(std::byte* to, const std::byte* from, size_t bytes) {
  if (bytes >= kStreamInBytes) {
    StreamCopy(to, from, bytes);
  } else {
    std::memcpy(to, from, bytes);
  }
}

}  // namespace gantry
