// An endless stream of shuffled batches, read ahead of their use.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "memory/status.h"
#include "runtime/data/data_set.h"

namespace gantry {

struct BatchStreamOptions {
  uint64_t seed = 0;
  // Samples of a batch over all ranks together; a multiple of `world_size`. Rank r gets the r-th slice of each batch,
  // so that all ranks see the same order and any number of ranks resumes from the same position.
  int64_t batch_size = 64;
  int rank = 0, world_size = 1;
  bool shuffle = true;
  // What happens when fewer samples than a batch are left of an epoch: false: the batch is filled from the next epoch,
  // and each sample comes exactly once an epoch; true: the rest is skipped, and no batch spans two epochs.
  bool drop_tail = false;
  int read_ahead = 4;                         // batches held ready; their memory is taken once, in Create
  int threads = 1;                            // that read; more help where samples are decoded (PNG)
  absl::Duration timeout = absl::Minutes(5);  // of a wait for a batch
};

// Used by one thread at a time.
class BatchStream {
 public:
  // Starts reading at position 0. kInvalidArgument for options that do not fit each other or the data set,
  // kResourceExhausted where the memory for read_ahead batches or a thread is missing.
  static absl::StatusOr<std::unique_ptr<BatchStream>> Create(std::shared_ptr<const DataSet> data_set,
                                                             const BatchStreamOptions& options);
  // Waits for the sample being read.
  ~BatchStream();
  BatchStream(const BatchStream&) = delete;
  BatchStream& operator=(const BatchStream&) = delete;

  // [batch_size / world_size, sample shape...]: what Next writes.
  const std::vector<int64_t>& batch_shape() const { return batch_shape_; }
  int64_t batch_elements() const { return batch_elements_; }

  // Copies the next batch of this rank to `to`, batch_elements() floats, and advances. Allocates nothing. What could
  // not be read is reported when its batch's turn comes; the position then stays, and Next gives the same error until
  // Seek. kDeadlineExceeded after the time-out; the batch is still awaited by the next call.
  absl::Status Next(std::span<float> to);

  // The position: how many samples were drawn so far, over all ranks together. It, the seed and batch_size are all that
  // a checkpoint needs.
  uint64_t samples_drawn() const { return samples_drawn_; }
  // The epoch that the next batch begins in, from 0.
  uint64_t epoch() const { return samples_drawn_ / epoch_samples_; }
  // Goes on as if `samples_drawn` samples had been drawn. kInvalidArgument where drop_tail is set and it is not a
  // multiple of batch_size; kDeadlineExceeded when the sample being read does not come back in time: then call Seek
  // again.
  absl::Status Seek(uint64_t samples_drawn);

  // The data set's index of the sample that is drawn when `samples_drawn` were drawn before it. Thread-safe.
  int64_t IndexAt(uint64_t samples_drawn) const;

 private:
  struct Slot {
    std::span<float> values;
    absl::Status status;
    bool ready = false;
  };

  BatchStream(std::shared_ptr<const DataSet> data_set, const BatchStreamOptions& options);
  absl::Status Start();
  void ReadBatches();  // a reading thread's life
  absl::Status Fill(uint64_t position, std::span<float> values) const;
  // Waits under `lock` until `done()` or the time-out; false then.
  template <typename Done>
  bool Await(std::unique_lock<std::mutex>& lock, Done done);

  const std::shared_ptr<const DataSet> data_set_;
  const BatchStreamOptions options_;
  std::vector<int64_t> batch_shape_;
  int64_t batch_elements_ = 0;
  uint64_t epoch_samples_ = 0;  // that are drawn of each epoch
  uint64_t samples_drawn_ = 0;
  std::vector<float> ring_;
  std::atomic<bool> cancel_ = false;  // readers give their batch up

  // std::mutex, not absl::Mutex: ThreadSanitizer sees through it where Abseil comes without instrumentation.
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Slot> slots_ ABSL_GUARDED_BY(mutex_);  // batch i is in slot i modulo the size; a slot's values belong to
                                                     // its reader until it is ready, then to Next
  uint64_t base_ ABSL_GUARDED_BY(mutex_) = 0;     // the position of batch 0, since Seek
  uint64_t claimed_ ABSL_GUARDED_BY(mutex_) = 0;  // batches given to readers
  uint64_t taken_ ABSL_GUARDED_BY(mutex_) = 0;    // batches given to Next
  int reading_ ABSL_GUARDED_BY(mutex_) = 0;       // readers within Fill
  bool paused_ ABSL_GUARDED_BY(mutex_) = false;   // for Seek
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace gantry
