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
#include "comm/run_folder.h"
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

// A file name out of what a launcher calls its job.
std::string FileName(std::string_view text) {
  std::string name;
  for (const char letter : text.substr(0, 60)) {
    const bool plain = (letter >= 'a' && letter <= 'z') || (letter >= 'A' && letter <= 'Z') || (letter >= '0' && letter <= '9') || letter == '.' || letter == '-';
    name += plain ? letter : '_';
  }
  return name;
}

// Where launchers other than ours leave it to the ranks to meet: on one machine in a folder of the job, which also has the key; between
// machines at `address`, with the key from a file.
absl::Status ChooseRendezvous(Job& job, bool one_machine, std::string_view job_name, const std::string& address) {
  if (job.size == 1) return absl::OkStatus();
  const auto told = Variable("GANTRY_RENDEZVOUS");
  if (!told && one_machine) {
    job.run_folder = absl::StrCat(BaseRunFolder(), "/", FileName(job_name));
    job.rendezvous = absl::StrCat("unix:", job.run_folder, "/rank-0");
    return absl::OkStatus();
  }
  if (!told && address.empty()) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "the ranks of this job (found by %s) are on several machines: set GANTRY_RENDEZVOUS=tcp:HOST:PORT, where rank 0 is to listen", job.found_by));
  }
  job.rendezvous = told ? *told : address;
  const auto key = Variable("GANTRY_KEY_FILE");
  if (!key) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "the ranks of this job (found by %s) meet at %s, which needs a key that all of them can read: GANTRY_KEY_FILE is missing "
        "(a file with mode 0600: head -c 32 /dev/urandom | xxd -p -c 64)",
        job.found_by, job.rendezvous));
  }
  GANTRY_ASSIGN_OR_RETURN(job.key, JobKey::FromFile(*key));
  return absl::OkStatus();
}

bool IsLoopback(std::string_view host) { return host == "localhost" || host == "::1" || host.substr(0, 4) == "127."; }

absl::StatusOr<Job> FromTorchrun() {
  const VariableSet set("the variables of torchrun (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT)", Variable("RANK") ? "RANK" : "WORLD_SIZE");
  Job job;
  job.found_by = "torchrun";
  GANTRY_ASSIGN_OR_RETURN(job.rank, set.Number("RANK", 0, kMaxRanks));
  GANTRY_ASSIGN_OR_RETURN(job.size, set.Number("WORLD_SIZE", 1, kMaxRanks));
  GANTRY_RETURN_IF_ERROR(CheckRank(job, "RANK", "WORLD_SIZE"));
  GANTRY_ASSIGN_OR_RETURN(const std::string host, set.Text("MASTER_ADDR"));
  GANTRY_ASSIGN_OR_RETURN(const int port, set.Number("MASTER_PORT", 1, 65535));
  bool one_machine = IsLoopback(host);
  job.local_rank = job.rank;
  job.local_size = job.size;
  if (const auto text = Variable("LOCAL_WORLD_SIZE")) {
    GANTRY_ASSIGN_OR_RETURN(job.local_size, ParseNumber("LOCAL_WORLD_SIZE", *text, 1, kMaxRanks));
    one_machine = job.local_size == job.size;
  }
  if (const auto text = Variable("LOCAL_RANK")) {
    GANTRY_ASSIGN_OR_RETURN(job.local_rank, ParseNumber("LOCAL_RANK", *text, 0, kMaxRanks));
  }
  // The launcher's own store listens at MASTER_PORT.
  const SocketAddress address{.is_unix = false, .place = host, .port = static_cast<uint16_t>(port < 65535 ? port + 1 : port - 1)};
  const std::string name = absl::StrCat("torchrun-", host, "-", port, "-", Variable("TORCHELASTIC_RUN_ID").value_or(""), "-",
                                        Variable("TORCHELASTIC_RESTART_COUNT").value_or("0"));
  GANTRY_RETURN_IF_ERROR(ChooseRendezvous(job, one_machine, name, address.Text()));
  return job;
}

// "n[3-7,9],m1" is the list that begins with n3.
std::string FirstHost(std::string_view list) {
  const size_t bracket = list.find('['), comma = list.find(',');
  if (bracket == std::string_view::npos || comma < bracket) return std::string(list.substr(0, comma));
  return absl::StrCat(ToAbsl(list.substr(0, bracket)), ToAbsl(list.substr(bracket + 1, list.find_first_of("-,]", bracket) - bracket - 1)));
}

absl::Status FillFromSlurm(Job& job, const VariableSet& set) {
  GANTRY_ASSIGN_OR_RETURN(job.size, set.Number("SLURM_STEP_NUM_TASKS", 1, kMaxRanks));
  GANTRY_RETURN_IF_ERROR(CheckRank(job, "the rank", "SLURM_STEP_NUM_TASKS"));
  GANTRY_ASSIGN_OR_RETURN(job.local_rank, set.Number("SLURM_LOCALID", 0, kMaxRanks));
  GANTRY_ASSIGN_OR_RETURN(const std::string id, set.Text("SLURM_JOB_ID"));
  GANTRY_ASSIGN_OR_RETURN(const std::string step, set.Text("SLURM_STEP_ID"));
  GANTRY_ASSIGN_OR_RETURN(const int nodes, set.Number("SLURM_STEP_NUM_NODES", 1, kMaxRanks));
  job.local_size = nodes == 1 ? job.size : (job.size + nodes - 1) / nodes;
  std::string address;
  if (nodes > 1) {
    GANTRY_ASSIGN_OR_RETURN(const std::string hosts, set.Text("SLURM_STEP_NODELIST"));
    uint64_t number = 0;
    for (const char digit : id + step) number = number * 31 + static_cast<unsigned char>(digit);
    address = SocketAddress{.is_unix = false, .place = FirstHost(hosts), .port = static_cast<uint16_t>(61000 + number % 4536)}.Text();
  }
  return ChooseRendezvous(job, nodes == 1, absl::StrCat("slurm-", id, ".", step), address);
}

absl::Status FillFromOpenMpi(Job& job, const VariableSet& set) {
  GANTRY_ASSIGN_OR_RETURN(job.size, set.Number("OMPI_COMM_WORLD_SIZE", 1, kMaxRanks));
  GANTRY_RETURN_IF_ERROR(CheckRank(job, "the rank", "OMPI_COMM_WORLD_SIZE"));
  GANTRY_ASSIGN_OR_RETURN(job.local_rank, set.Number("OMPI_COMM_WORLD_LOCAL_RANK", 0, kMaxRanks));
  GANTRY_ASSIGN_OR_RETURN(job.local_size, set.Number("OMPI_COMM_WORLD_LOCAL_SIZE", 1, kMaxRanks));
  std::optional<std::string> name = Variable("PMIX_NAMESPACE");
  if (!name) name = Variable("OMPI_MCA_ess_base_jobid");
  if (!name) {
    GANTRY_ASSIGN_OR_RETURN(name, set.Text("PMIX_NAMESPACE"));
  }
  return ChooseRendezvous(job, job.local_size == job.size, absl::StrCat("mpi-", *name), "");
}

absl::StatusOr<Job> FromPmix() {
  const VariableSet set("PMIx", "PMIX_RANK");
  Job job;
  GANTRY_ASSIGN_OR_RETURN(job.rank, set.Number("PMIX_RANK", 0, kMaxRanks));
  // PMIx itself tells the number of ranks only through its library; the launchers that have it also put it into the environment.
  if (Variable("OMPI_COMM_WORLD_SIZE")) {
    job.found_by = "PMIx (Open MPI)";
    GANTRY_RETURN_IF_ERROR(FillFromOpenMpi(job, set));
    return job;
  }
  if (Variable("SLURM_STEP_NUM_TASKS")) {
    job.found_by = "PMIx (Slurm)";
    GANTRY_RETURN_IF_ERROR(FillFromSlurm(job, set));
    return job;
  }
  return absl::InvalidArgumentError(
      "PMIX_RANK is set, so this is a rank of a job described by PMIx, but how many ranks there are is missing: set GANTRY_RANK and "
      "GANTRY_SIZE with GANTRY_RENDEZVOUS and GANTRY_KEY_FILE");
}

absl::StatusOr<Job> FromSlurm() {
  const VariableSet set("Slurm", "SLURM_STEP_ID");
  Job job;
  job.found_by = "Slurm";
  GANTRY_ASSIGN_OR_RETURN(job.rank, set.Number("SLURM_PROCID", 0, kMaxRanks));
  GANTRY_RETURN_IF_ERROR(FillFromSlurm(job, set));
  return job;
}

absl::StatusOr<Job> FromOpenMpi() {
  const VariableSet set("Open MPI", Variable("OMPI_COMM_WORLD_RANK") ? "OMPI_COMM_WORLD_RANK" : "OMPI_COMM_WORLD_SIZE");
  Job job;
  job.found_by = "Open MPI";
  GANTRY_ASSIGN_OR_RETURN(job.rank, set.Number("OMPI_COMM_WORLD_RANK", 0, kMaxRanks));
  GANTRY_RETURN_IF_ERROR(FillFromOpenMpi(job, set));
  return job;
}

// A shell in an allocation, or the batch script itself, is no step that srun started.
bool IsSlurmStep() {
  constexpr std::string_view kBatch = "4294967291", kExtern = "4294967292", kInteractive = "4294967290";
  const auto step = Variable("SLURM_STEP_ID");
  return step && *step != kBatch && *step != kExtern && *step != kInteractive && *step != "batch" && *step != "extern" && *step != "interactive";
}

}  // namespace

absl::StatusOr<Job> DiscoverJob() {
  if (Variable("GANTRY_RANK") || Variable("GANTRY_SIZE")) return FromGantry();
  if (Variable("RANK") || Variable("WORLD_SIZE")) return FromTorchrun();
  if (Variable("PMIX_RANK")) return FromPmix();
  if (IsSlurmStep()) return FromSlurm();
  if (Variable("OMPI_COMM_WORLD_RANK") || Variable("OMPI_COMM_WORLD_SIZE")) return FromOpenMpi();
  return Job{};
}

std::string Job::Describe() const {
  std::string where;
  if (!rendezvous.empty()) where = absl::StrCat(", meeting at ", rendezvous);
  if (!inherited.empty()) where = ", connected by its launcher";
  return absl::StrFormat("rank %d of %d (found by %s%s)", rank, size, found_by, where);
}

}  // namespace gantry
