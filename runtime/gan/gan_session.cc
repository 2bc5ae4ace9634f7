#include "runtime/gan/gan_session.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <utility>

#include "absl/strings/str_join.h"
#include "memory/hash.h"
#include "runtime/gan/fill_random.h"
#include "runtime/gan/plan_files.h"
#include "runtime/partition/defer_tail.h"
#include "runtime/plan/memory_options.h"
#include "runtime/plan/verify_ranks.h"
#include "runtime/simulate/plan_ranks.h"

namespace gantry {
namespace {

// Calls `function` with a pointer of the right float type.
template <typename Function>
void WithFloats(DataType type, void* data, Function function) {
  if (type == DataType::kF64) {
    function(static_cast<double*>(data));
  } else {
    function(static_cast<float*>(data));
  }
}

absl::Status InitializeState(const std::string& name, const Initializer& init, const TensorType& type, uint64_t seed, void* data) {
  const int64_t count = type.element_count();
  if (init.kind == Initializer::Kind::kData && static_cast<int64_t>(init.data.size()) != count) {
    return absl::InvalidArgumentError(absl::StrFormat("state '%s' is %s, its initial data has %d elements", name,
                                                      type.ToString(), init.data.size()));
  }
  // Drawn by name, so that the order of states does not matter.
  const uint64_t key = seed ^ HashText(name);
  WithFloats(type.dtype, data, [&](auto* to) {
    switch (init.kind) {
      case Initializer::Kind::kConstant: std::fill(to, to + count, init.a); break;
      case Initializer::Kind::kNormal: FillNormal(key, 0, 0, init.a, init.b, to, count); break;
      case Initializer::Kind::kUniform: FillUniform(key, 0, 0, init.a, init.b, to, count); break;
      case Initializer::Kind::kData: std::copy(init.data.begin(), init.data.end(), to); break;
      case Initializer::Kind::kCopy: break;  // once all others are made
    }
  });
  return absl::OkStatus();
}

// The part of `whole` (row-major) at `begins` with the extents of `part`.
template <typename T>
void TakePart(const T* from, const Shape& whole, const std::vector<int64_t>& begins, const Shape& part, T* to) {
  const int rank = part.rank();
  if (part.element_count() == 0) return;
  const std::vector<int64_t> strides = whole.Strides();
  const int64_t row = part[rank - 1];
  std::vector<int64_t> place(rank, 0);
  for (int64_t rows = part.element_count() / row; rows > 0; --rows) {
    const T* source = from;
    for (int axis = 0; axis < rank; ++axis) source += (begins[axis] + place[axis]) * strides[axis];
    to = std::copy(source, source + row, to);
    for (int axis = rank - 2; axis >= 0 && ++place[axis] == part[axis]; --axis) place[axis] = 0;
  }
}

// "a.b.c" split at the dots.
std::vector<std::string_view> Parts(std::string_view name) {
  std::vector<std::string_view> parts;
  for (size_t begin = 0; begin <= name.size();) {
    const size_t end = std::min(name.find('.', begin), name.size());
    parts.push_back(name.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

}  // namespace

namespace {

// What each rank of the group gives, so that it can give so many bytes of something.
absl::StatusOr<std::vector<int64_t>> GatherSizes(Communicator& group, int64_t mine, std::string_view name) {
  std::vector<int64_t> sizes(group.size());
  const std::vector<int64_t> of_counts(sizes.size(), sizeof(int64_t));
  GANTRY_RETURN_IF_ERROR(group.AllGather(&mine, sizes.data(), of_counts, {.name = name}).Wait());
  return sizes;
}

}  // namespace

absl::StatusOr<std::unique_ptr<GanSession>> GanSession::Create(const GanSessionOptions& options,
                                                               std::vector<GanRole> generators,
                                                               std::vector<GanRole> discriminators, Device& device) {
  std::unique_ptr<GanSession> session(new GanSession());
  session->options_ = options;
  if (session->options_.plan.thread_count <= 0) session->options_.plan.thread_count = device.thread_count();
  session->generators_ = std::move(generators);
  session->discriminators_ = std::move(discriminators);
  session->device_ = &device;
  GANTRY_ASSIGN_OR_RETURN(const Program program,
                          BuildGanStep(session->options_.step, session->generators_, session->discriminators_));
  absl::Status planned = session->PlanAndReserve(program);
  const bool agreed = planned.GetPayload(kAgreedPayload).has_value();
  if (options.ranks != nullptr && !agreed) planned = options.ranks->Agree(planned);
  GANTRY_RETURN_IF_ERROR(planned);
  GANTRY_RETURN_IF_ERROR(session->Connect());
  GANTRY_RETURN_IF_ERROR(session->CollectStates(program));
  GANTRY_RETURN_IF_ERROR(session->BindInputs());
  session->FindTail();
  GANTRY_RETURN_IF_ERROR(session->Initialize());
  session->whole_ = true;
  return session;
}

GanSession::~GanSession() {
  if (loans_ == nullptr || fabric_ == nullptr) return;
  executor_->EndCopies();
  if (whole_) loans_->Leave(*fabric_);
}

absl::Status GanSession::ChooseSplit(const Program& program) {
  Parallel& parallel = options_.parallel;
  SetSpeeds(options_.plan, rank_count(), parallel);
  const bool shares_are_open = AreUnequal(options_.plan, ShareBy::kSpeed) && parallel.shares.empty() && TakesShares(parallel, rank_count());
  if (!parallel.automatic && !shares_are_open) return absl::OkStatus();
  const auto Choose = [&]() -> absl::StatusOr<std::string> {
    if (!options_.plan_file.empty()) return PlannedSplit(options_.plan_file, rank());
    if (!parallel.automatic) {
      // Each rank says by itself whether its part fits.
      GANTRY_ASSIGN_OR_RETURN(const JobPlan job, PlanBalanced(program, parallel, rank_count(), WithoutBudgets(options_.plan), ShareBy::kSpeed));
      return job.parallel.Text();
    }
    GANTRY_ASSIGN_OR_RETURN(const SplitSearch search, SearchSplits(program, parallel, rank_count(), options_.plan));
    if (search.taken < 0) return absl::ResourceExhaustedError(absl::StrCat("no split of the step fits:\n", gantry::Describe(search)));
    return search.candidates[static_cast<size_t>(search.taken)].parallel.Text();
  };
  GANTRY_ASSIGN_OR_RETURN(const std::string text, options_.ranks->FromFirst(rank() == 0 ? Choose() : absl::StatusOr<std::string>("")));
  GANTRY_ASSIGN_OR_RETURN(const Parallel chosen, Parallel::Parse(text));
  parallel.automatic = false;
  parallel.batch = chosen.batch;
  parallel.space = chosen.space;
  parallel.channel = chosen.channel;
  parallel.shard = chosen.shard;
  parallel.roles = chosen.roles;
  parallel.pipeline = chosen.pipeline;
  parallel.stages = chosen.stages;
  parallel.batch_ranks = chosen.batch_ranks;
  parallel.shares = chosen.shares;
  parallel.across_steps = parallel.across_steps && !chosen.by_homes();
  return absl::OkStatus();
}

absl::Status GanSession::PlanAndReserve(const Program& program) {
  RankProgram mine{.program = program};
  if (options_.ranks != nullptr) {
    exchanges_ = std::make_unique<ExchangeKernels>();
    options_.plan.exchanges = exchanges_.get();
    options_.plan.ranks_of_machine = options_.ranks->RanksOfMachine();
    Parallel& parallel = options_.parallel;
    for (const GanRole& role : generators_) parallel.generators.push_back(role.name);
    GANTRY_RETURN_IF_ERROR(ChooseSplit(program));
    SetOrder(parallel, options_.plan);
    GANTRY_ASSIGN_OR_RETURN(mine, PartitionFor(program, parallel, rank(), rank_count()));
    // The same groups in the same order on all ranks, whatever each of them exchanges.
    for (const std::vector<int>& group : GroupsOf(parallel, rank(), rank_count())) {
      exchanges_->Require(group);
      for (const PlanLane lane : kExchangeLanes) exchanges_->Require(group, lane);
    }
  }
  input_parts_ = std::move(mine.input_parts);
  GANTRY_RETURN_IF_ERROR(TakeRankMemory(rank(), rank_count(), options_.plan));
  if (options_.ranks != nullptr && MayBorrow(options_.plan)) loans_ = std::make_unique<SessionLoans>(*options_.ranks);
  GANTRY_ASSIGN_OR_RETURN(Plan plan, MakePlan(mine.program));
  if (options_.ranks != nullptr) plan.origin.parallel = options_.parallel.TextOrBatch();
  if (loans_ == nullptr) {
    GANTRY_ASSIGN_OR_RETURN(executor_, Executor::Create(std::move(plan), *device_));
    return absl::OkStatus();
  }
  GANTRY_RETURN_IF_ERROR(loans_->ReserveHost(plan));
  GANTRY_ASSIGN_OR_RETURN(executor_, Executor::Create(std::move(plan), *device_, [this](const TierOptions& options, int64_t bytes) {
                            return loans_->ReserveTier(options, bytes);
                          }));
  return absl::OkStatus();
}

absl::StatusOr<Plan> GanSession::MakePlan(const Program& program) {
  if (!options_.plan_file.empty()) return ReadPlan(options_.plan_file, rank(), program, options_.plan);
  return loans_ == nullptr ? gantry::MakePlan(program, options_.plan) : loans_->MakePlan(program, options_.plan);
}

absl::Status GanSession::Connect() {
  if (options_.ranks == nullptr) return absl::OkStatus();
  gathered_bytes_.resize(static_cast<size_t>(rank_count()));
  const Slab& arena = executor_->arena();
  std::vector<PoolRegion> mine = {{.name = "arena", .data = arena.data(), .bytes = arena.size_bytes(), .descriptor = arena.descriptor()}};
  if (loans_ != nullptr) mine.push_back(loans_->HostRegion());
  GANTRY_ASSIGN_OR_RETURN(fabric_, Fabric::Open(options_.ranks->links(), options_.ranks->liveness(), mine, {}));
  GANTRY_RETURN_IF_ERROR(VerifyExchanges());
  if (loans_ != nullptr) GANTRY_RETURN_IF_ERROR(loans_->Connect(*fabric_, plan()));
  return exchanges_->Connect(fabric_->world());
}

absl::Status GanSession::VerifyExchanges() {
  Communicator& world = fabric_->world();
  const std::string mine = ToText(TraceOf(plan()));
  GANTRY_ASSIGN_OR_RETURN(const std::vector<int64_t> bytes, GatherSizes(world, static_cast<int64_t>(mine.size()), "plans"));
  std::string all(static_cast<size_t>(std::accumulate(bytes.begin(), bytes.end(), int64_t{0})), '\0');
  GANTRY_RETURN_IF_ERROR(world.AllGather(mine.data(), all.data(), bytes, {.name = "plans"}).Wait());
  std::vector<RankTrace> traces;
  size_t begin = 0;
  for (const int64_t count : bytes) {
    GANTRY_ASSIGN_OR_RETURN(traces.emplace_back(), TraceFromText(std::string_view(all).substr(begin, static_cast<size_t>(count))));
    begin += static_cast<size_t>(count);
  }
  return Annotate(VerifyRanks(traces), "the plans of the ranks do not fit together");
}

absl::StatusOr<double> GanSession::AgreeOn(double mine) {
  if (fabric_ == nullptr) return mine;
  GANTRY_RETURN_IF_ERROR(fabric_->world().AllReduce(&mine, 1, ElementType::kF64, ReduceOp::kMax, {.name = "agreement"}).Wait());
  return mine;
}

absl::StatusOr<std::vector<double>> GanSession::GatherNumbers(double mine) {
  std::vector<double> all(static_cast<size_t>(rank_count()));
  GANTRY_RETURN_IF_ERROR(GatherNumbers(std::span(&mine, 1), all));
  return all;
}

absl::Status GanSession::GatherNumbers(std::span<const double> mine, std::span<double> all) {
  if (fabric_ == nullptr) {
    std::copy(mine.begin(), mine.end(), all.begin());
    return absl::OkStatus();
  }
  std::fill(gathered_bytes_.begin(), gathered_bytes_.end(), static_cast<int64_t>(mine.size_bytes()));
  return fabric_->world().AllGather(mine.data(), all.data(), gathered_bytes_, {.name = "numbers of all ranks"}).Wait();
}

double GanSession::exchange_seconds() const {
  double seconds = 0.0;
  for (const ExposedWait& wait : executor_->exposed()) seconds += wait.kind == "copies" ? 0.0 : wait.seconds;
  return seconds;
}

std::vector<std::string> GanSession::DescribeRanks() const { return fabric_ == nullptr ? std::vector<std::string>() : fabric_->Describe(); }

const Shape& GanSession::sample_shape() const {
  const Program& program = generators_[0].model.program;
  return program.TypeOf(program.outputs()[0].value).shape;
}
int64_t GanSession::real_elements() const { return sample_shape().element_count(); }
int64_t GanSession::high_water_bytes() const {
  return std::max(executor_->high_water_bytes(), loans_ == nullptr ? 0 : loans_->device_high_water_bytes());
}
int64_t GanSession::batch_size() const { return sample_shape()[0]; }

int64_t GanSession::noise_elements() const {
  int64_t count = 0;
  for (const GanRole& generator : generators_) {
    for (ValueId input : generator.model.program.inputs()) {
      const Value& value = generator.model.program.values()[input];
      if (value.name != kRandomState) count += value.type.element_count();
    }
  }
  return count;
}

absl::Status GanSession::BindInputs() {
  const Program& program = executor_->program();
  for (std::span<const GanRole> roles : {std::span<const GanRole>(discriminators_), std::span<const GanRole>(generators_)}) {
    for (const GanRole& role : roles) {
      role_names_.push_back(role.name);
      learning_rates_.push_back(role.optimizer.learning_rate);
      updates_per_step_.push_back(roles.data() == discriminators_.data() ? options_.step.n_critic : 1);
    }
  }
  const auto RoleOf = [&](std::string_view name) {
    return static_cast<int>(std::find(role_names_.begin(), role_names_.end(), name) - role_names_.begin());
  };
  // Noise tensors of one slot lie behind one another in the order of the program's inputs.
  std::vector<int64_t> noise_filled(draws_per_step(), 0);
  std::vector<int64_t> noise_count(draws_per_step(), 0);
  for (ValueId input : program.inputs()) {
    const Value& value = program.values()[input];
    BoundInput bound{BoundInput::Kind::kReal, input};
    bound.whole = value.type.shape;
    for (const InputPart& part : input_parts_) {
      if (part.name != value.name) continue;
      bound.in_part = true;
      bound.whole = part.whole;
      bound.begins = part.begins;
      whole_input_.resize(std::max<size_t>(whole_input_.size(), part.whole.element_count()));
    }
    const std::string_view name = value.name;
    if (name == kTailFlag) {
      bound.kind = BoundInput::Kind::kTail;
    } else if (name == kRandomState) {
      bound.kind = BoundInput::Kind::kRandomState;
    } else if (name == "penalty") {
      bound.kind = BoundInput::Kind::kPenalty;
    } else if (name.ends_with(".learning_rate") || name.ends_with(".updates")) {
      bound.kind = name.ends_with(".updates") ? BoundInput::Kind::kUpdates : BoundInput::Kind::kLearningRate;
      bound.role = RoleOf(name.substr(0, name.rfind('.')));
    } else {
      const std::vector<std::string_view> parts = Parts(name);
      // real.<d>.<m>, mix.<d>.<m>, noise.<d>.<m>[.<name>] or noise.<generator>.<d>.<m>[.<name>]
      const size_t first = parts[0] == "noise" && generators_.size() > 1 ? 2 : 1;
      bound.slot = std::stoll(std::string(parts[first])) * options_.step.accumulate + std::stoll(std::string(parts[first + 1]));
      if (parts[0] == "noise") {
        bound.kind = BoundInput::Kind::kNoise;
        bound.offset = noise_filled[bound.slot];
        bound.stream = kNoiseStream + bound.slot * 64 + noise_count[bound.slot]++;
        noise_filled[bound.slot] += bound.whole.element_count();
      } else if (parts[0] == "mix") {
        bound.kind = BoundInput::Kind::kMix;
        bound.stream = kMixStream + bound.slot;
      }
    }
    if (executor_->Data(input).empty()) continue;  // nobody reads it
    inputs_.push_back(bound);
  }
  return absl::OkStatus();
}

absl::Status GanSession::CollectStates(const Program& program) {
  for (const State& state : program.states()) {
    SessionState collected{.name = state.name, .network = state.network, .role = state.role, .type = program.TypeOf(state.first),
                           .initializer = state.initializer};
    for (const State& piece : executor_->program().states()) {
      if ((piece.whole.empty() ? piece.name : piece.whole) == state.name) collected.pieces.push_back(&piece);
    }
    int64_t held = 0;
    for (const State* piece : collected.pieces) held += executor_->program().TypeOf(piece->first).element_count();
    // With roles, one half of the ranks has nothing of it; with a pipeline all stages but one.
    const Parallel& parallel = options_.parallel;
    const bool of_a_role = options_.ranks != nullptr && (parallel.pipeline || (parallel.roles && !state.network.empty()));
    collected.in_parts = of_a_role || held < collected.type.element_count();
    if (collected.pieces.empty() && !of_a_role) return absl::InternalError(absl::StrFormat("the plan has no state '%s'", state.name));
    states_.push_back(std::move(collected));
  }
  return absl::OkStatus();
}

const GanSession::SessionState* GanSession::Find(std::string_view name) const {
  for (const SessionState& state : states_) {
    if (state.name == name) return &state;
  }
  return nullptr;
}

absl::Status GanSession::Initialize() {
  std::vector<std::byte> content;
  for (const bool copies : {false, true}) {
    for (const SessionState& state : states_) {
      if (copies != (state.initializer.kind == Initializer::Kind::kCopy)) continue;
      content.resize(state.type.size_bytes());
      if (copies) {
        GANTRY_RETURN_IF_ERROR(Annotate(CopyStateOut(state.initializer.source, content), state.name));
      } else {
        GANTRY_RETURN_IF_ERROR(InitializeState(state.name, state.initializer, state.type, options_.seed, content.data()));
      }
      GANTRY_RETURN_IF_ERROR(CopyStateIn(state.name, content));
    }
  }
  return absl::OkStatus();
}

absl::Status GanSession::SetLearningRate(std::string_view role, double rate) {
  for (size_t i = 0; i < role_names_.size(); ++i) {
    if (role_names_[i] != role) continue;
    if (!std::isfinite(rate) || rate < 0) {
      return absl::InvalidArgumentError(absl::StrFormat("the learning rate of '%s' must be finite and >= 0, got %g", role, rate));
    }
    learning_rates_[i] = rate;
    return absl::OkStatus();
  }
  return absl::NotFoundError(absl::StrFormat("there is no role '%s'; roles are %s", role, absl::StrJoin(role_names_, ", ")));
}

void GanSession::FillInputs(const GanBatch& batch) {
  const Program& program = executor_->program();
  for (const BoundInput& input : inputs_) {
    const TensorType& type = program.TypeOf(input.value);
    const int64_t count = type.element_count();
    void* const data = executor_->Data(input.value).data();
    if (input.kind == BoundInput::Kind::kRandomState) {
      const int64_t state[2] = {static_cast<int64_t>(options_.seed), progress_.steps};
      std::memcpy(data, state, sizeof(state));
      continue;
    }
    if (input.in_part) {
      // Of what all ranks read or draw, this rank's part.
      WithFloats(type.dtype, whole_input_.data(), [&]<typename T>(T* whole) {
        FillWhole(input, batch, whole, input.whole.element_count());
        TakePart(whole, input.whole, input.begins, type.shape, static_cast<T*>(data));
      });
      continue;
    }
    WithFloats(type.dtype, data, [&](auto* to) { FillWhole(input, batch, to, count); });
  }
}

template <typename T>
void GanSession::FillWhole(const BoundInput& input, const GanBatch& batch, T* to, int64_t count) {
  switch (input.kind) {
    case BoundInput::Kind::kReal: {
      const float* from = batch.real.data() + input.slot * real_elements();
      std::copy(from, from + count, to);
      break;
    }
    case BoundInput::Kind::kNoise:
      if (batch.noise.empty()) {
        FillNormal(options_.seed, progress_.steps, input.stream, 0.0, 1.0, to, count);
      } else {
        const float* from = batch.noise.data() + input.slot * noise_elements() + input.offset;
        std::copy(from, from + count, to);
      }
      break;
    case BoundInput::Kind::kMix:
      if (batch.mix.empty()) {
        FillUniform(options_.seed, progress_.steps, input.stream, 0.0, 1.0, to, count);
      } else {
        const float* from = batch.mix.data() + input.slot * count;
        std::copy(from, from + count, to);
      }
      break;
    case BoundInput::Kind::kLearningRate: *to = learning_rates_[input.role]; break;
    case BoundInput::Kind::kUpdates: *to = static_cast<double>(progress_.steps * updates_per_step_[input.role]); break;
    case BoundInput::Kind::kPenalty: *to = progress_.steps % options_.step.penalty_every == 0 ? 1.0 : 0.0; break;
    case BoundInput::Kind::kTail: *to = has_tail_ ? 1.0 : 0.0; break;
    case BoundInput::Kind::kRandomState: break;
  }
}

absl::Status GanSession::Step(const GanBatch& batch) {
  const auto Check = [](std::string_view what, size_t got, int64_t want, bool optional) -> absl::Status {
    if ((optional && got == 0) || static_cast<int64_t>(got) == want) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrFormat("a step takes %d elements of '%s', got %d", want, what, got));
  };
  GANTRY_RETURN_IF_ERROR(tail_failure_);
  GANTRY_RETURN_IF_ERROR(Check("real", batch.real.size(), real_elements() * draws_per_step(), false));
  GANTRY_RETURN_IF_ERROR(Check("noise", batch.noise.size(), noise_elements() * draws_per_step(), true));
  GANTRY_RETURN_IF_ERROR(Check("mix", batch.mix.size(), batch_size() * draws_per_step(), true));
  FillInputs(batch);
  whole_ = false;
  absl::Status status = executor_->Run();
  has_tail_ = false;  // it has run, and must not run again where the step is looked at once more
  if (absl::IsDataLoss(status)) {
    FillInputs(batch);
    return absl::DataLossError(absl::StrFormat("step %d: %s; the first NaN or infinity is in %s", progress_.steps + 1,
                                               Message(status), executor_->FindFirstNonFinite()));
  }
  if (status.ok() && loans_ != nullptr) status = loans_->Measure(*executor_);
  if (!status.ok()) return Annotate(status, absl::StrFormat("step %d", progress_.steps + 1));
  whole_ = true;
  has_tail_ = tail_flag_ != kNoValue;
  ++progress_.steps;
  progress_.images_seen += images_per_step();
  return absl::OkStatus();
}

void GanSession::FindTail() {
  const Program& program = executor_->program();
  tail_flag_ = program.FindInput(kTailFlag);
  if (tail_flag_ == kNoValue) return;
  for (const NamedValue& output : program.outputs()) {
    const OpId maker = program.values()[output.value].producer;
    if (maker >= 0 && program.ops()[maker].condition == tail_flag_) tail_scalars_.push_back(output.name);
  }
}

bool GanSession::IsOfTail(std::string_view scalar) const {
  return std::find(tail_scalars_.begin(), tail_scalars_.end(), scalar) != tail_scalars_.end();
}

absl::Status GanSession::EndTail() const {
  if (!std::exchange(has_tail_, false)) return tail_failure_;
  const float one = 1.0F;
  std::memcpy(executor_->Data(tail_flag_).data(), &one, sizeof(one));
  tail_failure_ = Annotate(executor_->RunTail(tail_flag_), absl::StrFormat("the end of step %d", progress_.steps));
  return tail_failure_;
}

absl::StatusOr<double> GanSession::Scalar(std::string_view name) const {
  const Program& program = executor_->program();
  if (IsOfTail(name)) GANTRY_RETURN_IF_ERROR(EndTail());
  const ValueId value = program.FindOutput(name);
  if (value == kNoValue || program.TypeOf(value).shape.rank() != 0) {
    return absl::NotFoundError(absl::StrFormat("a step gives no scalar '%s'; it gives %s", name, absl::StrJoin(ScalarNames(), ", ")));
  }
  const void* data = executor_->Data(value).data();
  return program.TypeOf(value).dtype == DataType::kF64 ? *static_cast<const double*>(data) : *static_cast<const float*>(data);
}

std::vector<std::string> GanSession::ScalarNames() const {
  std::vector<std::string> names;
  for (const NamedValue& output : executor_->program().outputs()) {
    if (executor_->program().TypeOf(output.value).shape.rank() == 0) names.push_back(output.name);
  }
  return names;
}

std::vector<std::string> GanSession::StateNames() const {
  std::vector<std::string> names;
  for (const SessionState& state : states_) names.push_back(state.name);
  return names;
}

absl::StatusOr<TensorType> GanSession::StateType(std::string_view name) const {
  const SessionState* state = Find(name);
  if (state == nullptr) return absl::NotFoundError(absl::StrFormat("there is no state '%s'", name));
  return state->type;
}

absl::Status GanSession::CopyStateOut(std::string_view name, std::span<std::byte> to) const {
  GANTRY_ASSIGN_OR_RETURN(const TensorType type, StateType(name));
  if (static_cast<int64_t>(to.size()) != type.size_bytes()) {
    return absl::InvalidArgumentError(absl::StrFormat("state '%s' is %s, the buffer has %d bytes", name, type.ToString(), to.size()));
  }
  GANTRY_RETURN_IF_ERROR(EndTail());
  if (Find(name)->in_parts) return GatherState(*Find(name), to);
  for (const State* piece : Find(name)->pieces) {
    const auto bytes = static_cast<size_t>(executor_->program().TypeOf(piece->first).size_bytes());
    GANTRY_RETURN_IF_ERROR(executor_->ReadState(*piece, to.subspan(static_cast<size_t>(piece->begin) * SizeBytes(type.dtype), bytes)));
  }
  return absl::OkStatus();
}

// This rank's pieces lie one behind the other; the group's parts do, too.
absl::Status GanSession::GatherState(const SessionState& state, std::span<std::byte> to) const {
  const std::vector<int> ranks = ShardGroup(options_.parallel, rank(), rank_count());
  Communicator* const group = exchanges_->Find(ranks);
  if (group == nullptr) return absl::InternalError(absl::StrFormat("state '%s' is in parts, but no group has them", state.name));
  std::vector<std::byte> mine;
  // Where every rank of a role or stage has all of it, the first one gives it.
  const auto place = std::find(ranks.begin(), ranks.end(), rank()) - ranks.begin();
  const bool whole = !state.pieces.empty() && executor_->program().TypeOf(state.pieces[0]->first).element_count() == state.type.element_count();
  const bool gives = !whole || place % (static_cast<int64_t>(ranks.size()) / OutermostOf(options_.parallel, rank_count())) == 0;
  for (const State* piece : state.pieces) {
    if (!gives) break;
    const size_t begin = mine.size();
    mine.resize(begin + static_cast<size_t>(executor_->program().TypeOf(piece->first).size_bytes()));
    GANTRY_RETURN_IF_ERROR(executor_->ReadState(*piece, std::span(mine).subspan(begin)));
  }
  GANTRY_ASSIGN_OR_RETURN(const std::vector<int64_t> bytes, GatherSizes(*group, static_cast<int64_t>(mine.size()), state.name));
  return group->AllGather(mine.data(), to.data(), bytes, {.name = state.name}).Wait();
}

absl::Status GanSession::CopyStateIn(std::string_view name, std::span<const std::byte> from) {
  GANTRY_RETURN_IF_ERROR(EndTail());
  GANTRY_ASSIGN_OR_RETURN(const TensorType type, StateType(name));
  if (static_cast<int64_t>(from.size()) != type.size_bytes()) {
    return absl::InvalidArgumentError(absl::StrFormat("state '%s' is %s, got %d bytes", name, type.ToString(), from.size()));
  }
  for (const State* piece : Find(name)->pieces) {
    const auto bytes = static_cast<size_t>(executor_->program().TypeOf(piece->first).size_bytes());
    GANTRY_RETURN_IF_ERROR(executor_->WriteState(*piece, from.subspan(static_cast<size_t>(piece->begin) * SizeBytes(type.dtype), bytes)));
  }
  return absl::OkStatus();
}

absl::Status GanSession::ReadState(std::string_view name, std::span<double> to) const {
  GANTRY_ASSIGN_OR_RETURN(const TensorType type, StateType(name));
  if (static_cast<int64_t>(to.size()) != type.element_count()) {
    return absl::InvalidArgumentError(absl::StrFormat("state '%s' is %s, the buffer has %d elements", name, type.ToString(), to.size()));
  }
  std::vector<std::byte> bytes(type.size_bytes());
  GANTRY_RETURN_IF_ERROR(CopyStateOut(name, bytes));
  WithFloats(type.dtype, bytes.data(), [&](auto* from) { std::copy(from, from + to.size(), to.begin()); });
  return absl::OkStatus();
}

absl::Status GanSession::WriteState(std::string_view name, std::span<const double> from) {
  GANTRY_ASSIGN_OR_RETURN(const TensorType type, StateType(name));
  if (static_cast<int64_t>(from.size()) != type.element_count()) {
    return absl::InvalidArgumentError(absl::StrFormat("state '%s' is %s, got %d elements", name, type.ToString(), from.size()));
  }
  std::vector<std::byte> bytes(type.size_bytes());
  WithFloats(type.dtype, bytes.data(), [&](auto* to) { std::copy(from.begin(), from.end(), to); });
  return CopyStateIn(name, bytes);
}

absl::StatusOr<std::vector<float>> GanSession::Sample(int64_t count, uint64_t noise_seed, bool ema) {
  const bool averages = ema && options_.step.ema > 0;
  std::unique_ptr<Sampler>& sampler = sampler_[averages ? 1 : 0];
  if (sampler == nullptr) {
    GANTRY_ASSIGN_OR_RETURN(sampler, Sampler::Create(generators_[0], averages, options_.step.dtype, options_.plan, *device_));
  }
  for (const Sampler::StateMemory& state : sampler->States()) {
    for (const std::string& name : state.names) {
      if (Find(name) == nullptr) continue;
      GANTRY_RETURN_IF_ERROR(CopyStateOut(name, state.bytes));
      break;
    }
  }
  return sampler->Draw(count, noise_seed);
}

}  // namespace gantry
