#include <algorithm>
#include <cctype>
#include <cmath>

#include "absl/strings/str_join.h"
#include "memory/fallback.h"
#include "runtime/gan/machine_file.h"
#include "runtime/c_api/call.h"
#include "runtime/c_api/handles.h"
#include "runtime/data/file.h"
#include "runtime/plan/exchange_options.h"
#include "runtime/plan/memory_options.h"
#include "runtime/plan/plan_file.h"

using namespace gantry;
using namespace gantry::c_api;

namespace gantry::c_api {

std::string FallbackMessage(const Plan& plan) {
  if (plan.fallbacks.empty()) return "";
  return absl::StrCat("no fast kernels for ", absl::StrJoin(plan.fallbacks, ", "), ": these ops run on reference kernels");
}

gantry_plan_info PlanInfo(const Plan& plan) {
  gantry_plan_info info = GANTRY_PLAN_INFO_INIT;
  info.arena_bytes = static_cast<uint64_t>(DeviceBytes(plan));
  info.lower_bound_bytes = static_cast<uint64_t>(plan.lower_bound_bytes);
  for (const State& state : plan.program.states()) {
    info.state_bytes += static_cast<uint64_t>(plan.program.TypeOf(state.first).size_bytes());
  }
  info.op_count = static_cast<uint64_t>(
      std::count_if(plan.schedule.begin(), plan.schedule.end(), [](const PlannedOp& op) { return op.kernel != nullptr; }));
  info.buffer_count = plan.buffers.size();
  info.fallback_count = plan.fallbacks.size();
  info.budget_bytes = static_cast<uint64_t>(plan.residency.budget_bytes);
  info.footprint_bytes = static_cast<uint64_t>(plan.residency.footprint_bytes);
  info.repeated_op_count = static_cast<uint64_t>(plan.residency.repeats);
  info.tier_count = plan.tiers.size();
  info.predicted_seconds = plan.residency.seconds;
  info.mask_count = static_cast<uint64_t>(plan.residency.masks);
  info.zero_stash_count = static_cast<uint64_t>(plan.residency.zero_stashes);
  info.lossy_stash_count = static_cast<uint64_t>(plan.residency.bf16_stashes);
  info.lent_device_bytes = static_cast<uint64_t>(DeviceBytes(plan) - plan.arena_bytes);
  info.lent_host_bytes = static_cast<uint64_t>(LentHostBytes(plan));
  return info;
}

absl::Status WriteTierInfo(const GanSession& session, size_t index, gantry_tier_info* info) {
  GANTRY_RETURN_IF_ERROR(RequireNonNull("info", info));
  const std::vector<PlannedTier>& tiers = session.plan().tiers;
  if (index >= tiers.size()) {
    return Error(GANTRY_INVALID_ARGUMENT, absl::StrFormat("the plan uses %d tiers, asked for tier %d", tiers.size(), index));
  }
  gantry_tier_info result = GANTRY_TIER_INFO_INIT;
  result.name = tiers[index].options.name.c_str();
  result.bytes = static_cast<uint64_t>(tiers[index].bytes);
  result.high_water_bytes = static_cast<uint64_t>(session.executor().tier_high_water_bytes(static_cast<int>(index)));
  result.out_bytes = static_cast<uint64_t>(tiers[index].out_bytes);
  result.in_bytes = static_cast<uint64_t>(tiers[index].in_bytes);
  return WriteStruct(info, result, "gantry_tier_info");
}

}  // namespace gantry::c_api

namespace {

absl::Status CheckRange(std::string_view name, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return Error(GANTRY_INVALID_ARGUMENT, absl::StrFormat("%s is %d; it must be %d to %d", name, value, low, high));
}

absl::Status CheckNumber(std::string_view name, double value, double low, double below) {
  if (std::isfinite(value) && value >= low && value < below) return absl::OkStatus();
  if (std::isinf(below)) {
    return Error(GANTRY_INVALID_ARGUMENT, absl::StrFormat("%s is %g; it must be at least %g and finite", name, value, low));
  }
  return Error(GANTRY_INVALID_ARGUMENT, absl::StrFormat("%s is %g; it must be in [%g, %g)", name, value, low, below));
}

absl::StatusOr<GanSessionOptions> ReadConfig(const gantry_gan_config& given) {
  const double infinity = HUGE_VAL;
  GANTRY_RETURN_IF_ERROR(CheckRange("loss", given.loss, GANTRY_LOSS_NONSATURATING, GANTRY_LOSS_RELATIVISTIC));
  GANTRY_RETURN_IF_ERROR(CheckRange("kernels", given.kernels, GANTRY_KERNELS_FAST, GANTRY_KERNELS_REFERENCE));
  GANTRY_RETURN_IF_ERROR(CheckRange("penalty_every", given.penalty_every, 1, INT32_MAX));
  GANTRY_RETURN_IF_ERROR(CheckRange("n_critic", given.n_critic, 1, 1000));
  GANTRY_RETURN_IF_ERROR(CheckRange("accumulate", given.accumulate, 1, 1000));
  GANTRY_RETURN_IF_ERROR(CheckNumber("r1", given.r1, 0, infinity));
  GANTRY_RETURN_IF_ERROR(CheckNumber("r2", given.r2, 0, infinity));
  GANTRY_RETURN_IF_ERROR(CheckNumber("gradient_penalty", given.gradient_penalty, 0, infinity));
  GANTRY_RETURN_IF_ERROR(CheckNumber("ema", given.ema, 0, 1));
  GANTRY_ASSIGN_OR_RETURN(const DataType dtype, ToDataType(given.dtype));
  if (!IsFloat(dtype)) return Error(GANTRY_INVALID_ARGUMENT, "dtype must be GANTRY_F32 or GANTRY_F64");
  GanSessionOptions options;
  options.step.loss = static_cast<GanLoss>(given.loss);
  options.step.r1 = given.r1;
  options.step.r2 = given.r2;
  options.step.gradient_penalty = given.gradient_penalty;
  options.step.penalty_every = given.penalty_every;
  options.step.n_critic = given.n_critic;
  options.step.accumulate = given.accumulate;
  options.step.ema = given.ema;
  options.step.dtype = dtype;
  options.step.parameter_gradient_norms = given.gradient_norms != 0;
  options.step.health = given.disable_health == 0;
  options.plan.kernels = given.kernels == GANTRY_KERNELS_REFERENCE ? KernelChoice::kReference : KernelChoice::kFast;
  options.plan.fuse = given.disable_fusion == 0;
  options.plan.in_place = given.disable_in_place == 0;
  options.plan.winograd = given.disable_winograd == 0;
  options.seed = given.seed;
  return options;
}

absl::StatusOr<OptimizerConfig> ReadOptimizer(const gantry_optimizer* optimizer) {
  GANTRY_ASSIGN_OR_RETURN(const gantry_optimizer given,
                          ReadStruct(optimizer, gantry_optimizer GANTRY_OPTIMIZER_INIT, "gantry_optimizer"));
  const double infinity = HUGE_VAL;
  GANTRY_RETURN_IF_ERROR(CheckRange("kind", given.kind, GANTRY_ADAM, GANTRY_SGD));
  GANTRY_RETURN_IF_ERROR(CheckNumber("learning_rate", given.learning_rate, 0, infinity));
  GANTRY_RETURN_IF_ERROR(CheckNumber("beta1", given.beta1, 0, 1));
  GANTRY_RETURN_IF_ERROR(CheckNumber("beta2", given.beta2, 0, 1));
  GANTRY_RETURN_IF_ERROR(CheckNumber("epsilon", given.epsilon, 0, infinity));
  GANTRY_RETURN_IF_ERROR(CheckNumber("momentum", given.momentum, 0, infinity));
  GANTRY_RETURN_IF_ERROR(CheckNumber("weight_decay", given.weight_decay, 0, infinity));
  GANTRY_RETURN_IF_ERROR(CheckNumber("clip_norm", given.clip_norm, 0, infinity));
  if (given.nesterov != 0 && given.momentum == 0) {
    return Error(GANTRY_INVALID_ARGUMENT, "nesterov needs a momentum above 0");
  }
  OptimizerConfig result;
  result.kind = given.kind == GANTRY_ADAM    ? OptimizerConfig::Kind::kAdam
                : given.kind == GANTRY_ADAMW ? OptimizerConfig::Kind::kAdamW
                                             : OptimizerConfig::Kind::kSgd;
  result.learning_rate = given.learning_rate;
  result.beta1 = given.beta1;
  result.beta2 = given.beta2;
  result.epsilon = given.epsilon;
  result.momentum = given.momentum;
  result.nesterov = given.nesterov != 0;
  result.weight_decay = given.weight_decay;
  result.clip_norm = given.clip_norm;
  return result;
}

absl::Status RequirePlan(const gantry_gan* gan, bool planned) {
  GANTRY_RETURN_IF_ERROR(RequireNonNull("gan", gan));
  if ((gan->session != nullptr) == planned) return absl::OkStatus();
  return Error(GANTRY_FAILED_PRECONDITION, planned ? "the session is not planned yet: call gantry_gan_plan first"
                                                   : "the session is planned: roles cannot change any more; make a new session");
}

gantry_status AddRole(gantry_gan* gan, bool generator, const char* role, const gantry_network* network, const gantry_optimizer* optimizer) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequirePlan(gan, false));
    GANTRY_RETURN_IF_ERROR(RequireNonNull("role, network", role, network));
    const std::string_view name = role;
    if (name.empty() || name.size() > 256 || !std::all_of(name.begin(), name.end(), [](unsigned char c) { return std::isalnum(c) || c == '_'; })) {
      return Error(GANTRY_INVALID_ARGUMENT, absl::StrFormat("the role name '%s' must be of letters, digits and '_'", name));
    }
    if (name == "ema" || name == "gradient_norm") {
      return Error(GANTRY_INVALID_ARGUMENT, absl::StrFormat("'%s' cannot be a role's name: tensors and scalars begin with it", name));
    }
    for (const std::vector<GanRole>* roles : {&gan->generators, &gan->discriminators}) {
      for (const GanRole& other : *roles) {
        if (other.name == name) return Error(GANTRY_INVALID_ARGUMENT, absl::StrFormat("there is already a role '%s'", name));
      }
    }
    if (network->model.program.outputs().empty()) {
      return Error(GANTRY_INVALID_ARGUMENT, absl::StrFormat("the network of '%s' has no output: call gantry_network_set_output", name));
    }
    absl::StatusOr<OptimizerConfig> read = ReadOptimizer(optimizer);
    if (!read.ok()) return WithContext(read.status(), absl::StrFormat("optimizer of '%s'", name));
    (generator ? gan->generators : gan->discriminators).push_back(GanRole{std::string(name), network->model, *read});
    return absl::OkStatus();
  });
}

// The session as planned; an error that comes of a lost rank says so.
absl::StatusOr<std::unique_ptr<GanSession>> Created(gantry_gan& gan, GanSessionOptions options) {
  options.ranks = gan.context->ranks.get();
  auto session = GanSession::Create(options, gan.generators, gan.discriminators, *gan.context->device);
  if (!session.ok()) return gan.context->FromRanks(session.status());
  for (const std::string& line : (*session)->DescribeRanks()) gan.context->Log(GANTRY_LOG_INFO, line);
  for (const std::string& fallback : NotedFallbacks()) gan.context->Log(GANTRY_LOG_WARNING, fallback);
  return session;
}

}  // namespace

extern "C" {

gantry_status gantry_gan_create(gantry_context* context, const gantry_gan_config* config, gantry_gan** gan) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("context, gan", context, gan));
    GANTRY_ASSIGN_OR_RETURN(const gantry_gan_config given,
                            ReadStruct(config, gantry_gan_config GANTRY_GAN_CONFIG_INIT, "gantry_gan_config"));
    auto made = std::make_unique<gantry_gan>();
    made->context = context->shared;
    GANTRY_ASSIGN_OR_RETURN(made->options, ReadConfig(given));
    made->options.plan.thread_count = context->shared->device->thread_count();
    *gan = made.release();
    return absl::OkStatus();
  });
}

void gantry_gan_destroy(gantry_gan* gan) {
  if (gan != nullptr) gan->session.reset();
  delete gan;
}

gantry_status gantry_gan_add_generator(gantry_gan* gan, const char* role, const gantry_network* network, const gantry_optimizer* optimizer) {
  return AddRole(gan, true, role, network, optimizer);
}

gantry_status gantry_gan_add_discriminator(gantry_gan* gan, const char* role, const gantry_network* network,
                                           const gantry_optimizer* optimizer) {
  return AddRole(gan, false, role, network, optimizer);
}

gantry_status gantry_gan_plan(gantry_gan* gan, gantry_plan_info* info) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequirePlan(gan, false));
    if (info != nullptr) GANTRY_RETURN_IF_ERROR(CheckStruct(info, info->struct_size, sizeof(*info), "gantry_plan_info"));
    if (gan->generators.empty() || gan->discriminators.empty()) {
      return Error(GANTRY_INVALID_ARGUMENT, "a session needs at least one generator and one discriminator");
    }
    GanSessionOptions options = gan->options;
    absl::StatusOr<std::shared_ptr<const Machine>> machine = FindMachine(gan->machine);
    if (!machine.ok()) return FromFile(machine.status());
    SetMachine(*std::move(machine), options.plan);
    GANTRY_ASSIGN_OR_RETURN(std::unique_ptr<GanSession> session, Created(*gan, std::move(options)));
    gan->scalar_names = session->ScalarNames();
    gan->state_names = session->StateNames();
    gan->session = std::move(session);
    gan->generators.clear();
    gan->discriminators.clear();
    const Plan& plan = gan->session->plan();
    const gantry_plan_info result = PlanInfo(plan);
    if (gan->options.plan.kernels == KernelChoice::kFast && gan->options.step.dtype == DataType::kF32) {
      if (const std::string message = FallbackMessage(plan); !message.empty()) gan->context->Log(GANTRY_LOG_WARNING, message);
    }
    gan->context->Log(GANTRY_LOG_INFO, absl::StrFormat("planned %d ops in an arena of %d bytes, lower bound %d", result.op_count,
                                                       result.arena_bytes, result.lower_bound_bytes));
    return info == nullptr ? absl::OkStatus() : WriteStruct(info, result, "gantry_plan_info");
  });
}

gantry_status gantry_gan_set_memory(gantry_gan* gan, const gantry_memory* memory) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequirePlan(gan, false));
    GANTRY_ASSIGN_OR_RETURN(const gantry_memory given, ReadStruct(memory, gantry_memory GANTRY_MEMORY_INIT, "gantry_memory"));
    MemoryOptions options;
    options.device = Text(given.device);
    if (!Text(given.offload).empty()) options.offload = given.offload;
    options.host = Text(given.host);
    options.file = Text(given.file);
    options.directory = Text(given.directory);
    options.link = Text(given.link);
    options.recompute = given.disable_recompute == 0;
    options.encode = given.disable_encode == 0;
    options.checksums = given.checksums != 0;
    if (!Text(given.stash).empty()) options.stash = given.stash;
    GANTRY_RETURN_IF_ERROR(SetMemory(options, gan->options.plan));
    gan->machine = Text(given.machine);
    return absl::OkStatus();
  });
}

gantry_status gantry_gan_set_parallel(gantry_gan* gan, const char* split) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequirePlan(gan, false));
    GANTRY_ASSIGN_OR_RETURN(Parallel parallel, Parallel::Parse(Text(split)));
    parallel.exchanges = gan->options.parallel.exchanges;
    parallel.across_steps = gan->options.parallel.across_steps;
    gan->options.parallel = std::move(parallel);
    return absl::OkStatus();
  });
}

gantry_status gantry_gan_set_exchange(gantry_gan* gan, const char* overlap, const char* link) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequirePlan(gan, false));
    ExchangeOptions options{.link = std::string(Text(link))};
    if (!Text(overlap).empty()) options.overlap = Text(overlap);
    GANTRY_ASSIGN_OR_RETURN(const ExchangeSettings settings, SetExchanges(options, gan->options.plan));
    gan->options.parallel.exchanges.bucket_bytes = settings.bucket_bytes;
    gan->options.parallel.across_steps = settings.across;
    return absl::OkStatus();
  });
}

gantry_status gantry_gan_tier(const gantry_gan* gan, size_t index, gantry_tier_info* info) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequirePlan(gan, true));
    return WriteTierInfo(*gan->session, index, info);
  });
}

gantry_status gantry_gan_write_plan(gantry_gan* gan, const char* path) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequirePlan(gan, true));
    GANTRY_RETURN_IF_ERROR(RequireNonNull("path", path));
    return WritePlan(path, gan->session->plan());
  });
}

gantry_status gantry_gan_use_plan(gantry_gan* gan, const char* path) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequirePlan(gan, false));
    GANTRY_RETURN_IF_ERROR(RequireNonNull("path", path));
    gan->options.plan_file = path;
    return absl::OkStatus();
  });
}

gantry_status gantry_gan_plan_text(gantry_gan* gan, const char** text) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequirePlan(gan, true));
    GANTRY_RETURN_IF_ERROR(RequireNonNull("text", text));
    gan->text = Describe(gan->session->plan());
    *text = gan->text.c_str();
    return absl::OkStatus();
  });
}

gantry_status gantry_gan_program_text(gantry_gan* gan, int32_t executed, const char** text) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequireNonNull("gan, text", gan, text));
    if (executed != 0) {
      GANTRY_RETURN_IF_ERROR(RequirePlan(gan, true));
      gan->text = gan->session->executor().program().Dump();
    } else {
      const std::span<const GanRole> generators = gan->session ? gan->session->generators() : std::span<const GanRole>(gan->generators);
      const std::span<const GanRole> discriminators =
          gan->session ? gan->session->discriminators() : std::span<const GanRole>(gan->discriminators);
      if (generators.empty() || discriminators.empty()) {
        return Error(GANTRY_FAILED_PRECONDITION, "a step needs at least one generator and one discriminator");
      }
      GANTRY_ASSIGN_OR_RETURN(const Program program, BuildGanStep(gan->options.step, generators, discriminators));
      gan->text = program.Dump();
    }
    *text = gan->text.c_str();
    return absl::OkStatus();
  });
}

uint64_t gantry_gan_high_water_bytes(const gantry_gan* gan) {
  return gan == nullptr || gan->session == nullptr ? 0 : static_cast<uint64_t>(gan->session->high_water_bytes());
}

gantry_status gantry_gan_sizes(const gantry_gan* gan, gantry_step_sizes* sizes) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequirePlan(gan, true));
    GANTRY_RETURN_IF_ERROR(RequireNonNull("sizes", sizes));
    const GanSession& session = *gan->session;
    gantry_step_sizes result = GANTRY_STEP_SIZES_INIT;
    result.real_elements = static_cast<uint64_t>(session.real_elements() * session.draws_per_step());
    result.noise_elements = static_cast<uint64_t>(session.noise_elements() * session.draws_per_step());
    if (gan->options.step.gradient_penalty > 0) {
      result.mix_elements = static_cast<uint64_t>(session.batch_size() * session.draws_per_step());
    }
    result.batch_size = session.batch_size();
    result.images_per_step = session.images_per_step();
    const std::vector<int64_t>& dims = session.sample_shape().dims();
    result.sample_rank = static_cast<int64_t>(std::min<size_t>(dims.size(), 8));
    std::copy_n(dims.begin(), result.sample_rank, result.sample_dims);
    return WriteStruct(sizes, result, "gantry_step_sizes");
  });
}

gantry_status gantry_gan_step(gantry_gan* gan, const gantry_batch* batch) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequirePlan(gan, true));
    GANTRY_RETURN_IF_ERROR(RequireNonNull("batch", batch));
    GANTRY_ASSIGN_OR_RETURN(const gantry_batch given, ReadStruct(batch, gantry_batch GANTRY_BATCH_INIT, "gantry_batch"));
    if (gan->stopped) {
      return Error(GANTRY_FAILED_PRECONDITION, "a step before this one ended with a NaN or infinity, or with a tier that failed: resume from a good checkpoint first");
    }
    GanBatch values;
    if (given.real != nullptr) values.real = {given.real, given.real_count};
    if (given.noise != nullptr) values.noise = {given.noise, given.noise_count};
    if (given.mix != nullptr) values.mix = {given.mix, given.mix_count};
    const absl::Status status = gan->session->Step(values);
    // Wrong counts are found before anything runs; what else fails leaves states half changed.
    gan->stopped = !status.ok() && !absl::IsInvalidArgument(status);
    return absl::IsDataLoss(status) ? WithCode(status, GANTRY_NOT_FINITE) : status;
  });
}

int64_t gantry_gan_step_count(const gantry_gan* gan) {
  return gan == nullptr || gan->session == nullptr ? 0 : gan->session->progress().steps;
}

gantry_status gantry_gan_set_learning_rate(gantry_gan* gan, const char* role, double learning_rate) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequirePlan(gan, true));
    GANTRY_RETURN_IF_ERROR(RequireNonNull("role", role));
    return gan->session->SetLearningRate(role, learning_rate);
  });
}

gantry_status gantry_gan_read_scalar(const gantry_gan* gan, const char* name, double* value) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequirePlan(gan, true));
    GANTRY_RETURN_IF_ERROR(RequireNonNull("name, value", name, value));
    GANTRY_ASSIGN_OR_RETURN(*value, gan->session->Scalar(name));
    return absl::OkStatus();
  });
}

size_t gantry_gan_scalar_count(const gantry_gan* gan) { return gan == nullptr ? 0 : gan->scalar_names.size(); }
const char* gantry_gan_scalar_name(const gantry_gan* gan, size_t index) {
  return gan == nullptr || index >= gan->scalar_names.size() ? nullptr : gan->scalar_names[index].c_str();
}

size_t gantry_gan_state_count(const gantry_gan* gan) { return gan == nullptr ? 0 : gan->state_names.size(); }

gantry_status gantry_gan_state_get(const gantry_gan* gan, size_t index, gantry_state_info* info) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequirePlan(gan, true));
    GANTRY_RETURN_IF_ERROR(RequireNonNull("info", info));
    const std::span<const GanSession::SessionState> states = gan->session->states();
    if (index >= states.size()) {
      return Error(GANTRY_INVALID_ARGUMENT, absl::StrFormat("the session has %d states, asked for %d", states.size(), index));
    }
    const GanSession::SessionState& state = states[index];
    const TensorType& type = state.type;
    gantry_state_info result = GANTRY_STATE_INFO_INIT;
    result.name = state.name.c_str();
    result.role = state.network.c_str();
    switch (state.role) {
      case StateRole::kParameter: result.kind = GANTRY_STATE_PARAMETER; break;
      case StateRole::kStatistic: result.kind = GANTRY_STATE_STATISTIC; break;
      case StateRole::kMoment: result.kind = GANTRY_STATE_MOMENT; break;
      case StateRole::kAverage: result.kind = GANTRY_STATE_AVERAGE; break;
    }
    result.dtype = FromDataType(type.dtype);
    result.rank = type.shape.dims().size();
    result.dims = type.shape.dims().data();
    result.element_count = static_cast<size_t>(type.element_count());
    return WriteStruct(info, result, "gantry_state_info");
  });
}

gantry_status gantry_gan_read_state(const gantry_gan* gan, const char* name, double* to, size_t count) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequirePlan(gan, true));
    GANTRY_RETURN_IF_ERROR(RequireNonNull("name, to", name, to));
    const absl::Status status = gan->session->ReadState(name, {to, count});
    if (!absl::IsNotFound(status)) return status;
    return absl::NotFoundError(absl::StrCat(status.message(), NearestName(name, gan->state_names)));
  });
}

gantry_status gantry_gan_write_state(gantry_gan* gan, const char* name, const double* from, size_t count) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequirePlan(gan, true));
    GANTRY_RETURN_IF_ERROR(RequireNonNull("name, from", name, from));
    const absl::Status status = gan->session->WriteState(name, {from, count});
    if (!absl::IsNotFound(status)) return status;
    return absl::NotFoundError(absl::StrCat(status.message(), NearestName(name, gan->state_names)));
  });
}

gantry_status gantry_gan_sample(gantry_gan* gan, int64_t count, uint64_t noise_seed, int32_t use_average, float* to, size_t sample_count) {
  return Call([&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(RequirePlan(gan, true));
    GANTRY_RETURN_IF_ERROR(RequireNonNull("to", to));
    const int64_t one = gan->session->real_elements() / gan->session->batch_size();
    if (count < 1 || static_cast<uint64_t>(count) > sample_count || static_cast<uint64_t>(count) * one != sample_count) {
      return Error(GANTRY_INVALID_ARGUMENT, absl::StrFormat("%d samples of %d elements do not fill a buffer of %d", count, one, sample_count));
    }
    GANTRY_ASSIGN_OR_RETURN(const std::vector<float> samples, gan->session->Sample(count, noise_seed, use_average != 0));
    if (samples.size() != sample_count) return absl::InternalError("the sampler gave another number of elements");
    std::copy(samples.begin(), samples.end(), to);
    return absl::OkStatus();
  });
}

}  // extern "C"
