/* A GAN made op by op that learns to put points on a ring: gantry.h from C, and nothing else. */
#include <gantry/gantry.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static void check(gantry_status status) {
  if (status == GANTRY_OK) return;
  fprintf(stderr, "%s: %s\n", gantry_status_name(status), gantry_last_error());
  exit(1);
}

static gantry_value linear(gantry_network* network, const char* name, int64_t in, int64_t out, gantry_value x) {
  const gantry_initializer normal = {sizeof(normal), GANTRY_NORMAL, 0, 0.0, sqrt(2.0 / (double)in), NULL, 0};
  const int64_t dims[2] = {out, in};
  gantry_value inputs[2] = {x, 0}, y;
  check(gantry_network_add_parameter(network, name, GANTRY_F32, 2, dims, &normal, &inputs[1]));
  check(gantry_network_add_op(network, "linear", 2, inputs, 0, NULL, 1, &y));
  return y;
}

static gantry_network* make_network(const char* name, int64_t in, int64_t out) {
  gantry_network* network;
  gantry_value x;
  const gantry_attribute slope = GANTRY_FLOAT("slope", 0.2);
  const int64_t dims[2] = {64, in}; /* the batch, then the elements of one */
  check(gantry_network_create(name, &network));
  check(gantry_network_add_input(network, "x", GANTRY_F32, 2, dims, &x));
  x = linear(network, "first", in, 32, x);
  check(gantry_network_add_op(network, "leaky_relu", 1, &x, 1, &slope, 1, &x));
  check(gantry_network_set_output(network, "y", linear(network, "last", 32, out, x)));
  return network;
}

int main(void) {
  float real[64 * 2], samples[200 * 2], radius = 0;
  gantry_context* context;
  gantry_gan* gan;
  gantry_network *generator = make_network("generator", 4, 2), *discriminator = make_network("discriminator", 2, 1);
  check(gantry_context_create(NULL, &context));
  check(gantry_gan_create(context, NULL, &gan));
  check(gantry_gan_add_generator(gan, "generator", generator, NULL));
  check(gantry_gan_add_discriminator(gan, "discriminator", discriminator, NULL));
  check(gantry_gan_plan(gan, NULL));
  for (int step = 0; step < 3000; ++step) {
    gantry_batch batch = GANTRY_BATCH_INIT;
    for (int i = 0; i < 64; ++i) {
      const double angle = 6.2831853 * rand() / RAND_MAX;
      real[2 * i] = (float)cos(angle), real[2 * i + 1] = (float)sin(angle);
    }
    batch.real = real, batch.real_count = 64 * 2;
    check(gantry_gan_step(gan, &batch));
  }
  check(gantry_gan_sample(gan, 200, 1, 0, samples, 200 * 2));
  for (int i = 0; i < 200; ++i) radius += hypotf(samples[2 * i], samples[2 * i + 1]) / 200;
  printf("mean radius of the samples %.3f, of the real points 1\n", radius);
  gantry_gan_destroy(gan), gantry_context_destroy(context);
  gantry_network_destroy(generator), gantry_network_destroy(discriminator);
  return radius > 0.7f && radius < 1.3f ? 0 : 1;
}
