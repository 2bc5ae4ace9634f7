#include "ops/attributes.h"

#include <algorithm>
#include <charconv>

#include "absl/strings/str_join.h"

namespace gantry {
namespace {

std::string Print(double value) {
  char text[32];
  const auto result = std::to_chars(text, text + sizeof(text), value);
  return std::string(text, result.ptr);
}

struct Printer {
  std::string operator()(int64_t value) const { return absl::StrCat(value); }
  std::string operator()(double value) const { return Print(value); }
  std::string operator()(const std::string& value) const { return absl::StrCat("\"", value, "\""); }
  std::string operator()(const std::vector<int64_t>& values) const {
    return absl::StrCat("[", absl::StrJoin(values, ","), "]");
  }
  std::string operator()(const std::vector<double>& values) const {
    return absl::StrCat("[", absl::StrJoin(values, ",", [](std::string* out, double v) { out->append(Print(v)); }), "]");
  }
};

template <typename T>
T Get(const Attributes& attributes, std::string_view name, T fallback) {
  const AttributeValue* value = attributes.Find(name);
  if (value == nullptr) return fallback;
  const T* typed = std::get_if<T>(value);
  return typed != nullptr ? *typed : fallback;
}

}  // namespace

Attributes::Attributes(std::initializer_list<std::pair<std::string, AttributeValue>> entries) {
  for (const auto& [name, value] : entries) Set(name, value);
}

void Attributes::Set(std::string name, AttributeValue value) {
  auto place = std::lower_bound(entries_.begin(), entries_.end(), name,
                                [](const auto& entry, const std::string& key) { return entry.first < key; });
  if (place != entries_.end() && place->first == name) {
    place->second = std::move(value);
  } else {
    entries_.emplace(place, std::move(name), std::move(value));
  }
}

const AttributeValue* Attributes::Find(std::string_view name) const {
  for (const auto& entry : entries_) {
    if (entry.first == name) return &entry.second;
  }
  return nullptr;
}

int64_t Attributes::Int(std::string_view name, int64_t fallback) const { return Get<int64_t>(*this, name, fallback); }

double Attributes::Float(std::string_view name, double fallback) const {
  const AttributeValue* value = Find(name);
  if (value != nullptr && std::holds_alternative<int64_t>(*value)) return static_cast<double>(std::get<int64_t>(*value));
  return Get<double>(*this, name, fallback);
}

std::string Attributes::String(std::string_view name, std::string fallback) const {
  return Get<std::string>(*this, name, std::move(fallback));
}

std::vector<int64_t> Attributes::Ints(std::string_view name, std::vector<int64_t> fallback) const {
  return Get<std::vector<int64_t>>(*this, name, std::move(fallback));
}

std::vector<double> Attributes::Floats(std::string_view name, std::vector<double> fallback) const {
  return Get<std::vector<double>>(*this, name, std::move(fallback));
}

std::string Attributes::ToString() const {
  if (entries_.empty()) return "";
  return absl::StrCat("{", absl::StrJoin(entries_, ", ", [](std::string* out, const auto& entry) {
                        absl::StrAppend(out, entry.first, "=", std::visit(Printer(), entry.second));
                      }), "}");
}

}  // namespace gantry
