#include "runtime/data/batch_stream.h"

#include <atomic>
#include <numeric>
#include <set>

#include "runtime/data/npy.h"
#include "runtime/data/permutation.h"
#include "tests/unit/runtime/data/data_test_support.h"

namespace gantry {
namespace {

// Sample i is [i, -i]. Reading can fail at one index, or wait for a gate.
class NumberedSet final : public DataSet {
 public:
  explicit NumberedSet(int64_t size) : size_(size) {}
  int64_t size() const override { return size_; }
  const std::vector<int64_t>& sample_shape() const override { return shape_; }
  std::string Describe() const override { return "numbers"; }
  absl::Status Read(int64_t index, std::span<float> to) const override {
    while (closed) absl::SleepFor(absl::Milliseconds(1));
    ++reads;
    if (index == broken_index) return absl::DataLossError(absl::StrFormat("sample %d is broken", index));
    to[0] = static_cast<float>(index);
    to[1] = -to[0];
    return absl::OkStatus();
  }
  std::atomic<int64_t> broken_index = -1;
  std::atomic<bool> closed = false;
  mutable std::atomic<int64_t> reads = 0;

 private:
  const int64_t size_;
  const std::vector<int64_t> shape_ = {2};
};

std::unique_ptr<BatchStream> MakeStream(std::shared_ptr<const DataSet> data_set, const BatchStreamOptions& options) {
  absl::StatusOr<std::unique_ptr<BatchStream>> stream = BatchStream::Create(std::move(data_set), options);
  EXPECT_TRUE(stream.ok()) << stream.status();
  return std::move(stream).value();
}

// The indices of the next batch's samples.
std::vector<int64_t> Draw(BatchStream& stream) {
  std::vector<float> values(stream.batch_elements());
  const absl::Status status = stream.Next(values);
  EXPECT_TRUE(status.ok()) << status;
  std::vector<int64_t> indices;
  for (size_t i = 0; i < values.size(); i += 2) {
    EXPECT_EQ(values[i + 1], -values[i]);
    indices.push_back(static_cast<int64_t>(values[i]));
  }
  return indices;
}

std::vector<int64_t> DrawMany(BatchStream& stream, int batches) {
  std::vector<int64_t> indices;
  for (int i = 0; i < batches; ++i) {
    const std::vector<int64_t> batch = Draw(stream);
    indices.insert(indices.end(), batch.begin(), batch.end());
  }
  return indices;
}

TEST(PermutationTest, IsOneForEverySize) {
  for (uint64_t size = 1; size <= 300; ++size) {
    const Permutation permutation(size, 7, size % 5);
    std::vector<bool> seen(size);
    for (uint64_t i = 0; i < size; ++i) {
      const uint64_t to = permutation(i);
      ASSERT_LT(to, size);
      ASSERT_FALSE(seen[to]) << "size " << size;
      seen[to] = true;
    }
  }
  const Permutation huge(uint64_t{1} << 62, 1, 2);
  EXPECT_LT(huge((uint64_t{1} << 62) - 1), uint64_t{1} << 62);
}

TEST(PermutationTest, NeverChanges) {  // a checkpoint made today resumes with the same order in later versions
  std::vector<uint64_t> order;
  for (uint64_t i = 0; i < 10; ++i) order.push_back(Permutation(10, 1234, 5)(i));
  EXPECT_EQ(order, (std::vector<uint64_t>{2, 0, 1, 9, 8, 4, 6, 5, 7, 3}));
}

TEST(PermutationTest, EveryPlaceIsAsLikelyAsAnother) {
  // Where each of 12 samples goes over 12,000 epochs: chi-square with 11 degrees of freedom, 0.1 % bound with room.
  constexpr int kSize = 12, kEpochs = 12000;
  int count[kSize][kSize] = {};
  int rises = 0;
  for (int epoch = 0; epoch < kEpochs; ++epoch) {
    const Permutation permutation(kSize, 99, epoch);
    for (int i = 0; i < kSize; ++i) ++count[i][permutation(i)];
    rises += permutation(3) < permutation(4);
  }
  for (int i = 0; i < kSize; ++i) {
    double chi_square = 0;
    for (int j = 0; j < kSize; ++j) chi_square += std::pow(count[i][j] - kEpochs / kSize, 2) / (kEpochs / kSize);
    EXPECT_LT(chi_square, 38) << "sample " << i;
  }
  EXPECT_NEAR(rises, kEpochs / 2, 250);  // neighbours are independent; the standard deviation is 55
}

TEST(BatchStreamTest, EverySampleComesOnceAnEpochAndBatchesCrossEpochs) {
  const auto data_set = std::make_shared<NumberedSet>(103);
  for (int threads : {1, 3}) {
    const auto stream = MakeStream(data_set, {.seed = 5, .batch_size = 10, .read_ahead = 3, .threads = threads});
    const std::vector<int64_t> drawn = DrawMany(*stream, 103);  // ten epochs
    EXPECT_EQ(stream->samples_drawn(), 1030u);
    EXPECT_EQ(stream->epoch(), 10u);
    std::set<std::vector<int64_t>> orders;
    for (int epoch = 0; epoch < 10; ++epoch) {
      std::vector<int64_t> part(drawn.begin() + epoch * 103, drawn.begin() + (epoch + 1) * 103);
      EXPECT_TRUE(orders.insert(part).second);
      std::ranges::sort(part);
      for (int64_t i = 0; i < 103; ++i) ASSERT_EQ(part[i], i);
    }
    for (size_t i = 0; i < drawn.size(); ++i) ASSERT_EQ(stream->IndexAt(i), drawn[i]);
  }
}

TEST(BatchStreamTest, BatchesMayBeLargerThanTheDataSet) {
  const auto stream = MakeStream(std::make_shared<NumberedSet>(3), {.batch_size = 8});
  std::vector<int64_t> drawn = DrawMany(*stream, 3);
  for (int epoch = 0; epoch < 8; ++epoch) {
    const std::set<int64_t> part(drawn.begin() + epoch * 3, drawn.begin() + (epoch + 1) * 3);
    EXPECT_EQ(part, (std::set<int64_t>{0, 1, 2}));
  }
}

TEST(BatchStreamTest, DropTailSkipsTheRestOfAnEpoch) {
  const auto stream = MakeStream(std::make_shared<NumberedSet>(25), {.batch_size = 10, .drop_tail = true});
  for (int epoch = 0; epoch < 5; ++epoch) {
    EXPECT_EQ(stream->epoch(), static_cast<uint64_t>(epoch));
    const std::vector<int64_t> drawn = DrawMany(*stream, 2);
    EXPECT_EQ(std::set<int64_t>(drawn.begin(), drawn.end()).size(), 20u);
  }
  EXPECT_THAT(stream->Seek(15), FailsWith(kInvalid, "multiple of the batch size 10"));
  EXPECT_TRUE(stream->Seek(20).ok());
}

TEST(BatchStreamTest, WithoutShuffleTheOrderIsTheFiles) {
  const auto stream = MakeStream(std::make_shared<NumberedSet>(5), {.batch_size = 3, .shuffle = false});
  EXPECT_EQ(DrawMany(*stream, 4), (std::vector<int64_t>{0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1}));
}

TEST(BatchStreamTest, ResumesAnywhereExactly) {
  const auto data_set = std::make_shared<NumberedSet>(57);
  const BatchStreamOptions options = {.seed = 11, .batch_size = 8, .read_ahead = 2, .threads = 2};
  const auto through = MakeStream(data_set, options);
  const std::vector<int64_t> all = DrawMany(*through, 40);
  const auto resumed = MakeStream(data_set, options);
  for (int batch : {39, 0, 7, 8, 20, 1}) {
    ASSERT_TRUE(resumed->Seek(static_cast<uint64_t>(batch) * 8).ok());
    EXPECT_EQ(resumed->samples_drawn(), batch * 8u);
    EXPECT_EQ(Draw(*resumed), std::vector<int64_t>(all.begin() + batch * 8, all.begin() + (batch + 1) * 8));
  }
  // The position counts samples: another batch size goes on at the same one.
  const auto other = MakeStream(data_set, {.seed = 11, .batch_size = 5});
  ASSERT_TRUE(other->Seek(123).ok());
  EXPECT_EQ(Draw(*other), std::vector<int64_t>(all.begin() + 123, all.begin() + 128));
  EXPECT_THAT(other->Seek(UINT64_MAX), FailsWith(kInvalid, "2^62"));
  const auto another_seed = MakeStream(data_set, {.seed = 12, .batch_size = 8});
  EXPECT_NE(DrawMany(*another_seed, 7), std::vector<int64_t>(all.begin(), all.begin() + 56));
}

TEST(BatchStreamTest, RanksSliceTheSameBatches) {
  const auto data_set = std::make_shared<NumberedSet>(31);
  const auto whole = MakeStream(data_set, {.seed = 3, .batch_size = 12});
  std::vector<std::unique_ptr<BatchStream>> ranks;
  for (int rank = 0; rank < 3; ++rank) {
    ranks.push_back(MakeStream(data_set, {.seed = 3, .batch_size = 12, .rank = rank, .world_size = 3}));
  }
  EXPECT_EQ(ranks[0]->batch_shape(), (std::vector<int64_t>{4, 2}));
  for (int batch = 0; batch < 10; ++batch) {
    std::vector<int64_t> together;
    for (auto& rank : ranks) {
      const std::vector<int64_t> slice = Draw(*rank);
      together.insert(together.end(), slice.begin(), slice.end());
      EXPECT_EQ(rank->samples_drawn(), (batch + 1) * 12u);
    }
    EXPECT_EQ(together, Draw(*whole));
  }
}

TEST(BatchStreamTest, ReadsAheadOnlyAsFarAsTheRing) {
  const auto data_set = std::make_shared<NumberedSet>(1000);
  const auto stream = MakeStream(data_set, {.batch_size = 10, .read_ahead = 3, .threads = 2});
  for (int wait = 0; wait < 60000 && data_set->reads < 30; ++wait) absl::SleepFor(absl::Milliseconds(1));
  EXPECT_EQ(data_set->reads, 30);
  absl::SleepFor(absl::Milliseconds(20));
  EXPECT_EQ(data_set->reads, 30);
  Draw(*stream);
  for (int wait = 0; wait < 60000 && data_set->reads < 40; ++wait) absl::SleepFor(absl::Milliseconds(1));
  EXPECT_EQ(data_set->reads, 40);
}

TEST(BatchStreamTest, AnErrorComesWithItsBatchAndStays) {
  const auto data_set = std::make_shared<NumberedSet>(40);
  data_set->broken_index = 25;
  const auto stream = MakeStream(data_set, {.batch_size = 10, .shuffle = false, .threads = 2});
  EXPECT_EQ(Draw(*stream)[0], 0);
  EXPECT_EQ(Draw(*stream)[0], 10);
  std::vector<float> room(20);
  for (int i = 0; i < 3; ++i) {
    EXPECT_THAT(stream->Next(room), FailsWith(absl::StatusCode::kDataLoss, "sample 25"));
    EXPECT_EQ(stream->samples_drawn(), 20u);
  }
  data_set->broken_index = -1;
  ASSERT_TRUE(stream->Seek(20).ok());
  EXPECT_EQ(Draw(*stream)[5], 25);
}

TEST(BatchStreamTest, AFileThatShrinksWhileItIsReadIsAnError) {
  const TemporaryFolder folder;
  std::vector<float> values(1000 * 2);
  std::iota(values.begin(), values.end(), 0.0f);
  ASSERT_TRUE(WriteNpy(folder / "a.npy", MakeArray<float>({1000, 2}, values)).ok());
  const auto stream =
      MakeStream(OpenDataSet(folder / "a.npy").value(), {.batch_size = 10, .shuffle = false, .read_ahead = 2});
  std::vector<float> room(20);
  ASSERT_TRUE(stream->Next(room).ok());
  std::filesystem::resize_file(folder / "a.npy", 128 + 500 * 8);
  absl::Status status;
  int batches = 1;
  while (status.ok() && batches < 100) {
    status = stream->Next(room);
    batches += status.ok();
  }
  EXPECT_THAT(status, FailsWith(absl::StatusCode::kOutOfRange, "a.npy"));
  EXPECT_EQ(batches, 50);
}

TEST(BatchStreamTest, AReadThatHangsEndsInATimeOut) {
  const auto data_set = std::make_shared<NumberedSet>(40);
  data_set->closed = true;
  const auto stream = MakeStream(data_set, {.batch_size = 10, .shuffle = false, .timeout = absl::Milliseconds(20)});
  std::vector<float> room(20);
  EXPECT_THAT(stream->Next(room), FailsWith(absl::StatusCode::kDeadlineExceeded, "position 0"));
  EXPECT_THAT(stream->Seek(10), FailsWith(absl::StatusCode::kDeadlineExceeded, "numbers"));
  EXPECT_THAT(stream->Next(room), FailsWith(absl::StatusCode::kFailedPrecondition, "Seek"));
  data_set->closed = false;
  for (int attempt = 0; attempt < 100 && !stream->Seek(10).ok(); ++attempt) {
  }
  for (int attempt = 0; attempt < 100 && !stream->Next(room).ok(); ++attempt) {
  }
  EXPECT_EQ(room[0], 10.0f);
}

TEST(BatchStreamTest, StopsInTheMiddleOfReading) {
  for (int i = 0; i < 50; ++i) {
    const auto stream = MakeStream(std::make_shared<NumberedSet>(100000), {.batch_size = 50000, .threads = 1 + i % 3});
    if (i % 2 == 0) {
      ASSERT_TRUE(stream->Seek(static_cast<uint64_t>(i)).ok());
    }
  }
}

TEST(BatchStreamTest, RefusesOptionsThatDoNotFit) {
  const auto data_set = std::make_shared<NumberedSet>(40);
  const auto create = [&](const BatchStreamOptions& options) {
    return BatchStream::Create(data_set, options).status();
  };
  EXPECT_THAT(create({.batch_size = 10, .world_size = 3}), FailsWith(kInvalid, "10 samples"));
  EXPECT_THAT(create({.batch_size = 0}), FailsWith(kInvalid, "0 samples"));
  EXPECT_THAT(create({.rank = 2, .world_size = 2}), FailsWith(kInvalid, "rank 2 of 2"));
  EXPECT_THAT(create({.read_ahead = 0}), FailsWith(kInvalid, "read_ahead is 0"));
  EXPECT_THAT(create({.threads = 0}), FailsWith(kInvalid, "threads is 0"));
  EXPECT_THAT(create({.batch_size = 41, .drop_tail = true}), FailsWith(kInvalid, "skip every sample"));
  EXPECT_THAT(create({.batch_size = INT64_MAX / 2}), FailsWith(kInvalid, "64-bit"));
  const auto stream = MakeStream(data_set, {.batch_size = 10});
  std::vector<float> room(19);
  EXPECT_THAT(stream->Next(room), FailsWith(kInvalid, "19 values"));
}

}  // namespace
}  // namespace gantry
