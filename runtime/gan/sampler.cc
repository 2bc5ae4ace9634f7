#include "runtime/gan/sampler.h"

#include <algorithm>
#include <cstring>

#include "runtime/gan/fill_random.h"
#include "runtime/plan/memory_options.h"

namespace gantry {

absl::StatusOr<std::unique_ptr<Sampler>> Sampler::Create(const GanRole& generator, bool averages, DataType dtype,
                                                         const PlanOptions& plan_options, Device& device) {
  GANTRY_ASSIGN_OR_RETURN(const Program program, BuildSampler(generator, averages, dtype));
  // In memory of its own: budgets are those of steps.
  GANTRY_ASSIGN_OR_RETURN(Plan plan, MakePlan(program, WithoutBudgets(plan_options)));
  GANTRY_ASSIGN_OR_RETURN(std::unique_ptr<Executor> executor, Executor::Create(std::move(plan), device));
  return std::unique_ptr<Sampler>(new Sampler(std::move(executor)));
}

std::vector<Sampler::StateMemory> Sampler::States() {
  constexpr std::string_view kAverage = "ema.";
  std::vector<StateMemory> states;
  for (const State& state : executor_->program().states()) {
    StateMemory memory{
        .names = {state.name}, .type = executor_->program().TypeOf(state.first), .bytes = executor_->Data(state.first)};
    // Statistics have no average of their own.
    if (std::string_view(state.name).starts_with(kAverage)) memory.names.push_back(state.name.substr(kAverage.size()));
    states.push_back(std::move(memory));
  }
  return states;
}

absl::StatusOr<std::vector<float>> Sampler::Draw(int64_t count, uint64_t noise_seed) {
  const Program& program = executor_->program();
  const int64_t batch_elements = batch_shape().element_count();
  int64_t elements = 0;
  if (count < 1 || __builtin_mul_overflow(count, batch_elements / batch_shape()[0], &elements)) {
    return absl::InvalidArgumentError(absl::StrFormat("cannot draw %d samples", count));
  }
  std::vector<float> result;
  result.reserve(elements);
  for (int64_t batch = 0; static_cast<int64_t>(result.size()) < elements; ++batch) {
    int64_t stream = kSampleStream;
    for (ValueId input : program.inputs()) {
      const std::span<std::byte> data = executor_->Data(input);
      if (data.empty()) continue;
      const TensorType& type = program.TypeOf(input);
      if (program.values()[input].name == kRandomState) {
        const int64_t state[2] = {static_cast<int64_t>(noise_seed), batch};
        std::memcpy(data.data(), state, sizeof(state));
      } else if (type.dtype == DataType::kF64) {
        FillNormal(noise_seed, batch, stream++, 0.0, 1.0, reinterpret_cast<double*>(data.data()), type.element_count());
      } else {
        FillNormal(noise_seed, batch, stream++, 0.0, 1.0, reinterpret_cast<float*>(data.data()), type.element_count());
      }
    }
    GANTRY_RETURN_IF_ERROR(executor_->Run());
    const int64_t wanted = std::min(batch_elements, elements - static_cast<int64_t>(result.size()));
    const std::byte* sample = executor_->Data("sample").data();
    if (program.TypeOf(program.FindOutput("sample")).dtype == DataType::kF64) {
      const double* from = reinterpret_cast<const double*>(sample);
      std::transform(from, from + wanted, std::back_inserter(result),
                     [](double value) { return static_cast<float>(value); });
    } else {
      const float* from = reinterpret_cast<const float*>(sample);
      result.insert(result.end(), from, from + wanted);
    }
  }
  return result;
}

}  // namespace gantry
