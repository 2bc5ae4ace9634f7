#include "tests/support/gradient_check.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "ops/kernel.h"
#include "runtime/graph/differentiate.h"
#include "tests/support/program_runner.h"

namespace gantry::test {
namespace {

constexpr double kStep = 1e-3;
constexpr double kTolerance = 1e-6;

// An input of the program, and its content.
struct Leaf {
  ValueId value;
  std::vector<double> content;
  std::string name;
};

std::vector<double> Draw(const GradientInput& input, std::mt19937_64& random) {
  if (!input.integers.empty()) return {input.integers.begin(), input.integers.end()};
  std::vector<double> content(input.shape.element_count());
  std::uniform_real_distribution<double> uniform(input.low, input.high);
  for (double& value : content) {
    do {
      value = uniform(random);
    } while (std::any_of(input.kinks.begin(), input.kinks.end(),
                         [&](double kink) { return std::abs(value - kink) < kKinkMargin; }));
  }
  return content;
}

// Replaces the content of all distinct inputs by one even spread, dealt out in random order.
absl::Status Spread(const GradientCase& one, std::vector<Leaf>& inputs, std::mt19937_64& random) {
  std::vector<double*> places;
  double low = 0.0, high = 0.0;
  for (size_t i = 0; i < one.inputs.size(); ++i) {
    if (!one.inputs[i].distinct) continue;
    low = one.inputs[i].low;
    high = one.inputs[i].high;
    for (double& value : inputs[i].content) places.push_back(&value);
  }
  const double distance = (high - low) / std::max<double>(1.0, static_cast<double>(places.size()));
  if (!places.empty() && distance < kKinkMargin)
    return absl::InvalidArgumentError("too many distinct values for the range");
  std::shuffle(places.begin(), places.end(), random);
  for (size_t i = 0; i < places.size(); ++i) *places[i] = low + distance * (static_cast<double>(i) + 0.5);
  return absl::OkStatus();
}

// sum_i <projection_i, value_i>, read from the runner.
double Project(const ProgramRunner& runner, const std::vector<ValueId>& values, const std::vector<Leaf>& projections) {
  double sum = 0.0;
  for (size_t i = 0; i < values.size(); ++i) {
    if (values[i] == kNoValue) continue;
    const std::vector<double> content = runner.Get(values[i]);
    for (size_t k = 0; k < content.size(); ++k) sum += content[k] * projections[i].content[k];
  }
  return sum;
}

class Check {
 public:
  explicit Check(const GradientCase& one) : one_(one), random_(std::hash<std::string>()(one.name)) {}

  absl::Status Run() {
    // x, the op, and a projection r of each output.
    std::vector<ValueId> operands, differentiated;
    for (size_t i = 0; i < one_.inputs.size(); ++i) {
      const GradientInput& input = one_.inputs[i];
      const DataType dtype = input.integers.empty() ? DataType::kF64 : DataType::kI64;
      operands.push_back(AddLeaf(absl::StrCat("input ", i), {dtype, input.shape}, Draw(input, random_)));
      const bool constant = std::find(one_.constant_inputs.begin(), one_.constant_inputs.end(), static_cast<int>(i)) !=
                            one_.constant_inputs.end();
      if (dtype == DataType::kF64 && !constant) differentiated.push_back(operands.back());
    }
    GANTRY_RETURN_IF_ERROR(Spread(one_, leaves_, random_));
    const std::vector<ValueId> outputs =
        one_.build ? one_.build(program_, operands) : program_.Emit(one_.op, operands, one_.attributes);
    GANTRY_RETURN_IF_ERROR(program_.status());
    const std::vector<ValueId> seeds = AddProjections("r", outputs);
    GANTRY_ASSIGN_OR_RETURN(const std::vector<ValueId> first, Differentiate(program_, outputs, seeds, differentiated));

    // The gradients of <p, first>.
    std::vector<ValueId> reached;
    for (ValueId gradient : first) {
      if (gradient != kNoValue) reached.push_back(gradient);
    }
    const std::vector<ValueId> second_seeds = AddProjections("p", reached);
    std::vector<ValueId> variables = differentiated;
    variables.insert(variables.end(), seeds.begin(), seeds.end());
    GANTRY_ASSIGN_OR_RETURN(const std::vector<ValueId> second,
                            Differentiate(program_, reached, second_seeds, variables));
    GANTRY_RETURN_IF_ERROR(program_.status());

    GANTRY_ASSIGN_OR_RETURN(ProgramRunner runner, ProgramRunner::Create(program_, ReferenceKernels()));
    for (const Leaf& leaf : leaves_) runner.Set(leaf.value, leaf.content);
    GANTRY_RETURN_IF_ERROR(Compare("first", runner, outputs, seeds, differentiated, first));
    return Compare("second", runner, reached, second_seeds, variables, second);
  }

 private:
  ValueId AddLeaf(std::string name, TensorType type, std::vector<double> content) {
    const ValueId value = program_.AddInput(name, std::move(type));
    leaves_.push_back({value, std::move(content), std::move(name)});
    return value;
  }

  std::vector<ValueId> AddProjections(std::string_view name, const std::vector<ValueId>& of) {
    std::vector<ValueId> projections;
    for (size_t i = 0; i < of.size(); ++i) {
      const TensorType type = program_.TypeOf(of[i]);
      projections.push_back(
          AddLeaf(absl::StrCat(ToAbsl(name), i), type, Draw({.shape = type.shape, .low = -1.0, .high = 1.0}, random_)));
    }
    return projections;
  }

  const Leaf& LeafOf(ValueId value) const {
    return *std::find_if(leaves_.begin(), leaves_.end(), [&](const Leaf& leaf) { return leaf.value == value; });
  }

  // Compares `gradients` of sum_i <seeds_i, values_i> by `variables` with differences.
  absl::Status Compare(std::string_view which, ProgramRunner& runner, const std::vector<ValueId>& values,
                       const std::vector<ValueId>& seeds, const std::vector<ValueId>& variables,
                       const std::vector<ValueId>& gradients) {
    for (size_t i = 0; i < variables.size(); ++i) {
      const Leaf& leaf = LeafOf(variables[i]);
      std::vector<double> found(leaf.content.size(), 0.0);
      if (gradients[i] != kNoValue) {
        GANTRY_RETURN_IF_ERROR(runner.Run(std::vector<ValueId>{gradients[i]}));
        found = runner.Get(gradients[i]);
      }
      double largest = 0.01, worst = 0.0;
      std::string detail;
      for (size_t k = 0; k < leaf.content.size(); ++k) {
        GANTRY_ASSIGN_OR_RETURN(const double wide, Difference(runner, values, seeds, leaf, k, kStep));
        GANTRY_ASSIGN_OR_RETURN(const double narrow, Difference(runner, values, seeds, leaf, k, kStep / 2));
        const double expected = (4.0 * narrow - wide) / 3.0;  // Richardson: the error is of fourth order
        largest = std::max(largest, std::abs(expected));
        const double error = std::abs(found[k] - expected);
        if (error <= worst) continue;
        worst = std::isnan(error) ? std::numeric_limits<double>::infinity() : error;
        detail = absl::StrFormat("%.12g, the difference quotient is %.12g (element %d)", found[k], expected, k);
      }
      runner.Set(leaf.value, leaf.content);
      if (!(worst <= kTolerance * largest)) {
        return absl::InternalError(absl::StrFormat("the %s gradient by %s is %s; the largest gradient is %.6g", which,
                                                   leaf.name, detail, largest));
      }
    }
    return absl::OkStatus();
  }

  // The central difference quotient by one element of a leaf.
  absl::StatusOr<double> Difference(ProgramRunner& runner, const std::vector<ValueId>& values,
                                    const std::vector<ValueId>& seeds, const Leaf& leaf, size_t element, double step) {
    std::vector<Leaf> projections;
    for (ValueId seed : seeds) projections.push_back(LeafOf(seed));
    double sides[2];
    for (int side = 0; side < 2; ++side) {
      std::vector<double> moved = leaf.content;
      moved[element] += side == 0 ? step : -step;
      runner.Set(leaf.value, moved);
      GANTRY_RETURN_IF_ERROR(runner.Run(values));
      for (Leaf& projection : projections) {
        if (projection.value == leaf.value) projection.content = moved;
      }
      sides[side] = Project(runner, values, projections);
    }
    return (sides[0] - sides[1]) / (2.0 * step);
  }

  const GradientCase& one_;
  std::mt19937_64 random_;
  Program program_;
  std::vector<Leaf> leaves_;
};

}  // namespace

absl::Status CheckGradients(const GradientCase& one) { return Check(one).Run(); }

}  // namespace gantry::test
