#include "ops/cpu/onednn.h"

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "ops/convolution.h"
#include "ops/cpu/onednn_kernel.h"
#include "ops/pooling.h"

namespace gantry::cpu {
namespace {

// oneDNN counts in 32 bits in places.
constexpr int64_t kMostElements = INT32_MAX;

// --- convolution ---------------------------------------------------------------------------------------------------

// The tensors of a convolution as oneDNN counts them: groups as an axis of the weights, dilations less one.
struct ConvShape {
  Dims source, weights, result, strides, dilations, pads_begin, pads_end;
};

ConvShape MakeConvShape(const ConvGeometry& geometry) {
  ConvShape shape;
  shape.source = {geometry.batch, geometry.input_channels};
  shape.result = {geometry.batch, geometry.output_channels};
  if (geometry.groups > 1) shape.weights = {geometry.groups};
  shape.weights.push_back(geometry.group_output_channels());
  shape.weights.push_back(geometry.group_input_channels());
  for (int index = 0; index < geometry.window.rank; ++index) {
    const WindowAxis& axis = geometry.window.spatial(index);
    const int place = 3 - geometry.window.rank + index;
    shape.source.push_back(geometry.input[place]);
    shape.result.push_back(geometry.output[place]);
    shape.weights.push_back(axis.kernel);
    shape.strides.push_back(axis.stride);
    shape.dilations.push_back(axis.dilation - 1);
    shape.pads_begin.push_back(axis.pad_begin);
    shape.pads_end.push_back(axis.pad_end);
  }
  return shape;
}

// The format of images on both sides; weights may always take what the implementation likes best.
enum class ImageFormat { kAny, kChannelsLast, kPlain };

std::string_view Name(ImageFormat format) {
  switch (format) {
    case ImageFormat::kAny:
      return ", any";
    case ImageFormat::kChannelsLast:
      return ", channels last";
    case ImageFormat::kPlain:
      return ", plain";
  }
  return "";
}

memory::desc Images(const Dims& dims, ImageFormat format) {
  switch (format) {
    case ImageFormat::kAny:
      return Any(dims);
    case ImageFormat::kChannelsLast:
      return ChannelsLast(dims);
    case ImageFormat::kPlain:
      return Row(dims);
  }
  return Any(dims);
}

struct ConvFormats {
  memory::desc source, weights, result;
};

ConvFormats MakeFormats(const ConvShape& shape, ImageFormat images) {
  return {Images(shape.source, images), Any(shape.weights), Images(shape.result, images)};
}

// What differs between oneDNN 2 and 3. Each is empty where there is no implementation.
dnnl::convolution_forward::primitive_desc ForwardDescriptor(const ConvShape& s, const ConvFormats& f,
                                                            const memory::desc& bias,
                                                            const dnnl::primitive_attr& attributes) {
  constexpr auto kind = dnnl::prop_kind::forward_training;
  constexpr auto algorithm = dnnl::algorithm::convolution_direct;
#if DNNL_VERSION_MAJOR >= 3
  return {CpuEngine(), kind,        algorithm,    f.source,   f.weights,  bias, f.result,
          s.strides,   s.dilations, s.pads_begin, s.pads_end, attributes, true};
#else
  return {{kind, algorithm, f.source, f.weights, bias, f.result, s.strides, s.dilations, s.pads_begin, s.pads_end},
          attributes,
          CpuEngine(),
          true};
#endif
}

dnnl::convolution_backward_data::primitive_desc BackwardDataDescriptor(
    const ConvShape& s, const ConvFormats& f, const dnnl::convolution_forward::primitive_desc& forward) {
  constexpr auto algorithm = dnnl::algorithm::convolution_direct;
#if DNNL_VERSION_MAJOR >= 3
  return {CpuEngine(), algorithm,    f.source,   f.weights, f.result,         s.strides,
          s.dilations, s.pads_begin, s.pads_end, forward,   UserScratchpad(), true};
#else
  return {{algorithm, f.source, f.weights, f.result, s.strides, s.dilations, s.pads_begin, s.pads_end},
          UserScratchpad(),
          CpuEngine(),
          forward,
          true};
#endif
}

dnnl::convolution_backward_weights::primitive_desc BackwardWeightsDescriptor(
    const ConvShape& s, const ConvFormats& f, const dnnl::convolution_forward::primitive_desc& forward) {
  constexpr auto algorithm = dnnl::algorithm::convolution_direct;
#if DNNL_VERSION_MAJOR >= 3
  return {CpuEngine(), algorithm,    f.source,   f.weights, f.result,         s.strides,
          s.dilations, s.pads_begin, s.pads_end, forward,   UserScratchpad(), true};
#else
  return {{algorithm, f.source, f.weights, f.result, s.strides, s.dilations, s.pads_begin, s.pads_end},
          UserScratchpad(),
          CpuEngine(),
          forward,
          true};
#endif
}

void AppendLeakyRelu(dnnl::post_ops& operations, float slope) {
#if DNNL_VERSION_MAJOR >= 3
  operations.append_eltwise(dnnl::algorithm::eltwise_relu, slope, 0.0f);
#else
  operations.append_eltwise(1.0f, dnnl::algorithm::eltwise_relu, slope, 0.0f);
#endif
}

bool Usable(const dnnl::primitive_desc_base& descriptor) {
  return static_cast<bool>(descriptor) && !IsReference(descriptor.impl_info_str());
}

// Where the primitive knows neither: both are applied to its result, [N, C, spatial].
void AddBiasAndActivation(const KernelRequest& request, OneDnnKernel& kernel) {
  const bool has_bias = request.inputs.size() > 2;
  if (!has_bias && !request.attributes.Has("slope")) return;
  const Shape& result = request.outputs[0].shape;
  kernel.SetActivation(result[0], result[1], result.element_count() / (result[0] * result[1]), has_bias,
                       static_cast<float>(request.attributes.Float("slope", 1.0)));
}

std::unique_ptr<OneDnnKernel> TryConv(const KernelRequest& request, const ConvShape& shape, ImageFormat images) {
  const bool has_bias = request.inputs.size() > 2;
  dnnl::primitive_attr attributes = UserScratchpad();
  if (request.attributes.Has("slope")) {
    dnnl::post_ops operations;
    AppendLeakyRelu(operations, static_cast<float>(request.attributes.Float("slope")));
    attributes.set_post_ops(operations);
  }
  const memory::desc bias = has_bias ? Row({shape.result[1]}) : memory::desc();
  const auto forward = ForwardDescriptor(shape, MakeFormats(shape, images), bias, attributes);
  if (!Usable(forward)) return nullptr;
  auto kernel = std::make_unique<OneDnnKernel>(request.thread_count);
  const int source = kernel->Reordered(kernel->Input(0, Row(shape.source)), forward.src_desc());
  const int weights = kernel->Reordered(kernel->Input(1, Row(shape.weights)), forward.weights_desc());
  const int result = kernel->ResultTensor(forward.dst_desc(), Row(shape.result));
  std::vector<std::pair<int, int>> tensors = {
      {DNNL_ARG_SRC, source}, {DNNL_ARG_WEIGHTS, weights}, {DNNL_ARG_DST, result}};
  if (has_bias) tensors.emplace_back(DNNL_ARG_BIAS, kernel->Input(2, bias));
  kernel->Add(dnnl::convolution_forward(forward), forward.scratchpad_desc(), tensors);
  kernel->Deliver(result, Row(shape.result));
  kernel->SetImplementation(forward.impl_info_str(), Name(images));
  return kernel;
}

std::unique_ptr<OneDnnKernel> TryConvTranspose(const KernelRequest& request, const ConvShape& shape,
                                               ImageFormat images) {
  const auto forward =
      ForwardDescriptor(shape, MakeFormats(shape, ImageFormat::kAny), memory::desc(), UserScratchpad());
  if (!forward) return nullptr;
  const auto backward = BackwardDataDescriptor(shape, MakeFormats(shape, images), forward);
  if (!Usable(backward)) return nullptr;
  auto kernel = std::make_unique<OneDnnKernel>(request.thread_count);
  const int gradient = kernel->Reordered(kernel->Input(0, Row(shape.result)), backward.diff_dst_desc());
  const int weights = kernel->Reordered(kernel->Input(1, Row(shape.weights)), backward.weights_desc());
  const int result = kernel->ResultTensor(backward.diff_src_desc(), Row(shape.source));
  kernel->Add(dnnl::convolution_backward_data(backward), backward.scratchpad_desc(),
              {{DNNL_ARG_DIFF_DST, gradient}, {DNNL_ARG_WEIGHTS, weights}, {DNNL_ARG_DIFF_SRC, result}});
  kernel->Deliver(result, Row(shape.source));
  kernel->SetImplementation(backward.impl_info_str(), Name(images));
  AddBiasAndActivation(request, *kernel);
  return kernel;
}

std::unique_ptr<OneDnnKernel> TryConvWeightGrad(const KernelRequest& request, const ConvShape& shape,
                                                ImageFormat images) {
  const auto forward =
      ForwardDescriptor(shape, MakeFormats(shape, ImageFormat::kAny), memory::desc(), UserScratchpad());
  if (!forward) return nullptr;
  const auto backward = BackwardWeightsDescriptor(shape, MakeFormats(shape, images), forward);
  if (!Usable(backward)) return nullptr;
  auto kernel = std::make_unique<OneDnnKernel>(request.thread_count);
  const int source = kernel->Reordered(kernel->Input(0, Row(shape.source)), backward.src_desc());
  const int gradient = kernel->Reordered(kernel->Input(1, Row(shape.result)), backward.diff_dst_desc());
  const int result = kernel->ResultTensor(backward.diff_weights_desc(), Row(shape.weights));
  kernel->Add(dnnl::convolution_backward_weights(backward), backward.scratchpad_desc(),
              {{DNNL_ARG_SRC, source}, {DNNL_ARG_DIFF_DST, gradient}, {DNNL_ARG_DIFF_WEIGHTS, result}});
  kernel->Deliver(result, Row(shape.weights));
  kernel->SetImplementation(backward.impl_info_str(), Name(images));
  return kernel;
}

// --- matrix products -----------------------------------------------------------------------------------------------

// [batch, rows, columns] of a matrix stored plainly, or with the last two axes exchanged.
memory::desc Matrix(const Dims& batch, int64_t rows, int64_t columns, bool transposed) {
  Dims dims = batch, strides(batch.size() + 2);
  dims.insert(dims.end(), {rows, columns});
  strides[batch.size()] = transposed ? 1 : columns;
  strides[batch.size() + 1] = transposed ? rows : 1;
  int64_t stride = rows * columns;
  for (size_t axis = batch.size(); axis-- > 0;) {
    strides[axis] = stride;
    stride *= batch[axis];
  }
  return memory::desc(dims, memory::data_type::f32, strides);
}

// left times right, of the inputs with these indices.
std::unique_ptr<OneDnnKernel> TryMatmul(const KernelRequest& request, const memory::desc& left,
                                        const memory::desc& right, const memory::desc& product,
                                        std::array<int, 2> operands) {
#if DNNL_VERSION_MAJOR >= 3
  const dnnl::matmul::primitive_desc descriptor(CpuEngine(), left, right, product, UserScratchpad(), true);
#else
  const dnnl::matmul::primitive_desc descriptor({left, right, product}, UserScratchpad(), CpuEngine(), true);
#endif
  if (!Usable(descriptor)) return nullptr;
  auto kernel = std::make_unique<OneDnnKernel>(request.thread_count);
  const int left_tensor = kernel->Input(operands[0], left), right_tensor = kernel->Input(operands[1], right);
  const int product_tensor = kernel->Output(0, product);
  kernel->Add(dnnl::matmul(descriptor), descriptor.scratchpad_desc(),
              {{DNNL_ARG_SRC, left_tensor}, {DNNL_ARG_WEIGHTS, right_tensor}, {DNNL_ARG_DST, product_tensor}});
  kernel->SetImplementation(descriptor.impl_info_str(), "");
  return kernel;
}

// A kernel that covers the whole input has one place to stand on: all three are products of [N, O], [N, C * taps] and
// [O, C * taps], which lie plainly in memory. oneDNN's convolutions run up to seven times slower there.
bool IsMatrixProduct(const ConvGeometry& geometry) {
  if (geometry.groups != 1 || geometry.output_places() != 1) return false;
  for (int axis = 0; axis < 3; ++axis) {
    const WindowAxis& window = geometry.window.axes[axis];
    if (window.pad_begin != 0 || window.kernel != geometry.input[axis] || (window.kernel > 1 && window.dilation != 1))
      return false;
  }
  return true;
}

std::unique_ptr<OneDnnKernel> MakeConvolutionAsMatmul(const KernelRequest& request, const ConvGeometry& geometry) {
  const int64_t batch = geometry.batch, outputs = geometry.output_channels;
  const int64_t taps = geometry.input_channels * geometry.input_places();
  if (request.op.name == "conv_weight_grad") {
    return TryMatmul(request, Matrix({}, outputs, batch, true), Matrix({}, batch, taps, false),
                     Matrix({}, outputs, taps, false), {1, 0});
  }
  const bool transpose = request.op.name == "conv_transpose";
  std::unique_ptr<OneDnnKernel> kernel =
      transpose ? TryMatmul(request, Matrix({}, batch, outputs, false), Matrix({}, outputs, taps, false),
                            Matrix({}, batch, taps, false), {0, 1})
                : TryMatmul(request, Matrix({}, batch, taps, false), Matrix({}, taps, outputs, true),
                            Matrix({}, batch, outputs, false), {0, 1});
  if (kernel != nullptr) AddBiasAndActivation(request, *kernel);
  return kernel;
}

// The order in which formats are tried, by what oneDNN 2.6 was fastest with on AVX2.
std::array<ImageFormat, 3> Preference(std::string_view op, const ConvGeometry& geometry) {
  constexpr std::array kPlainFirst = {ImageFormat::kPlain, ImageFormat::kAny, ImageFormat::kChannelsLast};
  constexpr std::array kLastFirst = {ImageFormat::kChannelsLast, ImageFormat::kAny, ImageFormat::kPlain};
  constexpr std::array kAnyFirst = {ImageFormat::kAny, ImageFormat::kChannelsLast, ImageFormat::kPlain};
  const int64_t narrow = std::min(geometry.group_input_channels(), geometry.group_output_channels());
  // 1x1 kernels are matrix products on plain images; a reorder costs more than it brings.
  if (geometry.groups == 1 && geometry.window.taps() == 1) return kPlainFirst;
  // Blocked formats pad a narrow side to 8 or 16 channels.
  if (op == "conv_weight_grad" && narrow == 1) return kLastFirst;
  if (op == "conv_transpose" && narrow < 8) return kLastFirst;
  return kAnyFirst;
}

// Direct convolutions are preferred to those by im2col and gemm. Among the latter, transposed ones are faster with the
// channels last, unless a side is narrow.
std::unique_ptr<OneDnnKernel> MakeConvolution(const KernelRequest& request) {
  const ConvGeometry geometry = GeometryOf(request.op.name, request.inputs, request.outputs, request.attributes);
  if (IsMatrixProduct(geometry)) return MakeConvolutionAsMatmul(request, geometry);
  const ConvShape shape = MakeConvShape(geometry);
  const auto attempt = request.op.name == "conv"             ? TryConv
                       : request.op.name == "conv_transpose" ? TryConvTranspose
                                                             : TryConvWeightGrad;
  const std::array<ImageFormat, 3> preference = Preference(request.op.name, geometry);
  const bool wide = std::min(geometry.group_input_channels(), geometry.group_output_channels()) >= 8;
  const ImageFormat best_of_gemm =
      request.op.name == "conv_transpose" && wide ? ImageFormat::kChannelsLast : ImageFormat::kPlain;
  std::unique_ptr<OneDnnKernel> gemm;
  for (ImageFormat format : preference) {
    std::unique_ptr<OneDnnKernel> kernel = attempt(request, shape, format);
    if (kernel == nullptr) continue;
    const bool by_gemm = kernel->implementation().find("gemm:") != std::string_view::npos;
    if (!by_gemm || preference[0] == ImageFormat::kPlain) return kernel;
    if (gemm == nullptr || format == best_of_gemm) gemm = std::move(kernel);
  }
  return gemm;
}

// --- matmul as an op -----------------------------------------------------------------------------------------------

std::unique_ptr<OneDnnKernel> MakeMatmul(const KernelRequest& request) {
  const Shape& a = request.inputs[0].shape;
  const Shape& c = request.inputs[1].shape;
  const Shape& result = request.outputs[0].shape;
  const bool transpose_a = request.attributes.Int("transpose_a") != 0,
             transpose_c = request.attributes.Int("transpose_b") != 0;
  int64_t rows = result[result.rank() - 2];
  const int64_t columns = result[result.rank() - 1];
  const int64_t inner = transpose_a ? a[a.rank() - 2] : a[a.rank() - 1];
  // Leading dimensions, aligned at the right and filled up with ones.
  const auto leading = [&](const Shape& shape) {
    Dims batch(result.rank() - shape.rank(), 1);
    batch.insert(batch.end(), shape.dims().begin(), shape.dims().end() - 2);
    return batch;
  };
  Dims batch_a = leading(a), batch_c = leading(c), batch = leading(result);
  const auto count = [](const Dims& dims) {
    int64_t product = 1;
    for (int64_t dim : dims) product *= dim;
    return product;
  };
  if (count(batch_c) == 1 && batch_a == batch && !transpose_a) {
    rows *= count(batch);  // one matrix for all: the batch is more rows
    batch_a = batch_c = batch = {};
  } else if (batch_a == batch && batch_c == batch) {
    batch_a = batch_c = batch = {count(batch)};
  }
  const memory::desc left = Matrix(batch_a, rows, inner, transpose_a),
                     right = Matrix(batch_c, inner, columns, transpose_c);
  const memory::desc product = Matrix(batch, rows, columns, false);
  return TryMatmul(request, left, right, product, {0, 1});
}

// --- pooling -------------------------------------------------------------------------------------------------------

// avg_pool and avg_pool_grad without dilation, in the plain format. oneDNN's max_pool is no faster there than plain
// loops.
std::unique_ptr<OneDnnKernel> MakePool(const KernelRequest& request) {
  const bool backward = request.op.name == "avg_pool_grad";
  const Shape& x = backward ? request.outputs[0].shape : request.inputs[0].shape;
  const Shape& pooled = backward ? request.inputs[0].shape : request.outputs[0].shape;
  const PoolGeometry geometry = PoolGeometryOf(x, pooled, request.attributes);
  const auto algorithm = geometry.count_include_pad ? dnnl::algorithm::pooling_avg_include_padding
                                                    : dnnl::algorithm::pooling_avg_exclude_padding;
  Dims strides, kernel_dims, pads_begin, pads_end;
  for (int index = 0; index < geometry.window.rank; ++index) {
    const WindowAxis& axis = geometry.window.spatial(index);
    const int place = 3 - geometry.window.rank + index;
    const int64_t reach =
        (geometry.output[place] - 1) * axis.stride + axis.kernel - geometry.input[place] - axis.pad_begin;
    // A window of ceil_mode that goes beyond the pad: oneDNN would count those places as padding.
    if (reach > axis.pad_end && algorithm == dnnl::algorithm::pooling_avg_include_padding) return nullptr;
    if (axis.dilation > 1 && axis.kernel > 1) return nullptr;
    strides.push_back(axis.stride);
    kernel_dims.push_back(axis.kernel);
    pads_begin.push_back(axis.pad_begin);
    pads_end.push_back(std::max(reach, axis.pad_end));
  }
  const memory::desc source = Row(x.dims()), result = Row(pooled.dims());
#if DNNL_VERSION_MAJOR >= 3
  const dnnl::pooling_forward::primitive_desc forward(CpuEngine(), dnnl::prop_kind::forward_inference, algorithm,
                                                      source, result, strides, kernel_dims, Dims(strides.size(), 0),
                                                      pads_begin, pads_end, UserScratchpad(), true);
#else
  const dnnl::pooling_forward::primitive_desc forward(
      {dnnl::prop_kind::forward_inference, algorithm, source, result, strides, kernel_dims, pads_begin, pads_end},
      UserScratchpad(), CpuEngine(), true);
#endif
  if (!forward) return nullptr;
  auto kernel = std::make_unique<OneDnnKernel>(request.thread_count);
  if (!backward) {
    if (!Usable(forward)) return nullptr;
    const int from = kernel->Input(0, source), to = kernel->Output(0, result);
    kernel->Add(dnnl::pooling_forward(forward), forward.scratchpad_desc(), {{DNNL_ARG_SRC, from}, {DNNL_ARG_DST, to}});
    kernel->SetImplementation(forward.impl_info_str(), "");
    return kernel;
  }
#if DNNL_VERSION_MAJOR >= 3
  const dnnl::pooling_backward::primitive_desc gradient(CpuEngine(), algorithm, source, result, strides, kernel_dims,
                                                        Dims(strides.size(), 0), pads_begin, pads_end, forward,
                                                        UserScratchpad(), true);
#else
  const dnnl::pooling_backward::primitive_desc gradient(
      {algorithm, source, result, strides, kernel_dims, pads_begin, pads_end}, UserScratchpad(), CpuEngine(), forward,
      true);
#endif
  if (!Usable(gradient)) return nullptr;
  const int from = kernel->Input(0, result), to = kernel->Output(0, source);
  kernel->Add(dnnl::pooling_backward(gradient), gradient.scratchpad_desc(),
              {{DNNL_ARG_DIFF_DST, from}, {DNNL_ARG_DIFF_SRC, to}});
  kernel->SetImplementation(gradient.impl_info_str(), "");
  return kernel;
}

bool Covers(const KernelRequest& request) {
  for (std::span<const TensorType> types : {request.inputs, request.outputs}) {
    for (const TensorType& type : types) {
      if (type.dtype != DataType::kF32 || type.layout != TensorLayout::kPlain) return false;
      if (type.element_count() < 1 || type.element_count() > kMostElements) return false;
    }
  }
  return true;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Kernel>> MakeOneDnnKernel(const KernelRequest& request) {
  using Maker = std::unique_ptr<OneDnnKernel> (*)(const KernelRequest&);
  constexpr std::pair<std::string_view, Maker> kOps[] = {
      {"conv", MakeConvolution},
      {"conv_transpose", MakeConvolution},
      {"conv_weight_grad", MakeConvolution},
      {"matmul", MakeMatmul},
      {"avg_pool", MakePool},
      {"avg_pool_grad", MakePool},
  };
  for (const auto& [name, make] : kOps) {
    if (name != request.op.name || !Covers(request)) continue;
    const ScopedThreadCount threads(request.thread_count);
    try {
      return make(request);
    } catch (const dnnl::error& error) {
      // Out of memory, or a shape that oneDNN refuses outright: another library serves.
      if (error.status == dnnl_out_of_memory) return absl::ResourceExhaustedError(error.what());
      return nullptr;
    }
  }
  return nullptr;
}

}  // namespace gantry::cpu
