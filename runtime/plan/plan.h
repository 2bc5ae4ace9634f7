// The plan: for every op of a program its kernel and its place in time, for every value its place in one arena. Executing a
// plan never plans again: the plan is the allocation.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "ops/kernel.h"
#include "runtime/graph/program.h"

namespace gantry {

enum class KernelChoice : uint8_t {
  kFast,       // CpuKernels, and ReferenceKernels for what those lack
  kReference,  // ReferenceKernels only
};

struct PlanOptions {
  KernelChoice kernels = KernelChoice::kFast;
  int thread_count = 1;
  bool fuse = true;
  bool in_place = true;    // let kernels write over inputs that nobody reads later
  bool winograd = true;    // allow Winograd forms of convolutions (ops/cpu/panel/panel_conv.h states their accuracy)
};

inline constexpr int64_t kNoOffset = -1;

// A stretch of the arena and what lives there: values that share memory (views, updates, in place), or an op's scratch.
struct PlannedBuffer {
  std::string name;            // of the value, or "scratch"
  std::string network, phase;  // of the op that makes it; empty for inputs
  int64_t offset = 0;          // bytes from the arena's start
  int64_t bytes = 0;
  int lower = 0, upper = 0;    // live at steps [lower, upper) of the schedule
  bool persistent = false;     // a state
};

struct PlannedOp {
  OpId op = -1;
  std::unique_ptr<Kernel> kernel;      // null for a view
  int64_t scratch_offset = kNoOffset;
};

struct Plan {
  Program program;                    // as executed: simplified, fused, lowered
  std::vector<PlannedOp> schedule;    // in order of execution
  std::vector<int64_t> offsets;       // per value of the program; kNoOffset for a value that is never made or read
  std::vector<PlannedBuffer> buffers;
  int64_t arena_bytes = 0;
  int64_t lower_bound_bytes = 0;      // the largest sum of bytes live at one time
  std::string layout_method;
  std::vector<std::string> fallbacks;  // ops for which the fast kernels have no form, by name, each once
};

// Simplifies, fuses and lowers `program`, chooses kernels, and lays out the arena. The plan has passed VerifyPlan.
absl::StatusOr<Plan> MakePlan(const Program& program, const PlanOptions& options);

// The independent checker: walks the schedule over the arena's bytes and proves that every op reads exactly what was last written
// for it, that nothing lies outside the arena or unaligned, and that every state ends where it began. kInternal names the op, the
// value and the bytes where it does not hold. It knows nothing of how the plan was made.
absl::Status VerifyPlan(const Plan& plan);

// A table to read: totals, the largest buffers live at the peak.
std::string Describe(const Plan& plan);

}  // namespace gantry
