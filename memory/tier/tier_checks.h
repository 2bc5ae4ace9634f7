// Checks that tiers share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "memory/tier/tier.h"

namespace gantry {

// kInvalidArgument, naming the tier and all numbers, where `bytes` at `offset` are not inside the slab.
absl::Status CheckTierRange(const TierSlab& slab, std::string_view action, int64_t offset, size_t bytes);

// kResourceExhausted where the budget does not have `bytes`.
absl::Status CheckTierBudget(const TierOptions& options, int64_t bytes);

}  // namespace gantry
