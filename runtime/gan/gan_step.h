// One adversarial step as one joined program: every discriminator learns from real and made samples, n_critic times, then
// every generator from the discriminators' verdict, then the averages follow.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "runtime/graph/model.h"

namespace gantry {

// Losses as in docs/reference/losses.md; r and f are the logits of real and made samples, means over all logits.
enum class GanLoss : uint8_t {
  kNonSaturating,  // D: softplus(-r) + softplus(f), G: softplus(-f)   (Goodfellow et al. 2014)
  kHinge,          // D: relu(1 - r) + relu(1 + f), G: -f               (Lim and Ye 2017)
  kWasserstein,    // D: f - r, G: -f                                   (Arjovsky et al. 2017)
  kLeastSquares,   // D: (r - 1)^2 + f^2, G: (f - 1)^2                  (Mao et al. 2017)
  kRelativistic,   // D: softplus(-(r - f)), G: softplus(-(f - r)), pairwise (Jolicoeur-Martineau 2019)
};
std::string_view Name(GanLoss loss);
// Every name, in the order of the enum.
std::vector<std::string> GanLossNames();
absl::StatusOr<GanLoss> ParseGanLoss(std::string_view name);

struct OptimizerConfig {
  enum class Kind : uint8_t { kAdam, kAdamW, kSgd };
  Kind kind = Kind::kAdam;
  double learning_rate = 2e-4;
  double beta1 = 0.5, beta2 = 0.999, epsilon = 1e-8;
  double momentum = 0.0;
  bool nesterov = false;
  double weight_decay = 0.0;
  double clip_norm = 0.0;  // 0: no clipping; else gradients are scaled so that their joint norm is at most this
};

// A network of the game. Generators take noise and make samples; discriminators take samples and give logits.
struct GanRole {
  std::string name;  // "generator", "discriminator", or any unique name
  Model model;
  OptimizerConfig optimizer;
};

struct GanStepConfig {
  GanLoss loss = GanLoss::kNonSaturating;
  // Weights of the penalties; 0: none. r1/2 * mean |d(sum r)/d(real)|^2 (Mescheder et al. 2018), r2 the same at made samples,
  // gradient_penalty * mean (|d(sum D(mix))/d(mix)| - 1)^2 with mix = e * real + (1 - e) * fake (Gulrajani et al. 2017).
  double r1 = 0.0, r2 = 0.0, gradient_penalty = 0.0;
  int penalty_every = 1;  // r1 and r2 on every k-th step only, the first one included
  int n_critic = 1;
  int accumulate = 1;     // micro-batches per update; every model is made for one of them
  double ema = 0.0;       // average = ema * average + (1 - ema) * weights after each generator update; 0: none
  DataType dtype = DataType::kF32;
  bool parameter_gradient_norms = false;  // outputs "gradient_norm.<state>" of every parameter's first update
  bool health = true;     // outputs that watch for collapse and divergence
};

// Inputs of the step program, all of `dtype` unless said otherwise; d runs over n_critic, m over accumulate:
//   "real.<d>.<m>"                  samples, shaped as the discriminators' input
//   "noise.<d>.<m>", more inputs of a generator as "noise.<d>.<m>.<name>"; with several generators "noise.<generator>.<d>.<m>"
//   "mix.<d>.<m>"                   [batch], only with gradient_penalty
//   "<role>.learning_rate"          scalar
//   "<role>.updates"                scalar: how many updates the role has had before this step
//   "penalty"                       scalar: 1 in steps with r1 or r2, else 0; only where penalty_every > 1
//   "random_state"                  i64[2], where a network draws random numbers
// Scalar outputs: "discriminator_loss" "r1" "r2" "gradient_penalty" "generator_loss" "mean_logit_real" "mean_logit_fake"
//   (penalties without their weights; of the last draw, means over micro-batches and sums over roles); with health also
//   "sign_real", "<role>.gradient_norm", "diversity_real", "diversity_fake": mean over elements of the standard deviation over the batch.
// States: "<role>.<name>" of every network, "<role>.<name>.moment1" and so on, "ema.<generator>.<name>".
//   Further outputs: "sample" (the last made batch of the first generator).
// Every discriminator judges every generator. kInvalidArgument names roles and shapes that do not fit together.
absl::StatusOr<Program> BuildGanStep(const GanStepConfig& config, std::span<const GanRole> generators,
                                     std::span<const GanRole> discriminators);

// The forward pass of a generator on its averages where `ema`, else on its weights; inputs "noise" (and "noise.<name>"), output
// "sample"; states are named as in the step program. Batch statistics are those of the batch; no state changes.
absl::StatusOr<Program> BuildSampler(const GanRole& generator, bool ema, DataType dtype);

}  // namespace gantry
