// UCX, loaded when it is first needed: loading takes 2 ms, which a process that does without it keeps, and a program
// built with it starts where it is not installed.
#pragma once

#include <ucp/api/ucp.h>

#include <string_view>

#include "memory/status.h"

namespace gantry::ucx {

// The functions of libucp and libucs that are used here, by their own names.
struct Library {
  decltype(&::ucp_get_version) ucp_get_version;
  decltype(&::ucp_config_read) ucp_config_read;
  decltype(&::ucp_config_release) ucp_config_release;
  decltype(&::ucp_init_version) ucp_init_version;
  decltype(&::ucp_cleanup) ucp_cleanup;
  decltype(&::ucp_worker_create) ucp_worker_create;
  decltype(&::ucp_worker_destroy) ucp_worker_destroy;
  decltype(&::ucp_worker_query) ucp_worker_query;
  decltype(&::ucp_worker_get_address) ucp_worker_get_address;
  decltype(&::ucp_worker_release_address) ucp_worker_release_address;
  decltype(&::ucp_worker_get_efd) ucp_worker_get_efd;
  decltype(&::ucp_worker_arm) ucp_worker_arm;
  decltype(&::ucp_worker_progress) ucp_worker_progress;
  decltype(&::ucp_worker_set_am_recv_handler) ucp_worker_set_am_recv_handler;
  decltype(&::ucp_ep_create) ucp_ep_create;
  decltype(&::ucp_ep_close_nbx) ucp_ep_close_nbx;
  decltype(&::ucp_ep_print_info) ucp_ep_print_info;
  decltype(&::ucp_ep_evaluate_perf) ucp_ep_evaluate_perf;
  decltype(&::ucp_am_send_nbx) ucp_am_send_nbx;
  decltype(&::ucp_am_recv_data_nbx) ucp_am_recv_data_nbx;
  decltype(&::ucp_request_check_status) ucp_request_check_status;
  decltype(&::ucp_request_free) ucp_request_free;
  decltype(&::ucs_status_string) ucs_status_string;
};

// kUnavailable, always the same, where it is not installed or lacks a function. Thread-safe.
const absl::StatusOr<const Library*>& LoadLibrary();
// Where that has gone well.
inline const Library& Ucx() { return **LoadLibrary(); }
// kUnavailable: what it was doing, and how UCX calls the error.
inline absl::Status UcxError(ucs_status_t status, std::string_view doing) {
  return absl::UnavailableError(absl::StrFormat("%s: UCX says \"%s\"", doing, Ucx().ucs_status_string(status)));
}

}  // namespace gantry::ucx
