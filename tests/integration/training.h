// Fine-tuning runs of the real binary on the miniature, for the tests of training and of resuming.
#pragma once

#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <functional>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "qalora/core/file.h"
#include "support/support.h"

extern char** environ;

namespace qalora::test {

using nlohmann::json;

inline fs::path miniature_data(const std::string& name) { return source_dir() / "tests/data/miniature" / name; }

inline std::string digest(const fs::path& path) {
  const std::string bytes = read_file(path);
  return sha256(std::as_bytes(std::span(bytes)));
}

inline std::vector<json> json_lines(const std::string& text) {
  std::vector<json> result;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) result.push_back(json::parse(line));
  return result;
}

// The events of one kind in a run's metrics.jsonl.
inline std::vector<json> metrics_of(const fs::path& run, const std::string& kind) {
  std::vector<json> result;
  for (const json& event : json_lines(read_file(run / "metrics.jsonl"))) {
    if (event.at("event") == kind) result.push_back(event);
  }
  return result;
}

// One quantised miniature for all tests of a suite; one thread, so that the machine's number of cores decides nothing.
class Training : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    dir_ = new TempDir();
    const Outcome run = run_qalora({"quantize", "--model", dense(), "--out", base(), "--bits", "2", "-q", "--json"});
    ASSERT_EQ(run.exit_code, 0) << run.err;
    json records = json::parse(read_file(miniature_data("tune.json")));
    records.erase(records.begin() + 400, records.end());  // enough, and read in no time
    write_file(tune(), records.dump());
  }
  static void TearDownTestSuite() { delete dir_; }

  static std::string dense() { return (source_dir() / "models/miniature").string(); }
  static std::string base() { return *dir_ / "int2"; }
  static std::string tune() { return *dir_ / "tune.json"; }
  static fs::path folder(const std::string& name) { return *dir_ / name; }

  static std::vector<std::string> words(const fs::path& out, const std::vector<std::string>& more) {
    const std::string config = source_dir() / "configs/tiny/finetune.toml";
    std::vector<std::string> result = {
        "finetune", "--config",       config,       "--model",      base(), "--data",
        tune(),     "--out",          out.string(), "--batch-size", "4",    "--micro-batch-size",
        "2",        "--warmup-steps", "2",          "--dropout",    "0.1",  "--log-interval",
        "1",        "--threads",      "1"};
    result.insert(result.end(), more.begin(), more.end());
    return result;
  }
  static Outcome finetune(const fs::path& out, const std::vector<std::string>& more) {
    return run_qalora(words(out, more));
  }
  static void expect_trained(const fs::path& out, const std::vector<std::string>& more) {
    const Outcome run = finetune(out, more);
    EXPECT_EQ(run.exit_code, 0) << run.err;
  }

  // A run as kill -9 leaves it after `step`: checkpoints of later steps and the final adapter do not exist yet.
  static void copy_as_killed(const fs::path& whole, const fs::path& parts, int step, int last) {
    fs::copy(whole, parts, fs::copy_options::recursive);
    fs::remove_all(parts / "adapter");
    for (int later = step + 1; later <= last; ++later)
      fs::remove_all(parts / "checkpoints" / ("step-" + std::to_string(later)));
  }

  static void expect_same_end(const fs::path& a, const fs::path& b, int step) {
    const fs::path checkpoint = fs::path("checkpoints") / ("step-" + std::to_string(step));
    for (const fs::path& file :
         {fs::path("adapter/adapter_model.safetensors"), checkpoint / "adapter_model.safetensors",
          checkpoint / "adapter_config.json", checkpoint / "optimizer.safetensors", checkpoint / "state.json"}) {
      EXPECT_EQ(digest(a / file), digest(b / file)) << file;
    }
  }

  inline static TempDir* dir_ = nullptr;
};

// qalora in the background, to be stopped in the middle.
class Background {
 public:
  explicit Background(const std::vector<std::string>& arguments) {
    std::vector<std::string> words = {QALORA_BINARY};
    words.insert(words.end(), arguments.begin(), arguments.end());
    std::vector<char*> argv;
    for (auto& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    const int failed = posix_spawn(&child_, QALORA_BINARY, nullptr, nullptr, argv.data(), environ);
    if (failed != 0) throw std::runtime_error("cannot start " QALORA_BINARY);
  }

  // Sends the signal once metrics.jsonl has a line of this step -> the exit code, as run_qalora gives it.
  int stop_at(const fs::path& run, int step, int signal_number) {
    return at(run, step, [&] { ::kill(child_, signal_number); });
  }
  // The same with anything else done at that step, and then waits for the run's end.
  int at(const fs::path& run, int step, const std::function<void()>& act) {
    const std::string line = "\"step\":" + std::to_string(step) + ",";
    for (int i = 0; i < 30000; ++i) {
      if (fs::exists(run / "metrics.jsonl") && read_file(run / "metrics.jsonl").find(line) != std::string::npos) break;
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    act();
    int status = 0;
    waitpid(child_, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

 private:
  pid_t child_ = 0;
};

}  // namespace qalora::test
