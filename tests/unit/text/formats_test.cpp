// Each format's record, through a data set of one line: src/text/formats.cpp.
#include <gtest/gtest.h>

#include "qalora/core/error.h"
#include "qalora/text/dataset.h"
#include "tiny_tokenizer.h"

namespace qalora::text {
namespace {

using namespace qalora::test;

class Formats : public testing::Test {
 protected:
  Dataset open(const std::string& line, DataFormat format = DataFormat::kAuto) {
    write_file(dir_ / "a.jsonl", line + "\n");
    return Dataset(dir_ / "a.jsonl", format, false);
  }
  // The only record's request, input and answer, and that the format was told from it.
  void expect_exchange(DataFormat format, const std::string& line, const std::string& instruction,
                       const std::string& input, const std::string& output) {
    const Dataset data = open(line);
    EXPECT_EQ(data.format(), format) << line;
    const Record record = data.record(0);
    EXPECT_EQ(record.instruction, instruction);
    EXPECT_EQ(record.input, input);
    EXPECT_EQ(record.output, output);
    EXPECT_TRUE(record.turns.empty() && record.text.empty() && record.input_ids.empty());
  }
  std::string error(const std::string& line, DataFormat format = DataFormat::kAuto) {
    return error_of<DataError>([&] { open(line, format); });
  }
  TempDir dir_;
};

TEST_F(Formats, AreToldFromTheKeys) {
  expect_exchange(DataFormat::kAlpaca, R"({"instruction": "i", "input": "x", "output": "o", "id": 3})", "i", "x", "o");
  expect_exchange(DataFormat::kFlan, R"({"inputs": "Q: x\nA:", "targets": "y", "task": "t"})", "Q: x\nA:", "", "y");
  expect_exchange(DataFormat::kSelfInstruct, R"({"instruction": "i", "instances": [{"input": "x", "output": "o"}]})",
                  "i", "x", "o");
  expect_exchange(DataFormat::kSelfInstruct, R"({"prompt": "p", "completion": " c<|endoftext|>"})", "p", "", " c");
  expect_exchange(DataFormat::kLongForm, R"({"input": "q", "output": "a long answer"})", "q", "", "a long answer");
  expect_exchange(DataFormat::kChip2, R"({"text": "<human>: q1\n<bot>: a1\nmore"})", "q1", "", "a1\nmore");
  expect_exchange(DataFormat::kShareGpt,
                  R"({"conversations": [{"from": "human", "value": "h"}, {"from": "gpt", "value": "g"}]})", "h", "",
                  "g");
  expect_exchange(DataFormat::kMessages,
                  R"({"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]})", "u", "",
                  "a");
}

TEST_F(Formats, TextAndTokens) {
  const Dataset text = open(R"({"text": "He said <bot>: and left."})");
  EXPECT_EQ(text.format(), DataFormat::kText);
  EXPECT_EQ(text.record(0).text, "He said <bot>: and left.");
  const Dataset tokens = open(R"({"input_ids": [1, 5, 2], "labels": [-100, 5, 2]})");
  EXPECT_EQ(tokens.format(), DataFormat::kTokens);
  EXPECT_EQ(tokens.record(0).input_ids, (std::vector<int64_t>{1, 5, 2}));
  EXPECT_EQ(tokens.record(0).labels, (std::vector<int64_t>{-100, 5, 2}));
  EXPECT_EQ(open(R"({"input_ids": [1, 5]})").record(0).labels, (std::vector<int64_t>{1, 5}));
}

TEST_F(Formats, EveryInstanceIsARecord) {
  const Dataset data = open(
      R"({"instruction": "i", "instances": [{"input": "", "output": "a"}, {"input": "x", "output": "b"}, {"output": "c"}]})");
  ASSERT_EQ(data.size(), 3);
  EXPECT_EQ(data.record(0).output, "a");
  EXPECT_EQ(data.record(1).output, "b");
  EXPECT_EQ(data.record(1).input, "x");
  EXPECT_EQ(data.record(2).output, "c");
  EXPECT_EQ(data.line(2), 1);
}

TEST_F(Formats, ChatsOfSeveralTurns) {
  const auto turns = [](const Record& record) {
    std::string text;
    for (const Turn& turn : record.turns) text += turn.role + "=" + turn.content + ";";
    return text;
  };
  EXPECT_EQ(turns(open(R"({"text": "<human>: q1\n<bot>: a1\n<human>: q2\nand more\n<bot>: a2"})").record(0)),
            "user=q1;assistant=a1;user=q2\nand more;assistant=a2;");
  EXPECT_EQ(
      turns(
          open(
              R"({"conversations": [{"from": "system", "value": "s"}, {"from": "user", "value": "u"}, {"from": "bot", "value": "b"}]})")
              .record(0)),
      "system=s;user=u;assistant=b;");
  EXPECT_EQ(
      turns(
          open(
              R"({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "u"}]}, )"
              R"({"role": "assistant", "content": "a"}]})")
              .record(0)),
      "system=s;user=u;assistant=a;");
}

TEST_F(Formats, ARequestThatIsOnlyInTheInputMovesUp) {
  const Record record = open(R"({"instruction": " ", "input": "x", "output": "o"})").record(0);
  EXPECT_EQ(record.instruction, "x");
  EXPECT_EQ(record.input, "");
}

TEST_F(Formats, WrongShapesAreNamed) {
  EXPECT_CONTAINS(error(R"({"conversations": "x"})"), "'conversations' is string");
  EXPECT_CONTAINS(error(R"({"conversations": []})"), "'conversations' is empty");
  EXPECT_CONTAINS(error(R"({"conversations": [5]})"), "an entry of 'conversations' is number");
  EXPECT_CONTAINS(error(R"({"conversations": [{"from": "human"}]})"), "'value' is missing");
  EXPECT_CONTAINS(error(R"({"conversations": [{"from": "alien", "value": "x"}]})"), "'alien'");
  EXPECT_CONTAINS(error(R"({"conversations": [{"from": "human", "value": "x"}]})"), "nothing to train");
  EXPECT_CONTAINS(error(R"({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": ""}]})"),
                  "assistant's turn is empty");
  EXPECT_CONTAINS(error(R"({"messages": [{"role": "assistant", "content": null}]})"), "'content' is null");
  EXPECT_CONTAINS(error(R"({"messages": [{"role": "user", "content": [{"type": "image"}]}]})"), "not text");
  EXPECT_CONTAINS(error(R"({"instruction": "i", "instances": []})"), "'instances' is empty");
  EXPECT_CONTAINS(error(R"({"instruction": "i", "instances": [{"input": "x", "output": ""}]})"), "'output' is empty");
  EXPECT_CONTAINS(error(R"({"prompt": "p", "completion": "<|endoftext|>"})"), "'completion' is empty");
  EXPECT_CONTAINS(error(R"({"text": ""})"), "'text' is empty");
  EXPECT_CONTAINS(error(R"({"text": "no marker"})", DataFormat::kChip2), "<human>:");
  EXPECT_CONTAINS(error(R"({"text": "<human>: alone"})", DataFormat::kChip2), "nothing to train");
}

TEST_F(Formats, IdsOutOfRangeAreNamed) {
  EXPECT_CONTAINS(error(R"({"input_ids": []})"), "'input_ids' is empty");
  EXPECT_CONTAINS(error(R"({"input_ids": [1, -100]})"), "-100");
  EXPECT_CONTAINS(error(R"({"input_ids": [1.5]})"), "1.5");
  EXPECT_CONTAINS(error(R"({"input_ids": [4294967296]})"), "4294967296");
  EXPECT_CONTAINS(error(R"({"input_ids": [18446744073709551615]})"), "18446744073709551615");
  EXPECT_CONTAINS(error(R"({"input_ids": [1, 2], "labels": [1]})"), "'labels' has 1 entries, 'input_ids' has 2");
  EXPECT_CONTAINS(error(R"({"input_ids": [1, 2], "labels": [-1, 2]})"), "-1");
}

TEST(FormatNames, ReadBackAndSuggest) {
  for (const char* name :
       {"auto", "alpaca", "flan", "self-instruct", "longform", "chip2", "sharegpt", "messages", "text", "tokens"}) {
    EXPECT_EQ(data_format_name(parse_data_format(name)), name);
  }
  const std::string what = error_of<UserError>([] { parse_data_format("sharegtp"); });
  EXPECT_CONTAINS(what, "'sharegtp'");
  EXPECT_CONTAINS(what, "'sharegpt'");
}

}  // namespace
}  // namespace qalora::text
