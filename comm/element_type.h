// Types of elements and the operations that collectives apply to them.
#pragma once

#include <cstdint>
#include <string_view>

namespace gantry {

enum class ElementType : uint8_t { kF32, kF64, kBf16, kF16, kI8, kU8, kI32, kI64 };
inline constexpr int kElementTypes = 8;
// Sums of integers wrap. A NaN wins over every other value in kMin and kMax.
enum class ReduceOp : uint8_t { kSum, kMin, kMax };
inline constexpr int kReduceOps = 3;

constexpr int64_t SizeBytes(ElementType type) {
  constexpr int64_t kSizes[kElementTypes] = {4, 8, 2, 2, 1, 1, 4, 8};
  return kSizes[static_cast<int>(type)];
}
std::string_view Name(ElementType type);  // "f32"
std::string_view Name(ReduceOp op);       // "sum"

}  // namespace gantry
