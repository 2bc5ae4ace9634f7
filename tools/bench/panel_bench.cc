// panel_bench [--threads N] [--rounds N] [--batch N] [--filter text]: every convolution of dcgan32 and dcgan64 in its
// three directions, on the panel kernels and on oneDNN with `any` formats. Results are compared before anything is
// timed; candidates take turns, and the fastest of the rounds counts. GF/s are nominal: every tap counted, whatever was
// computed. A star marks what ChooseAlgorithm takes.
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dnnl.hpp>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <unordered_map>
#include <vector>

#include "ops/cpu/panel/panel_conv.h"

namespace {

using gantry::cpu::Algorithm;
using gantry::cpu::ConvGeometry;
using gantry::cpu::ConvOptions;
using gantry::cpu::Direction;
using gantry::cpu::ImageFormat;
using gantry::cpu::PanelConv;

struct Layer {
  const char* name;
  ConvGeometry geometry;
  ImageFormat input_format = ImageFormat::kPanel;
  ImageFormat output_format = ImageFormat::kPanel;
};

ConvGeometry Halving(int64_t in_channels, int64_t out_channels, int64_t size) {
  return {.in_channels = in_channels,
          .out_channels = out_channels,
          .in_h = size,
          .in_w = size,
          .out_h = size / 2,
          .out_w = size / 2,
          .kernel_h = 4,
          .kernel_w = 4,
          .stride_h = 2,
          .stride_w = 2,
          .pad_top = 1,
          .pad_left = 1};
}

ConvGeometry Whole(int64_t in_channels, int64_t out_channels) {
  return {.in_channels = in_channels, .out_channels = out_channels, .in_h = 4, .in_w = 4, .kernel_h = 4, .kernel_w = 4};
}

std::vector<Layer> Layers() {
  return {{"image 1->64 32->16", Halving(1, 64, 32), ImageFormat::kPlain},
          {"64->128 16->8", Halving(64, 128, 16)},
          {"128->256 8->4", Halving(128, 256, 8)},
          {"head 256->1", Whole(256, 1), ImageFormat::kPanel, ImageFormat::kPlain},
          {"noise 256<-100", Whole(256, 100), ImageFormat::kPanel, ImageFormat::kPlain},
          {"image 3->64 64->32", Halving(3, 64, 64), ImageFormat::kPlain},
          {"64->128 32->16", Halving(64, 128, 32)},
          {"128->256 16->8", Halving(128, 256, 16)},
          {"256->512 8->4", Halving(256, 512, 8)},
          {"head 512->1", Whole(512, 1), ImageFormat::kPanel, ImageFormat::kPlain},
          {"noise 512<-100", Whole(512, 100), ImageFormat::kPanel, ImageFormat::kPlain}};
}

struct Free {
  void operator()(float* data) const { std::free(data); }
};
using Floats = std::unique_ptr<float, Free>;

Floats Allocate(int64_t count) {
  float* data = static_cast<float*>(std::aligned_alloc(64, static_cast<size_t>((count * 4 + 127) / 64 * 64)));
  std::fill_n(data, count, 0.0f);
  return Floats(data);
}

struct Operands {
  std::vector<float> input, weights, output;
};

// A way to compute one direction: `pack` prepares the weights, `run` computes, `result` gives the row-major outcome.
struct Candidate {
  std::string name;
  std::function<void()> pack;
  std::function<void()> run;
  std::function<std::vector<float>()> result;
  double error = 0;  // RMS error against double over the RMS of the result
  double best_ms = 1e30;
  double best_pack_ms = 1e30;
};

double TimeMs(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

Candidate MakePanel(const Layer& layer, Direction direction, Algorithm algorithm, const Operands& operands,
                    int threads) {
  const ConvGeometry g = layer.geometry;
  const PanelConv conv = *PanelConv::Create(g, direction,
                                            {.algorithm = algorithm, .input_format = layer.input_format, .output_format = layer.output_format});
  struct State {
    Floats input, output, weights, packed, scratch;
  };
  auto state = std::make_shared<State>();
  state->input = Allocate(gantry::cpu::PanelFloats(g.batch, g.in_channels, g.in_h, g.in_w));
  state->output = Allocate(gantry::cpu::PanelFloats(g.batch, g.out_channels, g.out_h, g.out_w));
  state->weights = Allocate(g.weight_count());
  state->packed = Allocate(conv.PackedWeightFloats());
  state->scratch = Allocate(conv.ScratchFloats(threads));
  std::copy(operands.weights.begin(), operands.weights.end(), state->weights.get());
  const auto place = [&](const std::vector<float>& plain, ImageFormat format, int64_t channels, int64_t h, int64_t w,
                         float* to) {
    if (format == ImageFormat::kPlain) {
      std::copy(plain.begin(), plain.end(), to);
    } else {
      gantry::cpu::PlainToPanel(plain.data(), g.batch, channels, h, w, to, threads);
    }
  };
  place(operands.input, layer.input_format, g.in_channels, g.in_h, g.in_w, state->input.get());
  place(operands.output, layer.output_format, g.out_channels, g.out_h, g.out_w, state->output.get());
  const auto plain = [g, threads](const float* image, ImageFormat format, int64_t channels, int64_t h, int64_t w) {
    std::vector<float> result(g.batch * channels * h * w);
    if (format == ImageFormat::kPlain) {
      std::copy_n(image, result.size(), result.begin());
    } else {
      gantry::cpu::PanelToPlain(image, g.batch, channels, h, w, result.data(), threads);
    }
    return result;
  };

  Candidate candidate;
  candidate.name = Name(algorithm);
  if (direction != Direction::kWeightGradient) {
    candidate.pack = [=] { conv.PackWeights(state->weights.get(), state->packed.get(), threads); };
  }
  switch (direction) {
    case Direction::kForward:
      candidate.run = [=] {
        conv.Forward(state->input.get(), state->packed.get(), {}, state->output.get(), state->scratch.get(), threads);
      };
      candidate.result = [=] {
        return plain(state->output.get(), layer.output_format, g.out_channels, g.out_h, g.out_w);
      };
      break;
    case Direction::kInputGradient:
      candidate.run = [=] {
        conv.InputGradient(state->output.get(), state->packed.get(), {}, state->input.get(), state->scratch.get(),
                           threads);
      };
      candidate.result = [=] { return plain(state->input.get(), layer.input_format, g.in_channels, g.in_h, g.in_w); };
      break;
    case Direction::kWeightGradient:
      candidate.run = [=] {
        conv.WeightGradient(state->input.get(), state->output.get(), false, state->weights.get(), state->scratch.get(),
                            threads);
      };
      candidate.result = [=] {
        return std::vector<float>(state->weights.get(), state->weights.get() + g.weight_count());
      };
      break;
  }
  return candidate;
}

Candidate MakeOneDnn(const Layer& layer, Direction direction, const Operands& operands) {
  using dnnl::memory;
  const ConvGeometry& g = layer.geometry;
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  static const dnnl::stream stream(engine);
  const memory::dims input_dims{g.batch, g.in_channels, g.in_h, g.in_w};
  const memory::dims output_dims{g.batch, g.out_channels, g.out_h, g.out_w};
  const memory::dims weight_dims{g.out_channels, g.in_channels, g.kernel_h, g.kernel_w};
  const memory::dims strides{g.stride_h, g.stride_w};
  const memory::dims begin{g.pad_top, g.pad_left}, end{g.pad_top, g.pad_left};
  const auto any = [](const memory::dims& dims) {
    return memory::desc(dims, memory::data_type::f32, memory::format_tag::any);
  };
  const auto plain = [](const memory::dims& dims) {
    return memory::desc(dims, memory::data_type::f32, memory::format_tag::nchw);
  };
  const auto algorithm = dnnl::algorithm::convolution_direct;
  const dnnl::convolution_forward::primitive_desc forward(
      {dnnl::prop_kind::forward_training, algorithm, any(input_dims), any(weight_dims), any(output_dims), strides,
       begin, end},
      engine);
  memory::desc input_desc, output_desc, weight_desc;
  dnnl::primitive primitive;
  std::unordered_map<int, int> roles;  // argument: 0 input, 1 weights, 2 output
  std::string name;
  int result_role = 0;
  if (direction == Direction::kForward) {
    primitive = dnnl::convolution_forward(forward);
    input_desc = forward.src_desc(), output_desc = forward.dst_desc(), weight_desc = forward.weights_desc();
    roles = {{DNNL_ARG_SRC, 0}, {DNNL_ARG_WEIGHTS, 1}, {DNNL_ARG_DST, 2}};
    name = forward.impl_info_str();
    result_role = 2;
  } else if (direction == Direction::kInputGradient) {
    const dnnl::convolution_backward_data::primitive_desc backward(
        {algorithm, any(input_dims), any(weight_dims), any(output_dims), strides, begin, end}, engine, forward);
    primitive = dnnl::convolution_backward_data(backward);
    input_desc = backward.diff_src_desc(), output_desc = backward.diff_dst_desc(),
    weight_desc = backward.weights_desc();
    roles = {{DNNL_ARG_DIFF_SRC, 0}, {DNNL_ARG_WEIGHTS, 1}, {DNNL_ARG_DIFF_DST, 2}};
    name = backward.impl_info_str();
    result_role = 0;
  } else {
    const dnnl::convolution_backward_weights::primitive_desc backward(
        {algorithm, any(input_dims), any(weight_dims), any(output_dims), strides, begin, end}, engine, forward);
    primitive = dnnl::convolution_backward_weights(backward);
    input_desc = backward.src_desc(), output_desc = backward.diff_dst_desc();
    weight_desc = backward.diff_weights_desc();
    roles = {{DNNL_ARG_SRC, 0}, {DNNL_ARG_DIFF_WEIGHTS, 1}, {DNNL_ARG_DIFF_DST, 2}};
    name = backward.impl_info_str();
    result_role = 1;
  }
  const std::vector<memory> buffers{memory(input_desc, engine), memory(weight_desc, engine),
                                    memory(output_desc, engine)};
  const std::vector<memory::dims> dims{input_dims, weight_dims, output_dims};
  const std::vector<const std::vector<float>*> values{&operands.input, &operands.weights, &operands.output};
  dnnl::stream queue = stream;
  for (int i = 0; i < 3; ++i) {
    memory from(plain(dims[i]), engine, const_cast<float*>(values[i]->data()));
    memory to = buffers[i];
    dnnl::reorder(from, to).execute(queue, from, to);
  }
  queue.wait();
  std::unordered_map<int, memory> arguments;
  for (const auto& [argument, role] : roles) arguments.emplace(argument, buffers[role]);

  Candidate candidate;
  candidate.name = "oneDNN " + name;
  candidate.run = [=]() mutable {
    primitive.execute(queue, arguments);
    queue.wait();
  };
  candidate.result = [=]() mutable {
    std::vector<float> result(values[result_role]->size());
    memory to(plain(dims[result_role]), engine, result.data());
    memory from = buffers[result_role];
    dnnl::reorder(from, to).execute(queue, from, to);
    queue.wait();
    return result;
  };
  return candidate;
}

// Some of the results in double: pairs of an index and the value.
std::vector<std::pair<int64_t, double>> SampleInDouble(const ConvGeometry& g, Direction direction, const Operands& o) {
  constexpr int kSamples = 1000;
  std::mt19937_64 random(2);
  std::vector<std::pair<int64_t, double>> samples;
  const auto in = [&](int64_t n, int64_t c, int64_t y, int64_t x) { return ((n * g.in_channels + c) * g.in_h + y) * g.in_w + x; };
  const auto out = [&](int64_t n, int64_t c, int64_t y, int64_t x) { return ((n * g.out_channels + c) * g.out_h + y) * g.out_w + x; };
  const auto below = [&](int64_t count) { return static_cast<int64_t>(random() % static_cast<uint64_t>(count)); };
  for (int sample = 0; sample < kSamples; ++sample) {
    double sum = 0;
    const int64_t n = below(g.batch), c = below(g.in_channels), f = below(g.out_channels);
    if (direction == Direction::kForward) {
      const int64_t y = below(g.out_h), x = below(g.out_w);
      for (int64_t tap = 0; tap < g.taps(); ++tap) {
        const int64_t in_y = y * g.stride_h - g.pad_top + tap / g.kernel_w, in_x = x * g.stride_w - g.pad_left + tap % g.kernel_w;
        if (in_y < 0 || in_y >= g.in_h || in_x < 0 || in_x >= g.in_w) continue;
        for (int64_t i = 0; i < g.in_channels; ++i) {
          sum += 1.0 * o.input[in(n, i, in_y, in_x)] * o.weights[(f * g.in_channels + i) * g.taps() + tap];
        }
      }
      samples.emplace_back(out(n, f, y, x), sum);
    } else if (direction == Direction::kInputGradient) {
      const int64_t y = below(g.in_h), x = below(g.in_w);
      for (int64_t tap = 0; tap < g.taps(); ++tap) {
        const int64_t top = y + g.pad_top - tap / g.kernel_w, left = x + g.pad_left - tap % g.kernel_w;
        if (top < 0 || left < 0 || top % g.stride_h != 0 || left % g.stride_w != 0) continue;
        if (top / g.stride_h >= g.out_h || left / g.stride_w >= g.out_w) continue;
        for (int64_t i = 0; i < g.out_channels; ++i) {
          sum += 1.0 * o.output[out(n, i, top / g.stride_h, left / g.stride_w)] * o.weights[(i * g.in_channels + c) * g.taps() + tap];
        }
      }
      samples.emplace_back(in(n, c, y, x), sum);
    } else {
      const int64_t tap = below(g.taps());
      for (int64_t i = 0; i < g.batch * g.out_h * g.out_w; ++i) {
        const int64_t image = i / (g.out_h * g.out_w), y = i / g.out_w % g.out_h, x = i % g.out_w;
        const int64_t in_y = y * g.stride_h - g.pad_top + tap / g.kernel_w, in_x = x * g.stride_w - g.pad_left + tap % g.kernel_w;
        if (in_y < 0 || in_y >= g.in_h || in_x < 0 || in_x >= g.in_w) continue;
        sum += 1.0 * o.input[in(image, c, in_y, in_x)] * o.output[out(image, f, y, x)];
      }
      samples.emplace_back((f * g.in_channels + c) * g.taps() + tap, sum);
    }
  }
  return samples;
}

double RelativeError(const std::vector<float>& actual, const std::vector<std::pair<int64_t, double>>& expected) {
  double error = 0, size = 0;
  for (const auto& [index, value] : expected) {
    error += (actual[index] - value) * (actual[index] - value);
    size += value * value;
  }
  return std::sqrt(error / size);
}

void RequireClose(const std::vector<float>& actual, const std::vector<float>& expected, const std::string& what) {
  double error = 0, size = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    error += (1.0 * actual[i] - expected[i]) * (1.0 * actual[i] - expected[i]);
    size += 1.0 * expected[i] * expected[i];
  }
  if (!(std::sqrt(error / size) < 1e-5)) {
    std::fprintf(stderr, "%s: wrong result, relative RMS difference %g\n", what.c_str(), std::sqrt(error / size));
    std::exit(1);
  }
}

}  // namespace

int main(int argc, char** argv) {
  int threads = 1, rounds = 5;
  int64_t batch = 64;
  std::string filter;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::strcmp(argv[i], "--threads") == 0)
      threads = std::atoi(argv[i + 1]);
    else if (std::strcmp(argv[i], "--rounds") == 0)
      rounds = std::atoi(argv[i + 1]);
    else if (std::strcmp(argv[i], "--batch") == 0)
      batch = std::atoi(argv[i + 1]);
    else if (std::strcmp(argv[i], "--filter") == 0)
      filter = argv[i + 1];
    else
      return std::fprintf(stderr, "unknown option %s\n", argv[i]), 2;
  }
  if (threads < 1 || rounds < 1 || batch < 1) return std::fprintf(stderr, "numbers must be positive\n"), 2;
  omp_set_num_threads(threads);  // oneDNN's
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (Layer layer : Layers()) {
    if (std::string(layer.name).find(filter) == std::string::npos) continue;
    ConvGeometry& g = layer.geometry;
    g.batch = batch;
    Operands operands;
    operands.input.resize(batch * g.in_channels * g.in_h * g.in_w);
    operands.weights.resize(g.weight_count());
    operands.output.resize(batch * g.out_channels * g.out_h * g.out_w);
    for (std::vector<float>* values : {&operands.input, &operands.weights, &operands.output}) {
      for (float& value : *values) value = normal(random);
    }
    for (Direction direction : {Direction::kForward, Direction::kInputGradient, Direction::kWeightGradient}) {
      std::vector<Candidate> candidates;
      for (Algorithm algorithm : {Algorithm::kDirect, Algorithm::kWinograd2, Algorithm::kWinograd3, Algorithm::kWinograd4}) {
        const ConvOptions options{
            .algorithm = algorithm, .input_format = layer.input_format, .output_format = layer.output_format};
        if (!PanelConv::Supports(g, direction, options)) continue;
        candidates.push_back(MakePanel(layer, direction, algorithm, operands, threads));
      }
      candidates.push_back(MakeOneDnn(layer, direction, operands));
      for (Candidate& candidate : candidates) {
        if (candidate.pack) candidate.pack();
        candidate.run();
      }
      const std::vector<float> expected = candidates.back().result();
      const auto samples = SampleInDouble(g, direction, operands);
      for (Candidate& candidate : candidates) {
        const std::vector<float> result = candidate.result();
        RequireClose(result, expected, std::string(layer.name) + " " + candidate.name);
        candidate.error = RelativeError(result, samples);
      }
      for (int round = 0; round < rounds; ++round) {
        for (Candidate& candidate : candidates) {
          if (candidate.pack) candidate.best_pack_ms = std::min(candidate.best_pack_ms, TimeMs(candidate.pack));
          candidate.run();  // brings its operands back into the caches
          for (int i = 0; i < 3; ++i) candidate.best_ms = std::min(candidate.best_ms, TimeMs(candidate.run));
        }
      }
      std::printf("%-20s %-15s", layer.name, std::string(Name(direction)).c_str());
      const bool plain = layer.input_format == ImageFormat::kPlain;
      const Algorithm chosen = plain ? Algorithm::kDirect : gantry::cpu::ChooseAlgorithm(g, direction);
      for (const Candidate& candidate : candidates) {
        std::printf("  %s%s %.2f ms %.0f GF/s", candidate.name == Name(chosen) ? "*" : "", candidate.name.c_str(),
                    candidate.best_ms, g.flops() / candidate.best_ms * 1e-6);
        std::printf(" %.1e", candidate.error);
        if (candidate.pack) std::printf(" (pack %.2f)", candidate.best_pack_ms);
      }
      std::printf("\n");
      std::fflush(stdout);
    }
  }
  return 0;
}
