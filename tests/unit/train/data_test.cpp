#include "qalora/train/data.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <fstream>
#include <set>

#include "qalora/core/error.h"
#include "support/support.h"

namespace qalora::train {
namespace {

class DataTest : public ::testing::Test {
 protected:
  // Record i has 4 + i % 5 tokens that all are i + 10; the first is not counted.
  void SetUp() override {
    std::ofstream out(file());
    for (int i = 0; i < 23; ++i) {
      std::string ids = "[1", labels = "[-100";
      for (int t = 0; t < 3 + i % 5; ++t) {
        ids += "," + std::to_string(i + 10);
        labels += "," + std::to_string(i + 10);
      }
      out << "{\"input_ids\": " << ids << "], \"labels\": " << labels << "]}\n";
    }
  }

  std::string file() const { return dir_ / "data.jsonl"; }

  TrainConfig config() const {
    TrainConfig c;
    c.data = file();
    c.data_format = "tokens";
    c.batch_size = 4;
    c.micro_batch_size = 2;
    c.sequence_length = 16;
    return c;
  }

  // Which records step `step` is made of, by the ids in it.
  static std::multiset<int64_t> records(const TrainingData& data, int64_t step) {
    std::multiset<int64_t> result;
    for (const text::Batch& batch : data.step(step)) {
      for (const auto& [begin, end] : batch.segments) result.insert(batch.input_ids.reshape({-1})[begin + 1].item<int64_t>() - 10);
    }
    return result;
  }

  test::TempDir dir_;
};

TEST_F(DataTest, FileOrderWithoutShuffle) {
  TrainConfig c = config();
  c.shuffle = false;
  const TrainingData data(c, nullptr, 100);
  EXPECT_EQ(records(data, 0), (std::multiset<int64_t>{0, 1, 2, 3}));
  EXPECT_EQ(records(data, 5), (std::multiset<int64_t>{20, 21, 22, 0}));  // the next epoch begins inside a step
  EXPECT_EQ(data.lines(1), (std::vector<int64_t>{5, 6, 7, 8}));
  EXPECT_DOUBLE_EQ(data.epochs(23), 4.0);
}

TEST_F(DataTest, EveryEpochSeesEachExampleOnceAndStepsAreAFunctionOfTheirNumber) {
  const TrainingData data(config(), nullptr, 100), again(config(), nullptr, 100);
  std::multiset<int64_t> first, second;
  for (int64_t step = 0; step < 23; ++step) {
    for (const int64_t record : records(data, step)) (step * 4 < 46 ? first : second).insert(record);
  }
  for (int64_t record = 0; record < 23; ++record) {
    EXPECT_EQ(first.count(record) + second.count(record), 4u);
  }
  EXPECT_EQ(records(again, 17), records(data, 17));  // without having seen the steps before
  TrainConfig other = config();
  other.seed = 43;
  EXPECT_NE(records(TrainingData(other, nullptr, 100), 0), records(data, 0));
}

TEST_F(DataTest, PackedRowsHoldEverythingAndKeepSegmentsApart) {
  TrainConfig c = config();
  c.packing = true;
  const TrainingData data(c, nullptr, 100);
  const text::Batch batch = data.step(0)[0];
  EXPECT_EQ(batch.length(), 16);
  EXPECT_GT(batch.segments.size(), static_cast<size_t>(batch.rows()));
  for (const auto& [begin, end] : batch.segments) {
    EXPECT_EQ(batch.positions.reshape({-1})[begin].item<int64_t>(), 0);
    EXPECT_EQ(batch.input_ids.reshape({-1})[begin].item<int64_t>(), 1);
  }
}

TEST_F(DataTest, HeldOutExamplesAreNotTrainedOn) {
  TrainConfig c = config();
  c.eval_examples = 5;
  const TrainingData data(c, nullptr, 100);
  std::set<int64_t> held;
  for (const text::Batch& batch : data.held_out()) {
    for (const auto& [begin, end] : batch.segments) held.insert(batch.input_ids.reshape({-1})[begin + 1].item<int64_t>() - 10);
  }
  EXPECT_EQ(held.size(), 5u);
  EXPECT_EQ(data.report().examples, 18);
  for (int64_t step = 0; step < 18; ++step) {
    for (const int64_t record : records(data, step)) EXPECT_FALSE(held.contains(record));
  }
}

TEST_F(DataTest, CutsAreCountedAndEmptyTargetsLeftOut) {
  TrainConfig c = config();
  c.sequence_length = 5;
  const TrainingData data(c, nullptr, 100);
  EXPECT_GT(data.report().cut, 0);
  EXPECT_EQ(data.report().longest, 5);
  std::ofstream(file(), std::ios::app) << "{\"input_ids\": [1, 2], \"labels\": [-100, -100]}\n";
  const TrainingData with_empty(config(), nullptr, 100);
  EXPECT_EQ(with_empty.report().without_target, 1);
  EXPECT_EQ(with_empty.report().examples, 23);
}

TEST_F(DataTest, BadIdsNameTheirLine) {
  try {
    const TrainingData data(config(), nullptr, 20);
    FAIL() << "an id beyond the vocabulary was accepted";
  } catch (const DataError& error) {
    EXPECT_NE(std::string(error.what()).find("data.jsonl:11"), std::string::npos) << error.what();
  }
}

TEST_F(DataTest, GroupingByLengthSortsWithinASpan) {
  TrainConfig c = config();
  c.group_by_length = true;
  const TrainingData data(c, nullptr, 100);
  int64_t last = 1000;
  for (int64_t step = 0; step < 5; ++step) {
    for (const text::Batch& batch : data.step(step)) {
      EXPECT_LE(batch.length(), last);
      last = batch.length();
    }
  }
}

}  // namespace
}  // namespace qalora::train
