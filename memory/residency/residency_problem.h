// Residency: which values stay on the device, which wait in a tier, which are made again, so that a fixed order of ops fits a
// budget and takes the least time. Generalises rematerialisation (Chen et al. 2016, sublinear memory; Jain et al. 2020,
// Checkmate) and swapping (Rhu et al. 2016, vDNN) on a chain with optimal persistence (Beaumont et al. 2021, POFO) to any
// order of ops. Plain data, no graph: the runtime's planner fills a ResidencyProblem, SolveResidency answers.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"

namespace gantry {

// Something that takes device memory from the op that makes it to the last op that uses it.
struct ResidencyItem {
  std::string name;          // for messages
  int64_t bytes = 0;
  int made_by = -1;          // op; -1: there when the step begins
  std::vector<int> uses;     // ops after made_by that read or change it, ascending, each once
  std::vector<int> changes;  // those of `uses` that change it
  bool kept = false;         // must exist when the step ends: states and outputs
  bool wraps = false;        // is there again when the next step begins (with made_by -1 and kept): states
  uint32_t tiers = ~0u;      // bit t: may be copied to tier t
  int taken_over_by = -1;    // item made by its last use in the same memory; -1: none
};

struct ResidencyOp {
  double seconds = 0.0;
  int64_t scratch_bytes = 0;
  bool repeatable = false;       // may run again with the same inputs: pure, and cheap enough to consider
  std::vector<int> reads;        // items, each once
  std::vector<int> makes;        // items
};

// A place off the device, with a copy lane in each direction.
struct ResidencyTier {
  int64_t budget_bytes = INT64_MAX;
  double out_bytes_per_second = 1e10, in_bytes_per_second = 1e10;
  double latency_seconds = 0.0;  // of each copy
  // What compute loses to a copy that runs beside it, where both need the same cores or memory.
  double out_compute_seconds_per_byte = 0.0, in_compute_seconds_per_byte = 0.0;
};

struct ResidencyProblem {
  std::vector<ResidencyItem> items;
  std::vector<ResidencyOp> ops;  // in the order in which they run
  std::vector<ResidencyTier> tiers;
  int64_t budget_bytes = INT64_MAX;  // of the device
};

// kInvalidArgument names the first item or op that is malformed.
absl::Status ValidateResidencyProblem(const ResidencyProblem& problem);

// What happens to an item between two accesses in a row.
enum class Residence : uint8_t {
  kKeep,       // stays on the device
  kRecompute,  // leaves; its op runs again before the next access
  kTier,       // leaves for tier 0; kTier + t for tier t
};
constexpr Residence InTier(int tier) { return static_cast<Residence>(static_cast<int>(Residence::kTier) + tier); }
constexpr bool IsTier(Residence residence) { return residence >= Residence::kTier; }
constexpr int TierOf(Residence residence) { return static_cast<int>(residence) - static_cast<int>(Residence::kTier); }

// One gap of an item: the time between its accesses. Gap 0 lies before the first use where the item is there when the step
// begins, else between being made and the first use; the last gap follows the last use. For an item that wraps, the first
// and the last gap are one and have the same residence: where it is between steps.
using ResidencyChoice = std::vector<std::vector<Residence>>;  // per item, per gap: uses.size() + 1 of them

// All kKeep.
ResidencyChoice KeepAll(const ResidencyProblem& problem);

// Ops beyond those of the problem that carry a choice out, in order.
struct ResidencyAction {
  enum class Kind : uint8_t {
    kRun,    // the op `op` of the problem
    kAgain,  // the same, once more, for the items in `items`
    kFetch,  // starts copying `item` from its tier to the device; done when action `done_by` begins
    kStash,  // starts copying `item` from the device to its tier, likewise; its device memory is free from done_by on
  };
  Kind kind = Kind::kRun;
  int op = -1;
  int item = -1;
  int tier = -1;
  // Index into the actions; their number: the end of the step. Beyond it, of what wraps: the copy out goes on into the next step, where it is
  // done when the action `done_by` less their number begins.
  int done_by = -1;
  std::vector<int> items;  // kAgain: what it brings back
};

// A choice carried out: actions in order, and what they take.
struct ResidencySchedule {
  bool valid = false;              // false: the choice recomputes something whose inputs have changed since
  std::vector<ResidencyAction> actions;
  double seconds = 0.0;            // predicted, of one step
  double compute_seconds = 0.0;    // of it, ops
  double recompute_seconds = 0.0;  // of them, ops run again
  double wait_seconds = 0.0;       // compute waiting for copies
  double beside_seconds = 0.0;     // what compute lost to copies beside it
  int64_t peak_bytes = 0;          // largest sum of bytes on the device
  int peak_op = -1;                // op at (or before) which it is reached
  std::vector<int64_t> tier_peak_bytes, out_bytes, in_bytes;  // per tier
};

// Works out the schedule of a choice on a virtual clock: fetches start as late as they can and still be ready, as far as the
// budget lets them, and copies out are waited for when their memory is needed, those of states in the next step if need be: the clock is that of
// a step which follows one like it. O(actions log actions).
class ResidencyScheduler {
 public:
  // `problem` must be valid and outlive the scheduler.
  explicit ResidencyScheduler(const ResidencyProblem& problem);
  ResidencySchedule Run(const ResidencyChoice& choice);
  // The same without `actions`, for a search that compares many.
  ResidencySchedule Judge(const ResidencyChoice& choice);

  // Whether the choice can be carried out at all: nothing that it makes again has lost its inputs.
  bool Possible(const ResidencyChoice& choice) { return Expand(choice); }

  // Of the last Run or Judge: bytes on the device at every op of the problem (the largest while its actions run), and how long compute
  // waited there for copies.
  const std::vector<int64_t>& op_bytes() const { return op_bytes_; }
  const std::vector<double>& op_waits() const { return op_waits_; }

 private:
  struct Episode {
    int item;
    int begin, end;  // positions: [begin, end], both inclusive
    int fetch_tier = -1;  // >= 0: fetched
    int stash_tier = -1;  // >= 0: stashed after `end`
    int issue = -1;       // of the fetch: position
    int done_by = -1;     // of the stash: position
    int wraps_to = -1;    // >= 0: position of the next step that it is done by instead
  };
  // A copy out that a step leaves to the next one.
  struct Carried {
    int episode;
    double seconds;  // of it still to come
  };
  struct Position {
    int op;
    bool again;
    std::vector<int> items;
  };
  struct ItemState {
    int episode = -1;         // open one; -1: not on the device
    Residence left_as = Residence::kKeep;
    int tier_copy = -1;       // tier that holds its present content
    int home_tier = -1;       // tier that it is in when the step begins
    int last_episode = -1;
    size_t next_use = 0;
  };

  bool Expand(const ResidencyChoice& choice);
  bool Materialize(int item, int at_op, int depth);
  bool InputsUnchanged(int op, int at_op) const;
  void Open(int item, int position, int fetch_tier);
  void Touch(int item, int position);
  void Leave(int item, Residence residence);
  void PlaceFetches();
  // Episodes of each position, behind one another.
  struct ByPosition {
    std::vector<int> first, episodes;  // those of position p: episodes[first[p]] to episodes[first[p + 1]]
    std::span<const int> at(int position) const {
      return std::span(episodes).subspan(first[position], first[position + 1] - first[position]);
    }
  };
  template <typename PositionOf>
  void Sort(PositionOf position_of, ByPosition& by) const;
  void SortCopies();
  void WalkClock(ResidencySchedule& schedule);
  std::vector<Carried> WalkClock(const std::vector<Carried>& before, ResidencySchedule& schedule);
  void Emit(ResidencySchedule& schedule) const;

  const ResidencyProblem& problem_;
  std::vector<Position> positions_;
  std::vector<Episode> episodes_;
  std::vector<ItemState> states_;
  std::vector<std::pair<int, int64_t>> shared_;  // positions where an episode of one position hands its memory on
  std::vector<int64_t> bytes_;     // per position
  std::vector<double> start_;      // per position, without waits
  ByPosition issues_, needs_, stashes_;  // fetches by where they begin and where they must be done, stashes by what they follow
  std::vector<int64_t> op_bytes_;  // per op
  std::vector<double> op_waits_;   // per op
};

}  // namespace gantry
