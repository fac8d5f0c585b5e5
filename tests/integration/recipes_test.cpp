// The paper's recipes in configs/, read by the program itself, against the numbers of the paper's section 4.1.
#include <gtest/gtest.h>

#include <map>
#include <sstream>

#include "support/support.h"

namespace qalora::test {
namespace {

std::map<std::string, std::string> resolved(const std::string& recipe) {
  const Outcome run =
      run_qalora({"finetune", "--config", source_dir() / "configs" / (recipe + ".toml"), "--dump-config"});
  EXPECT_EQ(run.exit_code, 0) << recipe << ": " << run.err;
  std::map<std::string, std::string> keys;
  std::istringstream in(run.out);
  for (std::string line; std::getline(in, line);) {
    const size_t sign = line.find(" = ");
    if (!line.starts_with("#") && sign != std::string::npos) keys[line.substr(0, sign)] = line.substr(sign + 3);
  }
  return keys;
}

TEST(Recipes, AreThePapersSettings) {
  const std::pair<const char*, double> sizes[] = {
      {"7b", 2e-5}, {"13b", 2e-5}, {"33b", 1e-5}, {"65b", 1e-5}, {"llama2-70b", 1e-5}};
  size_t files = 0;
  for (const auto& entry : fs::directory_iterator(source_dir() / "configs"))
    files += entry.path().extension() == ".toml" ? 1 : 0;
  EXPECT_EQ(files, 2 * std::size(sizes));  // none that this test does not know
  for (const std::string set : {"alpaca", "flan"}) {
    for (const auto& [size, rate] : sizes) {
      SCOPED_TRACE(set + "-" + size);
      std::map<std::string, std::string> keys = resolved(set + "-" + size);
      EXPECT_DOUBLE_EQ(std::stod(keys["learning_rate"]), rate);
      EXPECT_EQ(keys["steps"], set == "alpaca" ? "10000" : "20000");
      EXPECT_EQ(keys["batch_size"], "16");
      EXPECT_EQ(keys["schedule"], "\"constant\"");
      EXPECT_DOUBLE_EQ(std::stod(keys["max_grad_norm"]), 0.3);
      EXPECT_EQ(keys["pooling"], "\"sum\"");
      EXPECT_EQ(keys["rank"], "64");
      EXPECT_DOUBLE_EQ(std::stod(keys["alpha"]), 16);
      // The code's lengths: prompt and answer cut apart.
      EXPECT_EQ(keys["sequence_length"], "1280");
      EXPECT_EQ(keys["source_length"], "1024");
      EXPECT_EQ(keys["target_length"], "256");
      EXPECT_EQ(keys["data_format"], "\"" + set + "\"");
      EXPECT_EQ(keys["template"], set == "alpaca" ? "\"alpaca\"" : "\"none\"");
    }
  }
}

// Must differ: without a recipe nothing of this is so by accident.
TEST(Recipes, SayMoreThanTheDefaults) {
  const Outcome run = run_qalora({"finetune", "--dump-config"});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  EXPECT_NE(run.out.find("\nsteps = 1000\n"), std::string::npos) << run.out;
  EXPECT_NE(run.out.find("\nsource_length = 0\n"), std::string::npos) << run.out;
}

}  // namespace
}  // namespace qalora::test
