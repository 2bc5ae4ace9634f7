// The forward pass of a trained generator.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "memory/device.h"
#include "runtime/execute/executor.h"
#include "runtime/gan/gan_step.h"

namespace gantry {

// One thread at a time.
class Sampler {
 public:
  // Plans `generator`, whose weights are its averages where `averages`, for its own batch size. `device` outlives the
  // sampler.
  static absl::StatusOr<std::unique_ptr<Sampler>> Create(const GanRole& generator, bool averages, DataType dtype,
                                                         const PlanOptions& plan, Device& device);

  // A state to fill before Draw, whose content is that of the first of `names` that a step program or checkpoint has.
  struct StateMemory {
    std::vector<std::string> names;
    TensorType type;
    std::span<std::byte> bytes;
  };
  std::vector<StateMemory> States();

  // `count` (> 0) samples, one behind the other. Noise depends on `noise_seed` only.
  absl::StatusOr<std::vector<float>> Draw(int64_t count, uint64_t noise_seed);
  // [batch, ...]
  const Shape& batch_shape() const {
    return executor_->program().TypeOf(executor_->program().FindOutput("sample")).shape;
  }

 private:
  explicit Sampler(std::unique_ptr<Executor> executor) : executor_(std::move(executor)) {}
  std::unique_ptr<Executor> executor_;
};

}  // namespace gantry
