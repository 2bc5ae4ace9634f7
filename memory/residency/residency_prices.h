// A residency choice from prices: what a byte on the device costs at every op, and what a second of a copy lane costs.
#pragma once

#include <vector>

#include "memory/residency/residency_gaps.h"

namespace gantry {

// Lagrangian relaxation of residency: once memory and lanes have prices, items do not compete any more, and each has a cheapest way of its own
// (Fisher, Management Science 27, 1981; for intervals that share a resource: Bar-Noy et al., Journal of the ACM 48, 2001). Whoever
// sets the prices raises them where memory is short.
class ResidencyPricer {
 public:
  // Both must outlive the object.
  ResidencyPricer(const ResidencyProblem& problem, const ResidencyGaps& gaps);

  // The cheapest choice, item by item. `byte_seconds` [ops]: seconds that a byte costs which is on the device while the op runs;
  // `lane_price`: seconds that a second of a lane costs. What running again costs depends on where its operands are: that is taken from
  // the call before.
  const ResidencyChoice& Choose(const std::vector<double>& byte_seconds, double lane_price);

  // Seconds by which copying out and back costs a byte and op of an average gap, lanes at price 1: a price to begin with.
  double TypicalByteSeconds() const;

 private:
  struct Way {
    double seconds = 0.0;
    std::vector<Residence> gaps;
  };

  double Held(int first, int last) const;  // price of a byte on the device during ops first to last, both included
  int OpAt(double seconds) const;          // op that runs then, without waits
  double TierCost(int item, int tier, int from, int to, bool out, bool in) const;
  double AgainCost(int item, int at, int depth) const;
  Way WayOf(int item) const;
  Way WayThrough(int item, int tier, bool home) const;

  const ResidencyProblem& problem_;
  const ResidencyGaps& gaps_;
  const int ops_;
  std::vector<double> start_;   // of each op, without waits; the step's length behind them
  std::vector<double> prices_;  // sums of byte_seconds before each op
  double lane_price_ = 1.0;
  ResidencyChoice choice_;
};

}  // namespace gantry
