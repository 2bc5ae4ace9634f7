#include "memory/layout/layout_csv.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <random>
#include <string>

#include "memory/status.h"
#include "tests/unit/memory/layout_test_util.h"

namespace gantry {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string ErrorOf(std::string_view text) {
  const absl::StatusOr<LayoutProblem> problem = ParseLayoutCsv(text);
  return problem.ok() ? "no error" : std::string(Message(problem.status()));
}

TEST(LayoutCsvTest, ReadsEveryColumn) {
  const absl::StatusOr<LayoutProblem> problem = ParseLayoutCsv(
      "\xEF\xBB\xBFid,lower,upper,size,alignment,group,offset\r\n"
      "\"conv, \"\"1\"\"\",0,4,10,,,\r\n\r\n b , -3, 7 ,12,8,2,16");
  ASSERT_TRUE(problem.ok()) << problem.status();
  EXPECT_THAT(problem->names, ElementsAre("conv, \"1\"", "b"));
  EXPECT_EQ(problem->buffers[0].alignment, 1);
  EXPECT_FALSE(problem->buffers[0].fixed_offset.has_value());
  EXPECT_EQ(problem->buffers[1].lower, -3);
  EXPECT_EQ(problem->buffers[1].upper, 7);
  EXPECT_EQ(problem->buffers[1].alignment, 8);
  EXPECT_EQ(problem->buffers[1].alias_group, 2);
  EXPECT_EQ(problem->buffers[1].fixed_offset, 16);
}

TEST(LayoutCsvTest, StartAndEndMeanAnInclusiveEnd) {
  const absl::StatusOr<LayoutProblem> problem = ParseLayoutCsv("size,end,start\n5,3,3\n");
  ASSERT_TRUE(problem.ok()) << problem.status();
  EXPECT_EQ(problem->buffers[0].upper, 4);
  EXPECT_EQ(problem->names[0], "0");
}

TEST(LayoutCsvTest, ErrorsNameLineAndCell) {
  EXPECT_THAT(ErrorOf(""), HasSubstr("line 1: unknown column ``"));
  EXPECT_THAT(ErrorOf("id,lower,size\n"), HasSubstr("line 1: the header needs"));
  EXPECT_THAT(ErrorOf("id,lower,upper,end,size\n"), HasSubstr("line 1: the header needs"));
  EXPECT_THAT(ErrorOf("id,lower,lower,upper,size\n"), HasSubstr("`lower` is named twice"));
  EXPECT_THAT(ErrorOf("lower,upper,size\n1,2,3\n1,2\n"), HasSubstr("line 3: 2 cells where the header names 3"));
  EXPECT_THAT(ErrorOf("lower,upper,size\n1,2,x\x01y\n"), HasSubstr("line 2: size: `x?y` is not an integer"));
  EXPECT_THAT(ErrorOf("lower,upper,size\n1,2,\n"), HasSubstr("size: `` is not an integer"));
  EXPECT_THAT(ErrorOf("lower,upper,size\n1,2,99999999999999999999\n"), HasSubstr("does not fit 64 bits"));
  EXPECT_THAT(ErrorOf("lower,upper,size\n\n2,2,1\n"), HasSubstr("line 3: layout buffer `0`: it is live in [2, 2)"));
  EXPECT_THAT(ErrorOf("id,lower,upper,size\n\"a,1,2,3\n"), HasSubstr("cell 1: the quote is not closed"));
  EXPECT_THAT(ErrorOf("id,lower,upper,size\n\"a\"b,1,2,3\n"), HasSubstr("text after the closing quote"));
  EXPECT_THAT(ErrorOf("lower,upper,size,group\n1,2,3,4294967296\n"), HasSubstr("group: 4294967296"));
  EXPECT_THAT(ErrorOf("start,end,size\n1,9223372036854775807,3\n"), HasSubstr("too large"));
  EXPECT_THAT(ErrorOf("lower,upper,size\n" + std::string(100'000, ',')), HasSubstr("more than 9 cells"));
  EXPECT_THAT(ErrorOf("lower,upper,size\n0,1,1152921504606846976\n0,1,1\n"), HasSubstr("2^60"));
}

TEST(LayoutCsvTest, WhatIsWrittenReadsBack) {
  std::mt19937_64 random(3);
  for (int round = 0; round < 200; ++round) {
    LayoutProblem problem = RandomLayoutProblem(random, {});
    for (size_t i = 0; i < problem.buffers.size(); ++i) problem.names.push_back(i % 2 ? "x,\"" + std::to_string(i) : "y");
    const absl::StatusOr<LayoutProblem> again = ParseLayoutCsv(FormatLayoutCsv(problem));
    ASSERT_TRUE(again.ok()) << again.status();
    ASSERT_EQ(again->names, problem.names);
    for (size_t i = 0; i < problem.buffers.size(); ++i) {
      const LayoutBuffer& a = problem.buffers[i];
      const LayoutBuffer& b = again->buffers[i];
      ASSERT_EQ(std::tie(a.lower, a.upper, a.size, a.alignment, a.fixed_offset, a.alias_group),
                std::tie(b.lower, b.upper, b.size, b.alignment, b.fixed_offset, b.alias_group));
    }
  }
}

TEST(LayoutCsvTest, FilesReadBackAndSayWhatIsMissing) {
  const LayoutProblem problem = {{{0, 4, 10}, {1, 3, 8}}, {"a", "b"}};
  const std::string path = testing::TempDir() + "/layout_csv_test." + std::to_string(getpid()) + ".csv";
  ASSERT_TRUE(WriteLayoutCsvFile(path, problem, std::vector<int64_t>{0, 10}).ok());
  const absl::StatusOr<LayoutProblem> again = ReadLayoutCsvFile(path);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->buffers[1].fixed_offset, 10);
  std::remove(path.c_str());
  EXPECT_EQ(ReadLayoutCsvFile(path).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(Message(ReadLayoutCsvFile(path).status())), HasSubstr(path));
}

// Bytes changed, cut and repeated at random never crash the parser; what it accepts is a valid problem.
TEST(LayoutCsvTest, SurvivesBrokenText) {
  std::mt19937_64 random(5);
  const std::string good = "id,lower,upper,size,alignment,group,offset\n\"a\",0,4,10,2,1,4\nb,-1,9223372036854775807,0,,,\n";
  for (int round = 0; round < 20'000; ++round) {
    std::string text = good;
    for (uint64_t edits = 1 + random() % 6; edits > 0; --edits) {
      const size_t at = random() % text.size();
      if (random() % 3 == 0) text[at] = static_cast<char>(random());
      else if (random() % 2 == 0) text[at] = ",\"\n-9e"[random() % 6];
      else text.insert(at, text, random() % text.size(), random() % 8);
    }
    const absl::StatusOr<LayoutProblem> problem = ParseLayoutCsv(text);
    if (problem.ok()) {
      EXPECT_TRUE(ValidateLayoutProblem(*problem).ok());
    }
  }
}

}  // namespace
}  // namespace gantry
