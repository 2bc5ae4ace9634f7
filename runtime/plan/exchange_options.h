// How exchanges between ranks are carried out, as texts of a run file, a flag or the C API give it.
#pragma once

#include <string>
#include <string_view>

#include "memory/status.h"
#include "runtime/plan/plan.h"

namespace gantry {

struct ExchangeOptions {
  // "on": beside compute where the program lets them; "across": the last network's beside the next step, too; "off": each is waited for
  // where it begins. The same bits.
  std::string overlap = "on";
  std::string link;              // "1GB/s,50us": what an exchange takes at least; empty: as fast as it goes
  std::string bucket = "1MiB";   // small gradients of one network go together until they have so many bytes; "0": each alone
};

// What partitioning needs to know of them.
struct ExchangeSettings {
  int64_t bucket_bytes = 0;
  bool across = false;  // across steps
};

// Sets what of PlanOptions belongs to exchanges. kInvalidArgument names the key, "parallel.link", its value
// and what is allowed.
absl::StatusOr<ExchangeSettings> SetExchanges(const ExchangeOptions& exchanges, PlanOptions& options);

// "1GB/s", "50us" or both with a comma, in any order; "1GBps" is "1GB/s".
absl::StatusOr<Throttle> ParseLink(std::string_view text);

}  // namespace gantry
