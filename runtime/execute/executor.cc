#include "runtime/execute/executor.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <utility>

namespace gantry {
namespace {

template <typename T>
bool AllFinite(const void* data, int64_t count) {
  const T* values = static_cast<const T*>(data);
  return std::all_of(values, values + count, [](T value) { return std::isfinite(value); });
}

bool AllFinite(const void* data, const TensorType& type) {
  const int64_t count = type.size_bytes() / static_cast<int64_t>(SizeBytes(type.dtype));
  if (type.dtype == DataType::kF32) return AllFinite<float>(data, count);
  if (type.dtype == DataType::kF64) return AllFinite<double>(data, count);
  return true;
}

CopyEncoding EncodingOf(const Op& op) {
  const std::string encoding = op.attributes.String("encoding");
  return encoding == "zeros" ? CopyEncoding::kZeros : encoding == "bf16" ? CopyEncoding::kBf16 : CopyEncoding::kNone;
}

bool IsZero(const void* scalar, DataType type) {
  return type == DataType::kF64 ? *static_cast<const double*>(scalar) == 0.0 : *static_cast<const float*>(scalar) == 0.0f;
}

// kDataLoss is left to losses: what a tier or a link lost is its failure.
absl::Status NotOfALoss(absl::Status status) {
  return absl::IsDataLoss(status) ? absl::UnavailableError(status.message()) : status;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Executor>> Executor::Create(Plan plan, Device& device, const TierReserver& reserve_tier) {
  GANTRY_ASSIGN_OR_RETURN(std::unique_ptr<Slab> arena, device.Reserve(DeviceBytes(plan)));
  std::unique_ptr<Executor> executor(new Executor(std::move(plan), std::move(arena)));
  GANTRY_RETURN_IF_ERROR(executor->ReserveTiers(reserve_tier));
  executor->Bind();
  GANTRY_RETURN_IF_ERROR(executor->StartLanes());
  return executor;
}

Executor::Executor(Plan plan, std::unique_ptr<Slab> arena) : plan_(std::move(plan)), arena_(std::move(arena)) {}

absl::Status Executor::ReserveTiers(const TierReserver& reserve_tier) {
  if (plan_.tiers.empty()) return absl::OkStatus();
  std::vector<TierSlab*> slabs;
  std::vector<Throttle> out, in;
  for (const PlannedTier& tier : plan_.tiers) {
    GANTRY_ASSIGN_OR_RETURN(std::unique_ptr<TierSlab> slab, reserve_tier(tier.options, tier.bytes));
    slabs.push_back(slab.get());
    slabs_.push_back(std::move(slab));
    out.push_back(tier.options.out);
    in.push_back(tier.options.in);
  }
  tier_high_water_.assign(plan_.tiers.size(), 0);
  int copies = 0;
  for (const PlannedOp& step : plan_.schedule) copies += plan_.program.ops()[step.op].definition->moves;
  CopyLanesOptions options{.max_pending = std::max(1, copies)};
#ifdef NDEBUG
  const bool checksums = plan_.checksums;
#else
  const bool checksums = true;
#endif
  if (checksums) options.checksum_slots = static_cast<int>(plan_.program.values().size());
  options.encoded_chunks = NumberChunks();
  GANTRY_ASSIGN_OR_RETURN(lanes_, CopyLanes::Create(std::move(slabs), std::move(out), std::move(in), options));
  return absl::OkStatus();
}

// Gives each encoded value in a tier the places for its chunks; how many there are.
int64_t Executor::NumberChunks() {
  const Program& program = plan_.program;
  first_chunk_.assign(program.values().size(), 0);
  int64_t chunks = 0;
  for (const Op& op : program.ops()) {
    if (op.definition->name != "stash" || EncodingOf(op) == CopyEncoding::kNone) continue;
    first_chunk_[op.outputs[0]] = chunks;
    chunks += EncodedChunks(program.TypeOf(op.inputs[0]).size_bytes());
  }
  return chunks;
}

// All versions of a state in a tier share a place for its checksum, and so do the steps.
void Executor::NumberChecksums() {
  const Program& program = plan_.program;
  checksum_slot_.resize(program.values().size());
  for (ValueId value = 0; value < static_cast<ValueId>(checksum_slot_.size()); ++value) checksum_slot_[value] = value;
  for (const Op& op : program.ops()) {
    if (op.definition->name == "write_back") checksum_slot_[op.outputs[0]] = checksum_slot_[op.inputs[0]];
  }
}

void Executor::Bind() {
  const Program& program = plan_.program;
  if (lanes_ != nullptr) KindOf("copies");
  NumberChecksums();
  std::vector<bool> watched(program.values().size(), false);
  for (const NamedValue& output : program.outputs()) {
    watched[output.value] = program.TypeOf(output.value).shape.rank() == 0 && IsFloat(program.TypeOf(output.value).dtype);
  }
  size_t inputs = 0, outputs = 0;
  int exchanges = 0;
  // Per step: copies and exchanges that are done by it. A step without a kernel of its own hands them on to the next one that has one.
  std::vector<std::vector<int>> done_by(plan_.schedule.size() + 1);
  for (const PlannedOp& step : plan_.schedule) {
    const Op& op = program.ops()[step.op];
    inputs += op.inputs.size();
    outputs += op.outputs.size();
    if (op.definition->communicates) {
      if (step.done_by >= 0) done_by[step.done_by].push_back(~exchanges);
      ++exchanges;
    }
    if (!op.definition->moves) continue;
    const bool out = op.definition->name != "fetch";
    const ValueId on_device = out ? op.inputs.back() : op.outputs[0], in_tier = out ? op.outputs[0] : op.inputs[0];
    BoundCopy copy{};
    copy.copy.tier = program.values()[in_tier].tier;
    copy.copy.out = out;
    copy.copy.device = arena_->data() + plan_.offsets[on_device];
    copy.copy.tier_offset = plan_.offsets[in_tier];
    copy.copy.bytes = program.TypeOf(on_device).size_bytes();
    copy.copy.checksum_slot = checksum_slot_[in_tier];
    copy.copy.encoding = EncodingOf(op);
    copy.copy.first_chunk = first_chunk_[in_tier];
    copy.tier_top = plan_.offsets[in_tier] + program.TypeOf(in_tier).size_bytes();
    const size_t length = plan_.schedule.size();
    const bool goes_on = step.done_by > static_cast<int>(length);
    if (goes_on) going_on_.push_back(static_cast<int>(copies_.size()));
    done_by[goes_on ? step.done_by - length : step.done_by].push_back(static_cast<int>(copies_.size()));
    copies_.push_back(copy);
  }
  input_pointers_.reserve(inputs);
  output_pointers_.reserve(outputs);
  waits_.reserve(copies_.size() + static_cast<size_t>(exchanges));
  exchanges_.reserve(static_cast<size_t>(exchanges));
  size_t first_wait = 0;
  int next_copy = 0;
  for (size_t time = 0; time < plan_.schedule.size(); ++time) {
    const PlannedOp& step = plan_.schedule[time];
    const Op& op = program.ops()[step.op];
    waits_.insert(waits_.end(), done_by[time].begin(), done_by[time].end());
    if (op.definition->is_view) continue;
    BoundOp bound{};
    bound.kernel = step.kernel.get();
    bound.op = step.op;
    bound.copy = op.definition->moves ? next_copy++ : -1;
    bound.waits = {waits_.data() + first_wait, waits_.size() - first_wait};
    first_wait = waits_.size();
    if (op.condition != kNoValue) {
      bound.condition = arena_->data() + plan_.offsets[op.condition];
      bound.condition_type = program.TypeOf(op.condition).dtype;
    }
    const size_t first_input = input_pointers_.size(), first_output = output_pointers_.size();
    const auto Touch = [&](ValueId value) {
      if (program.values()[value].tier != kDeviceTier) return;
      bound.top = std::max(bound.top, plan_.offsets[value] + program.TypeOf(value).size_bytes());
    };
    for (ValueId input : op.inputs) {
      input_pointers_.push_back(arena_->data() + plan_.offsets[input]);
      Touch(input);
    }
    for (ValueId output : op.outputs) {
      output_pointers_.push_back(arena_->data() + plan_.offsets[output]);
      Touch(output);
      if (watched[output] && bound.kernel != nullptr) {
        bound.watched_scalar = output_pointers_.back();
        bound.watched_type = program.TypeOf(output).dtype;
      }
    }
    bound.inputs = {input_pointers_.data() + first_input, op.inputs.size()};
    bound.outputs = {output_pointers_.data() + first_output, op.outputs.size()};
    if (step.scratch_offset != kNoOffset) {
      bound.scratch = arena_->data() + step.scratch_offset;
      bound.top = std::max(bound.top, step.scratch_offset + static_cast<int64_t>(step.kernel->scratch_bytes()));
    }
    bound.exchange = -1;
    if (op.definition->communicates) BindExchange(step, bound);
    ops_.push_back(bound);
  }
  last_waits_.assign(waits_.begin() + static_cast<int64_t>(first_wait), waits_.end());
  last_waits_.insert(last_waits_.end(), done_by.back().begin(), done_by.back().end());
  op_seconds_.assign(ops_.size(), 0.0);
  op_wait_seconds_.assign(ops_.size(), 0.0);
}

void Executor::BindExchange(const PlannedOp& step, BoundOp& bound) {
  const Op& op = plan_.program.ops()[step.op];
  BoundExchange exchange{};
  exchange.exchange = {bound.kernel, {bound.inputs, bound.outputs, bound.scratch}, LinkBytes(plan_.program, step.op)};
  exchange.lane = step.done_by >= 0 ? LaneOf(*op.definition, op.attributes) : PlanLane::kCompute;
  exchange.kind = KindOf(op.attributes.String("purpose", "exchange"));
  exchange.op = step.op;
  bound.exchange = static_cast<int>(exchanges_.size());
  exchanges_.push_back(exchange);
}

int Executor::KindOf(std::string_view kind) {
  for (size_t i = 0; i < exposed_.size(); ++i) {
    if (exposed_[i].kind == kind) return static_cast<int>(i);
  }
  exposed_.push_back({.kind = std::string(kind)});
  return static_cast<int>(exposed_.size()) - 1;
}

absl::Status Executor::StartLanes() {
  if (exchanges_.empty()) return absl::OkStatus();
  std::map<PlanLane, int> room;
  for (const BoundExchange& exchange : exchanges_) {
    if (exchange.lane != PlanLane::kCompute) ++room[exchange.lane];
  }
  GANTRY_ASSIGN_OR_RETURN(exchange_lanes_, ExchangeLanes::Create(plan_.link, room));
  return absl::OkStatus();
}

std::span<std::byte> Executor::Data(ValueId value) {
  const std::span<std::byte> memory = Memory(value);
  // The caller may write to it.
  if (lanes_ != nullptr && !memory.empty() && plan_.program.values()[value].tier != kDeviceTier) lanes_->ForgetChecksum(checksum_slot_[value]);
  return memory;
}

std::span<std::byte> Executor::Memory(ValueId value) {
  if (value < 0 || value >= static_cast<ValueId>(plan_.offsets.size()) || plan_.offsets[value] == kNoOffset) return {};
  const int tier = plan_.program.values()[value].tier;
  // Only states go on into the next step, and the caller fills inputs beside them. A lane that has failed says so at the next step.
  if (tier != kDeviceTier && plan_.program.values()[value].kind != ValueKind::kInput) static_cast<void>(WaitFor(going_on_));
  std::byte* const base = tier == kDeviceTier ? arena_->data() : slabs_[tier]->data();
  if (base == nullptr) return {};
  return {base + plan_.offsets[value], static_cast<size_t>(plan_.program.TypeOf(value).size_bytes())};
}

std::span<std::byte> Executor::Data(std::string_view name) {
  if (const State* state = plan_.program.FindState(name)) return Data(state->last);
  if (const ValueId input = plan_.program.FindInput(name); input != kNoValue) return Data(input);
  return Data(plan_.program.FindOutput(name));
}

absl::Status Executor::ReadState(const State& state, std::span<std::byte> to) {
  const int tier = plan_.program.values()[state.last].tier;
  if (tier == kDeviceTier) {
    const std::span<std::byte> data = Memory(state.last);
    std::copy(data.begin(), data.end(), to.begin());
    return absl::OkStatus();
  }
  GANTRY_RETURN_IF_ERROR(WaitFor(going_on_));
  const int64_t offset = plan_.offsets[state.last];
  absl::Status read = slabs_[tier]->Read(offset, to);
  // What was copied is compared, and not what lies there: that may change in between.
  if (read.ok() && lanes_ != nullptr) read = lanes_->CheckRead(tier, offset, checksum_slot_[state.last], to);
  return NotOfALoss(std::move(read));
}

std::span<const std::byte> Executor::Borrow(const State& state) {
  const bool compared = lanes_ != nullptr && lanes_->has_checksums() && plan_.program.values()[state.last].tier != kDeviceTier;
  return compared ? std::span<const std::byte>() : Memory(state.last);
}

absl::Status Executor::WriteState(const State& state, std::span<const std::byte> from) {
  const int tier = plan_.program.values()[state.last].tier;
  if (tier == kDeviceTier) {
    std::copy(from.begin(), from.end(), Memory(state.last).begin());
    return absl::OkStatus();
  }
  GANTRY_RETURN_IF_ERROR(WaitFor(going_on_));
  if (lanes_ != nullptr) lanes_->NoteWrite(checksum_slot_[state.last], from);
  return NotOfALoss(slabs_[tier]->Write(plan_.offsets[state.last], from));
}

absl::Status Executor::WaitFor(std::span<const int> transfers) {
  for (const int transfer : transfers) GANTRY_RETURN_IF_ERROR(WaitForOne(transfer));
  return absl::OkStatus();
}

absl::Status Executor::WaitForOne(int transfer) {
  const auto begin = std::chrono::steady_clock::now();
  absl::Status status;
  int kind = 0;  // copies
  if (transfer >= 0) {
    const BoundCopy& copy = copies_[transfer];
    status = lanes_->Wait(lanes_->lane(copy.copy.tier, copy.copy.out), copy.ticket);
  } else {
    const BoundExchange& exchange = exchanges_[~transfer];
    kind = exchange.kind;
    if (exchange.ticket == 0) return absl::OkStatus();
    status = exchange_lanes_->Wait(exchange.lane, exchange.ticket);
    if (!status.ok()) status = Annotate(status, absl::StrCat("waiting for ", plan_.program.Describe(exchange.op)));
  }
  exposed_[kind].seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return NotOfALoss(std::move(status));
}

void Executor::EndCopies() {
  if (lanes_ != nullptr) static_cast<void>(lanes_->Drain());
}

// Nothing may still write to the arena when the caller goes on.
void Executor::Drain() {
  EndCopies();
  if (exchange_lanes_ != nullptr) static_cast<void>(exchange_lanes_->Drain());
}

absl::Status Executor::RunExchange(BoundExchange& exchange) {
  if (exchange.lane != PlanLane::kCompute) {
    exchange.ticket = exchange_lanes_->Start(exchange.lane, exchange.exchange);
    return absl::OkStatus();
  }
  const auto begin = std::chrono::steady_clock::now();
  absl::Status status = NotOfALoss(exchange_lanes_->Run(exchange.exchange));
  exposed_[exchange.kind].seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return status;
}

// The op, or the start of the copy or exchange, under its condition.
absl::Status Executor::RunOne(BoundOp& op) {
  const bool skipped = op.condition != nullptr && IsZero(op.condition, op.condition_type);
  if (op.copy >= 0) {
    BoundCopy& copy = copies_[op.copy];
    LaneCopy start = copy.copy;
    if (skipped) start.bytes = 0;
    copy.ticket = lanes_->Start(start);
    tier_high_water_[start.tier] = std::max(tier_high_water_[start.tier], copy.tier_top);
  } else if (skipped) {
    if (op.exchange >= 0) exchanges_[op.exchange].ticket = 0;
  } else {
    absl::Status status = op.exchange >= 0 ? RunExchange(exchanges_[op.exchange]) : op.kernel->Run({op.inputs, op.outputs, op.scratch});
    if (!status.ok()) return Annotate(status, plan_.program.Describe(op.op));
  }
  if (!skipped) high_water_ = std::max(high_water_, op.top);
  return absl::OkStatus();
}

absl::Status Executor::Run() {
  for (const ValueId input : plan_.program.inputs()) {
    const int tier = plan_.program.values()[input].tier;
    if (plan_.offsets[input] == kNoOffset) continue;
    int64_t& water = tier == kDeviceTier ? high_water_ : tier_high_water_[tier];
    water = std::max(water, plan_.offsets[input] + plan_.program.TypeOf(input).size_bytes());
  }
  const auto Stop = [&](absl::Status status) {
    Drain();
    return status;
  };
  for (size_t index = 0; index < ops_.size(); ++index) {
    BoundOp& op = ops_[index];
    std::chrono::steady_clock::time_point start;
    if (profiling_) start = std::chrono::steady_clock::now();
    if (absl::Status status = WaitFor(op.waits); !status.ok()) return Stop(Annotate(status, plan_.program.Describe(op.op)));
    if (profiling_) {
      const auto waited = std::exchange(start, std::chrono::steady_clock::now());
      op_wait_seconds_[index] += std::chrono::duration<double>(start - waited).count();
    }
    if (absl::Status status = RunOne(op); !status.ok()) return Stop(std::move(status));
    if (profiling_) op_seconds_[index] += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (op.watched_scalar == nullptr || (op.condition != nullptr && IsZero(op.condition, op.condition_type))) continue;
    const bool finite = op.watched_type == DataType::kF64 ? AllFinite<double>(op.watched_scalar, 1)
                                                         : AllFinite<float>(op.watched_scalar, 1);
    if (!finite) {
      stopped_at_ = index;
      return Stop(absl::DataLossError(absl::StrFormat("%s made a value that is not finite", plan_.program.Describe(op.op))));
    }
  }
  if (absl::Status status = WaitFor(last_waits_); !status.ok()) return Stop(std::move(status));
  return absl::OkStatus();
}

absl::Status Executor::RunTail(ValueId input) {
  const void* const flag = arena_->data() + plan_.offsets[input];
  // Of the last step, and done.
  for (BoundExchange& exchange : exchanges_) exchange.ticket = 0;
  for (BoundOp& op : ops_) {
    if (op.condition != flag) continue;
    absl::Status status = WaitFor(op.waits);
    if (status.ok()) status = RunOne(op);
    if (!status.ok()) {
      Drain();
      return status;
    }
  }
  return exchange_lanes_ == nullptr ? absl::OkStatus() : exchange_lanes_->Drain();
}

std::string Executor::FindFirstNonFinite() {
  const Program& program = plan_.program;
  for (ValueId input : program.inputs()) {
    const std::span<std::byte> data = Data(input);
    if (!data.empty() && !AllFinite(data.data(), program.TypeOf(input))) {
      return absl::StrCat("input ", program.values()[input].name);
    }
  }
  for (const State& state : program.states()) {
    // Running statistics follow what the step computed; they say nothing about where it began.
    if (state.role == StateRole::kStatistic) continue;
    const std::span<std::byte> data = Data(state.last);
    if (!data.empty() && !AllFinite(data.data(), program.TypeOf(state.last))) return absl::StrCat("state ", state.name);
  }
  // Other ranks look for theirs: what they exchange takes this one, too, up to the place where all have stopped.
  std::string found;
  for (size_t index = 0; index <= stopped_at_; ++index) {
    BoundOp& bound = ops_[index];
    absl::Status status = WaitFor(bound.waits);
    if (status.ok()) status = RunOne(bound);
    if (status.ok() && bound.exchange >= 0 && exchanges_[bound.exchange].lane != PlanLane::kCompute) status = WaitForOne(~bound.exchange);
    if (!status.ok()) {
      Drain();
      return found.empty() ? program.Describe(bound.op) : found;
    }
    if (!found.empty() || bound.copy >= 0 || (bound.condition != nullptr && IsZero(bound.condition, bound.condition_type))) continue;
    const Op& op = program.ops()[bound.op];
    for (size_t i = 0; i < op.outputs.size() && found.empty(); ++i) {
      if (!AllFinite(bound.outputs[i], program.TypeOf(op.outputs[i]))) found = program.Describe(bound.op);
    }
    if (!found.empty() && exchanges_.empty()) break;
  }
  Drain();
  return found.empty() ? "nothing: the step is finite when run again" : found;
}

void Executor::SetProfiling(bool on) {
  profiling_ = on;
  if (!on) return;
  std::fill(op_seconds_.begin(), op_seconds_.end(), 0.0);
  std::fill(op_wait_seconds_.begin(), op_wait_seconds_.end(), 0.0);
}

}  // namespace gantry
