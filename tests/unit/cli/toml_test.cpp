#include "qalora/cli/toml.h"

#include <gtest/gtest.h>

#include "qalora/core/error.h"

namespace qalora::cli {
namespace {

TomlValue value_of(const std::string& text) {
  const auto entries = parse_toml("key = " + text + "\n", "run.toml");
  EXPECT_EQ(entries.size(), 1u) << text;
  return entries.at(0).value;
}
std::string text_of(const std::string& text) { return std::get<std::string>(value_of(text)); }
std::string digits_of(const std::string& text) { return std::get<TomlNumber>(value_of(text)).digits; }

std::string error_of(const std::string& text) {
  try {
    parse_toml(text, "run.toml");
  } catch (const UserError& error) {
    return error.what();
  }
  return "no error";
}

TEST(Toml, TextsKeepWhatTheyHold) {
  EXPECT_EQ(text_of(R"("dir#1/x.json" # comment)"), "dir#1/x.json");
  EXPECT_EQ(text_of(R"("a\\b\"c\t\u00e9\U0001F999")"), "a\\b\"c\t\xC3\xA9\xF0\x9F\xA6\x99");
  EXPECT_EQ(text_of(R"('a\b"c')"), R"(a\b"c)");
  EXPECT_EQ(text_of(R"("")"), "");
  EXPECT_EQ(text_of(R"("a, b = [c]")"), "a, b = [c]");
}

TEST(Toml, NumbersAndTruth) {
  EXPECT_EQ(digits_of("12"), "12");
  EXPECT_EQ(digits_of("-3"), "-3");
  EXPECT_EQ(digits_of("+1_000"), "1000");
  EXPECT_EQ(digits_of("1e-4"), "1e-4");
  EXPECT_EQ(digits_of("0.25"), "0.25");
  EXPECT_TRUE(std::get<bool>(value_of("true")));
  EXPECT_FALSE(std::get<bool>(value_of("false")));
  for (const char* bad : {"012", "1.", ".5", "1__0", "1_", "0x10", "nan", "True", "1e", "1979-05-27", "a,b", "+-1"}) {
    EXPECT_NE(error_of(std::string("key = ") + bad), "no error") << bad;
  }
}

TEST(Toml, ListsOverLinesWithComments) {
  const std::string text = "targets = [ # these\n  \"q#_proj\", # queries\n\n  'v_proj',\n]\nsteps = 5\n";
  const auto entries = parse_toml(text, "run.toml");
  ASSERT_EQ(entries.size(), 2u);
  EXPECT_EQ(std::get<std::vector<std::string>>(entries[0].value), (std::vector<std::string>{"q#_proj", "v_proj"}));
  EXPECT_EQ(entries[0].line, 1);
  EXPECT_EQ(entries[1].line, 6);
  EXPECT_TRUE(std::get<std::vector<std::string>>(value_of("[]")).empty());
}

TEST(Toml, SectionsLineEndsAndByteOrderMark) {
  const auto entries = parse_toml(
      "\xEF\xBB\xBF"
      "a = 1\r\n[finetune] # ours\r\nb = 2",
      "run.toml");
  ASSERT_EQ(entries.size(), 2u);
  EXPECT_EQ(entries[0].section, "");
  EXPECT_EQ(entries[1].section, "finetune");
  EXPECT_EQ(entries[1].key, "b");
}

TEST(Toml, ErrorsNameFileAndLine) {
  EXPECT_NE(error_of("[a]\nb = 1\n[a]\n").find("run.toml:3: section 'a' is given twice"), std::string::npos);
  const std::pair<const char*, const char*> cases[] = {
      {"\n# x\nsteps = 5 6\n", "run.toml:3: expected the end of the line, got '6'"},
      {"packing\n", "run.toml:1: expected '=' and a value after 'packing'"},
      {"data = a,b\n", "run.toml:1: 'data' is a, expected text in quotes"},
      {"data =\n", "run.toml:1: 'data' is empty"},
      {"a = 1\ntargets = [\n", "the list of 'targets' begins in line 2 and never ends"},
      {"targets = [\"a\" \"b\"]\n", "expected ',' or ']'"},
      {"targets = [1]\n", "holds texts in quotes, got '1]'"},
      {"data = \"a\nb\"\n", "run.toml:1: a text never ends"},
      {"data = \"\\q\"\n", "is not an escape"},
      {"data = \"\\ud800\"\n", "is not an escape"},
      {"data = \"\\u12\"\n", "is not an escape"},
      {"data = \"\"\"a\"\"\"\n", "several lines"},
      {"a = 1\na = 2\n", "run.toml:2: key 'a' is given twice"},
      {"a.b = 1\n", "expected '='"},
      {"\"a\" = 1\n", "expected a key"},
      {"[[a]]\n", "expected the name of a section"},
      {"a = {b = 1}\n", "expected text in quotes"},
  };
  for (const auto& [text, part] : cases)
    EXPECT_NE(error_of(text).find(part), std::string::npos) << text << "\n" << error_of(text);
}

TEST(Toml, QuotedTextComesBack) {
  std::string nasty = "#1 \"x\" \\ \n\r\t\x01\x7f \xC3\xA9 'y' [z], = ";
  nasty += '\0';
  nasty += "\xff\xfe end\\";  // a file name may be any bytes
  EXPECT_EQ(text_of(toml_quoted(nasty)), nasty);
  EXPECT_EQ(toml_quoted("a"), "\"a\"");
}

}  // namespace
}  // namespace qalora::cli
