#include "runtime/partition/order_exchanges.h"

#include <algorithm>
#include <climits>
#include <map>

#include "runtime/graph/lanes.h"

namespace gantry {
namespace {

// Tensors of one exchange: its kernel packs them, and an op with more of them is unwieldy.
constexpr size_t kMostTensors = 256;
// A gradient is urgent where it is at most one part in so many of its network's largest.
constexpr int64_t kUrgentPart = 2;
// Views and slices between an exchange and what it moves.
constexpr int kNearOps = 4;

// Exchanges that become one op, and when it begins: 2 k before op k of the whole program, 2 k + 1 after it.
struct Bucket {
  std::vector<OpId> ops;
  int begins = 0;
  int needed = INT_MAX;
  int64_t bytes = 0;
  bool moves = true;  // false: it stays where it is
  bool urgent = false;
};

class Orderer {
 public:
  Orderer(const Program& program, const ExchangePlaces& places, const ExchangeOrder& order)
      : program_(program), places_(places), order_(order), copier_(program, target_), bucket_of_(program.ops().size(), -1),
        emitted_(program.ops().size(), false) {}

  absl::StatusOr<Program> Run() {
    GANTRY_RETURN_IF_ERROR(MakeBuckets());
    std::vector<int> moved;
    for (int b = 0; b < static_cast<int>(buckets_.size()); ++b) {
      if (buckets_[b].moves) moved.push_back(b);
    }
    std::stable_sort(moved.begin(), moved.end(), [&](int a, int b) { return buckets_[a].begins < buckets_[b].begins; });
    auto next = moved.begin();
    const auto EmitUntil = [&](int time) -> absl::Status {
      for (; next != moved.end() && buckets_[*next].begins <= time; ++next) GANTRY_RETURN_IF_ERROR(EmitBucket(*next));
      return absl::OkStatus();
    };
    GANTRY_RETURN_IF_ERROR(EmitUntil(-1));
    for (int whole = 0; whole + 1 < static_cast<int>(places_.first_op.size()); ++whole) {
      GANTRY_RETURN_IF_ERROR(EmitUntil(2 * whole));
      for (OpId op = places_.first_op[whole]; op < places_.first_op[whole + 1]; ++op) GANTRY_RETURN_IF_ERROR(EmitInPlace(op));
      GANTRY_RETURN_IF_ERROR(EmitUntil(2 * whole + 1));
    }
    GANTRY_RETURN_IF_ERROR(EmitUntil(INT_MAX));
    for (OpId op = places_.first_op.back(); op < static_cast<OpId>(program_.ops().size()); ++op) GANTRY_RETURN_IF_ERROR(EmitInPlace(op));
    copier_.Finish();
    GANTRY_RETURN_IF_ERROR(target_.status());
    return std::move(target_);
  }

 private:
  absl::Status MakeBuckets() {
    std::vector<OpId> exchanges;
    for (OpId id = 0; id < static_cast<OpId>(program_.ops().size()); ++id) {
      if (program_.ops()[id].definition->communicates) exchanges.push_back(id);
    }
    if (exchanges.size() != places_.exchanges.size() || places_.first_op.empty()) {
      return absl::InternalError(absl::StrFormat("the program has %d exchanges, %d places are known", exchanges.size(), places_.exchanges.size()));
    }
    int gathered_for = -1, gathered_before = -1;  // the op that the last gather is for, and the one that the gather before is for
    std::vector<size_t> gradients;
    for (size_t i = 0; i < exchanges.size(); ++i) {
      const auto [ready, needed] = places_.exchanges[i];
      const Op& op = program_.ops()[exchanges[i]];
      const PlanLane lane = LaneOf(*op.definition, op.attributes);
      Bucket bucket{.ops = {exchanges[i]}, .begins = 2 * ready + 1, .needed = needed, .bytes = LinkBytes(program_, exchanges[i])};
      const bool gathers = lane == PlanLane::kUrgent;
      if (gathers && needed != gathered_for) {
        gathered_before = gathered_for;
        gathered_for = needed;
      }
      if (gathers) bucket.begins = std::max(bucket.begins, 2 * gathered_before);
      bucket.moves = (gathers || lane == PlanLane::kGradients) && bucket.begins < 2 * needed;
      if (gathers && StandsOnAny(exchanges[i], 0)) bucket.moves = false;
      if (lane == PlanLane::kGradients && bucket.moves) {
        gradients.push_back(i);
        continue;
      }
      Add(std::move(bucket));
    }
    std::stable_sort(gradients.begin(), gradients.end(),
                     [&](size_t a, size_t b) { return places_.exchanges[a].ready < places_.exchanges[b].ready; });
    Bucket open;
    const auto Close = [&] {
      if (!open.ops.empty()) Add(std::move(open));
      open = Bucket{};
    };
    for (const size_t i : gradients) {
      const auto [ready, needed] = places_.exchanges[i];
      const OpId id = exchanges[i];
      const Op& op = program_.ops()[id];
      int64_t bytes = 0;
      for (ValueId input : op.inputs) bytes += program_.TypeOf(input).size_bytes();
      if (std::any_of(open.ops.begin(), open.ops.end(), [&](OpId other) { return StandsOn(id, other, 0); })) Close();
      if (op.definition->name != "all_reduce" || bytes >= order_.bucket_bytes) {
        Add({.ops = {id}, .begins = 2 * ready + 1, .needed = needed, .bytes = bytes});
        continue;
      }
      const bool fits = open.ops.empty() || (Alike(open.ops.front(), id) && 2 * ready + 1 < 2 * open.needed && open.ops.size() < kMostTensors);
      if (!fits) Close();
      open.ops.push_back(id);
      open.begins = 2 * ready + 1;
      open.needed = std::min(open.needed, needed);
      open.bytes += bytes;
      if (open.bytes >= order_.bucket_bytes) Close();
    }
    Close();
    FindUrgent();
    for (size_t b = 0; b < buckets_.size(); ++b) {
      for (OpId op : buckets_[b].ops) bucket_of_[op] = static_cast<int>(b);
    }
    return absl::OkStatus();
  }

  // Backward passes end with the weights that the next forward pass begins with: what is much smaller than the largest exchange of its network
  // need not wait behind it.
  void FindUrgent() {
    std::map<int, int64_t> largest;  // by network
    const auto IsGradient = [&](const Bucket& bucket) {
      const Op& op = program_.ops()[bucket.ops.front()];
      return LaneOf(*op.definition, op.attributes) == PlanLane::kGradients;
    };
    for (const Bucket& bucket : buckets_) {
      int64_t& most = largest[program_.ops()[bucket.ops.front()].network];
      if (IsGradient(bucket)) most = std::max(most, bucket.bytes);
    }
    for (Bucket& bucket : buckets_) {
      bucket.urgent = IsGradient(bucket) && kUrgentPart * bucket.bytes <= largest[program_.ops()[bucket.ops.front()].network];
    }
  }

  void Add(Bucket bucket) { buckets_.push_back(std::move(bucket)); }

  bool Alike(OpId a, OpId b) const {
    const Op &first = program_.ops()[a], &second = program_.ops()[b];
    return first.network == second.network && first.condition == second.condition &&
           first.attributes.Ints("ranks") == second.attributes.Ints("ranks") &&
           program_.TypeOf(first.inputs[0]).dtype == program_.TypeOf(second.inputs[0]).dtype;
  }

  // Whether what the exchange `op` moves comes from another one.
  bool StandsOnAny(OpId op, int depth) const {
    for (ValueId input : program_.ops()[op].inputs) {
      const OpId maker = program_.values()[input].producer;
      if (maker >= 0 && depth < kNearOps && (program_.ops()[maker].definition->communicates || StandsOnAny(maker, depth + 1))) return true;
    }
    return false;
  }

  // Whether the exchange `op` reads what `other` makes, directly or through what stands between two axes of a mesh.
  bool StandsOn(OpId op, OpId other, int depth) const {
    for (ValueId input : program_.ops()[op].inputs) {
      const OpId maker = program_.values()[input].producer;
      if (maker >= 0 && depth < kNearOps && (maker == other || StandsOn(maker, other, depth + 1))) return true;
    }
    return false;
  }

  absl::Status EmitInPlace(OpId op) {
    if (emitted_[op]) return absl::OkStatus();
    if (bucket_of_[op] < 0) {
      emitted_[op] = true;
      copier_.Copy(op);
      return absl::OkStatus();
    }
    if (!buckets_[bucket_of_[op]].moves) return EmitBucket(bucket_of_[op]);
    return absl::InternalError(absl::StrCat(program_.Describe(op), ": it is wanted before it begins"));
  }

  // The ops that make `value` and have not been emitted: views and copies that stand with the exchange.
  absl::Status EmitMaker(ValueId value, int depth) {
    const Value& made = program_.values()[value];
    if (made.kind != ValueKind::kComputed || emitted_[made.producer]) return absl::OkStatus();
    const Op& op = program_.ops()[made.producer];
    if (op.definition->communicates || UpdateCount(op) > 0 || depth > kNearOps) {
      return absl::InternalError(absl::StrCat(program_.Describe(made.producer), ": an exchange that begins before it reads what it makes"));
    }
    for (ValueId input : op.inputs) GANTRY_RETURN_IF_ERROR(EmitMaker(input, depth + 1));
    emitted_[made.producer] = true;
    copier_.Copy(made.producer);
    return absl::OkStatus();
  }

  absl::Status EmitBucket(int number) {
    const Bucket& bucket = buckets_[number];
    std::vector<ValueId> inputs;
    for (OpId id : bucket.ops) {
      for (ValueId input : program_.ops()[id].inputs) {
        GANTRY_RETURN_IF_ERROR(EmitMaker(input, 0));
        inputs.push_back(copier_.Mapped(input));
      }
    }
    const Op& first = program_.ops()[bucket.ops.front()];
    copier_.SetLabels(first);
    Attributes attributes = first.attributes;
    attributes.Set("sequence", sequence_++);
    if (bucket.urgent) attributes.Set("urgent", int64_t{1});
    const std::vector<ValueId> outputs = target_.Emit(first.definition->name, inputs, std::move(attributes));
    GANTRY_RETURN_IF_ERROR(target_.status());
    size_t next = 0;
    for (OpId id : bucket.ops) {
      emitted_[id] = true;
      for (ValueId output : program_.ops()[id].outputs) {
        copier_.Map(output, outputs[next]);
        target_.NameValue(outputs[next++], program_.values()[output].name);
      }
    }
    return absl::OkStatus();
  }

  const Program& program_;
  const ExchangePlaces& places_;
  const ExchangeOrder& order_;
  Program target_;
  ProgramCopier copier_;
  std::vector<Bucket> buckets_;
  std::vector<int> bucket_of_;  // per op
  std::vector<bool> emitted_;   // per op
  int64_t sequence_ = 0;
};

}  // namespace

absl::StatusOr<Program> OrderExchanges(const Program& program, const ExchangePlaces& places, const ExchangeOrder& order) {
  GANTRY_RETURN_IF_ERROR(program.status());
  return Orderer(program, places, order).Run();
}

void NumberExchanges(Program& program) {
  int64_t sequence = 0;
  for (OpId id = 0; id < static_cast<OpId>(program.ops().size()); ++id) {
    if (program.ops()[id].definition->communicates) program.SetAttribute(id, "sequence", sequence++);
  }
}

}  // namespace gantry
