// Networks from ONNX files, as PyTorch and others export them.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "runtime/graph/model.h"

namespace gantry {

struct OnnxOptions {
  std::string name;                 // of the model, for errors
  int64_t batch = 0;                // replaces the symbolic batch dimension; 0: the file's own, which must be a number
  DataType dtype = DataType::kF32;  // f32 or f64: every float of the file is computed in it
  // As the file says; false: batch norm uses its running statistics and dropout does nothing.
  bool training = true;
  // Batch norm and dropout train although the file says otherwise (see below).
  bool force_training = false;
  std::vector<std::string> frozen;  // initializers not to be trained, such as fixed filters; exact names
};

// The forward program of an ONNX model (opset 7 to 21, one graph of tensors), for training. Dimension 0 of every input
// is the batch. Only what the outputs depend on is imported.
//
// States have the names of the ONNX initializers ("0.weight", "1.running_mean"). An initializer of floats is
//  - a statistic where a BatchNormalization reads it as its running mean or variance, where its name ends in
//    "running_mean", "running_var", ".weight_u", ".weight_v", "._u" or "._v" (spectral norm), or where `frozen` names it;
//  - a parameter where Conv, ConvTranspose, Gemm, MatMul, PRelu, BatchNormalization, InstanceNormalization,
//    LayerNormalization or GroupNormalization reads it directly as an operand of at least one dimension, whatever its
//    name (exporters rename weights to "onnx::MatMul_12"), unless that is "val_" and a number, an exporter's own
//    constant; and otherwise where its name has a dot and is not anonymous ("input.const"), or has no dot but is not
//    anonymous and holds more than one element ("const"). Anonymous names begin with "onnx::", "/" or "_", or, having
//    no dot, are a number or end in "_" and a number ("123", "mul_3");
//  - a constant in all other cases, like the output of a Constant node: a single or repeated value becomes part of an
//    op, anything else a statistic that no step changes.
// What only sets up an op (shape, pads, axes, scales, clip bounds, the exponent of Pow, dropout rates) is never
// trained. Constant inputs are computed at import.
//
// A float attribute or single-element constant stands for the number that was rounded to it: 0.200000003 is 0.2,
// 0.70710677 is sqrt(1/2). So an f64 import computes what the exporting program computes in f64.
// Batch norm in training mode normalizes with the batch and updates its running statistics as PyTorch does: the running
// variance takes the unbiased variance, although ONNX says otherwise.
//
// From PyTorch: torch.onnx.export(..., dynamo=False, training=TrainingMode.TRAINING, do_constant_folding=False) keeps
// all that training needs. The newer exporter (dynamo=True) needs optimize=False, or it merges weights into constants,
// and writes batch norm for inference in any case: import its files with force_training.
//
// Errors: kInvalidArgument where the bytes are no ONNX model or are inconsistent; kUnimplemented for operators and
// modes that have no counterpart, naming node and operator; kNotFound and kOutOfRange for external data.
absl::StatusOr<Model> ImportOnnx(std::span<const std::byte> bytes, const OnnxOptions& options);
// The same from a file, of at most 2 GiB. Weights may lie in other files inside the model's folder (external data).
absl::StatusOr<Model> ImportOnnxFile(const std::filesystem::path& path, const OnnxOptions& options);

}  // namespace gantry
