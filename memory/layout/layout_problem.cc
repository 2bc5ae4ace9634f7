#include "memory/layout/layout_problem.h"

#include <algorithm>
#include <numeric>
#include <unordered_map>

#include "memory/layout/layout_items.h"
#include "memory/status.h"

namespace gantry {
namespace {

struct Group {
  size_t first_buffer;
  int64_t alignment = 1;
  std::optional<size_t> fixed_buffer;
};

absl::Status ValidateBuffer(const LayoutProblem& problem, size_t index) {
  const LayoutBuffer& buffer = problem.buffers[index];
  const auto bad = [&](const std::string& what) {
    return absl::InvalidArgumentError(absl::StrFormat("layout buffer `%s`: %s", problem.Name(index), what));
  };
  if (buffer.lower >= buffer.upper) {
    return bad(absl::StrFormat("it is live in [%d, %d), which is empty; upper has to be larger than lower", buffer.lower,
                               buffer.upper));
  }
  if (buffer.size < 0 || buffer.size > kLayoutMaxBytes) {
    return bad(absl::StrFormat("its size of %d bytes is not in [0, 2^60]", buffer.size));
  }
  if (buffer.alignment < 1 || buffer.alignment > kLayoutMaxAlignment) {
    return bad(absl::StrFormat("its alignment %d is not in [1, 2^40]", buffer.alignment));
  }
  if (!buffer.fixed_offset) return absl::OkStatus();
  if (*buffer.fixed_offset < 0 || *buffer.fixed_offset > kLayoutMaxBytes) {
    return bad(absl::StrFormat("its fixed offset %d is not in [0, 2^60]", *buffer.fixed_offset));
  }
  if (*buffer.fixed_offset % buffer.alignment != 0) {
    return bad(absl::StrFormat("its fixed offset %d is not a multiple of its alignment %d", *buffer.fixed_offset,
                               buffer.alignment));
  }
  return absl::OkStatus();
}

// Adds buffer `index` to its group, if it is in one, and checks that the group can still share one offset.
absl::Status JoinGroup(const LayoutProblem& problem, size_t index, std::unordered_map<int32_t, Group>& groups) {
  const LayoutBuffer& buffer = problem.buffers[index];
  if (buffer.alias_group < 0) return absl::OkStatus();
  Group& group = groups.try_emplace(buffer.alias_group, Group{index}).first->second;
  const auto bad = [&](const std::string& what) {
    return absl::InvalidArgumentError(
        absl::StrFormat("layout buffers `%s` and `%s` share alias group %d, but %s", problem.Name(group.first_buffer),
                        problem.Name(index), buffer.alias_group, what));
  };
  const int64_t step = buffer.alignment / std::gcd(group.alignment, buffer.alignment);
  if (step > kLayoutMaxAlignment / group.alignment) return bad("their alignments have no common multiple up to 2^40");
  group.alignment *= step;
  if (buffer.fixed_offset) {
    if (!group.fixed_buffer) group.fixed_buffer = index;
    const int64_t other = *problem.buffers[*group.fixed_buffer].fixed_offset;
    if (other != *buffer.fixed_offset) {
      return bad(absl::StrFormat("their fixed offsets differ: %d and %d", other, *buffer.fixed_offset));
    }
  }
  if (group.fixed_buffer && *problem.buffers[*group.fixed_buffer].fixed_offset % group.alignment != 0) {
    return bad(absl::StrFormat("the fixed offset %d is not a multiple of the common alignment %d",
                               *problem.buffers[*group.fixed_buffer].fixed_offset, group.alignment));
  }
  return absl::OkStatus();
}

}  // namespace

std::string LayoutProblem::Name(size_t index) const {
  return index < names.size() ? names[index] : absl::StrCat("#", index);
}

absl::Status ValidateLayoutProblem(const LayoutProblem& problem) {
  if (problem.buffers.size() > (size_t{1} << 30)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("layout: %d buffers are more than 2^30; split the problem", problem.buffers.size()));
  }
  if (!problem.names.empty() && problem.names.size() != problem.buffers.size()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("layout: %d names for %d buffers", problem.names.size(), problem.buffers.size()));
  }
  std::unordered_map<int32_t, Group> groups;
  int64_t total = 0;
  int64_t highest_fixed = 0;
  for (size_t i = 0; i < problem.buffers.size(); ++i) {
    GANTRY_RETURN_IF_ERROR(ValidateBuffer(problem, i));
    GANTRY_RETURN_IF_ERROR(JoinGroup(problem, i, groups));
    const LayoutBuffer& buffer = problem.buffers[i];
    highest_fixed = std::max(highest_fixed, buffer.fixed_offset.value_or(0));
    total += buffer.size + buffer.alignment;  // no overflow: every term is at most 2^60
    if (total + highest_fixed > kLayoutMaxBytes) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "layout: sizes and alignments up to buffer `%s` and the highest fixed offset add up to more than 2^60 bytes",
          problem.Name(i)));
    }
  }
  for (const auto& [number, group] : groups) {
    total += group.alignment;
    if (total + highest_fixed > kLayoutMaxBytes) {
      return absl::InvalidArgumentError("layout: sizes and the common alignments of alias groups exceed 2^60 bytes");
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<int64_t> LowerBound(const LayoutProblem& problem) {
  GANTRY_RETURN_IF_ERROR(ValidateLayoutProblem(problem));
  return MakeLayoutItems(problem).lower_bound;
}

}  // namespace gantry
