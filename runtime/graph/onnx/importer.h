// The state of one ONNX import: values by name, weights, and the program being built.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "runtime/graph/onnx.h"
#include "runtime/graph/onnx/host_tensor.h"

namespace gantry::onnx {

// A constant that folding computes has at most so many elements, all of one import together at most kMaxFoldedTotal;
// larger ones are computed by the program.
inline constexpr int64_t kMaxFoldedElements = int64_t{1} << 22;
inline constexpr int64_t kMaxFoldedTotal = int64_t{1} << 25;

// An initializer. It is read when first needed.
struct Weight {
  const TensorProto* proto = nullptr;
  TensorHeader header;
  StateRole role = StateRole::kParameter;
  bool is_constant = false;    // neither trained nor running: folds like the output of a Constant node
  ValueId current = kNoValue;  // newest version of its state, once it has one
  std::shared_ptr<const HostTensor> read;
};

// What a name of the graph stands for: a value of the program, a constant, a weight, or a list of
// those.
struct Operand {
  std::string name;
  ValueId value = kNoValue;
  std::shared_ptr<const HostTensor> constant;
  Weight* weight = nullptr;
  std::shared_ptr<const std::vector<Operand>> sequence;
};

class Importer {
 public:
  // `folder`: where external data may lie; empty if nowhere.
  Importer(const OnnxOptions& options, std::filesystem::path folder) : options_(options), folder_(std::move(folder)) {}

  absl::StatusOr<Model> Import(const ModelProto& model);

  const OnnxOptions& options() const { return options_; }
  int64_t opset() const { return opset_; }
  Program& program() { return model_.program; }

  // Null where no node, input or initializer so far has the name.
  Operand* Find(std::string_view name);
  absl::Status Define(Operand operand);

  // The operand as a value of the program: floats in the compute type, bools as floats 0 and 1, integers as i64.
  absl::StatusOr<ValueId> ToValue(Operand& operand);
  // The elements of a constant or weight.
  absl::StatusOr<std::shared_ptr<const HostTensor>> ToHost(const Operand& operand);
  // The tensor of an attribute.
  absl::StatusOr<HostTensor> ReadConstant(const TensorProto& tensor) const { return ReadTensor(tensor, folder_); }
  Shape ShapeOf(const Operand& operand);

  // The input that random ops read, and the stream of the next of them.
  ValueId RandomState();
  int64_t NextStream() { return next_stream_++; }
  // Counts a folded constant against the limit of one import.
  absl::Status ChargeFolded(const HostTensor& constant);

 private:
  absl::Status ReadOpset(const ModelProto& model);
  absl::Status ReadInputs(const GraphProto& graph);
  absl::Status ReadInitializers(const GraphProto& graph);
  absl::Status ImportNodes(const GraphProto& graph);
  absl::Status WriteOutputs(const GraphProto& graph);
  std::string UniqueStateName(const std::string& wanted);

  const OnnxOptions& options_;
  std::filesystem::path folder_;
  Model model_;
  int64_t opset_ = 0;
  int64_t next_stream_ = 0;
  int64_t folded_elements_ = 0;
  std::vector<std::unique_ptr<Weight>> weights_;
  absl::flat_hash_map<std::string, Operand> operands_;
};

}  // namespace gantry::onnx
