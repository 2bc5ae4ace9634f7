// What tests of training runs share: a small data set, a run file, training processes, and comparing what they leave.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace gantry {

// A folder with samples.npy, f32 [37, 1, 16, 16], that goes away with the object.
class TrainFolder {
 public:
  TrainFolder();
  ~TrainFolder();
  std::string operator/(std::string_view name) const { return (path_ / name).string(); }
  // Writes `name`.toml for a run into the folder `name`: the smallest networks of `family` and `more` behind it (whole
  // sections, or keys of [train]). Returns its path.
  std::string WriteRun(std::string_view name, std::string_view family, std::string_view more) const;

 private:
  std::filesystem::path path_;
};

// Starts tests/multiprocess/train_process.cc.
pid_t StartTraining(const std::string& run_file, int64_t steps, const std::string& resume);
// Waits for it; its exit status, or minus the signal that killed it.
int WaitFor(pid_t process);
inline int Train(const std::string& run_file, int64_t steps, const std::string& resume = "") {
  return WaitFor(StartTraining(run_file, steps, resume));
}

std::string ReadWholeFile(const std::string& path);
// The lines of a metrics.jsonl without the times, which no two runs share.
std::vector<std::string> UntimedLines(const std::string& metrics_path);
// An empty text where the newest checkpoints of both folders hold the same bits and counts, else the first difference.
std::string CheckpointDifference(const std::string& folder, const std::string& other);

}  // namespace gantry
