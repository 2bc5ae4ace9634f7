// What a partitioned program gives, with inputs and states that depend on their names only.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "runtime/partition/partition.h"

namespace gantry::test {

// The elements of a whole tensor that the part at `begins` has, row-major.
std::vector<int64_t> Elements(const Shape& whole, const std::vector<int64_t>& begins, const Shape& part);

using Scalars = std::map<std::string, double>;

// Runs the programs of all ranks side by side (lockstep_runner.h) and gives each rank's outputs of one element.
// `content` is element `element` of the whole input or state `name`.
absl::StatusOr<std::vector<Scalars>> RunRanks(
    const std::vector<RankProgram>& ranks,
    const std::function<double(const std::string& name, int64_t element)>& content);

}  // namespace gantry::test
