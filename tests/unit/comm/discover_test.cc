// Who a process is in its job, out of its environment.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <map>
#include <string>

#include "comm/job.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace gantry {
namespace {

using testing::HasSubstr;
using Variables = std::map<std::string, std::string>;

class DiscoverTest : public testing::Test {
 protected:
  void SetUp() override {
    clearenv();
    folder_ = testing::TempDir() + "/gantry_discover_XXXXXX";
    ASSERT_NE(mkdtemp(folder_.data()), nullptr);
  }
  void TearDown() override {
    const std::string command = "/bin/rm -r " + folder_;
    ASSERT_EQ(std::system(command.c_str()), 0);
  }
  static absl::StatusOr<Job> Discover(const Variables& variables) {
    clearenv();
    for (const auto& [name, value] : variables) setenv(name.c_str(), value.c_str(), 1);
    return DiscoverJob();
  }
  static std::string ErrorOf(const Variables& variables) {
    const absl::StatusOr<Job> job = Discover(variables);
    EXPECT_EQ(job.status().code(), absl::StatusCode::kInvalidArgument) << job.status();
    return std::string(Message(job.status()));
  }
  std::string WriteKey(const std::string& name, const std::string& text, mode_t mode) {
    const std::string path = folder_ + "/" + name;
    std::ofstream(path) << text;
    EXPECT_EQ(chmod(path.c_str(), mode), 0);
    return path;
  }

  std::string folder_;
};

TEST_F(DiscoverTest, AnEmptyEnvironmentIsASingleProcess) {
  const auto job = Discover({});
  ASSERT_TRUE(job.ok());
  EXPECT_EQ(job->size, 1);
  EXPECT_EQ(job->found_by, "single process");
}

// A whole set of each kind.
const Variables kTorchrun = {{"RANK", "2"},          {"WORLD_SIZE", "4"},           {"LOCAL_RANK", "2"},
                             {"LOCAL_WORLD_SIZE", "4"}, {"MASTER_ADDR", "somewhere"}, {"MASTER_PORT", "29500"}};
const Variables kSlurm = {{"SLURM_STEP_ID", "0"},  {"SLURM_PROCID", "1"},         {"SLURM_STEP_NUM_TASKS", "4"},
                          {"SLURM_LOCALID", "1"}, {"SLURM_STEP_NUM_NODES", "1"}, {"SLURM_JOB_ID", "71"}};
const Variables kOpenMpi = {{"OMPI_COMM_WORLD_RANK", "3"},       {"OMPI_COMM_WORLD_SIZE", "4"},       {"OMPI_COMM_WORLD_LOCAL_RANK", "3"},
                            {"OMPI_COMM_WORLD_LOCAL_SIZE", "4"}, {"OMPI_MCA_ess_base_jobid", "123"}};

Variables Join(Variables a, const Variables& b) {
  a.insert(b.begin(), b.end());
  return a;
}

TEST_F(DiscoverTest, TheOrderIsTheStatedOne) {
  const std::string key = WriteKey("key", std::string(64, 'a'), 0600);
  const Variables gantry = {{"GANTRY_RANK", "0"}, {"GANTRY_SIZE", "2"}, {"GANTRY_RENDEZVOUS", "tcp:127.0.0.1:5000"}, {"GANTRY_KEY_FILE", key}};
  Variables all = Join(Join(Join(Join(gantry, kTorchrun), kSlurm), kOpenMpi), {{"PMIX_RANK", "1"}, {"PMIX_NAMESPACE", "x"}});
  const auto found_by = [&](const Variables& variables) {
    const auto job = Discover(variables);
    EXPECT_TRUE(job.ok()) << job.status();
    return job.ok() ? job->found_by : "";
  };
  EXPECT_EQ(found_by(all), "GANTRY_*");
  for (const auto& [name, value] : gantry) all.erase(name);
  EXPECT_EQ(found_by(all), "torchrun");
  for (const auto& [name, value] : kTorchrun) all.erase(name);
  EXPECT_EQ(found_by(all), "PMIx (Open MPI)");
  all.erase("PMIX_RANK");
  EXPECT_EQ(found_by(all), "Slurm");
  for (const auto& [name, value] : kSlurm) all.erase(name);
  EXPECT_EQ(found_by(all), "Open MPI");
  for (const auto& [name, value] : kOpenMpi) all.erase(name);
  EXPECT_EQ(found_by(all), "single process");
}

TEST_F(DiscoverTest, OneMachineMeetsInItsRunFolder) {
  for (const Variables& set : {kTorchrun, kSlurm, kOpenMpi}) {
    const auto job = Discover(Join(set, {{"GANTRY_RUN_DIR", folder_}}));
    ASSERT_TRUE(job.ok()) << job.status();
    EXPECT_EQ(job->size, 4);
    EXPECT_EQ(job->local_size, 4);
    EXPECT_EQ(job->rank, job->local_rank);
    EXPECT_THAT(job->run_folder, testing::StartsWith(folder_ + "/"));
    EXPECT_EQ(job->rendezvous, "unix:" + job->run_folder + "/rank-0");
  }
}

TEST_F(DiscoverTest, SeveralMachinesNeedAKeyFile) {
  Variables slurm = kSlurm;
  slurm["SLURM_STEP_NUM_NODES"] = "2";
  slurm["SLURM_STEP_NODELIST"] = "n[07-09,12],m1";
  EXPECT_THAT(ErrorOf(slurm), HasSubstr("GANTRY_KEY_FILE is missing"));
  slurm["GANTRY_KEY_FILE"] = WriteKey("key", std::string(64, 'b') + "\n", 0600);
  const auto job = Discover(slurm);
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_THAT(job->rendezvous, testing::StartsWith("tcp:n07:6"));
  EXPECT_EQ(job->key.bytes()[5], 0xbb);
  EXPECT_TRUE(job->run_folder.empty());
  Variables mpi = kOpenMpi;
  mpi["OMPI_COMM_WORLD_LOCAL_SIZE"] = "2";
  EXPECT_THAT(ErrorOf(mpi), HasSubstr("GANTRY_RENDEZVOUS"));
}

TEST_F(DiscoverTest, APartOfASetNamesWhatIsMissing) {
  const Variables gantry = {{"GANTRY_RANK", "0"}, {"GANTRY_SIZE", "2"}, {"GANTRY_RENDEZVOUS", "tcp:127.0.0.1:5000"},
                            {"GANTRY_KEY_FILE", WriteKey("key", std::string(64, 'a'), 0600)}};
  for (const auto& [set, optional, trigger] :
       {std::tuple(gantry, "", ""), std::tuple(kTorchrun, "LOCAL", ""), std::tuple(kSlurm, "", "SLURM_STEP_ID"), std::tuple(kOpenMpi, "", "")}) {
    for (const auto& [name, value] : set) {
      if (*optional != '\0' && name.find(optional) == 0) continue;
      if (name == trigger) continue;
      Variables part = set;
      part.erase(name);
      // Open MPI gives its job's name in one of two.
      EXPECT_THAT(ErrorOf(part), HasSubstr(name == "OMPI_MCA_ess_base_jobid" ? "PMIX_NAMESPACE" : name));
    }
  }
  EXPECT_THAT(ErrorOf({{"PMIX_RANK", "0"}}), HasSubstr("how many ranks"));
}

TEST_F(DiscoverTest, WrongValuesAreNamed) {
  EXPECT_THAT(ErrorOf({{"GANTRY_RANK", "x"}, {"GANTRY_SIZE", "2"}}), HasSubstr("GANTRY_RANK is 'x'"));
  EXPECT_THAT(ErrorOf({{"GANTRY_RANK", "2"}, {"GANTRY_SIZE", "2"}}), HasSubstr("GANTRY_RANK is 2, but GANTRY_SIZE is 2"));
  EXPECT_THAT(ErrorOf({{"GANTRY_RANK", "0"}, {"GANTRY_SIZE", "99999999999999"}}), HasSubstr("GANTRY_SIZE"));
  EXPECT_THAT(ErrorOf({{"GANTRY_RANK", "0"}, {"GANTRY_SIZE", "1"}, {"GANTRY_KEY_FD", "9999"}}), HasSubstr("9999"));
}

TEST_F(DiscoverTest, AShellInAnAllocationIsASingleProcess) {
  for (const char* step : {"", "4294967291"}) {
    Variables variables = {{"SLURM_JOB_ID", "71"}, {"SLURM_NTASKS", "4"}, {"SLURM_PROCID", "0"}};
    if (*step != '\0') variables["SLURM_STEP_ID"] = step;
    const auto job = Discover(variables);
    ASSERT_TRUE(job.ok()) << job.status();
    EXPECT_EQ(job->found_by, "single process");
  }
}

TEST_F(DiscoverTest, KeyFilesAreOnlyForTheirOwner) {
  const std::string digits(64, 'c');
  EXPECT_TRUE(JobKey::FromFile(WriteKey("good", digits, 0600)).ok());
  EXPECT_TRUE(JobKey::FromFile(WriteKey("read-only", digits + "\n", 0400)).ok());
  for (const mode_t mode : {0640, 0604, 0660, 0601}) {
    EXPECT_EQ(JobKey::FromFile(WriteKey("open", digits, mode)).status().code(), absl::StatusCode::kPermissionDenied) << mode;
  }
  for (const std::string& text : {std::string(), digits.substr(1), digits + "c", digits + "\n\n", std::string(63, 'c') + "g"}) {
    EXPECT_EQ(JobKey::FromFile(WriteKey("damaged", text, 0600)).status().code(), absl::StatusCode::kDataLoss) << text;
  }
  EXPECT_EQ(JobKey::FromFile(folder_ + "/none").status().code(), absl::StatusCode::kNotFound);
  ASSERT_EQ(symlink((folder_ + "/good").c_str(), (folder_ + "/link").c_str()), 0);
  EXPECT_FALSE(JobKey::FromFile(folder_ + "/link").ok());
  EXPECT_FALSE(JobKey::FromFile(folder_).ok());
  ASSERT_EQ(mkfifo((folder_ + "/pipe").c_str(), 0600), 0);
  EXPECT_FALSE(JobKey::FromFile(folder_ + "/pipe").ok()) << "and it does not wait for a writer";
  if (geteuid() == 0) {
    ASSERT_EQ(chown((folder_ + "/good").c_str(), 65534, 65534), 0);
    EXPECT_EQ(JobKey::FromFile(folder_ + "/good").status().code(), absl::StatusCode::kPermissionDenied);
  }
}

TEST_F(DiscoverTest, AKeyIsWipedWhenItMoves) {
  auto key = JobKey::Generate();
  ASSERT_TRUE(key.ok());
  const std::vector<uint8_t> before(key->bytes().begin(), key->bytes().end());
  const JobKey moved = *std::move(key);
  EXPECT_TRUE(std::equal(before.begin(), before.end(), moved.bytes().begin()));
  for (const uint8_t byte : key->bytes()) EXPECT_EQ(byte, 0);
}

}  // namespace
}  // namespace gantry
