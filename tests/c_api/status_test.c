/* Statuses and messages: what is wrong is named, nothing changes, and each thread has its own last error. */
#include <gantry/gantry.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

#include "expect.h"

static void values_are_fixed(void) {
  EXPECT(GANTRY_OK == 0 && GANTRY_INVALID_ARGUMENT == 1 && GANTRY_NOT_FOUND == 2 && GANTRY_FAILED_PRECONDITION == 3);
  EXPECT(GANTRY_UNSUPPORTED == 4 && GANTRY_VERSION_MISMATCH == 5 && GANTRY_BAD_DATA == 6 && GANTRY_OUT_OF_MEMORY == 20);
  EXPECT(GANTRY_PERMISSION_DENIED == 21 && GANTRY_NO_SPACE == 22 && GANTRY_IO_ERROR == 23 && GANTRY_CANNOT_CREATE == 24);
  EXPECT(GANTRY_TIMED_OUT == 25 && GANTRY_NOT_FINITE == 40 && GANTRY_INTERNAL == 60);
  EXPECT(strcmp(gantry_status_name(GANTRY_NO_SPACE), "GANTRY_NO_SPACE") == 0);
  EXPECT(strcmp(gantry_status_name((gantry_status)7777), "unknown status") == 0);
}

static void version_is_the_headers(void) {
  char expected[32];
  snprintf(expected, sizeof(expected), "%d.%d.%d", GANTRY_VERSION_MAJOR, GANTRY_VERSION_MINOR, GANTRY_VERSION_PATCH);
  EXPECT(strcmp(gantry_version(), expected) == 0);
  EXPECT(gantry_abi_version() == GANTRY_ABI_VERSION);
  EXPECT(strstr(gantry_backends(), "cpu: ") == gantry_backends() && strstr(gantry_backends(), "cuda: ") != NULL);
  EXPECT(strstr(gantry_build_info(), "compiler: ") != NULL);
}

static void null_handles(void) {
  double value;
  gantry_context_destroy(NULL), gantry_array_destroy(NULL), gantry_archive_destroy(NULL), gantry_network_destroy(NULL);
  gantry_gan_destroy(NULL), gantry_data_destroy(NULL), gantry_run_destroy(NULL);
  EXPECT(gantry_array_data(NULL) == NULL && gantry_array_rank(NULL) == 0 && gantry_gan_state_count(NULL) == 0);
  EXPECT(gantry_gan_scalar_name(NULL, 0) == NULL && gantry_run_finished(NULL) == 0 && gantry_context_thread_count(NULL) == 0);
  EXPECT_STATUS(gantry_gan_read_scalar(NULL, "x", &value), GANTRY_INVALID_ARGUMENT, "gan");
  EXPECT_STATUS(gantry_gan_step(NULL, NULL), GANTRY_INVALID_ARGUMENT, "NULL");
  EXPECT_STATUS(gantry_context_create(NULL, NULL), GANTRY_INVALID_ARGUMENT, "context");
  EXPECT_STATUS(gantry_array_load(NULL, NULL, NULL), GANTRY_INVALID_ARGUMENT, "path");
  EXPECT_STATUS(gantry_run_step(NULL, NULL), GANTRY_INVALID_ARGUMENT, "run");
}

static void arguments_are_checked(void) {
  gantry_context* context = NULL;
  gantry_gan* gan = NULL;
  gantry_array* array = NULL;
  gantry_network* network = NULL;
  gantry_context_config device = GANTRY_CONTEXT_CONFIG_INIT;
  gantry_gan_config config = GANTRY_GAN_CONFIG_INIT;
  gantry_batch batch = GANTRY_BATCH_INIT;
  int64_t dims[2] = {2, -1};
  gantry_value x = 0;
  device.device = "tpu";
  EXPECT_STATUS(gantry_context_create(&device, &context), GANTRY_UNSUPPORTED, "tpu");
  device.device = NULL, device.thread_count = -1;
  EXPECT_STATUS(gantry_context_create(&device, &context), GANTRY_INVALID_ARGUMENT, "thread_count");
  EXPECT(context == NULL); /* outputs are written on success only */
  EXPECT_OK(gantry_context_create(NULL, &context));
  config.n_critic = 0;
  EXPECT_STATUS(gantry_gan_create(context, &config, &gan), GANTRY_INVALID_ARGUMENT, "n_critic");
  config.n_critic = 1, config.loss = 99;
  EXPECT_STATUS(gantry_gan_create(context, &config, &gan), GANTRY_INVALID_ARGUMENT, "loss");
  EXPECT_OK(gantry_gan_create(context, NULL, &gan));
  EXPECT_STATUS(gantry_gan_plan(gan, NULL), GANTRY_INVALID_ARGUMENT, "generator");
  EXPECT_STATUS(gantry_gan_step(gan, &batch), GANTRY_FAILED_PRECONDITION, "gantry_gan_plan");
  EXPECT_STATUS(gantry_array_create(12345, 0, NULL, NULL, &array), GANTRY_INVALID_ARGUMENT, "12345");
  EXPECT_STATUS(gantry_array_create(GANTRY_F32, 2, dims, NULL, &array), GANTRY_INVALID_ARGUMENT, "-1");
  dims[0] = INT64_MAX, dims[1] = INT64_MAX;
  EXPECT_STATUS(gantry_array_create(GANTRY_F32, 2, dims, NULL, &array), GANTRY_INVALID_ARGUMENT, "");
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) /* whose allocators end the program instead */
  dims[0] = 1, dims[1] = (int64_t)1 << 58;
  EXPECT_STATUS(gantry_array_create(GANTRY_F32, 2, dims, NULL, &array), GANTRY_OUT_OF_MEMORY, "");
#endif
  EXPECT_OK(gantry_network_create("n", &network));
  EXPECT_STATUS(gantry_network_add_op(network, "leaky_rely", 1, &x, 0, NULL, 1, &x), GANTRY_NOT_FOUND, "'leaky_relu'");
  EXPECT_STATUS(gantry_network_add_op(network, "add", 1, &x, 0, NULL, 1, &x), GANTRY_INVALID_ARGUMENT, "add");
  EXPECT_STATUS(gantry_gan_add_generator(gan, "a.b", network, NULL), GANTRY_INVALID_ARGUMENT, "a.b");
  EXPECT_STATUS(gantry_gan_add_generator(gan, "g", network, NULL), GANTRY_INVALID_ARGUMENT, "output");
  gantry_network_destroy(network), gantry_gan_destroy(gan), gantry_context_destroy(context);
}

static void files_are_named(void) {
  gantry_array* array = NULL;
  gantry_network* network = NULL;
  FILE* file = fopen("status_test.npy", "wb");
  EXPECT(file != NULL);
  if (file == NULL) return;
  fputs("this is no array", file), fclose(file);
  EXPECT_STATUS(gantry_array_load("no/such/file.npy", NULL, &array), GANTRY_NOT_FOUND, "no/such/file.npy");
  EXPECT_STATUS(gantry_array_load("status_test.npy", NULL, &array), GANTRY_BAD_DATA, "status_test.npy");
  EXPECT_STATUS(gantry_network_load_onnx("status_test.npy", NULL, &network), GANTRY_BAD_DATA, "status_test.npy");
  EXPECT_STATUS(gantry_network_load_onnx("no/such.onnx", NULL, &network), GANTRY_NOT_FOUND, "no/such.onnx");
  remove("status_test.npy");
}

static void* fail_often(void* argument) {
  const char* name = argument;
  gantry_array* array = NULL;
  for (int i = 0; i < 2000; ++i) EXPECT_STATUS(gantry_array_load(name, NULL, &array), GANTRY_NOT_FOUND, name);
  return NULL;
}

static void each_thread_has_its_own_error(void) {
  pthread_t threads[2];
  gantry_array* array = NULL;
  char before[256];
  EXPECT_STATUS(gantry_array_load("mine", NULL, &array), GANTRY_NOT_FOUND, "mine");
  snprintf(before, sizeof(before), "%s", gantry_last_error());
  pthread_create(&threads[0], NULL, fail_often, "first-missing-file");
  pthread_create(&threads[1], NULL, fail_often, "second-missing-file");
  pthread_join(threads[0], NULL), pthread_join(threads[1], NULL);
  EXPECT(strcmp(before, gantry_last_error()) == 0);
}

static const int signals[] = {SIGINT, SIGTERM, SIGSEGV, SIGABRT, SIGPIPE, SIGFPE, SIGBUS};
enum { kSignals = sizeof(signals) / sizeof(signals[0]) };

static void read_handlers(void (*handlers[kSignals])(int)) {
  for (size_t i = 0; i < kSignals; ++i) {
    struct sigaction action;
    sigaction(signals[i], NULL, &action);
    handlers[i] = action.sa_handler;
  }
}

int main(void) {
  void (*before[kSignals])(int);
  void (*after[kSignals])(int);
  read_handlers(before);
  EXPECT(strcmp(gantry_last_error(), "") == 0);
  values_are_fixed();
  version_is_the_headers();
  null_handles();
  arguments_are_checked();
  files_are_named();
  each_thread_has_its_own_error();
  read_handlers(after);
  EXPECT(memcmp(before, after, sizeof(before)) == 0);
  return expect_failures != 0;
}
