#include "runtime/gan/gan_step.h"

#include <algorithm>
#include <map>
#include <set>

#include "ops/functional.h"
#include "runtime/graph/differentiate.h"
#include "runtime/graph/rewrite.h"
#include "runtime/plan/memory_order.h"

namespace gantry {
namespace {

constexpr std::string_view kLossNames[] = {"nonsaturating", "hinge", "wgan", "leastsquares", "relativistic"};

// Means over all logits of the discriminator's and the generator's loss.
ValueId DiscriminatorLoss(Builder& b, GanLoss loss, ValueId real, ValueId fake) {
  const auto Mean = [&](ValueId x) { return ops::ReduceMean(b, x, {}); };
  switch (loss) {
    case GanLoss::kNonSaturating:
      return ops::Add(b, Mean(ops::Softplus(b, ops::Neg(b, real))), Mean(ops::Softplus(b, fake)));
    case GanLoss::kHinge:
      return ops::Add(b, Mean(ops::Relu(b, ops::Scale(b, real, -1.0, 1.0))), Mean(ops::Relu(b, ops::Scale(b, fake, 1.0, 1.0))));
    case GanLoss::kWasserstein: return ops::Sub(b, Mean(fake), Mean(real));
    case GanLoss::kLeastSquares:
      return ops::Add(b, Mean(ops::Square(b, ops::Scale(b, real, 1.0, -1.0))), Mean(ops::Square(b, fake)));
    case GanLoss::kRelativistic: return Mean(ops::Softplus(b, ops::Sub(b, fake, real)));
  }
  return kNoValue;
}

// `real` is read by the relativistic loss only.
ValueId GeneratorLoss(Builder& b, GanLoss loss, ValueId real, ValueId fake) {
  switch (loss) {
    case GanLoss::kNonSaturating: return ops::ReduceMean(b, ops::Softplus(b, ops::Neg(b, fake)), {});
    case GanLoss::kHinge:
    case GanLoss::kWasserstein: return ops::Neg(b, ops::ReduceMean(b, fake, {}));
    case GanLoss::kLeastSquares: return ops::ReduceMean(b, ops::Square(b, ops::Scale(b, fake, 1.0, -1.0)), {});
    case GanLoss::kRelativistic: return ops::ReduceMean(b, ops::Softplus(b, ops::Sub(b, real, fake)), {});
  }
  return kNoValue;
}

std::vector<int64_t> AllButBatch(const Shape& shape) {
  std::vector<int64_t> axes;
  for (int axis = 1; axis < shape.rank(); ++axis) axes.push_back(axis);
  return axes;
}

// The sum of squares of each sample, [batch].
ValueId SquaredNorms(Builder& b, ValueId x) { return ops::ReduceSum(b, ops::Square(b, x), AllButBatch(b.TypeOf(x).shape)); }

class StepBuilder {
 public:
  StepBuilder(const GanStepConfig& config, std::span<const GanRole> generators, std::span<const GanRole> discriminators)
      : config_(config), generators_(generators), discriminators_(discriminators), emitter_(program_) {}

  absl::StatusOr<Program> Run() {
    GANTRY_RETURN_IF_ERROR(Check());
    AddScalars();
    if (config_.parameter_gradient_norms) want_norms_ = true;
    for (int draw = 0; draw < config_.n_critic; ++draw) GANTRY_RETURN_IF_ERROR(DiscriminatorPhase(draw));
    GANTRY_RETURN_IF_ERROR(GeneratorPhase());
    AddOutputs();
    GANTRY_RETURN_IF_ERROR(program_.status());
    return std::move(program_);
  }

 private:
  struct Draw {  // one micro-batch of one draw
    ValueId real = kNoValue;
    ValueId mix = kNoValue;
    std::vector<ValueId> fakes;                  // per generator
    std::vector<std::vector<ValueId>> noise;     // per generator, per input
    std::vector<int64_t> generator_use;          // per generator: which use of the model made the fake
  };

  absl::Status Check() const {
    if (generators_.empty() || discriminators_.empty()) {
      return absl::InvalidArgumentError(absl::StrFormat("a GAN needs generators and discriminators, got %d and %d",
                                                        generators_.size(), discriminators_.size()));
    }
    std::set<std::string> names;
    for (std::span<const GanRole> roles : {generators_, discriminators_}) {
      for (const GanRole& role : roles) {
        if (role.name.empty() || role.name == "ema" || !names.insert(role.name).second) {
          return absl::InvalidArgumentError(absl::StrFormat("role name '%s' is empty, reserved or used twice", role.name));
        }
        if (role.model.program.outputs().empty() || role.model.program.inputs().empty()) {
          return absl::InvalidArgumentError(absl::StrFormat("network '%s' needs an input and an output", role.name));
        }
      }
    }
    for (const GanRole& generator : generators_) {
      const TensorType& made = OutputType(generator);
      for (const GanRole& discriminator : discriminators_) {
        const TensorType& judged = InputType(discriminator);
        if (made == judged) continue;
        return absl::InvalidArgumentError(absl::StrFormat("'%s' makes %s, but '%s' judges %s", generator.name,
                                                          made.ToString(), discriminator.name, judged.ToString()));
      }
    }
    if (config_.n_critic < 1 || config_.accumulate < 1 || config_.penalty_every < 1) {
      return absl::InvalidArgumentError(absl::StrFormat("n_critic %d, accumulate %d and penalty_every %d must be at least 1",
                                                        config_.n_critic, config_.accumulate, config_.penalty_every));
    }
    return absl::OkStatus();
  }

  static const TensorType& OutputType(const GanRole& role) {
    return role.model.program.TypeOf(role.model.program.outputs()[0].value);
  }
  // The type of the first input that is not random state.
  static const TensorType& InputType(const GanRole& role) {
    const Program& program = role.model.program;
    for (ValueId input : program.inputs()) {
      if (program.values()[input].name != kRandomState) return program.TypeOf(input);
    }
    return program.TypeOf(program.inputs()[0]);
  }

  bool has_penalty() const { return config_.r1 > 0 || config_.r2 > 0; }
  bool lazy() const { return has_penalty() && config_.penalty_every > 1; }
  ValueId Scalar(double value) { return ops::Fill(program_, config_.dtype, Shape{}, value); }

  void AddScalars() {
    for (std::span<const GanRole> roles : {discriminators_, generators_}) {
      for (const GanRole& role : roles) {
        program_.AddInput(role.name + ".learning_rate", {config_.dtype, Shape{}});
        program_.AddInput(role.name + ".updates", {config_.dtype, Shape{}});
      }
    }
    if (lazy()) penalty_flag_ = program_.AddInput("penalty", {config_.dtype, Shape{}});
  }

  Draw AddDraw(int draw, int micro) {
    Draw result;
    const std::string suffix = absl::StrCat(draw, ".", micro);
    const TensorType& sample = InputType(discriminators_[0]);
    result.real = program_.AddInput("real." + suffix, sample);
    if (config_.gradient_penalty > 0) {
      result.mix = program_.AddInput("mix." + suffix, {config_.dtype, Shape{sample.shape[0]}});
    }
    for (const GanRole& generator : generators_) {
      const std::string prefix = generators_.size() == 1 ? "noise." : absl::StrCat("noise.", generator.name, ".");
      std::vector<ValueId> noise;
      const Program& model = generator.model.program;
      for (ValueId input : model.inputs()) {
        const Value& value = model.values()[input];
        if (value.name == kRandomState) continue;
        noise.push_back(program_.AddInput(noise.empty() ? prefix + suffix : absl::StrCat(prefix, suffix, ".", value.name), value.type));
      }
      program_.SetPhase("generate");
      result.generator_use.push_back(emitter_.uses());
      result.fakes.push_back(emitter_.Emit(generator.model, generator.name, noise)[0]);
      result.noise.push_back(std::move(noise));
    }
    return result;
  }

  std::vector<ValueId> Parameters(const GanRole& role, std::vector<std::string>& names) const {
    std::vector<ValueId> values;
    names.clear();
    for (const State& state : role.model.program.states()) {
      if (state.role != StateRole::kParameter) continue;
      names.push_back(absl::StrCat(role.name, ".", state.name));
      values.push_back(emitter_.Current(names.back()));
    }
    return values;
  }

  static void Accumulate(Program& program, std::vector<ValueId>& sums, const std::vector<ValueId>& gradients) {
    if (sums.empty()) sums.assign(gradients.size(), kNoValue);
    for (size_t i = 0; i < gradients.size(); ++i) {
      if (gradients[i] == kNoValue) continue;
      sums[i] = sums[i] == kNoValue ? gradients[i] : ops::Add(program, sums[i], gradients[i]);
    }
  }

  void Log(std::string_view name, ValueId value) {
    auto place = log_.find(name);
    if (place == log_.end()) {
      log_.emplace(std::string(name), value);
    } else {
      place->second = ops::Add(program_, place->second, value);
    }
  }

  absl::Status DiscriminatorPhase(int draw) {
    draws_.clear();
    log_.clear();
    std::vector<std::vector<ValueId>> gradients(discriminators_.size());
    for (int micro = 0; micro < config_.accumulate; ++micro) {
      draws_.push_back(AddDraw(draw, micro));
      for (size_t d = 0; d < discriminators_.size(); ++d) {
        GANTRY_RETURN_IF_ERROR(Judge(discriminators_[d], draws_.back(), gradients[d]));
      }
    }
    for (size_t d = 0; d < discriminators_.size(); ++d) {
      program_.SetPhase("discriminator_update");
      GANTRY_RETURN_IF_ERROR(Update(discriminators_[d], gradients[d], draw));
    }
    return program_.status();
  }

  // One discriminator's losses on one micro-batch, and their gradients added to `sums`.
  absl::Status Judge(const GanRole& role, const Draw& draw, std::vector<ValueId>& sums) {
    std::vector<std::string> names;
    program_.SetPhase("real");
    const ValueId real_inputs[] = {draw.real};
    const ValueId real = emitter_.Emit(role.model, role.name, real_inputs)[0];
    std::vector<ValueId> losses;  // to differentiate in every step
    std::vector<ValueId> fakes;
    for (ValueId fake_sample : draw.fakes) {
      program_.SetPhase("fake");
      const ValueId fake_inputs[] = {fake_sample};
      fakes.push_back(emitter_.Emit(role.model, role.name, fake_inputs)[0]);
      program_.SetPhase("discriminator_loss");
      program_.SetNetwork(role.name);
      losses.push_back(DiscriminatorLoss(program_, config_.loss, real, fakes.back()));
      Log("discriminator_loss", losses.back());
      Log("mean_logit_fake", ops::ReduceMean(program_, fakes.back(), {}));
    }
    Log("mean_logit_real", ops::ReduceMean(program_, real, {}));
    if (config_.health) Log("sign_real", ops::ReduceMean(program_, ops::Sign(program_, real), {}));
    if (config_.gradient_penalty > 0) {
      for (ValueId fake_sample : draw.fakes) {
        GANTRY_ASSIGN_OR_RETURN(const ValueId penalty, GradientPenalty(role, draw, fake_sample));
        losses.push_back(ops::Scale(program_, penalty, config_.gradient_penalty));
        Log("gradient_penalty", penalty);
      }
    }
    const std::vector<ValueId> parameters = Parameters(role, names);
    if (!lazy()) {
      GANTRY_RETURN_IF_ERROR(AddZeroCenteredPenalties(draw, real, fakes, losses));
      program_.SetPhase("discriminator_gradient");
      GANTRY_ASSIGN_OR_RETURN(const std::vector<ValueId> gradients, Differentiate(program_, losses, {}, parameters));
      Accumulate(program_, sums, gradients);
      return program_.status();
    }
    program_.SetPhase("discriminator_gradient");
    GANTRY_ASSIGN_OR_RETURN(std::vector<ValueId> gradients, Differentiate(program_, losses, {}, parameters));
    program_.SetCondition(penalty_flag_);
    std::vector<ValueId> penalties;
    GANTRY_RETURN_IF_ERROR(AddZeroCenteredPenalties(draw, real, fakes, penalties));
    program_.SetPhase("penalty_gradient");
    GANTRY_ASSIGN_OR_RETURN(const std::vector<ValueId> extra, Differentiate(program_, penalties, {}, parameters));
    program_.SetCondition(kNoValue);
    program_.SetPhase("discriminator_gradient");
    for (size_t i = 0; i < gradients.size(); ++i) {
      if (extra[i] == kNoValue) continue;
      const TensorType type = program_.TypeOf(extra[i]);
      if (gradients[i] == kNoValue) gradients[i] = ops::Fill(program_, type.dtype, type.shape, 0.0);
      gradients[i] = ops::AddIf(program_, gradients[i], extra[i], penalty_flag_);
    }
    Accumulate(program_, sums, gradients);
    return program_.status();
  }

  // r1 and r2: logged without their weights, appended to `losses` with them.
  absl::Status AddZeroCenteredPenalties(const Draw& draw, ValueId real, const std::vector<ValueId>& fakes,
                                        std::vector<ValueId>& losses) {
    const auto Penalty = [&](std::string_view name, double weight, ValueId logits, ValueId sample) -> absl::Status {
      program_.SetPhase("penalty");
      const ValueId outputs[] = {logits}, inputs[] = {sample};
      GANTRY_ASSIGN_OR_RETURN(const std::vector<ValueId> gradient, Differentiate(program_, outputs, {}, inputs));
      ValueId value =
          gradient[0] == kNoValue ? Scalar(0.0) : ops::ReduceMean(program_, SquaredNorms(program_, gradient[0]), {});
      losses.push_back(ops::Scale(program_, value, weight / 2));
      if (lazy()) {
        const ValueId condition = program_.condition();
        program_.SetCondition(kNoValue);
        value = ops::AddIf(program_, Scalar(0.0), value, penalty_flag_);
        program_.SetCondition(condition);
        Log(name, value);
      } else {
        Log(name, value);
      }
      return program_.status();
    };
    if (config_.r1 > 0) GANTRY_RETURN_IF_ERROR(Penalty("r1", config_.r1, real, draw.real));
    for (size_t g = 0; config_.r2 > 0 && g < fakes.size(); ++g) {
      GANTRY_RETURN_IF_ERROR(Penalty("r2", config_.r2, fakes[g], draw.fakes[g]));
    }
    return absl::OkStatus();
  }

  // Without its weight, as it is logged.
  absl::StatusOr<ValueId> GradientPenalty(const GanRole& role, const Draw& draw, ValueId fake) {
    program_.SetPhase("penalty");
    Program& p = program_;
    const Shape& shape = p.TypeOf(fake).shape;
    std::vector<int64_t> dims(shape.rank(), 1);
    dims[0] = shape[0];
    const ValueId e = ops::Reshape(p, draw.mix, Shape(dims));
    const ValueId mix = ops::Add(p, ops::Mul(p, e, draw.real), ops::Mul(p, ops::Scale(p, e, -1.0, 1.0), fake));
    const ValueId inputs[] = {mix};
    const ValueId logits[] = {emitter_.Emit(role.model, role.name, inputs)[0]};
    GANTRY_ASSIGN_OR_RETURN(const std::vector<ValueId> gradient, Differentiate(p, logits, {}, inputs));
    if (gradient[0] == kNoValue) {
      return absl::InvalidArgumentError(absl::StrFormat("'%s' does not depend on its input: no gradient penalty", role.name));
    }
    const ValueId norm = ops::Sqrt(p, SquaredNorms(p, gradient[0]));
    return ops::ReduceMean(p, ops::Square(p, ops::Scale(p, norm, 1.0, -1.0)), {});
  }

  absl::Status GeneratorPhase() {
    std::vector<std::vector<ValueId>> sums(generators_.size());
    for (Draw& draw : draws_) {
      if (config_.accumulate > 1) EmitFakesAgain(draw);
      std::vector<ValueId> losses;
      for (const GanRole& discriminator : discriminators_) {
        program_.SetPhase("generator_loss");
        ValueId real = kNoValue;
        if (config_.loss == GanLoss::kRelativistic) {
          const ValueId inputs[] = {draw.real};
          real = ops::StopGradient(program_, emitter_.Emit(discriminator.model, discriminator.name, inputs)[0]);
        }
        for (ValueId fake : draw.fakes) {
          const ValueId inputs[] = {fake};
          const ValueId logits = emitter_.Emit(discriminator.model, discriminator.name, inputs)[0];
          losses.push_back(GeneratorLoss(program_, config_.loss, real, logits));
          Log("generator_loss", losses.back());
        }
      }
      program_.SetPhase("generator_gradient");
      // All generators at once: the pass back through the discriminators is one.
      std::vector<ValueId> parameters;
      std::vector<size_t> counts;
      std::vector<std::string> names;
      for (const GanRole& generator : generators_) {
        const std::vector<ValueId> own = Parameters(generator, names);
        parameters.insert(parameters.end(), own.begin(), own.end());
        counts.push_back(own.size());
      }
      GANTRY_ASSIGN_OR_RETURN(const std::vector<ValueId> gradients, Differentiate(program_, losses, {}, parameters));
      size_t first = 0;
      for (size_t g = 0; g < generators_.size(); ++g) {
        Accumulate(program_, sums[g], {gradients.begin() + first, gradients.begin() + first + counts[g]});
        first += counts[g];
      }
    }
    for (size_t g = 0; g < generators_.size(); ++g) {
      program_.SetPhase("generator_update");
      GANTRY_RETURN_IF_ERROR(Update(generators_[g], sums[g], 0));
      if (config_.ema > 0) UpdateAverages(generators_[g]);
    }
    return program_.status();
  }

  // With accumulation a made batch is made again rather than kept over the whole discriminator phase.
  void EmitFakesAgain(Draw& draw) {
    program_.SetPhase("generate_again");
    for (size_t g = 0; g < generators_.size(); ++g) {
      draw.fakes[g] = emitter_.Emit(generators_[g].model, generators_[g].name, draw.noise[g],
                                    {.update_statistics = false, .stream_use = draw.generator_use[g]})[0];
    }
  }

  // A moment of `parameter`: a state of its shape, zero at first.
  ValueId Moment(const GanRole& role, const std::string& parameter, std::string_view suffix) {
    const std::string name = absl::StrCat(parameter, ".", ToAbsl(suffix));
    if (program_.FindState(name) == nullptr) {
      program_.AddState(name, role.name, StateRole::kMoment, program_.TypeOf(emitter_.Current(parameter)), Initializer());
    }
    const State* state = program_.FindState(name);
    return state == nullptr ? kNoValue : state->last;
  }

  absl::Status Update(const GanRole& role, const std::vector<ValueId>& gradients, int update_index) {
    Program& p = program_;
    p.SetNetwork(role.name);
    std::vector<std::string> names;
    const std::vector<ValueId> parameters = Parameters(role, names);
    std::vector<ValueId> present;
    for (ValueId gradient : gradients) {
      if (gradient != kNoValue) present.push_back(gradient);
    }
    if (present.empty()) {
      return absl::InvalidArgumentError(absl::StrFormat("'%s' has no parameter that its loss depends on", role.name));
    }
    const OptimizerConfig& optimizer = role.optimizer;
    const double mean = 1.0 / config_.accumulate;
    ValueId scale = Scalar(mean);
    if (config_.health || optimizer.clip_norm > 0) {
      // Tensor by tensor, so that a gradient may go as soon as it has been added.
      ValueId squares = kNoValue;
      for (ValueId gradient : present) {
        const ValueId one[] = {gradient};
        const ValueId sum = ops::SumSquares(p, one);
        squares = squares == kNoValue ? sum : ops::Add(p, squares, sum);
      }
      const ValueId norm = ops::Scale(p, ops::Sqrt(p, squares), mean);
      if (config_.health) norms_[role.name] = norm;
      if (optimizer.clip_norm > 0) {
        const ValueId limit = ops::Div(p, Scalar(optimizer.clip_norm), ops::Scale(p, norm, 1.0, 1e-6));
        scale = ops::Scale(p, ops::Minimum(p, limit, Scalar(1.0)), mean);
      }
    }
    const ValueId learning_rate = p.FindInput(role.name + ".learning_rate");
    const ValueId step = ops::Scale(p, p.FindInput(role.name + ".updates"), 1.0, update_index + 1.0);
    for (size_t i = 0; i < parameters.size(); ++i) {
      if (gradients[i] == kNoValue) continue;
      if (want_norms_ && update_index == 0) {
        const ValueId one[] = {gradients[i]};
        p.AddOutput("gradient_norm." + names[i], ops::Scale(p, ops::Sqrt(p, ops::SumSquares(p, one)), mean));
      }
      const bool adam = optimizer.kind != OptimizerConfig::Kind::kSgd;
      std::vector<std::string> moments;
      if (adam) {
        moments = {"moment1", "moment2"};
      } else if (optimizer.momentum != 0.0) {
        moments = {"momentum"};
      }
      std::vector<ValueId> inputs = {parameters[i]};
      for (const std::string& moment : moments) inputs.push_back(Moment(role, names[i], moment));
      inputs.insert(inputs.end(), {gradients[i], learning_rate, step, scale});
      const std::vector<ValueId> updated = adam ? p.Emit("adam_update", inputs, AdamAttributes(optimizer))
                                                : p.Emit("sgd_update", inputs, SgdAttributes(optimizer));
      emitter_.Update(names[i], updated[0]);
      for (size_t m = 0; m < moments.size(); ++m) p.UpdateState(absl::StrCat(names[i], ".", moments[m]), updated[m + 1]);
    }
    return p.status();
  }

  static Attributes AdamAttributes(const OptimizerConfig& optimizer) {
    return {{"count", int64_t{1}},
            {"beta1", optimizer.beta1},
            {"beta2", optimizer.beta2},
            {"epsilon", optimizer.epsilon},
            {"weight_decay", optimizer.weight_decay},
            {"decoupled", int64_t{optimizer.kind == OptimizerConfig::Kind::kAdamW ? 1 : 0}}};
  }
  static Attributes SgdAttributes(const OptimizerConfig& optimizer) {
    return {{"count", int64_t{1}},
            {"momentum", optimizer.momentum},
            {"nesterov", int64_t{optimizer.nesterov ? 1 : 0}},
            {"weight_decay", optimizer.weight_decay},
            {"dampening", 0.0}};
  }

  void UpdateAverages(const GanRole& role) {
    program_.SetPhase("average");
    program_.SetNetwork(role.name);
    std::vector<std::string> names;
    const std::vector<ValueId> parameters = Parameters(role, names);
    for (size_t i = 0; i < parameters.size(); ++i) {
      const std::string name = "ema." + names[i];
      Initializer initializer;
      initializer.kind = Initializer::Kind::kCopy;
      initializer.source = names[i];
      const ValueId average = program_.AddState(name, role.name, StateRole::kAverage, program_.TypeOf(parameters[i]), initializer);
      const ValueId inputs[] = {average, parameters[i]};
      program_.UpdateState(name, program_.Emit("lerp_update", inputs,
                                               {{"count", int64_t{1}}, {"weight", 1.0 - config_.ema}, {"scale", 1.0}})[0]);
    }
  }

  void AddOutputs() {
    program_.SetPhase("report");
    program_.SetNetwork("");
    for (std::string_view name : {"discriminator_loss", "r1", "r2", "gradient_penalty", "generator_loss", "mean_logit_real",
                                  "mean_logit_fake", "sign_real"}) {
      if (name == "sign_real" && !config_.health) continue;
      const auto value = log_.find(name);
      const ValueId sum = value == log_.end() ? Scalar(0.0) : value->second;
      // A lazy penalty is known in some steps only.
      if (const Value& made = program_.values()[sum]; made.kind == ValueKind::kComputed) {
        program_.SetCondition(program_.ops()[made.producer].condition);
      }
      program_.AddOutput(std::string(name), config_.accumulate == 1 ? sum : ops::Scale(program_, sum, 1.0 / config_.accumulate));
      program_.SetCondition(kNoValue);
    }
    if (config_.health) {
      for (const auto& [role, norm] : norms_) program_.AddOutput(role + ".gradient_norm", norm);
      program_.AddOutput("diversity_real", Diversity(draws_.back().real));
      program_.AddOutput("diversity_fake", Diversity(draws_.back().fakes[0]));
    }
    program_.AddOutput("sample", draws_.back().fakes[0]);
  }

  // Mean over elements of the standard deviation over the batch.
  ValueId Diversity(ValueId x) {
    const ValueId centered = ops::Sub(program_, x, ops::ReduceMean(program_, x, {0}, true));
    return ops::ReduceMean(program_, ops::Sqrt(program_, ops::ReduceMean(program_, ops::Square(program_, centered), {0})), {});
  }

  const GanStepConfig& config_;
  const std::span<const GanRole> generators_, discriminators_;
  Program program_;
  ModelEmitter emitter_;
  ValueId penalty_flag_ = kNoValue;
  bool want_norms_ = false;
  std::vector<Draw> draws_;  // the micro-batches of the last draw
  std::map<std::string, ValueId, std::less<>> log_;
  std::map<std::string, ValueId> norms_;
};

}  // namespace

std::string_view Name(GanLoss loss) { return kLossNames[static_cast<int>(loss)]; }

std::vector<std::string> GanLossNames() { return {std::begin(kLossNames), std::end(kLossNames)}; }

absl::StatusOr<GanLoss> ParseGanLoss(std::string_view name) {
  for (size_t i = 0; i < std::size(kLossNames); ++i) {
    if (kLossNames[i] == name) return static_cast<GanLoss>(i);
  }
  return absl::InvalidArgumentError(
      absl::StrFormat("unknown loss '%s'; known are nonsaturating, hinge, wgan, leastsquares, relativistic", name));
}

absl::StatusOr<Program> BuildGanStep(const GanStepConfig& config, std::span<const GanRole> generators,
                                     std::span<const GanRole> discriminators) {
  GANTRY_ASSIGN_OR_RETURN(Program program, StepBuilder(config, generators, discriminators).Run());
  GANTRY_ASSIGN_OR_RETURN(program, Simplify(program));
  return OrderForMemory(program);
}

absl::StatusOr<Program> BuildSampler(const GanRole& generator, bool ema, DataType dtype) {
  Program program;
  ModelEmitter emitter(program);
  std::vector<ValueId> noise;
  for (ValueId input : generator.model.program.inputs()) {
    const Value& value = generator.model.program.values()[input];
    if (value.name == kRandomState) continue;
    noise.push_back(program.AddInput(noise.empty() ? "noise" : "noise." + value.name, value.type));
  }
  program.SetPhase("sample");
  Model model = generator.model;
  const std::string network = ema ? "ema." + generator.name : generator.name;
  const ValueId sample = emitter.Emit(model, network, noise, {.update_statistics = false})[0];
  program.AddOutput("sample", sample);
  GANTRY_RETURN_IF_ERROR(program.status());
  if (!(program.TypeOf(sample).dtype == dtype)) return absl::InvalidArgumentError("the generator makes another element type");
  return program;
}

}  // namespace gantry
