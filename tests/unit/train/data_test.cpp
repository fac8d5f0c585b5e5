#include "qalora/train/data.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
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
    std::vector<int> lengths;
    for (int i = 0; i < 23; ++i) lengths.push_back(4 + i % 5);
    write_lengths(file(), lengths);
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

  // Writes records of these lengths, record i made of ids i + 10 behind an uncounted 1.
  void write_lengths(const std::string& path, const std::vector<int>& lengths) const {
    std::ofstream out(path);
    for (size_t i = 0; i < lengths.size(); ++i) {
      std::string ids = "[1", labels = "[-100";
      for (int t = 1; t < lengths[i]; ++t) {
        ids += message(",", i + 10);
        labels += message(",", i + 10);
      }
      out << "{\"input_ids\": " << ids << "], \"labels\": " << labels << "]}\n";
    }
  }

  // Tokens of padding in the first `steps` steps.
  static int64_t padding(const TrainingData& data, int64_t steps) {
    int64_t result = 0;
    for (int64_t step = 0; step < steps; ++step) {
      for (const text::Batch& batch : data.step(step)) result += batch.rows() * batch.length() - batch.real_tokens;
    }
    return result;
  }

  // The rows of an epoch in order, by their record; batch_size 1.
  static std::vector<int64_t> epoch_order(const TrainingData& data, int64_t epoch, int64_t count) {
    std::vector<int64_t> order;
    for (int64_t step = epoch * count; step < (epoch + 1) * count; ++step)
      order.push_back(*records(data, step).begin());
    return order;
  }

  // The DataError that these held-out lines cause names this place.
  void expect_bad_held_out(const std::string& lines, const std::string& place) {
    const std::string path = dir_ / "held.jsonl";
    std::ofstream(path) << lines;
    TrainConfig c = config();
    c.eval_data = path;
    try {
      const TrainingData data(c, nullptr, 100);
      FAIL() << "accepted: " << lines;
    } catch (const DataError& error) {
      EXPECT_NE(std::string(error.what()).find(place), std::string::npos) << error.what();
    }
  }

  // Which records step `step` is made of, by the ids in it.
  static std::multiset<int64_t> records(const TrainingData& data, int64_t step) {
    std::multiset<int64_t> result;
    for (const text::Batch& batch : data.step(step)) {
      for (const auto& [begin, end] : batch.segments)
        result.insert(batch.input_ids.reshape({-1})[begin + 1].item<int64_t>() - 10);
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
  TrainConfig one = config();
  one.batch_size = one.micro_batch_size = 1;  // so that a step is a record and 23 steps are an epoch
  const TrainingData single(one, nullptr, 100);
  std::vector<int64_t> every(23);
  for (int64_t i = 0; i < 23; ++i) every[i] = i;
  std::vector<std::vector<int64_t>> orders;
  for (int64_t epoch = 0; epoch < 3; ++epoch) {
    orders.push_back(epoch_order(single, epoch, 23));
    EXPECT_TRUE(std::is_permutation(every.begin(), every.end(), orders.back().begin(), orders.back().end()))
        << "epoch " << epoch;
    EXPECT_NE(orders.back(), every);
  }
  EXPECT_NE(orders[0], orders[1]);
  EXPECT_NE(orders[1], orders[2]);
  const TrainingData data(config(), nullptr, 100), again(config(), nullptr, 100);
  EXPECT_EQ(records(again, 17), records(data, 17));  // without having seen the steps before
  TrainConfig other = config();
  other.seed = 43;
  EXPECT_NE(records(TrainingData(other, nullptr, 100), 0), records(data, 0));
}

TEST_F(DataTest, PackedRowsHoldEverythingAndKeepSegmentsApart) {
  TrainConfig c = config();
  c.packing = true;
  const TrainingData data(c, nullptr, 100);
  // 23 records of 4..8 tokens fill about nine rows of 16: the first two steps of four rows and the third are the epoch
  // and more.
  std::multiset<int64_t> seen;
  bool several = false;
  for (int64_t step = 0; step < 3; ++step) {
    for (const text::Batch& batch : data.step(step)) {
      EXPECT_EQ(batch.length(), 16);
      several |= batch.segments.size() > static_cast<size_t>(batch.rows());
      for (const auto& [begin, end] : batch.segments) {
        EXPECT_EQ(batch.positions.reshape({-1})[begin].item<int64_t>(), 0);
        EXPECT_EQ(batch.input_ids.reshape({-1})[begin].item<int64_t>(), 1);
        seen.insert(batch.input_ids.reshape({-1})[begin + 1].item<int64_t>() - 10);
      }
    }
  }
  EXPECT_TRUE(several);
  for (int64_t record = 0; record < 23; ++record) EXPECT_GE(seen.count(record), 1u) << record;
  EXPECT_LE(data.epochs(3), 2.0);  // else the count above would say little
}

TEST_F(DataTest, HeldOutExamplesAreNotTrainedOn) {
  TrainConfig c = config();
  c.eval_examples = 5;
  const TrainingData data(c, nullptr, 100);
  std::set<int64_t> held;
  for (int64_t i = 0; i < data.held_out_batches(); ++i) {
    const text::Batch batch = data.held_out_batch(i);
    EXPECT_LE(batch.rows(), c.micro_batch_size);
    for (const auto& [begin, end] : batch.segments)
      held.insert(batch.input_ids.reshape({-1})[begin + 1].item<int64_t>() - 10);
  }
  EXPECT_EQ(held.size(), 5u);
  EXPECT_EQ(data.report().examples, 18);
  int64_t tokens = 0;
  for (int64_t record = 0; record < 23; ++record) tokens += held.contains(record) ? 0 : 4 + record % 5;
  EXPECT_EQ(data.report().tokens, tokens);  // of what is trained on, not of the whole file
  EXPECT_EQ(data.report().trained_tokens, tokens - 18);
  for (int64_t step = 0; step < 18; ++step) {
    for (const int64_t record : records(data, step)) EXPECT_FALSE(held.contains(record));
  }
}

TEST_F(DataTest, CutsAreCountedAndEmptyTargetsLeftOut) {
  TrainConfig c = config();
  c.sequence_length = 5;
  const TrainingData data(c, nullptr, 100);
  EXPECT_GT(data.report().cut.examples, 0);
  EXPECT_EQ(data.report().longest, 5);
  EXPECT_EQ(cut_by(data.report(), c), message(" (", data.report().cut.examples, " by sequence_length 5)"));
  EXPECT_EQ(data.report().cut_sequence.tokens, data.report().cut.tokens);
  std::ofstream(file(), std::ios::app) << "{\"input_ids\": [1, 2], \"labels\": [-100, -100]}\n";
  const TrainingData with_empty(config(), nullptr, 100);
  EXPECT_EQ(with_empty.report().without_target, 1);
  EXPECT_EQ(with_empty.report().examples, 23);
}

TEST_F(DataTest, EachLimitIsNamedWithWhatItCut) {
  DataReport report;
  TrainConfig c = config();
  EXPECT_EQ(cut_by(report, c), "");
  c.source_length = 20, c.target_length = 100;
  report.cut_source = {1200, 5000};
  report.cut_target = {2, 9};
  EXPECT_EQ(cut_by(report, c), " (1,200 by source_length 20, 2 by target_length 100)");
}

TEST_F(DataTest, BadIdsNameTheirLine) {
  try {
    const TrainingData data(config(), nullptr, 20);
    FAIL() << "an id beyond the vocabulary was accepted";
  } catch (const DataError& error) {
    EXPECT_NE(std::string(error.what()).find("data.jsonl:11"), std::string::npos) << error.what();
  }
}

TEST_F(DataTest, BadIdsAreSkippedAndCountedWhenBadRecordsAre) {
  TrainConfig c = config();
  c.skip_bad_records = true;
  c.shuffle = false;
  std::ofstream(file(), std::ios::app) << "{\"input_ids\": [1, 2], \"labels\": [1, 99]}\nnonsense\n";
  const TrainingData data(c, nullptr, 20);  // records 10 and later hold ids from 20
  EXPECT_EQ(data.report().bad_records, 15);
  EXPECT_EQ(data.report().records, 10);
  EXPECT_EQ(data.report().examples, 10);
  ASSERT_EQ(data.bad().size(), 15u);
  const auto bad_in = [&](int64_t line) {
    return std::count_if(data.bad().begin(), data.bad().end(),
                         [&](const text::BadRecord& bad) { return bad.line == line; });
  };
  EXPECT_EQ(bad_in(10), 0);
  for (int64_t line = 11; line <= 25; ++line) EXPECT_EQ(bad_in(line), 1) << line;
  EXPECT_EQ(records(data, 2), (std::multiset<int64_t>{8, 9, 0, 1}));  // the next epoch begins behind the ten
  c.eval_data = file();
  EXPECT_EQ(TrainingData(c, nullptr, 20).report().held_out, 10);
}

TEST_F(DataTest, ALongTextIsTrainedWhole) {
  REQUIRE_SHARED("data/tokenizer/llama2.tokenizer.model");
  test::write_file(dir_ / "tokenizer.model",
                   test::read_file(test::shared_dir() / "data/tokenizer/llama2.tokenizer.model"));
  const text::Tokenizer tokenizer(dir_.path());
  std::string text = "Once";
  for (int i = 0; i < 400; ++i) text += message(" upon a time, ", i, " times,");
  test::write_file(dir_ / "a.txt", text + "\n\nshort\n");
  TrainConfig c = config();
  c.data = dir_ / "a.txt";
  c.data_format = "text";
  c.batch_size = c.micro_batch_size = 1;
  const TrainingData data(c, &tokenizer, 32000);
  const int64_t total = std::ssize(text::text_ids(tokenizer, text)), windows = (total - 1 + 14) / 15;
  EXPECT_EQ(data.report().records, 2);
  EXPECT_EQ(data.report().split_texts, 1);
  EXPECT_EQ(data.report().windows, windows);
  EXPECT_EQ(data.report().examples, windows + 1);
  EXPECT_EQ(data.report().cut.examples, 0);
  EXPECT_EQ(data.report().longest, 16);
  // An epoch predicts every token but the first of each text once, in whatever order.
  std::multiset<int64_t> targets, expected;
  for (int64_t step = 0; step < data.report().examples; ++step) {
    const text::Batch batch = data.step(step).front();
    for (int64_t t = 0; t < batch.length(); ++t) {
      const int64_t target = batch.targets[0][t].item<int64_t>();
      if (target != text::kIgnore) targets.insert(target);
    }
  }
  for (const std::string& part : {text, std::string("short")}) {
    const std::vector<int64_t> ids = text::text_ids(tokenizer, part);
    expected.insert(ids.begin() + 1, ids.end());
  }
  EXPECT_EQ(targets, expected);
  EXPECT_EQ(data.report().trained_tokens, std::ssize(expected));
  c.eval_data = c.data;
  EXPECT_EQ(TrainingData(c, &tokenizer, 32000).report().held_out, windows + 1);
}

TEST_F(DataTest, GroupingByLengthSortsWithinASpan) {
  std::vector<int> lengths;
  for (int i = 0; i < 40; ++i) lengths.push_back(4 + (i * 23) % 57);  // 4..60 tokens
  write_lengths(file(), lengths);
  TrainConfig c = config();
  c.sequence_length = 64;
  const auto descends = [](const TrainingData& data) {
    int64_t last = 1000;
    bool result = true;
    for (int64_t step = 0; step < 10; ++step) {
      for (const text::Batch& batch : data.step(step)) {
        result = result && batch.length() <= last;
        last = batch.length();
      }
    }
    return result;
  };
  const TrainingData mixed(c, nullptr, 100);
  c.group_by_length = true;
  const TrainingData grouped(c, nullptr, 100);
  EXPECT_TRUE(descends(grouped));
  EXPECT_FALSE(descends(mixed));  // must differ
  EXPECT_LT(padding(grouped, 10), padding(mixed, 10) / 2);
}

TEST_F(DataTest, HeldOutFileIsCheckedBeforeTheRun) {
  const std::string good = "{\"input_ids\": [1, 5, 6], \"labels\": [-100, 5, 6]}\n";
  expect_bad_held_out(good + "{\"input_ids\": [1, 5], \"labels\": [-100, 99999]}\n", "held.jsonl:2: label 99999");
  expect_bad_held_out(good + "{\"input_ids\": [1, 100], \"labels\": [-100, 100]}\n", "held.jsonl:2: token id 100");
  expect_bad_held_out("{\"input_ids\": [1, 5], \"labels\": [-100, -100]}\n", "held.jsonl: none of its 1 records");
  const std::string path = dir_ / "held.jsonl";
  std::ofstream(path) << good << "{\"input_ids\": [1, 5], \"labels\": [-100, -100]}\n" << good << good;
  TrainConfig c = config();
  c.eval_data = path;
  const TrainingData data(c, nullptr, 100);
  EXPECT_EQ(data.report().held_out, 3);  // the one without a target has nothing to score
  EXPECT_EQ(data.held_out_batches(), 2);
  EXPECT_EQ(data.held_out_batch(0).trained_tokens + data.held_out_batch(1).trained_tokens, 6);
}

TEST_F(DataTest, HeldOutTextWithoutATokenizerIsRefused) {
  const std::string path = dir_ / "held.jsonl";
  std::ofstream(path) << "{\"instruction\": \"a\", \"output\": \"b\"}\n";
  TrainConfig c = config();
  c.data_format = "auto";
  c.model = "some-model";
  EXPECT_NO_THROW(TrainingData(c, nullptr, 100));  // the training file's ids need none
  c.eval_data = path;
  try {
    const TrainingData data(c, nullptr, 100);
    FAIL() << "text was accepted without a tokenizer";
  } catch (const UserError& error) {
    EXPECT_NE(std::string(error.what()).find("held.jsonl"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace qalora::train
