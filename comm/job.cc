#include "comm/job.h"

#include <fcntl.h>
#include <sodium.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "comm/socket.h"

namespace gantry {
namespace {

absl::Status StartCrypto() {
  if (sodium_init() < 0) return absl::InternalError("libsodium cannot be used: no source of random numbers");
  return absl::OkStatus();
}

int HexDigit(char digit) {
  if (digit >= '0' && digit <= '9') return digit - '0';
  if (digit >= 'a' && digit <= 'f') return digit - 'a' + 10;
  if (digit >= 'A' && digit <= 'F') return digit - 'A' + 10;
  return -1;
}

// At most `size` bytes; fewer where the file ends.
absl::StatusOr<size_t> ReadUpTo(int descriptor, void* to, size_t size) {
  size_t filled = 0;
  while (filled < size) {
    const ssize_t count = read(descriptor, static_cast<char*>(to) + filled, size - filled);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return SystemError(errno, "reading the job's key");
    if (count == 0) break;
    filled += static_cast<size_t>(count);
  }
  return filled;
}

}  // namespace

absl::StatusOr<JobKey> JobKey::Generate() {
  GANTRY_RETURN_IF_ERROR(StartCrypto());
  JobKey key;
  randombytes_buf(key.bytes_.data(), kBytes);
  return key;
}

absl::StatusOr<JobKey> JobKey::FromFile(const std::string& path) {
  GANTRY_RETURN_IF_ERROR(StartCrypto());
  const std::string what = absl::StrFormat("the key file '%s'", path);
  const Descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  if (!file.valid()) return SystemError(errno, what);
  struct stat facts {};
  if (fstat(file.get(), &facts) != 0) return SystemError(errno, what);
  if (!S_ISREG(facts.st_mode)) return absl::PermissionDeniedError(absl::StrCat(what, " is not a regular file"));
  if (facts.st_uid != geteuid()) {
    return absl::PermissionDeniedError(absl::StrFormat("%s belongs to user %d, not to %d, who runs this", what, facts.st_uid, geteuid()));
  }
  if ((facts.st_mode & 077) != 0) {
    return absl::PermissionDeniedError(
        absl::StrFormat("others may read %s (mode %04o): chmod 600, and make a new key if somebody did", what, facts.st_mode & 07777));
  }
  char text[2 * kBytes + 2];
  GANTRY_ASSIGN_OR_RETURN(size_t size, ReadUpTo(file.get(), text, sizeof(text)));
  if (size > 0 && text[size - 1] == '\n') --size;
  JobKey key;
  bool right = size == 2 * kBytes;
  for (size_t i = 0; right && i < kBytes; ++i) {
    const int high = HexDigit(text[2 * i]), low = HexDigit(text[2 * i + 1]);
    right = high >= 0 && low >= 0;
    key.bytes_[i] = static_cast<uint8_t>(high << 4 | low);
  }
  sodium_memzero(text, sizeof(text));
  if (!right) return absl::DataLossError(absl::StrCat(what, " does not hold 64 hexadecimal digits: head -c 32 /dev/urandom | xxd -p -c 64"));
  return key;
}

absl::StatusOr<JobKey> JobKey::FromDescriptor(int descriptor) {
  GANTRY_RETURN_IF_ERROR(StartCrypto());
  const Descriptor owned(descriptor);
  JobKey key;
  GANTRY_ASSIGN_OR_RETURN(const size_t size, ReadUpTo(descriptor, key.bytes_.data(), kBytes));
  if (size != kBytes) return absl::DataLossError(absl::StrFormat("descriptor %d holds %d bytes of a key, not %d", descriptor, size, kBytes));
  return key;
}

JobKey::JobKey(JobKey&& from) noexcept : bytes_(from.bytes_) { sodium_memzero(from.bytes_.data(), kBytes); }

JobKey& JobKey::operator=(JobKey&& from) noexcept {
  if (this != &from) {
    bytes_ = from.bytes_;
    sodium_memzero(from.bytes_.data(), kBytes);
  }
  return *this;
}

JobKey::~JobKey() { sodium_memzero(bytes_.data(), kBytes); }

}  // namespace gantry
