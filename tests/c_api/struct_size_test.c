/* Public structs across versions: callers with an older and with a newer header than the library's. */
#include <gantry/gantry.h>
#include <stddef.h>

#include "expect.h"

/* gantry_gan_config as a later version may have it, and as an earlier one may have had it. */
typedef struct newer_config {
  gantry_gan_config known;
  int64_t new_field;
} newer_config;

typedef struct older_config {
  size_t struct_size;
  int32_t loss;
  int32_t dtype;
  double r1, r2;
} older_config;

static void configs(gantry_context* context) {
  gantry_gan* gan = NULL;
  newer_config newer = {GANTRY_GAN_CONFIG_INIT, 0};
  older_config older = {sizeof(older_config), GANTRY_LOSS_HINGE, GANTRY_F64, 1.0, 0.0};
  gantry_gan_config bad = GANTRY_GAN_CONFIG_INIT;
  newer.known.struct_size = sizeof(newer);
  EXPECT_OK(gantry_gan_create(context, &newer.known, &gan));
  gantry_gan_destroy(gan), gan = NULL;
  newer.new_field = 1;
  EXPECT_STATUS(gantry_gan_create(context, &newer.known, &gan), GANTRY_VERSION_MISMATCH, "gantry_gan_config");
  EXPECT(gan == NULL);
  /* What the older header lacks has its default: n_critic 1 and so on, not 0. */
  EXPECT_OK(gantry_gan_create(context, (const gantry_gan_config*)(const void*)&older, &gan));
  gantry_gan_destroy(gan), gan = NULL;
  bad.struct_size = 0;
  EXPECT_STATUS(gantry_gan_create(context, &bad, &gan), GANTRY_INVALID_ARGUMENT, "INIT");
  bad.struct_size = (size_t)1 << 40;
  EXPECT_STATUS(gantry_gan_create(context, &bad, &gan), GANTRY_INVALID_ARGUMENT, "struct_size");
}

static void results(void) {
  struct {
    gantry_op_info known;
    int64_t new_field;
  } newer = {GANTRY_OP_INFO_INIT, 0};
  struct {
    size_t struct_size;
    const char* name;
    char guard[16];
  } older;
  newer.known.struct_size = sizeof(newer);
  EXPECT_OK(gantry_op_get(0, &newer.known));
  EXPECT(newer.known.name != NULL && newer.known.struct_size == sizeof(newer) && newer.new_field == 0);
  memset(&older, 0x5a, sizeof(older));
  older.struct_size = offsetof(gantry_op_info, min_inputs);
  EXPECT_OK(gantry_op_get(0, (gantry_op_info*)(void*)&older));
  EXPECT(strcmp(older.name, newer.known.name) == 0);
  for (size_t i = 0; i < sizeof(older.guard); ++i) EXPECT(older.guard[i] == 0x5a); /* nothing past its end is written */
}

/* Fields never move: a program built against the first header reads the same bytes. */
static void offsets(void) {
  EXPECT(offsetof(gantry_gan_config, loss) == 8 && offsetof(gantry_gan_config, r1) == 16 && offsetof(gantry_gan_config, penalty_every) == 48);
  EXPECT(offsetof(gantry_gan_config, seed) == 64 && sizeof(gantry_gan_config) == 96);
  EXPECT(offsetof(gantry_optimizer, learning_rate) == 16 && offsetof(gantry_optimizer, clip_norm) == 64 && sizeof(gantry_optimizer) == 72);
  EXPECT(offsetof(gantry_context_config, memory_bytes) == 16 && offsetof(gantry_context_config, join_job) == 48 && sizeof(gantry_context_config) == 56);
  EXPECT(offsetof(gantry_batch, noise) == 24 && sizeof(gantry_batch) == 56);
  EXPECT(offsetof(gantry_attribute, int_value) == 24 && sizeof(gantry_attribute) == 72);
  EXPECT(offsetof(gantry_plan_info, fallback_count) == 48 && offsetof(gantry_plan_info, lent_device_bytes) == 120 && sizeof(gantry_plan_info) == 136);
  EXPECT(offsetof(gantry_memory, link) == 48 && offsetof(gantry_memory, machine) == 80 && sizeof(gantry_memory) == 88);
  EXPECT(offsetof(gantry_what_if, seconds) == 64 && sizeof(gantry_what_if) == 72);
  EXPECT(offsetof(gantry_calibrate_config, steps) == 48 && sizeof(gantry_calibrate_config) == 56);
  EXPECT(offsetof(gantry_calibration, path) == 24 && sizeof(gantry_calibration) == 1048);
  EXPECT(offsetof(gantry_tier_info, in_bytes) == 40 && sizeof(gantry_tier_info) == 48);
  EXPECT(offsetof(gantry_step_report, logged) == 80 && offsetof(gantry_step_report, exposed_seconds) == 104 &&
         sizeof(gantry_step_report) == 120);
}

int main(void) {
  gantry_context* context = NULL;
  EXPECT_OK(gantry_context_create(NULL, &context));
  configs(context);
  results();
  if (sizeof(void*) == 8) offsets();
  gantry_context_destroy(context);
  return expect_failures != 0;
}
