#include "comm/run_folder.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <system_error>

#include "absl/strings/escaping.h"
#include "comm/socket.h"

namespace gantry {
namespace {

std::string KeyPath(const std::string& folder) { return absl::StrCat(folder, "/key"); }

// Again where a folder was taken away meanwhile: a job that ends removes those on its way that are empty.
template <typename T>
absl::StatusOr<T> Repeat(const std::function<absl::StatusOr<T>()>& make) {
  absl::StatusOr<T> made = make();
  for (int attempt = 0; attempt < 100 && absl::IsNotFound(made.status()); ++attempt) made = make();
  return made;
}

absl::StatusOr<JobKey> TryMakeRunFolder(const std::string& path) {
  GANTRY_RETURN_IF_ERROR(MakePrivateFolder(std::filesystem::path(path).parent_path()));
  GANTRY_RETURN_IF_ERROR(MakePrivateFolder(path));
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(path, error)) std::filesystem::remove_all(entry.path(), error);
  GANTRY_ASSIGN_OR_RETURN(JobKey key, JobKey::Generate());
  const std::string unfinished = absl::StrCat(path, "/key.new"), what = absl::StrFormat("the key file '%s'", KeyPath(path));
  {
    const Descriptor file(open(unfinished.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
    if (!file.valid()) return SystemError(errno, what);
    const std::string text = absl::BytesToHexString({reinterpret_cast<const char*>(key.bytes().data()), JobKey::kBytes});
    if (write(file.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size())) return SystemError(errno, what);
  }
  // Whole or not there: nobody reads half a key.
  if (rename(unfinished.c_str(), KeyPath(path).c_str()) != 0) return SystemError(errno, what);
  return key;
}

}  // namespace

std::string BaseRunFolder() {
  if (const char* folder = std::getenv("GANTRY_RUN_DIR"); folder != nullptr && *folder != '\0') return folder;
  if (const char* folder = std::getenv("XDG_RUNTIME_DIR"); folder != nullptr && *folder != '\0') return absl::StrCat(folder, "/gantry");
  return absl::StrFormat("/tmp/gantry-%d", geteuid());
}

absl::Status MakePrivateFolder(const std::string& path) {
  if (mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) return SystemError(errno, absl::StrFormat("making the folder '%s'", path));
  return CheckPrivateFolder(path);
}

absl::StatusOr<JobKey> MakeRunFolder(const std::string& path) {
  return Repeat<JobKey>([&] { return TryMakeRunFolder(path); });
}

absl::StatusOr<JobKey> ReadRunFolderKey(const std::string& path) {
  GANTRY_RETURN_IF_ERROR(CheckPrivateFolder(path));
  return JobKey::FromFile(KeyPath(path));
}

void RemoveRunFolderKey(const std::string& path) { unlink(KeyPath(path).c_str()); }

absl::StatusOr<TemporaryFolder> TemporaryFolder::Make() { return Repeat<TemporaryFolder>(TryMake); }

absl::StatusOr<TemporaryFolder> TemporaryFolder::TryMake() {
  GANTRY_RETURN_IF_ERROR(MakePrivateFolder(BaseRunFolder()));
  std::string path = absl::StrCat(BaseRunFolder(), "/links-XXXXXX");
  if (mkdtemp(path.data()) == nullptr) return SystemError(errno, absl::StrFormat("making a folder in '%s'", BaseRunFolder()));
  TemporaryFolder folder;
  folder.path_ = std::move(path);
  return folder;
}

TemporaryFolder::~TemporaryFolder() {
  if (path_.empty()) return;
  std::error_code error;
  std::filesystem::remove_all(path_, error);
  rmdir(BaseRunFolder().c_str());  // where it was the last
}

}  // namespace gantry
