#include "qalora/eval/mmlu_data.h"

#include <gtest/gtest.h>

#include "qalora/core/error.h"
#include "support/support.h"

namespace qalora::eval {
namespace {

using test::TempDir;
using test::write_file;

constexpr char kTest[] =
    "\"What is \"\"x\"\",\nif y?\",None,N/A,\" 3\",4.0,B\n"
    "  padded \xC2\x85,a,b,c,d,A\r\n"
    "caf\xC3\xA9,1,2,3,4,D\n";

void write_folder(const TempDir& dir) {
  write_file(dir / "test/odd_cells_test.csv", kTest);
  write_file(dir / "dev/odd_cells_dev.csv", "q1,a,b,c,d,C\nq2,e,f,g,h,A\n");
  write_file(dir / "test/anatomy_test.csv", "bone?,a,b,c,d,A\n");
  write_file(dir / "dev/anatomy_dev.csv", "one,a,b,c,d,B\ntwo,a,b,c,d,B\n");
}

template <typename Error>
std::string error_of(const MmluSource& source) {
  try {
    read_mmlu(source);
  } catch (const Error& error) {
    return error.what();
  }
  return "no such error";
}

TEST(MmluData, EveryCellIsText) {
  TempDir dir;
  write_folder(dir);
  const auto subjects = read_mmlu({.data = dir.path(), .shots = 2});
  ASSERT_EQ(subjects.size(), 2u);
  EXPECT_EQ(subjects[0].name, "anatomy");
  const MmluSubject& odd = subjects[1];
  ASSERT_EQ(odd.questions.size(), 3u);
  EXPECT_EQ(odd.questions[0].text, "What is \"x\",\nif y?\nA. None\nB. N/A\nC.  3\nD. 4.0\nAnswer:");
  EXPECT_EQ(odd.questions[0].answer, 1);
  EXPECT_EQ(odd.questions[1].index, 1);
  EXPECT_EQ(odd.questions[2].text.substr(0, 5), "caf\xC3\xA9");
  EXPECT_EQ(mmlu_prompt(odd, odd.questions[2], 1),
            "The following are multiple choice questions (with answers) about  odd cells.\n\n"
            "q1\nA. a\nB. b\nC. c\nD. d\nAnswer: C\n\ncaf\xC3\xA9\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:");
}

TEST(MmluData, ProtocolsDifferInBlanks) {
  TempDir dir;
  write_folder(dir);
  const auto original = read_mmlu({.data = dir.path(), .protocol = Protocol::kHendrycks, .shots = 0})[1];
  const auto harness = read_mmlu({.data = dir.path(), .protocol = Protocol::kLmEval, .shots = 0})[1];
  EXPECT_EQ(original.header, "The following are multiple choice questions (with answers) about  odd cells.\n\n");
  EXPECT_EQ(harness.header, "The following are multiple choice questions (with answers) about odd cells.\n\n");
  EXPECT_EQ(original.questions[1].text, "  padded \xC2\x85\nA. a\nB. b\nC. c\nD. d\nAnswer:");
  EXPECT_EQ(harness.questions[1].text, "padded\nA. a\nB. b\nC. c\nD. d\nAnswer:");
}

TEST(MmluData, SubjectsAndLimit) {
  TempDir dir;
  write_folder(dir);
  const auto subjects = read_mmlu({.data = dir.path(), .shots = 0, .subjects = {"odd_cells"}, .limit = 2});
  ASSERT_EQ(subjects.size(), 1u);
  EXPECT_EQ(subjects[0].questions.size(), 2u);
  const std::string text = error_of<UserError>({.data = dir.path(), .shots = 0, .subjects = {"anatomi"}});
  EXPECT_NE(text.find("anatomi"), std::string::npos) << text;
  EXPECT_NE(text.find("'anatomy'"), std::string::npos) << text;
}

TEST(MmluData, SplitIsAnotherFolder) {
  TempDir dir;
  write_folder(dir);
  write_file(dir / "val/anatomy_val.csv", "muscle?,a,b,c,d,C\n");
  const auto val = read_mmlu({.data = dir.path(), .shots = 1, .split = "val"});
  ASSERT_EQ(val.size(), 1u);  // odd_cells has no file there
  EXPECT_EQ(val[0].questions[0].text.substr(0, 7), "muscle?");
  EXPECT_EQ(val[0].examples.size(), 1u);
  EXPECT_EQ(read_mmlu({.data = dir.path(), .shots = 1})[0].questions[0].text.substr(0, 5), "bone?");
  fs::remove_all(dir / "val");
  EXPECT_NE(error_of<DataError>({.data = dir.path(), .shots = 1, .split = "val"}).find("no folder val/"),
            std::string::npos);
}

TEST(MmluData, PathsThatTheSystemRefuses) {
  const fs::path longest = std::string(300, 'x');
  EXPECT_NE(error_of<UserError>({.data = longest}).find("too long"), std::string::npos)
      << error_of<UserError>({.data = longest});
  EXPECT_NE(error_of<UserError>({.data = "nowhere"}).find("does not exist"), std::string::npos);
}

TEST(MmluData, QuestionsOfOneFileAreCounted) {
  TempDir dir;
  write_folder(dir);
  EXPECT_EQ(count_questions(dir / "test/odd_cells_test.csv"), 3);
  write_file(dir / "table.csv", "a,b\n1,2\n");
  EXPECT_THROW(count_questions(dir / "table.csv"), DataError);
}

TEST(MmluData, BadFilesAreNamed) {
  TempDir dir;
  write_folder(dir);
  EXPECT_NE(error_of<DataError>({.data = dir.path()}).find("anatomy_dev.csv: --shots 5 needs 5"), std::string::npos);
  write_file(dir / "test/broken_test.csv", "a,b,c,d,e,A\nq,a,b,c,A\n");
  EXPECT_NE(error_of<DataError>({.data = dir.path(), .shots = 0}).find("broken_test.csv:2: expected 6 cells"),
            std::string::npos);
  write_file(dir / "test/broken_test.csv", "q,a,b,c,d,E\n");
  EXPECT_NE(error_of<DataError>({.data = dir.path(), .shots = 0}).find("got 'E'"), std::string::npos);
  write_file(dir / "test/broken_test.csv", "");
  EXPECT_NE(error_of<DataError>({.data = dir.path(), .shots = 0}).find("broken_test.csv: no questions"),
            std::string::npos);
  write_file(dir / "test/broken_test.csv", "q,a,b,c,d,A\n");
  EXPECT_NE(error_of<DataError>({.data = dir.path(), .shots = 1}).find("broken_dev.csv: missing"), std::string::npos);
  EXPECT_NE(error_of<DataError>({.data = dir.path() / "dev"}).find("test/"), std::string::npos);
}

TEST(MmluData, QloraFileWithItsOwnShotsOrOurs) {
  TempDir dir;
  write_folder(dir);
  const std::string header = "The following are multiple choice questions (with answers) about  anatomy.\\n\\n";
  write_file(dir / "zero.json", R"({"subject":"anatomy","input":")" + header +
                                    R"(x?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:","output":"C"})"
                                    "\n");
  write_file(dir / "one.json", R"({"subject":"anatomy","input":")" + header +
                                   R"(w?\nAnswer: A\n\nx?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:","output":"C"})"
                                   "\n");
  const auto plain = read_mmlu({.data = dir / "zero.json", .protocol = Protocol::kQlora})[0];
  const auto shown = read_mmlu({.data = dir / "zero.json", .protocol = Protocol::kQlora, .shots = 2})[0];
  const std::string head = "The following are multiple choice questions (with answers) about  anatomy.\n\n";
  EXPECT_EQ(mmlu_prompt(plain, plain.questions[0], 0), head + "x?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:");
  EXPECT_EQ(mmlu_prompt(shown, shown.questions[0], 2),
            head +
                "one\nA. a\nB. b\nC. c\nD. d\nAnswer: B\n\ntwo\nA. a\nB. b\nC. c\nD. d\nAnswer: B\n\n"
                "x?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:");
  EXPECT_EQ(plain.questions[0].answer, 2);
  EXPECT_EQ(read_mmlu({.data = dir / "one.json", .protocol = Protocol::kQlora})[0].questions[0].own_shots, 1);
  EXPECT_NE(error_of<DataError>({.data = dir / "one.json", .protocol = Protocol::kQlora, .shots = 2})
                .find("one.json:1: the prompt already holds 1"),
            std::string::npos);
  EXPECT_NE(error_of<UserError>({.data = dir / "zero.json"}).find("--protocol qlora"), std::string::npos);
  write_file(dir / "bad.json", R"({"subject":"anatomy","input":"x","output":"AB"})");
  EXPECT_NE(error_of<DataError>({.data = dir / "bad.json", .protocol = Protocol::kQlora}).find("bad.json:1"),
            std::string::npos);
}

TEST(MmluData, CategoriesAreThoseOfTheOriginal) {
  REQUIRE_SHARED("data/mmlu/test");
  std::array<int, 4> counts{};
  for (const auto& subject : read_mmlu({.data = test::shared_dir() / "data/mmlu", .shots = 0, .limit = 1})) {
    const auto category = category_of(subject.name);
    ASSERT_TRUE(category.has_value()) << subject.name;
    ++counts[static_cast<size_t>(*category)];
  }
  EXPECT_EQ(counts, (std::array<int, 4>{13, 18, 12, 14}));
  EXPECT_EQ(category_of("anatomy"), Category::kOther);  // the harness has it in stem
  EXPECT_EQ(category_of("the_valley"), std::nullopt);
}

TEST(MmluData, ProtocolNames) {
  for (Protocol protocol : {Protocol::kHendrycks, Protocol::kQlora, Protocol::kLmEval})
    EXPECT_EQ(parse_protocol(protocol_name(protocol)), protocol);
  EXPECT_THROW(parse_protocol("hendryks"), UserError);
}

}  // namespace
}  // namespace qalora::eval
