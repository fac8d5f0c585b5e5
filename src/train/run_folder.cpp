#include "qalora/train/run_folder.h"

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>

#include "qalora/core/error.h"

namespace qalora::train {

using nlohmann::json;

namespace {

constexpr const char* kMetrics = "metrics.jsonl";
// What a run writes into its folder; a forced restart removes exactly these.
constexpr const char* kOwn[] = {"config.toml", kMetrics, "loss.svg", "checkpoints", "best", "adapter", "model"};

}  // namespace

void RunFolder::require_usable(const fs::path& path, bool resume, bool force) {
  std::error_code error;
  QALORA_REQUIRE(!fs::exists(path, error) || fs::is_directory(path, error), UserError, path.string(), ": is a file, expected a run folder");
  const bool holds_run = fs::exists(path / "config.toml") || fs::exists(path / "checkpoints");
  QALORA_REQUIRE(!resume || holds_run, UserError, path.string(), ": holds no run to resume; leave --resume out to start one");
  QALORA_REQUIRE(resume || !holds_run || force, UserError, path.string(),
                 ": holds a run already; continue it with --resume, start over with --force, or choose another --out");
}

RunFolder::RunFolder(const fs::path& path, bool resume, bool force) : path_(path) {
  require_usable(path, resume, force);
  if (resume) return;
  for (const char* name : kOwn) fs::remove_all(path / name);
  std::error_code error;
  fs::create_directories(path / "checkpoints", error);
  QALORA_REQUIRE(!error, IoError, path.string(), ": cannot create the run folder: ", error.message());
}

fs::path RunFolder::checkpoint_path(int64_t step) const { return path_ / "checkpoints" / ("step-" + std::to_string(step)); }

std::vector<int64_t> RunFolder::checkpoints() const {
  std::vector<int64_t> steps;
  if (!fs::is_directory(path_ / "checkpoints")) return steps;
  for (const auto& entry : fs::directory_iterator(path_ / "checkpoints")) {
    const std::string name = entry.path().filename().string();
    const bool digits = name.size() > 5 && name.size() < 20 && std::all_of(name.begin() + 5, name.end(), [](char c) { return c >= '0' && c <= '9'; });
    if (name.starts_with("step-") && digits && fs::exists(entry.path() / "state.json")) steps.push_back(std::stoll(name.substr(5)));
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

void RunFolder::prune_checkpoints(int64_t keep) const {
  if (keep <= 0) return;
  std::vector<int64_t> steps = checkpoints();
  while (static_cast<int64_t>(steps.size()) > keep) {
    fs::remove_all(checkpoint_path(steps.front()));
    steps.erase(steps.begin());
  }
}

void RunFolder::write_config(const std::string& toml) const { write_text_file(path_ / "config.toml", toml); }

void RunFolder::append_metrics(const json& event) const {
  std::ofstream out(path_ / kMetrics, std::ios::app);
  out << event.dump() << "\n";
  out.flush();
  QALORA_REQUIRE(out.good(), IoError, (path_ / kMetrics).string(), ": cannot be written (disk full?)");
}

std::vector<json> RunFolder::metrics() const {
  std::vector<json> events;
  std::ifstream in(path_ / kMetrics);
  for (std::string line; std::getline(in, line);) {
    json event = json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (event.is_object()) events.push_back(std::move(event));  // a crash may have left half a line
  }
  return events;
}

void RunFolder::truncate_metrics(int64_t step) const {
  std::string kept;
  for (const json& event : metrics()) {
    if (event.value("step", int64_t{0}) <= step) kept += event.dump() + "\n";
  }
  write_text_file(path_ / kMetrics, kept);
}

}  // namespace qalora::train
