#include "qalora/text/dataset.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <nlohmann/json.hpp>

#include "qalora/core/error.h"
#include "qalora/text/template.h"
#include "tiny_tokenizer.h"

namespace qalora::text {
namespace {

using namespace qalora::test;
using namespace std::string_literals;  // "a\0b"s keeps its NUL
using nlohmann::json;

constexpr const char* kGood = R"({"instruction": "Say hi", "input": "", "output": "hi"})";

class DatasetFiles : public testing::Test {
 protected:
  Dataset open(const std::string& name, const std::string& content, bool skip = false,
               DataFormat format = DataFormat::kAuto) {
    write_file(dir_ / name, content);
    return Dataset(dir_ / name, format, skip);
  }
  // The message about a file that is refused; it names the file.
  std::string error(const std::string& name, const std::string& content, DataFormat format = DataFormat::kAuto) {
    const std::string what = error_of<DataError>([&] { open(name, content, false, format); });
    EXPECT_CONTAINS(what, (dir_ / name).string());
    return what;
  }
  // A good record, the bad one, a good one, as JSON Lines: refused with line 2 and the reason; with skipping two are
  // left.
  void expect_bad_line(const std::string& bad, const std::string& reason) {
    const std::string content = std::string(kGood) + "\n" + bad + "\n" + kGood + "\n";
    EXPECT_CONTAINS(error("a.jsonl", content), "a.jsonl:2: ");
    EXPECT_CONTAINS(error("a.jsonl", content), reason);
    EXPECT_CONTAINS(error("a.jsonl", content), "--skip-bad-records");
    const Dataset data = open("a.jsonl", content, /*skip=*/true);
    EXPECT_EQ(data.size(), 2);
    ASSERT_EQ(data.bad().size(), 1u);
    EXPECT_EQ(data.bad()[0].line, 2);
    EXPECT_CONTAINS(data.bad()[0].reason, reason);
    EXPECT_EQ(data.record(1).output, "hi");
    EXPECT_EQ(data.line(1), 3);
  }
  TempDir dir_;
};

TEST_F(DatasetFiles, TheSameRecordsInEveryContainer) {
  const std::string array =
      "[\n  {\"instruction\": \"a, \\\"b\\\"\", \"input\": \"x\\ny\", \"output\": \"c\"},\n  {\"instruction\": "
      "\"d\",\n   "
      "\"output\": \"e\"}\n]\n";
  const std::string lines =
      "{\"instruction\": \"a, \\\"b\\\"\", \"input\": \"x\\ny\", \"output\": \"c\"}\n\n{\"instruction\": \"d\", "
      "\"output\": "
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

TEST_F(DatasetFiles, EachBadRecordSaysWhy) {
  expect_bad_line(R"({"instruction": "a", "output": 5})", "'output' is number");
  expect_bad_line(R"({"instruction": "a", "output": null})", "'output' is null");
  expect_bad_line(R"({"instruction": "a", "output": ""})", "'output' is empty");
  expect_bad_line(R"({"instruction": "a", "output": " \n "})", "'output' is empty");
  expect_bad_line(R"({"instruction": "", "output": "b"})", "request is empty");
  expect_bad_line(R"({"instruction": "a"})", "'output' is missing");
  expect_bad_line(R"({"instruction": "a", "input": [], "output": "b"})", "'input' is array");
  expect_bad_line(R"({"instruction": "a", "output": "b", "output": "c"})", "'output' occurs twice");
  expect_bad_line(R"({"instruction": "a", "output": "b")", "not valid JSON");
  expect_bad_line(R"({"instruction": "a", "output": "b"} {})", "not valid JSON");
  expect_bad_line(R"(["instruction"])", "array; expected an object");
  expect_bad_line("nonsense", "not valid JSON: column 2");
  expect_bad_line("{\"instruction\": \"a\", \"output\": \"\xc3\x28\"}", "UTF-8");
  expect_bad_line(R"({"instruction": "a", "output": "\ud800 alone"})", "surrogate");
  expect_bad_line("{\"instruction\": \"a\", \"output\": \"n\0l\"}"s, "not valid JSON");
  expect_bad_line(R"({"instruction": "a", "output": "n\u0000l"})", "NUL character");
  expect_bad_line(R"({"messages": [{"role": "user", "role": "system", "content": "a"}]})", "'role' occurs twice");
}

TEST_F(DatasetFiles, DeepNestingIsRefusedNotFollowed) {
  const std::string deep(100'000, '[');
  expect_bad_line("{\"instruction\": \"a\", \"output\": " + deep, "nested deeper than 64");
  const std::string array = "[{\"instruction\": " + deep + "},\n" + kGood + "]";
  EXPECT_CONTAINS(error("a.json", array), "a.json:1: nested deeper");
  EXPECT_EQ(open("a.json", array, true).size(), 1);
  // Must differ: a shallow nest in a key that nobody reads is fine.
  EXPECT_EQ(open("a.jsonl", R"({"instruction": "a", "output": "b", "meta": [[[{"x": [1]}]]]})").size(), 1);
}

TEST_F(DatasetFiles, AnArraysDamageIsLocal) {
  const std::string good = kGood;
  const auto skipped = [&](const std::string& content, int64_t size, size_t bad, int64_t line,
                           const std::string& reason) {
    const Dataset data = open("a.json", content, true);
    EXPECT_EQ(data.size(), size) << content;
    ASSERT_EQ(data.bad().size(), bad) << content;
    EXPECT_EQ(data.bad()[0].line, line) << content;
    EXPECT_CONTAINS(data.bad()[0].reason, reason);
    EXPECT_CONTAINS(error("a.json", content), reason);
  };
  skipped("[" + good + ",\n{\"instruction\": \"a\", \"output\": \"lost quote},\n" + good + "]", 2, 1, 2, "not closed");
  skipped("[" + good + ",\n{\"instruction\": [1}, \"output\": \"b\"},\n" + good + "]", 2, 1, 2, "other kind");
  skipped("[" + good + "\n" + good + "]", 2, 1, 2, "',' or ']'");
  skipped("[" + good + ",\n]", 1, 1, 2, "no record behind");
  skipped("[" + good + ",\n,\n" + good + "]", 2, 1, 2, "no record behind");
  skipped("[" + good + ",\n42, \"text\", null,\n" + good + "]", 2, 3, 2, "number; expected an object");
  skipped("[" + good + "]\nmore", 1, 1, 2, "more behind");
  const std::string lost_brace = "{\"instruction\": \"a\", \"output\": \"b\",\n";
  skipped("[" + good + ",\n" + lost_brace + good + ",\n" + good + "]", 3, 1, 2, "other kind");
  skipped("[" + good + ",\n{\"instruction\": \"a\", \"output\": \"lost quote}]\n", 1, 1, 2, "not closed");
  skipped("[" + good + ",\n" + good.substr(0, 30), 1, 2, 2, "not closed");
  skipped("[" + good + ",\n{\"instruction\": \"a\",", 1, 2, 2, "part of a file");
  skipped("[" + good, 1, 1, 1, "closing ']'");
}

std::string many_records(int count, const std::string& before, const std::string& between) {
  std::string text;
  for (int i = 0; i < count; ++i) {
    text += message(i > 0 ? between : before, R"({"instruction": "number )", i,
                    R"(", "output": "a {b}, {c}, {\"instruction\""})");
  }
  return text;
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return at == std::string::npos ? text : text.replace(at, from.size(), to);
}

TEST_F(DatasetFiles, OneDamagedRecordOfAThousandCostsOneRecord) {
  for (const std::string between : {", ", ",", ",\n", ",\n  ", "\n  ,\n  "}) {
    const bool lines = between.find('\n') != std::string::npos;
    const std::string array =
        many_records(1000, lines ? "[\n" + between.substr(between.rfind('\n') + 1) : "[", between) + "]";
    for (const int index : {0, 4, 998, 999}) {
      const std::string number = "number " + std::to_string(index);
      for (const std::string& to : {number, message("\"", number, "\"")}) {  // a lost quote, one too many
        const std::string damaged = replaced(array, number + "\"", to);
        const Dataset data = open("a.json", damaged, true);
        EXPECT_EQ(data.size(), 999) << between << index;
        EXPECT_EQ(data.bad().size(), 1u) << between << index;
        EXPECT_EQ(data.record(0).instruction, index == 0 ? "number 1" : "number 0");
      }
    }
  }
  // Must differ: an undamaged one has them all.
  EXPECT_EQ(open("a.json", many_records(1000, "[", ",") + "]").size(), 1000);
}

// Records need not begin with the same key: those of any whole record are known.
TEST_F(DatasetFiles, DamageBehindARecordOfOtherKeysCostsOneRecord) {
  const std::string array = many_records(100, "[{\"id\": 1, \"instruction\": \"a\", \"output\": \"b\"}, ", ", ") + "]";
  EXPECT_EQ(open("a.json", array).size(), 101);
  const Dataset data = open("a.json", replaced(array, "number 5\"", "number 5"), true);
  EXPECT_EQ(data.size(), 100);
  EXPECT_EQ(data.bad().size(), 1u);
}

const std::string kSelfInstruct = R"(  {
    "instruction": "add",
    "instances": [
      {
        "input": "1 2",
        "output": "3"
      },
      {
        "input": "2 2",
        "output": "4"
      }
    ]
  })";

TEST_F(DatasetFiles, AnObjectInsideADamagedRecordIsNoRecord) {
  const std::string bad = replaced(kSelfInstruct, "\"1 2\"", "\"1 2");
  for (const std::string& array : {"[\n" + bad + ",\n" + kSelfInstruct + ",\n" + kSelfInstruct + "\n]\n",
                                   "[\n" + kSelfInstruct + ",\n" + bad + ",\n" + kSelfInstruct + "\n]\n",
                                   "[\n" + kSelfInstruct + ",\n" + kSelfInstruct + ",\n" + bad + "\n]\n"}) {
    const Dataset data = open("a.json", array, true);
    EXPECT_EQ(data.format(), DataFormat::kSelfInstruct);
    EXPECT_EQ(data.size(), 4);
    EXPECT_EQ(data.bad().size(), 1u);
  }
  // "}, {" on one line, as some writers have it.
  const std::string joined =
      message("[", kSelfInstruct.substr(2), ", ", bad.substr(2), ", ", kSelfInstruct.substr(2), "]");
  EXPECT_EQ(open("a.json", joined, true).size(), 4);
}

TEST_F(DatasetFiles, WhereTheNextRecordCannotBeToldTheFileIsRefused) {
  std::string flat = kSelfInstruct;  // no indentation: an instance looks like a record
  for (size_t at = flat.find("  "); at != std::string::npos; at = flat.find("  ")) flat.erase(at, 2);
  const std::string bad = replaced(flat, "\"1 2\"", "\"1 2");
  const auto refused = [&](const std::string& content) {
    return error_of<DataError>([&] { open("a.json", content, /*skip=*/true); });
  };
  EXPECT_CONTAINS(refused("[\n" + flat + ",\n" + bad + ",\n" + flat + "\n]"), "a.json:15: ");
  EXPECT_CONTAINS(refused("[\n" + flat + ",\n" + bad + ",\n" + flat + "\n]"), "records behind it cannot be told apart");
  EXPECT_CONTAINS(refused(std::string("[") + kGood + "],\n" + kGood + "]"), "a.json:1: there is more behind");
  // Must differ: the last one takes nobody with it, and what is left out is said.
  const Dataset data = open("a.json", "[\n" + flat + ",\n" + bad + "\n]", true);
  EXPECT_EQ(data.size(), 2);
  ASSERT_EQ(data.bad().size(), 1u);
  EXPECT_CONTAINS(data.bad()[0].reason, "bytes) is left out");
}

TEST_F(DatasetFiles, ALostQuoteCostsOneRowOfACsvFile) {
  for (const bool quoted : {false, true}) {
    std::string csv = "instruction,output\n";
    for (int i = 0; i < 100; ++i) {
      const std::string_view outer = quoted ? "\"" : "", inner = quoted || i % 10 == 0 ? "\"" : "";
      csv += message(outer, "q", i, outer, ",", inner, "a", i, inner, "\n");
    }
    for (const std::string at : {"\"a30\"", "\"a90\""}) {
      const Dataset data = open("a.csv", replaced(csv, at, at.substr(0, at.size() - 1)), true);
      EXPECT_EQ(data.size(), 99) << at;
      ASSERT_EQ(data.bad().size(), 1u) << at;
      EXPECT_EQ(data.bad()[0].line, at == "\"a30\"" ? 32 : 92);
      EXPECT_EQ(data.line(98), 101);
      EXPECT_EQ(data.record(98).output, "a99");
    }
  }
  const std::string spans = "instruction,output\nq,\"two\nlines\"\nq,\"open\nq,a\nq,a\n";
  EXPECT_CONTAINS(error_of<DataError>([&] { open("a.csv", spans, /*skip=*/true); }), "a.csv:4: a quote is opened");
}

TEST_F(DatasetFiles, CsvRowsThatDoNotFit) {
  EXPECT_CONTAINS(error("a.csv", "instruction,output\na,b\nonly one\n"),
                  "a.csv:3: the row has 1 cells, the header row has 2");
  EXPECT_CONTAINS(error("a.csv", "instruction,output\na,\"open\n"), "a.csv:2: a quote is opened");
  EXPECT_CONTAINS(error("a.csv", "text,text\na,b\n"), "'text' twice");
  EXPECT_CONTAINS(error("a.csv", "question,reply\na,b\n"), "'question', 'reply'");
  EXPECT_CONTAINS(error("a.csv", "instruction,output\na,b\0c\n"s), "a.csv:2: a NUL byte");
  EXPECT_CONTAINS(error("a.csv", "instruction,output\na,\xff\n"), "a.csv:2: the text is not valid UTF-8");
  EXPECT_CONTAINS(error("a.csv", "instruction,output\n"), "no usable record");
  EXPECT_EQ(open("a.csv", "instruction,output\na,b\nonly one\nc,d\n", true).size(), 2);
}

TEST_F(DatasetFiles, TextWithBrokenCharacters) {
  EXPECT_CONTAINS(error("a.txt",
                        "good\n\nb\xff"
                        "d\n"),
                  "a.txt:3: the text is not valid UTF-8");
  EXPECT_CONTAINS(error("a.txt", "g\0d\n"s), "a.txt:1: a NUL byte");
}

TEST_F(DatasetFiles, FilesThatAreSomethingElse) {
  EXPECT_CONTAINS(error("a.json", ""), "empty");
  EXPECT_CONTAINS(error("a.json", " \n\t"), "white space");
  EXPECT_CONTAINS(error("a.txt", " \n\n"), "no usable record");
  EXPECT_CONTAINS(error("a.json", "[]"), "no usable record");
  EXPECT_CONTAINS(error("a.json", "\x1f\x8b\x08\0"s), "gunzip");
  EXPECT_CONTAINS(error("a.jsonl", "PK\x03\x04xxxx"), "ZIP");
  EXPECT_CONTAINS(error("a.jsonl", "PAR1xxxx"), "Parquet");
  EXPECT_CONTAINS(error("a.json", "\xff\xfe[\0"s), "UTF-16");
  EXPECT_CONTAINS(error("a.json", "version https://git-lfs.github.com/spec/v1\noid sha256:00\n"), "git lfs pull");
  EXPECT_CONTAINS(error("a.json", "hello"), "begins with 'h'");
  EXPECT_CONTAINS(error("a.jsonl", R"({"foo": 1, "bar": 2})"), "'bar', 'foo'");
  EXPECT_CONTAINS(error("a.json", "{\n  \"instruction\": \"a\",\n  \"output\": \"b\"\n}\n"), "a.json:1: ");
  EXPECT_CONTAINS(error_of<DataError>([&] { Dataset(dir_.path(), DataFormat::kAuto, false); }), dir_.path().string());
  EXPECT_CONTAINS(error_of<UserError>([&] { Dataset(dir_ / "absent.json", DataFormat::kAuto, false); }), "absent.json");
}

TEST_F(DatasetFiles, WhenNothingIsLeftTheFirstReasonIsSaid) {
  const std::string what =
      error_of<DataError>([&] { open("a.jsonl", "{\"instruction\": 1, \"output\": \"b\"}\n{}\n", /*skip=*/true); });
  EXPECT_CONTAINS(what, "all 2 are bad");
  EXPECT_CONTAINS(what, "line 1");
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
