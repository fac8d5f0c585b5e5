#include "qalora/cli/config_file.h"

#include <gtest/gtest.h>

#include "qalora/core/error.h"
#include "support/support.h"

namespace qalora::cli {
namespace {

struct Values {
  int64_t steps = 1;
  double rate = 0.5;
  bool packing = false, shuffle = true;
  std::string data;
  std::vector<std::string> targets = {"a", "b"};

  std::vector<Key> keys() {
    return {{"steps", &steps, "steps", "One"},       {"learning_rate", &rate, "rate", "One"},
            {"packing", &packing, "packing", "One"}, {"shuffle", &shuffle, "shuffle", "Two"},
            {"data", &data, "data", "Two"},          {"targets", &targets, "targets", "Two"}};
  }
};

// Flags, then the file, as the program reads them.
class ConfigFile : public testing::Test {
 protected:
  Values load(std::vector<std::string> flags, const std::string& text) {
    Values values;
    const auto keys = values.keys();
    CLI::App app("", "finetune");
    bind_keys(app, keys);
    std::reverse(flags.begin(), flags.end());  // CLI11 takes them from the back
    app.parse(flags);
    test::write_file(path(), text);
    load_config_file(app, path(), keys);
    return values;
  }
  std::string error_of(const std::vector<std::string>& flags, const std::string& text) {
    try {
      load(flags, text);
    } catch (const UserError& error) {
      return error.what();
    }
    return "no error";
  }
  std::string path() const { return dir_ / "run#1.toml"; }
  test::TempDir dir_;
};

TEST_F(ConfigFile, ReadsEveryType) {
  const Values values = load({},
                             "steps = 7\nlearning_rate = 1e-4\npacking = true\n"
                             "[finetune]\ndata = \"d#1/x\\\\y\"\ntargets = [\"q\",\n\"v\"]\n");
  EXPECT_EQ(values.steps, 7);
  EXPECT_EQ(values.rate, 1e-4);
  EXPECT_TRUE(values.packing);
  EXPECT_EQ(values.data, "d#1/x\\y");
  EXPECT_EQ(values.targets, (std::vector<std::string>{"q", "v"}));
}

TEST_F(ConfigFile, FlagsWin) {
  const Values values = load({"--steps", "9", "--targets", "k,o"}, "steps = 7\nlearning_rate = 2\ntargets = [\"q\"]\n");
  EXPECT_EQ(values.steps, 9);
  EXPECT_EQ(values.rate, 2);
  EXPECT_EQ(values.targets, (std::vector<std::string>{"k", "o"}));
  EXPECT_NE(error_of({"--steps", "9"}, "steps = \"x\"\n"), "no error");  // not used, but wrong all the same
}

TEST_F(ConfigFile, WhatIsWrittenIsReadBack) {
  Values values;
  values.steps = -5;
  values.rate = 0.1;
  values.packing = true;
  values.data = "a \"quoted\" \\ back#slash\nand a second line \xC3\xA9";
  values.targets = {"#", "[\"]", ""};
  const std::string text = to_toml(values.keys(), "Heading");
  Values read = load({}, text);
  EXPECT_EQ(read.steps, values.steps);
  EXPECT_EQ(read.rate, values.rate);
  EXPECT_EQ(read.packing, values.packing);
  EXPECT_EQ(read.data, values.data);
  EXPECT_EQ(read.targets, values.targets);
  EXPECT_EQ(to_toml(read.keys(), "Heading"), text);
  EXPECT_NE(to_toml(Values().keys(), "Heading"), text);
}

TEST_F(ConfigFile, ErrorsNameFileLineAndKey) {
  const std::pair<const char*, const char*> cases[] = {
      {"\nstep = 5\n", "run#1.toml:2: key 'step' is not known (did you mean 'steps'?)"},
      {"steps = 5\n[finetune]\nsteps = 6\n", "run#1.toml:3: key 'steps' is given twice"},
      {"[train]\nsteps = 6\n", "section [train] is not known"},
      {"steps = \"many\"\n", "run#1.toml:1: 'steps' is many, expected a whole number"},
      {"steps = 1.5\n", "expected a whole number"},
      {"steps = 99999999999999999999\n", "expected a whole number"},
      {"learning_rate = 1e999\n", "expected a number"},
      {"packing = 1\n", "expected true or false"},
      {"data = 5\n", "expected text in quotes"},
      {"targets = \"q\"\n", "expected a list of texts"},
  };
  for (const auto& [text, part] : cases)
    EXPECT_NE(error_of({}, text).find(part), std::string::npos) << text << "\n" << error_of({}, text);
}

TEST_F(ConfigFile, BareFlagsMeanTrue) {
  EXPECT_TRUE(load({"--packing"}, "").packing);
  EXPECT_TRUE(load({"--packing", "--steps", "2"}, "packing = false\n").packing);
  EXPECT_FALSE(load({"--packing", "false"}, "packing = true\n").packing);
  EXPECT_FALSE(load({"--shuffle=false"}, "").shuffle);
  EXPECT_FALSE(load({}, "").packing);
  EXPECT_THROW(load({"--packing", "perhaps"}, ""), CLI::ParseError);
}

TEST_F(ConfigFile, NumbersThatDoNotFitAreRefused) {
  EXPECT_EQ(load({"--steps", "9223372036854775807"}, "").steps, INT64_MAX);
  for (const char* bad : {"99999999999999999999", "1.5", "x", ""})
    EXPECT_THROW(load({"--steps", bad}, ""), CLI::ParseError) << bad;
}

}  // namespace
}  // namespace qalora::cli
