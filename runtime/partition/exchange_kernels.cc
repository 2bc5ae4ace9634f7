#include "runtime/partition/exchange_kernels.h"

#include <algorithm>
#include <cstring>

#include "ops/cpu/panel/panel_layout.h"

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

// The general exchange along one axis, and halos: what others want of this rank's places is packed, moved and unpacked; what it keeps is
// copied where the result has it, too. What moves is plain, one rank's places behind the other's, however operands lie.
class AxisExchangeKernel final : public ExchangeKernel {
 public:
  AxisExchangeKernel(Communicator* const& group, const KernelRequest& request) : ExchangeKernel(group, request) {
    const std::vector<int64_t> from_begins = request.attributes.Ints("from_begins"), from_ends = request.attributes.Ints("from_ends");
    const std::vector<int64_t> to_begins = request.attributes.Ints("to_begins"), to_ends = request.attributes.Ints("to_ends");
    const int axis = static_cast<int>(request.attributes.Int("axis"));
    const auto index = static_cast<size_t>(request.attributes.Int("index"));
    const bool halo = request.op.name == "halo";
    from_ = Places(request.inputs[0], axis);
    for (const TensorType& output : request.outputs) to_.emplace_back(output, axis);
    const int64_t place_bytes = from_.place_bytes();
    for (size_t i = 0; i < from_begins.size(); ++i) {
      const auto Overlap = [&](size_t holder, size_t taker) {
        const int64_t begin = std::max(from_begins[holder], to_begins[taker]), end = std::min(from_ends[holder], to_ends[taker]);
        return std::pair(begin, std::max<int64_t>(0, end - begin));
      };
      const auto [send_begin, send_count] = Overlap(index, i);
      const auto [receive_begin, receive_count] = Overlap(i, index);
      if (i == index) {
        if (!halo) own_ = {send_begin - from_begins[index], receive_begin - to_begins[index], send_count};
        send_bytes_.push_back(0);
        receive_bytes_.push_back(0);
        sends_.push_back({});
        receives_.push_back({});
        continue;
      }
      const bool behind = halo && i > index;  // the second result begins where the own places end
      sends_.push_back({.begin = send_begin - from_begins[index], .count = send_count});
      receives_.push_back({behind ? size_t{1} : size_t{0}, receive_begin - (behind ? from_ends[index] : to_begins[index]), receive_count});
      send_bytes_.push_back(send_count * place_bytes);
      receive_bytes_.push_back(receive_count * place_bytes);
      total_send_ += send_bytes_.back();
      total_receive_ += receive_bytes_.back();
    }
  }
  size_t scratch_bytes() const override { return static_cast<size_t>(total_send_ + total_receive_); }

 protected:
  absl::Status Move(Communicator& group, const KernelArguments& arguments) override {
    const auto* const from = static_cast<const std::byte*>(arguments.inputs[0]);
    auto* const packed = static_cast<std::byte*>(arguments.scratch);
    std::byte* place = packed;
    for (size_t i = 0; i < sends_.size(); ++i) {
      from_.Pack(from, sends_[i].begin, sends_[i].count, place);
      place += send_bytes_[i];
    }
    Pending moved = group.AllToAll(packed, send_bytes_, packed + total_send_, receive_bytes_, Options());
    if (own_.count > 0) from_.Copy(from, own_.from, to_[0], static_cast<std::byte*>(arguments.outputs[0]), own_.to, own_.count);
    GANTRY_RETURN_IF_ERROR(moved.Wait());
    place = packed + total_send_;
    for (size_t i = 0; i < receives_.size(); ++i) {
      const Range& receive = receives_[i];
      to_[receive.output].Unpack(place, receive.count, static_cast<std::byte*>(arguments.outputs[receive.output]), receive.begin);
      place += receive_bytes_[i];
    }
    return absl::OkStatus();
  }

 private:
  // A tensor as places along the axis: for each of `outer_` indices before it `extent_` places of `inner_bytes_`. In panels, rows lie together.
  class Places {
   public:
    Places() = default;
    Places(const TensorType& type, int axis) : panel_(type.layout == TensorLayout::kPanel), shape_(type.shape), extent_(type.shape[axis]) {
      inner_bytes_ = static_cast<int64_t>(gantry::SizeBytes(type.dtype));
      for (int a = 0; a < axis; ++a) outer_ *= shape_[a];
      for (int a = axis + 1; a < shape_.rank(); ++a) inner_bytes_ *= shape_[a];
    }
    int64_t place_bytes() const { return outer_ * inner_bytes_; }

    void Pack(const std::byte* data, int64_t begin, int64_t count, std::byte* packed) const {
      if (count == 0) return;
      if (panel_) return cpu::PanelToPlain(Row(data, begin), shape_[0], shape_[1], count, shape_[3], reinterpret_cast<float*>(packed), 1);
      for (int64_t outer = 0; outer < outer_; ++outer) Move(Place(data, outer, begin), packed + outer * count * inner_bytes_, count);
    }
    void Unpack(const std::byte* packed, int64_t count, std::byte* data, int64_t begin) const {
      if (count == 0) return;
      if (panel_) return cpu::PlainToPanel(reinterpret_cast<const float*>(packed), shape_[0], shape_[1], count, shape_[3], Row(data, begin), 1);
      for (int64_t outer = 0; outer < outer_; ++outer) Move(packed + outer * count * inner_bytes_, Place(data, outer, begin), count);
    }
    // Of plain tensors.
    void Copy(const std::byte* data, int64_t begin, const Places& to, std::byte* to_data, int64_t to_begin, int64_t count) const {
      for (int64_t outer = 0; outer < outer_; ++outer) Move(Place(data, outer, begin), to.Place(to_data, outer, to_begin), count);
    }

   private:
    template <typename Byte>
    Byte* Place(Byte* data, int64_t outer, int64_t place) const {
      return data + (outer * extent_ + place) * inner_bytes_;
    }
    int64_t RowFloats() const { return cpu::PanelFloats(shape_[0], shape_[1], 1, shape_[3]); }
    const float* Row(const std::byte* data, int64_t row) const { return reinterpret_cast<const float*>(data) + row * RowFloats(); }
    float* Row(std::byte* data, int64_t row) const { return reinterpret_cast<float*>(data) + row * RowFloats(); }
    void Move(const std::byte* from, std::byte* to, int64_t count) const { std::memcpy(to, from, static_cast<size_t>(count * inner_bytes_)); }

    bool panel_ = false;
    Shape shape_;
    int64_t outer_ = 1, extent_ = 0, inner_bytes_ = 0;
  };
  struct Range {
    size_t output = 0;
    int64_t begin = 0, count = 0;
  };
  struct Own {
    int64_t from = 0, to = 0, count = 0;
  };

  Places from_;
  std::vector<Places> to_;
  int64_t total_send_ = 0, total_receive_ = 0;
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
  if (request.op.name == "halo") return std::make_unique<AxisExchangeKernel>(group, request);
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
