#include "tests/support/train_run.h"

#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <fstream>

#include "absl/strings/str_format.h"
#include "gtest/gtest.h"
#include "runtime/checkpoint/checkpoint_folder.h"
#include "runtime/data/npy.h"

namespace gantry {

TrainFolder::TrainFolder() {
  std::string name = testing::TempDir() + "/gantry_train_XXXXXX";
  path_ = mkdtemp(name.data());
  std::vector<float> values(37 * 16 * 16);
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = static_cast<float>(std::sin(0.37 * static_cast<double>(i * i % 1009)));
  EXPECT_TRUE(WriteNpy((path_ / "samples.npy").string(), *HostArray::FromValues<float>({37, 1, 16, 16}, values)).ok());
}

TrainFolder::~TrainFolder() { std::filesystem::remove_all(path_); }

std::string TrainFolder::WriteRun(std::string_view name, std::string_view family, std::string_view more) const {
  const std::string path = (path_ / name).string() + ".toml";
  std::ofstream(path) << "[model]\nfamily = \"" << family
                      << "\"\nimage_size = 16\nwidth = 8\nlatent = 8\n[data]\npath = \"samples.npy\"\n"
                      << "[output]\ndirectory = \"" << name
                      << "\"\nlog_every = 1\nsample_count = 4\nsample_every = 0\ncheckpoint_every = 0\n"
                      << "[train]\nbatch = 8\nseed = 11\n"
                      << more;
  return path;
}

pid_t StartTraining(const std::string& run_file, int64_t steps, const std::string& resume) {
  std::string program = GANTRY_TRAIN_PROCESS, file = run_file, count = std::to_string(steps), from = resume;
  char* arguments[] = {program.data(), file.data(), count.data(), resume.empty() ? nullptr : from.data(), nullptr};
  pid_t process = -1;
  EXPECT_EQ(posix_spawn(&process, program.c_str(), nullptr, nullptr, arguments, environ), 0);
  return process;
}

int WaitFor(pid_t process) {
  int how = 0;
  EXPECT_EQ(waitpid(process, &how, 0), process);
  return WIFSIGNALED(how) ? -WTERMSIG(how) : WEXITSTATUS(how);
}

std::string ReadWholeFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::vector<std::string> UntimedLines(const std::string& metrics_path) {
  std::ifstream file(metrics_path);
  std::vector<std::string> lines;
  for (std::string line; std::getline(file, line);) {
    const size_t times = line.find(",\"seconds\":");
    EXPECT_NE(times, std::string::npos) << line;
    lines.push_back(line.substr(0, times));
  }
  return lines;
}

std::string CheckpointDifference(const std::string& folder, const std::string& other) {
  const auto a_path = FindLatestCheckpoint(folder), b_path = FindLatestCheckpoint(other);
  if (!a_path.ok()) return a_path.status().ToString();
  if (!b_path.ok()) return b_path.status().ToString();
  const auto a = Checkpoint::Open(a_path->checkpoint.path), b = Checkpoint::Open(b_path->checkpoint.path);
  if (!a.ok() || !b.ok()) return "a checkpoint cannot be opened";
  for (const char* key : {"steps", "images_seen", "samples_drawn", "low_diversity_steps"}) {
    if (*a->Integer(key) != *b->Integer(key))
      return absl::StrFormat("%s: %d and %d", key, *a->Integer(key), *b->Integer(key));
  }
  if (a->tensors().size() != b->tensors().size()) return "they hold another number of tensors";
  if (a->tensors().empty()) return "they hold nothing";
  for (const SafetensorsEntry& tensor : a->tensors()) {
    const std::string key = "crc32." + tensor.name;
    if (b->Find(tensor.name) == nullptr) return "only one has " + tensor.name;
    if (*a->Text(key) != *b->Text(key)) return "they differ in " + tensor.name;
  }
  return "";
}

}  // namespace gantry
