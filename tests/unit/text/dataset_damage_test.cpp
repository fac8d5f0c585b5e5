// Data sets with damage: which records it costs, and what is said.
#include <nlohmann/json.hpp>

#include "dataset_files.h"

namespace qalora::text {
namespace {

using namespace std::string_literals;  // "a\0b"s keeps its NUL
using nlohmann::json;

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

TEST_F(DatasetFiles, AFileThatEndsTooEarlyIsKnown) {
  const std::string good = kGood, lines = good + "\n" + good + "\n", csv = "instruction,output\na,b\n";
  const auto early = [&](const std::string& name, const std::string& content) {
    const Dataset data = open(name, content, /*skip=*/true);
    testing::internal::CaptureStderr();
    warn_of_bad(data, data.bad());
    const std::string said = testing::internal::GetCapturedStderr();
    EXPECT_EQ(said.find("left out, the first in line") != std::string::npos, !data.bad().empty()) << content;
    EXPECT_EQ(said.find("probably a part of one") != std::string::npos, data.ends_early()) << content;
    return data.ends_early();
  };
  EXPECT_TRUE(early("a.json", "[" + good + ",\n" + good));
  EXPECT_TRUE(early("a.json", "[" + good + ",\n" + good + "\n"));
  EXPECT_TRUE(early("a.json", "[" + good + ",\n" + good.substr(0, 30)));
  EXPECT_TRUE(early("a.json", "[" + good + ",\n{\"instruction\": \"a\","));
  EXPECT_TRUE(early("a.jsonl", lines + good.substr(0, 30)));
  EXPECT_TRUE(early("a.csv", csv + "a,\"b"));
  // Must differ: damage elsewhere, and none.
  EXPECT_FALSE(early("a.json", "[" + good + ",\n42,\n" + good + "]"));
  EXPECT_FALSE(early("a.json", "[" + good + ",\n42]"));
  EXPECT_FALSE(early("a.json", "[" + good + "]\nmore"));
  EXPECT_FALSE(early("a.jsonl", good + "\n42\n" + good));
  EXPECT_FALSE(early("a.jsonl", lines + "42\n"));
  EXPECT_FALSE(early("a.jsonl", lines + good));
  EXPECT_FALSE(early("a.csv", csv + "a,b"));
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

}  // namespace
}  // namespace qalora::text
