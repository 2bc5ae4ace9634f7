// What runs an op: kernels, and the libraries (reference, cpu, later cuda) that make them.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string_view>

#include "ops/op_definition.h"

namespace gantry {

// An op with everything known about it before the first step.
struct KernelRequest {
  const OpDefinition& op;
  const Attributes& attributes;
  std::span<const TensorType> inputs;
  std::span<const TensorType> outputs;
  int thread_count = 1;  // threads the kernel may use, the caller's among them
};

struct KernelArguments {
  std::span<const void* const> inputs;
  std::span<void* const> outputs;
  void* scratch = nullptr;  // scratch_bytes() of the kernel, 64-byte aligned, contents undefined
};

// One op made ready to run. Run allocates nothing, keeps nothing between calls and may be called from one thread at a time.
// Outputs may share memory with inputs as the definition's in_place and updates say; otherwise they do not overlap.
class Kernel {
 public:
  virtual ~Kernel() = default;
  virtual size_t scratch_bytes() const { return 0; }
  // What it runs on, for the log: "reference", "oneDNN jit:avx2", "panel winograd avx2".
  virtual std::string_view implementation() const = 0;
  virtual absl::Status Run(const KernelArguments& arguments) = 0;
};

class KernelLibrary {
 public:
  virtual ~KernelLibrary() = default;
  virtual std::string_view name() const = 0;
  // A kernel for exactly these types and layouts; null where this library has none; an error where the request is wrong.
  virtual absl::StatusOr<std::unique_ptr<Kernel>> Make(const KernelRequest& request) const = 0;
};

// Plain loops in f32 and f64 for every op, plain layout only, one thread: the truth that the others are tested against.
const KernelLibrary& ReferenceKernels();
// Fast f32 kernels on oneDNN and on own code; null for what they do not cover.
const KernelLibrary& CpuKernels();

}  // namespace gantry
