/* gantry.h compiles alone and first, as C99 and as C++17, with every warning an error. */
#include <gantry/gantry.h>

int gantry_header_alone(void);
int gantry_header_alone(void) {
  const gantry_gan_config config = GANTRY_GAN_CONFIG_INIT;
  const gantry_attribute attributes[] = {GANTRY_INT("axis", 1), GANTRY_STRING("mode", "nearest"), GANTRY_ATTRIBUTE_INIT};
  return (int)config.n_critic + (int)attributes[0].int_value;
}
