#include "runtime/checkpoint/checkpoint.h"

#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <numeric>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/checkpoint/checkpoint_folder.h"

namespace gantry {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

class CheckpointTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = testing::TempDir() + "/gantry_checkpoint_XXXXXX";
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
    std::iota(weights_.begin(), weights_.end(), 0.5f);
    std::iota(moments_.begin(), moments_.end(), -3.25);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string Path(const std::string& name) const { return folder_ + "/" + name; }
  std::vector<CheckpointTensor> Tensors() const {
    return {{"generator.0.weight", HostType::kF32, {2, 3}, std::as_bytes(std::span(weights_))},
            {"generator.0.weight.moment1", HostType::kF64, {4}, std::as_bytes(std::span(moments_))},
            {"empty", HostType::kF32, {0}, {}}};
  }
  std::vector<std::string> Files() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(folder_))
      names.push_back(entry.path().filename().string());
    std::sort(names.begin(), names.end());
    return names;
  }
  static std::string ReadText(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
  }
  static void WriteText(const std::string& path, std::string_view text) {
    std::ofstream(path, std::ios::binary) << text;
  }

  std::string folder_;
  std::array<float, 6> weights_;
  std::array<double, 4> moments_;
};

TEST_F(CheckpointTest, GivesBackEveryBit) {
  weights_[0] = std::numeric_limits<float>::quiet_NaN();
  weights_[1] = -0.0f;
  ASSERT_TRUE(WriteCheckpoint(Path("c"), Tensors(), {{"step", "7"}, {"note", "a \"b\"\n"}}).ok());
  auto checkpoint = Checkpoint::Open(Path("c"));
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_TRUE(checkpoint->Verify().ok());
  EXPECT_EQ(*checkpoint->Integer("step"), 7);
  EXPECT_EQ(*checkpoint->Text("note"), "a \"b\"\n");
  EXPECT_FALSE(checkpoint->Integer("note").ok());
  EXPECT_FALSE(checkpoint->Text("none").ok());
  std::array<float, 6> weights{};
  std::array<double, 4> moments{};
  const CheckpointTarget targets[] = {
      {"empty", HostType::kF32, {0}, {}},
      {"generator.0.weight.moment1", HostType::kF64, {4}, std::as_writable_bytes(std::span(moments))},
      {"generator.0.weight", HostType::kF32, {2, 3}, std::as_writable_bytes(std::span(weights))}};
  const absl::Status read = checkpoint->Read(targets);
  ASSERT_TRUE(read.ok()) << read;
  EXPECT_EQ(std::memcmp(weights.data(), weights_.data(), sizeof(weights)), 0);
  EXPECT_EQ(moments, moments_);
  EXPECT_THAT(Files(), testing::ElementsAre("c"));
}

TEST_F(CheckpointTest, NamesWhatDoesNotFit) {
  ASSERT_TRUE(WriteCheckpoint(Path("c"), Tensors(), {}).ok());
  auto checkpoint = Checkpoint::Open(Path("c"));
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  std::array<float, 6> weights{};
  std::array<float, 1> bias{};
  const CheckpointTarget targets[] = {
      {"generator.0.weight", HostType::kF32, {3, 2}, std::as_writable_bytes(std::span(weights))},
      {"generator.0.bias", HostType::kF32, {1}, std::as_writable_bytes(std::span(bias))}};
  const absl::Status status = checkpoint->Read(targets);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("lacks generator.0.bias"), HasSubstr("generator.0.weight.moment1"),
                    HasSubstr("f32[2,3], expected f32[3,2]")));
  EXPECT_EQ(weights[1], 0.0f);
  const CheckpointTarget some[] = {
      {"generator.0.weight", HostType::kF32, {2, 3}, std::as_writable_bytes(std::span(weights))}};
  EXPECT_FALSE(checkpoint->Read(some).ok());
  EXPECT_TRUE(checkpoint->ReadSome(some).ok());
  EXPECT_EQ(weights, weights_);
}

TEST_F(CheckpointTest, EveryChangedByteIsNoticed) {
  ASSERT_TRUE(WriteCheckpoint(Path("c"), Tensors(), {{"step", "7"}, {"images", "12"}}).ok());
  const std::string good = ReadText(Path("c"));
  for (size_t i = 0; i < good.size(); ++i) {
    std::string bad = good;
    bad[i] ^= 0x10;
    auto checkpoint = Checkpoint::Open(MemorySource(std::as_bytes(std::span(bad.data(), bad.size())), "bad"));
    // Spaces that pad the header carry nothing, and some JSON has two forms; then all contents must be as they were.
    if (!checkpoint.ok() || !checkpoint->Verify().ok()) continue;
    auto original = Checkpoint::Open(Path("c"));
    EXPECT_EQ(checkpoint->metadata(), original->metadata()) << "byte " << i;
    ASSERT_EQ(checkpoint->tensors().size(), original->tensors().size()) << "byte " << i;
    for (size_t t = 0; t < original->tensors().size(); ++t) {
      EXPECT_EQ(checkpoint->tensors()[t].name, original->tensors()[t].name) << "byte " << i;
      EXPECT_EQ(checkpoint->tensors()[t].shape, original->tensors()[t].shape) << "byte " << i;
    }
  }
  for (size_t size = 0; size < good.size(); ++size) {
    EXPECT_FALSE(Checkpoint::Open(MemorySource(std::as_bytes(std::span(good.data(), size)), "short")).ok())
        << size << " bytes";
  }
}

TEST_F(CheckpointTest, RefusesOtherFiles) {
  ASSERT_TRUE(WriteSafetensors(Path("weights"), {}, {{"format", "pt"}}).ok());
  EXPECT_THAT(std::string(Checkpoint::Open(Path("weights")).status().message()), HasSubstr("not a checkpoint"));
  ASSERT_TRUE(
      WriteSafetensors(Path("future"), {}, {{"format", "gantry-checkpoint-9"}, {"gantry_version", "9.0"}}).ok());
  EXPECT_THAT(std::string(Checkpoint::Open(Path("future")).status().message()),
              AllOf(HasSubstr("gantry-checkpoint-9"), HasSubstr("9.0")));
  EXPECT_EQ(Checkpoint::Open(Path("none")).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(WriteCheckpoint(Path("c"), {}, {{"crc32.x", ""}}).code(), absl::StatusCode::kInvalidArgument);
  const CheckpointTensor wrong[] = {{"w", HostType::kF32, {7}, std::as_bytes(std::span(weights_))}};
  EXPECT_EQ(WriteCheckpoint(Path("c"), wrong, {}).code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(CheckpointTest, FolderKeepsTheNewest) {
  auto folder = CheckpointFolder::Open(folder_ + "/new/run");
  ASSERT_TRUE(folder.ok()) << folder.status();
  for (int64_t step : {10, 20, 30, 40}) {
    auto path = (*folder)->Save(step, Tensors(), {{"steps", absl::StrCat(step)}}, 2);
    ASSERT_TRUE(path.ok()) << path.status();
    EXPECT_EQ(*path, folder_ + "/new/run/" + CheckpointFileName(step));
  }
  auto stored = ListCheckpoints(folder_ + "/new/run");
  ASSERT_TRUE(stored.ok());
  ASSERT_EQ(stored->size(), 2u);
  EXPECT_EQ((*stored)[0].step, 30);
  EXPECT_EQ((*stored)[1].step, 40);
  auto again = CheckpointFolder::Open(folder_ + "/new/run");
  EXPECT_EQ(again.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(again.status().message()), HasSubstr("another process"));
  folder->reset();
  EXPECT_TRUE(CheckpointFolder::Open(folder_ + "/new/run").ok());
}

TEST_F(CheckpointTest, LatestPassesOverDamagedOnes) {
  EXPECT_EQ(FindLatestCheckpoint(folder_ + "/none").status().code(), absl::StatusCode::kNotFound);
  auto folder = CheckpointFolder::Open(folder_);
  ASSERT_TRUE(folder.ok()) << folder.status();
  for (int64_t step : {1, 2, 3}) ASSERT_TRUE((*folder)->Save(step, Tensors(), {}, 0).ok());
  std::filesystem::resize_file(Path(CheckpointFileName(3)), 100);
  std::string damaged = ReadText(Path(CheckpointFileName(2)));
  damaged[damaged.size() - 40] ^= 1;
  WriteText(Path(CheckpointFileName(2)), damaged);
  auto latest = FindLatestCheckpoint(folder_);
  ASSERT_TRUE(latest.ok()) << latest.status();
  EXPECT_EQ(latest->checkpoint.step, 1);
  ASSERT_EQ(latest->damaged.size(), 2u);
  EXPECT_EQ(latest->damaged[0].first.step, 3);
  EXPECT_EQ(latest->damaged[1].second.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(latest->damaged[1].second.message()), HasSubstr("'generator.0.weight"));
  std::filesystem::remove(Path(CheckpointFileName(1)));
  EXPECT_THAT(std::string(FindLatestCheckpoint(folder_).status().message()), HasSubstr("no good checkpoint"));

  auto renamed = (*folder)->SetAsideAfter(2);
  ASSERT_TRUE(renamed.ok()) << renamed.status();
  ASSERT_EQ(renamed->size(), 1u);
  ASSERT_TRUE((*folder)->Save(3, Tensors(), {}, 0).ok());
  ASSERT_TRUE((*folder)->SetAsideAfter(2).ok());
  EXPECT_THAT(Files(), testing::ElementsAre(CheckpointFileName(2), "set-aside-1-" + CheckpointFileName(3),
                                            "set-aside-2-" + CheckpointFileName(3)));
}

TEST_F(CheckpointTest, LeftoversOfDeadProcessesGo) {
  const pid_t dead = fork();
  if (dead == 0) _exit(0);
  ASSERT_EQ(waitpid(dead, nullptr, 0), dead);
  WriteText(Path(absl::StrFormat("%s.tmp-%d-0", CheckpointFileName(5), dead)), "half");
  WriteText(Path(absl::StrFormat("%s.tmp-%d-3", CheckpointFileName(5), getpid())),
            "of an earlier process with this number");
  WriteText(Path(absl::StrFormat("samples.png.tmp-%d-1", dead)), "half");
  WriteText(Path(absl::StrFormat("sheet.png.tmp-%d-1", getppid())), "being written");
  WriteText(Path("notes.tmp-x-1"), "mine");
  WriteText(Path("notes.txt"), "mine");
  ASSERT_TRUE(CheckpointFolder::Open(folder_).ok());
  EXPECT_THAT(Files(),
              testing::ElementsAre("notes.tmp-x-1", "notes.txt", absl::StrFormat("sheet.png.tmp-%d-1", getppid())));
}

// A limit on the size of files stands in for a full disk: writing fails half-way in the same manner.
TEST_F(CheckpointTest, FullDiskKeepsTheCheckpointBefore) {
  auto folder = CheckpointFolder::Open(folder_);
  ASSERT_TRUE(folder.ok()) << folder.status();
  const auto small = (*folder)->Save(1, Tensors(), {}, 1);
  ASSERT_TRUE(small.ok());
  const std::vector<float> large(100000, 1.0f);
  const CheckpointTensor tensors[] = {{"large", HostType::kF32, {100000}, std::as_bytes(std::span(large))}};
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit limit{100000, before.rlim_max};
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  const auto failed = (*folder)->Save(2, tensors, {}, 1);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, old_handler);
  EXPECT_EQ(failed.status().code(), absl::StatusCode::kResourceExhausted) << failed.status();
  EXPECT_THAT(std::string(failed.status().message()), HasSubstr("the last good checkpoint is " + *small));
  EXPECT_THAT(Files(), testing::ElementsAre(CheckpointFileName(1)));
  EXPECT_EQ(FindLatestCheckpoint(folder_)->checkpoint.step, 1);
  EXPECT_TRUE((*folder)->Save(2, tensors, {}, 1).ok());
}

TEST_F(CheckpointTest, UnwritableFolderIsSaid) {
  WriteText(Path("file"), "");
  EXPECT_FALSE(CheckpointFolder::Open(Path("file/run")).ok());
  ASSERT_EQ(chmod(folder_.c_str(), 0555), 0);
  const pid_t child = fork();
  if (child == 0) {
    // Root may write anywhere, so it becomes nobody.
    constexpr uid_t kNobody = 65534;
    if (geteuid() == 0 && (setgid(kNobody) != 0 || setuid(kNobody) != 0)) _exit(100);
    const auto folder = CheckpointFolder::Open(folder_);
    const bool named = std::string(folder.status().message()).find(folder_) != std::string::npos;
    _exit(named ? static_cast<int>(folder.status().code()) : 101);
  }
  int how = 0;
  ASSERT_EQ(waitpid(child, &how, 0), child);
  ASSERT_EQ(chmod(folder_.c_str(), 0755), 0);
  ASSERT_TRUE(WIFEXITED(how));
  EXPECT_EQ(WEXITSTATUS(how), static_cast<int>(absl::StatusCode::kPermissionDenied));
}

// Six weights in 2 and 4, four moments all on the second.
class CheckpointPartsTest : public CheckpointTest {
 protected:
  std::vector<CheckpointPart> Part(int part) const {
    const auto weights = std::as_bytes(std::span(weights_));
    if (part == 0) return {{"w", HostType::kF32, {2, 3}, 0, weights.first(8)}};
    return {{"w", HostType::kF32, {2, 3}, 2, weights.subspan(8)}, {"m", HostType::kF64, {4}, 0, std::as_bytes(std::span(moments_))}};
  }
  std::string WriteAll() {
    const std::string path = Path(CheckpointFileName(7));
    std::vector<uint32_t> seals;
    for (int part = 0; part < 2; ++part) seals.push_back(*WriteCheckpointPart(path, part, 2, Part(part), {}));
    EXPECT_TRUE(WriteCheckpointOfParts(path, seals, {{"steps", "7"}}).ok());
    return path;
  }
};

TEST_F(CheckpointPartsTest, AreOneCheckpoint) {
  const std::string path = WriteAll();
  const auto checkpoint = Checkpoint::Open(path);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ(checkpoint->part_count(), 2);
  EXPECT_TRUE(checkpoint->Verify().ok());
  EXPECT_EQ(*checkpoint->Integer("steps"), 7);
  std::array<float, 6> weights{};
  std::array<double, 4> moments{};
  const CheckpointTarget targets[] = {{"m", HostType::kF64, {4}, std::as_writable_bytes(std::span(moments))},
                                      {"w", HostType::kF32, {2, 3}, std::as_writable_bytes(std::span(weights))}};
  ASSERT_TRUE(checkpoint->Read(targets).ok());
  EXPECT_EQ(weights, weights_);
  EXPECT_EQ(moments, moments_);
  std::array<float, 3> some{};
  ASSERT_TRUE(checkpoint->ReadElements(*checkpoint->Find("w"), 1, std::as_writable_bytes(std::span(some))).ok());
  EXPECT_THAT(some, testing::ElementsAre(weights_[1], weights_[2], weights_[3]));
  EXPECT_THAT(std::string(checkpoint->CheckFit({{{"w", HostType::kF32, {3, 2}, {}}}}).message()), AllOf(HasSubstr("m"), HasSubstr("[2,3]")));
}

TEST_F(CheckpointPartsTest, PartsThatDoNotFitTogetherAreRefused) {
  const std::string path = WriteAll();
  const uint32_t seal = *WriteCheckpointPart(path, 0, 2, Part(0), {});
  // The second part twice, or with a gap.
  std::vector<CheckpointPart> shifted = Part(1);
  for (const int64_t begin : {1, 3}) {
    shifted[0].begin = begin;
    shifted[0].bytes = std::as_bytes(std::span(weights_)).first(static_cast<size_t>(6 - begin) * 4);
    const uint32_t seals[] = {seal, *WriteCheckpointPart(path, 1, 2, shifted, {})};
    ASSERT_TRUE(WriteCheckpointOfParts(path, seals, {}).ok());
    EXPECT_THAT(std::string(Checkpoint::Open(path).status().message()), HasSubstr("every element of 'w' once"));
  }
  // Without the file that names them they are nothing.
  ASSERT_EQ(unlink(path.c_str()), 0);
  EXPECT_EQ(FindLatestCheckpoint(folder_).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Files().size(), 2u);
  const auto folder = CheckpointFolder::Open(folder_);
  ASSERT_TRUE(folder.ok()) << folder.status();
  EXPECT_THAT(Files(), testing::IsEmpty());
}

TEST_F(CheckpointPartsTest, GoWithTheirCheckpoint) {
  WriteAll();
  const auto folder = CheckpointFolder::Open(folder_);
  ASSERT_TRUE(folder.ok()) << folder.status();
  EXPECT_EQ(Files().size(), 3u);
  const absl::StatusOr<std::vector<std::string>> aside = (*folder)->SetAsideAfter(6);
  ASSERT_TRUE(aside.ok()) << aside.status();
  ASSERT_EQ(aside->size(), 1u);
  EXPECT_TRUE(Checkpoint::Open((*aside)[0]).ok());
  WriteAll();
  ASSERT_TRUE((*folder)->Save(8, Tensors(), {}, 1).ok());
  std::vector<std::string> left = Files();
  std::erase_if(left, [](const std::string& name) { return name.starts_with("set-aside-"); });
  EXPECT_THAT(left, testing::ElementsAre(CheckpointFileName(8)));
}

}  // namespace
}  // namespace gantry
