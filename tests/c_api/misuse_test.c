/* Wrong calls: each function with NULL for each pointer that it needs, calls out of order, and values that are no numbers.
 * All must say so and leave everything usable. */
#include <gantry/gantry.h>
#include <math.h>
#include <stdlib.h>

#include "expect.h"

#define REFUSED(call) EXPECT_STATUS(call, GANTRY_INVALID_ARGUMENT, "")
#define TOO_EARLY(call) EXPECT_STATUS(call, GANTRY_FAILED_PRECONDITION, "")

static const int64_t dims[2] = {2, 3};

static void arrays(void) {
  gantry_array *array = NULL, *other = NULL;
  gantry_archive* archive = NULL;
  const float pixels[4] = {0};
  REFUSED(gantry_array_create(GANTRY_F32, 2, dims, NULL, NULL));
  REFUSED(gantry_array_create(GANTRY_F32, 2, NULL, NULL, &array));
  REFUSED(gantry_array_create(GANTRY_F32, 33, dims, NULL, &array));
  REFUSED(gantry_array_create(GANTRY_F32, (size_t)-1, dims, NULL, &array));
  EXPECT_OK(gantry_array_create(GANTRY_F32, 0, NULL, NULL, &array));
  EXPECT(gantry_array_element_count(array) == 1 && *(const float*)gantry_array_data(array) == 0.0f);
  REFUSED(gantry_array_load(NULL, NULL, &other));
  REFUSED(gantry_array_load("x", NULL, NULL));
  REFUSED(gantry_array_convert(NULL, GANTRY_F32, &other));
  REFUSED(gantry_array_convert(array, GANTRY_F32, NULL));
  REFUSED(gantry_array_convert(array, GANTRY_I32, &other));
  REFUSED(gantry_array_convert(array, 99, &other));
  REFUSED(gantry_array_save(NULL, "x"));
  REFUSED(gantry_array_save(array, NULL));
  EXPECT_STATUS(gantry_array_load("/", NULL, &other), GANTRY_BAD_DATA, "/");
  EXPECT_STATUS(gantry_array_save(array, "/proc/no/such"), GANTRY_CANNOT_CREATE, "/proc/no/such");
  REFUSED(gantry_archive_open(NULL, &archive));
  REFUSED(gantry_archive_open("x", NULL));
  REFUSED(gantry_archive_read(NULL, "x", &other));
  EXPECT(gantry_archive_count(NULL) == 0 && gantry_archive_name(NULL, 0) == NULL);
  REFUSED(gantry_image_grid_write(NULL, pixels, 1, 1, 2, 2, 0));
  REFUSED(gantry_image_grid_write("x", NULL, 1, 1, 2, 2, 0));
  for (int wrong = 0; wrong < 6; ++wrong) {
    int64_t size[5] = {1, 1, 2, 2, 0};
    if (wrong == 5) size[0] = size[2] = size[3] = INT64_MAX;
    else size[wrong] = -1;
    REFUSED(gantry_image_grid_write("x", pixels, size[0], size[1], size[2], size[3], size[4]));
  }
  EXPECT(other == NULL && archive == NULL);
  gantry_array_destroy(array);
}

static void networks(void) {
  gantry_network *network = NULL, *other = NULL;
  gantry_value x = -1, y = -1, outputs[1];
  gantry_initializer initializer = GANTRY_INITIALIZER_INIT;
  gantry_attribute attribute = GANTRY_FLOAT("slope", 0.2);
  gantry_family_config family = GANTRY_FAMILY_CONFIG_INIT;
  gantry_onnx_config onnx = GANTRY_ONNX_CONFIG_INIT;
  gantry_op_info op = GANTRY_OP_INFO_INIT;
  const char* text = NULL;
  size_t rank = 0;
  REFUSED(gantry_op_get(0, NULL));
  REFUSED(gantry_op_get(gantry_op_count(), &op));
  REFUSED(gantry_network_create("n", NULL));
  EXPECT_OK(gantry_network_create(NULL, &network));
  REFUSED(gantry_network_add_input(NULL, "x", GANTRY_F32, 2, dims, &x));
  REFUSED(gantry_network_add_input(network, NULL, GANTRY_F32, 2, dims, &x));
  REFUSED(gantry_network_add_input(network, "", GANTRY_F32, 2, dims, &x));
  REFUSED(gantry_network_add_input(network, "x", GANTRY_F32, 2, NULL, &x));
  REFUSED(gantry_network_add_input(network, "x", GANTRY_F32, 2, dims, NULL));
  REFUSED(gantry_network_add_input(network, "x", GANTRY_F16, 2, dims, &x));
  REFUSED(gantry_network_add_input(network, "x", GANTRY_F32, 1000, dims, &x));
  EXPECT_OK(gantry_network_add_input(network, "x", GANTRY_F32, 2, dims, &x));
  REFUSED(gantry_network_add_input(network, "x", GANTRY_F32, 2, dims, &y));
  REFUSED(gantry_network_add_parameter(NULL, "w", GANTRY_F32, 2, dims, NULL, &y));
  REFUSED(gantry_network_add_parameter(network, NULL, GANTRY_F32, 2, dims, NULL, &y));
  REFUSED(gantry_network_add_parameter(network, "w", GANTRY_I32, 2, dims, NULL, &y));
  REFUSED(gantry_network_add_parameter(network, "w", GANTRY_F32, 2, dims, NULL, NULL));
  initializer.kind = 9;
  REFUSED(gantry_network_add_parameter(network, "w", GANTRY_F32, 2, dims, &initializer, &y));
  initializer.kind = GANTRY_DATA;
  REFUSED(gantry_network_add_parameter(network, "w", GANTRY_F32, 2, dims, &initializer, &y));
  initializer.data_count = 6;
  REFUSED(gantry_network_add_parameter(network, "w", GANTRY_F32, 2, dims, &initializer, &y));
  initializer.kind = GANTRY_NORMAL, initializer.b = NAN;
  REFUSED(gantry_network_add_parameter(network, "w", GANTRY_F32, 2, dims, &initializer, &y));
  REFUSED(gantry_network_add_op(NULL, "leaky_relu", 1, &x, 0, NULL, 1, outputs));
  REFUSED(gantry_network_add_op(network, NULL, 1, &x, 0, NULL, 1, outputs));
  REFUSED(gantry_network_add_op(network, "leaky_relu", 1, NULL, 0, NULL, 1, outputs));
  REFUSED(gantry_network_add_op(network, "leaky_relu", 1, &x, 1, NULL, 1, outputs));
  REFUSED(gantry_network_add_op(network, "leaky_relu", 1, &x, 0, NULL, 1, NULL));
  REFUSED(gantry_network_add_op(network, "leaky_relu", 1, &x, 1, &attribute, 0, outputs));
  REFUSED(gantry_network_add_op(network, "leaky_relu", (size_t)-1, &x, 0, NULL, 1, outputs));
  REFUSED(gantry_network_add_op(network, "leaky_relu", 1, &x, (size_t)-1, &attribute, 1, outputs));
  attribute.kind = 77;
  REFUSED(gantry_network_add_op(network, "leaky_relu", 1, &x, 1, &attribute, 1, outputs));
  attribute.kind = GANTRY_ATTRIBUTE_INTS, attribute.count = 5;
  REFUSED(gantry_network_add_op(network, "leaky_relu", 1, &x, 1, &attribute, 1, outputs));
  y = 1000;
  REFUSED(gantry_network_add_op(network, "leaky_relu", 1, &y, 0, NULL, 1, outputs));
  REFUSED(gantry_network_shape(network, -1, 0, NULL, &rank));
  REFUSED(gantry_network_shape(network, x, 2, NULL, &rank));
  REFUSED(gantry_network_shape(network, x, 0, NULL, NULL));
  REFUSED(gantry_network_shape(NULL, x, 0, NULL, &rank));
  EXPECT_OK(gantry_network_shape(network, x, 0, NULL, &rank));
  EXPECT(rank == 2);
  REFUSED(gantry_network_set_output(network, NULL, x));
  REFUSED(gantry_network_set_output(network, "y", 5000));
  REFUSED(gantry_network_set_output(NULL, "y", x));
  REFUSED(gantry_network_update(network, NULL, x));
  EXPECT_STATUS(gantry_network_update(network, "none", x), GANTRY_NOT_FOUND, "none");
  REFUSED(gantry_network_text(NULL, &text));
  REFUSED(gantry_network_text(network, NULL));
  EXPECT(gantry_network_parameter_count(NULL) == 0);
  REFUSED(gantry_network_create_family(NULL, NULL, &network, &other));
  REFUSED(gantry_network_create_family("dcgan", NULL, NULL, &other));
  REFUSED(gantry_network_create_family("dcgan", NULL, &other, NULL));
  EXPECT_STATUS(gantry_network_create_family("dcgann", NULL, &other, &other), GANTRY_NOT_FOUND, "dcgan");
  family.image_size = 33;
  REFUSED(gantry_network_create_family("dcgan", &family, &other, &other));
  family.image_size = 64, family.width = INT64_MAX;
  REFUSED(gantry_network_create_family("dcgan", &family, &other, &other));
  family.width = 64, family.batch_size = 0;
  REFUSED(gantry_network_create_family("dcgan", &family, &other, &other));
  family.batch_size = 4, family.dtype = GANTRY_I32;
  REFUSED(gantry_network_create_family("dcgan", &family, &other, &other));
  REFUSED(gantry_network_load_onnx(NULL, NULL, &other));
  REFUSED(gantry_network_load_onnx("x", NULL, NULL));
  REFUSED(gantry_network_load_onnx_memory(NULL, 10, NULL, &other));
  EXPECT_STATUS(gantry_network_load_onnx_memory("", 0, NULL, &other), GANTRY_BAD_DATA, "");
  onnx.batch_size = -1;
  REFUSED(gantry_network_load_onnx("x", &onnx, &other));
  onnx.batch_size = 0, onnx.frozen_count = 3;
  REFUSED(gantry_network_load_onnx("x", &onnx, &other));
  EXPECT(other == NULL);
  gantry_network_destroy(network);
}

/* Ops that rewrite a state belong to optimizers: in a network they are refused, at once or by the plan. */
static void updates_are_no_layers(gantry_context* context) {
  for (size_t i = 0; i < gantry_op_count(); ++i) {
    gantry_op_info op = GANTRY_OP_INFO_INIT;
    gantry_network* network = NULL;
    gantry_gan* gan = NULL;
    gantry_value inputs[8], outputs[8];
    EXPECT_OK(gantry_op_get(i, &op));
    EXPECT_OK(gantry_network_create("n", &network));
    EXPECT_OK(gantry_network_add_input(network, "x", GANTRY_F32, 2, dims, &inputs[0]));
    for (int k = 1; k < 8; ++k) {
      char name[2] = {(char)('a' + k), 0};
      EXPECT_OK(gantry_network_add_parameter(network, name, GANTRY_F32, 2, dims, NULL, &inputs[k]));
    }
    const size_t count = op.min_inputs < 8 ? (size_t)op.min_inputs : 8;
    if (gantry_network_add_op(network, op.name, count, inputs, 0, NULL, 8, outputs) == GANTRY_OK &&
        gantry_network_set_output(network, "y", outputs[0]) == GANTRY_OK) {
      EXPECT_OK(gantry_gan_create(context, NULL, &gan));
      EXPECT_OK(gantry_gan_add_generator(gan, "g", network, NULL));
      EXPECT_OK(gantry_gan_add_discriminator(gan, "d", network, NULL));
      const gantry_status planned = gantry_gan_plan(gan, NULL);
      if (planned != GANTRY_OK) EXPECT(planned == GANTRY_INVALID_ARGUMENT || planned == GANTRY_UNSUPPORTED);
      if (planned != GANTRY_OK && planned != GANTRY_INVALID_ARGUMENT) printf("%s: %s\n", op.name, gantry_last_error());
    }
    gantry_gan_destroy(gan), gantry_network_destroy(network);
  }
}

static void sessions(gantry_context* context) {
  gantry_network *generator = NULL, *discriminator = NULL, *empty = NULL;
  gantry_family_config family = GANTRY_FAMILY_CONFIG_INIT;
  gantry_gan_config config = GANTRY_GAN_CONFIG_INIT;
  gantry_optimizer optimizer = GANTRY_OPTIMIZER_INIT;
  gantry_step_sizes sizes = GANTRY_STEP_SIZES_INIT;
  gantry_state_info state = GANTRY_STATE_INFO_INIT;
  gantry_batch batch = GANTRY_BATCH_INIT;
  gantry_gan* gan = NULL;
  const char* text = NULL;
  double value = 7.0;
  float sample[256];
  family.image_size = 16, family.channels = 1, family.width = 8, family.latent_size = 6, family.batch_size = 4;
  EXPECT_OK(gantry_network_create_family("dcgan", &family, &generator, &discriminator));
  EXPECT_OK(gantry_network_create("empty", &empty));
  REFUSED(gantry_gan_create(NULL, NULL, &gan));
  REFUSED(gantry_gan_create(context, NULL, NULL));
  const double wrong[] = {-1.0, NAN, HUGE_VAL, -HUGE_VAL};
  for (int i = 0; i < 4; ++i) {
    config = (gantry_gan_config)GANTRY_GAN_CONFIG_INIT, config.r1 = wrong[i];
    REFUSED(gantry_gan_create(context, &config, &gan));
    config = (gantry_gan_config)GANTRY_GAN_CONFIG_INIT, config.ema = wrong[i];
    REFUSED(gantry_gan_create(context, &config, &gan));
    config = (gantry_gan_config)GANTRY_GAN_CONFIG_INIT, config.gradient_penalty = wrong[i];
    REFUSED(gantry_gan_create(context, &config, &gan));
  }
  EXPECT_OK(gantry_gan_create(context, NULL, &gan));
  REFUSED(gantry_gan_add_generator(NULL, "g", generator, NULL));
  REFUSED(gantry_gan_add_generator(gan, NULL, generator, NULL));
  REFUSED(gantry_gan_add_generator(gan, "", generator, NULL));
  REFUSED(gantry_gan_add_generator(gan, "ema", generator, NULL));
  REFUSED(gantry_gan_add_generator(gan, "g", NULL, NULL));
  REFUSED(gantry_gan_add_generator(gan, "g", empty, NULL));
  for (int i = 0; i < 4; ++i) {
    optimizer.learning_rate = wrong[i];
    REFUSED(gantry_gan_add_generator(gan, "g", generator, &optimizer));
  }
  TOO_EARLY(gantry_gan_plan_text(gan, &text));
  TOO_EARLY(gantry_gan_program_text(gan, 0, &text));
  TOO_EARLY(gantry_gan_program_text(gan, 1, &text));
  TOO_EARLY(gantry_gan_sizes(gan, &sizes));
  TOO_EARLY(gantry_gan_step(gan, &batch));
  TOO_EARLY(gantry_gan_set_learning_rate(gan, "g", 0.1));
  TOO_EARLY(gantry_gan_read_scalar(gan, "generator_loss", &value));
  TOO_EARLY(gantry_gan_state_get(gan, 0, &state));
  TOO_EARLY(gantry_gan_read_state(gan, "g", &value, 1));
  TOO_EARLY(gantry_gan_write_state(gan, "g", &value, 1));
  TOO_EARLY(gantry_gan_sample(gan, 1, 0, 0, sample, 256));
  TOO_EARLY(gantry_gan_save(gan, "misuse_test.safetensors"));
  TOO_EARLY(gantry_gan_resume(gan, "misuse_test.safetensors"));
  EXPECT(gantry_gan_state_count(gan) == 0 && gantry_gan_scalar_count(gan) == 0 && gantry_gan_step_count(gan) == 0);
  EXPECT(gantry_gan_high_water_bytes(gan) == 0);
  EXPECT_OK(gantry_gan_add_generator(gan, "g", generator, NULL));
  REFUSED(gantry_gan_plan(gan, NULL)); /* no discriminator */
  EXPECT_OK(gantry_gan_add_discriminator(gan, "d", discriminator, NULL));
  EXPECT_OK(gantry_gan_plan(gan, NULL));
  TOO_EARLY(gantry_gan_add_discriminator(gan, "e", discriminator, NULL)); /* rather too late */
  REFUSED(gantry_gan_plan_text(gan, NULL));
  REFUSED(gantry_gan_program_text(gan, 0, NULL));
  REFUSED(gantry_gan_sizes(gan, NULL));
  REFUSED(gantry_gan_step(gan, NULL));
  REFUSED(gantry_gan_step(gan, &batch)); /* real is NULL */
  batch.real_count = 4 * 256;
  REFUSED(gantry_gan_step(gan, &batch));
  REFUSED(gantry_gan_step_data(gan, NULL));
  REFUSED(gantry_gan_set_learning_rate(gan, NULL, 0.1));
  for (int i = 0; i < 4; ++i) REFUSED(gantry_gan_set_learning_rate(gan, "g", wrong[i]));
  REFUSED(gantry_gan_read_scalar(gan, NULL, &value));
  REFUSED(gantry_gan_read_scalar(gan, "generator_loss", NULL));
  REFUSED(gantry_gan_state_get(gan, gantry_gan_state_count(gan), &state));
  REFUSED(gantry_gan_state_get(gan, 0, NULL));
  REFUSED(gantry_gan_read_state(gan, NULL, &value, 1));
  REFUSED(gantry_gan_read_state(gan, "g", NULL, 1));
  REFUSED(gantry_gan_write_state(gan, "g", NULL, 1));
  REFUSED(gantry_gan_sample(gan, 1, 0, 0, NULL, 256));
  REFUSED(gantry_gan_sample(gan, 0, 0, 0, sample, 0));
  REFUSED(gantry_gan_sample(gan, -1, 0, 0, sample, 256));
  REFUSED(gantry_gan_sample(gan, INT64_MAX, 0, 0, sample, 256));
  REFUSED(gantry_gan_save(gan, NULL));
  REFUSED(gantry_gan_resume(gan, NULL));
  EXPECT(value == 7.0 && gantry_gan_step_count(gan) == 0);
  EXPECT_OK(gantry_gan_sample(gan, 1, 0, 0, sample, 256)); /* after all of that it works */
  gantry_network_destroy(generator), gantry_network_destroy(discriminator), gantry_network_destroy(empty);
  gantry_gan_destroy(gan);
}

static void data_and_runs(gantry_context* context) {
  const int64_t shape[4] = {3, 1, 2, 2};
  gantry_array* array = NULL;
  gantry_data* data = NULL;
  gantry_run* run = NULL;
  gantry_layout_result layout = GANTRY_LAYOUT_RESULT_INIT;
  gantry_plan_info plan = GANTRY_PLAN_INFO_INIT;
  gantry_data_config config = GANTRY_DATA_CONFIG_INIT;
  const char* overrides[1] = {NULL};
  const char* text = NULL;
  float values[8];
  size_t rank = 0;
  int32_t valid = 0;
  EXPECT_OK(gantry_array_create(GANTRY_F32, 4, shape, NULL, &array));
  EXPECT_OK(gantry_array_save(array, "misuse_test.npy"));
  REFUSED(gantry_data_open(NULL, NULL, &data));
  REFUSED(gantry_data_open("misuse_test.npy", NULL, NULL));
  config.batch_size = 0;
  REFUSED(gantry_data_open("misuse_test.npy", &config, &data));
  config.batch_size = INT64_MAX;
  EXPECT(gantry_data_open("misuse_test.npy", &config, &data) != GANTRY_OK && data == NULL);
  config.batch_size = 5, config.drop_tail = 1; /* an epoch would have no batch */
  REFUSED(gantry_data_open("misuse_test.npy", &config, &data));
  config.batch_size = 2, config.drop_tail = 0, config.split = "no such";
  EXPECT_OK(gantry_data_open("misuse_test.npy", &config, &data)); /* a split is of MNIST folders */
  REFUSED(gantry_data_next(data, NULL, 8));
  REFUSED(gantry_data_next(NULL, values, 8));
  REFUSED(gantry_data_next(data, values, (size_t)-1));
  REFUSED(gantry_data_shape(data, 3, NULL, &rank));
  REFUSED(gantry_data_shape(data, 0, NULL, NULL));
  REFUSED(gantry_data_seek(NULL, 0));
  REFUSED(gantry_data_seek(data, UINT64_MAX));
  EXPECT_OK(gantry_data_next(data, values, 8));
  EXPECT(gantry_data_position(data) == 2 && gantry_data_size(NULL) == 0 && gantry_data_position(NULL) == 0);
  REFUSED(gantry_gan_step_data(NULL, data));
  gantry_data_destroy(data), gantry_array_destroy(array);
  remove("misuse_test.npy");

  REFUSED(gantry_run_open(NULL, "x", 0, NULL, &run));
  REFUSED(gantry_run_open(context, NULL, 0, NULL, &run));
  REFUSED(gantry_run_open(context, "x", 0, NULL, NULL));
  REFUSED(gantry_run_open(context, "x", 1, NULL, &run));
  REFUSED(gantry_run_open(context, "x", 1, overrides, &run));
  EXPECT_STATUS(gantry_run_open(context, "no/such.toml", 0, NULL, &run), GANTRY_NOT_FOUND, "no/such.toml");
  REFUSED(gantry_run_resume(NULL, "latest"));
  REFUSED(gantry_run_plan_info(NULL, &plan));
  REFUSED(gantry_run_plan_text(NULL, &text));
  REFUSED(gantry_run_program_text(NULL, 0, &text));
  REFUSED(gantry_run_config_text(NULL, &text));
  REFUSED(gantry_run_data_text(NULL, &text));
  REFUSED(gantry_run_save(NULL, &text));
  REFUSED(gantry_run_write_samples(NULL, &text));
  REFUSED(gantry_run_finish(NULL, &text));
  EXPECT(gantry_run_folder(NULL) == NULL && gantry_run_step_count(NULL) == 0 && gantry_run_total_steps(NULL) == 0);
  EXPECT(gantry_run_high_water_bytes(NULL) == 0);
  REFUSED(gantry_checkpoint_sample(NULL, "x", 1, 0, 0, &array));
  REFUSED(gantry_checkpoint_sample(context, NULL, 1, 0, 0, &array));
  REFUSED(gantry_checkpoint_sample(context, "x", 1, 0, 0, NULL));
  REFUSED(gantry_layout_solve(NULL, NULL, NULL, &layout));
  REFUSED(gantry_layout_solve("x", NULL, NULL, NULL));
  REFUSED(gantry_layout_check(NULL, "x", 0, &valid, NULL));
  REFUSED(gantry_layout_check("x", NULL, 0, &valid, NULL));
  REFUSED(gantry_layout_check("x", "x", 0, NULL, NULL));
  EXPECT(text == NULL && run == NULL);
}

int main(void) {
  gantry_context* context = NULL;
  EXPECT_OK(gantry_context_create(NULL, &context));
  arrays();
  networks();
  updates_are_no_layers(context);
  sessions(context);
  data_and_runs(context);
  EXPECT(gantry_context_reserved_bytes(context) == 0);
  gantry_context_destroy(context);
  return expect_failures != 0;
}
