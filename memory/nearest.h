// The name that was meant: for errors about misspelt keys, ops and flags.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

namespace gantry {

// How many insertions, deletions, changes and swaps of neighbours turn `a` into `b` (optimal string alignment distance:
// Damerau, CACM 7(3), 1964). Takes |a| * |b| time; only the first 200 bytes of each are compared.
size_t EditDistance(std::string_view a, std::string_view b);

// The entry of `known` nearest to `name`, the first of several; empty where none is near: more than a third of the
// longer name's letters differ.
std::string_view Nearest(std::string_view name, std::span<const std::string> known);

}  // namespace gantry
