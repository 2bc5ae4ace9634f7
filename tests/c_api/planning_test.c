/* Planning from C: a run's plan without memory for it, what-if, machine files, calibration. */
#define _POSIX_C_SOURCE 200809L
#include <gantry/gantry.h>
#include <stdio.h>
#include <stdlib.h>

#include "expect.h"

static void write_text(const char* path, const char* text) {
  FILE* file = fopen(path, "w");
  EXPECT(file != NULL && fputs(text, file) >= 0 && fclose(file) == 0);
}

static const char run_text[] =
    "[model]\nfamily = \"dcgan\"\nimage_size = 16\nchannels = 1\nwidth = 8\nlatent = 4\n"
    "[train]\nbatch = 4\nsteps = 2\n[data]\npath = \"nowhere.npy\"\n";

static void plans(gantry_context* context) {
  gantry_planning* planning = NULL;
  gantry_plan_info info = GANTRY_PLAN_INFO_INIT;
  const char* text = NULL;
  const char* tight[] = {"memory.device=10kB"};
  EXPECT_STATUS(gantry_planning_open(context, "no-such-run.toml", 0, NULL, &planning), GANTRY_NOT_FOUND, "no-such-run.toml");
  EXPECT_OK(gantry_planning_open(context, "planning_run.toml", 0, NULL, &planning)); /* the data are not there and not needed */
  EXPECT_STATUS(gantry_planning_plan_text(planning, &text), GANTRY_FAILED_PRECONDITION, "gantry_planning_plan");
  EXPECT_OK(gantry_planning_plan(planning, &info));
  EXPECT(info.arena_bytes > 10000 && info.arena_bytes == info.footprint_bytes && info.predicted_seconds > 0);
  EXPECT(gantry_context_reserved_bytes(context) == 0);
  EXPECT_OK(gantry_planning_plan_text(planning, &text));
  EXPECT(strstr(text, "by phase") != NULL && strstr(text, "costs") != NULL);
  EXPECT_OK(gantry_planning_write_plan(planning, "planning_plan.json"));
  gantry_planning_destroy(planning), planning = NULL;
  EXPECT_OK(gantry_planning_open(context, "planning_run.toml", 1, tight, &planning));
  EXPECT_STATUS(gantry_planning_plan(planning, &info), GANTRY_OUT_OF_MEMORY, "bytes too many");
  EXPECT(strstr(gantry_last_error(), "What would fit") != NULL && strstr(gantry_last_error(), "--device-memory") != NULL);
  gantry_planning_destroy(planning);
  gantry_planning_destroy(NULL);
}

static void asks(gantry_context* context) {
  gantry_planning* planning = NULL;
  gantry_what_if answer = GANTRY_WHAT_IF_INIT;
  const char* text = NULL;
  size_t count = 0;
  EXPECT_OK(gantry_planning_open(context, "planning_run.toml", 0, NULL, &planning));
  EXPECT_STATUS(gantry_planning_answer(planning, 0, &answer), GANTRY_FAILED_PRECONDITION, "gantry_planning_what_if");
  EXPECT_OK(gantry_planning_what_if(planning, &count));
  EXPECT(count > 5);
  EXPECT_OK(gantry_planning_answer(planning, 0, &answer));
  EXPECT(strcmp(answer.topic, "now") == 0 && answer.batch == 4 && answer.peak_bytes > 10000 && answer.seconds > 0);
  EXPECT_STATUS(gantry_planning_answer(planning, count, &answer), GANTRY_INVALID_ARGUMENT, "answers");
  EXPECT_OK(gantry_planning_what_if_text(planning, 1, &text));
  EXPECT(text[0] == '{' && strstr(text, "\"answers\"") != NULL);
  EXPECT_OK(gantry_planning_what_if_text(planning, 0, &text));
  EXPECT(strstr(text, "the step as it is") != NULL);
  gantry_planning_destroy(planning);
}

static void describes_machines(gantry_context* context) {
  const char* text = NULL;
  write_text("planning_machine.toml", "format = \"gantry-machine-1\"\nname = \"two\"\n[device]\nmemory = \"1GiB\"\n[ranks]\ncount = 4\nper_node = 2\n"
                                      "[[links]]\nbetween = \"network\"\nbandwidth = \"2GB/s\"\nlatency = \"6us\"\n");
  EXPECT_OK(gantry_context_machine_text(context, "planning_machine.toml", 0, 0, &text));
  EXPECT(strstr(text, "job two\n  node 0\n    rank 0, 1.0 GiB\n    rank 1, 1.0 GiB\n  node 1\n    rank 2") == text);
  EXPECT(strstr(text, "link between nodes, 2.0 GB/s, 6 us") != NULL);
  EXPECT_OK(gantry_context_machine_text(context, "planning_machine.toml", 1, 1, &text));
  EXPECT(text[0] == '{' && strstr(text, "\"kind\": \"rank\", \"number\": 1") != NULL && strstr(text, "\"number\": 2") == NULL);
  EXPECT_STATUS(gantry_context_machine_text(context, "planning_machine.toml", 1025, 0, &text), GANTRY_INVALID_ARGUMENT, "1025");
  EXPECT_STATUS(gantry_context_machine_text(context, "", 0, 0, &text), GANTRY_INVALID_ARGUMENT, "no description");
  EXPECT_STATUS(gantry_context_machine_text(context, "no-such-machine", 0, 0, &text), GANTRY_NOT_FOUND, "no-such-machine");
}

static void calibrates(gantry_context* context) {
  gantry_calibrate_config config = GANTRY_CALIBRATE_CONFIG_INIT;
  gantry_calibration result = GANTRY_CALIBRATION_INIT;
  gantry_planning* planning = NULL;
  const char* text = NULL;
  const char* machine[] = {"memory.machine=planning_machine.toml"};
  write_text("planning_machine.toml", "format = \"gantry-machine-1\"\n[device]\nflops = 1e10\n");
  config.out = "planning_machine.toml", config.run = "planning_run.toml", config.steps = 2;
  EXPECT_OK(gantry_calibrate(context, &config, &result));
  EXPECT(result.predicted_seconds > 0 && result.measured_seconds > 0 && strcmp(result.path, "planning_machine.toml") == 0);
  EXPECT_OK(gantry_planning_open(context, "planning_run.toml", 1, machine, &planning));
  EXPECT_OK(gantry_planning_plan(planning, NULL));
  EXPECT_OK(gantry_planning_plan_text(planning, &text));
  EXPECT(strstr(text, "measured, planning_machine.toml") != NULL);
  gantry_planning_destroy(planning), planning = NULL;
  config.steps = -1;
  EXPECT_STATUS(gantry_calibrate(context, &config, NULL), GANTRY_INVALID_ARGUMENT, "steps");
  write_text("planning_machine.toml", "format = \"gantry-machine-1\"\n[device]\nflps = 1e10\n");
  EXPECT_STATUS(gantry_planning_open(context, "planning_run.toml", 1, machine, &planning), GANTRY_BAD_DATA, "flops");
}

int main(void) {
  gantry_context* context = NULL;
  unsetenv("GANTRY_MACHINE");
  setenv("XDG_CACHE_HOME", "/nowhere", 1);
  EXPECT_OK(gantry_context_create(NULL, &context));
  write_text("planning_run.toml", run_text);
  plans(context);
  asks(context);
  describes_machines(context);
  calibrates(context);
  gantry_context_destroy(context);
  return expect_failures != 0;
}
