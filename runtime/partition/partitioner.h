// The rewrite behind Partition: a builder of whole ops that emits this rank's share of each.
#pragma once

#include <algorithm>
#include <deque>
#include <limits>
#include <map>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/partition/order_exchanges.h"
#include "runtime/partition/partition.h"
#include "runtime/partition/placement.h"
#include "runtime/partition/window_form.h"

namespace gantry {

// Values that it hands out ("whole values") stand for tensors of the whole program; behind each is a value of this rank's program.
// Gradient rules and decompositions can emit through it. All ranks make the same decisions: they depend on whole types and placements only.
class Partitioner final : public Builder {
 public:
  Partitioner(const Program& source, const PartitionAxis& axis, int index, const std::vector<InputPart>& before);

  absl::StatusOr<RankProgram> Run();
  // Of the program that Run has made.
  ExchangePlaces& places() { return places_; }

  // Builder, of whole values.
  std::vector<ValueId> Emit(std::string_view op, std::span<const ValueId> inputs, Attributes attributes) override;
  const TensorType& TypeOf(ValueId value) const override;
  const absl::Status& status() const override { return target_.status(); }
  void Fail(absl::Status error) override { target_.Fail(std::move(error)); }

 private:
  // A part [begins[i], ends[i]) a rank.
  struct Ranges {
    std::vector<int64_t> begins, ends;
    friend bool operator==(const Ranges&, const Ranges&) = default;
  };
  struct Local {
    Placement placement;
    ValueId value = kNoValue;
  };
  // How a whole value can be made anew in part: a fill, a broadcast.
  struct Recipe {
    std::string op;
    std::vector<ValueId> inputs;
    Attributes attributes;
  };
  struct WholeValue {
    TensorType type;
    Placement placement;
    ValueId local = kNoValue;
    int made_at = -1;               // op of the source; -1: before the first one
    ValueId condition = kNoValue;   // of this rank's program: what is made of it runs under the same
    int recipe = -1;
    ValueId gathered = kNoValue;    // all of it, where it is split or flat
    int gathered_phase = -1;        // the phase that gathered it: flat states are gathered anew in each
    std::vector<std::pair<Placement, ValueId>> parts;  // other parts of it made before
    std::vector<std::pair<std::pair<int, Ranges>, ValueId>> windows;
    std::vector<std::pair<std::pair<int, Ranges>, std::vector<ValueId>>> halos;
  };
  // An operand of a window op, or a part of it, and what of the op it gives: WindowForm::Block.
  struct WindowPart {
    ValueId local = kNoValue;
    Span there;
    Attributes attributes;
  };
  using Locals = std::vector<Local>;

  int ranks() const { return static_cast<int>(axis_.ranks.size()); }
  std::vector<int64_t> Cuts(int64_t extent) const { return CutsOf(extent, ranks(), axis_.shares); }
  bool Splittable(int64_t extent) const { return !Cuts(extent).empty(); }
  bool over_channels() const { return axis_.split == SplitKind::kChannel; }
  bool WideEnough(int64_t channels) const { return channels >= std::max<int64_t>(1, axis_.least_channels) * ranks(); }
  Ranges RangesOf(const std::vector<int64_t>& cuts) const;
  Shape LocalShape(const Shape& whole, const Placement& placement) const;
  // Where a state of the source is held.
  Placement PlaceOf(const State& state) const;

  // Ops of this rank's program.
  ValueId EmitLocal(std::string_view op, std::initializer_list<ValueId> inputs, Attributes attributes);
  std::vector<ValueId> EmitLocal(std::string_view op, std::span<const ValueId> inputs, Attributes attributes);
  // `ready`: the op of the source after which its operands are there.
  std::vector<ValueId> EmitGroupOp(std::string_view op, std::span<const ValueId> locals, Attributes attributes, std::string_view purpose, int ready);
  // "exchange" or "halo".
  std::vector<ValueId> EmitExchange(std::string_view op, const WholeValue& value, int axis, const Ranges& from, const Ranges& to,
                                    std::string_view purpose);
  ValueId LocalSlice(ValueId local, int axis, int64_t begin, int64_t end);
  ValueId LocalReshape(ValueId local, const Shape& shape);
  Attributes GroupAttributes();

  // This rank's form of a whole value, as asked for; made once where that is sound.
  ValueId AsWhole(ValueId value);
  ValueId AsSplit(ValueId value, int dim, const std::vector<int64_t>& cuts);
  ValueId AsFlat(ValueId value, const std::vector<int64_t>& cuts);
  // Places [begins[i], ends[i]) along `dim`, which may overlap.
  ValueId AsWindow(ValueId value, int dim, const Ranges& ranges);
  // What each rank wants beside the places that it holds along `dim`: those before them and those behind them.
  std::vector<ValueId> Halo(ValueId value, int dim, const Ranges& ranges);
  // The operand of an op that is linear in it, for the parts of its other side that begin and end at `cuts`: in parts, of which the own places are
  // read where they are, or else in one part, a copy with all that is wanted. Empty where some rank wants nothing.
  std::vector<WindowPart> AsWindowParts(ValueId value, int dim, const WindowForm& form, WindowSide side, const std::vector<int64_t>& cuts);
  // A sum over ranks that something other than a sum wants: held in parts where that is what becomes of gradients, else whole.
  void Resolve(ValueId value);
  ValueId As(ValueId value, const Placement& placement);
  // A sum over ranks, of which each gets its part along `dim`.
  ValueId ReduceScatter(const WholeValue& value, int dim, const std::vector<int64_t>& cuts, std::string_view purpose, int ready);
  ValueId FromRecipe(const WholeValue& value, int dim, const std::vector<int64_t>& cuts);

  ValueId Add(TensorType type, Local local);

  // Rules: the outputs of an op from the inputs' placements; empty where the rule does not apply.
  Locals Rule(std::string_view op, std::span<const ValueId> inputs, const Attributes& attributes, std::span<const TensorType> outputs);
  Locals EverythingWhole(std::string_view op, std::span<const ValueId> inputs, const Attributes& attributes);
  Locals Elementwise(std::string_view op, std::span<const ValueId> inputs, const Attributes& attributes, const TensorType& output);
  Locals LinearOfPartial(std::string_view op, std::span<const ValueId> inputs, const Attributes& attributes, const TensorType& output);
  // Of a gradient on its way to its parameter, and what every rank has.
  Locals LinearInOnePartial(std::string_view op, std::span<const ValueId> inputs, const Attributes& attributes);
  Locals Reduction(std::string_view op, ValueId x, const Attributes& attributes, const TensorType& output);
  Locals SumSquares(std::span<const ValueId> inputs);
  Locals BroadcastTo(ValueId x, const Attributes& attributes, const TensorType& output);
  Locals ReshapeTo(ValueId x, const TensorType& output);
  Locals AlongUntouchedAxis(std::string_view op, std::span<const ValueId> inputs, Attributes attributes, const TensorType& output);
  Locals Matmul(std::span<const ValueId> inputs, const Attributes& attributes, const TensorType& output);
  Locals Convolution(std::string_view op, std::span<const ValueId> inputs, const Attributes& attributes, const TensorType& output);
  Locals ConvolutionInSpace(std::string_view op, std::span<const ValueId> inputs, const Attributes& attributes, const TensorType& output,
                            int dim);
  Locals WeightGradientInSpace(std::span<const ValueId> inputs, int dim, const WindowForm& form);
  // Of one operand that is in parts along `dim`, or gets so, and parameters that are whole; results in parts along `dim`.
  Locals LinearWindows(std::string_view op, std::span<const ValueId> inputs, const TensorType& output, int dim, const WindowForm& form,
                       WindowSide side);
  // Over channels. Where several ways are open, the one that moves the fewest bytes.
  Locals ConvolutionOverChannels(std::string_view op, std::span<const ValueId> inputs, const Attributes& attributes, const TensorType& output);
  Locals GroupedConvolutionOverChannels(std::string_view op, std::span<const ValueId> inputs, const Attributes& attributes,
                                        const TensorType& output);
  void FindChannelStates();
  // The place of the least, or the one that the axis says; what cannot be has kImpossible.
  static constexpr int64_t kImpossible = std::numeric_limits<int64_t>::max();
  int Choose(std::span<const int64_t> bytes);
  int64_t BytesToMove(ValueId value, const Placement& wanted) const;  // roughly, a rank
  int64_t BytesToSum(const TensorType& type) const;                   // of a result that is a sum of what the ranks have
  // A result in parts along `dim` that a state of this shape wants along another one.
  int64_t BytesToState(const TensorType& type, int dim) const;
  Locals Resampling(std::string_view op, ValueId x, const Attributes& attributes, const TensorType& output);
  Locals Pooling(std::string_view op, std::span<const ValueId> inputs, const Attributes& attributes, const TensorType& output);
  // The spatial dimension along which to share out a result: the one that an operand is shared out along, or -1.
  int SpatialDim(const Placement& operand, const Shape& result) const;
  Locals Normalization(std::string_view op, std::span<const ValueId> inputs, const Attributes& attributes,
                       std::span<const TensorType> outputs);
  Locals NormalizationOverRanks(std::string_view op, std::span<const ValueId> inputs, const Attributes& attributes,
                                std::span<const TensorType> outputs, const Placement& placement);
  Locals GatherRows(std::string_view op, std::span<const ValueId> inputs, const Attributes& attributes, const TensorType& output);
  Locals Update(std::string_view op, std::span<const ValueId> inputs, const Attributes& attributes, std::span<const TensorType> outputs);
  Locals Communication(std::string_view op, std::span<const ValueId> inputs, const Attributes& attributes);

  const Program& source_;
  const PartitionAxis& axis_;
  const int index_;
  const std::vector<InputPart>& before_;
  Program target_;
  std::deque<WholeValue> values_;
  std::vector<Recipe> recipes_;
  std::set<std::string> gathered_;
  std::vector<InputPart> input_parts_;
  std::vector<std::string> crossings_;
  // kChannel, per shape of a state that is split: along what, and where.
  std::map<std::vector<int64_t>, Placement> channel_states_;
  std::vector<int> choices_;
  int64_t sequence_ = 0;  // of exchanges
  std::vector<bool> gradients_only_;  // per op of the source: nothing but updates needs its results
  int at_ = -1;           // op of the source that is being carried out
  bool is_update_ = false;  // it changes states, or takes the norm of what does: sums that it wants are gradients
  ExchangePlaces places_;
};

}  // namespace gantry
