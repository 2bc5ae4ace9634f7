#include "runtime/partition/pipeline.h"

#include <algorithm>
#include <limits>
#include <map>
#include <numeric>
#include <queue>
#include <set>

#include "ops/functional.h"
#include "runtime/graph/rewrite.h"
#include "runtime/partition/homes.h"

namespace gantry {
namespace {

constexpr int64_t kSmallBytes = 4096;
constexpr char kStageMark[] = "|";  // between a network and the stage
// Of a core: what layers weigh against each other. The order of magnitude matters, not the machine.
constexpr double kFlopsPerSecond = 5e10, kBytesPerSecond = 1e10;
constexpr double kLinkBytesPerSecond = 4e9, kLinkLatencySeconds = 2e-5;

double Seconds(const Program& program, const Op& op) {
  if (op.definition->is_view) return 0.0;
  std::vector<TensorType> inputs, outputs;
  double bytes = 0.0;
  for (ValueId input : op.inputs) inputs.push_back(program.TypeOf(input));
  for (ValueId output : op.outputs) outputs.push_back(program.TypeOf(output));
  for (const std::vector<TensorType>& types : {inputs, outputs}) {
    for (const TensorType& type : types) bytes += static_cast<double>(type.size_bytes());
  }
  const double flops = op.definition->cost == nullptr ? 0.0 : op.definition->cost(inputs, outputs, op.attributes).flops;
  return flops / kFlopsPerSecond + bytes / kBytesPerSecond;
}

bool IsNorm(const Op& op) { return op.definition->name == "sum_squares"; }

// A norm over weights of several stages: each tensor's by itself, then their sum.
absl::StatusOr<Program> SplitNorms(const Program& program) {
  Program target;
  ProgramCopier copier(program, target);
  for (OpId id = 0; id < static_cast<OpId>(program.ops().size()); ++id) {
    const Op& op = program.ops()[id];
    if (!IsNorm(op) || op.inputs.size() < 2) {
      copier.Copy(id);
      continue;
    }
    copier.SetLabels(op);
    ValueId sum = kNoValue;
    for (ValueId input : op.inputs) {
      const ValueId one[] = {copier.Mapped(input)};
      const ValueId squares = ops::SumSquares(target, one);
      sum = sum == kNoValue ? squares : ops::Add(target, sum, squares);
    }
    copier.Map(op.outputs[0], sum);
    target.NameValue(sum, program.values()[op.outputs[0]].name);
  }
  copier.Finish();
  GANTRY_RETURN_IF_ERROR(target.status());
  return target;
}

// Which layer every op and state belongs to. A layer is what reads some states of a network, or makes what they read next.
class Layers {
 public:
  explicit Layers(const Program& program) : program_(program), state_of_(program.values().size(), -1), layer_of_state_(program.states().size(), kNone) {
    for (size_t s = 0; s < program.states().size(); ++s) state_of_[program.states()[s].first] = static_cast<int>(s);
    for (const Op& op : program.ops()) {
      for (int u = 0; u < UpdateCount(op); ++u) state_of_[op.outputs[u]] = state_of_[op.inputs[u]];
    }
    FindLayers();
    Pull();
    Place();
  }

  int count() const { return static_cast<int>(network_.size()); }
  const std::string& network(int layer) const { return network_[layer]; }
  double seconds(int layer) const { return seconds_[layer]; }
  int OfState(size_t state) const { return layer_of_state_[state]; }
  int OfOp(OpId op) const { return layer_of_op_[op]; }  // kEverywhere: small, and of inputs alone

 private:
  static constexpr int kNone = -2;

  bool Reads(const Op& op) const { return UpdateCount(op) == 0 && !IsNorm(op); }

  // States that one op reads, as they are or as something made of states alone (a reshaped weight, one over its spectral norm), are of one layer. Layers are
  // in the order in which something else meets them first.
  void FindLayers() {
    std::vector<int> parent(program_.states().size());
    std::iota(parent.begin(), parent.end(), 0);
    const auto Root = [&](int state) {
      while (parent[state] != state) state = parent[state];
      return state;
    };
    std::vector<int> met;  // in that order
    made_of_.resize(program_.values().size());
    for (size_t value = 0; value < state_of_.size(); ++value) {
      if (state_of_[value] >= 0) made_of_[value] = {state_of_[value]};
    }
    std::vector<bool> constant(program_.values().size(), false);
    for (const Op& op : program_.ops()) {
      if (!Reads(op)) continue;
      std::set<int> states;
      bool alone = true;
      for (ValueId input : op.inputs) {
        states.insert(made_of_[input].begin(), made_of_[input].end());
        alone = alone && (constant[input] || !made_of_[input].empty());
      }
      for (ValueId output : op.outputs) {
        constant[output] = alone && states.empty();
        if (alone) made_of_[output] = states;
      }
      if (alone || states.empty()) continue;
      for (const int state : states) {
        met.push_back(state);
        parent[Root(state)] = Root(*states.begin());
      }
    }
    std::map<int, int> layers;  // by root
    for (const int state : met) {
      const auto [found, made] = layers.emplace(Root(state), static_cast<int>(network_.size()));
      if (made) network_.push_back(program_.states()[state].network);
      layer_of_state_[state] = found->second;
    }
    if (network_.empty()) network_.emplace_back();
    seconds_.assign(network_.size(), 0.0);
  }

  // The layer of the states that an op reads, or updates; kNone.
  int Anchor(const Op& op) const {
    if (IsNorm(op)) return kNone;
    for (size_t i = 0; i < op.inputs.size() && (i == 0 || Reads(op)); ++i) {
      for (const int state : made_of_[op.inputs[i]]) {
        if (layer_of_state_[state] != kNone) return layer_of_state_[state];
      }
    }
    return kNone;
  }

  // The layer that first wants a value, directly or through others.
  void Pull() {
    pull_.assign(program_.values().size(), kNone);
    for (auto op = program_.ops().rbegin(); op != program_.ops().rend(); ++op) {
      int layer = Anchor(*op);
      for (ValueId output : op->outputs) {
        if (layer == kNone) layer = pull_[output];
      }
      if (layer == kNone) continue;
      for (ValueId input : op->inputs) pull_[input] = layer;
    }
  }

  void Place() {
    const auto Of = [&](std::vector<int>& set, int layer) { return std::find(set.begin(), set.end(), layer) != set.end(); };
    std::vector<std::vector<int>> where(program_.values().size());  // layers that have a value; empty: everywhere
    for (size_t s = 0; s < program_.states().size(); ++s) {
      if (layer_of_state_[s] != kNone) where[program_.states()[s].first] = {layer_of_state_[s]};
    }
    for (const Op& op : program_.ops()) {
      const int updates = UpdateCount(op);
      int layer = Anchor(op);
      if (layer == kNone) layer = Cheapest(op, where);
      layer_of_op_.push_back(layer);
      // Moments, averages and statistics are where their update is.
      for (int u = 0; u < updates; ++u) {
        const int state = state_of_[op.inputs[u]];
        if (state < 0 || layer_of_state_[state] != kNone) continue;
        layer_of_state_[state] = layer == kEverywhere ? 0 : layer;
        where[program_.states()[state].first] = {layer_of_state_[state]};
      }
      if (layer == kEverywhere) continue;
      seconds_[layer] += Seconds(program_, op);
      for (ValueId input : op.inputs) {
        if (!where[input].empty() && !Of(where[input], layer)) where[input].push_back(layer);
      }
      for (ValueId output : op.outputs) where[output] = {layer};
    }
    for (int& layer : layer_of_state_) layer = std::max(layer, 0);  // nobody uses it
  }

  // Where the fewest bytes have to go to, counting the result's way to who wants it; of equals where the last operand was made.
  int Cheapest(const Op& op, std::vector<std::vector<int>>& where) const {
    int64_t made = 0;
    for (ValueId output : op.outputs) made += program_.TypeOf(output).size_bytes();
    const int wanted = op.outputs.empty() ? kNone : pull_[op.outputs[0]];
    std::vector<std::pair<ValueId, int>> candidates;
    for (ValueId input : op.inputs) {
      for (const int layer : where[input]) candidates.emplace_back(input, layer);
    }
    if (candidates.empty()) {
      if (made <= kSmallBytes && !op.definition->communicates && UpdateCount(op) == 0) return kEverywhere;
      return std::max(wanted, 0);
    }
    std::stable_sort(candidates.begin(), candidates.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
    int best = kNone;
    int64_t least = std::numeric_limits<int64_t>::max();
    for (const auto& [value, layer] : candidates) {
      int64_t bytes = wanted == kNone || wanted == layer ? 0 : made;
      for (ValueId input : op.inputs) {
        const bool missing = !where[input].empty() && std::find(where[input].begin(), where[input].end(), layer) == where[input].end();
        bytes += missing ? program_.TypeOf(input).size_bytes() : 0;
      }
      if (bytes < least) {
        least = bytes;
        best = layer;
      }
    }
    return best;
  }

  const Program& program_;
  std::vector<int> state_of_;        // per value: the state that it is a version of; -1
  std::vector<std::set<int>> made_of_;  // per value: the states that it is made of, and of nothing else
  std::vector<int> layer_of_state_;     // per state
  std::vector<std::string> network_;  // per layer
  std::vector<double> seconds_;       // likewise
  std::vector<int> pull_;             // per value
  std::vector<int> layer_of_op_;
};

// Where stages begin, that the longest takes the least: `seconds` of layers, in at most as many runs as there are stages, which take `others` beside. Stage of
// each layer.
std::vector<int> Balance(const std::vector<double>& seconds, const std::vector<double>& others) {
  const size_t count = seconds.size();
  const int stages = static_cast<int>(others.size());
  std::vector<double> until(count + 1, 0.0);
  for (size_t i = 0; i < count; ++i) until[i + 1] = until[i] + seconds[i];
  // best[s][i]: the longest of s + 1 stages of the first i layers; from[s][i]: where the last of them begins.
  std::vector<std::vector<double>> best(stages, std::vector<double>(count + 1));
  std::vector<std::vector<size_t>> from(stages, std::vector<size_t>(count + 1, 0));
  for (size_t i = 0; i <= count; ++i) best[0][i] = others[0] + until[i];
  for (int s = 1; s < stages; ++s) {
    for (size_t i = 0; i <= count; ++i) {
      best[s][i] = std::numeric_limits<double>::infinity();
      for (size_t begin = 0; begin <= i; ++begin) {
        const double longest = std::max(best[s - 1][begin], others[s] + until[i] - until[begin]);
        if (longest < best[s][i]) {
          best[s][i] = longest;
          from[s][i] = begin;
        }
      }
    }
  }
  std::vector<int> stage(count, 0);
  size_t end = count;
  for (int s = stages - 1; s >= 0; --s) {
    const size_t begin = s == 0 ? 0 : from[s][end];
    for (size_t i = begin; i < end; ++i) stage[i] = s;
    end = begin;
  }
  return stage;
}

std::vector<int> StagesOfLayers(const Layers& layers, std::span<const std::string> forward, int stages) {
  std::map<std::string, std::vector<int>> networks;
  for (int layer = 0; layer < layers.count(); ++layer) networks[layers.network(layer)].push_back(layer);
  constexpr int kNoStage = -1, kRounds = 4;
  std::vector<int> stage_of(layers.count(), kNoStage);
  // One network after the other is cut anew, with the others as they are.
  for (int round = 0; round < kRounds; ++round) {
    for (const auto& [network, members] : networks) {
      const bool first_to_last = std::ranges::find(forward, network) != forward.end();
      std::vector<double> seconds, others(stages, 0.0);
      for (const int layer : members) seconds.push_back(layers.seconds(layer));
      for (int layer = 0; layer < layers.count(); ++layer) {
        if (stage_of[layer] != kNoStage && layers.network(layer) != network) others[stage_of[layer]] += layers.seconds(layer);
      }
      if (!first_to_last) std::ranges::reverse(others);
      const std::vector<int> balanced = Balance(seconds, others);
      for (size_t i = 0; i < members.size(); ++i) stage_of[members[i]] = first_to_last ? balanced[i] : stages - 1 - balanced[i];
    }
  }
  return stage_of;
}

// The order in which stages begin ops if each takes the first of the program that is ready.
std::vector<OpId> OrderOfStages(const Program& program, const std::vector<int>& home, int stages) {
  const auto count = static_cast<OpId>(program.ops().size());
  std::vector<std::set<OpId>> after(count);  // what waits for an op
  std::vector<int> missing(count, 0);
  const auto Wait = [&](OpId op, OpId first) {
    if (first != op && after[first].insert(op).second) ++missing[op];
  };
  std::vector<std::vector<OpId>> readers(program.values().size());  // of a value and of its views
  std::vector<ValueId> viewed(program.values().size());             // per value: whose memory it is
  std::iota(viewed.begin(), viewed.end(), 0);
  for (OpId id = 0; id < count; ++id) {
    const Op& op = program.ops()[id];
    if (op.definition->is_view) viewed[op.outputs[0]] = viewed[op.inputs[0]];
    for (ValueId input : op.inputs) {
      if (program.values()[input].kind == ValueKind::kComputed) Wait(id, program.values()[input].producer);
    }
    // Who reads a version comes before the next one is written over it.
    for (int u = 0; u < UpdateCount(op); ++u) {
      for (const OpId reader : readers[op.inputs[u]]) Wait(id, reader);
    }
    for (ValueId input : op.inputs) readers[viewed[input]].push_back(id);
  }
  using Ready = std::priority_queue<OpId, std::vector<OpId>, std::greater<>>;
  std::vector<Ready> ready(stages);                 // per stage: what it could begin now
  std::vector<double> free(stages, 0.0), arrives(count, 0.0);
  std::multimap<double, OpId> coming;              // what has all operands, when they are there
  std::vector<OpId> order;
  // Ops for everywhere are small: the first stage's.
  const auto StageOf = [&](OpId op) { return std::max(home[op], 0); };
  const auto IsMissingNothing = [&](OpId op) { coming.emplace(arrives[op], op); };
  for (OpId id = 0; id < count; ++id) {
    if (missing[id] == 0) IsMissingNothing(id);
  }
  double now = 0.0;
  while (static_cast<OpId>(order.size()) < count) {
    for (; !coming.empty() && coming.begin()->first <= now; coming.erase(coming.begin())) ready[StageOf(coming.begin()->second)].push(coming.begin()->second);
    bool began = false;
    for (int stage = 0; stage < stages; ++stage) {
      if (free[stage] > now || ready[stage].empty()) continue;
      const OpId op = ready[stage].top();
      ready[stage].pop();
      began = true;
      order.push_back(op);
      free[stage] = now + Seconds(program, program.ops()[op]);
      for (const OpId next : after[op]) {
        double there = free[stage];
        if (home[op] != kEverywhere && StageOf(next) != stage) {
          double bytes = 0.0;
          for (ValueId output : program.ops()[op].outputs) bytes += static_cast<double>(program.TypeOf(output).size_bytes());
          there += kLinkLatencySeconds + bytes / kLinkBytesPerSecond;
        }
        arrives[next] = std::max(arrives[next], there);
        if (--missing[next] == 0) IsMissingNothing(next);
      }
    }
    if (began) continue;
    // Nothing begins now: to the next moment at which something could.
    double next = std::numeric_limits<double>::infinity();
    if (!coming.empty()) next = coming.begin()->first;
    for (int stage = 0; stage < stages; ++stage) {
      if (!ready[stage].empty()) next = std::min(next, free[stage]);
    }
    now = std::max(now, next);
  }
  return order;
}

}  // namespace

absl::StatusOr<StagedProgram> AssignStages(const Program& program, std::span<const std::string> forward, int stages) {
  if (stages < 2 || stages > kMostHomes) {
    return absl::InvalidArgumentError(absl::StrFormat("a pipeline has 2 to %d stages, not %d", kMostHomes, stages));
  }
  GANTRY_ASSIGN_OR_RETURN(const Program source, SplitNorms(program));
  const Layers layers(source);
  const std::vector<int> stage_of = StagesOfLayers(layers, forward, stages);
  std::vector<int> home;
  for (OpId op = 0; op < static_cast<OpId>(source.ops().size()); ++op) {
    home.push_back(layers.OfOp(op) == kEverywhere ? kEverywhere : stage_of[layers.OfOp(op)]);
  }
  // The ops of the ordered program by stage, then with the stage in their labels.
  Program ordered;
  ProgramCopier copier(source, ordered);
  const std::vector<OpId> order = OrderOfStages(source, home, stages);
  for (const OpId op : order) copier.Copy(op);
  copier.Finish();
  GANTRY_RETURN_IF_ERROR(ordered.status());
  StagedProgram staged;
  ProgramCopier marker(ordered, staged.program);
  for (OpId op = 0; op < static_cast<OpId>(order.size()); ++op) {
    marker.Copy(op);
    staged.program.SetOpNetwork(static_cast<OpId>(staged.program.ops().size()) - 1,
                                absl::StrCat(ordered.labels()[ordered.ops()[op].network], kStageMark, home[order[op]]));
  }
  marker.Finish();
  GANTRY_RETURN_IF_ERROR(staged.program.status());
  for (size_t state = 0; state < source.states().size(); ++state) {
    staged.stage_of_state[source.states()[state].name] = stage_of[layers.OfState(state)];
  }
  return staged;
}

absl::StatusOr<Program> PartitionPipeline(const Program& program, const StagedProgram& staged, std::span<const int> ranks, int stage) {
  const auto Split = [&](const Op& op) { return std::string_view(program.labels()[op.network]).rfind(kStageMark); };
  for (const Op& op : program.ops()) {
    if (Split(op) == std::string_view::npos) return absl::InternalError("an op of a pipeline has no stage");
  }
  for (const State& state : program.states()) {
    if (!staged.stage_of_state.contains(state.whole.empty() ? state.name : state.whole)) {
      return absl::InternalError(absl::StrFormat("state '%s' of a pipeline has no stage", state.name));
    }
  }
  const Homes homes{
      .of_state = [&](const State& state) { return staged.stage_of_state.find(state.whole.empty() ? state.name : state.whole)->second; },
      .of_op = [&](const Op& op, std::span<const RankSet>) { return std::stoi(program.labels()[op.network].substr(Split(op) + 1)); },
      .network = [&](const Op& op) { return program.labels()[op.network].substr(0, Split(op)); }};
  return PartitionByHomes(program, ranks, stage, homes);
}

}  // namespace gantry
