#include "runtime/gan/machine_file.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <system_error>
#include <thread>

#include "absl/strings/str_join.h"
#include "memory/hash.h"
#include "ops/cpu/panel/panel_isa.h"
#include "runtime/data/file.h"

namespace gantry {
namespace {

std::string Variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

// The processor's model as the system tells it; empty where it does not.
std::string ProcessorName() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("model name") && line.find(':') != std::string::npos) return line.substr(line.find(':') + 1);
  }
  return "";
}

}  // namespace

std::string CalibrationPath() {
  std::string folder = Variable("XDG_CACHE_HOME");
  // A relative path is to be ignored, says the XDG base directory specification.
  if (!folder.starts_with('/')) {
    const std::string home = Variable("HOME");
    if (!home.starts_with('/')) return "";
    folder = home + "/.cache";
  }
  const std::string machine = absl::StrFormat("%s, %s, %d cores", ProcessorName(), cpu::Name(cpu::BestIsa()), std::thread::hardware_concurrency());
  return absl::StrFormat("%s/gantry/machine-1-%016x.toml", folder, HashText(machine));
}

namespace {

// "dgx-h100" or ".../dgx-h100" where there is no such file: the description of that name; else the path as it is.
absl::StatusOr<std::string> Described(const std::string& path) {
  std::error_code error;
  const std::string name = std::filesystem::path(path).filename().string();
  if (std::filesystem::exists(path, error) || name.empty() || name.find('.') != std::string::npos) return path;
  std::set<std::string> names;
  for (const std::string_view folder : {std::string_view(GANTRY_MACHINE_FOLDER), std::string_view(GANTRY_SOURCE_MACHINE_FOLDER)}) {
    const std::string candidate = absl::StrCat(ToAbsl(folder), "/", name, ".toml");
    if (std::filesystem::exists(candidate, error)) return candidate;
    for (std::filesystem::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
      if (entry->path().extension() == ".toml") names.insert(entry->path().stem().string());
    }
  }
  return absl::NotFoundError(absl::StrFormat("there is no machine file %s, and no description of that name; there are %s", path, absl::StrJoin(names, ", ")));
}

}  // namespace

absl::StatusOr<std::shared_ptr<const Machine>> FindMachine(const std::string& given) {
  std::string path = given.empty() ? Variable("GANTRY_MACHINE") : given;
  if (path == "none") return nullptr;
  const bool implied = path.empty();
  if (implied) {
    path = CalibrationPath();
    std::error_code error;
    if (path.empty() || !std::filesystem::exists(path, error)) return nullptr;
  }
  GANTRY_ASSIGN_OR_RETURN(path, Described(path));
  GANTRY_ASSIGN_OR_RETURN(const std::vector<std::byte> bytes, ReadFile(path, kMaxMachineFileBytes));
  absl::StatusOr<Machine> machine = ParseMachine({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, path);
  if (!machine.ok()) {
    return implied ? absl::Status(machine.status().code(), absl::StrCat(machine.status().message(), "; run gantry calibrate again, or delete the file"))
                   : machine.status();
  }
  return std::make_shared<const Machine>(*std::move(machine));
}

absl::Status WriteMachine(const std::string& path, const Machine& machine) {
  std::error_code error;
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  if (!folder.empty()) std::filesystem::create_directories(folder, error);
  if (error) return absl::PermissionDeniedError(absl::StrFormat("%s: cannot be made: %s", folder.string(), error.message()));
  const std::string text = ToToml(machine);
  GANTRY_RETURN_IF_ERROR(WriteFileAtomically(path, std::as_bytes(std::span(text.data(), text.size()))));
  if (chmod(path.c_str(), S_IRUSR | S_IWUSR) != 0) return absl::UnavailableError(absl::StrFormat("%s: its rights cannot be changed", path));
  return absl::OkStatus();
}

void SetMachine(std::shared_ptr<const Machine> machine, PlanOptions& options) {
  options.machine = std::move(machine);
  if (options.machine == nullptr) return;
  const auto Limit = [&](MemoryBudget& budget) {
    if (budget.bytes == 0 && budget.fraction == 0) budget.bytes = options.machine->memory_bytes;
  };
  if (options.rank_memory.empty()) Limit(options.device_memory);
  for (MemoryBudget& budget : options.rank_memory) Limit(budget);
}

}  // namespace gantry
