// A data set whose samples lie one behind the other in a file or in memory.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "memory/status.h"
#include "runtime/data/data_set.h"
#include "runtime/data/file.h"
#include "runtime/data/host_array.h"

namespace gantry {

// Where an array [N, ...] lies in a source.
struct ArrayExtent {
  HostType type = HostType::kF32;
  std::vector<int64_t> shape;
  uint64_t offset = 0;  // of the first byte
  bool big_endian = false;
};

// `kind` is what Describe calls the source: "IDX file". kInvalidArgument where the shape has no samples, or does not
// fit the options' padding or channel order. Reading allocates nothing.
absl::StatusOr<std::unique_ptr<DataSet>> MakeArrayDataSet(std::shared_ptr<const ByteSource> source, ArrayExtent extent,
                                                          std::string kind, const DataSetOptions& options);

}  // namespace gantry
