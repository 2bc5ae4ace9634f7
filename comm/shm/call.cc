#include "comm/shm/call.h"

#include <algorithm>
#include <cstring>

namespace gantry::shm {
namespace {

std::string_view KindName(Collective kind) {
  switch (kind) {
    case Collective::kNone:
      return "nothing";
    case Collective::kBarrier:
      return "barrier";
    case Collective::kAllReduce:
      return "all_reduce";
    case Collective::kReduceScatter:
      return "reduce_scatter";
    case Collective::kAllGather:
      return "all_gather";
    case Collective::kBroadcast:
      return "broadcast";
    case Collective::kReduce:
      return "reduce";
    case Collective::kAllToAll:
      return "all_to_all";
    case Collective::kExchangeHalo:
      return "exchange_halo";
    case Collective::kSendReceive:
      return "send_receive";
  }
  return "an unknown collective";
}

}  // namespace

uint64_t Call::What(bool with_memory) const {
  return static_cast<uint64_t>(kind) | static_cast<uint64_t>(type) << 8 | static_cast<uint64_t>(reduce) << 16 |
         (with_memory ? static_cast<uint64_t>(memory) << 24 : 0) | static_cast<uint64_t>(root) << 32 |
         static_cast<uint64_t>(to) << 48;
}

void Call::WriteTo(Entry& entry) const {
  constexpr std::memory_order kRelaxed = std::memory_order_relaxed;
  entry.what.store(What(true), kRelaxed);
  entry.count.store(static_cast<uint64_t>(count), kRelaxed);
  entry.parts.store(parts, kRelaxed);
  entry.place.store(place, kRelaxed);
  entry.largest_part.store(static_cast<uint64_t>(largest_part), kRelaxed);
  uint64_t words[kNameWords];
  static_assert(sizeof(words) == sizeof(name));
  std::memcpy(words, name, sizeof(words));
  for (size_t word = 0; word < kNameWords; ++word) entry.name[word].store(words[word], kRelaxed);
}

Call Call::ReadFrom(const Entry& entry) {
  constexpr std::memory_order kRelaxed = std::memory_order_relaxed;
  const uint64_t what = entry.what.load(kRelaxed);
  Call call;
  call.kind = static_cast<Collective>(what & 0xff);
  call.type = static_cast<ElementType>(what >> 8 & 7);
  call.reduce = static_cast<ReduceOp>(std::min<uint64_t>(what >> 16 & 0xff, kReduceOps - 1));
  call.memory = static_cast<MemoryKind>(what >> 24 & 0xff);
  call.root = static_cast<int>(what >> 32 & 0xffff);
  call.to = static_cast<int>(what >> 48);
  call.count = static_cast<int64_t>(entry.count.load(kRelaxed));
  call.parts = entry.parts.load(kRelaxed);
  call.place = entry.place.load(kRelaxed);
  call.largest_part = static_cast<int64_t>(entry.largest_part.load(kRelaxed));
  uint64_t words[kNameWords];
  for (size_t word = 0; word < kNameWords; ++word) words[word] = entry.name[word].load(kRelaxed);
  std::memcpy(call.name, words, sizeof(call.name));
  call.name[sizeof(call.name) - 1] = '\0';
  return call;
}

bool Call::Matches(const Entry& entry) const {
  constexpr std::memory_order kRelaxed = std::memory_order_relaxed;
  constexpr uint64_t kWithoutMemory = ~(uint64_t{0xff} << 24);
  return (entry.what.load(kRelaxed) & kWithoutMemory) == What(false) &&
         entry.count.load(kRelaxed) == static_cast<uint64_t>(count) && entry.parts.load(kRelaxed) == parts;
}

RecordedKind Call::kind_for_recorder() const {
  switch (kind) {
    case Collective::kNone:
      return RecordedKind::kNone;
    case Collective::kBarrier:
      return RecordedKind::kBarrier;
    case Collective::kAllReduce:
      return RecordedKind::kAllReduce;
    case Collective::kReduceScatter:
      return RecordedKind::kReduceScatter;
    case Collective::kAllGather:
      return RecordedKind::kAllGather;
    case Collective::kBroadcast:
      return RecordedKind::kBroadcast;
    case Collective::kReduce:
      return RecordedKind::kReduce;
    case Collective::kAllToAll:
      return RecordedKind::kAllToAll;
    case Collective::kExchangeHalo:
      return RecordedKind::kHalo;
    case Collective::kSendReceive:
      return RecordedKind::kSendReceive;
  }
  return RecordedKind::kNone;
}

std::string Call::Describe() const {
  std::string text(KindName(kind));
  switch (kind) {
    case Collective::kAllReduce:
      absl::StrAppendFormat(&text, " %s of %d %s", Name(reduce), count, Name(type));
      break;
    case Collective::kReduce:
      absl::StrAppendFormat(&text, " %s of %d %s to rank %d", Name(reduce), count, Name(type), root);
      break;
    case Collective::kReduceScatter:
      absl::StrAppendFormat(&text, " %s of %d bytes of %s (parts %08x)", Name(reduce), count, Name(type), parts >> 32);
      break;
    case Collective::kAllGather:
      absl::StrAppendFormat(&text, " of %d bytes (parts %08x)", count, parts >> 32);
      break;
    case Collective::kBroadcast:
      absl::StrAppendFormat(&text, " of %d bytes from rank %d", count, root);
      break;
    case Collective::kSendReceive:
      absl::StrAppendFormat(&text, " of %d bytes from rank %d to rank %d", count, root, to);
      break;
    default:
      break;
  }
  if (name[0] != '\0') absl::StrAppendFormat(&text, " \"%s\"", name);
  return text;
}

}  // namespace gantry::shm
