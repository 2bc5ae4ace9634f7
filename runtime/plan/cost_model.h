// What ops and copies cost: analytic at first, measured once a machine file has samples of their kind.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "runtime/plan/link_model.h"
#include "runtime/plan/machine.h"
#include "runtime/plan/plan.h"

namespace gantry {

// What an op does, whatever it runs on.
struct OpWork {
  double flops = 0;  // multiplications and additions, as the op is defined: a Winograd form does fewer
  double bytes = 0;  // read and written, each operand once
};
OpWork WorkOf(const Program& program, OpId op);
// Ops of one kind on one implementation: "panel_conv forward, panel winograd4 avx2".
std::string FamilyOf(const Op& op, const Kernel& kernel);

// Thread-safe once made. Its options must outlive it.
class CostModel {
 public:
  explicit CostModel(const PlanOptions& options);

  // Of the op on its kernel; 0 for a view or a copy, whose kernel is null; of an exchange, on its link. Where the machine has samples of its family: the analytic
  // seconds times what the nearest samples took of theirs, interpolated on logarithms of flops and bytes by inverse distance
  // (Shepard, A two-dimensional interpolation function for irregularly-spaced data, ACM 1968). Samples are of the nearest number of
  // threads; those taken with another number of ranks at work count as farther away.
  double Seconds(const Program& program, OpId op, const Kernel* kernel) const;
  // Of all ops of a plan's schedule, one after another.
  double Seconds(const Plan& plan) const;
  // A tier's lanes.
  ResidencyTier TierOf(const TierOptions& tier) const;

 private:
  double Analytic(const OpWork& work) const;
  // Of an exchange once all ranks have come: on the links that the machine describes, else the link's latency, and LinkBytes at its rate.
  double ExchangeSeconds(const Program& program, OpId id) const;

  const PlanOptions& options_;
  const LinkModel links_;
  struct Measured {
    const MeasuredKernel* kernel = nullptr;
    double distance = 0;  // of all its samples, at least
  };
  std::map<std::string, std::vector<Measured>, std::less<>> measured_;  // by family
};

// Where the seconds of a plan come from: "measured, machine-1-0123456789abcdef.toml, 0123456789abcdef" or "analytic".
std::string CostText(const PlanOptions& options);

}  // namespace gantry
