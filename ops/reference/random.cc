#include <algorithm>

#include "ops/philox.h"
#include "ops/reference/reference_kernel.h"

namespace gantry::reference {
namespace {

// Fills the output four elements at a time: draw(words, values) makes four doubles of four random words.
template <typename Draw>
std::unique_ptr<Kernel> MakeDraw(const KernelRequest& request, Draw draw) {
  const int64_t stream = request.attributes.Int("stream");
  return MakeFloatKernel(request, [stream, draw](auto zero, const OpInstance& op, const KernelArguments& arguments) {
    using T = decltype(zero);
    const int64_t* state = Input<int64_t>(arguments, 0);
    T* out = Output<T>(arguments, 0);
    const int64_t count = op.outputs[0].element_count();
    for (int64_t first = 0; first < count; first += 4) {
      double values[4];
      draw(RandomBlock(state[0], state[1], stream, first / 4), values);
      for (int64_t i = 0; i < std::min<int64_t>(4, count - first); ++i) out[first + i] = static_cast<T>(values[i]);
    }
    return absl::OkStatus();
  });
}

std::unique_ptr<Kernel> MakeUniform(const KernelRequest& request) {
  const double low = request.attributes.Float("low"), width = request.attributes.Float("high") - low;
  return MakeDraw(request, [low, width](const PhiloxWords& words, double* values) {
    for (int i = 0; i < 4; ++i) values[i] = low + width * UniformOf(words.word[i]);
  });
}

std::unique_ptr<Kernel> MakeNormal(const KernelRequest& request) {
  const double mean = request.attributes.Float("mean"), deviation = request.attributes.Float("deviation");
  return MakeDraw(request, [mean, deviation](const PhiloxWords& words, double* values) {
    for (int i = 0; i < 4; i += 2) {
      const NormalPair pair = NormalsOf(words.word[i], words.word[i + 1]);
      values[i] = mean + deviation * pair.first;
      values[i + 1] = mean + deviation * pair.second;
    }
  });
}

std::unique_ptr<Kernel> MakeDropoutMask(const KernelRequest& request) {
  const double rate = request.attributes.Float("rate"), kept = 1.0 / (1.0 - rate);
  return MakeDraw(request, [rate, kept](const PhiloxWords& words, double* values) {
    for (int i = 0; i < 4; ++i) values[i] = UniformOf(words.word[i]) >= rate ? kept : 0.0;
  });
}

}  // namespace

KernelTable RandomKernels() {
  return {{"random_uniform", MakeUniform}, {"random_normal", MakeNormal}, {"dropout_mask", MakeDropoutMask}};
}

}  // namespace gantry::reference
