#include "comm/shm/call.h"

#include <algorithm>
#include <cstring>
#include <iterator>

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

Call::Words Call::ToWords() const {
  Words words = {What(true), static_cast<uint64_t>(count), parts, place, static_cast<uint64_t>(largest_part)};
  static_assert(sizeof(name) == kNameWords * sizeof(uint64_t));
  std::memcpy(words.data() + 5, name, sizeof(name));
  return words;
}

Call Call::FromWords(const Words& words) {
  const uint64_t what = words[0];
  Call call;
  call.kind = static_cast<Collective>(what & 0xff);
  call.type = static_cast<ElementType>(what >> 8 & 7);
  call.reduce = static_cast<ReduceOp>(std::min<uint64_t>(what >> 16 & 0xff, kReduceOps - 1));
  call.memory = static_cast<MemoryKind>(what >> 24 & 0xff);
  call.root = static_cast<int>(what >> 32 & 0xffff);
  call.to = static_cast<int>(what >> 48);
  call.count = static_cast<int64_t>(words[1]);
  call.parts = words[2];
  call.place = words[3];
  call.largest_part = static_cast<int64_t>(words[4]);
  std::memcpy(call.name, words.data() + 5, sizeof(call.name));
  call.name[sizeof(call.name) - 1] = '\0';
  return call;
}

void Call::WriteTo(Entry& entry) const {
  const Words words = ToWords();
  std::atomic<uint64_t>* const to[] = {&entry.what, &entry.count, &entry.parts, &entry.place, &entry.largest_part};
  for (size_t i = 0; i < std::size(to); ++i) to[i]->store(words[i], std::memory_order_relaxed);
  for (size_t i = 0; i < kNameWords; ++i) entry.name[i].store(words[5 + i], std::memory_order_relaxed);
}

Call Call::ReadFrom(const Entry& entry) {
  Words words;
  const std::atomic<uint64_t>* const from[] = {&entry.what, &entry.count, &entry.parts, &entry.place,
                                               &entry.largest_part};
  for (size_t i = 0; i < std::size(from); ++i) words[i] = from[i]->load(std::memory_order_relaxed);
  for (size_t i = 0; i < kNameWords; ++i) words[5 + i] = entry.name[i].load(std::memory_order_relaxed);
  return FromWords(words);
}

bool Call::Matches(const Call& other) const {
  return What(false) == other.What(false) && count == other.count && parts == other.parts;
}

bool Call::Matches(const Entry& entry) const {
  constexpr std::memory_order kRelaxed = std::memory_order_relaxed;
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
