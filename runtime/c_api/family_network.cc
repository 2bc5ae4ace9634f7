#include "runtime/c_api/call.h"
#include "runtime/c_api/handles.h"
#include "runtime/gan/families.h"

using namespace gantry;
using namespace gantry::c_api;

extern "C" {

gantry_status gantry_network_create_family(const char* family, const gantry_family_config* config, gantry_network** generator,
                                           gantry_network** discriminator) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("family, generator, discriminator", family, generator, discriminator));
    GANTRY_ASSIGN_OR_RETURN(const gantry_family_config given,
                            ReadStruct(config, gantry_family_config GANTRY_FAMILY_CONFIG_INIT, "gantry_family_config"));
    FamilyOptions options;
    options.image_size = given.image_size;
    options.channels = given.channels;
    options.width = given.width;
    options.latent_size = given.latent_size;
    options.batch = given.batch_size;
    options.frames = given.frames;
    GANTRY_ASSIGN_OR_RETURN(options.dtype, ToDataType(given.dtype));
    GANTRY_ASSIGN_OR_RETURN(Family built, BuildFamily(family, options));
    auto first = std::make_unique<gantry_network>();
    auto second = std::make_unique<gantry_network>();
    first->model = std::move(built.generator);
    second->model = std::move(built.discriminator);
    *generator = first.release();
    *discriminator = second.release();
    return absl::OkStatus();
  });
}

}  // extern "C"
