// The attributes of an op: few, named, typed, printed in the order of their names.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "memory/status.h"

namespace gantry {

using AttributeValue = std::variant<int64_t, double, std::string, std::vector<int64_t>, std::vector<double>>;

class Attributes {
 public:
  Attributes() = default;
  Attributes(std::initializer_list<std::pair<std::string, AttributeValue>> entries);

  // Sets or replaces.
  void Set(std::string name, AttributeValue value);
  // Null where there is none.
  const AttributeValue* Find(std::string_view name) const;
  bool Has(std::string_view name) const { return Find(name) != nullptr; }

  // The value, or `fallback` where the attribute is absent or of another type. Shape inference has checked presence and
  // type before a kernel or gradient rule reads one.
  int64_t Int(std::string_view name, int64_t fallback = 0) const;
  double Float(std::string_view name, double fallback = 0.0) const;
  std::string String(std::string_view name, std::string fallback = "") const;
  std::vector<int64_t> Ints(std::string_view name, std::vector<int64_t> fallback = {}) const;
  std::vector<double> Floats(std::string_view name, std::vector<double> fallback = {}) const;

  const std::vector<std::pair<std::string, AttributeValue>>& entries() const { return entries_; }
  // "{pads=[1,1,1,1], strides=[2,2]}"; "" where there is none. Doubles print so that they read back exactly.
  std::string ToString() const;
  friend bool operator==(const Attributes&, const Attributes&) = default;

 private:
  std::vector<std::pair<std::string, AttributeValue>> entries_;  // sorted by name
};

}  // namespace gantry
