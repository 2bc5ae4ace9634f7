#include "comm/reduce.h"

namespace gantry {

std::string_view Name(ElementType type) {
  constexpr std::string_view kNames[kElementTypes] = {"f32", "f64", "bf16", "f16", "i8", "u8", "i32", "i64"};
  return kNames[static_cast<int>(type)];
}

std::string_view Name(ReduceOp op) {
  constexpr std::string_view kNames[kReduceOps] = {"sum", "min", "max"};
  return kNames[static_cast<int>(op)];
}

const reduce::Kernels& reduce::Best() {
#if defined(__x86_64__)
  static const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
  if (has_avx2) return kAvx2;
#endif
  return kPortable;
}

namespace {
const reduce::Kernels& Current() {
  static const reduce::Kernels& kernels = reduce::Best();
  return kernels;
}
}  // namespace

int64_t PartialSizeBytes(ElementType type) {
  const bool is_half = type == ElementType::kF16 || type == ElementType::kBf16;
  return is_half ? SizeBytes(ElementType::kF32) : SizeBytes(type);
}

void FoldElements(ElementType type, ReduceOp op, const std::byte* before, std::span<const std::byte* const> sources,
                  std::byte* to, bool keeps_partial, int64_t count) {
  if (count <= 0) return;
  Current().fold[static_cast<int>(type)][static_cast<int>(op)](before, sources.data(), static_cast<int>(sources.size()),
                                                               to, keeps_partial, count);
}

void ReduceElements(ElementType type, ReduceOp op, std::span<const std::byte* const> sources,
                    std::span<std::byte* const> destinations, int64_t count) {
  if (count <= 0) return;
  Current().kernel[static_cast<int>(type)][static_cast<int>(op)](sources.data(), static_cast<int>(sources.size()),
                                                               destinations.data(),
                                                               static_cast<int>(destinations.size()), count);
}

}  // namespace gantry
