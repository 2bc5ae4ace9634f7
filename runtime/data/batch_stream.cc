#include "runtime/data/batch_stream.h"

#include <algorithm>
#include <new>
#include <stdexcept>
#include <system_error>
#include <utility>

#include "runtime/data/host_array.h"
#include "runtime/data/permutation.h"

namespace gantry {
namespace {

constexpr int kMaxReadAhead = 1024;
constexpr int kMaxThreads = 64;

absl::Status CheckOptions(const DataSet& data_set, const BatchStreamOptions& options) {
  const auto error = [](const std::string& what) {
    return absl::InvalidArgumentError(absl::StrCat("batch stream: ", what));
  };
  if (options.world_size < 1 || options.rank < 0 || options.rank >= options.world_size) {
    return error(absl::StrFormat("rank %d of %d cannot be", options.rank, options.world_size));
  }
  if (options.batch_size < 1 || options.batch_size % options.world_size != 0) {
    return error(absl::StrFormat("a batch of %d samples cannot be split evenly over %d ranks", options.batch_size,
                                 options.world_size));
  }
  if (options.read_ahead < 1 || options.read_ahead > kMaxReadAhead || options.threads < 1 ||
      options.threads > kMaxThreads) {
    return error(absl::StrFormat("read_ahead is %d, 1 to %d can be; threads is %d, 1 to %d can be", options.read_ahead,
                                 kMaxReadAhead, options.threads, kMaxThreads));
  }
  if (data_set.size() < 1 || data_set.size() > int64_t{1} << 62) {
    return error(absl::StrFormat("the data set has %d samples", data_set.size()));
  }
  if (options.drop_tail && options.batch_size > data_set.size()) {
    return error(absl::StrFormat("drop_tail would skip every sample: a batch has %d, the data set %d",
                                 options.batch_size, data_set.size()));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<BatchStream>> BatchStream::Create(std::shared_ptr<const DataSet> data_set,
                                                                 const BatchStreamOptions& options) {
  GANTRY_RETURN_IF_ERROR(CheckOptions(*data_set, options));
  std::unique_ptr<BatchStream> stream(new BatchStream(std::move(data_set), options));
  GANTRY_RETURN_IF_ERROR(stream->Start());
  return stream;
}

BatchStream::BatchStream(std::shared_ptr<const DataSet> data_set, const BatchStreamOptions& options)
    : data_set_(std::move(data_set)), options_(options) {
  const auto size = static_cast<uint64_t>(data_set_->size()), batch = static_cast<uint64_t>(options_.batch_size);
  epoch_samples_ = options_.drop_tail ? size - size % batch : size;
}

absl::Status BatchStream::Start() {
  batch_shape_ = data_set_->sample_shape();
  batch_shape_.insert(batch_shape_.begin(), options_.batch_size / options_.world_size);
  std::vector<int64_t> ring_shape = batch_shape_;
  ring_shape.insert(ring_shape.begin(), options_.read_ahead);
  GANTRY_ASSIGN_OR_RETURN(const int64_t ring_elements, CheckedElementCount(HostType::kF32, ring_shape));
  batch_elements_ = ring_elements / options_.read_ahead;
  try {
    ring_.resize(static_cast<size_t>(ring_elements));
    const std::lock_guard lock(mutex_);
    slots_.resize(static_cast<size_t>(options_.read_ahead));
    for (size_t i = 0; i < slots_.size(); ++i) {
      slots_[i].values = std::span(ring_).subspan(i * batch_elements_, batch_elements_);
    }
    threads_.reserve(static_cast<size_t>(options_.threads));
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError(absl::StrFormat("batch stream: no memory for %d batches of f32%s",
                                                        options_.read_ahead, ShapeText(batch_shape_)));
  }
  try {
    for (int i = 0; i < options_.threads; ++i) threads_.emplace_back([this] { ReadBatches(); });
  } catch (const std::system_error& error) {
    return absl::ResourceExhaustedError(absl::StrFormat("batch stream: cannot start thread %d of %d: %s",
                                                        threads_.size() + 1, options_.threads, error.what()));
  }
  return absl::OkStatus();
}

BatchStream::~BatchStream() {
  cancel_ = true;
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void BatchStream::ReadBatches() {
  while (true) {
    uint64_t position = 0;
    Slot* slot = nullptr;
    std::span<float> values;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return stopping_ || (!paused_ && claimed_ - taken_ < slots_.size()); });
      if (stopping_) return;
      slot = &slots_[claimed_ % slots_.size()];
      values = slot->values;
      position = base_ + claimed_ * static_cast<uint64_t>(options_.batch_size);
      ++claimed_;
      ++reading_;
    }
    absl::Status status = Fill(position, values);
    {
      const std::lock_guard lock(mutex_);
      slot->status = std::move(status);
      slot->ready = true;
      --reading_;
    }
    changed_.notify_all();
  }
}

absl::Status BatchStream::Fill(uint64_t position, std::span<float> values) const {
  const auto sample_elements = static_cast<size_t>(data_set_->sample_elements());
  const uint64_t count = static_cast<uint64_t>(batch_shape_[0]),
                 first = position + static_cast<uint64_t>(options_.rank) * count;
  for (uint64_t i = 0; i < count; ++i) {
    if (cancel_) return absl::CancelledError("batch stream: stopped");
    GANTRY_RETURN_IF_ERROR(data_set_->Read(IndexAt(first + i), values.subspan(i * sample_elements, sample_elements)));
  }
  return absl::OkStatus();
}

int64_t BatchStream::IndexAt(uint64_t samples_drawn) const {
  const uint64_t epoch = samples_drawn / epoch_samples_, within = samples_drawn % epoch_samples_;
  if (!options_.shuffle) return static_cast<int64_t>(within);
  const Permutation permutation(static_cast<uint64_t>(data_set_->size()), options_.seed, epoch);
  return static_cast<int64_t>(permutation(within));
}

template <typename Done>
bool BatchStream::Await(std::unique_lock<std::mutex>& lock, Done done) {
  // Bounded, because now + an infinite duration would overflow.
  const absl::Duration timeout = std::min(options_.timeout, absl::Hours(24 * 365));
  return changed_.wait_for(lock, absl::ToChronoNanoseconds(timeout), done);
}

absl::Status BatchStream::Next(std::span<float> to) {
  if (to.size() != static_cast<size_t>(batch_elements_)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("batch stream: room for %d values was given, a batch f32%s has %d", to.size(),
                        ShapeText(batch_shape_), batch_elements_));
  }
  const Slot* slot = nullptr;
  {
    std::unique_lock lock(mutex_);
    if (paused_) return absl::FailedPreconditionError("batch stream: Seek timed out and must be called again first");
    slot = &slots_[taken_ % slots_.size()];
    if (!Await(lock, [slot] { return slot->ready; })) {
      return absl::DeadlineExceededError(
          absl::StrFormat("batch stream: the batch at position %d has not been read after %s; does %s hang?",
                          samples_drawn_, absl::FormatDuration(options_.timeout), data_set_->Describe()));
    }
    GANTRY_RETURN_IF_ERROR(slot->status);
  }
  std::ranges::copy(slot->values, to.begin());
  samples_drawn_ += static_cast<uint64_t>(options_.batch_size);
  {
    const std::lock_guard lock(mutex_);
    slots_[taken_ % slots_.size()].ready = false;
    ++taken_;
  }
  changed_.notify_all();
  return absl::OkStatus();
}

absl::Status BatchStream::Seek(uint64_t samples_drawn) {
  if (samples_drawn > uint64_t{1} << 62) {
    return absl::InvalidArgumentError(absl::StrFormat("batch stream: the position %d is beyond 2^62", samples_drawn));
  }
  if (options_.drop_tail && samples_drawn % static_cast<uint64_t>(options_.batch_size) != 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "batch stream: with drop_tail, position %d must be a multiple of the batch size %d; was it drawn "
        "with another one?",
        samples_drawn, options_.batch_size));
  }
  std::unique_lock lock(mutex_);
  paused_ = true;
  cancel_ = true;
  if (!Await(lock, [this] { return reading_ == 0; })) {
    return absl::DeadlineExceededError(
        absl::StrFormat("batch stream: a sample is still being read after %s; does %s hang?",
                        absl::FormatDuration(options_.timeout), data_set_->Describe()));
  }
  for (Slot& slot : slots_) slot.ready = false;
  base_ = samples_drawn_ = samples_drawn;
  claimed_ = taken_ = 0;
  cancel_ = false;
  paused_ = false;
  lock.unlock();
  changed_.notify_all();
  return absl::OkStatus();
}

}  // namespace gantry
