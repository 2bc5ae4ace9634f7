/* Sessions from C: families, plans, states, scalars, samples, save and resume, budgets, logs, data sets. */
#include <gantry/gantry.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>

#include "expect.h"

static int warnings = 0;
static void count_warning(int32_t level, const char* message, void* payload) {
  EXPECT(level == GANTRY_LOG_WARNING && message[0] != '\0' && payload == &warnings);
  ++warnings;
}

static gantry_gan* make_session(gantry_context* context, double ema) {
  gantry_network *generator = NULL, *discriminator = NULL;
  gantry_family_config family = GANTRY_FAMILY_CONFIG_INIT;
  gantry_gan_config config = GANTRY_GAN_CONFIG_INIT;
  gantry_gan* gan = NULL;
  family.image_size = 16, family.channels = 1, family.width = 8, family.latent_size = 6, family.batch_size = 4;
  config.ema = ema, config.seed = 7, config.r1 = 0.5;
  EXPECT_OK(gantry_network_create_family("dcgan", &family, &generator, &discriminator));
  EXPECT(gantry_network_parameter_count(generator) > 1000);
  EXPECT_OK(gantry_gan_create(context, &config, &gan));
  EXPECT_OK(gantry_gan_add_generator(gan, "generator", generator, NULL));
  EXPECT_OK(gantry_gan_add_discriminator(gan, "discriminator", discriminator, NULL));
  EXPECT_STATUS(gantry_gan_add_discriminator(gan, "generator", discriminator, NULL), GANTRY_INVALID_ARGUMENT, "generator");
  gantry_network_destroy(generator), gantry_network_destroy(discriminator);
  return gan;
}

static void step(gantry_gan* gan, int number) {
  float real[4 * 16 * 16];
  gantry_batch batch = GANTRY_BATCH_INIT;
  for (int i = 0; i < 4 * 16 * 16; ++i) real[i] = (float)sin(0.01 * i * (number + 1));
  batch.real = real, batch.real_count = 4 * 16 * 16;
  EXPECT_OK(gantry_gan_step(gan, &batch));
}

static double loss_of(gantry_gan* gan) {
  double loss = NAN;
  EXPECT_OK(gantry_gan_read_scalar(gan, "generator_loss", &loss));
  return loss;
}

static void plan_and_step(gantry_context* context) {
  gantry_gan* gan = make_session(context, 0.9);
  gantry_plan_info plan = GANTRY_PLAN_INFO_INIT;
  gantry_step_sizes sizes = GANTRY_STEP_SIZES_INIT;
  gantry_batch wrong = GANTRY_BATCH_INIT;
  gantry_state_info state = GANTRY_STATE_INFO_INIT;
  float one = 0;
  const char* text = NULL;
  EXPECT_OK(gantry_gan_program_text(gan, 0, &text));
  EXPECT(strstr(text, "conv") != NULL);
  EXPECT_OK(gantry_gan_plan(gan, &plan));
  EXPECT_STATUS(gantry_gan_plan(gan, &plan), GANTRY_FAILED_PRECONDITION, "planned");
  EXPECT(plan.arena_bytes >= plan.lower_bound_bytes && plan.lower_bound_bytes > plan.state_bytes && plan.op_count > 20);
  EXPECT(gantry_context_reserved_bytes(context) >= plan.arena_bytes);
  EXPECT_OK(gantry_gan_sizes(gan, &sizes));
  EXPECT(sizes.real_elements == 4 * 16 * 16 && sizes.noise_elements == 4 * 6 && sizes.mix_elements == 0 && sizes.batch_size == 4);
  EXPECT(sizes.sample_rank == 4 && sizes.sample_dims[1] == 1 && sizes.sample_dims[3] == 16);
  wrong.real = &one, wrong.real_count = 1;
  EXPECT_STATUS(gantry_gan_step(gan, &wrong), GANTRY_INVALID_ARGUMENT, "real");
  EXPECT(gantry_gan_step_count(gan) == 0);
  step(gan, 0);
  EXPECT(gantry_gan_step_count(gan) == 1);
  EXPECT(gantry_gan_high_water_bytes(gan) == plan.arena_bytes); /* the promise of the plan */
  EXPECT(isfinite(loss_of(gan)));
  EXPECT(gantry_gan_scalar_count(gan) > 6 && gantry_gan_scalar_name(gan, 0) != NULL && gantry_gan_scalar_name(gan, 1000) == NULL);
  EXPECT_STATUS(gantry_gan_read_scalar(gan, "loss", (double[1]){0}), GANTRY_NOT_FOUND, "generator_loss");
  for (size_t i = 0; i < gantry_gan_state_count(gan); ++i) {
    EXPECT_OK(gantry_gan_state_get(gan, i, &state));
    double* values = malloc(state.element_count * sizeof(double));
    EXPECT_OK(gantry_gan_read_state(gan, state.name, values, state.element_count));
    EXPECT_STATUS(gantry_gan_read_state(gan, state.name, values, state.element_count + 1), GANTRY_INVALID_ARGUMENT, state.name);
    values[0] = 0.25;
    EXPECT_OK(gantry_gan_write_state(gan, state.name, values, state.element_count));
    values[0] = 0.0;
    EXPECT_OK(gantry_gan_read_state(gan, state.name, values, state.element_count));
    EXPECT(values[0] == 0.25);
    free(values);
  }
  EXPECT_STATUS(gantry_gan_read_state(gan, "generator.0.weigth", (double[1]){0}, 1), GANTRY_NOT_FOUND, "generator.0.weight");
  EXPECT_STATUS(gantry_gan_set_learning_rate(gan, "nobody", 0.1), GANTRY_NOT_FOUND, "nobody");
  EXPECT_OK(gantry_gan_set_learning_rate(gan, "generator", 1e-3));
  gantry_gan_destroy(gan);
}

static void sampling_depends_on_the_seed_alone(gantry_context* context) {
  static float first[6 * 256], again[6 * 256], other[6 * 256];
  gantry_gan* gan = make_session(context, 0.5);
  EXPECT_OK(gantry_gan_plan(gan, NULL));
  step(gan, 0);
  EXPECT_OK(gantry_gan_sample(gan, 6, 1, 1, first, 6 * 256));
  EXPECT_OK(gantry_gan_sample(gan, 6, 1, 1, again, 6 * 256));
  EXPECT_OK(gantry_gan_sample(gan, 6, 2, 1, other, 6 * 256));
  EXPECT(memcmp(first, again, sizeof(first)) == 0 && memcmp(first, other, sizeof(first)) != 0);
  EXPECT_STATUS(gantry_gan_sample(gan, 6, 1, 1, first, 5), GANTRY_INVALID_ARGUMENT, "5");
  EXPECT_OK(gantry_image_grid_write("session_test.png", first, 6, 1, 16, 16, 0));
  EXPECT_STATUS(gantry_image_grid_write("no/such/folder/x.png", first, 6, 1, 16, 16, 0), GANTRY_CANNOT_CREATE, "no/such/folder");
  remove("session_test.png");
  gantry_gan_destroy(gan);
}

static void resume_goes_on_bit_for_bit(gantry_context* context) {
  gantry_gan *straight = make_session(context, 0.9), *first = make_session(context, 0.9), *second = make_session(context, 0.9);
  gantry_gan* other = make_session(context, 0.0);
  EXPECT_OK(gantry_gan_plan(straight, NULL));
  EXPECT_OK(gantry_gan_plan(first, NULL));
  EXPECT_OK(gantry_gan_plan(second, NULL));
  EXPECT_OK(gantry_gan_plan(other, NULL));
  for (int i = 0; i < 4; ++i) step(straight, i);
  for (int i = 0; i < 2; ++i) step(first, i);
  EXPECT_OK(gantry_gan_save(first, "session_test.safetensors"));
  EXPECT_OK(gantry_gan_resume(second, "session_test.safetensors"));
  EXPECT(gantry_gan_step_count(second) == 2);
  for (int i = 2; i < 4; ++i) step(second, i);
  EXPECT(loss_of(straight) == loss_of(second));
  EXPECT_STATUS(gantry_gan_resume(other, "session_test.safetensors"), GANTRY_BAD_DATA, "ema");
  EXPECT_STATUS(gantry_gan_resume(other, "missing.safetensors"), GANTRY_NOT_FOUND, "missing.safetensors");
  EXPECT_STATUS(gantry_gan_save(first, "no/such/folder/x"), GANTRY_CANNOT_CREATE, "no/such/folder");
  remove("session_test.safetensors");
  gantry_gan_destroy(straight), gantry_gan_destroy(first), gantry_gan_destroy(second), gantry_gan_destroy(other);
}

static void infinity_stops_the_session(gantry_context* context) {
  float real[4 * 16 * 16] = {0};
  gantry_batch batch = GANTRY_BATCH_INIT;
  gantry_gan* gan = make_session(context, 0.0);
  EXPECT_OK(gantry_gan_plan(gan, NULL));
  step(gan, 0);
  EXPECT_OK(gantry_gan_save(gan, "session_test.safetensors"));
  real[5] = (float)HUGE_VAL;
  batch.real = real, batch.real_count = 4 * 16 * 16;
  EXPECT_STATUS(gantry_gan_step(gan, &batch), GANTRY_NOT_FINITE, "input real");
  real[5] = 0;
  EXPECT_STATUS(gantry_gan_step(gan, &batch), GANTRY_FAILED_PRECONDITION, "resume");
  EXPECT_OK(gantry_gan_resume(gan, "session_test.safetensors"));
  EXPECT_OK(gantry_gan_step(gan, &batch));
  remove("session_test.safetensors");
  gantry_gan_destroy(gan);
}

static void* train_alone(void* context) {
  gantry_gan* gan = make_session(context, 0.9);
  double* loss = malloc(sizeof(double));
  EXPECT_OK(gantry_gan_plan(gan, NULL));
  for (int i = 0; i < 3; ++i) step(gan, i);
  *loss = loss_of(gan);
  gantry_gan_destroy(gan);
  return loss;
}

/* Different handles may be used at once: two sessions of one context, each on a thread of its own. */
static void sessions_on_two_threads(void) {
  gantry_context* context = NULL;
  pthread_t thread;
  void *here = NULL, *there = NULL;
  EXPECT_OK(gantry_context_create(NULL, &context));
  EXPECT(pthread_create(&thread, NULL, train_alone, context) == 0);
  here = train_alone(context);
  pthread_join(thread, &there);
  EXPECT(*(double*)here == *(double*)there && isfinite(*(double*)here));
  free(here), free(there);
  EXPECT(gantry_context_reserved_bytes(context) == 0);
  gantry_context_destroy(context);
}

static void budgets_hold(void) {
  gantry_context* context = NULL;
  gantry_context_config config = GANTRY_CONTEXT_CONFIG_INIT;
  gantry_gan* gan;
  config.memory_bytes = 10000;
  EXPECT_OK(gantry_context_create(&config, &context));
  gan = make_session(context, 0.0);
  EXPECT_STATUS(gantry_gan_plan(gan, NULL), GANTRY_OUT_OF_MEMORY, "10000");
  EXPECT(gantry_context_reserved_bytes(context) == 0);
  gantry_gan_destroy(gan), gantry_context_destroy(context);
}

static void data_sets(gantry_context* context) {
  const int64_t dims[4] = {10, 1, 16, 16};
  static float values[10 * 256], batch[4 * 256];
  gantry_array* array = NULL;
  gantry_data* data = NULL;
  gantry_data_config config = GANTRY_DATA_CONFIG_INIT;
  gantry_gan* gan = make_session(context, 0.0);
  int64_t shape[3];
  size_t rank = 0;
  for (int i = 0; i < 10 * 256; ++i) values[i] = (float)cos(0.1 * i);
  EXPECT_OK(gantry_array_create(GANTRY_F32, 4, dims, values, &array));
  EXPECT_OK(gantry_array_save(array, "session_test.npy"));
  gantry_array_destroy(array);
  config.batch_size = 4, config.seed = 3;
  EXPECT_STATUS(gantry_data_open("missing.npy", &config, &data), GANTRY_NOT_FOUND, "missing.npy");
  EXPECT_OK(gantry_data_open("session_test.npy", &config, &data));
  EXPECT(gantry_data_size(data) == 10);
  EXPECT_OK(gantry_data_shape(data, 3, shape, &rank));
  EXPECT(rank == 3 && shape[0] == 1 && shape[2] == 16);
  EXPECT_OK(gantry_gan_plan(gan, NULL));
  EXPECT_OK(gantry_gan_step_data(gan, data));
  EXPECT(gantry_data_position(data) == 4 && isfinite(loss_of(gan)));
  EXPECT_OK(gantry_data_seek(data, 0));
  EXPECT_OK(gantry_data_next(data, batch, 4 * 256));
  EXPECT_STATUS(gantry_data_next(data, batch, 7), GANTRY_INVALID_ARGUMENT, "1024");
  gantry_data_destroy(data), gantry_gan_destroy(gan);
  remove("session_test.npy");
}

int main(void) {
  gantry_context* context = NULL;
  gantry_context_config config = GANTRY_CONTEXT_CONFIG_INIT;
  config.thread_count = 2, config.log = count_warning, config.log_payload = &warnings;
  EXPECT_OK(gantry_context_create(&config, &context));
  EXPECT(gantry_context_thread_count(context) == 2);
  plan_and_step(context);
  sampling_depends_on_the_seed_alone(context);
  resume_goes_on_bit_for_bit(context);
  infinity_stops_the_session(context);
  data_sets(context);
  budgets_hold();
  sessions_on_two_threads();
  EXPECT(gantry_context_reserved_bytes(context) == 0); /* every arena went with its session */
  gantry_context_destroy(context);
  return expect_failures != 0;
}
