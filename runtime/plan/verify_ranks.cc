#include "runtime/plan/verify_ranks.h"

#include <algorithm>
#include <charconv>
#include <map>

#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace gantry {
namespace {

constexpr char kField = '|';

// All dimensions but `axis`.
std::string OtherDims(const Shape& shape, int axis) {
  std::vector<int64_t> dims = shape.dims();
  dims.erase(dims.begin() + axis);
  return absl::StrJoin(dims, "x");
}

std::string SizesOf(const Program& program, const Op& op) {
  const TensorType& x = program.TypeOf(op.inputs[0]);
  std::string text = absl::StrCat("type ", static_cast<int>(x.dtype));
  if (op.definition->name == "all_reduce") {
    for (ValueId input : op.inputs) absl::StrAppend(&text, " ", program.TypeOf(input).element_count());
    return text;
  }
  const auto Table = [&](std::string_view name) {
    absl::StrAppend(&text, " ", ToAbsl(name), " ", absl::StrJoin(op.attributes.Ints(name), ","));
  };
  if (op.definition->name == "reduce_scatter") {
    absl::StrAppend(&text, " ", absl::StrJoin(x.shape.dims(), "x"));
    for (const std::string_view name : {"begins", "ends"}) Table(name);
    return text;
  }
  const int axis = static_cast<int>(op.attributes.Int("axis"));
  absl::StrAppend(&text, " axis ", axis, " others ", OtherDims(x.shape, axis));
  for (const std::string_view name : {"from_begins", "from_ends", "to_begins", "to_ends"}) Table(name);
  return text;
}

std::string Describe(const RankTrace::Exchange& exchange) {
  return absl::StrFormat("exchange %d, %s for %s among ranks %s%s%s, %s%s", exchange.sequence, exchange.op, exchange.purpose,
                         absl::StrJoin(exchange.ranks, ","), exchange.condition.empty() ? "" : " if ", exchange.condition, exchange.sizes,
                         exchange.beside ? ", beside compute" : "");
}

bool Agree(const RankTrace::Exchange& a, const RankTrace::Exchange& b) {
  return a.op == b.op && a.purpose == b.purpose && a.sequence == b.sequence && a.condition == b.condition && a.sizes == b.sizes;
}

// A communicator, and for each of its ranks the exchanges there, by their place in the rank's trace.
using Key = std::pair<std::vector<int>, PlanLane>;

class RanksVerifier {
 public:
  explicit RanksVerifier(std::span<const RankTrace> ranks) : ranks_(ranks) {}

  absl::Status Run() {
    for (int rank = 0; rank < static_cast<int>(ranks_.size()); ++rank) GANTRY_RETURN_IF_ERROR(CheckOne(rank));
    for (const auto& [key, uses] : uses_) GANTRY_RETURN_IF_ERROR(CheckGroup(key, uses));
    return CheckProgress();
  }

 private:
  using Uses = std::map<int, std::vector<int>>;

  absl::Status CheckOne(int rank) {
    const RankTrace& trace = ranks_[rank];
    const auto Wrong = [&](const RankTrace::Exchange& exchange, std::string_view what) {
      return absl::InternalError(absl::StrFormat("rank %d: %s: %s", rank, Describe(exchange), what));
    };
    for (size_t i = 0; i < trace.exchanges.size(); ++i) {
      const RankTrace::Exchange& exchange = trace.exchanges[i];
      if (i > 0 && exchange.sequence <= trace.exchanges[i - 1].sequence) {
        return Wrong(exchange, absl::StrFormat("it begins after exchange %d, against the order of all ranks", trace.exchanges[i - 1].sequence));
      }
      if (exchange.index < 0 || exchange.index >= static_cast<int>(exchange.ranks.size()) || exchange.ranks[exchange.index] != rank) {
        return Wrong(exchange, "this rank is not in its place there");
      }
      for (const int member : exchange.ranks) {
        if (member < 0 || member >= static_cast<int>(ranks_.size())) return Wrong(exchange, "the job has no such rank");
      }
      std::vector<int>& uses = uses_[{exchange.ranks, exchange.lane}][rank];
      if (!uses.empty() && trace.exchanges[uses.front()].beside != exchange.beside) {
        return Wrong(exchange, "some exchanges of its communicator run beside compute, some do not");
      }
      uses.push_back(static_cast<int>(i));
    }
    // Every exchange begins once, and what runs beside compute is waited for once, later.
    std::vector<int> begun(trace.exchanges.size(), 0), waited(trace.exchanges.size(), 0);
    int next = 0;
    for (const int event : trace.events) {
      const int i = event >= 0 ? event : ~event;
      if (i >= static_cast<int>(trace.exchanges.size())) return absl::InternalError(absl::StrFormat("rank %d: an event of no exchange", rank));
      if (event >= 0) {
        if (i != next++ || begun[i]++ > 0) return Wrong(trace.exchanges[i], "it does not begin in its turn");
      } else if (begun[i] == 0 || waited[i]++ > 0 || !trace.exchanges[i].beside) {
        return Wrong(trace.exchanges[i], "it is waited for before it begins, or twice, or where there is nothing to wait for");
      }
    }
    for (size_t i = 0; i < trace.exchanges.size(); ++i) {
      if (begun[i] == 0) return Wrong(trace.exchanges[i], "it never begins");
      if (trace.exchanges[i].beside && waited[i] == 0) return Wrong(trace.exchanges[i], "nothing waits for it");
    }
    return absl::OkStatus();
  }

  absl::Status CheckGroup(const Key& key, const Uses& uses) {
    const auto& first = uses.begin()->second;
    for (const int member : key.first) {
      const auto found = uses.find(member);
      const size_t count = found == uses.end() ? 0 : found->second.size();
      for (size_t i = 0; i < std::min(count, first.size()); ++i) {
        const RankTrace::Exchange &a = ranks_[uses.begin()->first].exchanges[first[i]], &b = ranks_[member].exchanges[found->second[i]];
        if (!Agree(a, b)) {
          return absl::InternalError(absl::StrFormat("ranks differ: rank %d has %s, rank %d has %s", uses.begin()->first, Describe(a), member, Describe(b)));
        }
      }
      if (count != first.size()) {
        return absl::InternalError(absl::StrFormat("among ranks %s, rank %d has %d exchanges of %s, rank %d has %d", absl::StrJoin(key.first, ","),
                                                   uses.begin()->first, first.size(), Name(key.second), member, count));
      }
    }
    return absl::OkStatus();
  }

  // Compute of each rank goes on until it waits; an exchange is done once it is at the front at all its ranks.
  absl::Status CheckProgress() {
    struct Rank {
      size_t at = 0;                                  // next event
      std::map<PlanLane, std::vector<int>> queues;    // begun beside compute, in order
      std::map<PlanLane, size_t> fronts;
      std::vector<bool> done;
    };
    std::vector<Rank> state(ranks_.size());
    for (size_t rank = 0; rank < ranks_.size(); ++rank) state[rank].done.resize(ranks_[rank].exchanges.size(), false);
    // The exchange of `lane` that the rank would carry out now, or -1; kCompute: the one that compute stands at.
    const auto Front = [&](int rank, const RankTrace::Exchange& like) {
      Rank& r = state[rank];
      if (!like.beside) {
        if (r.at >= ranks_[rank].events.size()) return -1;
        const int event = ranks_[rank].events[r.at];
        return event >= 0 && !ranks_[rank].exchanges[event].beside ? event : -1;
      }
      const std::vector<int>& queue = r.queues[like.lane];
      return r.fronts[like.lane] < queue.size() ? queue[r.fronts[like.lane]] : -1;
    };
    const auto TryFinish = [&](int rank, int number) {
      const RankTrace::Exchange& mine = ranks_[rank].exchanges[number];
      for (const int member : mine.ranks) {
        // Another rank may carry out its part elsewhere: it is the same exchange all the same.
        bool there = false;
        for (const bool beside : {false, true}) {
          RankTrace::Exchange like = mine;
          like.beside = beside;
          const int front = Front(member, like);
          there = there || (front >= 0 && ranks_[member].exchanges[front].sequence == mine.sequence && ranks_[member].exchanges[front].ranks == mine.ranks &&
                            ranks_[member].exchanges[front].lane == mine.lane);
        }
        if (!there) return false;
      }
      for (const int member : mine.ranks) {
        const std::vector<int>& theirs = uses_[{mine.ranks, mine.lane}][member];
        const auto place = std::find_if(theirs.begin(), theirs.end(), [&](int i) { return ranks_[member].exchanges[i].sequence == mine.sequence; });
        state[member].done[*place] = true;
        if (ranks_[member].exchanges[*place].beside) {
          ++state[member].fronts[mine.lane];
        } else {
          ++state[member].at;
        }
      }
      return true;
    };
    for (bool moved = true; moved;) {
      moved = false;
      for (int rank = 0; rank < static_cast<int>(ranks_.size()); ++rank) {
        Rank& r = state[rank];
        const RankTrace& trace = ranks_[rank];
        while (r.at < trace.events.size()) {
          const int event = trace.events[r.at];
          if (event < 0 ? !r.done[~event] : !trace.exchanges[event].beside) break;
          if (event >= 0) r.queues[trace.exchanges[event].lane].push_back(event);
          ++r.at;
          moved = true;
        }
        if (r.at < trace.events.size() && trace.events[r.at] >= 0) moved = TryFinish(rank, trace.events[r.at]) || moved;
        for (auto& [lane, queue] : r.queues) {
          while (r.fronts[lane] < queue.size() && TryFinish(rank, queue[r.fronts[lane]])) moved = true;
        }
      }
    }
    for (int rank = 0; rank < static_cast<int>(ranks_.size()); ++rank) {
      if (state[rank].at == ranks_[rank].events.size()) continue;
      const int event = ranks_[rank].events[state[rank].at];
      return absl::InternalError(absl::StrFormat("rank %d never gets past %s", rank, Describe(ranks_[rank].exchanges[event >= 0 ? event : ~event])));
    }
    return absl::OkStatus();
  }

  const std::span<const RankTrace> ranks_;
  std::map<Key, Uses> uses_;
};

template <typename Number>
bool Read(std::string_view text, Number& number) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc() && end == text.data() + text.size();
}

template <typename Number>
bool ReadList(std::string_view text, std::vector<Number>& numbers) {
  if (text.empty()) return true;
  for (const absl::string_view part : absl::StrSplit(absl::string_view(text.data(), text.size()), ',')) {
    if (!Read({part.data(), part.size()}, numbers.emplace_back())) return false;
  }
  return true;
}

}  // namespace

RankTrace TraceOf(const Plan& plan) {
  const Program& program = plan.program;
  RankTrace trace;
  std::vector<std::vector<int>> waits(plan.schedule.size() + 1);
  for (size_t step = 0; step <= plan.schedule.size(); ++step) {
    for (const int number : waits[step]) trace.events.push_back(~number);
    if (step == plan.schedule.size()) break;
    const PlannedOp& planned = plan.schedule[step];
    const Op& op = program.ops()[planned.op];
    if (!op.definition->communicates) continue;
    const std::vector<int64_t> ranks = op.attributes.Ints("ranks");
    const auto number = static_cast<int>(trace.exchanges.size());
    trace.exchanges.push_back({.op = std::string(op.definition->name), .purpose = op.attributes.String("purpose"), .ranks = {ranks.begin(), ranks.end()},
                               .index = static_cast<int>(op.attributes.Int("index")), .sequence = op.attributes.Int("sequence"),
                               .lane = LaneOf(*op.definition, op.attributes), .beside = planned.done_by >= 0,
                               .condition = op.condition == kNoValue ? std::string() : program.values()[op.condition].name,
                               .sizes = SizesOf(program, op)});
    trace.events.push_back(number);
    if (planned.done_by >= 0) waits[planned.done_by].push_back(number);
  }
  return trace;
}

absl::Status VerifyRanks(std::span<const RankTrace> ranks) { return RanksVerifier(ranks).Run(); }

std::string ToText(const RankTrace& trace) {
  std::string text = absl::StrCat(absl::StrJoin(trace.events, ","), "\n");
  for (const RankTrace::Exchange& exchange : trace.exchanges) {
    absl::StrAppend(&text, absl::StrJoin({exchange.op, exchange.purpose, absl::StrJoin(exchange.ranks, ","), absl::StrCat(exchange.index),
                                          absl::StrCat(exchange.sequence), absl::StrCat(static_cast<int>(exchange.lane)),
                                          std::string(exchange.beside ? "1" : "0"), exchange.condition, exchange.sizes},
                                         std::string(1, kField)),
                    "\n");
  }
  return text;
}

absl::StatusOr<RankTrace> TraceFromText(std::string_view text) {
  RankTrace trace;
  const auto Damaged = [] { return absl::DataLossError("what a rank says about its exchanges cannot be read"); };
  bool first = true;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    if (end == std::string_view::npos) return Damaged();
    const std::string_view line = text.substr(begin, end - begin);
    begin = end + 1;
    if (first) {
      first = false;
      if (!ReadList(line, trace.events)) return Damaged();
      continue;
    }
    const std::vector<std::string> fields = absl::StrSplit(absl::string_view(line.data(), line.size()), kField);
    int lane = 0;
    RankTrace::Exchange exchange;
    if (fields.size() != 9 || !ReadList(fields[2], exchange.ranks) || !Read(fields[3], exchange.index) || !Read(fields[4], exchange.sequence) ||
        !Read(fields[5], lane) || lane < 0 || lane > static_cast<int>(PlanLane::kActivations)) {
      return Damaged();
    }
    exchange.op = fields[0];
    exchange.purpose = fields[1];
    exchange.lane = static_cast<PlanLane>(lane);
    exchange.beside = fields[6] == "1";
    exchange.condition = fields[7];
    exchange.sizes = fields[8];
    trace.exchanges.push_back(std::move(exchange));
  }
  if (first) return Damaged();
  return trace;
}

}  // namespace gantry
