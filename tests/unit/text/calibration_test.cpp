#include "qalora/text/calibration.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "qalora/core/error.h"
#include "unit/text/tiny_tokenizer.h"

namespace qalora::text {
namespace {

using test::error_of;
using test::TempDir;
using test::write_file;

constexpr int64_t kVocab = 1000;

// Records of ready-made ids: record i is `length` times the id i.
fs::path write_tokens(const TempDir& dir, int64_t records, int64_t length,
                      const std::function<std::string(int64_t)>& task = {}) {
  std::string lines;
  for (int64_t i = 0; i < records; ++i) {
    lines += "{\"input_ids\": [";
    for (int64_t k = 0; k < length; ++k) lines += (k > 0 ? ", " : "") + std::to_string(i);
    lines += "]" + (task ? ", \"task\": \"" + task(i) + "\"" : "") + "}\n";
  }
  write_file(dir / "tokens.jsonl", lines);
  return dir / "tokens.jsonl";
}

CalibrationOptions rows_of(int64_t samples, int64_t length, uint64_t seed = 1) {
  CalibrationOptions options;
  options.samples = samples;
  options.sequence_length = length;
  options.seed = seed;
  return options;
}

std::map<int64_t, int64_t> count(const Calibration& calibration) {
  std::map<int64_t, int64_t> counts;
  for (const auto& row : calibration.rows) {
    for (const int64_t id : row.ids) ++counts[id];
  }
  return counts;
}

TEST(Calibration, FillsRowsToTheLastTokenAndStartsASegmentARecord) {
  TempDir dir;
  const Calibration got = read_calibration(write_tokens(dir, 40, 6), nullptr, kVocab, rows_of(4, 16));
  ASSERT_EQ(got.rows.size(), 4u);
  EXPECT_EQ(got.tokens, 64);
  EXPECT_EQ(got.records, 12);  // 6 + 6 + the first 4 of a third
  EXPECT_EQ(got.all_records, 40);
  std::set<int64_t> seen;
  for (const auto& row : got.rows) {
    EXPECT_EQ(row.ids.size(), 16u);
    EXPECT_EQ(row.starts, (std::vector<int64_t>{0, 6, 12}));
    for (const int64_t start : row.starts) {
      EXPECT_TRUE(seen.insert(row.ids[start]).second) << "a record was drawn twice";
      const int64_t end = std::min<int64_t>(start + 6, 16);
      EXPECT_TRUE(std::all_of(row.ids.begin() + start, row.ids.begin() + end,
                              [&](int64_t id) { return id == row.ids[start]; }));
    }
  }
}

TEST(Calibration, FollowsFromTheSeed) {
  TempDir dir;
  const fs::path file = write_tokens(dir, 40, 6);
  const auto digest = [&](uint64_t seed) {
    return read_calibration(file, nullptr, kVocab, rows_of(4, 16, seed)).digest();
  };
  EXPECT_EQ(digest(1), digest(1));
  EXPECT_NE(digest(1), digest(2));
  EXPECT_NE(digest(1), read_calibration(file, nullptr, kVocab, rows_of(4, 17)).digest());
}

TEST(Calibration, TakesATaskAsOftenAsAnyOther) {
  TempDir dir;
  // 4 records of a task among 60 of another: in turn until the small one is used up.
  const auto task = [](int64_t i) { return i % 16 == 0 ? std::string("rare") : std::string("common"); };
  const Calibration balanced = read_calibration(write_tokens(dir, 64, 8, task), nullptr, kVocab, rows_of(1, 64));
  EXPECT_EQ(balanced.tasks, 2);
  const auto rare = [](const Calibration& calibration) {
    const auto counts = count(calibration);
    return std::count_if(counts.begin(), counts.end(), [](const auto& entry) { return entry.first % 16 == 0; });
  };
  EXPECT_EQ(rare(balanced), 4);
  // Must differ: the same records without a task are drawn as they come.
  const Calibration plain = read_calibration(write_tokens(dir, 64, 8), nullptr, kVocab, rows_of(1, 64));
  EXPECT_EQ(plain.tasks, 0);
  EXPECT_LT(rare(plain), 4);
}

TEST(Calibration, AShortFileGivesAllItHas) {
  TempDir dir;
  const Calibration got = read_calibration(write_tokens(dir, 5, 6), nullptr, kVocab, rows_of(10, 16));
  ASSERT_EQ(got.rows.size(), 2u);
  EXPECT_EQ(got.rows[1].ids.size(), 12u);  // 16 + 12: the third record lost two tokens at the border
  EXPECT_EQ(got.tokens, 28);
}

TEST(Calibration, BadRecordsThatAreLeftOutAreSaid) {
  TempDir dir;
  write_file(dir / "cut.jsonl", "{\"input_ids\": [1, 2]}\n{\"input_ids\": [1,");
  CalibrationOptions options = rows_of(1, 2);
  options.skip_bad_records = true;
  testing::internal::CaptureStderr();
  EXPECT_EQ(read_calibration(dir / "cut.jsonl", nullptr, kVocab, options).bad_records, 1);
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_NE(said.find("1 bad record is left out, the first in line 2: "), std::string::npos) << said;
  EXPECT_NE(said.find("is probably a part of one"), std::string::npos) << said;
}

TEST(Calibration, RecordsGoThroughTheTemplate) {
  TempDir dir;
  test::write_tiny_tokenizer(dir.path());
  const Tokenizer tokenizer(dir.path());
  write_file(dir / "a.json", R"([{"instruction": "Say it", "input": "", "output": "hello"}])");
  CalibrationOptions options = rows_of(1, 1000);
  const Calibration alpaca = read_calibration(dir / "a.json", &tokenizer, kVocab, options);
  const Dataset dataset(dir / "a.json", DataFormat::kAuto, false);
  EXPECT_EQ(alpaca.rows.at(0).ids, make_example(tokenizer, dataset.record(0), {}).input_ids);
  options.kind = TemplateKind::kNone;
  EXPECT_NE(read_calibration(dir / "a.json", &tokenizer, kVocab, options).rows.at(0).ids, alpaca.rows.at(0).ids);
}

TEST(Calibration, LongTextsGiveOneWindowEachBeforeAnyGivesTwo) {
  TempDir dir;
  test::write_tiny_tokenizer(dir.path());
  const Tokenizer tokenizer(dir.path());
  std::string lines;
  for (const char* letter : {"q", "w", "z"}) {
    std::string text;
    for (int i = 0; i < 200; ++i) text += letter;
    lines += "{\"text\": \"" + text + "\"}\n";
  }
  write_file(dir / "texts.jsonl", lines);
  const Calibration three = read_calibration(dir / "texts.jsonl", &tokenizer, kVocab, rows_of(3, 20));
  EXPECT_EQ(three.records, 3);
  ASSERT_EQ(three.rows.size(), 3u);
  // Every window but the last of a text is full, so that each row has one letter, or the end of one text and the start
  // of another.
  std::set<int64_t> letters;
  for (const auto& row : three.rows) letters.insert(row.ids[5]);
  EXPECT_EQ(letters.size(), 3u);
  const Calibration more = read_calibration(dir / "texts.jsonl", &tokenizer, kVocab, rows_of(12, 20));
  EXPECT_EQ(more.rows.size(), 12u);
  const Calibration all = read_calibration(dir / "texts.jsonl", &tokenizer, kVocab, rows_of(1000, 20));
  EXPECT_LT(all.rows.size(), 40u);
  EXPECT_GT(all.tokens, 560);  // of about 609: little is lost at borders
}

TEST(Calibration, RefusesWhatTheModelCannotRead) {
  TempDir dir;
  const fs::path file = write_tokens(dir, 40, 6);
  EXPECT_CONTAINS(error_of<DataError>([&] { read_calibration(file, nullptr, 10, rows_of(4, 16)); }),
                  "outside the model's vocabulary of 10");
  write_file(dir / "a.json", R"([{"instruction": "Say it", "input": "", "output": "hello"}])");
  EXPECT_CONTAINS(error_of<UserError>([&] { read_calibration(dir / "a.json", nullptr, kVocab, rows_of(1, 8)); }),
                  "needs a tokenizer");
  EXPECT_CONTAINS(error_of<UserError>([&] { read_calibration(file, nullptr, kVocab, rows_of(0, 8)); }), "0 rows");
}

}  // namespace
}  // namespace qalora::text
