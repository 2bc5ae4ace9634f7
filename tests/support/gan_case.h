// A small GAN that is trained for some steps: what tests of budgets and residency compare to the bit.
#pragma once

#include <algorithm>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "runtime/gan/families.h"
#include "runtime/gan/gan_session.h"

namespace gantry::test {

struct GanCase {
  std::string family = "dcgan";
  GanStepConfig step;
  PlanOptions plan;
  OptimizerConfig optimizer;
  int64_t size = 32, width = 16, batch = 4, latent = 16;
  std::string plan_file;  // instead of planning; empty: plan
};

struct Outcome {
  std::map<std::string, double> scalars;
  std::map<std::string, std::vector<double>> states;
  PlannedResidency residency;
  bool operator==(const Outcome& other) const { return scalars == other.scalars && states == other.states; }
};

inline Family FamilyOf(const GanCase& setup) {
  return *BuildFamily(setup.family, {.image_size = setup.size, .channels = 3, .width = setup.width, .latent_size = setup.latent,
                                     .batch = setup.batch, .dtype = setup.step.dtype});
}

inline absl::StatusOr<std::unique_ptr<GanSession>> MakeSession(const GanCase& setup, Device& device) {
  Family family = FamilyOf(setup);
  std::vector<GanRole> generators, discriminators;
  generators.push_back({.name = "generator", .model = std::move(family.generator), .optimizer = setup.optimizer});
  discriminators.push_back({.name = "discriminator", .model = std::move(family.discriminator), .optimizer = setup.optimizer});
  return GanSession::Create({.step = setup.step, .plan = setup.plan, .seed = 11, .plan_file = setup.plan_file}, std::move(generators),
                            std::move(discriminators), device);
}

// The step program of the case, as MakeSession plans it.
inline absl::StatusOr<Program> StepProgramOf(const GanCase& setup) {
  Family family = FamilyOf(setup);
  const GanRole generators[] = {{.name = "generator", .model = std::move(family.generator), .optimizer = setup.optimizer}};
  const GanRole discriminators[] = {{.name = "discriminator", .model = std::move(family.discriminator), .optimizer = setup.optimizer}};
  return BuildGanStep(setup.step, generators, discriminators);
}

// What the family recommends, with averages, on one thread.
inline GanCase CaseOf(const std::string& family) {
  GanCase setup;
  setup.family = family;
  const FamilyDefaults defaults = *DefaultsOf(family);
  setup.step.loss = defaults.loss;
  setup.step.r1 = defaults.r1;
  setup.step.r2 = defaults.r2;
  setup.step.gradient_penalty = defaults.gradient_penalty;
  setup.step.n_critic = defaults.n_critic;
  setup.step.ema = 0.99;
  setup.plan.thread_count = 1;
  return setup;
}

inline TierOptions Host() { return {.name = "host"}; }

// Trains and checks on the way that predicted peaks are the measured ones.
inline Outcome Train(const GanCase& setup, int steps) {
  Outcome outcome;
  const std::unique_ptr<Device> device = MakeCpuDevice({.thread_count = 2});
  const auto session = MakeSession(setup, *device);
  EXPECT_TRUE(session.ok()) << session.status();
  if (!session.ok()) return outcome;
  GanSession& gan = **session;
  for (int step = 0; step < steps; ++step) {
    std::vector<float> real(gan.real_elements() * gan.draws_per_step());
    for (size_t i = 0; i < real.size(); ++i) real[i] = static_cast<float>(std::sin(0.31 * static_cast<double>(i) + step));
    const absl::Status status = gan.Step({.real = real});
    EXPECT_TRUE(status.ok()) << status;
    if (!status.ok()) return outcome;
  }
  for (const std::string& name : gan.ScalarNames()) outcome.scalars[name] = *gan.Scalar(name);
  for (const std::string& name : gan.StateNames()) {
    std::vector<double> values(gan.StateType(name)->element_count());
    EXPECT_TRUE(gan.ReadState(name, values).ok());
    outcome.states[name] = std::move(values);
  }
  const Plan& plan = gan.plan();
  outcome.residency = plan.residency;
  // Predicted is measured, to the byte, on the device and in every tier; and within the budget.
  EXPECT_EQ(gan.executor().high_water_bytes(), plan.arena_bytes);
  EXPECT_EQ(device->reserved_bytes(), plan.arena_bytes);
  if (plan.residency.budget_bytes > 0) {
    EXPECT_LE(plan.arena_bytes, plan.residency.budget_bytes);
  }
  for (size_t tier = 0; tier < plan.tiers.size(); ++tier) {
    EXPECT_EQ(gan.executor().tier_high_water_bytes(static_cast<int>(tier)), plan.tiers[tier].bytes);
    if (setup.step.penalty_every > 1) continue;  // not every copy happens in every step
    const int64_t out = gan.executor().copies()->bytes_out(static_cast<int>(tier)), in = gan.executor().copies()->bytes_in(static_cast<int>(tier));
    const bool leaves_zeros_out = std::any_of(plan.program.ops().begin(), plan.program.ops().end(),
                                              [](const Op& op) { return op.attributes.String("encoding") == "zeros"; });
    if (leaves_zeros_out) {  // how many zeros there are depends on the data
      EXPECT_LE(out, steps * plan.tiers[tier].out_bytes);
      EXPECT_LE(in, steps * plan.tiers[tier].in_bytes);
    } else {
      EXPECT_EQ(out, steps * plan.tiers[tier].out_bytes);
      EXPECT_EQ(in, steps * plan.tiers[tier].in_bytes);
    }
  }
  return outcome;
}

}  // namespace gantry::test
