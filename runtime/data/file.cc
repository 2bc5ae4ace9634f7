#include "runtime/data/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <system_error>

#include "runtime/data/host_array.h"

namespace gantry {
namespace {

absl::Status CheckRange(const ByteSource& source, uint64_t offset, uint64_t bytes) {
  if (offset <= source.size_bytes() && bytes <= source.size_bytes() - offset) return absl::OkStatus();
  return absl::OutOfRangeError(absl::StrFormat("%s: %d bytes at offset %d lie beyond its end at %d; it is cut short",
                                               source.name(), bytes, offset, source.size_bytes()));
}

class FileSource final : public ByteSource {
 public:
  FileSource(std::string path, int descriptor, uint64_t size_bytes)
      : path_(std::move(path)), descriptor_(descriptor), size_bytes_(size_bytes) {}
  ~FileSource() override { close(descriptor_); }
  uint64_t size_bytes() const override { return size_bytes_; }
  std::string_view name() const override { return path_; }
  absl::Status ReadAt(uint64_t offset, std::span<std::byte> to) const override {
    GANTRY_RETURN_IF_ERROR(CheckRange(*this, offset, to.size()));
    while (!to.empty()) {
      const ssize_t got =
          pread(descriptor_, to.data(), std::min(to.size(), size_t{1} << 30), static_cast<off_t>(offset));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return ErrnoStatus(errno, absl::StrFormat("%s: cannot read at offset %d", path_, offset));
      if (got == 0) {
        return absl::OutOfRangeError(
            absl::StrFormat("%s: ends at offset %d; it had %d bytes when it was opened", path_, offset, size_bytes_));
      }
      offset += static_cast<uint64_t>(got);
      to = to.subspan(static_cast<size_t>(got));
    }
    return absl::OkStatus();
  }

 private:
  const std::string path_;
  const int descriptor_;
  const uint64_t size_bytes_;
};

class BorrowedSource : public ByteSource {
 public:
  BorrowedSource(std::span<const std::byte> bytes, std::string name) : bytes_(bytes), name_(std::move(name)) {}
  uint64_t size_bytes() const override { return bytes_.size(); }
  std::string_view name() const override { return name_; }
  absl::Status ReadAt(uint64_t offset, std::span<std::byte> to) const override {
    GANTRY_RETURN_IF_ERROR(CheckRange(*this, offset, to.size()));
    std::copy_n(bytes_.begin() + static_cast<ptrdiff_t>(offset), to.size(), to.begin());
    return absl::OkStatus();
  }

 private:
  std::span<const std::byte> bytes_;
  const std::string name_;
};

// Base-from-member: the bytes must be there before BorrowedSource refers to them.
struct OwnedBytes {
  std::vector<std::byte> owned;
};
class OwnedSource final : private OwnedBytes, public BorrowedSource {
 public:
  OwnedSource(std::vector<std::byte> bytes, std::string name)
      : OwnedBytes{std::move(bytes)}, BorrowedSource(owned, std::move(name)) {}
};

std::string FolderOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : path.substr(0, slash + 1);
}

}  // namespace

absl::Status ErrnoStatus(int error, std::string_view context) {
  const std::string message = absl::StrFormat("%s: %s", context, std::generic_category().message(error));
  switch (error) {
    case ENOENT:
    case ENOTDIR:
      return absl::NotFoundError(message);
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::PermissionDeniedError(message);
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
    case EMFILE:
    case ENFILE:
    case ENOMEM:
      return absl::ResourceExhaustedError(message);
    case EISDIR:
    case ENAMETOOLONG:
    case ELOOP:
      return absl::InvalidArgumentError(message);
    default:
      return absl::UnavailableError(message);
  }
}

absl::StatusOr<std::shared_ptr<const ByteSource>> OpenFile(const std::string& path) {
  // O_NONBLOCK: a FIFO given by mistake must be refused below, not waited for.
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) return ErrnoStatus(errno, absl::StrCat(path, ": cannot open"));
  struct stat info;
  if (fstat(descriptor, &info) != 0) {
    const int error = errno;
    close(descriptor);
    return ErrnoStatus(error, absl::StrCat(path, ": cannot ask for its size"));
  }
  if (!S_ISREG(info.st_mode)) {
    close(descriptor);
    return absl::InvalidArgumentError(absl::StrCat(path, ": is not a regular file"));
  }
  return std::make_shared<const FileSource>(path, descriptor, static_cast<uint64_t>(info.st_size));
}

std::shared_ptr<const ByteSource> MemorySource(std::span<const std::byte> bytes, std::string name) {
  return std::make_shared<const BorrowedSource>(bytes, std::move(name));
}

std::shared_ptr<const ByteSource> OwnedMemorySource(std::vector<std::byte> bytes, std::string name) {
  return std::make_shared<const OwnedSource>(std::move(bytes), std::move(name));
}

absl::StatusOr<std::vector<std::byte>> ReadAll(const ByteSource& source, uint64_t max_bytes) {
  if (source.size_bytes() > max_bytes) {
    return absl::ResourceExhaustedError(absl::StrFormat("%s: has %d bytes; at most %d are read into memory here",
                                                        source.name(), source.size_bytes(), max_bytes));
  }
  GANTRY_ASSIGN_OR_RETURN(std::vector<std::byte> bytes, AllocateBytes(source.size_bytes(), source.name()));
  GANTRY_RETURN_IF_ERROR(source.ReadAt(0, bytes));
  return bytes;
}

absl::StatusOr<std::vector<std::byte>> ReadFile(const std::string& path, uint64_t max_bytes) {
  GANTRY_ASSIGN_OR_RETURN(const auto source, OpenFile(path));
  return ReadAll(*source, max_bytes);
}

absl::StatusOr<std::unique_ptr<AtomicFile>> AtomicFile::Create(const std::string& path) {
  struct stat info;
  if (stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode))
    return absl::PermissionDeniedError(absl::StrCat(path, ": is a folder; name a file to write"));
  static std::atomic<uint64_t> counter = 0;
  for (int attempt = 0; attempt < 100; ++attempt) {
    const std::string temporary = absl::StrFormat("%s.tmp-%d-%d", path, getpid(), counter.fetch_add(1));
    const int descriptor = open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (descriptor >= 0) return std::unique_ptr<AtomicFile>(new AtomicFile(path, temporary, descriptor));
    if (errno != EEXIST) return ErrnoStatus(errno, absl::StrCat(path, ": cannot create a file beside it to write"));
  }
  return absl::UnavailableError(absl::StrCat(path, ": a hundred files named ", path,
                                             ".tmp-* are in the way; remove those that no process writes"));
}

AtomicFile::~AtomicFile() {
  if (descriptor_ < 0) return;
  close(descriptor_);
  unlink(temporary_path_.c_str());
}

absl::Status AtomicFile::Fail(std::string_view action, int error) {
  status_ = ErrnoStatus(error, absl::StrFormat("%s: cannot %s after %d bytes", path_, action, bytes_written_));
  return status_;
}

absl::Status AtomicFile::Write(std::span<const std::byte> bytes) {
  GANTRY_RETURN_IF_ERROR(status_);
  if (descriptor_ < 0) return absl::FailedPreconditionError(absl::StrCat(path_, ": written to after Commit"));
  while (!bytes.empty()) {
    const ssize_t put = write(descriptor_, bytes.data(), std::min(bytes.size(), size_t{1} << 30));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return Fail("write", errno);
    bytes = bytes.subspan(static_cast<size_t>(put));
    bytes_written_ += static_cast<uint64_t>(put);
  }
  return absl::OkStatus();
}

absl::Status AtomicFile::Commit() {
  GANTRY_RETURN_IF_ERROR(status_);
  if (descriptor_ < 0) return absl::FailedPreconditionError(absl::StrCat(path_, ": committed twice"));
  if (fsync(descriptor_) != 0) return Fail("sync it to the disk", errno);
  if (rename(temporary_path_.c_str(), path_.c_str()) != 0) return Fail("rename the finished file to it", errno);
  close(descriptor_);
  descriptor_ = -1;
  const int folder = open(FolderOf(path_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder < 0) return Fail("open its folder to sync it", errno);
  const int synced = fsync(folder);
  const int error = errno;
  close(folder);
  // Some file systems cannot sync a folder; the file itself is on the disk.
  if (synced != 0 && error != EINVAL && error != ENOTSUP) return Fail("sync its folder", error);
  return absl::OkStatus();
}

absl::Status WriteFileAtomically(const std::string& path, std::span<const std::byte> bytes) {
  GANTRY_ASSIGN_OR_RETURN(const auto file, AtomicFile::Create(path));
  GANTRY_RETURN_IF_ERROR(file->Write(bytes));
  return file->Commit();
}

}  // namespace gantry
