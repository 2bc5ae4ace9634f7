// Who uses which channel of the links. Users above comm/ take numbers from kFirstFreeChannel up to kFirstGroupChannel.
#pragma once

#include <cstdint>

namespace gantry {

constexpr uint32_t kMemberChannel = 0;     // who is who, once, at the start
constexpr uint32_t kLivenessChannel = 1;   // hearts, beats, losses, departures
constexpr uint32_t kRecorderChannel = 2;   // a rank's recorder, for its peers and the launcher
constexpr uint32_t kRankEndedChannel = 3;  // from the launcher: rank u32, RankEndKind u32, how it ended
constexpr uint32_t kPoolChannel = 4;       // which regions a rank shares, with their descriptors
constexpr uint32_t kNodeChannel = 5;       // the doorbells of a node
constexpr uint32_t kAgreementChannel = 6;  // how a rank's planning ended; which split rank 0 has chosen
constexpr uint32_t kTcpChannel = 7;        // where a rank listens for the ranks of other nodes
constexpr uint32_t kPathChannel = 8;       // what a rank offers those of other nodes beside its connections
constexpr uint32_t kFirstFreeChannel = 16;
// How the launcher sees the end of a rank: in order, on its own account, or (by its exit code) because it had lost another.
enum class RankEndKind : uint32_t { kInOrder = 0, kFailed = 1, kLostAnother = 2 };
constexpr uint32_t kFirstGroupChannel = 0x80000000u;
// The memory of a group, by the group's number.
constexpr uint32_t GroupChannel(uint64_t group) { return kFirstGroupChannel | static_cast<uint32_t>(group & 0x7fffffffu); }

}  // namespace gantry
