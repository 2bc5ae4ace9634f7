// How a kernel on oneDNN is put together. Included by onednn.cc only, which holds all that differs between versions.
#pragma once

#include <omp.h>

#include <algorithm>
#include <oneapi/dnnl/dnnl.hpp>
#include <optional>
#include <utility>
#include <vector>

#include "memory/cpu/parallel.h"
#include "ops/kernel.h"

namespace gantry::cpu {

using dnnl::memory;
using Dims = memory::dims;

inline const dnnl::engine& CpuEngine() {
  static const dnnl::engine* const engine = new dnnl::engine(dnnl::engine::kind::cpu, 0);
  return *engine;
}

// Primitives split their work by the number of threads at creation, and may use no other number when they run.
class ScopedThreadCount {
 public:
  explicit ScopedThreadCount(int count) : before_(omp_get_max_threads()) { omp_set_num_threads(std::max(count, 1)); }
  ScopedThreadCount(const ScopedThreadCount&) = delete;
  ScopedThreadCount& operator=(const ScopedThreadCount&) = delete;
  ~ScopedThreadCount() { omp_set_num_threads(before_); }

 private:
  int before_;
};

// oneDNN's own plain loops: a thousand times slower than anything else.
inline bool IsReference(std::string_view implementation) {
  return implementation.find("ref") != std::string_view::npos;
}

inline memory::desc Row(const Dims& dims) {
  Dims strides(dims.size(), 1);
  for (size_t axis = dims.size(); axis-- > 1;) strides[axis - 1] = strides[axis] * dims[axis];
  return memory::desc(dims, memory::data_type::f32, strides);
}
inline memory::desc ChannelsLast(const Dims& dims) {
  Dims strides(dims.size(), 1);
  int64_t stride = dims[1];
  for (size_t axis = dims.size(); axis-- > 2;) {
    strides[axis] = stride;
    stride *= dims[axis];
  }
  strides[0] = stride;
  return memory::desc(dims, memory::data_type::f32, strides);
}
inline memory::desc Any(const Dims& dims) {
  return memory::desc(dims, memory::data_type::f32, memory::format_tag::any);
}

inline dnnl::primitive_attr UserScratchpad() {
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  return attributes;
}

// A sequence of primitives over inputs, outputs and scratch.
class OneDnnKernel final : public Kernel {
 public:
  explicit OneDnnKernel(int thread_count) : thread_count_(thread_count), stream_(CpuEngine()) {}

  size_t scratch_bytes() const override { return scratchpad_offset_ + scratchpad_bytes_; }
  std::string_view implementation() const override { return implementation_; }

  absl::Status Run(const KernelArguments& arguments) override {
    const ScopedThreadCount threads(thread_count_);
    try {
      for (Binding& binding : bindings_) binding.tensor.set_data_handle(Address(binding, arguments));
      for (const Step& step : steps_) {
        const dnnl_status_t status = dnnl_primitive_execute(
            step.primitive.get(), stream_.get(), static_cast<int>(step.arguments.size()), step.arguments.data());
        if (status != dnnl_success) {
          return absl::InternalError(absl::StrFormat("%s failed with dnnl_status_t %d", implementation_, status));
        }
      }
      stream_.wait();
    } catch (const dnnl::error& error) {
      return absl::InternalError(absl::StrFormat("%s: %s", implementation_, error.what()));
    }
    if (activation_.has_value()) ApplyActivation(*activation_, arguments);
    return absl::OkStatus();
  }

  // Each returns the index of a tensor for Add.
  int Input(int index, const memory::desc& descriptor) { return Bind(Place::kInput, index, descriptor); }
  int Output(int index, const memory::desc& descriptor) { return Bind(Place::kOutput, index, descriptor); }
  int Scratch(const memory::desc& descriptor) {
    const size_t offset = scratchpad_offset_;
    scratchpad_offset_ += (descriptor.get_size() + 63) / 64 * 64;
    return Bind(Place::kScratch, offset, descriptor);
  }

  // Appends a primitive; `tensors` pairs DNNL_ARG_... with an index. Scratchpads of all primitives lie in one place.
  void Add(const dnnl::primitive& primitive, const memory::desc& scratchpad,
           const std::vector<std::pair<int, int>>& tensors) {
    Step step{primitive, {}};
    for (const auto& [argument, tensor] : tensors) step.arguments.push_back({argument, bindings_[tensor].tensor.get()});
    if (scratchpad.get_size() > 0) {
      scratchpad_bytes_ = std::max(scratchpad_bytes_, scratchpad.get_size());
      step.arguments.push_back({DNNL_ARG_SCRATCHPAD, bindings_[Bind(Place::kScratchpad, 0, scratchpad)].tensor.get()});
    }
    steps_.push_back(std::move(step));
  }

  // Tensor `from` in the format `to`: itself, or a copy in scratch made by a reorder.
  int Reordered(int from, const memory::desc& to) {
    if (bindings_[from].tensor.get_desc() == to) return from;
    const int copy = Scratch(to);
    Reorder(from, copy);
    return copy;
  }
  void Reorder(int from, int to) {
    const dnnl::reorder::primitive_desc descriptor(CpuEngine(), bindings_[from].tensor.get_desc(), CpuEngine(),
                                                   bindings_[to].tensor.get_desc(), UserScratchpad());
    Add(dnnl::reorder(descriptor), descriptor.scratchpad_desc(), {{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, to}});
  }
  // Where a primitive writes output 0, plain: there, or in scratch with Deliver's reorder after it.
  int ResultTensor(const memory::desc& produced, const memory::desc& plain) {
    return produced == plain ? Output(0, plain) : Scratch(produced);
  }
  void Deliver(int result, const memory::desc& plain) {
    if (bindings_[result].place != Place::kOutput) Reorder(result, Output(0, plain));
  }

  // At the end: output 0, [N, channels, places], gets the bias of input 2, if there is one, and a leaky ReLU.
  void SetActivation(int64_t batch, int64_t channels, int64_t places, bool has_bias, float slope) {
    activation_ = Activation{batch, channels, places, has_bias, slope};
  }
  void SetImplementation(std::string_view implementation, std::string_view format) {
    implementation_ = absl::StrFormat("oneDNN %s%s", implementation, format);
  }

 private:
  enum class Place { kInput, kOutput, kScratch, kScratchpad };
  struct Binding {
    memory tensor;
    Place place;
    size_t at;  // which input or output, or bytes into scratch
  };
  struct Step {
    dnnl::primitive primitive;
    std::vector<dnnl_exec_arg_t> arguments;
  };
  struct Activation {
    int64_t batch, channels, places;
    bool has_bias;
    float slope;
  };

  int Bind(Place place, size_t at, const memory::desc& descriptor) {
    bindings_.push_back({memory(descriptor, CpuEngine(), DNNL_MEMORY_NONE), place, at});
    return static_cast<int>(bindings_.size()) - 1;
  }

  void* Address(const Binding& binding, const KernelArguments& arguments) const {
    switch (binding.place) {
      case Place::kInput:
        return const_cast<void*>(arguments.inputs[binding.at]);
      case Place::kOutput:
        return arguments.outputs[binding.at];
      case Place::kScratch:
        return static_cast<char*>(arguments.scratch) + binding.at;
      case Place::kScratchpad:
        return static_cast<char*>(arguments.scratch) + scratchpad_offset_;
    }
    return nullptr;
  }

  void ApplyActivation(const Activation& activation, const KernelArguments& arguments) const {
    const float* const biases = activation.has_bias ? static_cast<const float*>(arguments.inputs[2]) : nullptr;
    ParallelFor(thread_count_, activation.batch * activation.channels, [&](int64_t plane) {
      float* const values = static_cast<float*>(arguments.outputs[0]) + plane * activation.places;
      const float bias = biases == nullptr ? 0.0f : biases[plane % activation.channels];
      for (int64_t place = 0; place < activation.places; ++place) {
        const float value = values[place] + bias;
        values[place] = value > 0.0f ? value : activation.slope * value;
      }
    });
  }

  int thread_count_;
  dnnl::stream stream_;
  std::vector<Binding> bindings_;
  std::vector<Step> steps_;
  size_t scratchpad_offset_ = 0;  // behind the scratch tensors
  size_t scratchpad_bytes_ = 0;
  std::optional<Activation> activation_;
  std::string implementation_;
};

}  // namespace gantry::cpu
