#include "tests/support/conv_case.h"

namespace gantry::test {
namespace {

ConvCase Finish(int64_t batch, int64_t groups, int64_t group_inputs, int64_t group_outputs,
                std::vector<int64_t> spatial, std::vector<int64_t> kernel, std::vector<int64_t> strides,
                std::vector<int64_t> pads, std::vector<int64_t> dilations) {
  const size_t rank = spatial.size();
  std::vector<int64_t> x = {batch, groups * group_inputs}, w = {groups * group_outputs, group_inputs};
  std::vector<int64_t> y = {batch, groups * group_outputs};
  for (size_t i = 0; i < rank; ++i) {
    x.push_back(spatial[i]);
    w.push_back(kernel[i]);
    y.push_back((spatial[i] + pads[i] + pads[rank + i] - dilations[i] * (kernel[i] - 1) - 1) / strides[i] + 1);
  }
  ConvCase result{Shape(x), Shape(w), Shape(y)};
  result.conv = {{"strides", strides}, {"pads", pads}, {"dilations", dilations}, {"groups", groups}};
  result.transpose = result.conv;
  result.transpose.Set("output_spatial", spatial);
  result.weight_grad = result.conv;
  result.weight_grad.Set("kernel", kernel);
  return result;
}

}  // namespace

ConvCase RandomConvCase(std::mt19937_64& random) {
  const auto draw = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  };
  const int64_t rank = draw(1, 3);
  std::vector<int64_t> spatial, kernel, strides, pads(2 * rank), dilations;
  for (int64_t& pad : pads) pad = draw(0, 2);
  for (int64_t i = 0; i < rank; ++i) {
    kernel.push_back(draw(1, rank == 3 ? 3 : 5));
    strides.push_back(draw(1, 3));
    dilations.push_back(draw(1, 3));
    const int64_t extent = dilations[i] * (kernel[i] - 1) + 1;
    const int64_t smallest = std::max<int64_t>(1, extent - pads[i] - pads[rank + i]);
    spatial.push_back(draw(smallest, smallest + (rank == 3 ? 4 : 8)));
  }
  return Finish(draw(1, 3), draw(1, 3), draw(1, 5), draw(1, 5), spatial, kernel, strides, pads, dilations);
}

ConvCase MakeConvCase(int spatial_rank, int64_t batch, int64_t input_channels, int64_t input, int64_t output_channels,
                      int64_t kernel, int64_t stride, int64_t pad, int64_t dilation, int64_t groups) {
  const auto all = [&](int64_t value) { return std::vector<int64_t>(spatial_rank, value); };
  return Finish(batch, groups, input_channels / groups, output_channels / groups, all(input), all(kernel), all(stride),
                std::vector<int64_t>(2 * spatial_rank, pad), all(dilation));
}

}  // namespace gantry::test
