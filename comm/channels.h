// Who uses which channel of the links. Users above comm/ take numbers from kFirstFreeChannel on.
#pragma once

#include <cstdint>

namespace gantry {

constexpr uint32_t kMemberChannel = 0;     // who is who, once, at the start
constexpr uint32_t kLivenessChannel = 1;   // hearts, beats, losses, departures
constexpr uint32_t kRecorderChannel = 2;   // a rank's recorder, for its peers and the launcher
constexpr uint32_t kRankEndedChannel = 3;  // from the launcher: rank u32, failed u32, how it ended
constexpr uint32_t kFirstFreeChannel = 16;

}  // namespace gantry
