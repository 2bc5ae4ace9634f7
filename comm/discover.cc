// Which job this process belongs to, from the environment.
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <charconv>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "comm/job.h"
#include "comm/socket.h"

namespace gantry {
namespace {

constexpr int kMaxRanks = 1 << 20;

std::optional<std::string> Variable(const char* name) {
  const char* value = std::getenv(name);
  if (value == nullptr) return std::nullopt;
  return std::string(value);
}

absl::StatusOr<int> ParseNumber(std::string_view name, std::string_view text, int low, int high) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < low || value > high) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s is '%s'; it takes a number from %d to %d", std::string(name), std::string(text), low, high));
  }
  return value;
}

// The variables of one way to describe a job. Asking for one that is not there makes the set partial, which is an error that names it.
class VariableSet {
 public:
  VariableSet(std::string_view set, std::string_view because) : set_(set), because_(because) {}

  absl::StatusOr<std::string> Text(const char* name) const {
    if (std::optional<std::string> value = Variable(name)) return *value;
    return absl::InvalidArgumentError(absl::StrFormat("%s is set, so this is a rank of a job described by %s, but %s is missing",
                                                      because_, set_, name));
  }
  absl::StatusOr<int> Number(const char* name, int low, int high) const {
    GANTRY_ASSIGN_OR_RETURN(const std::string text, Text(name));
    return ParseNumber(name, text, low, high);
  }

 private:
  const std::string set_, because_;
};

absl::Status CheckRank(const Job& job, std::string_view rank_name, std::string_view size_name) {
  if (job.rank < job.size) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat("%s is %d, but %s is %d", std::string(rank_name), job.rank, std::string(size_name), job.size));
}

// Descriptors that the launcher passed; each process can take them once.
absl::StatusOr<int> TakeDescriptor(const char* name, std::string_view text) {
  GANTRY_ASSIGN_OR_RETURN(const int descriptor, ParseNumber(name, text, 0, 1 << 24));
  const int flags = fcntl(descriptor, F_GETFD);
  if (flags < 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "%s names descriptor %d, which is not open: a program between the launcher and this one has closed it", name, descriptor));
  }
  fcntl(descriptor, F_SETFD, flags | FD_CLOEXEC);
  return descriptor;
}

absl::StatusOr<int> TakeSocket(const char* name, std::string_view text) {
  GANTRY_ASSIGN_OR_RETURN(const int descriptor, TakeDescriptor(name, text));
  int type = 0;
  socklen_t size = sizeof(type);
  if (getsockopt(descriptor, SOL_SOCKET, SO_TYPE, &type, &size) != 0 || type != SOCK_STREAM) {
    return absl::InvalidArgumentError(absl::StrFormat("%s names descriptor %d, which is not a stream socket", name, descriptor));
  }
  fcntl(descriptor, F_SETFL, fcntl(descriptor, F_GETFL) | O_NONBLOCK);
  return descriptor;
}

absl::StatusOr<Job> FromGantry() {
  const VariableSet set("GANTRY_*", Variable("GANTRY_RANK") ? "GANTRY_RANK" : "GANTRY_SIZE");
  Job job;
  job.found_by = "GANTRY_*";
  GANTRY_ASSIGN_OR_RETURN(job.size, set.Number("GANTRY_SIZE", 1, kMaxRanks));
  GANTRY_ASSIGN_OR_RETURN(job.rank, set.Number("GANTRY_RANK", 0, kMaxRanks));
  GANTRY_RETURN_IF_ERROR(CheckRank(job, "GANTRY_RANK", "GANTRY_SIZE"));
  job.local_rank = job.rank;
  job.local_size = job.size;
  if (const auto text = Variable("GANTRY_LOCAL_RANK")) {
    GANTRY_ASSIGN_OR_RETURN(job.local_rank, ParseNumber("GANTRY_LOCAL_RANK", *text, 0, kMaxRanks));
  }
  if (const auto text = Variable("GANTRY_LOCAL_SIZE")) {
    GANTRY_ASSIGN_OR_RETURN(job.local_size, ParseNumber("GANTRY_LOCAL_SIZE", *text, 1, kMaxRanks));
  }

  const auto links = Variable("GANTRY_LINK_FDS"), key = Variable("GANTRY_KEY_FD");
  if (links || key) {
    static std::atomic<bool> taken{false};
    if (taken.exchange(true)) {
      return absl::FailedPreconditionError(
          "this process has joined its job before, with sockets that its launcher made; to join again, set GANTRY_RENDEZVOUS and GANTRY_KEY_FILE");
    }
  }
  if (links) {
    const std::vector<std::string> numbers = absl::StrSplit(*links, ',');
    if (static_cast<int>(numbers.size()) != job.size) {
      return absl::InvalidArgumentError(absl::StrFormat("GANTRY_LINK_FDS has %d numbers, the job %d ranks", numbers.size(), job.size));
    }
    job.inherited.assign(job.size, -1);
    for (int rank = 0; rank < job.size; ++rank) {
      if (numbers[rank] == "-1") continue;
      GANTRY_ASSIGN_OR_RETURN(job.inherited[rank], TakeSocket("GANTRY_LINK_FDS", numbers[rank]));
    }
  }
  if (const auto text = Variable("GANTRY_LAUNCHER_FD"); text && links) {
    GANTRY_ASSIGN_OR_RETURN(job.launcher, TakeSocket("GANTRY_LAUNCHER_FD", *text));
  }
  if (key) {
    GANTRY_ASSIGN_OR_RETURN(const int descriptor, TakeDescriptor("GANTRY_KEY_FD", *key));
    GANTRY_ASSIGN_OR_RETURN(job.key, JobKey::FromDescriptor(descriptor));
  }
  if (job.size == 1) return job;
  if (!links) {
    GANTRY_ASSIGN_OR_RETURN(job.rendezvous, set.Text("GANTRY_RENDEZVOUS"));
  }
  if (!key) {
    GANTRY_ASSIGN_OR_RETURN(const std::string path, set.Text("GANTRY_KEY_FILE"));
    GANTRY_ASSIGN_OR_RETURN(job.key, JobKey::FromFile(path));
  }
  return job;
}

}  // namespace

absl::StatusOr<Job> DiscoverJob() {
  if (Variable("GANTRY_RANK") || Variable("GANTRY_SIZE")) return FromGantry();
  return Job{};
}

}  // namespace gantry
