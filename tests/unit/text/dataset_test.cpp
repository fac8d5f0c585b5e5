#include "qalora/text/dataset.h"

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <nlohmann/json.hpp>

#include "dataset_files.h"
#include "qalora/text/template.h"

namespace qalora::text {
namespace {

using namespace std::string_literals;  // "a\0b"s keeps its NUL
using nlohmann::json;

TEST_F(DatasetFiles, TheSameRecordsInEveryContainer) {
  const std::string array =
      "[\n  {\"instruction\": \"a, \\\"b\\\"\", \"input\": \"x\\ny\", \"output\": \"c\"},\n  {\"instruction\": \"d\",\n   "
      "\"output\": \"e\"}\n]\n";
  const std::string lines =
      "{\"instruction\": \"a, \\\"b\\\"\", \"input\": \"x\\ny\", \"output\": \"c\"}\n\n{\"instruction\": \"d\", \"output\": "
      "\"e\"}";
  const std::string csv = "instruction,input,output\n\"a, \"\"b\"\"\",\"x\ny\",c\nd,,e\n";
  const Dataset sets[] = {open("a.json", array), open("a.jsonl", lines), open("a.csv", csv)};
  const int64_t second_line[] = {3, 3, 4};
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(sets[i].format(), DataFormat::kAlpaca);
    EXPECT_TRUE(sets[i].detected());
    ASSERT_EQ(sets[i].size(), 2);
    EXPECT_EQ(sets[i].record(0).instruction, "a, \"b\"");
    EXPECT_EQ(sets[i].record(0).input, "x\ny");
    EXPECT_EQ(sets[i].record(0).output, "c");
    EXPECT_EQ(sets[i].record(1).instruction, "d");
    EXPECT_EQ(sets[i].record(1).input, "");
    EXPECT_EQ(sets[i].record(1).output, "e");
    EXPECT_EQ(sets[i].line(1), second_line[i]);
    EXPECT_EQ(sets[i].bad().size(), 0u);
  }
  EXPECT_NE(sets[0].fingerprint(), sets[1].fingerprint());
  EXPECT_EQ(sets[0].fingerprint(), Dataset(dir_ / "a.json", DataFormat::kAlpaca, false).fingerprint());
}

TEST_F(DatasetFiles, ByteOrderMarkAndCarriageReturns) {
  const std::string good = kGood;
  EXPECT_EQ(open("a.jsonl", "\xef\xbb\xbf" + good + "\r\n\r\n" + good + "\r\n").size(), 2);
  EXPECT_EQ(open("a.json", "\xef\xbb\xbf\r\n[\r\n" + good + ",\r\n" + good + "]\r\n").line(1), 4);
  const Dataset csv = open("a.csv", "\xef\xbb\xbfinstruction,output\r\na,b\r\n\r\n\"c\",\"d\"\r\n");
  EXPECT_EQ(csv.size(), 2);
  EXPECT_EQ(csv.record(0).output, "b");
  EXPECT_EQ(csv.record(1).output, "d");
  EXPECT_EQ(open("a.txt", "\xef\xbb\xbfone\r\ntwo\r\n\r\nthree\r\n").record(0).text, "one\r\ntwo");
}

TEST_F(DatasetFiles, ParagraphsOfAText) {
  const Dataset data = open("a.txt", "\n\nfirst\nstill first  \n \nsecond\n\n\n[not json\n");
  ASSERT_EQ(data.size(), 3);
  EXPECT_EQ(data.format(), DataFormat::kText);
  EXPECT_EQ(data.record(0).text, "first\nstill first");
  EXPECT_EQ(data.record(1).text, "second");
  EXPECT_EQ(data.line(1), 6);
  EXPECT_EQ(data.record(2).text, "[not json");
}

TEST_F(DatasetFiles, AForcedFormatWins) {
  const std::string line = R"({"instruction": "i", "input": "in", "output": "o", "text": "whole"})";
  EXPECT_EQ(open("a.jsonl", line).format(), DataFormat::kAlpaca);
  const Dataset text = open("a.jsonl", line, false, DataFormat::kText);
  EXPECT_EQ(text.record(0).text, "whole");
  EXPECT_FALSE(text.detected());
  EXPECT_EQ(open("a.jsonl", line, false, DataFormat::kLongForm).record(0).instruction, "in");
  EXPECT_CONTAINS(error("a.jsonl", line, DataFormat::kFlan), "'inputs' is missing");
}

TEST_F(DatasetFiles, NamesAreReadWithoutCaseAndAForcedFormatChoosesTheContainer) {
  EXPECT_EQ(open("a.TXT", "one\n\ntwo\n").size(), 2);
  EXPECT_EQ(open("a.CSV", "instruction,output\na,b\n").record(0).output, "b");
  EXPECT_EQ(open("a.md", "# Title\n\n[a link](b)\n", false, DataFormat::kText).size(), 2);
  EXPECT_EQ(open("b.md", "[a link](b)\n", false, DataFormat::kText).record(0).text, "[a link](b)");
  EXPECT_EQ(open("corpus", "one\n\ntwo\n", false, DataFormat::kText).size(), 2);
  EXPECT_CONTAINS(error("a.md", "# Title\n"), "data_format text");
  // JSON Lines under another name: plain text, with a warning, unless the format says otherwise.
  const std::string lines = std::string(kGood) + "\n" + kGood + "\n";
  EXPECT_EQ(open("lines.txt", lines, false, DataFormat::kAlpaca).size(), 2);
  testing::internal::CaptureStderr();
  EXPECT_EQ(open("lines.txt", lines).format(), DataFormat::kText);
  EXPECT_CONTAINS(testing::internal::GetCapturedStderr(), "begins with '{'");
}

TEST_F(DatasetFiles, ALongTextWithoutBlankLinesIsSeveralRecords) {
  std::string text;
  while (text.size() < (5 << 19)) text += "a line of the text\n";  // 2.5 MiB
  const Dataset data = open("a.txt", text + "\nlast\n");
  ASSERT_EQ(data.size(), 4);
  std::string whole;
  for (int i = 0; i < 3; ++i) {
    EXPECT_LE(data.record(i).text.size(), size_t{1} << 20);
    whole += data.record(i).text + "\n";
  }
  EXPECT_EQ(whole, text);
  EXPECT_EQ(data.record(3).text, "last");
}

TEST_F(DatasetFiles, TheFirstRecordDecidesForTheRest) {
  expect_bad_line(R"({"inputs": "q", "targets": "a"})", "'instruction' is missing");
  // A damaged first record decides nothing.
  const Dataset data = open("a.jsonl", std::string("{\"inputs\": \"q\", \"targets\": \"\"}\n") + kGood, /*skip=*/true);
  EXPECT_EQ(data.format(), DataFormat::kAlpaca);
  EXPECT_EQ(data.size(), 1);
}

TEST_F(DatasetFiles, AFileChangedMeanwhileIsNoticed) {
  const std::string content = std::string(kGood) + "\n" + kGood + "\n";
  const Dataset data = open("a.jsonl", content);
  EXPECT_EQ(data.record(1).output, "hi");
  const auto later = fs::last_write_time(dir_ / "a.jsonl") + std::chrono::seconds(5);
  fs::last_write_time(dir_ / "a.jsonl", later);
  EXPECT_CONTAINS(error_of<DataError>([&] { data.record(1); }),
                  "a.jsonl:2: the file was changed");  // nobody knows its hash
  write_file(dir_ / "a.jsonl", content.substr(0, 20));
  EXPECT_CONTAINS(error_of<DataError>([&] { data.record(1); }), "a.jsonl:2: the file was changed");
  fs::remove(dir_ / "a.jsonl");
  EXPECT_CONTAINS(error_of<DataError>([&] { data.record(0); }), "a.jsonl:1: the file was changed");
}

TEST_F(DatasetFiles, AFileThatWasOnlyTouchedIsTakenAsItIs) {
  const std::string content = std::string(kGood) + "\n" + kGood + "\n";
  const Dataset data = open("a.jsonl", content);
  data.fingerprint();
  const auto written = fs::last_write_time(dir_ / "a.jsonl");
  fs::last_write_time(dir_ / "a.jsonl", written + std::chrono::seconds(5));
  EXPECT_EQ(data.record(1).output, "hi");
  std::string other = content;
  other[content.find("hi\"")] = 'H';
  write_file(dir_ / "a.jsonl", other);  // as long as before
  fs::last_write_time(dir_ / "a.jsonl", written + std::chrono::seconds(9));
  EXPECT_CONTAINS(error_of<DataError>([&] { data.record(1); }), "a.jsonl:2: the file was changed");
}

TEST_F(DatasetFiles, ARecordOver64MiBIsBadAndTheRestIsRead) {
  const std::string huge(100 << 20, 'x');
  const Dataset lines =
      open("a.jsonl", std::string(kGood) + "\n{\"instruction\": \"a\", \"output\": \"" + huge + "\"}\n" + kGood, true);
  EXPECT_EQ(lines.size(), 2);
  ASSERT_EQ(lines.bad().size(), 1u);
  EXPECT_CONTAINS(lines.bad()[0].reason, "the limit is 67108864");
  const Dataset array = open(
      "a.json", std::string("[") + kGood + ",\n{\"instruction\": \"a\", \"output\": \"" + huge + "\"},\n" + kGood + "]",
      true);
  EXPECT_EQ(array.size(), 2);
  ASSERT_EQ(array.bad().size(), 1u);
  // Must differ: a long record below the limit is read.
  const Dataset long_one =
      open("a.jsonl", "{\"instruction\": \"a\", \"output\": \"" + huge.substr(0, 20 << 20) + "\"}");
  EXPECT_EQ(long_one.record(0).output.size(), size_t{20} << 20);
}

// By how many MB the peak memory of a child process grows while it runs `act`; mapped pages count too. A child, because
// the peak of this process is whatever an earlier test left.
int peak_growth_mb(const std::function<void()>& act) {
  const pid_t child = fork();
  if (child == 0) {
    rusage before{}, after{};
    getrusage(RUSAGE_SELF, &before);
    act();
    getrusage(RUSAGE_SELF, &after);
    _exit(static_cast<int>(std::min((after.ru_maxrss - before.ru_maxrss) / 1024, 250L)));
  }
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status));
  return WEXITSTATUS(status);
}

TEST_F(DatasetFiles, ALargeFileCostsItsIndexOnly) {
  const int64_t records = 20'000, filler = 8'000;
  const fs::path path = dir_ / "big.jsonl";
  {
    std::ofstream out(path, std::ios::binary);
    const std::string text(filler, 'y');
    for (int64_t i = 0; i < records; ++i)
      out << "{\"instruction\": \"number " << i << "\", \"output\": \"" << text << "\"}\n";
  }
  const Dataset data(path, DataFormat::kAuto, false);
  ASSERT_EQ(data.size(), records);
  EXPECT_EQ(data.record(records - 1).instruction, "number 19999");
  EXPECT_EQ(data.line(records - 1), records);
  // The walk gives its pages back every 32 MiB; besides there are the index (0.3 MB, twice while it grows) and one
  // record.
  EXPECT_LT(peak_growth_mb([&] { Dataset(path, DataFormat::kAuto, false).fingerprint(); }), 64);
  // Must differ: all 160 MB of the file, read without giving anything back.
  EXPECT_GT(peak_growth_mb([&] { sha256(MappedFile(path).bytes()); }), 128);
}

// Three changed bytes anywhere: some records are lost, nothing else happens.
TEST_F(DatasetFiles, ChangedBytesNeverCrashOrHang) {
  std::string lines, array = "[";
  for (int i = 0; i < 20; ++i) {
    const std::string record =
        R"({"instruction": "a \"b\"", "input": "\u00e9", "output": "c", "meta": [{"x": [1, 2]}]})";
    lines += record + "\n";
    array += (i > 0 ? ",\n" : "\n") + record;
  }
  const std::pair<const char*, std::string> files[] = {{"a.jsonl", lines},
                                                       {"a.json", array + "\n]\n"},
                                                       {"a.csv", "instruction,output\n\"a\nb\",c\n\"d\"\"e\",f\ng,h\n"},
                                                       {"a.txt", "one\n\ntwo\n\nthree\n"}};
  const std::string interesting = "\"\\{}[],\n\r:\0\xff"s;
  uint32_t state = 7;
  const auto next = [&] { return state = state * 1664525 + 1013904223, state >> 8; };
  for (const auto& [name, content] : files) {
    for (int round = 0; round < 250; ++round) {
      std::string damaged = content;
      for (int change = 0; change < 3; ++change)
        damaged[next() % damaged.size()] = interesting[next() % interesting.size()];
      try {
        const Dataset data = open(name, damaged, /*skip=*/true);
        for (int64_t i = 0; i < data.size(); ++i) data.record(i);
        EXPECT_GE(data.size() + std::ssize(data.bad()), 1);
      } catch (const DataError&) {
        continue;
      }
    }
  }
}

TEST_F(DatasetFiles, ReadsTheRealAlpacaFile) {
  REQUIRE_SHARED("data/instruct/alpaca_en_demo.json");
  const Dataset data(shared_dir() / "data/instruct/alpaca_en_demo.json", DataFormat::kAuto, false);
  const json whole = json::parse(read_file(shared_dir() / "data/instruct/alpaca_en_demo.json"));
  EXPECT_EQ(data.format(), DataFormat::kAlpaca);
  ASSERT_EQ(data.size(), std::ssize(whole));
  for (int64_t i = 0; i < data.size(); ++i) {
    const Record record = data.record(i);
    EXPECT_EQ(record.instruction, whole[i]["instruction"]);
    EXPECT_EQ(record.output, whole[i]["output"]);
  }
}

TEST_F(DatasetFiles, ReadsTheRealSeedTasks) {
  REQUIRE_SHARED("data/instruct/self_instruct_seed_tasks.jsonl");
  const fs::path path = shared_dir() / "data/instruct/self_instruct_seed_tasks.jsonl";
  const Dataset data(path, DataFormat::kAuto, false);
  EXPECT_EQ(data.format(), DataFormat::kSelfInstruct);
  std::ifstream lines(path);
  int64_t index = 0, number = 0;
  for (std::string line; std::getline(lines, line);) {
    ++number;
    const json task = json::parse(line);
    for (const json& instance : task["instances"]) {
      ASSERT_LT(index, data.size());
      EXPECT_EQ(data.record(index).output, instance["output"]);
      EXPECT_EQ(data.line(index++), number);
    }
  }
  EXPECT_EQ(index, data.size());
  EXPECT_GE(index, 175);
}

TEST_F(DatasetFiles, RealRecordsAsExamplesOfLlama) {
  REQUIRE_SHARED(kLlamaModel);
  REQUIRE_SHARED("data/instruct/alpaca_en_demo.json");
  copy_llama_tokenizer(dir_.path());
  const Tokenizer tokenizer(dir_.path());
  const Dataset data(shared_dir() / "data/instruct/alpaca_en_demo.json", DataFormat::kAuto, false);
  for (int64_t i = 0; i < data.size(); i += 9) {
    const Record record = data.record(i);
    const Example example = make_example(tokenizer, record, {});
    const std::string text = render_prompt(TemplateKind::kAlpaca, record.instruction, record.input) + record.output;
    EXPECT_EQ(tokenizer.decode(example.input_ids), text);
    EXPECT_EQ(example.input_ids, tokenizer.encode(text, {.add_bos = true, .add_eos = true}));
    EXPECT_EQ(example.labels.back(), tokenizer.eos_id());
  }
}

TEST_F(DatasetFiles, CsvReaderKeepsCellsAsTheyStand) {
  write_file(
      dir_ / "a.csv",
      "plain,\"quoted, with comma\",None\r\n\"two\nlines\",\"a \"\"b\"\"\", x \n\n,,\nend\"quote,\"\",\"tail\"x");
  std::vector<std::vector<std::string>> rows;
  std::vector<int64_t> lines;
  read_csv(dir_ / "a.csv", [&](std::vector<std::string>& cells, int64_t line) {
    rows.push_back(cells);
    lines.push_back(line);
  });
  EXPECT_EQ(rows, (std::vector<std::vector<std::string>>{{"plain", "quoted, with comma", "None"},
                                                         {"two\nlines", "a \"b\"", " x "},
                                                         {"", "", ""},
                                                         {"end\"quote", "", "tailx"}}));
  EXPECT_EQ(lines, (std::vector<int64_t>{1, 2, 5, 6}));
  write_file(dir_ / "b.csv", "a,b\n\"open");
  EXPECT_CONTAINS(error_of<DataError>([&] { read_csv(dir_ / "b.csv", [](auto&, int64_t) {}); }), "b.csv:2: a quote");
}

}  // namespace
}  // namespace qalora::text
