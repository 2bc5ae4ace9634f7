// Layout problems and layouts as comma-separated text, one buffer a row:
//   id,lower,upper,size[,alignment][,group][,offset]
// The first line names the columns, in any order. A buffer is live in [lower, upper); headers `start` and `end` instead mean
// an inclusive end. Empty alignment, group or offset cells mean 1, alone and free. A cell that holds a comma or a quote is
// quoted as in RFC 4180; a cell cannot hold a line break.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "memory/layout/layout_problem.h"

namespace gantry {

// The problem in `text`; `offset` cells become fixed offsets, `id` cells names. The result is valid in the sense of
// ValidateLayoutProblem. kInvalidArgument names the line and cell at fault. Safe on any bytes; memory use is linear in text.
absl::StatusOr<LayoutProblem> ParseLayoutCsv(std::string_view text);

// The problem as text that ParseLayoutCsv reads back. `offsets`, one a buffer or empty, fill the offset column; without them
// it holds the fixed offsets. Columns that would be empty are left out. A line break in a name becomes a space.
std::string FormatLayoutCsv(const LayoutProblem& problem, std::span<const int64_t> offsets = {});

// The same from and to a file. kNotFound, kPermissionDenied and so on as the system says; kResourceExhausted above 4 GiB.
absl::StatusOr<LayoutProblem> ReadLayoutCsvFile(const std::string& path);
absl::Status WriteLayoutCsvFile(const std::string& path, const LayoutProblem& problem,
                                std::span<const int64_t> offsets = {});

}  // namespace gantry
