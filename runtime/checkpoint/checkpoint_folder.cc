#include "runtime/checkpoint/checkpoint_folder.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <filesystem>

#include "absl/strings/str_join.h"

namespace gantry {
namespace {

constexpr std::string_view kPrefix = "checkpoint-", kSuffix = ".safetensors", kTemporary = ".tmp-";

// The whole text as a number >= 0.
std::optional<int64_t> Number(std::string_view text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 0) return std::nullopt;
  return value;
}

std::optional<int64_t> StepOf(std::string_view file_name) {
  if (!file_name.starts_with(kPrefix) || !file_name.ends_with(kSuffix) ||
      file_name.size() <= kPrefix.size() + kSuffix.size())
    return std::nullopt;
  return Number(file_name.substr(kPrefix.size(), file_name.size() - kPrefix.size() - kSuffix.size()));
}

// The step of "checkpoint-<step>.part-<i>-of-<n>.safetensors"; nullopt for other names.
std::optional<int64_t> PartStep(std::string_view file_name) {
  const size_t part = file_name.find(".part-");
  if (!file_name.starts_with(kPrefix) || !file_name.ends_with(kSuffix) || part == std::string_view::npos) return std::nullopt;
  return Number(file_name.substr(kPrefix.size(), part - kPrefix.size()));
}

// The process that writes "<name>.tmp-<pid>-<n>"; nullopt for other names.
std::optional<int64_t> TemporaryOwner(std::string_view file_name) {
  const size_t at = file_name.rfind(kTemporary);
  if (at == std::string_view::npos || at == 0) return std::nullopt;
  const std::string_view rest = file_name.substr(at + kTemporary.size());
  const size_t dash = rest.find('-');
  if (dash == std::string_view::npos || !Number(rest.substr(dash + 1)).has_value()) return std::nullopt;
  return Number(rest.substr(0, dash));
}

// Names of the regular files in `folder`; links are not followed.
absl::StatusOr<std::vector<std::string>> FileNames(const std::string& folder) {
  std::vector<std::string> names;
  std::error_code error;
  std::filesystem::directory_iterator entries(folder, error);
  for (; !error && entries != std::filesystem::directory_iterator(); entries.increment(error)) {
    std::error_code ignored;
    if (std::filesystem::is_regular_file(entries->symlink_status(ignored)))
      names.push_back(entries->path().filename().string());
  }
  if (error) return ErrnoStatus(error.value(), absl::StrCat(folder, ": cannot list it"));
  return names;
}

std::string Joined(const std::string& folder, std::string_view name) { return absl::StrCat(folder, "/", ToAbsl(name)); }

}  // namespace

std::string CheckpointFileName(int64_t step) { return absl::StrFormat("%s%012d%s", kPrefix, step, kSuffix); }

absl::StatusOr<std::vector<StoredCheckpoint>> ListCheckpoints(const std::string& folder) {
  const absl::StatusOr<std::vector<std::string>> names = FileNames(folder);
  if (absl::IsNotFound(names.status())) return std::vector<StoredCheckpoint>();
  if (!names.ok()) return names.status();
  std::vector<StoredCheckpoint> found;
  for (const std::string& name : *names) {
    if (const std::optional<int64_t> step = StepOf(name)) found.push_back({*step, Joined(folder, name)});
  }
  std::sort(found.begin(), found.end(),
            [](const auto& a, const auto& b) { return std::tie(a.step, a.path) < std::tie(b.step, b.path); });
  return found;
}

absl::StatusOr<LatestCheckpoint> FindLatestCheckpoint(const std::string& folder) {
  GANTRY_ASSIGN_OR_RETURN(const std::vector<StoredCheckpoint> stored, ListCheckpoints(folder));
  LatestCheckpoint latest;
  for (size_t i = stored.size(); i-- > 0;) {
    const absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open(stored[i].path);
    const absl::Status status = checkpoint.ok() ? checkpoint->Verify() : checkpoint.status();
    if (status.ok()) {
      latest.checkpoint = stored[i];
      return latest;
    }
    latest.damaged.emplace_back(stored[i], status);
  }
  if (latest.damaged.empty())
    return absl::NotFoundError(absl::StrCat(folder, ": has no checkpoint; start the run without resuming"));
  return absl::NotFoundError(absl::StrFormat(
      "%s: has no good checkpoint: %s", folder,
      absl::StrJoin(latest.damaged, "; ",
                    [](std::string* out, const auto& damaged) { out->append(Message(damaged.second)); })));
}

absl::StatusOr<std::unique_ptr<CheckpointFolder>> CheckpointFolder::Open(const std::string& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) return ErrnoStatus(error.value(), absl::StrCat(folder, ": cannot make this folder"));
  const int descriptor = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return ErrnoStatus(errno, absl::StrCat(folder, ": cannot open this folder"));
  std::unique_ptr<CheckpointFolder> result(new CheckpointFolder(folder, descriptor));
  // Some network file systems cannot lock a folder; the run goes on without.
  result->locked_ = flock(descriptor, LOCK_EX | LOCK_NB) == 0;
  if (!result->locked_ && errno == EWOULDBLOCK) {
    return absl::FailedPreconditionError(
        absl::StrCat(folder, ": another process writes its run here; stop it or choose another output.directory"));
  }
  if (faccessat(AT_FDCWD, folder.c_str(), W_OK | X_OK, AT_EACCESS) != 0) {
    return ErrnoStatus(errno, absl::StrCat(folder, ": cannot write to this folder; choose another output.directory"));
  }
  GANTRY_RETURN_IF_ERROR(result->RemoveLeftovers());
  return result;
}

CheckpointFolder::~CheckpointFolder() { close(descriptor_); }

absl::Status CheckpointFolder::RemoveLeftovers() {
  GANTRY_ASSIGN_OR_RETURN(const std::vector<std::string> names, FileNames(path_));
  for (const std::string& name : names) {
    if (const std::optional<int64_t> step = PartStep(name); step.has_value() && locked_) {
      // Set aside counts: a kill may have left its parts under their old names.
      const std::string checkpoint = CheckpointFileName(*step);
      const bool used = std::any_of(names.begin(), names.end(), [&](const std::string& other) { return other.ends_with(checkpoint); });
      if (!used && unlink(Joined(path_, name).c_str()) != 0 && errno != ENOENT) {
        return ErrnoStatus(errno, absl::StrCat(Joined(path_, name), ": cannot remove this part of a checkpoint that was never finished"));
      }
      continue;
    }
    const std::optional<int64_t> owner = TemporaryOwner(name);
    if (!owner.has_value() || *owner <= 0 || *owner > INT32_MAX) continue;
    // Checkpoints are written under the lock only, so nobody writes this one now. Other files may belong to a live
    // process.
    const bool orphan = locked_ && name.starts_with(kPrefix);
    if (!orphan && (*owner == getpid() || kill(static_cast<pid_t>(*owner), 0) == 0 || errno != ESRCH)) continue;
    if (unlink(Joined(path_, name).c_str()) != 0 && errno != ENOENT) {
      return ErrnoStatus(errno, absl::StrCat(Joined(path_, name), ": cannot remove this left-over file"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> CheckpointFolder::Save(int64_t step, std::span<const CheckpointTensor> tensors,
                                                   const SafetensorsMetadata& metadata, int64_t keep) {
  const std::string path = Joined(path_, CheckpointFileName(step));
  const absl::Status written = WriteCheckpoint(path, tensors, metadata);
  GANTRY_ASSIGN_OR_RETURN(std::vector<StoredCheckpoint> stored, ListCheckpoints(path_));
  if (!written.ok()) {
    const std::string last = stored.empty() ? "there is no earlier checkpoint"
                                            : absl::StrCat("the last good checkpoint is ", stored.back().path);
    return absl::Status(written.code(), absl::StrCat(written.message(), "; ", last));
  }
  GANTRY_RETURN_IF_ERROR(Prune(step, keep));
  return path;
}

absl::Status CheckpointFolder::Prune(int64_t step, int64_t keep) {
  GANTRY_ASSIGN_OR_RETURN(const std::vector<StoredCheckpoint> stored, ListCheckpoints(path_));
  if (keep <= 0 || static_cast<int64_t>(stored.size()) <= keep) return absl::OkStatus();
  GANTRY_ASSIGN_OR_RETURN(const std::vector<std::string> names, FileNames(path_));
  for (size_t i = 0; i + keep < stored.size(); ++i) {
    if (stored[i].step == step) continue;
    // First what makes it a checkpoint, then its parts: a kill in between leaves parts that are nothing, which the next start removes.
    std::vector<std::string> paths = {stored[i].path};
    for (const std::string& name : names) {
      if (PartStep(name) == stored[i].step) paths.push_back(Joined(path_, name));
    }
    for (const std::string& path : paths) {
      if (unlink(path.c_str()) == 0 || errno == ENOENT) continue;
      return ErrnoStatus(errno, absl::StrFormat("%s: cannot remove this old checkpoint (%s is written)", path, Joined(path_, CheckpointFileName(step))));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> CheckpointFolder::SetAsideAfter(int64_t step) {
  GANTRY_ASSIGN_OR_RETURN(const std::vector<StoredCheckpoint> stored, ListCheckpoints(path_));
  GANTRY_ASSIGN_OR_RETURN(const std::vector<std::string> names, FileNames(path_));
  std::vector<std::string> renamed;
  for (const StoredCheckpoint& checkpoint : stored) {
    if (checkpoint.step <= step) continue;
    const std::string name = std::filesystem::path(checkpoint.path).filename().string();
    for (int n = 1;; ++n) {
      const std::string to = Joined(path_, absl::StrFormat("set-aside-%d-%s", n, name));
      if (faccessat(AT_FDCWD, to.c_str(), F_OK, AT_SYMLINK_NOFOLLOW) == 0) continue;
      if (rename(checkpoint.path.c_str(), to.c_str()) != 0)
        return ErrnoStatus(errno, absl::StrFormat("%s: cannot rename it to %s", checkpoint.path, to));
      renamed.push_back(to);
      for (const std::string& part : names) {
        if (PartStep(part) != checkpoint.step) continue;
        const std::string part_to = Joined(path_, absl::StrFormat("set-aside-%d-%s", n, part));
        if (rename(Joined(path_, part).c_str(), part_to.c_str()) != 0) {
          return ErrnoStatus(errno, absl::StrFormat("%s: cannot rename it to %s", part, part_to));
        }
      }
      break;
    }
  }
  return renamed;
}

}  // namespace gantry
