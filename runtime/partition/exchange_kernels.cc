#include "runtime/partition/exchange_kernels.h"

#include <algorithm>
#include <cstring>

namespace gantry {

struct ExchangeKernels::Group {
  std::vector<int> ranks;
  PlanLane lane = PlanLane::kCompute;
  Communicator* communicator = nullptr;
  std::unique_ptr<Communicator> owned;  // null where it is the world's
};

namespace {

ElementType ElementTypeOf(DataType type) {
  switch (type) {
    case DataType::kF32: return ElementType::kF32;
    case DataType::kF64: return ElementType::kF64;
    case DataType::kI32: return ElementType::kI32;
    case DataType::kI64: return ElementType::kI64;
    case DataType::kU8: return ElementType::kU8;
  }
  return ElementType::kU8;
}

// `group` is filled in by Connect.
class ExchangeKernel : public Kernel {
 public:
  ExchangeKernel(Communicator* const& group, const KernelRequest& request)
      : group_(group), purpose_(request.attributes.String("purpose")), lane_(LaneOf(request.op, request.attributes)) {}
  std::string_view implementation() const override { return "communicator"; }

  absl::Status Run(const KernelArguments& arguments) final {
    if (group_ == nullptr) return absl::FailedPreconditionError("the ranks of this plan are not connected");
    return Move(*group_, arguments);
  }

 protected:
  virtual absl::Status Move(Communicator& group, const KernelArguments& arguments) = 0;
  // On a lane the core belongs to what is computed meanwhile: the wait is never busy.
  CollectiveOptions Options() const { return {.name = purpose_, .waits_asleep = lane_ != PlanLane::kCompute}; }

 private:
  Communicator* const& group_;
  const std::string purpose_;
  const PlanLane lane_;
};

// Several tensors are packed one behind the other, each at a multiple of 64 bytes, so that they are one operation.
class AllReduceKernel final : public ExchangeKernel {
 public:
  AllReduceKernel(Communicator* const& group, const KernelRequest& request)
      : ExchangeKernel(group, request), type_(ElementTypeOf(request.inputs[0].dtype)) {
    for (const TensorType& input : request.inputs) {
      begins_.push_back(packed_bytes_);
      bytes_.push_back(input.size_bytes());
      packed_bytes_ += (input.size_bytes() + 63) / 64 * 64;
    }
  }
  size_t scratch_bytes() const override { return bytes_.size() == 1 ? 0 : static_cast<size_t>(packed_bytes_); }

 protected:
  absl::Status Move(Communicator& group, const KernelArguments& arguments) override {
    if (bytes_.size() == 1) {
      void* const data = arguments.outputs[0];
      if (data != arguments.inputs[0]) std::memcpy(data, arguments.inputs[0], static_cast<size_t>(bytes_[0]));
      return Sum(group, data, bytes_[0]);
    }
    auto* const packed = static_cast<std::byte*>(arguments.scratch);
    for (size_t i = 0; i < bytes_.size(); ++i) {
      std::memcpy(packed + begins_[i], arguments.inputs[i], static_cast<size_t>(bytes_[i]));
      const int64_t end = i + 1 < bytes_.size() ? begins_[i + 1] : packed_bytes_;
      std::memset(packed + begins_[i] + bytes_[i], 0, static_cast<size_t>(end - begins_[i] - bytes_[i]));
    }
    GANTRY_RETURN_IF_ERROR(Sum(group, packed, packed_bytes_));
    for (size_t i = 0; i < bytes_.size(); ++i) std::memcpy(arguments.outputs[i], packed + begins_[i], static_cast<size_t>(bytes_[i]));
    return absl::OkStatus();
  }

 private:
  absl::Status Sum(Communicator& group, void* data, int64_t bytes) {
    return group.AllReduce(data, bytes / gantry::SizeBytes(type_), type_, ReduceOp::kSum, Options()).Wait();
  }

  const ElementType type_;
  std::vector<int64_t> begins_, bytes_;
  int64_t packed_bytes_ = 0;
};

class ReduceScatterKernel final : public ExchangeKernel {
 public:
  ReduceScatterKernel(Communicator* const& group, const KernelRequest& request)
      : ExchangeKernel(group, request), type_(ElementTypeOf(request.inputs[0].dtype)) {
    const std::vector<int64_t> begins = request.attributes.Ints("begins"), ends = request.attributes.Ints("ends");
    const Shape& shape = request.inputs[0].shape;
    const int64_t row = shape[0] == 0 ? 0 : shape.element_count() / shape[0];
    for (size_t i = 0; i < begins.size(); ++i) counts_.push_back((ends[i] - begins[i]) * row);
  }

 protected:
  absl::Status Move(Communicator& group, const KernelArguments& arguments) override {
    return group.ReduceScatter(arguments.inputs[0], arguments.outputs[0], counts_, type_, ReduceOp::kSum, Options()).Wait();
  }

 private:
  const ElementType type_;
  std::vector<int64_t> counts_;
};

// Everybody gets all of it, and the parts lie one behind the other.
class AllGatherKernel final : public ExchangeKernel {
 public:
  AllGatherKernel(Communicator* const& group, const KernelRequest& request, std::vector<int64_t> bytes)
      : ExchangeKernel(group, request), bytes_(std::move(bytes)) {}

 protected:
  absl::Status Move(Communicator& group, const KernelArguments& arguments) override {
    return group.AllGather(arguments.inputs[0], arguments.outputs[0], bytes_, Options()).Wait();
  }

 private:
  std::vector<int64_t> bytes_;
};

// The general exchange along one axis: what others want of this rank's places is packed, moved and unpacked; what it keeps is copied.
class AxisExchangeKernel final : public ExchangeKernel {
 public:
  AxisExchangeKernel(Communicator* const& group, const KernelRequest& request) : ExchangeKernel(group, request) {
    const std::vector<int64_t> from_begins = request.attributes.Ints("from_begins"), from_ends = request.attributes.Ints("from_ends");
    const std::vector<int64_t> to_begins = request.attributes.Ints("to_begins"), to_ends = request.attributes.Ints("to_ends");
    const int axis = static_cast<int>(request.attributes.Int("axis"));
    const auto index = static_cast<size_t>(request.attributes.Int("index"));
    const Shape& shape = request.inputs[0].shape;
    inner_bytes_ = static_cast<int64_t>(gantry::SizeBytes(request.inputs[0].dtype));
    for (int a = 0; a < axis; ++a) outer_ *= shape[a];
    for (int a = axis + 1; a < shape.rank(); ++a) inner_bytes_ *= shape[a];
    from_extent_ = from_ends[index] - from_begins[index];
    to_extent_ = to_ends[index] - to_begins[index];
    for (size_t i = 0; i < from_begins.size(); ++i) {
      const auto Overlap = [&](size_t holder, size_t taker) {
        const int64_t begin = std::max(from_begins[holder], to_begins[taker]), end = std::min(from_ends[holder], to_ends[taker]);
        return std::pair(begin, std::max<int64_t>(0, end - begin));
      };
      const auto [send_begin, send_count] = Overlap(index, i);
      const auto [receive_begin, receive_count] = Overlap(i, index);
      if (i == index) {
        own_ = {send_begin - from_begins[index], receive_begin - to_begins[index], send_count};
        send_bytes_.push_back(0);
        receive_bytes_.push_back(0);
        sends_.push_back({0, 0});
        receives_.push_back({0, 0});
        continue;
      }
      sends_.push_back({send_begin - from_begins[index], send_count});
      receives_.push_back({receive_begin - to_begins[index], receive_count});
      send_bytes_.push_back(outer_ * send_count * inner_bytes_);
      receive_bytes_.push_back(outer_ * receive_count * inner_bytes_);
      total_send_ += send_bytes_.back();
      total_receive_ += receive_bytes_.back();
    }
  }
  size_t scratch_bytes() const override { return static_cast<size_t>(total_send_ + total_receive_); }

 protected:
  absl::Status Move(Communicator& group, const KernelArguments& arguments) override {
    const auto* const from = static_cast<const std::byte*>(arguments.inputs[0]);
    auto* const to = static_cast<std::byte*>(arguments.outputs[0]);
    auto* const packed = static_cast<std::byte*>(arguments.scratch);
    std::byte* place = packed;
    for (const Range& send : sends_) {
      Copy(place, 0, send.count, from, send.begin, from_extent_, send.count);
      place += outer_ * send.count * inner_bytes_;
    }
    Pending moved = group.AllToAll(packed, send_bytes_, packed + total_send_, receive_bytes_, Options());
    Copy(to, own_.to, to_extent_, from, own_.from, from_extent_, own_.count);
    GANTRY_RETURN_IF_ERROR(moved.Wait());
    place = packed + total_send_;
    for (const Range& receive : receives_) {
      Copy(to, receive.begin, to_extent_, place, 0, receive.count, receive.count);
      place += outer_ * receive.count * inner_bytes_;
    }
    return absl::OkStatus();
  }

 private:
  struct Range {
    int64_t begin = 0, count = 0;
  };
  struct Own {
    int64_t from = 0, to = 0, count = 0;
  };

  // `count` places from place `from_begin` of `from_extent` to place `to_begin` of `to_extent`, for every outer index.
  void Copy(std::byte* to, int64_t to_begin, int64_t to_extent, const std::byte* from, int64_t from_begin, int64_t from_extent, int64_t count) const {
    if (count == 0) return;
    for (int64_t outer = 0; outer < outer_; ++outer) {
      std::memcpy(to + (outer * to_extent + to_begin) * inner_bytes_, from + (outer * from_extent + from_begin) * inner_bytes_,
                  static_cast<size_t>(count * inner_bytes_));
    }
  }

  int64_t outer_ = 1, inner_bytes_ = 1, from_extent_ = 0, to_extent_ = 0, total_send_ = 0, total_receive_ = 0;
  Own own_;
  std::vector<Range> sends_, receives_;
  std::vector<int64_t> send_bytes_, receive_bytes_;
};

}  // namespace

ExchangeKernels::ExchangeKernels() = default;
ExchangeKernels::~ExchangeKernels() = default;

ExchangeKernels::Group& ExchangeKernels::GroupOf(const std::vector<int>& ranks, PlanLane lane) const {
  for (const std::unique_ptr<Group>& group : groups_) {
    if (group->ranks == ranks && group->lane == lane) return *group;
  }
  groups_.push_back(std::make_unique<Group>());
  groups_.back()->ranks = ranks;
  groups_.back()->lane = lane;
  return *groups_.back();
}

void ExchangeKernels::Require(std::vector<int> ranks, PlanLane lane) { GroupOf(ranks, lane); }

Communicator* ExchangeKernels::Find(std::span<const int> ranks) const {
  for (const std::unique_ptr<Group>& group : groups_) {
    if (group->lane == PlanLane::kCompute && std::equal(group->ranks.begin(), group->ranks.end(), ranks.begin(), ranks.end())) {
      return group->communicator;
    }
  }
  return nullptr;
}

absl::StatusOr<std::unique_ptr<Kernel>> ExchangeKernels::Make(const KernelRequest& request) const {
  if (!request.op.communicates) return std::unique_ptr<Kernel>();
  const std::vector<int64_t> ranks = request.attributes.Ints("ranks");
  Communicator* const& group = GroupOf({ranks.begin(), ranks.end()}, LaneOf(request.op, request.attributes)).communicator;
  if (request.op.name == "all_reduce") return std::make_unique<AllReduceKernel>(group, request);
  if (request.op.name == "reduce_scatter") return std::make_unique<ReduceScatterKernel>(group, request);
  const std::vector<int64_t> begins = request.attributes.Ints("from_begins"), ends = request.attributes.Ints("from_ends");
  const std::vector<int64_t> to_begins = request.attributes.Ints("to_begins"), to_ends = request.attributes.Ints("to_ends");
  const Shape& shape = request.inputs[0].shape;
  bool consecutive = true;
  for (int axis = 0; axis < request.attributes.Int("axis"); ++axis) consecutive = consecutive && shape[axis] == 1;
  for (size_t i = 0; i < begins.size(); ++i) consecutive = consecutive && to_begins[i] == 0 && to_ends[i] == ends.back();
  if (!consecutive) return std::make_unique<AxisExchangeKernel>(group, request);
  const int64_t place_bytes = request.outputs[0].shape[static_cast<int>(request.attributes.Int("axis"))] == 0
                                  ? 0
                                  : request.outputs[0].size_bytes() / ends.back();
  std::vector<int64_t> bytes;
  for (size_t i = 0; i < begins.size(); ++i) bytes.push_back((ends[i] - begins[i]) * place_bytes);
  return std::make_unique<AllGatherKernel>(group, request, std::move(bytes));
}

absl::Status ExchangeKernels::Connect(Communicator& world) {
  for (size_t number = 0; number < groups_.size(); ++number) {
    Group& group = *groups_[number];
    if (group.lane == PlanLane::kCompute && std::equal(group.ranks.begin(), group.ranks.end(), world.ranks().begin(), world.ranks().end())) {
      group.communicator = &world;
      continue;
    }
    const auto place = std::find(group.ranks.begin(), group.ranks.end(), world.ranks()[world.rank()]);
    if (place == group.ranks.end()) return absl::InternalError("a rank is not in a group of its own program");
    GANTRY_ASSIGN_OR_RETURN(group.owned, world.Split(group.ranks[0], static_cast<int>(place - group.ranks.begin()),
                                                     absl::StrFormat("group %d of rank %d", number, group.ranks[0])));
    group.communicator = group.owned.get();
  }
  return absl::OkStatus();
}

}  // namespace gantry
