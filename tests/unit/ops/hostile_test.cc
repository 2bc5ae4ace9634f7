// Hostile types and attributes for every op: shape inference answers with an error or with shapes within the limits,
// and what it accepts, the reference kernels run. Under the sanitizers this looks for overflow and for reads outside.
#include <gtest/gtest.h>

#include <random>

#include "ops/infer.h"
#include "tests/support/run_op.h"

namespace gantry::test {
namespace {

class Hostile {
 public:
  explicit Hostile(uint64_t seed) : random_(seed) {}

  int64_t Pick(std::initializer_list<int64_t> values) { return values.begin()[Below(static_cast<int>(values.size()))]; }
  int Below(int count) { return std::uniform_int_distribution<int>(0, count - 1)(random_); }

  int64_t Integer() {
    if (Below(3) > 0) return Below(5);
    return Pick(
        {-1, -2, -7, 8, 1000, int64_t{1} << 31, int64_t{1} << 40, INT64_MAX, INT64_MAX - 1, INT64_MIN, INT64_MIN + 1});
  }
  Shape SmallShape() {
    std::vector<int64_t> dims(Below(6));
    for (int64_t& dim : dims) dim = Pick({0, 1, 1, 2, 2, 3, 3, 4, 5});
    return Shape(std::move(dims));
  }
  DataType Type() { return static_cast<DataType>(Below(3) > 0 ? 1 : Below(5)); }
  std::mt19937_64& random() { return random_; }

  AttributeValue Value(std::string_view name) {
    if (name == "dtype") return std::string(Below(4) > 0 ? Name(Type()) : "f16");
    if (name == "mode") return std::string(Below(2) > 0 ? "nearest" : "linear");
    if (name == "coordinates") {
      return std::string(
          std::vector<const char*>{"asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel"}[Below(4)]);
    }
    if (name == "rounding")
      return std::string(std::vector<const char*>{"floor", "round_prefer_floor", "ceil"}[Below(3)]);
    switch (Below(12)) {
      case 0:
        return std::string("surprise");
      case 1:
        return std::numeric_limits<double>::quiet_NaN();
      case 2:
        return -std::numeric_limits<double>::infinity();
      default:
        break;
    }
    for (std::string_view list : {"axes", "dims", "perm", "starts", "counts", "steps", "pads", "strides", "dilations",
                                  "kernel", "output_spatial"}) {
      if (name != list) continue;
      std::vector<int64_t> values(Below(20) == 0 ? 300 : Below(7));
      for (int64_t& value : values) value = Integer();
      return values;
    }
    if (Below(2) == 0) return Integer();
    return std::vector<double>{0.0, 0.25, 0.5, 1.0, -1.0, 1e300, 1e-300}[Below(7)];
  }

 private:
  std::mt19937_64 random_;
};

constexpr const char* kAttributes[] = {"alpha",    "beta",      "low",         "high",           "slope",
                                       "dtype",    "value",     "dims",        "axes",           "keep_dims",
                                       "axis",     "perm",      "starts",      "counts",         "steps",
                                       "pads",     "rate",      "stream",      "mean",           "deviation",
                                       "count",    "beta1",     "beta2",       "epsilon",        "momentum",
                                       "nesterov", "weight",    "scale",       "weight_decay",   "dampening",
                                       "extent",   "strides",   "kernel",      "groups",         "dilations",
                                       "mode",     "eps",       "ceil_mode",   "output_spatial", "coordinates",
                                       "rounding", "begin",     "decoupled", "transpose_a", "transpose_b",    "count_include_pad"};

TEST(HostileTest, InferenceRefusesOrStaysWithinLimits) {
  Hostile hostile(1);
  int accepted = 0, ran = 0;
  for (const OpDefinition* op : AllOps()) {
    // Only the planner writes these ops.
    if (op->name.starts_with("panel_") || op->name == "pack_weights" || op->name == "reorder" || op->name == "sign_bits" ||
        op->name == "leaky_relu_grad_bits") {
      continue;
    }
    for (int round = 0; round < 3000; ++round) {
      const int most = op->max_inputs < 0 ? op->min_inputs + 3 : op->max_inputs;
      const int count = op->min_inputs + hostile.Below(most - op->min_inputs + 1);
      std::vector<TensorType> types;
      const Shape common = hostile.SmallShape();
      const DataType type = hostile.Type();
      for (int i = 0; i < count; ++i) {
        types.push_back(
            {hostile.Below(4) > 0 ? type : hostile.Type(), hostile.Below(2) > 0 ? common : hostile.SmallShape()});
      }
      Attributes attributes;
      for (const char* name : kAttributes) {
        if (hostile.Below(8) > 0) attributes.Set(name, hostile.Value(name));
      }
      if (hostile.Below(2) > 0) attributes.Set("slope", 0.2);
      const auto outputs = op->infer(types, attributes);
      if (!outputs.ok()) {
        EXPECT_FALSE(outputs.status().message().empty()) << op->name;
        continue;
      }
      ++accepted;
      int64_t elements = 0;
      for (const TensorType& output : *outputs) {
        ASSERT_TRUE(infer::CheckShape(output.shape).ok()) << op->name << attributes.ToString();
        elements += std::min<int64_t>(output.element_count(), 1 << 20);
      }
      if (op->cost != nullptr) {
        EXPECT_GE(op->cost(types, *outputs, attributes).flops, 0.0) << op->name << attributes.ToString();
      }
      if (elements > 4096 || op->is_view) continue;
      std::vector<Tensor> inputs;
      for (const TensorType& input : types) {
        Tensor tensor = RandomTensor(input.shape, hostile.random());
        tensor.type = input;
        if (!IsFloat(input.dtype)) {
          for (double& value : tensor.values) value = hostile.Below(5);
        }
        inputs.push_back(std::move(tensor));
      }
      const auto run = RunOp(op->name, inputs, attributes);
      // An index outside is the run's to find; else what inference accepts has a kernel.
      EXPECT_TRUE(run.ok() || run.status().code() == absl::StatusCode::kOutOfRange)
          << op->name << attributes.ToString() << ": " << run.status();
      ++ran;
    }
  }
  // The test is worth something: plenty gets through.
  EXPECT_GT(accepted, 5000);
  EXPECT_GT(ran, 3000);
}

}  // namespace
}  // namespace gantry::test
