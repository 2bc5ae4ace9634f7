// gantry sample: draws from a checkpoint.
#include <cstdio>

#include "tools/cli/commands.h"
#include "tools/cli/support.h"

namespace gantry::cli {

int RunSample(const SampleOptions& options) {
  const bool png = options.out.ends_with(".png");
  if (!png && !options.out.ends_with(".npy")) throw Failure(kExitUsage, "--out " + options.out + ": the name must end in .png or .npy");
  const Context context = MakeContext(0);
  gantry_array* made = nullptr;
  Require(gantry_checkpoint_sample(context.get(), options.source.c_str(), options.count, static_cast<uint64_t>(options.seed), options.average ? 1 : 0, &made));
  const Array samples(made);
  if (!png) {
    Require(gantry_array_save(made, options.out.c_str()));
  } else {
    const int64_t* dims = gantry_array_dims(made);
    if (gantry_array_rank(made) != 4 || (dims[1] != 1 && dims[1] != 3)) {
      throw Failure(kExitUsage, "these samples are no images of 1 or 3 channels; write them with --out FILE.npy");
    }
    Require(gantry_image_grid_write(options.out.c_str(), static_cast<const float*>(gantry_array_data(made)), dims[0], dims[1], dims[2], dims[3],
                                    options.columns));
  }
  std::printf("%s\n", options.out.c_str());
  return kExitOk;
}

}  // namespace gantry::cli
