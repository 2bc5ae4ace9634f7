// The table of gradient checks, a list per family. Every op with a gradient rule or a decomposition is named by a case.
#pragma once

#include <vector>

#include "tests/support/gradient_check.h"

namespace gantry::test {

std::vector<GradientCase> ElementwiseGradientCases();
std::vector<GradientCase> ReductionGradientCases();
std::vector<GradientCase> ShapeGradientCases();
std::vector<GradientCase> ProductGradientCases();  // matmul, gather, sum_squares, dropout
std::vector<GradientCase> ConvolutionGradientCases();
std::vector<GradientCase> PoolingGradientCases();
std::vector<GradientCase> ResizeGradientCases();
std::vector<GradientCase> NormalizationGradientCases();

}  // namespace gantry::test
