// What several tests need: temporary folders, the shared reference data, running the binary.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

namespace qalora::test {

namespace fs = std::filesystem;

// A folder that lives as long as the object.
class TempDir {
 public:
  TempDir();
  ~TempDir();
  const fs::path& path() const { return path_; }
  fs::path operator/(const std::string& name) const { return path_ / name; }

 private:
  fs::path path_;
};

// Reference data that users do not have: $QALORA_SHARED, else ../shared beside the source folder. Empty when absent.
fs::path shared_dir();
// Skips the running test, visibly, when shared/<relative> does not exist.
#define REQUIRE_SHARED(relative)                                                                                   \
  if (::qalora::test::shared_dir().empty() || !std::filesystem::exists(::qalora::test::shared_dir() / (relative))) \
  GTEST_SKIP() << "reference data '" << (relative) << "' is not here (set QALORA_SHARED)"

fs::path source_dir();

std::string read_file(const fs::path& path);
void write_file(const fs::path& path, const std::string& content);

struct Outcome {
  int exit_code = 0;  // 128 + signal when killed by one
  std::string out, err;
};
// Runs the built qalora with these arguments; stdin is empty. env: "NAME=value" entries added to the environment.
Outcome run_qalora(const std::vector<std::string>& arguments, const std::vector<std::string>& env = {});

}  // namespace qalora::test
