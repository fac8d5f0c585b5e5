// The README's commands for a real LLaMA, run as they stand on the miniature under the names that the README uses.
#include <gtest/gtest.h>

#include <sstream>

#include "support/support.h"

namespace qalora::test {
namespace {

// Lines that begin with "qalora " inside ```sh blocks.
std::vector<std::string> commands() {
  std::vector<std::string> result;
  std::istringstream in(read_file(source_dir() / "README.md"));
  bool inside = false;
  for (std::string line; std::getline(in, line);) {
    if (line.rfind("```", 0) == 0) inside = line == "```sh";
    else if (inside && line.rfind("qalora ", 0) == 0) result.push_back(line);
  }
  return result;
}

TEST(Readme, CommandsRun) {
  if (!fs::exists("/bin/bash")) GTEST_SKIP() << "no bash to run the README's lines with";
  TempDir dir;
  const fs::path data = source_dir() / "tests/data/miniature";
  fs::create_symlink(source_dir() / "models/miniature", dir / "llama-7b");
  fs::create_symlink(source_dir() / "configs", dir / "configs");
  fs::create_symlink(data / "mmlu", dir / "mmlu");
  fs::create_symlink(data / "heldout.txt", dir / "heldout.txt");
  fs::create_symlink(data / "tune.json", dir / "alpaca_data.json");
  fs::create_symlink(QALORA_BINARY, dir / "qalora");
  const std::vector<std::string> lines = commands();
  ASSERT_GE(lines.size(), 7u);
  for (std::string line : lines) {
    // A paper recipe runs 10,000 steps of 1,280 tokens; the miniature reads 512 and two steps show that the line works.
    if (line.find(" finetune ") != std::string::npos) line += " --steps 2 --batch-size 2 --sequence-length 128";
    const std::string shell =
        "cd '" + dir.path().string() + "' && PATH=\"$PWD:$PATH\" && " + line + " > out 2> err < /dev/null";
    write_file(dir / "line.sh", shell);
    const int status = std::system(("/bin/bash '" + (dir / "line.sh").string() + "'").c_str());
    EXPECT_EQ(WEXITSTATUS(status), 0) << line << "\n" << read_file(dir / "err");
    EXPECT_FALSE(read_file(dir / "out").empty()) << line;
  }
  EXPECT_TRUE(fs::exists(dir / "llama-7b-int4-alpaca/model.safetensors"));
}

}  // namespace
}  // namespace qalora::test
