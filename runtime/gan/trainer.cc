#include "runtime/gan/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <limits>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/str_join.h"
#include "memory/fallback.h"
#include "runtime/data/image_grid.h"
#include "runtime/data/npy.h"
#include "runtime/gan/machine_file.h"
#include "runtime/gan/run_networks.h"
#include "runtime/gan/run_planning.h"
#include "runtime/gan/session_checkpoint.h"

namespace gantry {
namespace {

constexpr std::string_view kDiversity = "diversity";
// Weight of one step in the smoothed rate: about the last 20 steps count.
constexpr double kRateWeight = 0.1;

double Now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Keys whose change leaves what is computed as it was.
bool MayChange(std::string_view difference) {
  constexpr std::string_view kPrefixes[] = {"output.",   "train.steps",     "train.images", "train.minutes",
                                            "data.path", "data.read_ahead", "data.threads", "data.max_memory", "memory.", "parallel."};
  return std::any_of(std::begin(kPrefixes), std::end(kPrefixes),
                     [&](std::string_view prefix) { return difference.starts_with(prefix); });
}

// Marks errors of writing the run's files.
absl::Status Output(absl::Status status) {
  if (!status.ok()) status.SetPayload(kOutputPayload, absl::Cord());
  return status;
}
template <typename T>
absl::StatusOr<T> Output(absl::StatusOr<T> result) {
  if (result.ok()) return result;
  return Output(result.status());
}

std::string InFolder(const CheckpointFolder& folder, std::string_view name) {
  return absl::StrCat(folder.path(), "/", ToAbsl(name));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Trainer>> Trainer::Create(RunConfig config, Device& device, TrainerOptions options) {
  std::unique_ptr<Trainer> trainer(new Trainer(std::move(config), std::move(options)));
  GANTRY_RETURN_IF_ERROR(trainer->Build(device));
  return trainer;
}

absl::Status Trainer::Prepare(GanSessionOptions& options, RunNetworks& networks) {
  GANTRY_ASSIGN_OR_RETURN(data_set_, FindSampleShape(config_));
  GANTRY_ASSIGN_OR_RETURN(networks, BuildRunNetworks(config_));
  GANTRY_ASSIGN_OR_RETURN(std::shared_ptr<const Machine> machine, FindMachine(config_.memory.machine));
  GANTRY_ASSIGN_OR_RETURN(options, RunPlanning::SessionOptionsOf(config_, std::move(machine), options_.ranks));
  if (options_.ranks == nullptr) RunPlanning::SetVariants(config_, options.plan);  // of a whole step, not of one rank's
  return absl::OkStatus();
}

absl::Status Trainer::Build(Device& device) {
  GanSessionOptions options;
  RunNetworks networks;
  if (const absl::Status prepared = Prepare(options, networks); !prepared.ok()) return options_.ranks == nullptr ? prepared : options_.ranks->Agree(prepared);
  GANTRY_ASSIGN_OR_RETURN(session_, GanSession::Create(options, std::move(networks.generators),
                                                       std::move(networks.discriminators), device));
  // The run's folder records what was chosen, not that it was left open.
  if (options_.ranks != nullptr && (options.parallel.automatic || !session_->options().parallel.shares.empty())) {
    config_.parallel = session_->options().parallel.Text();
  }

  const std::vector<int64_t>& batch = session_->sample_shape().dims();
  const std::vector<int64_t> sample(batch.begin() + 1, batch.end());
  if (data_set_ == nullptr || data_set_->sample_shape() != sample) {
    const bool images = sample.size() == 3;
    GANTRY_ASSIGN_OR_RETURN(
        data_set_, OpenRunData(config_, images ? sample[0] : 0, images ? sample[1] : 0, images ? sample[2] : 0));
  }
  if (data_set_->sample_shape() != sample) {
    return absl::InvalidArgumentError(absl::StrFormat("the networks take samples of shape %s, the data are %s",
                                                      ShapeText(sample), data_set_->Describe()));
  }
  GANTRY_ASSIGN_OR_RETURN(stream_,
                          BatchStream::Create(data_set_, {.seed = config_.seed,
                                                          .batch_size = config_.batch,
                                                          .shuffle = config_.data.shuffle,
                                                          .drop_tail = config_.data.drop_tail,
                                                          .read_ahead = static_cast<int>(config_.data.read_ahead),
                                                          .threads = static_cast<int>(config_.data.threads)}));
  batch_.resize(session_->real_elements() * session_->draws_per_step());
  for (const std::string& name : session_->ScalarNames()) scalars_.push_back({name});
  const auto has = [this](std::string_view name) { return session_->Scalar(name).ok(); };
  if (has("diversity_real") && has("diversity_fake")) scalars_.push_back({std::string(kDiversity)});
  for (const auto* side : {&config_.generators, &config_.discriminators}) {
    for (const NetworkConfig& network : *side) rates_.push_back({"learning_rate." + network.name});
  }
  if (config_.output.checkpoint_memory > 0 && options_.keeping == nullptr) {
    Warn("output.checkpoint_memory has no effect: nothing starts this job again when a rank is lost (gantry run --restarts)");
  }
  if (const auto& fallbacks = session_->plan().fallbacks;
      config_.plan.kernels == KernelChoice::kFast && !fallbacks.empty()) {
    Warn(absl::StrFormat("no fast kernel for %s: reference kernels run there, which are slow",
                         absl::StrJoin(fallbacks, ", ")));
  }
  for (const std::string& line : session_->DescribeRanks()) {
    if (options_.inform) options_.inform(line);
  }
  for (const std::string& fallback : NotedFallbacks()) Warn(fallback);
  return absl::OkStatus();
}

bool Trainer::finished() const {
  const GanProgress& done = session_->progress();
  return (config_.steps > 0 && done.steps >= config_.steps) ||
         (config_.images > 0 && done.images_seen >= config_.images) ||
         (config_.minutes > 0 && run_seconds_ >= 60 * config_.minutes);
}

int64_t Trainer::total_steps() const {
  const GanProgress& done = session_->progress();
  const int64_t left = config_.images == 0
                           ? INT64_MAX - done.steps
                           : std::max<int64_t>(0, config_.images - done.images_seen + config_.images_per_step() - 1) /
                                 config_.images_per_step();
  return std::min(done.steps + left, config_.steps == 0 ? INT64_MAX : std::max(config_.steps, done.steps));
}

absl::Status Trainer::OpenFolder() {
  if (opened_) return absl::OkStatus();
  absl::Status made = MakeFolder();
  // The others wait for the one that writes: a folder that will not do ends all of them, before the first step.
  if (options_.ranks != nullptr) made = Output(options_.ranks->Agree(made));
  GANTRY_RETURN_IF_ERROR(made);
  opened_ = true;
  KeepProgress();  // from here on, a start anew may go on from what is in the folder
  return absl::OkStatus();
}

absl::Status Trainer::MakeFolder() {
  if (!writes()) return absl::OkStatus();
  GANTRY_ASSIGN_OR_RETURN(auto folder, Output(CheckpointFolder::Open(config_.output.directory)));
  GANTRY_ASSIGN_OR_RETURN(const std::vector<StoredCheckpoint> stored, ListCheckpoints(folder->path()));
  if (!stored.empty()) {
    return absl::FailedPreconditionError(absl::StrFormat(
        "%s: has checkpoints of an earlier run (%s); resume that run, or choose another output.directory",
        folder->path(), stored.back().path));
  }
  return StartFiles(std::move(folder), 0);
}

absl::Status Trainer::StartFiles(std::unique_ptr<CheckpointFolder> folder, int64_t last_step) {
  if (!writes()) return absl::OkStatus();
  GANTRY_ASSIGN_OR_RETURN(metrics_, Output(MetricsLog::Open(InFolder(*folder, "metrics.jsonl"), last_step)));
  const std::string text = absl::StrCat("# The run as it was started, every key written out.\n", ToToml(config_));
  GANTRY_RETURN_IF_ERROR(
      Output(WriteFileAtomically(InFolder(*folder, "run.toml"), std::as_bytes(std::span(text.data(), text.size())))));
  folder_ = std::move(folder);
  return absl::OkStatus();
}

absl::Status Trainer::Resume(const std::string& given) {
  absl::Status mine = ResumeOwn(given);
  if (options_.ranks == nullptr) return mine;
  // A folder that some of the ranks see is not one without a checkpoint.
  GANTRY_ASSIGN_OR_RETURN(const double any, session_->AgreeOn(mine.ok() ? 1.0 : 0.0));
  if (any > 0 && absl::IsNotFound(mine)) mine = absl::UnavailableError(absl::StrFormat("%s; other ranks of the job found theirs", Message(mine)));
  return options_.ranks->Agree(mine);
}

absl::Status Trainer::ResumeOwn(const std::string& given) {
  if (folder_ != nullptr || session_->progress().steps > 0)
    return absl::FailedPreconditionError("a run can be resumed before its first step only");
  std::string path = given;
  std::error_code ignored;
  const bool is_folder = std::filesystem::is_directory(given, ignored);
  if (given == "latest" || is_folder) {
    GANTRY_ASSIGN_OR_RETURN(const LatestCheckpoint latest,
                            FindLatestCheckpoint(is_folder ? given : config_.output.directory));
    for (const auto& [checkpoint, why] : latest.damaged)
      Warn(absl::StrFormat("%s is damaged and passed over: %s", checkpoint.path, Message(why)));
    path = latest.checkpoint.path;
  }
  GANTRY_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::Open(path));
  GANTRY_RETURN_IF_ERROR(checkpoint.Verify());
  GANTRY_ASSIGN_OR_RETURN(const std::string toml, checkpoint.Text("config"));
  GANTRY_ASSIGN_OR_RETURN(const RunConfig before, ParseRunConfig(toml, {.name = path + " (config)"}));
  GANTRY_ASSIGN_OR_RETURN(const int64_t samples_drawn, checkpoint.Integer("samples_drawn"));
  GANTRY_ASSIGN_OR_RETURN(const int64_t data_samples, checkpoint.Integer("data_samples"));
  GANTRY_ASSIGN_OR_RETURN(const int64_t low_diversity_steps, checkpoint.Integer("low_diversity_steps"));
  if (samples_drawn < 0 || data_samples < 1 || low_diversity_steps < 0)
    return absl::InvalidArgumentError(absl::StrCat(path, ": has negative counts"));
  GANTRY_RETURN_IF_ERROR(GoOn(samples_drawn, low_diversity_steps, [&]() -> absl::Status {
    GANTRY_RETURN_IF_ERROR(ReadSession(checkpoint, *session_));
    std::vector<std::string> changed = Differences(before, config_);
    std::erase_if(changed, MayChange);
    if (data_samples != data_set_->size())
      changed.push_back(absl::StrFormat("samples of the data: %d -> %d", data_samples, data_set_->size()));
    if (!changed.empty())
      Warn(absl::StrFormat("the run is not what it was at step %d: %s", progress().steps, absl::StrJoin(changed, ", ")));
    return absl::OkStatus();
  }));
  checkpoint_step_ = progress().steps;
  last_checkpoint_ = path;
  return absl::OkStatus();
}

absl::Status Trainer::GoOn(int64_t samples_drawn, int64_t low_diversity_steps, const std::function<absl::Status()>& read) {
  // A folder that another process writes to is refused before anything changes; a new one is made once all fits.
  std::unique_ptr<CheckpointFolder> folder;
  const auto OpenIt = [&]() -> absl::Status {
    GANTRY_ASSIGN_OR_RETURN(folder, Output(CheckpointFolder::Open(config_.output.directory)));
    return absl::OkStatus();
  };
  std::error_code ignored;
  if (writes() && std::filesystem::is_directory(config_.output.directory, ignored)) GANTRY_RETURN_IF_ERROR(OpenIt());
  GANTRY_RETURN_IF_ERROR(stream_->Seek(static_cast<uint64_t>(samples_drawn)));
  if (const absl::Status status = read(); !status.ok()) {
    GANTRY_RETURN_IF_ERROR(stream_->Seek(0));
    return status;
  }
  low_diversity_steps_ = low_diversity_steps;
  samples_drawn_ = samples_drawn;
  first_step_ = logged_step_ = progress().steps;
  resumed_ = true;
  opened_ = true;
  if (!writes()) return absl::OkStatus();
  if (folder == nullptr) GANTRY_RETURN_IF_ERROR(OpenIt());
  GANTRY_RETURN_IF_ERROR(StartFiles(std::move(folder), progress().steps));
  GANTRY_ASSIGN_OR_RETURN(const std::vector<std::string> aside, Output(folder_->SetAsideAfter(progress().steps)));
  if (!aside.empty())
    Warn(absl::StrFormat("checkpoints of later steps were set aside: %s", absl::StrJoin(aside, ", ")));
  return absl::OkStatus();
}

absl::StatusOr<bool> Trainer::GoOnFromMemory(int64_t filed) {
  GANTRY_ASSIGN_OR_RETURN(const int64_t step, MemoryCheckpoint::Newest(*session_, *options_.keeping));
  if (step < 0 || step < filed) return false;
  const absl::StatusOr<KeptCounts> counts = MemoryCheckpoint::Restore(*session_, *options_.keeping, step);
  // All ranks, or none: a checkpoint in files then writes over what is there now.
  GANTRY_ASSIGN_OR_RETURN(const double failed, session_->AgreeOn(counts.ok() ? 0.0 : 1.0));
  if (!counts.ok()) Warn(absl::StrFormat("%s; a checkpoint in files is used instead", Message(counts.status())));
  if (failed > 0) return false;
  GANTRY_RETURN_IF_ERROR(GoOn(counts->samples_drawn, counts->low_diversity_steps, [&]() -> absl::Status {
    session_->SetProgress({.steps = counts->steps, .images_seen = counts->images_seen});
    return absl::OkStatus();
  }));
  from_memory_ = true;
  checkpoint_step_ = filed;
  if (filed >= 0) last_checkpoint_ = absl::StrCat(config_.output.directory, "/", CheckpointFileName(filed));
  return true;
}

absl::StatusOr<std::string> Trainer::Restart(const std::string& checkpoint) {
  Keeping* const keeping = options_.keeping;
  if (keeping == nullptr || !keeping->resumes()) {
    if (!checkpoint.empty()) GANTRY_RETURN_IF_ERROR(Resume(checkpoint));
    first_step_of_job_ = progress().steps;
    KeepProgress();
    return std::string();
  }
  const KeptProgress before = keeping->progress();
  std::string how = absl::StrFormat("restart %d: ", keeping->restart());
  // Of the rank that writes: others do not wait for it.
  GANTRY_ASSIGN_OR_RETURN(const std::vector<double> filed, session_->GatherNumbers(static_cast<double>(before.checkpoint_step)));
  GANTRY_ASSIGN_OR_RETURN(const bool from_memory, GoOnFromMemory(static_cast<int64_t>(filed[0])));
  if (from_memory) {
    absl::StrAppend(&how, "goes on from what the ranks kept in memory");
  } else if (const absl::Status resumed = Resume("latest"); resumed.ok()) {
    absl::StrAppend(&how, "goes on from ", last_checkpoint_);
  } else if (absl::IsNotFound(resumed)) {
    // It ended before its first checkpoint. What is in the folder is this job's all the same.
    absl::StrAppend(&how, "begins anew: ", ToAbsl(Message(resumed)));
    if (!checkpoint.empty()) GANTRY_RETURN_IF_ERROR(Resume(checkpoint));
  } else {
    return resumed;
  }
  first_step_of_job_ = before.first_step;
  // What the rank that came furthest did is done again by all.
  GANTRY_ASSIGN_OR_RETURN(const double furthest, session_->AgreeOn(static_cast<double>(before.step)));
  absl::StrAppendFormat(&how, "; step %d is the next, %d steps are done again", progress().steps + 1,
                        std::max<int64_t>(0, static_cast<int64_t>(furthest) - progress().steps));
  keeping->ForgetAfter(progress().steps);
  KeepProgress();
  return how;
}

// For the launcher, and for the ranks of the next start.
void Trainer::KeepProgress() {
  if (options_.keeping == nullptr) return;
  options_.keeping->SetProgress({.begun = opened_,
                                 .first_step = first_step_of_job_,
                                 .step = progress().steps,
                                 .checkpoint_step = checkpoint_step_,
                                 .resumed_step = resumed_ ? first_step_ : -1,
                                 .from_memory = from_memory_});
}

// Every so many steps all ranks learn how long each of them computed. The first step is left out: it warms up.
absl::Status Trainer::WatchRanks(double seconds) {
  constexpr int64_t kSteps = 10;
  const int ranks = session_->rank_count();
  // Roles and stages have work of different sizes.
  if (ranks == 1 || session_->options().parallel.by_homes()) return absl::OkStatus();
  if (stragglers_ == nullptr) {
    stragglers_ = std::make_unique<StragglerWatch>(ranks);
    rank_seconds_.resize(2 * static_cast<size_t>(ranks));
    rank_times_.resize(static_cast<size_t>(ranks));
    watched_exchange_seconds_ = session_->exchange_seconds();
    return absl::OkStatus();
  }
  watched_seconds_ += seconds;
  if (++watched_steps_ < kSteps) return absl::OkStatus();
  const double exchanges = session_->exchange_seconds() - watched_exchange_seconds_;
  const double mine[] = {std::max(0.0, watched_seconds_ - exchanges), exchanges};
  GANTRY_RETURN_IF_ERROR(session_->GatherNumbers(mine, rank_seconds_));
  for (size_t rank = 0; rank < rank_times_.size(); ++rank) rank_times_[rank] = {rank_seconds_[2 * rank], rank_seconds_[2 * rank + 1]};
  const std::optional<std::string> line = stragglers_->Add(watched_steps_, rank_times_);
  if (line.has_value() && writes()) Warn(*line);
  watched_exchange_seconds_ += exchanges;
  watched_seconds_ = 0.0;
  watched_steps_ = 0;
  return absl::OkStatus();
}

absl::Status Trainer::KeepStates() {
  const int64_t every = config_.output.checkpoint_memory;
  if (options_.keeping == nullptr || every == 0 || progress().steps % every != 0) return absl::OkStatus();
  if (memory_ == nullptr) {
    GANTRY_ASSIGN_OR_RETURN(memory_, MemoryCheckpoint::Create(*session_, *options_.keeping));
  }
  return memory_->Keep({.steps = progress().steps,
                        .images_seen = progress().images_seen,
                        .samples_drawn = samples_drawn_,
                        .low_diversity_steps = low_diversity_steps_});
}

absl::Status Trainer::SetLearningRates() {
  const int64_t most = std::numeric_limits<int64_t>::max();
  int64_t run_images = config_.images == 0 ? most : config_.images;
  int64_t of_steps = most;
  if (config_.steps > 0 && !__builtin_mul_overflow(config_.steps, config_.images_per_step(), &of_steps))
    run_images = std::min(run_images, of_steps);
  const int64_t images = progress().images_seen + config_.images_per_step();
  size_t at = 0;
  for (const auto* side : {&config_.generators, &config_.discriminators}) {
    for (const NetworkConfig& network : *side) {
      const double rate =
          network.training.optimizer.learning_rate * network.training.schedule.Factor(images, run_images);
      GANTRY_RETURN_IF_ERROR(session_->SetLearningRate(network.name, rate));
      rates_[at++].value = rate;
    }
  }
  return absl::OkStatus();
}

absl::Status Trainer::ReadBatch() {
  const auto draw_elements = static_cast<size_t>(stream_->batch_elements());
  for (; draws_read_ < config_.step.n_critic; ++draws_read_) {
    GANTRY_RETURN_IF_ERROR(stream_->Next(std::span(batch_).subspan(draws_read_ * draw_elements, draw_elements)));
  }
  return absl::OkStatus();
}

absl::Status Trainer::ReadScalars() {
  const bool due = config_.output.log_every > 0 && progress().steps % config_.output.log_every == 0;
  const bool last = finished();
  double real = 0, fake = 0;
  for (NamedScalar& scalar : scalars_) {
    if (scalar.name == kDiversity) {
      scalar.value = real > 0 ? fake / real : 0.0;
    } else {
      // What a tail gives is asked for where it is written only: asking ends the tail.
      if (session_->IsOfTail(scalar.name) && !(due || last)) continue;
      GANTRY_ASSIGN_OR_RETURN(scalar.value, session_->Scalar(scalar.name));
    }
    if (scalar.name == "diversity_real") real = scalar.value;
    if (scalar.name == "diversity_fake") fake = scalar.value;
  }
  return absl::OkStatus();
}

// Of the step that is done, from sums since the session was made.
void Trainer::ReadExposed() {
  const std::span<const ExposedWait> sums = session_->executor().exposed();
  if (exposed_.size() != sums.size()) {
    exposed_.assign(sums.begin(), sums.end());
    exposed_sums_.assign(sums.size(), 0.0);
    logged_exposed_.assign(sums.size(), 0.0);
  }
  for (size_t i = 0; i < sums.size(); ++i) {
    exposed_[i].seconds = sums[i].seconds - exposed_sums_[i];
    exposed_sums_[i] = sums[i].seconds;
  }
}

double Trainer::ScalarOr0(std::string_view name) const {
  for (const NamedScalar& scalar : scalars_) {
    if (scalar.name == name) return scalar.value;
  }
  return 0.0;
}

void Trainer::WatchDiversity() {
  if (scalars_.empty() || scalars_.back().name != kDiversity) return;
  low_diversity_steps_ = scalars_.back().value < kLowDiversity ? low_diversity_steps_ + 1 : 0;
  if (low_diversity_steps_ == kLowDiversitySteps) {
    Warn(
        absl::StrFormat("step %d: the generated samples look alike: for %d steps in a row they have differed less than "
                        "%g of how much real "
                        "samples differ (now %.3g); this is how mode collapse begins",
                        progress().steps, kLowDiversitySteps, kLowDiversity, scalars_.back().value));
  }
}

absl::Status Trainer::CheckUsable() const {
  if (!failed_) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("a step broke off (a loss that was not finite, or a tier that failed), so the states are not to be trusted; resume from ",
                   last_checkpoint_.empty() ? "an earlier checkpoint" : last_checkpoint_));
}

absl::Status Trainer::StatesAreLost(const absl::Status& error) {
  failed_ = true;
  return absl::Status(error.code(), absl::StrCat(error.message(), "; ", LastCheckpoint()));
}

std::string Trainer::LastCheckpoint() const {
  return last_checkpoint_.empty() ? "no checkpoint was written before it" : absl::StrCat("the last good checkpoint is ", last_checkpoint_);
}

absl::StatusOr<StepReport> Trainer::Step() {
  GANTRY_RETURN_IF_ERROR(CheckUsable());
  const double begin = Now();
  GANTRY_RETURN_IF_ERROR(OpenFolder());
  const double read_begin = Now();
  GANTRY_RETURN_IF_ERROR(ReadBatch());
  const double wait = Now() - read_begin;
  GANTRY_RETURN_IF_ERROR(SetLearningRates());
  draws_read_ = 0;
  if (const absl::Status stepped = session_->Step({.real = batch_}); !stepped.ok()) {
    return StatesAreLost(stepped);  // it broke off in the middle: some are of this step, some of the one before
  }
  samples_drawn_ = static_cast<int64_t>(stream_->samples_drawn());
  ReadExposed();
  if (const absl::Status read = ReadScalars(); !read.ok()) return StatesAreLost(read);
  WatchDiversity();
  const double seconds = Now() - begin;
  step_seconds_ += seconds;
  wait_seconds_ += wait;
  StepReport report{.step = progress().steps,
                    .images = progress().images_seen,
                    .epoch = static_cast<double>(samples_drawn_) / static_cast<double>(data_set_->size()),
                    .discriminator_loss = ScalarOr0("discriminator_loss"),
                    .generator_loss = ScalarOr0("generator_loss"),
                    .scalars = scalars_,
                    .seconds = seconds,
                    .data_wait_seconds = wait,
                    .exposed = exposed_};
  for (const ExposedWait& wait_of_kind : exposed_) report.exposed_seconds += wait_of_kind.seconds;
  const auto Due = [&](int64_t every) { return every > 0 && report.step % every == 0; };
  UpdateRate(begin);
  if (Due(config_.output.log_every)) {
    GANTRY_RETURN_IF_ERROR(WriteLogLine());
    report.logged = true;
  }
  if (Due(config_.output.sample_every)) {
    GANTRY_RETURN_IF_ERROR(WriteSamples().status());
    report.samples_path = samples_path_;
  }
  if (Due(config_.output.checkpoint_every)) {
    GANTRY_RETURN_IF_ERROR(Save().status());
    report.checkpoint_path = last_checkpoint_;
  }
  // Behind the step's line: a rank that is lost here leaves a step that is done, and that Save may keep.
  GANTRY_RETURN_IF_ERROR(WatchRanks(seconds));
  // Last: a restart goes on behind what is kept, and nobody writes again what belongs to it.
  GANTRY_RETURN_IF_ERROR(KeepStates());
  KeepProgress();
  run_seconds_ += Now() - begin;
  // The clock ends a run on all ranks after the same step.
  if (config_.minutes > 0) {
    GANTRY_ASSIGN_OR_RETURN(run_seconds_, session_->AgreeOn(run_seconds_));
  }
  report.total_steps = total_steps();
  report.images_per_second = rate_;
  return report;
}

// The time from the end of one step to the end of the next: files and what the caller does between steps count.
void Trainer::UpdateRate(double begin) {
  const int64_t done = progress().steps - first_step_;
  const double now = Now();
  const double seconds = now - (rate_end_ > 0 ? rate_end_ : begin);
  rate_end_ = now;
  // The first step of a process also warms up caches; the second one starts the average anew.
  smoothed_seconds_ = done <= 2 ? seconds : (1 - kRateWeight) * smoothed_seconds_ + kRateWeight * seconds;
  rate_ = smoothed_seconds_ > 0 ? static_cast<double>(config_.images_per_step()) / smoothed_seconds_ : 0.0;
}

absl::Status Trainer::WriteLogLine() {
  if (!writes()) return absl::OkStatus();
  const int64_t steps = std::max<int64_t>(1, progress().steps - logged_step_);
  MetricsLine line;
  line.Add("step", progress().steps);
  line.Add("images", progress().images_seen);
  line.Add("epoch", static_cast<double>(samples_drawn_) / static_cast<double>(data_set_->size()));
  for (const NamedScalar& scalar : scalars_) line.Add(scalar.name, scalar.value);
  for (const NamedScalar& rate : rates_) line.Add(rate.name, rate.value);
  line.Add("collapsed", static_cast<int64_t>(collapsed()));
  line.Add("seconds", step_seconds_ / static_cast<double>(steps));
  line.Add("data_wait_seconds", wait_seconds_ / static_cast<double>(steps));
  line.Add("images_per_second", rate_);
  double exposed = 0.0;
  for (size_t i = 0; i < exposed_.size(); ++i) {
    const double since = exposed_sums_[i] - std::exchange(logged_exposed_[i], exposed_sums_[i]);
    line.Add(absl::StrCat("exposed_seconds.", exposed_[i].kind), since / static_cast<double>(steps));
    exposed += since / static_cast<double>(steps);
  }
  if (!exposed_.empty()) line.Add("exposed_seconds", exposed);
  // Only where it is so: the numbers of this run are not those of another budget.
  if (const int lossy = session_->plan().residency.bf16_stashes; lossy > 0) line.Add("bf16_stashes", int64_t{lossy});
  GANTRY_RETURN_IF_ERROR(Output(metrics_->Append(line.Text())));
  logged_step_ = progress().steps;
  step_seconds_ = wait_seconds_ = 0;
  return absl::OkStatus();
}

SafetensorsMetadata Trainer::CheckpointMetadata() const {
  SafetensorsMetadata metadata = SessionMetadata(*session_);
  metadata["samples_drawn"] = absl::StrCat(samples_drawn_);
  metadata["data"] = data_set_->Describe();
  metadata["data_samples"] = absl::StrCat(data_set_->size());
  metadata["low_diversity_steps"] = absl::StrCat(low_diversity_steps_);
  metadata["config"] = ToToml(config_);
  for (const NamedScalar& rate : rates_) metadata[rate.name] = absl::StrFormat("%.17g", rate.value);
  return metadata;
}

bool Trainer::writes_parts() const {
  const auto states = session_->states();
  return std::any_of(states.begin(), states.end(), [](const GanSession::SessionState& state) { return state.in_parts; });
}

// All ranks write at the same time, each its parts.
absl::StatusOr<std::string> Trainer::SaveParts(const SafetensorsMetadata& metadata) {
  // The lines up to a checkpoint must not be younger on the disk than it is.
  const absl::Status synced = writes() ? Output(metrics_->Sync()) : absl::OkStatus();
  GANTRY_ASSIGN_OR_RETURN(const double failed, session_->AgreeOn(synced.ok() ? 0.0 : 1.0));
  GANTRY_RETURN_IF_ERROR(synced);
  if (failed > 0) return absl::UnavailableError("rank 0 could not write its files, and says why");
  const std::string path = absl::StrCat(config_.output.directory, "/", CheckpointFileName(progress().steps));
  const absl::Status written = WriteSessionParts(*session_, path, metadata);
  if (!written.ok()) {
    const absl::Status explained(written.code(), absl::StrCat(written.message(), "; ", LastCheckpoint()));
    return absl::IsUnavailable(written) ? explained : Output(explained);
  }
  if (writes()) GANTRY_RETURN_IF_ERROR(Output(folder_->Prune(progress().steps, config_.output.keep_checkpoints)));
  return path;
}

absl::StatusOr<std::string> Trainer::Save() {
  GANTRY_RETURN_IF_ERROR(CheckUsable());
  GANTRY_RETURN_IF_ERROR(OpenFolder());
  if (checkpoint_step_ == progress().steps && !last_checkpoint_.empty()) return last_checkpoint_;
  if (writes_parts()) {
    GANTRY_ASSIGN_OR_RETURN(last_checkpoint_, SaveParts(CheckpointMetadata()));
  } else if (!writes()) {
    GANTRY_RETURN_IF_ERROR(session_->EndTail());  // with rank 0, which reads the states
    last_checkpoint_ = "the file of rank 0";
  } else {
    GANTRY_RETURN_IF_ERROR(Output(metrics_->Sync()));
    const absl::StatusOr<SessionMemory> memory = SessionTensors(*session_);
    if (!memory.ok()) return StatesAreLost(Annotate(memory.status(), absl::StrFormat("saving step %d", progress().steps)));
    GANTRY_ASSIGN_OR_RETURN(last_checkpoint_, Output(folder_->Save(progress().steps, memory->tensors, CheckpointMetadata(),
                                                                   config_.output.keep_checkpoints)));
  }
  checkpoint_step_ = progress().steps;
  KeepProgress();
  return last_checkpoint_;
}

absl::StatusOr<std::string> Trainer::WriteSamples() {
  GANTRY_RETURN_IF_ERROR(OpenFolder());
  GANTRY_ASSIGN_OR_RETURN(const std::vector<float> values,
                          session_->Sample(config_.output.sample_count, config_.seed, config_.step.ema > 0));
  if (!writes()) {
    samples_step_ = progress().steps;
    return samples_path_ = "the file of rank 0";
  }
  std::vector<int64_t> shape = session_->sample_shape().dims();
  shape[0] = config_.output.sample_count;
  const std::string path = InFolder(*folder_, absl::StrFormat("samples-%012d", progress().steps));
  GANTRY_ASSIGN_OR_RETURN(samples_path_, Output(WriteSampleSheet(path, values, shape)));
  samples_step_ = progress().steps;
  return samples_path_;
}

absl::StatusOr<std::string> Trainer::Finish() {
  GANTRY_RETURN_IF_ERROR(Save().status());
  if (samples_step_ != progress().steps) GANTRY_RETURN_IF_ERROR(WriteSamples().status());
  if (progress().steps > first_step_ && logged_step_ != progress().steps) GANTRY_RETURN_IF_ERROR(WriteLogLine());
  if (!writes()) return std::string();
  GANTRY_RETURN_IF_ERROR(Output(metrics_->Sync()));
  const std::string text = SummaryText();
  GANTRY_RETURN_IF_ERROR(
      Output(WriteFileAtomically(InFolder(*folder_, "summary.txt"), std::as_bytes(std::span(text.data(), text.size())))));
  return text;
}

std::string Trainer::SummaryText() const {
  const int64_t steps = progress().steps - first_step_;
  const bool complete = progress().steps >= total_steps();
  std::string text =
      absl::StrFormat("%s %d of %d steps, %d images (%.2f epochs).\n", complete ? "Trained" : "Stopped after",
                      progress().steps, total_steps(), progress().images_seen,
                      static_cast<double>(samples_drawn_) / static_cast<double>(data_set_->size()));
  if (steps > 0) {
    absl::StrAppendFormat(&text, "This time: %d steps in %.1f s, %.1f images/s.\n", steps, run_seconds_,
                          static_cast<double>(steps * config_.images_per_step()) / std::max(run_seconds_, 1e-9));
    absl::StrAppendFormat(&text, "Losses: discriminator %.4g, generator %.4g.\n", ScalarOr0("discriminator_loss"),
                          ScalarOr0("generator_loss"));
  }
  if (collapsed()) {
    absl::StrAppendFormat(&text,
                          "Warning: the generated samples look alike (diversity %.3g of the real samples'): the "
                          "generator may have collapsed.\n",
                          ScalarOr0(kDiversity));
  }
  absl::StrAppendFormat(&text, "Data:       %s\n", data_set_->Describe());
  absl::StrAppendFormat(&text, "Memory:     %.1f MiB, as planned\n", static_cast<double>(peak_bytes()) / (1 << 20));
  if (const int lossy = session_->plan().residency.bf16_stashes; lossy > 0) {
    absl::StrAppendFormat(&text, "Lossy:      %d copies a step rounded to bf16, as memory.stash asks\n", lossy);
  }
  absl::StrAppendFormat(&text, "Samples:    %s\n", samples_path_);
  absl::StrAppendFormat(&text, "Metrics:    %s\n", metrics_->path());
  absl::StrAppendFormat(&text, "Checkpoint: %s\n", last_checkpoint_);
  absl::StrAppendFormat(&text, "Run file:   %s\n", InFolder(*folder_, "run.toml"));
  return text;
}

absl::StatusOr<std::string> WriteSampleSheet(const std::string& path_without_ending, std::span<const float> values,
                                             std::span<const int64_t> shape) {
  if (shape.size() == 4 && (shape[1] == 1 || shape[1] == 3)) {
    const std::string path = path_without_ending + ".png";
    const auto columns = static_cast<int64_t>(std::ceil(std::sqrt(static_cast<double>(shape[0]))));
    GANTRY_RETURN_IF_ERROR(WriteImageGrid(path, values, shape, columns));
    return path;
  }
  const std::string path = path_without_ending + ".npy";
  GANTRY_ASSIGN_OR_RETURN(const HostArray array,
                          HostArray::FromValues(std::vector<int64_t>(shape.begin(), shape.end()), values));
  GANTRY_RETURN_IF_ERROR(WriteNpy(path, array));
  return path;
}

absl::StatusOr<Samples> SampleCheckpoint(const std::string& given, int64_t count, uint64_t seed, bool ema,
                                         Device& device) {
  std::string path = given;
  std::error_code ignored;
  if (std::filesystem::is_directory(given, ignored)) {
    GANTRY_ASSIGN_OR_RETURN(const LatestCheckpoint latest, FindLatestCheckpoint(given));
    path = latest.checkpoint.path;
  }
  GANTRY_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::Open(path));
  GANTRY_ASSIGN_OR_RETURN(const std::string toml, checkpoint.Text("config"));
  GANTRY_ASSIGN_OR_RETURN(RunConfig config, ParseRunConfig(toml, {.name = path + " (config)"}));
  GANTRY_ASSIGN_OR_RETURN(const RunNetworks networks, BuildRunNetworks(config));
  config.plan.thread_count = config.threads > 0 ? static_cast<int>(config.threads) : device.thread_count();
  GANTRY_ASSIGN_OR_RETURN(const auto sampler, Sampler::Create(networks.generators[0], ema && config.step.ema > 0,
                                                              config.step.dtype, config.plan, device));
  std::vector<CheckpointTarget> targets;
  for (const Sampler::StateMemory& state : sampler->States()) {
    const auto name = std::find_if(state.names.begin(), state.names.end(),
                                   [&](const std::string& candidate) { return checkpoint.Find(candidate) != nullptr; });
    targets.push_back({name == state.names.end() ? state.names[0] : *name,
                       state.type.dtype == DataType::kF64 ? HostType::kF64 : HostType::kF32, state.type.shape.dims(),
                       state.bytes});
  }
  GANTRY_RETURN_IF_ERROR(checkpoint.ReadSome(targets));
  Samples samples{.shape = sampler->batch_shape().dims()};
  samples.shape[0] = count;
  GANTRY_ASSIGN_OR_RETURN(samples.values, sampler->Draw(count, seed));
  return samples;
}

}  // namespace gantry
