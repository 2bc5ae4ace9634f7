#include "runtime/gan/run_config.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>

#define TOML_EXCEPTIONS 0
#define TOML_ENABLE_FORMATTERS 0
#define TOML_MAX_NESTED_VALUES 16
#include <toml++/toml.h>

#include "absl/strings/ascii.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "memory/nearest.h"
#include "runtime/data/file.h"
#include "runtime/gan/families.h"
#include "runtime/gan/run_keys.h"

namespace gantry {
namespace {

constexpr uint64_t kMaxRunFileBytes = 1 << 20;
constexpr size_t kMaxNetworks = 64;
// toml++ nests a table for every part of a.dotted.key and frees them recursively: a hostile key would overflow the
// stack.
constexpr int64_t kMaxDotsOfLine = 100;
constexpr std::string_view kDefaultFamily = "dcgan";
constexpr int64_t kDefaultImages = 1'000'000;

// One key that something gave a value.
struct Setting {
  const RunKeyEntry* key = nullptr;
  size_t index = 0;  // of the table in its list
  RunValue value;
  std::string origin;  // "run.toml:12"
};

// What the family recommends.
absl::Status ApplyFamilyDefaults(RunConfig& config) {
  if (config.model.family.empty()) return absl::OkStatus();
  GANTRY_ASSIGN_OR_RETURN(const FamilyDefaults defaults, DefaultsOf(config.model.family));
  config.step.loss = defaults.loss;
  config.step.r1 = defaults.r1;
  config.step.r2 = defaults.r2;
  config.step.gradient_penalty = defaults.gradient_penalty;
  config.step.n_critic = defaults.n_critic;
  config.step.ema = defaults.ema;
  config.generator.optimizer = defaults.generator;
  config.discriminator.optimizer = defaults.discriminator;
  return absl::OkStatus();
}

void FillFamilySizes(RunConfig::ModelSection& model) {
  const FamilyOptions defaults;
  if (model.image_size == 0) model.image_size = defaults.image_size;
  if (model.width == 0) model.width = defaults.width;
  if (model.latent == 0) model.latent = defaults.latent_size;
}

bool IsList(std::string_view section) { return section == "generators" || section == "discriminators"; }

// Reads a parsed file into settings.
class FileReader {
 public:
  FileReader(const RunConfigSources& sources, std::vector<Setting>& settings)
      : sources_(sources), settings_(settings) {}

  absl::Status ReadTable(const toml::table& table, const std::string& path, size_t index) {
    for (const auto& [toml_key, node] : table) {
      const std::string name =
          path.empty() ? std::string(toml_key.str()) : absl::StrCat(path, ".", std::string(toml_key.str()));
      const std::string origin = absl::StrFormat("%s:%d", sources_.name, node.source().begin.line);
      if (const toml::table* inner = node.as_table()) {
        if (IsList(name)) return Error(origin, absl::StrFormat("'%s' is a list: write [[%s]]", name, name));
        if (const RunKeyEntry* key = FindRunKey(name))
          return Error(origin, absl::StrFormat("'%s' is a table; it is a key of type %s", name, TypeName(*key)));
        if (!IsSection(name)) return UnknownSection(origin, name);
        GANTRY_RETURN_IF_ERROR(ReadTable(*inner, name, index));
      } else if (const toml::array* list = node.as_array(); list != nullptr && path.empty() && IsList(name)) {
        GANTRY_RETURN_IF_ERROR(ReadList(*list, name, origin));
      } else {
        GANTRY_RETURN_IF_ERROR(ReadValue(node, name, index, origin));
      }
    }
    return absl::OkStatus();
  }

  size_t generators() const { return generators_; }
  size_t discriminators() const { return discriminators_; }

 private:
  static absl::Status Error(std::string_view origin, std::string_view text) {
    return absl::InvalidArgumentError(absl::StrFormat("%s: %s", origin, text));
  }
  static bool IsSection(std::string_view name) {
    const std::vector<std::string>& sections = RunSections();
    return std::find(sections.begin(), sections.end(), name) != sections.end();
  }
  static absl::Status UnknownSection(std::string_view origin, std::string_view name) {
    const std::string_view near = Nearest(name, RunSections());
    return Error(origin,
                 absl::StrFormat("there is no section [%s]%s", name,
                                 near.empty() ? absl::StrCat("; the sections are ", absl::StrJoin(RunSections(), ", "))
                                              : absl::StrFormat("; did you mean [%s]?", near)));
  }

  absl::Status ReadList(const toml::array& list, const std::string& name, const std::string& origin) {
    size_t& count = name == "generators" ? generators_ : discriminators_;
    if (list.size() > kMaxNetworks)
      return Error(origin,
                   absl::StrFormat("there are %d [[%s]], at most %d are allowed", list.size(), name, kMaxNetworks));
    for (const toml::node& node : list) {
      const toml::table* table = node.as_table();
      if (table == nullptr)
        return Error(origin,
                     absl::StrFormat("'%s' is a list of values; write a table [[%s]] for each network", name, name));
      GANTRY_RETURN_IF_ERROR(ReadTable(*table, name + "[]", count++));
    }
    return absl::OkStatus();
  }

  absl::Status ReadValue(const toml::node& node, const std::string& name, size_t index, const std::string& origin) {
    const RunKeyEntry* key = FindRunKey(name);
    if (key == nullptr) {
      if (IsSection(name))
        return Error(origin, absl::StrFormat("'%s' is a section: write [%s] and its keys below", name, name));
      if (IsList(name)) return Error(origin, absl::StrFormat("'%s' is a list: write [[%s]]", name, name));
      return Error(origin, absl::StrFormat("unknown key '%s'%s", name, SuggestRunKey(name)));
    }
    Setting setting{.key = key, .index = index, .origin = origin};
    if (const auto* integer = node.as_integer()) {
      setting.value.value = integer->get();
    } else if (const auto* number = node.as_floating_point()) {
      setting.value.value = number->get();
    } else if (const auto* boolean = node.as_boolean()) {
      setting.value.value = boolean->get();
    } else if (const auto* text = node.as_string()) {
      std::string value = text->get();
      if (key->is_path && !value.empty() && value[0] != '/' && !sources_.folder.empty())
        value = absl::StrCat(sources_.folder, "/", value);
      setting.value.value = std::move(value);
    } else {
      return Error(origin, absl::StrFormat("'%s' is %s; it is a key of type %s", name,
                                           node.is_array() ? "a list" : "a date or time", TypeName(*key)));
    }
    settings_.push_back(std::move(setting));
    return absl::OkStatus();
  }

  const RunConfigSources& sources_;
  std::vector<Setting>& settings_;
  size_t generators_ = 0, discriminators_ = 0;
};

absl::Status ReadEnvironment(std::span<const std::string> environment, std::vector<Setting>& settings) {
  std::vector<std::string> known;
  for (const RunKeyEntry& key : RunKeyTable()) {
    if (!key.in_list()) known.push_back(EnvironmentName(key));
  }
  for (const std::string& variable : environment) {
    const size_t equals = variable.find('=');
    if (equals == std::string::npos) continue;
    const std::string name = variable.substr(0, equals);
    const bool ours = std::any_of(RunSections().begin(), RunSections().end(), [&](const std::string& section) {
      return section.find_first_of(".[") == std::string::npos &&
             name.starts_with(absl::StrCat("GANTRY_", absl::AsciiStrToUpper(section), "_"));
    });
    if (!ours) continue;
    const auto found = std::find(known.begin(), known.end(), name);
    if (found == known.end()) {
      const std::string_view near = Nearest(name, known);
      return absl::InvalidArgumentError(
          absl::StrFormat("environment: there is no setting %s%s; unset it", name,
                          near.empty() ? "" : absl::StrFormat(", did you mean %s", near)));
    }
    const auto key = std::find_if(RunKeyTable().begin(), RunKeyTable().end(), [&](const RunKeyEntry& entry) {
      return !entry.in_list() && EnvironmentName(entry) == name;
    });
    settings.push_back({&*key, 0, {variable.substr(equals + 1), true}, absl::StrCat("environment ", name)});
  }
  return absl::OkStatus();
}

absl::Status ReadOverrides(std::span<const std::string> overrides, std::vector<Setting>& settings) {
  for (const std::string& text : overrides) {
    const size_t equals = text.find('=');
    const std::string origin = absl::StrCat("--set ", text);
    if (equals == std::string::npos) {
      return absl::InvalidArgumentError(
          absl::StrFormat("%s: has no '='; write section.key=value, as in train.batch=32", origin));
    }
    const std::string name(absl::StripAsciiWhitespace(text.substr(0, equals)));
    const RunKeyEntry* key = FindRunKey(name);
    if (key == nullptr)
      return absl::InvalidArgumentError(absl::StrFormat("%s: unknown key '%s'%s", origin, name, SuggestRunKey(name)));
    if (key->in_list()) {
      return absl::InvalidArgumentError(absl::StrFormat("%s: keys of lists can be set in the run file only", origin));
    }
    settings.push_back({key, 0, {text.substr(equals + 1), true}, origin});
  }
  return absl::OkStatus();
}

// The strongest setting of `name`; null where there is none.
const Setting* Last(std::span<const Setting> settings, std::string_view name) {
  for (size_t i = settings.size(); i-- > 0;) {
    if (settings[i].key->name == name) return &settings[i];
  }
  return nullptr;
}

bool IsSet(std::span<const Setting> settings, std::string_view name) {
  const Setting* setting = Last(settings, name);
  const auto* text = setting == nullptr ? nullptr : std::get_if<std::string>(&setting->value.value);
  return setting != nullptr && !(text != nullptr && text->empty());
}

// Whether every network of a side comes from a file.
bool AllFromFiles(std::span<const Setting> settings, const std::string& side, size_t count) {
  if (count == 0) return IsSet(settings, absl::StrCat("model.", side));
  std::set<size_t> with_file;
  for (const Setting& setting : settings) {
    if (setting.key->name == absl::StrCat(side, "s[].file")) with_file.insert(setting.index);
  }
  return with_file.size() == count;
}

// Names and origins of a side's networks once all settings are in.
absl::Status FinishNetworks(const std::string& side, const std::string& name, const std::string& family,
                            std::string& file, std::vector<NetworkConfig>& networks, const NetworkTraining& training) {
  if (networks.empty()) {
    networks.push_back({.name = side, .file = file, .training = training});
  } else if (!file.empty()) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "%s: there are both model.%s and [[%ss]]; a network of the list takes its file with the key file", name, side,
        side));
  }
  file.clear();
  for (size_t i = 0; i < networks.size(); ++i) {
    NetworkConfig& network = networks[i];
    if (network.name.empty()) network.name = i == 0 ? side : absl::StrCat(side, i + 1);
    if (!network.file.empty() && !network.family.empty()) {
      return absl::InvalidArgumentError(
          absl::StrFormat("%s: [[%ss]] '%s' has both a file and a family; give one of them", name, side, network.name));
    }
    if (network.file.empty() && network.family.empty()) network.family = family;
  }
  return absl::OkStatus();
}

absl::Status CheckTogether(const RunConfig& config, const std::string& name) {
  const auto Error = [&name](std::string_view text) {
    return absl::InvalidArgumentError(absl::StrFormat("%s: %s", name, text));
  };
  if (config.batch % config.step.accumulate != 0) {
    return Error(absl::StrFormat("train.batch = %d is not a multiple of train.accumulate = %d", config.batch,
                                 config.step.accumulate));
  }
  if (config.steps == 0 && config.images == 0)
    return Error("train.steps and train.images are both 0; one of them must say when the run ends");
  std::set<std::string> names;
  for (const auto* networks : {&config.generators, &config.discriminators}) {
    for (const NetworkConfig& network : *networks) {
      const bool plain = std::all_of(network.name.begin(), network.name.end(),
                                     [](char c) { return absl::ascii_isalnum(c) || c == '_' || c == '-'; });
      if (!plain || network.name == "ema") {
        return Error(absl::StrFormat(
            "a network may not be named '%s'; names are letters, digits, '_' and '-', and not ema", network.name));
      }
      if (!names.insert(network.name).second)
        return Error(absl::StrFormat("two networks are named '%s'; give them a name each", network.name));
    }
  }
  return absl::OkStatus();
}

std::string Stem(const std::string& name) {
  const std::string stem = std::filesystem::path(name).stem().string();
  return stem.empty() || stem == "." || stem == ".." ? "run" : stem;
}

// Members of a list's table, or of a section, one a line.
void AppendKeys(const RunConfig& config, std::string_view section, size_t index, std::string& text) {
  for (const RunKeyEntry& key : RunKeyTable()) {
    const size_t dot = key.name.rfind('.');
    if (key.name.substr(0, dot) != section) continue;
    const std::string value = GetRunKey(key, index, config);
    if (value != "\"\"") absl::StrAppend(&text, key.name.substr(dot + 1), " = ", value, "\n");
  }
}

}  // namespace

absl::StatusOr<RunConfig> ParseRunConfig(std::string_view text, const RunConfigSources& sources) {
  if (text.size() > kMaxRunFileBytes) {
    return absl::ResourceExhaustedError(
        absl::StrFormat("%s: has %d bytes; a run file has at most %d", sources.name, text.size(), kMaxRunFileBytes));
  }
  for (size_t begin = 0, line = 1; begin < text.size(); ++line) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view content = text.substr(begin, end - begin);
    if (!content.starts_with('#') && std::count(content.begin(), content.end(), '.') > kMaxDotsOfLine) {
      return absl::InvalidArgumentError(
          absl::StrFormat("%s:%d: has more than %d dots in one line", sources.name, line, kMaxDotsOfLine));
    }
    begin = end + 1;
  }
  const toml::parse_result parsed = toml::parse(text, sources.name);
  if (!parsed) {
    const toml::parse_error& error = parsed.error();
    return absl::InvalidArgumentError(absl::StrFormat("%s:%d:%d: is not TOML: %s", sources.name,
                                                      error.source().begin.line, error.source().begin.column,
                                                      error.description()));
  }
  std::vector<Setting> settings;
  FileReader file(sources, settings);
  GANTRY_RETURN_IF_ERROR(file.ReadTable(parsed.table(), "", 0));
  GANTRY_RETURN_IF_ERROR(ReadEnvironment(sources.environment, settings));
  GANTRY_RETURN_IF_ERROR(ReadOverrides(sources.overrides, settings));

  RunConfig config;
  config.model.family = AllFromFiles(settings, "generator", file.generators()) &&
                                AllFromFiles(settings, "discriminator", file.discriminators())
                            ? ""
                            : kDefaultFamily;
  // The family first: the defaults of all other keys are its.
  if (const Setting* family = Last(settings, "model.family")) {
    GANTRY_RETURN_IF_ERROR(SetRunKey(*family->key, 0, family->value, family->origin, config));
  }
  GANTRY_RETURN_IF_ERROR(ApplyFamilyDefaults(config));
  for (const Setting& setting : settings) {
    if (!setting.key->in_list())
      GANTRY_RETURN_IF_ERROR(SetRunKey(*setting.key, 0, setting.value, setting.origin, config));
  }
  if (Last(settings, "train.steps") == nullptr && Last(settings, "train.images") == nullptr)
    config.images = kDefaultImages;
  config.generators.assign(file.generators(), {.training = config.generator});
  config.discriminators.assign(file.discriminators(), {.training = config.discriminator});
  for (const Setting& setting : settings) {
    if (setting.key->in_list())
      GANTRY_RETURN_IF_ERROR(SetRunKey(*setting.key, setting.index, setting.value, setting.origin, config));
  }
  GANTRY_RETURN_IF_ERROR(FinishNetworks("generator", sources.name, config.model.family, config.model.generator,
                                        config.generators, config.generator));
  GANTRY_RETURN_IF_ERROR(FinishNetworks("discriminator", sources.name, config.model.family, config.model.discriminator,
                                        config.discriminators, config.discriminator));
  if (!config.model.family.empty()) FillFamilySizes(config.model);
  if (config.output.directory.empty()) config.output.directory = absl::StrCat("runs/", Stem(sources.name));
  GANTRY_RETURN_IF_ERROR(CheckTogether(config, sources.name));
  GANTRY_RETURN_IF_ERROR(Annotate(SetMemory(config.memory, config.plan), sources.name));
  GANTRY_RETURN_IF_ERROR(Annotate(SetExchanges(config.exchanges, config.plan).status(), sources.name));
  return config;
}

absl::StatusOr<RunConfig> LoadRunConfig(const std::string& path, RunConfigSources sources) {
  GANTRY_ASSIGN_OR_RETURN(const std::vector<std::byte> bytes, ReadFile(path, kMaxRunFileBytes));
  sources.name = path;
  sources.folder = std::filesystem::path(path).parent_path().string();
  return ParseRunConfig(std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()), sources);
}

std::vector<std::string> GantryEnvironment() {
  std::vector<std::string> result;
  for (char** variable = environ; variable != nullptr && *variable != nullptr; ++variable) {
    if (std::string_view(*variable).starts_with("GANTRY_")) result.emplace_back(*variable);
  }
  return result;
}

std::string ToToml(const RunConfig& given) {
  RunConfig config = given;
  const auto MakeAbsolute = [](std::string& path) {
    std::error_code error;
    const auto absolute = std::filesystem::absolute(path, error);
    if (!path.empty() && !error) path = absolute.lexically_normal().string();
  };
  for (std::string* path :
       {&config.model.generator, &config.model.discriminator, &config.data.path, &config.output.directory})
    MakeAbsolute(*path);
  for (auto* networks : {&config.generators, &config.discriminators}) {
    for (NetworkConfig& network : *networks) MakeAbsolute(network.file);
  }
  std::string text;
  for (const std::string& section : RunSections()) {
    const bool generators = section.starts_with("generators");
    if (!generators && !section.starts_with("discriminators")) {
      if (section == "generator" || section == "discriminator") continue;  // only [generator.optimizer] has keys
      absl::StrAppend(&text, "[", section, "]\n");
      AppendKeys(config, section, 0, text);
      absl::StrAppend(&text, "\n");
    } else if (section.ends_with("[]")) {
      const std::string list = section.substr(0, section.size() - 2);
      for (size_t i = 0; i < (generators ? config.generators : config.discriminators).size(); ++i) {
        absl::StrAppend(&text, "[[", list, "]]\n");
        AppendKeys(config, section, i, text);
        absl::StrAppend(&text, "[", list, ".optimizer]\n");
        AppendKeys(config, section + ".optimizer", i, text);
        absl::StrAppend(&text, "\n");
      }
    }
  }
  text.pop_back();
  return text;
}

std::vector<RunKey> RunKeys() {
  RunConfig fallback;
  fallback.generators.resize(1);
  fallback.discriminators.resize(1);
  fallback.images = kDefaultImages;
  std::vector<RunKey> keys;
  for (const RunKeyEntry& key : RunKeyTable()) {
    keys.push_back({key.name, TypeName(key), AllowedText(key), GetRunKey(key, 0, fallback), key.help});
  }
  return keys;
}

std::string RunKeysMarkdown() {
  const auto Title = [](const std::string& section) {
    const std::string bare = absl::StrReplaceAll(section, {{"[]", ""}});
    return section.ends_with("[]") ? absl::StrFormat("[[%s]]", bare) : absl::StrFormat("[%s]", bare);
  };
  const auto Cell = [](std::string value) { return absl::StrReplaceAll(value, {{"|", "\\|"}}); };
  // Sections with the same table, such as those of optimizers, share one.
  std::vector<std::pair<std::string, std::string>> tables;  // titles, rows
  std::map<std::string, std::string> rows;
  std::vector<std::string> order;
  for (const RunKey& key : RunKeys()) {
    const size_t dot = key.name.rfind('.');
    const std::string section = key.name.substr(0, dot);
    if (!rows.contains(section)) order.push_back(section);
    absl::StrAppend(&rows[section], "| `", key.name.substr(dot + 1), "` | ", key.type, " | ", Cell(key.allowed), " | `",
                    key.fallback, "` | ", Cell(key.help), " |\n");
  }
  for (const std::string& section : order) {
    const auto same =
        std::find_if(tables.begin(), tables.end(), [&](const auto& table) { return table.second == rows[section]; });
    if (same == tables.end()) {
      tables.emplace_back(Title(section), rows[section]);
    } else {
      absl::StrAppend(&same->first, ", ", Title(section));
    }
  }
  std::string text;
  for (const auto& [titles, table] : tables) {
    absl::StrAppend(&text, text.empty() ? "" : "\n", "## ", titles,
                    "\n\n| key | type | allowed | default | meaning |\n| --- | --- | --- | --- | --- |\n", table);
  }
  absl::StrAppend(&text, "\n## Defaults of the families\n\n| family | keys |\n| --- | --- |\n");
  for (const std::string& family : FamilyNames()) {
    RunConfig config;
    const RunConfig bare = config;
    config.model.family = family;
    std::vector<std::string> keys;
    if (ApplyFamilyDefaults(config).ok()) keys = Differences(bare, config);
    std::erase_if(keys, [](const std::string& key) { return key.starts_with("model.family"); });
    for (std::string& key : keys) {
      const size_t colon = key.find(": "), arrow = key.find(" -> ");
      key = absl::StrFormat("`%s = %s`", key.substr(0, colon), key.substr(arrow + 4));
    }
    absl::StrAppend(&text, "| `", family, "` | ", keys.empty() ? "as above" : absl::StrJoin(keys, ", "), " |\n");
  }
  return text;
}

std::vector<std::string> Differences(const RunConfig& from, const RunConfig& to) {
  std::vector<std::string> differences;
  for (const RunKeyEntry& key : RunKeyTable()) {
    size_t count = 1;
    if (key.in_list()) {
      const bool generators = key.name.starts_with("generators");
      const size_t before = (generators ? from.generators : from.discriminators).size();
      count = (generators ? to.generators : to.discriminators).size();
      if (count != before) {
        if (key.name.ends_with("[].name")) {
          differences.push_back(
              absl::StrFormat("%s: %d networks -> %d", key.name.substr(0, key.name.find('[')), before, count));
        }
        continue;
      }
    }
    for (size_t i = 0; i < count; ++i) {
      const std::string before = GetRunKey(key, i, from), after = GetRunKey(key, i, to);
      if (before == after) continue;
      const std::string name = absl::StrReplaceAll(key.name, {{"[]", absl::StrFormat("[%d]", i)}});
      differences.push_back(absl::StrFormat("%s: %s -> %s", name, before, after));
    }
  }
  return differences;
}

}  // namespace gantry
