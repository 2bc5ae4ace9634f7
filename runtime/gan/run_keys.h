// The table of a run file's keys, and how a value gets into and out of a RunConfig.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "runtime/gan/run_config.h"

namespace gantry {

// Where a key's value lies. A uint8_t is an enum whose values are the indices of the key's choices.
using RunField = std::variant<int64_t*, int*, uint64_t*, double*, bool*, std::string*, uint8_t*>;

struct RunKeyEntry {
  std::string name;  // as RunKey::name
  std::string help;
  // Numbers lie in [low, high], or in [low, high) where `below_high`.
  double low = 0.0, high = 0.0;
  bool below_high = false;
  bool is_path = false;                // relative to the file's folder where it comes from the file
  std::vector<std::string> choices{};  // of a text or an enum; empty: any text
  // `index` counts the tables of [[generators]] or [[discriminators]]; those must have one of that index.
  std::function<RunField(RunConfig& config, size_t index)> field;

  bool in_list() const { return name.find("[]") != std::string::npos; }
};

// Made once. The order is that of the reference page.
const std::vector<RunKeyEntry>& RunKeyTable();
// "model", "generator.optimizer", "generators[]", ...: what may be a table in a run file, in order.
const std::vector<std::string>& RunSections();
// Null where there is none.
const RunKeyEntry* FindRunKey(std::string_view name);
// "; did you mean 'train.batch'?", or what there is instead.
std::string SuggestRunKey(std::string_view name);
// "GANTRY_TRAIN_BATCH".
std::string EnvironmentName(const RunKeyEntry& key);

// A value as a file, variable or override gives it.
struct RunValue {
  std::variant<int64_t, double, bool, std::string> value;
  bool is_text_form = false;  // a string that is to be read as whatever the key is
};
std::string ToToml(const RunValue& value);

// kInvalidArgument, beginning with `origin`, where the type or range is wrong; nothing changes then.
absl::Status SetRunKey(const RunKeyEntry& key, size_t index, const RunValue& value, std::string_view origin,
                       RunConfig& config);
// The value as TOML.
std::string GetRunKey(const RunKeyEntry& key, size_t index, const RunConfig& config);
std::string TypeName(const RunKeyEntry& key);
std::string AllowedText(const RunKeyEntry& key);

}  // namespace gantry
