#include "memory/fallback.h"

#include <cstdlib>
#include <mutex>
#include <string_view>

namespace gantry {
namespace {

struct Noted {
  std::mutex mutex;
  std::vector<std::string> texts;
};

Noted& OfThisProcess() {
  static Noted* const noted = new Noted;  // also for what ends after main
  return *noted;
}

bool IsStrict() {
  const char* text = std::getenv("GANTRY_STRICT");
  return text != nullptr && std::string_view(text) != "" && std::string_view(text) != "0";
}

}  // namespace

std::string Fallback::Text() const { return absl::StrFormat("%s: wanted %s, got %s: %s", what, wanted, got, why); }

absl::Status NoteFallback(const Fallback& fallback) {
  {
    Noted& noted = OfThisProcess();
    const std::lock_guard lock(noted.mutex);
    noted.texts.push_back(fallback.Text());
  }
  if (!IsStrict()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrFormat("%s; GANTRY_STRICT is set, which makes this an error: %s", fallback.Text(), fallback.remedy));
}

std::vector<std::string> NotedFallbacks() {
  Noted& noted = OfThisProcess();
  const std::lock_guard lock(noted.mutex);
  return noted.texts;
}

}  // namespace gantry
