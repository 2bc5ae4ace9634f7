// Evaluates a model on its own: states from their initializers, inputs by name, on the reference kernels.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "runtime/graph/model.h"

namespace gantry::test {

using NamedContents = std::map<std::string, std::vector<double>>;

struct ModelResult {
  NamedContents outputs;
  NamedContents states;  // after the pass
};

// Random initial values are drawn from a fixed seed; `states` overrides what initializers say. Every input must be
// given.
absl::StatusOr<ModelResult> RunModel(const Model& model, const NamedContents& inputs, const NamedContents& states = {});

// What RunModel takes for the state's first content.
std::vector<double> InitialContent(const Model& model, const State& state);

}  // namespace gantry::test
