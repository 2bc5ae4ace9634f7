#include "runtime/gan/session_parts.h"

#include <algorithm>
#include <cstring>

#include "memory/hash.h"

namespace gantry {
namespace {

// In front of what a rank keeps: what it is of, then its parts, then their bytes.
struct KeptHeader {
  uint64_t fingerprint;  // of the states' names and types
  int64_t part_count, data_bytes;
  KeptCounts counts;
  uint64_t checksum;  // of all behind it, and of what is before it
};

int64_t HeadBytes(size_t part_count) {
  return static_cast<int64_t>((sizeof(KeptHeader) + part_count * sizeof(StatePart) + 63) / 64 * 64);
}

uint64_t Fingerprint(const GanSession& session) {
  std::string text;
  for (const GanSession::SessionState& state : session.states())
    absl::StrAppend(&text, state.name, " ", state.type.ToString(), "\n");
  return HashText(text);
}

// Of the header's fields before the checksum and of the rest.
uint64_t Checksum(std::span<const std::byte> kept) {
  return HashBytes(kept.first(offsetof(KeptHeader, checksum))) * 31 + HashBytes(kept.subspan(sizeof(KeptHeader)));
}

// The elements that this rank holds of a state: one run, or none, where another role has it.
std::pair<int64_t, int64_t> Held(const GanSession& session, const GanSession::SessionState& state) {
  if (state.pieces.empty()) return {0, 0};
  const Program& program = session.executor().program();
  const State& last = *state.pieces.back();
  return {state.pieces.front()->begin, last.begin + program.TypeOf(last.first).element_count()};
}

struct KeptView {
  KeptHeader header;
  std::vector<StatePart> parts;
  std::span<const std::byte> data;
};

// Nothing where it does not fit this session.
std::optional<KeptView> View(const GanSession& session, std::span<const std::byte> kept, uint64_t fingerprint) {
  KeptView view;
  if (kept.size() < sizeof(KeptHeader)) return std::nullopt;
  std::memcpy(&view.header, kept.data(), sizeof(KeptHeader));
  const KeptHeader& header = view.header;
  if (header.fingerprint != fingerprint || header.part_count < 0 ||
      header.part_count > static_cast<int64_t>(session.states().size()) || header.data_bytes < 0 ||
      HeadBytes(static_cast<size_t>(header.part_count)) + header.data_bytes != static_cast<int64_t>(kept.size())) {
    return std::nullopt;
  }
  view.parts.resize(static_cast<size_t>(header.part_count));
  std::memcpy(view.parts.data(), kept.data() + sizeof(KeptHeader), view.parts.size() * sizeof(StatePart));
  view.data = kept.subspan(static_cast<size_t>(HeadBytes(view.parts.size())));
  return view;
}

}  // namespace

absl::StatusOr<std::vector<StatePart>> PartsOf(GanSession& session) {
  const size_t states = session.states().size(), ranks = static_cast<size_t>(session.rank_count());
  std::vector<double> mine, all(2 * states * ranks);
  for (const GanSession::SessionState& state : session.states()) {
    const auto [begin, end] = Held(session, state);
    mine.insert(mine.end(), {static_cast<double>(begin), static_cast<double>(end)});
  }
  GANTRY_RETURN_IF_ERROR(session.GatherNumbers(mine, all));
  std::vector<StatePart> parts;
  for (size_t i = 0; i < states; ++i) {
    const double* const held = &mine[2 * i];
    int64_t copies = 0, copy = 0;  // how many ranks hold the same, and how many of them come before this one
    for (size_t rank = 0; rank < ranks; ++rank) {
      const double* const theirs = &all[2 * (rank * states + i)];
      if (theirs[0] != held[0] || theirs[1] != held[1]) continue;
      copy += rank < static_cast<size_t>(session.rank()) ? 1 : 0;
      ++copies;
    }
    const auto begin = static_cast<int64_t>(held[0]), end = static_cast<int64_t>(held[1]);
    const int64_t first = begin + (end - begin) * copy / copies, last = begin + (end - begin) * (copy + 1) / copies;
    if (first < last) parts.push_back({static_cast<int>(i), first, last - first});
  }
  return parts;
}

int64_t BytesOf(const GanSession& session, std::span<const StatePart> parts) {
  int64_t bytes = 0;
  for (const StatePart& part : parts)
    bytes += part.count * static_cast<int64_t>(SizeBytes(session.states()[part.state].type.dtype));
  return bytes;
}

PartReader PartReader::Create(GanSession& session, std::vector<StatePart> parts) {
  PartReader reader(session);
  reader.parts_ = std::move(parts);
  reader.bytes_ = BytesOf(session, reader.parts_);
  size_t largest = 0;
  for (const StatePart& part : reader.parts_) {
    for (const State* piece : session.states()[part.state].pieces) {
      largest = std::max(largest, static_cast<size_t>(session.executor().program().TypeOf(piece->first).size_bytes()));
    }
  }
  reader.piece_.resize(largest);
  return reader;
}

absl::Status PartReader::Read(std::span<std::byte> to) {
  GANTRY_RETURN_IF_ERROR(session_->EndTail());
  const Program& program = session_->executor().program();
  for (const StatePart& part : parts_) {
    const GanSession::SessionState& state = session_->states()[part.state];
    const size_t element_bytes = SizeBytes(state.type.dtype);
    for (const State* piece : state.pieces) {
      const int64_t piece_end = piece->begin + program.TypeOf(piece->first).element_count();
      const int64_t first = std::max(part.begin, piece->begin), last = std::min(part.begin + part.count, piece_end);
      if (first >= last) continue;
      const auto count = static_cast<size_t>(last - first) * element_bytes,
                 skip = static_cast<size_t>(first - piece->begin) * element_bytes;
      if (last - first == piece_end - piece->begin) {
        GANTRY_RETURN_IF_ERROR(session_->executor().ReadState(*piece, to.first(count)));
      } else if (const std::span<const std::byte> data = session_->executor().Borrow(*piece); !data.empty()) {
        std::memcpy(to.data(), data.data() + skip, count);
      } else {
        const auto whole = std::span(piece_).first(static_cast<size_t>(program.TypeOf(piece->first).size_bytes()));
        GANTRY_RETURN_IF_ERROR(session_->executor().ReadState(*piece, whole));
        std::memcpy(to.data(), whole.data() + skip, count);
      }
      to = to.subspan(count);
    }
  }
  return absl::OkStatus();
}

absl::Status FillStates(GanSession& session, const ReadElements& read) {
  GANTRY_RETURN_IF_ERROR(session.EndTail());
  std::vector<std::byte> buffer;
  for (const GanSession::SessionState& state : session.states()) {
    for (const State* piece : state.pieces) {
      buffer.resize(static_cast<size_t>(session.executor().program().TypeOf(piece->first).size_bytes()));
      GANTRY_RETURN_IF_ERROR(read(state, piece->begin, buffer));
      GANTRY_RETURN_IF_ERROR(session.executor().WriteState(*piece, buffer));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<MemoryCheckpoint>> MemoryCheckpoint::Create(GanSession& session, Keeping& keeping) {
  GANTRY_ASSIGN_OR_RETURN(std::vector<StatePart> parts, PartsOf(session));
  std::unique_ptr<MemoryCheckpoint> result(
      new MemoryCheckpoint(keeping, PartReader::Create(session, std::move(parts))));
  result->bytes_ = HeadBytes(result->reader_.parts().size()) + result->reader_.size_bytes();
  result->fingerprint_ = Fingerprint(session);
  GANTRY_RETURN_IF_ERROR(keeping.Reserve(result->bytes_));
  return result;
}

absl::Status MemoryCheckpoint::Keep(const KeptCounts& counts) {
  const std::span<std::byte> to = keeping_->BeginWrite();
  KeptHeader header{.fingerprint = fingerprint_,
                    .part_count = static_cast<int64_t>(reader_.parts().size()),
                    .data_bytes = reader_.size_bytes(),
                    .counts = counts,
                    .checksum = 0};
  std::memcpy(to.data() + sizeof(header), reader_.parts().data(), reader_.parts().size_bytes());
  GANTRY_RETURN_IF_ERROR(reader_.Read(to.subspan(static_cast<size_t>(HeadBytes(reader_.parts().size())))));
  std::memcpy(to.data(), &header, sizeof(header));
  header.checksum = Checksum(to);
  std::memcpy(to.data(), &header, sizeof(header));
  keeping_->Commit(counts.steps);
  return absl::OkStatus();
}

absl::StatusOr<int64_t> MemoryCheckpoint::Newest(GanSession& session, Keeping& keeping) {
  const uint64_t fingerprint = Fingerprint(session);
  // A step that is whole here: each rank answers for its own memory.
  std::vector<int64_t> whole;
  if (keeping.size() == session.rank_count()) {
    GANTRY_ASSIGN_OR_RETURN(const std::vector<Keeping::Kept> kept, keeping.Read(session.rank()));
    for (const Keeping::Kept& one : kept) {
      const std::optional<KeptView> view = View(session, one.bytes, fingerprint);
      if (view.has_value() && view->header.counts.steps == one.step && view->header.checksum == Checksum(one.bytes))
        whole.push_back(one.step);
    }
  }
  // Ranks are never more than one copy apart, so the newest of the rank that is furthest behind is the only one that
  // all may have.
  GANTRY_ASSIGN_OR_RETURN(const double behind,
                          session.AgreeOn(whole.empty() ? 1.0 : -static_cast<double>(whole.front())));
  if (behind > 0) return -1;
  const auto step = static_cast<int64_t>(-behind);
  const bool mine = std::find(whole.begin(), whole.end(), step) != whole.end();
  GANTRY_ASSIGN_OR_RETURN(const double missing, session.AgreeOn(mine ? 0.0 : 1.0));
  return missing > 0 ? -1 : step;
}

absl::StatusOr<KeptCounts> MemoryCheckpoint::Restore(GanSession& session, Keeping& keeping, int64_t step) {
  const uint64_t fingerprint = Fingerprint(session);
  struct Source {
    int64_t begin, count;
    const std::byte* data;
  };
  std::vector<std::vector<Source>> sources(session.states().size());
  KeptCounts counts;
  for (int rank = 0; rank < session.rank_count(); ++rank) {
    GANTRY_ASSIGN_OR_RETURN(const std::vector<Keeping::Kept> kept, keeping.Read(rank));
    const auto found =
        std::find_if(kept.begin(), kept.end(), [&](const Keeping::Kept& one) { return one.step == step; });
    const std::optional<KeptView> view = found == kept.end() ? std::nullopt : View(session, found->bytes, fingerprint);
    if (!view.has_value())
      return absl::DataLossError(absl::StrFormat("what rank %d kept in memory of step %d is gone", rank, step));
    counts = view->header.counts;
    const std::byte* data = view->data.data();
    for (const StatePart& part : view->parts) {
      if (part.state < 0 || part.state >= static_cast<int>(sources.size()) || part.count < 0)
        return absl::DataLossError(absl::StrFormat("rank %d kept parts of other states", rank));
      sources[part.state].push_back({part.begin, part.count, data});
      data += part.count * static_cast<int64_t>(SizeBytes(session.states()[part.state].type.dtype));
      if (data > view->data.data() + view->data.size())
        return absl::DataLossError(absl::StrFormat("rank %d kept less than it says", rank));
    }
  }
  GANTRY_RETURN_IF_ERROR(FillStates(
      session, [&](const GanSession::SessionState& state, int64_t begin, std::span<std::byte> to) -> absl::Status {
        const auto element_bytes = static_cast<int64_t>(SizeBytes(state.type.dtype));
        const int64_t end = begin + static_cast<int64_t>(to.size()) / element_bytes;
        int64_t filled = 0;
        for (const Source& source : sources[static_cast<size_t>(&state - session.states().data())]) {
          const int64_t first = std::max(begin, source.begin), last = std::min(end, source.begin + source.count);
          if (first >= last) continue;
          std::memcpy(to.data() + (first - begin) * element_bytes, source.data + (first - source.begin) * element_bytes,
                      static_cast<size_t>((last - first) * element_bytes));
          filled += last - first;
        }
        if (filled == end - begin) return absl::OkStatus();
        return absl::DataLossError(
            absl::StrFormat("'%s' is not whole in what the ranks kept in memory of step %d", state.name, step));
      }));
  return counts;
}

}  // namespace gantry
