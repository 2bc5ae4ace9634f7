// Networks to start from: a generator and a discriminator of a published architecture for any square image size, with
// the settings that its authors recommend.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "runtime/gan/gan_step.h"

namespace gantry {

struct FamilyOptions {
  int64_t image_size = 64;  // height and width, a power of two from 16 to 512
  int64_t frames = 0;  // of a clip of "video": a multiple of image_size / 4, at most 512; 0: image_size / 2
  int64_t channels = 3;
  int64_t width = 64;  // channels at the highest resolution; they double with every halving, to at most 8 times this
  int64_t latent_size = 100;
  int64_t batch = 64;
  DataType dtype = DataType::kF32;
};

// The family whose samples are clips.
inline constexpr std::string_view kVideoFamily = "video";

struct Family {
  Model generator;      // "noise" -> "sample" [batch, channels, size, size]
  Model discriminator;  // "sample" -> "logit" [batch, 1]
};

// What to train a family with unless the run file says otherwise.
struct FamilyDefaults {
  GanLoss loss = GanLoss::kNonSaturating;
  double r1 = 0.0, r2 = 0.0, gradient_penalty = 0.0;
  int n_critic = 1;
  double ema = 0.0;
  OptimizerConfig generator, discriminator;
};

// Families:
//  - "dcgan": Radford, Metz and Chintala 2016 (arXiv 1511.06434), as in PyTorch's example: 4x4 convolutions of stride 2
//    without bias, batch norm, ReLU and leaky ReLU 0.2, weights from N(0, 0.02), batch-norm weights from N(1, 0.02).
//    Noise [batch, latent, 1, 1]. States are named as in two torch.nn.Sequential ("0.weight", "1.running_mean").
//  - "wgan-gp": Gulrajani et al. 2017 (arXiv 1704.00028). The generator of dcgan; the critic has layer norm over each
//    sample, with a weight and bias per channel, in place of batch norm, since the penalty is per sample.
//  - "sngan": Miyato et al. 2018 (arXiv 1802.05957), the standard CNNs of its table 3. Every weight of the discriminator
//    is divided by its greatest singular value, estimated by one step of power iteration a pass, as
//    torch.nn.utils.spectral_norm does: states "<layer>.weight_orig", "<layer>.weight_u" and "<layer>.weight_v". Noise
//    [batch, latent].
//  - "r3gan": Huang et al. 2024 (arXiv 2501.05441), one residual block a stage: 1x1, grouped 3x3 and 1x1 convolutions,
//    biased leaky ReLU 0.2, bilinear resampling, no normalization; the last convolution of a block starts at zero
//    (Fixup, Zhang et al. 2019, arXiv 1901.09321). Width must be a multiple of 8. Noise [batch, latent].
//  - "video": the one-stream networks of Vondrick, Pirsiavash and Torralba 2016 (arXiv 1609.02612, section 3): dcgan with 4x4x4
//    convolutions over frames, height and width, weights from N(0, 0.01). Samples are clips [batch, channels, frames, size, size]. The
//    first and the last convolution have kernels of 4x4 on as many frames as are left. Noise [batch, latent, 1, 1, 1].
std::vector<std::string> FamilyNames();

// kNotFound for an unknown family, with the names; kInvalidArgument for options outside the ranges above, or networks
// of more than 2^31 weights.
absl::StatusOr<Family> BuildFamily(std::string_view family, const FamilyOptions& options);
absl::StatusOr<FamilyDefaults> DefaultsOf(std::string_view family);

}  // namespace gantry
