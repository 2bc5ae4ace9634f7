#include "comm/transport.h"

namespace gantry {
namespace {

// Whoever drops an operation in flight waits for it: its memory may go next. It ends by its own deadline at the latest.
void Finish(Pending::Work*& work) {
  if (work == nullptr) return;
  while (!work->done()) (void)work->Wait(Pending::kDefaultTimeout);
  std::exchange(work, nullptr)->Release();
}

}  // namespace

Pending& Pending::operator=(Pending&& from) noexcept {
  if (this == &from) return *this;
  Finish(work_);
  work_ = std::exchange(from.work_, nullptr);
  status_ = std::move(from.status_);
  return *this;
}

Pending::~Pending() { Finish(work_); }

absl::Status Pending::Wait(absl::Duration timeout) {
  if (work_ == nullptr) return status_;
  absl::Status status = work_->Wait(timeout == absl::InfiniteDuration() ? kDefaultTimeout : timeout);
  if (!work_->done()) return status;
  status_ = std::move(status);
  std::exchange(work_, nullptr)->Release();
  return status_;
}

}  // namespace gantry
