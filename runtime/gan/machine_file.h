// Machine files on disk: where this machine's calibration is kept, and which one a plan uses.
#pragma once

#include <memory>
#include <string>

#include "runtime/plan/machine.h"
#include "runtime/plan/plan.h"

namespace gantry {

// $XDG_CACHE_HOME/gantry/machine-1-<fingerprint of processor, instruction set and core count>.toml, or the same below ~/.cache; empty
// where neither variable is set.
std::string CalibrationPath();

// The machine of `path`, or of that name among the descriptions that come with Gantry ("dgx-h100"); "none": null. Empty: that of GANTRY_MACHINE, which may be "none", else the calibration where there is one, else
// null. Errors as ReadFile and ParseMachine.
absl::StatusOr<std::shared_ptr<const Machine>> FindMachine(const std::string& path);

// Makes folders as needed; the file is beside first, synced, renamed, readable by its owner only.
absl::Status WriteMachine(const std::string& path, const Machine& machine);

// Plans for `machine`, which may be null: its memory is the budget where none is given.
void SetMachine(std::shared_ptr<const Machine> machine, PlanOptions& options);

}  // namespace gantry
