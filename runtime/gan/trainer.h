// A run from its description to a trained GAN: data, session, schedules, log, sample sheets and checkpoints.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "comm/keeping.h"
#include "memory/device.h"
#include "runtime/checkpoint/checkpoint_folder.h"
#include "runtime/data/batch_stream.h"
#include "runtime/gan/gan_session.h"
#include "runtime/gan/metrics_log.h"
#include "runtime/gan/run_config.h"
#include "runtime/gan/run_networks.h"
#include "runtime/gan/session_parts.h"
#include "runtime/gan/straggler_watch.h"

namespace gantry {

// Payload of errors in writing a run's files: tells a full disk from a lack of memory, both kResourceExhausted, and a
// folder that cannot be made from data that is missing.
inline constexpr char kOutputPayload[] = "gantry/output";

struct NamedScalar {
  std::string name;
  double value = 0.0;
};

struct TrainerOptions {
  // Told what a person should know: a fallback, signs of collapse, a damaged checkpoint. One line, no newline at its
  // end. Called from within the trainer's functions, on the caller's thread. May be empty.
  std::function<void(std::string_view)> warn;
  // Likewise, what is good to know once: by which path each other rank is reached. May be empty.
  std::function<void(std::string_view)> inform;
  // Null: one rank. Outlives the trainer. Every rank makes the same calls; rank 0 writes the files.
  JobRanks* ranks = nullptr;
  // Where the job may be started again. Outlives the trainer.
  Keeping* keeping = nullptr;
};

// What one step did. Valid until the next call on the trainer.
struct StepReport {
  int64_t step = 0;         // this one, from 1
  int64_t total_steps = 0;  // of the whole run
  int64_t images = 0;       // real samples seen so far
  double epoch = 0.0;       // how often the whole data set was seen
  double discriminator_loss = 0.0, generator_loss = 0.0;
  std::span<const NamedScalar> scalars;  // every scalar of the step program, and the ratio "diversity"
  double seconds = 0.0;                  // of the step, the wait for data included, files that it wrote not
  double data_wait_seconds = 0.0;        // of it: waiting for the data
  double exposed_seconds = 0.0;          // of it: compute stood still for copies and exchanges
  std::span<const ExposedWait> exposed;  // the same, by kind
  double images_per_second = 0.0;        // over about the last 20 steps, files included
  bool logged = false;                   // a line went to metrics.jsonl
  std::string_view samples_path;         // of the sheet that the step wrote, or empty
  std::string_view checkpoint_path;      // likewise
};

// One thread at a time. The caller decides between steps whether to go on:
//   while (!trainer->finished()) { Step; ... }   then Finish
// A run's folder (output.directory) gets run.toml, metrics.jsonl, samples-<step>.png, checkpoint-<step>.safetensors
// and, from Finish, summary.txt. metrics.jsonl has one JSON object a line: step, images, epoch, every scalar,
// learning_rate.<network>, seconds, data_wait_seconds, exposed_seconds and exposed_seconds.<kind> where there are copies or
// exchanges (all per step since the last line), and images_per_second; numbers that are not finite are null.
class Trainer {
 public:
  // Opens the data, builds and plans the networks, reserves the arena on `device` (which must outlive the trainer).
  // Writes nothing yet. Where model.channels is 0 the data's are taken. Errors name the key, file, network or bytes.
  static absl::StatusOr<std::unique_ptr<Trainer>> Create(RunConfig config, Device& device, TrainerOptions options = {});

  // Goes on from a checkpoint, bit for bit: `checkpoint` is a path, or "latest" for the newest good one in
  // output.directory. Call before the first Step. A folder stands for the newest good checkpoint in it. Lines of
  // metrics.jsonl beyond its step are cut off, later checkpoints are set aside (renamed). Warns of damaged checkpoints
  // that were passed over, and of keys that have changed since, for such a run differs. kNotFound where there is none;
  // kInvalidArgument where it does not fit the run; kDataLoss where it is damaged. The trainer is then as it was. Of several ranks all do so
  // or none: each ends with the error of the first that has one, kUnavailable where some find a checkpoint and some do not.
  absl::Status Resume(const std::string& checkpoint);

  // In a job that was started again and had begun before: goes on from the newest state that is whole, in memory or in a checkpoint, or from
  // the beginning where there is none; the text says from where. Otherwise Resume, or nothing where `checkpoint` is empty; the text is then empty.
  absl::StatusOr<std::string> Restart(const std::string& checkpoint);
  // Steps that were done before this job: before its first start, where it was started again.
  int64_t first_step_of_job() const { return first_step_of_job_; }

  // train.steps, train.images or train.minutes (of this process) are done.
  bool finished() const;
  // Steps of the whole run; train.minutes does not count.
  int64_t total_steps() const;
  // One step, and what is due after it: a log line, a sample sheet, a checkpoint. The first step makes the folder.
  // kDataLoss: a loss is not finite; the message names step, loss, what first held a NaN or infinity, and the last good
  // checkpoint. Step, Save and Finish then give kFailedPrecondition, so that nothing replaces that checkpoint.
  // kFailedPrecondition: the folder has another run's checkpoints (resume, or choose another folder) or another process
  // writes to it. Other errors: data could not be read (nothing changed), a file not be written, or, after it, another
  // rank is lost (the step is done, as progress() says, and in metrics.jsonl before anything is asked of other ranks).
  absl::StatusOr<StepReport> Step();

  // Writes a checkpoint now, unless this step has one, and returns its path.
  absl::StatusOr<std::string> Save();
  // Writes a sheet of output.sample_count samples now and returns its path: noise is the same on every sheet of a run,
  // weights are the averages where train.ema > 0.
  absl::StatusOr<std::string> WriteSamples();
  // At the end, whether finished or stopped: the last checkpoint, sample sheet and log line, and summary.txt, whose
  // text it returns.
  absl::StatusOr<std::string> Finish();

  const RunConfig& config() const { return config_; }
  GanSession& session() { return *session_; }
  const GanProgress& progress() const { return session_->progress(); }
  const DataSet& data_set() const { return *data_set_; }
  // Known before the first step, and what it then takes: the planned arena, and what is lent behind it, in bytes.
  int64_t peak_bytes() const { return DeviceBytes(session_->plan()); }
  // The newest checkpoint that this trainer wrote or resumed from; empty before the first.
  const std::string& last_checkpoint() const { return last_checkpoint_; }

  // Generated samples look alike: the samples of a batch differ (mean over pixels of the standard deviation over the
  // batch) by less than kLowDiversity of how much real ones differ, in kLowDiversitySteps steps in a row. Warned of
  // once each time it begins.
  static constexpr double kLowDiversity = 0.1;
  static constexpr int64_t kLowDiversitySteps = 100;
  bool collapsed() const { return low_diversity_steps_ >= kLowDiversitySteps; }

 private:
  Trainer(RunConfig config, TrainerOptions options) : config_(std::move(config)), options_(std::move(options)) {}
  absl::Status Prepare(GanSessionOptions& options, RunNetworks& networks);  // all that comes before planning
  absl::Status Build(Device& device);
  absl::Status ResumeOwn(const std::string& given);  // without asking the other ranks
  absl::Status CheckUsable() const;
  // Ends the use of the states; `error`, and what to go on from.
  absl::Status StatesAreLost(const absl::Status& error);
  std::string LastCheckpoint() const;
  bool writes() const { return session_->rank() == 0; }
  absl::Status OpenFolder();  // of a new run, once; a call of all ranks
  absl::Status MakeFolder();
  absl::Status StartFiles(std::unique_ptr<CheckpointFolder> folder, int64_t last_step);
  absl::Status SetLearningRates();
  absl::Status ReadBatch();
  absl::Status ReadScalars();
  void ReadExposed();
  double ScalarOr0(std::string_view name) const;
  void KeepProgress();
  absl::Status KeepStates();
  absl::Status WatchRanks(double seconds);
  // What comes with states: the place in the data, counts, the run's files. `read` reads the states.
  absl::Status GoOn(int64_t samples_drawn, int64_t low_diversity_steps, const std::function<absl::Status()>& read);
  // True: the states are those that were kept in memory. False: there are none, or none as new as the checkpoint of step `filed`.
  absl::StatusOr<bool> GoOnFromMemory(int64_t filed);
  bool writes_parts() const;  // as all ranks do: no rank has all of every state
  absl::StatusOr<std::string> SaveParts(const SafetensorsMetadata& metadata);
  SafetensorsMetadata CheckpointMetadata() const;
  void WatchDiversity();
  void UpdateRate(double begin);
  absl::Status WriteLogLine();
  std::string SummaryText() const;
  void Warn(std::string_view text) const {
    if (options_.warn) options_.warn(text);
  }

  RunConfig config_;
  TrainerOptions options_;
  std::shared_ptr<const DataSet> data_set_;
  std::unique_ptr<BatchStream> stream_;
  std::unique_ptr<GanSession> session_;
  std::unique_ptr<CheckpointFolder> folder_;  // from the first step or Resume on
  std::unique_ptr<MetricsLog> metrics_;
  std::vector<float> batch_;  // all draws of a step
  int64_t draws_read_ = 0;    // of the coming step
  std::vector<NamedScalar> scalars_;
  std::vector<NamedScalar> rates_;  // "learning_rate.<network>"
  std::vector<ExposedWait> exposed_;                      // of the last step
  std::vector<double> exposed_sums_, logged_exposed_;     // since the session was made, and up to the last log line
  int64_t low_diversity_steps_ = 0;
  bool failed_ = false;                             // StatesAreLost
  bool opened_ = false;                             // rank 0 has the folder and its files
  int64_t samples_drawn_ = 0;                       // by the steps that are done
  int64_t first_step_ = 0;                          // steps that an earlier process did
  int64_t first_step_of_job_ = 0;                   // and those before the first start of this job
  bool resumed_ = false, from_memory_ = false;
  std::unique_ptr<MemoryCheckpoint> memory_;        // from the first copy on
  std::unique_ptr<StragglerWatch> stragglers_;      // with several ranks
  double watched_seconds_ = 0.0, watched_exchange_seconds_ = 0.0;
  int64_t watched_steps_ = 0;
  std::vector<double> rank_seconds_;                // two a rank
  std::vector<StragglerWatch::Times> rank_times_;
  double step_seconds_ = 0.0, wait_seconds_ = 0.0;  // since the last log line
  int64_t logged_step_ = 0;
  double run_seconds_ = 0.0;  // of all steps and their files
  double rate_ = 0.0, smoothed_seconds_ = 0.0, rate_end_ = 0.0;
  std::string last_checkpoint_, samples_path_;
  int64_t checkpoint_step_ = -1, samples_step_ = -1;
};

// Writes samples, f32 of `shape` [N, ...], beside, synced, renamed: images with 1 or 3 channels as a sheet,
// `path_without_ending`.png, others as an array, .npy. Returns the path.
absl::StatusOr<std::string> WriteSampleSheet(const std::string& path_without_ending, std::span<const float> values,
                                             std::span<const int64_t> shape);

// Draws `count` samples from a checkpoint that a Trainer wrote, as Trainer::WriteSamples does: f32 [count, sample
// shape]. `ema` where it has averages; a folder stands for the newest good checkpoint in it. Networks from ONNX files
// need those files where they were. kInvalidArgument, kDataLoss, kNotFound as Checkpoint.
struct Samples {
  std::vector<float> values;
  std::vector<int64_t> shape;
};
absl::StatusOr<Samples> SampleCheckpoint(const std::string& path, int64_t count, uint64_t seed, bool ema,
                                         Device& device);

}  // namespace gantry
