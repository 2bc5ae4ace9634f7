#include "runtime/plan/machine.h"

#include <algorithm>
#include <cmath>
#include <optional>

#define TOML_EXCEPTIONS 0
#define TOML_ENABLE_FORMATTERS 0
#define TOML_MAX_NESTED_VALUES 16
#include <toml++/toml.h>

#include "absl/strings/str_join.h"
#include "memory/nearest.h"
#include "runtime/plan/memory_options.h"

namespace gantry {
namespace {

constexpr size_t kMaxTables = 4096, kMaxSamples = 65536;
constexpr int kMaxRanks = 65536;
// toml++ nests a table for every part of a.dotted.key and frees them recursively.
constexpr int64_t kMaxDotsOfLine = 20000;
constexpr int64_t kMaxDotsOfKey = 16;

// Reads one table, key by key; Finish refuses what nobody asked for. The first error sticks.
class TableReader {
 public:
  TableReader(const toml::table& table, std::string section, std::string_view file, absl::Status& status)
      : table_(table), section_(std::move(section)), file_(file), status_(status) {}

  const toml::node* Find(std::string_view key) {
    known_.emplace_back(key);
    return table_.get(key);
  }
  void Fail(const toml::node& node, std::string_view what) {
    if (status_.ok()) status_ = absl::InvalidArgumentError(absl::StrFormat("%s:%d: %s", file_, node.source().begin.line, what));
  }
  std::string Path(std::string_view key) const { return section_.empty() ? std::string(key) : absl::StrCat(section_, ".", ToAbsl(key)); }

  void Text(std::string_view key, std::string& to) {
    const toml::node* node = Find(key);
    if (node == nullptr) return;
    const auto text = node->value_exact<std::string>();
    if (!text || text->find('\0') != std::string::npos || text->size() > 256) {
      return Fail(*node, absl::StrCat(Path(key), " must be a text of at most 256 letters"));
    }
    to = *text;
  }
  void OneOf(std::string_view key, std::initializer_list<const char*> allowed, std::string& to) {
    std::string text = to;
    Text(key, text);
    if (std::find(allowed.begin(), allowed.end(), text) == allowed.end()) {
      return Fail(*table_.get(key), absl::StrFormat("%s is \"%s\"; it must be one of %s", Path(key), text, absl::StrJoin(allowed, ", ")));
    }
    to = text;
  }
  // A number, or a text that `parse` reads.
  template <typename Parse>
  void Quantity(std::string_view key, double low, double high, Parse parse, double& to) {
    const toml::node* node = Find(key);
    if (node == nullptr) return;
    double value = 0;
    if (const auto text = node->value_exact<std::string>()) {
      const auto parsed = parse(*text);
      if (!parsed.ok()) return Fail(*node, absl::StrFormat("%s: %s", Path(key), parsed.status().message()));
      value = static_cast<double>(*parsed);
    } else if (node->is_number()) {
      value = node->value<double>().value_or(NAN);
    } else {
      return Fail(*node, absl::StrCat(Path(key), " must be a number, or a text with a unit"));
    }
    if (!(value >= low && value <= high)) return Fail(*node, absl::StrFormat("%s is %g; it must be %g to %g", Path(key), value, low, high));
    to = value;
  }
  void Bytes(std::string_view key, int64_t low, int64_t& to) {
    double value = static_cast<double>(to);
    const double before = value;
    Quantity(key, static_cast<double>(low), 1e18, ParseBytes, value);
    if (value != before) to = std::llround(value);
  }
  void Rate(std::string_view key, double& to) { Quantity(key, 1, 1e18, ParseRate, to); }
  void Seconds(std::string_view key, double& to) { Quantity(key, 0, 1e6, ParseSeconds, to); }
  void Number(std::string_view key, double low, double high, double& to) {
    const auto none = [](std::string_view) -> absl::StatusOr<double> { return absl::InvalidArgumentError("it must be a number"); };
    Quantity(key, low, high, none, to);
  }
  void Integer(std::string_view key, int low, int high, int& to) {
    const toml::node* node = Find(key);
    if (node == nullptr) return;
    const auto value = node->value_exact<int64_t>();
    if (!value || *value < low || *value > high) return Fail(*node, absl::StrFormat("%s must be a whole number from %d to %d", Path(key), low, high));
    to = static_cast<int>(*value);
  }
  void Boolean(std::string_view key, bool& to) {
    const toml::node* node = Find(key);
    if (node == nullptr) return;
    const auto value = node->value_exact<bool>();
    if (!value) return Fail(*node, absl::StrCat(Path(key), " must be true or false"));
    to = *value;
  }
  template <typename Read>
  void Table(std::string_view key, Read read) {
    const toml::node* node = Find(key);
    if (node == nullptr) return;
    if (!node->is_table()) return Fail(*node, absl::StrFormat("%s is a table: write [%s]", key, key));
    TableReader inner(*node->as_table(), std::string(key), file_, status_);
    read(inner);
    inner.Finish();
  }
  template <typename Read>
  void Tables(std::string_view key, Read read) {
    const toml::node* node = Find(key);
    if (node == nullptr) return;
    const toml::array* list = node->as_array();
    if (list == nullptr || list->size() > kMaxTables) return Fail(*node, absl::StrFormat("%s is a list of at most %d tables: write [[%s]]", key, kMaxTables, key));
    for (const toml::node& entry : *list) {
      if (!status_.ok()) return;
      if (!entry.is_table()) return Fail(entry, absl::StrFormat("%s is a list of tables: write [[%s]]", key, key));
      TableReader inner(*entry.as_table(), std::string(key), file_, status_);
      read(inner);
      inner.Finish();
    }
  }
  std::vector<double> Numbers(std::string_view key, double low, double high) {
    std::vector<double> numbers;
    const toml::node* node = Find(key);
    if (node == nullptr) return numbers;
    const toml::array* list = node->as_array();
    for (size_t i = 0; list != nullptr && i < list->size() && i < kMaxTables; ++i) {
      const double number = (*list)[i].is_number() ? (*list)[i].value<double>().value_or(NAN) : NAN;
      if (number >= low && number <= high) numbers.push_back(number);
    }
    if (list == nullptr || numbers.empty() || numbers.size() != list->size()) {
      Fail(*node, absl::StrFormat("%s must be a list of at most %d numbers from %g to %g", Path(key), kMaxTables, low, high));
    }
    return numbers;
  }
  // Rows of `width` numbers each.
  std::vector<std::vector<double>> Rows(std::string_view key, size_t width) {
    std::vector<std::vector<double>> rows;
    const toml::node* node = Find(key);
    if (node == nullptr) return rows;
    const toml::array* list = node->as_array();
    const std::string wanted = absl::StrFormat("%s must be a list of at most %d lists of %d numbers", Path(key), kMaxSamples, width);
    if (list == nullptr || list->size() > kMaxSamples) {
      Fail(*node, wanted);
      return rows;
    }
    for (const toml::node& entry : *list) {
      const toml::array* row = entry.as_array();
      std::vector<double> numbers;
      for (size_t i = 0; row != nullptr && i < row->size(); ++i) {
        if ((*row)[i].is_number()) numbers.push_back((*row)[i].value<double>().value_or(NAN));
      }
      const bool right = row != nullptr && row->size() == width && numbers.size() == width &&
                         std::all_of(numbers.begin(), numbers.end(), [](double x) { return x >= 0 && x <= 1e30; });
      if (!right) {
        Fail(entry, wanted);
        return rows;
      }
      rows.push_back(std::move(numbers));
    }
    return rows;
  }
  void Finish() {
    for (const auto& [key, node] : table_) {
      const std::string name(key.str());
      if (std::find(known_.begin(), known_.end(), name) != known_.end()) continue;
      const std::string_view near = Nearest(name, known_);
      return Fail(node, absl::StrFormat("there is no key '%s'%s", Path(name),
                                        near.empty() ? absl::StrCat("; the keys are ", absl::StrJoin(known_, ", "))
                                                     : absl::StrFormat("; did you mean '%s'?", near)));
    }
  }
  const toml::table& table() const { return table_; }

 private:
  const toml::table& table_;
  const std::string section_;
  const std::string_view file_;
  absl::Status& status_;
  std::vector<std::string> known_;
};

MeasuredKernel ReadKernel(TableReader& reader) {
  MeasuredKernel kernel;
  reader.Text("family", kernel.family);
  reader.Integer("threads", 1, 4096, kernel.threads);
  reader.Integer("ranks", 1, kMaxRanks, kernel.ranks);
  for (const std::vector<double>& row : reader.Rows("samples", 3)) {
    if (!(row[1] > 0) || !(row[2] > 0)) reader.Fail(*reader.table().get("samples"), "kernels.samples: bytes and seconds must be above 0");
    kernel.samples.push_back({row[0], row[1], row[2]});
  }
  if (kernel.family.empty() || kernel.samples.empty()) reader.Fail(reader.table(), "kernels needs a family and samples");
  return kernel;
}

MachineTier ReadTier(TableReader& reader) {
  MachineTier tier;
  reader.OneOf("kind", {"host", "file", "peer", "remote"}, tier.kind);
  tier.name = tier.kind;
  reader.Text("name", tier.name);
  reader.Bytes("memory", 1, tier.memory_bytes);
  reader.Bytes("granularity", 1, tier.granularity_bytes);
  reader.Rate("out", tier.out_bytes_per_second);
  reader.Rate("in", tier.in_bytes_per_second);
  reader.Seconds("latency", tier.latency_seconds);
  reader.Number("compute_share", 0, 1, tier.compute_share);
  return tier;
}

MachineLink ReadLink(TableReader& reader, int ranks_per_node) {
  MachineLink link;
  for (const std::vector<double>& row : reader.Rows("pairs", 2)) {
    const bool right = row[0] < ranks_per_node && row[1] < ranks_per_node && row[0] != row[1] && row[0] == std::floor(row[0]) &&
                       row[1] == std::floor(row[1]);
    if (!right) {
      reader.Fail(*reader.table().get("pairs"), absl::StrFormat("links.pairs: two different ranks of a node, each from 0 to %d", ranks_per_node - 1));
      break;
    }
    link.pairs.emplace_back(static_cast<int>(row[0]), static_cast<int>(row[1]));
  }
  if (!link.pairs.empty()) link.between = "pairs";
  reader.OneOf("between", {"node", "network", "pairs"}, link.between);
  if ((link.between == "pairs") == link.pairs.empty()) reader.Fail(reader.table(), "links: pairs are for between = \"pairs\", which needs some");
  reader.Rate("bandwidth", link.bytes_per_second);
  reader.Seconds("latency", link.latency_seconds);
  reader.Seconds("start", link.start_seconds);
  reader.Integer("parallel", 1, 1024, link.parallel);
  reader.Boolean("shared", link.shared);
  return link;
}

// "1.5e+10" for TOML: a float needs a dot or an exponent.
std::string Real(double value) {
  std::string text = absl::StrFormat("%.17g", value);
  if (text.find_first_of(".e") == std::string::npos) text += ".0";
  return text;
}

std::string Quoted(std::string_view text) {
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      quoted += '\\';
      quoted += c;
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      absl::StrAppend(&quoted, absl::StrFormat("\\u%04X", static_cast<unsigned>(c)));
    } else {
      quoted += c;
    }
  }
  return quoted + "\"";
}

}  // namespace

const MachineTier* Machine::FindTier(std::string_view kind) const {
  const auto found = std::find_if(tiers.begin(), tiers.end(), [&](const MachineTier& tier) { return tier.kind == kind; });
  return found == tiers.end() ? nullptr : &*found;
}

const MachineLink* Machine::FindLink(std::string_view between) const {
  const auto found = std::find_if(links.begin(), links.end(), [&](const MachineLink& link) { return link.between == between; });
  return found == links.end() ? nullptr : &*found;
}

absl::StatusOr<Machine> ParseMachine(std::string_view text, std::string_view name) {
  if (text.size() > kMaxMachineFileBytes) {
    return absl::ResourceExhaustedError(absl::StrFormat("%s: has %d bytes; a machine file has at most %d", name, text.size(), kMaxMachineFileBytes));
  }
  for (size_t begin = 0, line = 1; begin < text.size(); ++line) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view content = text.substr(begin, end - begin);
    // Lists of numbers have many dots, keys few.
    const int64_t most = content.find_first_of("[,") == std::string_view::npos ? kMaxDotsOfKey : kMaxDotsOfLine;
    const std::string_view key = content.substr(0, std::min(content.find('='), content.size()));
    if (!content.starts_with('#') && (std::count(content.begin(), content.end(), '.') > most || std::count(key.begin(), key.end(), '.') > kMaxDotsOfKey)) {
      return absl::InvalidArgumentError(absl::StrFormat("%s:%d: has too many dots", name, line));
    }
    begin = end + 1;
  }
  const toml::parse_result parsed = toml::parse(text, name);
  if (!parsed) {
    const toml::parse_error& error = parsed.error();
    return absl::InvalidArgumentError(
        absl::StrFormat("%s:%d:%d: is not TOML: %s", name, error.source().begin.line, error.source().begin.column, error.description()));
  }
  Machine machine;
  machine.source = std::string(name);
  absl::Status status;
  TableReader reader(parsed.table(), "", name, status);
  std::string format;
  reader.Text("format", format);
  if (status.ok() && format != kMachineFormat) {
    return absl::InvalidArgumentError(absl::StrFormat("%s: its format is \"%s\"; this version reads format = \"%s\"", name, format, kMachineFormat));
  }
  reader.Text("name", machine.name);
  reader.Table("device", [&](TableReader& device) {
    device.Bytes("memory", 1, machine.memory_bytes);
    device.Number("flops", 1, 1e24, machine.flops_per_second);
    device.Rate("bandwidth", machine.bytes_per_second);
    device.Seconds("op_latency", machine.op_seconds);
  });
  reader.Table("ranks", [&](TableReader& ranks) {
    ranks.Integer("count", 1, kMaxRanks, machine.rank_count);
    machine.ranks_per_node = machine.rank_count;
    ranks.Integer("per_node", 1, machine.rank_count, machine.ranks_per_node);
    machine.rank_speeds = ranks.Numbers("speed", 1e-3, 1e3);
  });
  reader.Tables("tiers", [&](TableReader& tier) { machine.tiers.push_back(ReadTier(tier)); });
  reader.Tables("links", [&](TableReader& link) { machine.links.push_back(ReadLink(link, machine.ranks_per_node)); });
  reader.Tables("kernels", [&](TableReader& kernel) { machine.kernels.push_back(ReadKernel(kernel)); });
  reader.Finish();
  GANTRY_RETURN_IF_ERROR(status);
  return machine;
}

std::string ToToml(const Machine& machine) {
  std::string text = absl::StrFormat("format = \"%s\"\nname = %s\n\n[device]\n", kMachineFormat, Quoted(machine.name));
  if (machine.memory_bytes > 0) absl::StrAppend(&text, "memory = ", machine.memory_bytes, "\n");
  if (machine.flops_per_second > 0) absl::StrAppend(&text, "flops = ", Real(machine.flops_per_second), "\n");
  if (machine.bytes_per_second > 0) absl::StrAppend(&text, "bandwidth = ", Real(machine.bytes_per_second), "\n");
  if (machine.op_seconds >= 0) absl::StrAppend(&text, "op_latency = ", Real(machine.op_seconds), "\n");
  if (machine.rank_count > 1) {
    absl::StrAppend(&text, "\n[ranks]\ncount = ", machine.rank_count, "\nper_node = ", machine.ranks_per_node, "\n");
    if (!machine.rank_speeds.empty()) {
      absl::StrAppend(&text, "speed = [", absl::StrJoin(machine.rank_speeds, ", ", [](std::string* out, double speed) { *out += Real(speed); }), "]\n");
    }
  }
  for (const MachineTier& tier : machine.tiers) {
    absl::StrAppend(&text, "\n[[tiers]]\nkind = ", Quoted(tier.kind), "\nname = ", Quoted(tier.name), "\n");
    if (tier.memory_bytes != INT64_MAX) absl::StrAppend(&text, "memory = ", tier.memory_bytes, "\n");
    absl::StrAppend(&text, "granularity = ", tier.granularity_bytes, "\nout = ", Real(tier.out_bytes_per_second), "\nin = ",
                    Real(tier.in_bytes_per_second), "\nlatency = ", Real(tier.latency_seconds), "\ncompute_share = ", Real(tier.compute_share), "\n");
  }
  for (const MachineLink& link : machine.links) {
    absl::StrAppend(&text, "\n[[links]]\nbetween = ", Quoted(link.between), "\n");
    if (!link.pairs.empty()) {
      absl::StrAppend(&text, "pairs = [", absl::StrJoin(link.pairs, ", ", [](std::string* out, const auto& pair) {
                        absl::StrAppend(out, "[", pair.first, ", ", pair.second, "]");
                      }), "]\n");
    }
    absl::StrAppend(&text, "bandwidth = ", Real(link.bytes_per_second), "\nlatency = ", Real(link.latency_seconds), "\nstart = ",
                    Real(link.start_seconds), "\nparallel = ", link.parallel,
                    "\nshared = ", link.shared ? "true" : "false", "\n");
  }
  for (const MeasuredKernel& kernel : machine.kernels) {
    absl::StrAppend(&text, "\n[[kernels]]\nfamily = ", Quoted(kernel.family), "\nthreads = ", kernel.threads, "\n");
    if (kernel.ranks != 1) absl::StrAppend(&text, "ranks = ", kernel.ranks, "\n");
    text += "samples = [\n";
    for (const KernelSample& sample : kernel.samples) {
      absl::StrAppend(&text, "  [", Real(sample.flops), ", ", Real(sample.bytes), ", ", Real(sample.seconds), "],\n");
    }
    text += "]\n";
  }
  return text;
}

}  // namespace gantry
