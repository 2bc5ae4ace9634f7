// Folders where ranks of one machine meet: only this user may enter them.
#pragma once

#include <string>

#include "comm/job.h"
#include "memory/status.h"

namespace gantry {

// $GANTRY_RUN_DIR, $XDG_RUNTIME_DIR/gantry or /tmp/gantry-UID; it need not exist yet.
std::string BaseRunFolder();

// The folder with mode 0700, made where it was missing, with its parents below BaseRunFolder(). kPermissionDenied where it is
// another's, a link, or open to others.
absl::Status MakePrivateFolder(const std::string& path);

// Of rank 0: an empty folder (what an earlier, killed job of the same name left is removed) with a new key in it, mode 0600.
absl::StatusOr<JobKey> MakeRunFolder(const std::string& path);
// Of the others: the key. kNotFound while there is none yet.
absl::StatusOr<JobKey> ReadRunFolderKey(const std::string& path);
void RemoveRunFolderKey(const std::string& path);

// A new folder of its own, removed with all that is in it when this goes.
class TemporaryFolder {
 public:
  static absl::StatusOr<TemporaryFolder> Make();
  TemporaryFolder() = default;
  TemporaryFolder(TemporaryFolder&& from) noexcept : path_(std::exchange(from.path_, {})) {}
  TemporaryFolder& operator=(TemporaryFolder&& from) noexcept {
    std::swap(path_, from.path_);
    return *this;
  }
  ~TemporaryFolder();
  const std::string& path() const { return path_; }

 private:
  static absl::StatusOr<TemporaryFolder> TryMake();
  std::string path_;
};

}  // namespace gantry
