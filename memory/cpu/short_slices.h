// How soon a thread that was woken gets a core on which another one computes.
#pragma once

namespace gantry {

// For a calling thread that sleeps until something comes and then has little to do: it runs soon after it was woken. The
// kernel (Linux 6.12 and later, where a thread has a slice of its own; others ignore it) lets the thread with the shorter
// slice go first, and gives neither more of the core.
void PreferShortSlices();

}  // namespace gantry
