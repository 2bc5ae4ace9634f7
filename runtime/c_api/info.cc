// Version, build and backends. runtime/c_api/build_config.h is made by CMake.
#include <string>

#include "absl/strings/str_cat.h"
#include "comm/paths.h"
#include "memory/device.h"
#include "ops/cpu/panel/panel_isa.h"
#include "runtime/c_api/build_config.h"
#include "runtime/c_api/call.h"

namespace gantry::c_api {
namespace {

#define GANTRY_TEXT_INNER(x) #x
#define GANTRY_TEXT(x) GANTRY_TEXT_INNER(x)

std::string CpuLine() {
  return absl::StrCat("cpu: ", kOneDnnText, ", panel kernels for ", ToAbsl(cpu::Name(cpu::BestIsa())), ", ",
                      MakeCpuDevice({})->thread_count(), " threads");
}

// Text that is made once and lives for ever; `fallback` where there is no memory to make it.
template <typename Make>
const char* Forever(Make make, const char* fallback) noexcept {
  try {
    static const std::string* const text = new std::string(make());
    return text->c_str();
  } catch (...) {
    return fallback;
  }
}

}  // namespace
}  // namespace gantry::c_api

extern "C" {

const char* gantry_version(void) {
  return GANTRY_TEXT(GANTRY_VERSION_MAJOR) "." GANTRY_TEXT(GANTRY_VERSION_MINOR) "." GANTRY_TEXT(GANTRY_VERSION_PATCH);
}

int32_t gantry_abi_version(void) { return GANTRY_ABI_VERSION; }

const char* gantry_backends(void) {
  return gantry::c_api::Forever([] { return gantry::c_api::CpuLine() + "\ncuda: not built\nnetwork: tcp, " + gantry::DescribeUcx(); }, "cpu");
}

const char* gantry_build_info(void) {
  return gantry::c_api::Forever(
      [] {
        return std::string("gantry ") + gantry_version() + ", ABI " + std::to_string(gantry_abi_version()) + "\ncompiler: " +
               gantry::c_api::kCompilerText + "\nbuild: " + gantry::c_api::kBuildText + "\nlibraries: " + gantry::c_api::kLibrariesText;
      },
      "gantry");
}

}  // extern "C"
