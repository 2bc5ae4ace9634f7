// What flight recorders say, for people and programs; and where they are found.
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <map>
#include <set>

#include "absl/strings/str_join.h"
#include "comm/frame.h"
#include "comm/recorder.h"

namespace gantry {
namespace {

constexpr uint64_t kFileMagic = 0x314652434e414721;
constexpr size_t kMaxFileBytes = size_t{256} << 20;
constexpr uint32_t kMaxImages = 65536;

// From `then` to `now`, in nanoseconds; as far as it can be told where a damaged file has absurd times.
int64_t Since(int64_t now, int64_t then) {
  int64_t ns;
  return __builtin_sub_overflow(now, then, &ns) ? (now < then ? INT64_MIN : INT64_MAX) : ns;
}

std::string Seconds(int64_t ns) { return absl::StrFormat("%.2f s", static_cast<double>(std::max<int64_t>(ns, 0)) * 1e-9); }

// "all_reduce 17 of 'w' in group world".
std::string OperationText(const RecordedEntry& entry) {
  std::string text = absl::StrCat(ToAbsl(NameOf(entry.kind)), " ", entry.number);
  if (!entry.value.empty()) absl::StrAppend(&text, " of '", entry.value, "'");
  if (!entry.group.empty()) absl::StrAppend(&text, " in group ", entry.group);
  return text;
}

const RecordedEntry* InFlight(const RecorderImage& image) {  // the oldest that has not ended
  for (const RecordedEntry& entry : image.entries) {
    if (entry.end_ns == 0) return &entry;
  }
  return nullptr;
}

std::string JsonText(std::string_view text) {
  std::string out = "\"";
  for (const char letter : text) {
    if (letter == '"' || letter == '\\') out += '\\';
    out += letter;  // GetText left no control characters
  }
  return out + "\"";
}

void WriteEntry(WireWriter& to, const RecordedEntry& entry) {
  to.U64(entry.ticket);
  to.U32(static_cast<uint32_t>(entry.kind));
  to.U32(entry.ok ? 1 : 0);
  to.U32(static_cast<uint32_t>(entry.peer));
  to.U64(entry.number);
  to.U64(static_cast<uint64_t>(entry.bytes));
  to.U64(static_cast<uint64_t>(entry.begin_ns));
  to.U64(static_cast<uint64_t>(entry.end_ns));
  to.Text(entry.group);
  to.Text(entry.value);
}

std::string Printable(std::string text) {
  for (char& letter : text) {
    if (static_cast<unsigned char>(letter) < 0x20 || letter == 0x7f) letter = '?';
  }
  return text;
}

}  // namespace

absl::StatusOr<std::vector<RecorderImage>> FindRecorders(int64_t pid) {
  const std::string folder = absl::StrFormat("/proc/%d/fd", pid);
  DIR* listing = opendir(folder.c_str());
  if (listing == nullptr) return SystemError(errno, absl::StrFormat("looking for recorders of process %d", pid));
  std::map<int, RecorderImage> by_rank;
  while (const dirent* file = readdir(listing)) {
    const std::string path = absl::StrCat(folder, "/", file->d_name);
    char target[64] = "";
    if (readlink(path.c_str(), target, sizeof(target) - 1) < 0 || std::string_view(target).rfind("/memfd:gantry-recorder", 0) != 0) continue;
    const Descriptor memory(open(path.c_str(), O_RDONLY | O_CLOEXEC));
    absl::StatusOr<RecorderImage> image = ReadRecorder(memory.get());
    if (image.ok()) by_rank.emplace(image->rank, *std::move(image));
  }
  closedir(listing);
  if (by_rank.empty()) {
    return absl::NotFoundError(absl::StrFormat("process %d holds no flight recorder: name a rank of a job, or the `gantry run` that started it", pid));
  }
  std::vector<RecorderImage> images;
  for (auto& [rank, image] : by_rank) images.push_back(std::move(image));
  return images;
}

absl::Status WriteRecorders(const std::string& path, std::span<const RecorderImage> images) {
  WireWriter writer;
  writer.U64(kFileMagic);
  writer.U32(static_cast<uint32_t>(images.size()));
  for (const RecorderImage& image : images) {
    writer.U32(static_cast<uint32_t>(image.rank));
    writer.U32(static_cast<uint32_t>(image.size));
    writer.U64(static_cast<uint64_t>(image.pid));
    writer.U64(static_cast<uint64_t>(image.read_ns));
    writer.U32(static_cast<uint32_t>(image.entries.size()));
    for (const RecordedEntry& entry : image.entries) WriteEntry(writer, entry);
  }
  const std::string what = absl::StrFormat("writing '%s'", path);
  const Descriptor file(open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!file.valid()) return SystemError(errno, what);
  for (std::span<const std::byte> rest = writer.bytes(); !rest.empty();) {
    const ssize_t count = write(file.get(), rest.data(), rest.size());
    if (count < 0 && errno != EINTR) return SystemError(errno, what);
    if (count > 0) rest = rest.subspan(static_cast<size_t>(count));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<RecorderImage>> ParseRecorderFile(std::span<const std::byte> bytes) {
  WireReader reader(bytes);
  const auto damaged = [] { return absl::DataLossError("it is no file of flight recorders, or it is damaged"); };
  if (reader.U64() != kFileMagic) return damaged();
  const uint32_t count = reader.U32();
  if (!reader.ok() || count > kMaxImages) return damaged();
  std::vector<RecorderImage> images;
  for (uint32_t i = 0; i < count && reader.ok(); ++i) {
    RecorderImage image;
    image.rank = static_cast<int>(reader.U32());
    image.size = static_cast<int>(reader.U32());
    image.pid = static_cast<int64_t>(reader.U64());
    image.read_ns = static_cast<int64_t>(reader.U64());
    const uint32_t entries = reader.U32();
    if (image.size < 1 || image.rank < 0 || image.rank >= image.size || entries > Recorder::kEntries) return damaged();
    for (uint32_t j = 0; j < entries && reader.ok(); ++j) {
      RecordedEntry entry;
      entry.ticket = reader.U64();
      entry.kind = static_cast<RecordedKind>(reader.U32());
      entry.ok = reader.U32() != 0;
      entry.peer = std::clamp(static_cast<int>(reader.U32()), -1, image.size - 1);
      entry.number = reader.U64();
      entry.bytes = static_cast<int64_t>(reader.U64());
      entry.begin_ns = static_cast<int64_t>(reader.U64());
      entry.end_ns = static_cast<int64_t>(reader.U64());
      entry.group = Printable(reader.Text(16));
      entry.value = Printable(reader.Text(56));
      image.entries.push_back(std::move(entry));
    }
    images.push_back(std::move(image));
  }
  if (!reader.ok() || !reader.at_end()) return damaged();
  return images;
}

absl::StatusOr<std::vector<RecorderImage>> ReadRecorderFile(const std::string& path) {
  const std::string what = absl::StrFormat("reading '%s'", path);
  const Descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  struct stat facts {};
  if (!file.valid() || fstat(file.get(), &facts) != 0) return SystemError(errno, what);
  if (!S_ISREG(facts.st_mode) || static_cast<size_t>(facts.st_size) > kMaxFileBytes) {
    return absl::DataLossError(absl::StrCat(what, ": it is no file of flight recorders"));
  }
  std::vector<std::byte> bytes(static_cast<size_t>(facts.st_size));
  const ssize_t count = read(file.get(), bytes.data(), bytes.size());
  if (count < 0) return SystemError(errno, what);
  bytes.resize(static_cast<size_t>(count));
  absl::StatusOr<std::vector<RecorderImage>> images = ParseRecorderFile(bytes);
  if (!images.ok()) return Annotate(images.status(), what);
  return images;
}

std::vector<std::string> ExplainWaits(std::span<const RecorderImage> images) {
  // Groups by name: the operation that most ranks have come to, and who is in it.
  struct Front {
    const RecordedEntry* entry = nullptr;
    std::vector<int> waiting;
    int64_t longest_ns = 0;
  };
  std::map<std::string, Front> fronts;
  for (const RecorderImage& image : images) {
    for (const RecordedEntry& entry : image.entries) {
      if (entry.end_ns != 0) continue;
      Front& front = fronts[entry.group];
      if (front.entry == nullptr || entry.number > front.entry->number) front = {.entry = &entry};
      if (entry.number != front.entry->number) continue;
      front.waiting.push_back(image.rank);
      front.longest_ns = std::max(front.longest_ns, Since(image.read_ns, entry.begin_ns));
    }
  }
  std::vector<std::pair<int64_t, std::string>> found;
  for (const auto& [group, front] : fronts) {
    std::set<int> named;  // whom those in it say that they wait for
    for (const RecorderImage& image : images) {
      for (const RecordedEntry& entry : image.entries) {
        if (entry.end_ns == 0 && entry.group == group && entry.number == front.entry->number && entry.peer >= 0) named.insert(entry.peer);
      }
    }
    bool explained = false;
    for (const RecorderImage& image : images) {
      const RecordedEntry* last = nullptr;  // of this group
      for (const RecordedEntry& entry : image.entries) {
        if (entry.group == group) last = &entry;
      }
      const bool in_group = last != nullptr || named.count(image.rank) != 0;
      if (!in_group || (last != nullptr && last->number >= front.entry->number)) continue;
      std::string text = absl::StrFormat("rank %d has not come to %s, which %s %s wait%s in", image.rank, OperationText(*front.entry),
                                         front.waiting.size() == 1 ? "rank" : "ranks", absl::StrJoin(front.waiting, ", "), front.waiting.size() == 1 ? "s" : "");
      if (const RecordedEntry* current = InFlight(image); current != nullptr) {
        absl::StrAppend(&text, "; it is in ", OperationText(*current), " since ", Seconds(Since(image.read_ns, current->begin_ns)));
      } else if (!image.entries.empty()) {
        const RecordedEntry& newest = image.entries.back();
        absl::StrAppend(&text, "; it was last in ", OperationText(newest), ", which it left ", Seconds(Since(image.read_ns, newest.end_ns)), " ago");
      }
      found.emplace_back(-front.longest_ns, std::move(text));
      explained = true;
    }
    if (explained) continue;
    for (const int rank : named) {
      found.emplace_back(-front.longest_ns, absl::StrFormat("rank %d is waited for in %s since %s", rank, OperationText(*front.entry), Seconds(front.longest_ns)));
    }
  }
  std::stable_sort(found.begin(), found.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<std::string> texts;
  for (auto& [order, text] : found) texts.push_back(std::move(text));
  return texts;
}

std::string FormatRecorders(std::span<const RecorderImage> images) {
  std::string text = absl::StrFormat("%-5s %-9s %-10s %-16s %-8s %-12s %-10s %s\n", "rank", "pid", "state", "operation", "number", "waits for", "since", "value");
  for (const RecorderImage& image : images) {
    const RecordedEntry* entry = InFlight(image);
    const bool waiting = entry != nullptr;
    if (!waiting && !image.entries.empty()) entry = &image.entries.back();
    if (entry == nullptr) {
      absl::StrAppendFormat(&text, "%-5d %-9d %-10s\n", image.rank, image.pid, "idle");
      continue;
    }
    const std::string peer = waiting && entry->peer >= 0 ? absl::StrCat("rank ", entry->peer) : "-";
    absl::StrAppendFormat(&text, "%-5d %-9d %-10s %-16s %-8d %-12s %-10s %s%s\n", image.rank, image.pid, waiting ? "in" : entry->ok ? "after" : "failed in",
                          std::string(NameOf(entry->kind)), entry->number, peer, Seconds(Since(image.read_ns, waiting ? entry->begin_ns : entry->end_ns)),
                          entry->value.empty() ? "-" : entry->value, entry->group.empty() ? "" : absl::StrCat(" (group ", entry->group, ")"));
  }
  for (const std::string& line : ExplainWaits(images)) absl::StrAppend(&text, line, "\n");
  return text;
}

std::string FormatRecordersJson(std::span<const RecorderImage> images) {
  std::string text = "{\"version\": 1, \"ranks\": [";
  const char* separator = "";
  for (const RecorderImage& image : images) {
    absl::StrAppendFormat(&text, "%s\n  {\"rank\": %d, \"size\": %d, \"pid\": %d, \"operations\": [", separator, image.rank, image.size, image.pid);
    const char* inner = "";
    // The last ones: who wants all has them in the file.
    const size_t first = image.entries.size() > 16 ? image.entries.size() - 16 : 0;
    for (size_t i = first; i < image.entries.size(); ++i) {
      const RecordedEntry& entry = image.entries[i];
      absl::StrAppendFormat(&text, "%s\n    {\"operation\": \"%s\", \"group\": %s, \"number\": %d, \"value\": %s, \"bytes\": %d, \"begun_ns_ago\": %d, ", inner,
                            std::string(NameOf(entry.kind)), JsonText(entry.group), entry.number, JsonText(entry.value), entry.bytes, Since(image.read_ns, entry.begin_ns));
      absl::StrAppend(&text, "\"state\": ", entry.end_ns == 0 ? "\"in\"" : entry.ok ? "\"done\"" : "\"failed\"");
      if (entry.end_ns != 0) absl::StrAppend(&text, ", \"ended_ns_ago\": ", Since(image.read_ns, entry.end_ns));
      absl::StrAppend(&text, ", \"waits_for\": ", entry.end_ns == 0 && entry.peer >= 0 ? absl::StrCat(entry.peer) : "null", "}");
      inner = ",";
    }
    absl::StrAppend(&text, "]}");
    separator = ",";
  }
  absl::StrAppend(&text, "],\n \"verdict\": [");
  separator = "";
  for (const std::string& line : ExplainWaits(images)) {
    absl::StrAppend(&text, separator, JsonText(line));
    separator = ", ";
  }
  return text + "]}\n";
}

}  // namespace gantry
