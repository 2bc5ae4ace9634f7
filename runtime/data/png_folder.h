// A folder of PNG files as a data set: only the paths are in memory.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "memory/status.h"
#include "runtime/data/data_set.h"

namespace gantry {

struct FolderListing {
  std::vector<std::string> png_paths;  // relative to the folder, sorted bytewise
  int64_t file_count = 0;              // of all files, whatever they are
};
// Looks for *.png (any case) in `folder` and below it; symbolic links to folders are not followed.
absl::StatusOr<FolderListing> ListPngFiles(const std::string& folder);

// `paths` as ListPngFiles gives them, not empty. Reads the first image to learn the shape that the options leave open.
// Reading a sample gives kInvalidArgument, naming the file, where its size or colour differs and the options do not say
// what to do about it.
absl::StatusOr<std::unique_ptr<DataSet>> MakePngFolder(std::string folder, std::vector<std::string> paths,
                                                       const DataSetOptions& options);

}  // namespace gantry
