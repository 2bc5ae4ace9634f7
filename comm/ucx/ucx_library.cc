#include "comm/ucx/ucx_library.h"

#include <dlfcn.h>
#include <signal.h>

#include <array>
#include <cstdlib>

namespace gantry::ucx {
namespace {

// libucs takes SIGSEGV, SIGHUP and others for itself when it is loaded. They are the program's.
class KeptSignals {
 public:
  KeptSignals() {
    for (int signal = 1; signal < kCount; ++signal) sigaction(signal, nullptr, &before_[signal]);
  }
  ~KeptSignals() {
    for (int signal = 1; signal < kCount; ++signal) {
      struct sigaction now;
      if (sigaction(signal, nullptr, &now) == 0 && now.sa_handler != before_[signal].sa_handler)
        sigaction(signal, &before_[signal], nullptr);
    }
  }

 private:
  static constexpr int kCount = 32;
  std::array<struct sigaction, kCount> before_;
};

absl::StatusOr<const Library*> Load() {
  static Library library;
#if defined(__SANITIZE_THREAD__)
  // Its hooks of memory calls would also run in a thread that ends, when ThreadSanitizer knows it no more.
  setenv("UCX_MEM_MMAP_HOOK_MODE", "none", 0);
#endif
  const KeptSignals signals;
  // libucp brings libucs along. Neither can be unloaded: they have threads and handlers at exit.
  void* const handle = dlopen("libucp.so.0", RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (handle == nullptr) return absl::UnavailableError(absl::StrFormat("UCX is not installed: %s", dlerror()));
  std::string missing;
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(handle, name));
    if (function == nullptr) absl::StrAppend(&missing, missing.empty() ? "" : ", ", name);
  };
#define GANTRY_FIND(name) find(library.name, #name)
  GANTRY_FIND(ucp_get_version);
  GANTRY_FIND(ucp_config_read);
  GANTRY_FIND(ucp_config_release);
  GANTRY_FIND(ucp_init_version);
  GANTRY_FIND(ucp_cleanup);
  GANTRY_FIND(ucp_worker_create);
  GANTRY_FIND(ucp_worker_destroy);
  GANTRY_FIND(ucp_worker_query);
  GANTRY_FIND(ucp_worker_get_address);
  GANTRY_FIND(ucp_worker_release_address);
  GANTRY_FIND(ucp_worker_get_efd);
  GANTRY_FIND(ucp_worker_arm);
  GANTRY_FIND(ucp_worker_progress);
  GANTRY_FIND(ucp_worker_set_am_recv_handler);
  GANTRY_FIND(ucp_ep_create);
  GANTRY_FIND(ucp_ep_close_nbx);
  GANTRY_FIND(ucp_ep_print_info);
  GANTRY_FIND(ucp_ep_evaluate_perf);
  GANTRY_FIND(ucp_am_send_nbx);
  GANTRY_FIND(ucp_am_recv_data_nbx);
  GANTRY_FIND(ucp_request_check_status);
  GANTRY_FIND(ucp_request_free);
  GANTRY_FIND(ucs_status_string);
#undef GANTRY_FIND
  if (!missing.empty()) return absl::UnavailableError(absl::StrCat("this version of UCX lacks ", missing));
  return &library;
}

}  // namespace

const absl::StatusOr<const Library*>& LoadLibrary() {
  static const absl::StatusOr<const Library*>* const loaded = new absl::StatusOr<const Library*>(Load());
  return *loaded;
}

}  // namespace gantry::ucx
