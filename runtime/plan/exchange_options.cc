#include "runtime/plan/exchange_options.h"

#include <algorithm>

#include "runtime/plan/memory_options.h"

namespace gantry {

absl::StatusOr<Throttle> ParseLink(std::string_view text) {
  Throttle link;
  const auto Wrong = [&] {
    return absl::InvalidArgumentError(absl::StrFormat("\"%s\" is no link; write a rate, a latency, or both: \"1GB/s,50us\"", text));
  };
  for (std::string_view rest = text; !rest.empty();) {
    const size_t comma = std::min(rest.find(','), rest.size());
    std::string part(rest.substr(0, comma));
    rest = comma < rest.size() ? rest.substr(comma + 1) : std::string_view();
    if (part.ends_with("ps") && !part.ends_with("/s")) part.replace(part.size() - 2, 2, "/s");
    if (part.ends_with("/s")) {
      const absl::StatusOr<double> rate = ParseRate(part);
      if (!rate.ok() || link.bytes_per_second > 0) return Wrong();
      link.bytes_per_second = *rate;
    } else {
      const absl::StatusOr<double> latency = ParseSeconds(part);
      if (!latency.ok() || *latency > 60 || link.latency_seconds > 0) return Wrong();
      link.latency_seconds = *latency;
    }
  }
  return link;
}

absl::StatusOr<ExchangeSettings> SetExchanges(const ExchangeOptions& exchanges, PlanOptions& options) {
  const absl::StatusOr<Throttle> link = ParseLink(exchanges.link);
  if (!link.ok()) return Annotate(link.status(), "parallel.link");
  const absl::StatusOr<int64_t> bucket = ParseBytes(exchanges.bucket);
  if (!bucket.ok()) return Annotate(bucket.status(), "parallel.bucket");
  if (exchanges.overlap != "on" && exchanges.overlap != "off" && exchanges.overlap != "across") {
    return absl::InvalidArgumentError(absl::StrFormat("parallel.overlap is \"%s\"; it must be \"on\", \"across\" or \"off\"", exchanges.overlap));
  }
  options.overlap = exchanges.overlap != "off";
  options.link = *link;
  return ExchangeSettings{.bucket_bytes = *bucket, .across = exchanges.overlap == "across"};
}

}  // namespace gantry
