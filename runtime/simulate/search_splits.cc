#include <algorithm>
#include <limits>
#include <utility>

#include "runtime/simulate/plan_ranks.h"

namespace gantry {
namespace {

// Predictions this near to the best are taken as equal.
constexpr double kAlike = 1.005;

std::vector<Parallel> AllSplits(const Parallel& base, int ranks) {
  std::vector<Parallel> splits;
  for (const bool roles : {false, true}) {
    if (roles && ranks % 2 != 0) continue;
    const int mesh = roles ? ranks / 2 : ranks;
    for (int batch = mesh; batch >= 1; --batch) {
      if (mesh % batch != 0) continue;
      for (const auto& [channel, shard] : {std::pair(false, false), std::pair(false, true), std::pair(true, false)}) {
        if ((shard && mesh == 1) || (channel && batch == mesh)) continue;
        Parallel split = base;
        split.automatic = false;
        split.roles = roles;
        split.batch = batch > 1;
        split.space = batch < mesh && !channel;
        split.channel = channel;
        split.shard = shard;
        split.batch_ranks = split.batch && split.second() ? batch : 0;
        splits.push_back(std::move(split));
      }
    }
  }
  if (ranks > 1) {
    Parallel split = base;
    split.automatic = false;
    split.pipeline = true;
    splits.push_back(std::move(split));
  }
  return splits;
}

}  // namespace

absl::StatusOr<SplitSearch> SearchSplits(const Program& program, const Parallel& base, int ranks,
                                         const PlanOptions& given) {
  PlanOptions options = given;
  options.advise = false;  // what helps one split is of no use for the choice
  SplitSearch search;
  double best = std::numeric_limits<double>::infinity();
  for (Parallel& split : AllSplits(base, ranks)) {
    SplitCandidate candidate{.parallel = std::move(split)};
    const absl::StatusOr<JobPlan> job = PlanBalanced(program, candidate.parallel, ranks, options, ShareBy::kSpeedAndMemory);
    if (job.ok()) {
      candidate.parallel.shares = job->parallel.shares;
      candidate.fits = true;
      candidate.seconds = job->simulation.seconds;
      candidate.peak_bytes = job->peak_bytes();
      best = std::min(best, candidate.seconds);
    } else {
      // The split is in the line anyway.
      std::string_view message = Message(job.status());
      if (const size_t split = message.find(absl::StrCat("--parallel ", candidate.parallel.Text(), ": "));
          split != std::string_view::npos) {
        message.remove_prefix(message.find(": ", split) + 2);
      }
      candidate.why = std::string(message.substr(0, message.find('\n')));
    }
    search.candidates.push_back(std::move(candidate));
  }
  for (int i = 0; i < static_cast<int>(search.candidates.size()); ++i) {
    const SplitCandidate& candidate = search.candidates[static_cast<size_t>(i)];
    if (!candidate.fits || candidate.seconds > kAlike * best) continue;
    if (search.taken < 0 || candidate.peak_bytes < search.candidates[static_cast<size_t>(search.taken)].peak_bytes)
      search.taken = i;
  }
  for (int i = 0; i < static_cast<int>(search.candidates.size()); ++i) {
    SplitCandidate& candidate = search.candidates[static_cast<size_t>(i)];
    if (!candidate.fits || i == search.taken) continue;
    candidate.why = candidate.seconds > kAlike * best
                        ? absl::StrFormat("%.2f times the seconds of the best", candidate.seconds / best)
                        : "as fast, but takes more bytes";
  }
  return search;
}

std::string Describe(const SplitSearch& search) {
  std::string text = absl::StrFormat("%-28s %10s %14s\n", "split", "seconds", "bytes a rank");
  for (size_t i = 0; i < search.candidates.size(); ++i) {
    const SplitCandidate& candidate = search.candidates[i];
    const std::string numbers = candidate.fits ? absl::StrFormat("%10.4g %14d", candidate.seconds, candidate.peak_bytes)
                                               : absl::StrFormat("%10s %14s", "-", "-");
    absl::StrAppend(&text, absl::StrFormat("%-28s %s  %s\n",
                                           candidate.parallel.TextOrBatch(),
                                           numbers, static_cast<int>(i) == search.taken ? "taken" : candidate.why));
  }
  return text;
}

}  // namespace gantry
