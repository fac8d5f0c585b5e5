#include "qalora/train/run_folder.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "qalora/core/error.h"
#include "qalora/core/log.h"

namespace qalora::train {

using nlohmann::json;

namespace {

constexpr const char* kConfig = "config.toml";
constexpr const char* kMetrics = "metrics.jsonl";
constexpr const char* kCheckpoints = "checkpoints";
// What a run writes into its folder; a forced restart removes exactly these. config.toml comes last: while it is there,
// a restart that was killed in between can be repeated.
constexpr const char* kOwn[] = {kMetrics, "loss.svg", kCheckpoints, "best", "adapter", "model", kConfig};

bool all_digits(std::string_view text) {
  return !text.empty() && text.size() < 15 &&
         std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

bool is_step_name(std::string_view name) { return name.starts_with("step-") && all_digits(name.substr(5)); }

[[noreturn]] void fail(const fs::path& path, const char* action, const std::error_code& error) {
  throw IoError(message(path.string(), ": cannot ", action, ": ", error.message()));
}

void remove_tree(const fs::path& path) {
  std::error_code error;
  fs::remove_all(path, error);
  if (error) fail(path, "be removed", error);
}

// Names in a folder; none where there is no such folder.
std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    names.push_back(entry->path().filename().string());
  }
  if (error && error != std::errc::no_such_file_or_directory) fail(folder, "be read", error);
  return names;
}

// config.toml of a run, or "" where there is none of ours.
std::string config_of_run(const fs::path& path) {
  std::error_code error;
  if (!fs::is_regular_file(path / kConfig, error)) return "";
  const std::string text = read_text_file(path / kConfig);
  return text.starts_with(message("# ", RunFolder::kConfigHeading)) ? text : "";
}

// The part of `path` that exists. IoError where it cannot be looked at (a name that is too long, a folder without
// permission).
fs::path existing_part(const fs::path& path) {
  std::error_code error;
  fs::path part = fs::absolute(path, error);
  for (; !error; part = part.parent_path()) {
    const fs::file_status status = fs::status(part, error);
    if (fs::exists(status)) return part;
    if (status.type() == fs::file_type::not_found) error.clear();
  }
  fail(path, "be used as run folder", error);
}

// Really makes a folder and removes it: permissions, read-only disks and strange file systems all show.
void require_writable(const fs::path& folder, const fs::path& path) {
  std::string probe = (folder / ".qalora-probe-XXXXXX").string();
  if (::mkdtemp(probe.data()) == nullptr) fail(path, "be written", std::error_code(errno, std::generic_category()));
  ::rmdir(probe.c_str());
}

// "step-7.qalora-old-12-0a" -> "step-7", old; the temporary of a file has a dot in front.
struct Leftover {
  std::string name, owner;
  bool old = false;
};

std::optional<Leftover> leftover_of(const std::string& name) {
  for (const std::string_view mark : {kStagingMark, kAsideMark}) {
    const size_t at = name.rfind(mark);
    if (at == std::string::npos) continue;
    std::string owner = name.substr(0, at);
    if (owner.starts_with(".")) owner.erase(0, 1);
    const bool own = is_step_name(owner) || std::find(std::begin(kOwn), std::end(kOwn), owner) != std::end(kOwn);
    if (own) return Leftover{name, owner, mark == kAsideMark};
  }
  return std::nullopt;
}

// What training made, be it that a killed process left it under another name. Without it nothing is lost when a run
// begins again.
bool is_work(const std::string& name) {
  const auto leftover = leftover_of(name);
  if (leftover) return leftover->old && is_work(leftover->owner);
  return is_step_name(name) || name == "best" || name == "adapter" || name == "model";
}

bool holds_work_in(const fs::path& path) {
  for (const fs::path& folder : {path, path / kCheckpoints}) {
    const std::vector<std::string> names = names_in(folder);
    if (std::any_of(names.begin(), names.end(), is_work)) return true;
  }
  return false;
}

bool lies_in(const fs::path& inner, const fs::path& outer) {
  return std::mismatch(outer.begin(), outer.end(), inner.begin(), inner.end()).first == outer.end();
}

fs::path resolved(const fs::path& path) {
  std::error_code error;
  fs::path result = fs::weakly_canonical(fs::absolute(path, error), error);
  if (error) result = path.lexically_normal();
  return result.has_filename() ? result : result.parent_path();  // "run/" is "run"
}

}  // namespace

void RunFolder::require_apart(const fs::path& path, const std::vector<fs::path>& inputs) {
  const fs::path out = resolved(path);
  for (const fs::path& input : inputs) {
    if (input.empty()) continue;
    const fs::path other = resolved(input);
    QALORA_REQUIRE(out != other, UserError, "--out ", path.string(), ": is the same place as the input ",
                   input.string(), "; choose a folder of its own for the run");
    QALORA_REQUIRE(!lies_in(other, out), UserError, "--out ", path.string(), ": holds the input ", input.string(),
                   "; choose a folder of its own for the run");
    QALORA_REQUIRE(!lies_in(out, other), UserError, "--out ", path.string(), ": lies in the input ", input.string(),
                   "; choose a folder of its own for the run");
  }
}

void RunFolder::require_usable(const fs::path& path, bool resume, bool force) {
  const fs::path part = existing_part(path);
  std::error_code error;
  QALORA_REQUIRE(fs::is_directory(part, error), UserError, part.string(), ": is a file, expected a folder for --out ",
                 path.string());
  const bool exists = fs::exists(path, error);
  const bool holds_run = exists && !config_of_run(path).empty();
  const bool holds_work = holds_run && holds_work_in(path);
  QALORA_REQUIRE(!resume || holds_run, UserError, path.string(),
                 ": holds no run to resume; leave --resume out to start one");
  QALORA_REQUIRE(resume || !holds_work || force, UserError, path.string(),
                 ": holds a run already; continue it with --resume, start over with --force, or choose another --out");
  QALORA_REQUIRE(holds_run || !exists || names_in(path).empty(), UserError, path.string(),
                 ": is not empty and holds no run of 'qalora finetune'; it is left alone, choose another --out");
  require_writable(part, path);
}

// Held until the descriptor's last owner is gone, which is with the process at the latest: two runs in one folder would
// delete each other's files. A file system without locks is not a reason to refuse.
std::shared_ptr<int> RunFolder::lock(const fs::path& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return nullptr;
  const bool busy = ::flock(descriptor, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
  if (busy) ::close(descriptor);
  QALORA_REQUIRE(!busy, UserError, path.string(),
                 ": another process is training in this folder; wait for it, or choose another --out");
  return {new int(descriptor), [](int* held) {
            ::close(*held);
            delete held;
          }};
}

RunFolder::RunFolder(const fs::path& path, bool resume, bool force, const std::string& config_toml) : path_(path) {
  require_usable(path, resume, force);
  lock_ = lock(path);
  const std::string old_config = config_of_run(path);
  if (!old_config.empty()) remove_leftovers();
  std::error_code error;
  if (!resume) {
    // model/ is a run's own only where the run trained a whole model.
    const bool full = old_config.find("\nmethod = \"full\"") != std::string::npos;
    for (const char* name : kOwn) {
      if (!old_config.empty() && (full || std::string_view(name) != "model")) remove_tree(path / name);
    }
    fs::create_directories(path, error);
    if (error) fail(path, "be created", error);
    write_config(config_toml);
  }
  fs::create_directories(path_ / kCheckpoints, error);
  if (error) fail(path_ / kCheckpoints, "be created", error);
  if (!lock_) lock_ = lock(path_);  // it was not there before
}

void RunFolder::remove_leftovers() const {
  for (const fs::path& folder : {path_, path_ / kCheckpoints}) {
    for (const std::string& name : names_in(folder)) {
      const auto leftover = leftover_of(name);
      if (!leftover) continue;
      // Killed between the two renames of a replacement, the old folder is the only one: it gets its name back.
      std::error_code error;
      const bool only_one = leftover->old && !fs::exists(fs::symlink_status(folder / leftover->owner, error));
      if (only_one) fs::rename(folder / name, folder / leftover->owner, error);
      if (only_one && error) fail(folder / name, "be renamed", error);
      if (!only_one) remove_tree(folder / name);
      log::info(
          message((folder / name).string(), ": left by a killed run, ", only_one ? "gets its name back" : "removed"));
    }
  }
}

fs::path RunFolder::checkpoint_path(int64_t step) const {
  return path_ / kCheckpoints / ("step-" + std::to_string(step));
}

bool RunFolder::holds_work() const { return holds_work_in(path_); }

std::vector<int64_t> RunFolder::checkpoints() const {
  std::vector<int64_t> steps;
  for (const std::string& name : names_in(path_ / kCheckpoints)) {
    if (is_step_name(name)) steps.push_back(std::stoll(name.substr(5)));
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

void RunFolder::prune_checkpoints(int64_t keep) const {
  if (keep <= 0) return;
  std::vector<int64_t> steps = checkpoints();
  while (static_cast<int64_t>(steps.size()) > keep) {
    remove_tree(checkpoint_path(steps.front()));
    steps.erase(steps.begin());
  }
}

void RunFolder::remove_checkpoints_after(int64_t step) const {
  for (const int64_t other : checkpoints()) {
    if (other > step) remove_tree(checkpoint_path(other));
  }
}

void RunFolder::write_config(const std::string& toml) const { write_text_file(path_ / kConfig, toml); }

void RunFolder::append_metrics(const json& event) const {
  std::ofstream out(path_ / kMetrics, std::ios::app);
  out << event.dump(-1, ' ', false, json::error_handler_t::replace) << "\n";  // a path may be any bytes
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

void RunFolder::truncate_metrics(int64_t step, bool evaluation_due) const {
  std::string kept;
  for (const json& event : metrics()) {
    const int64_t at = event.value("step", int64_t{0});
    const bool again = at > step || (at == step && evaluation_due && event.value("event", "") == "eval");
    if (!again) kept += event.dump() + "\n";
  }
  write_text_file(path_ / kMetrics, kept);
}

}  // namespace qalora::train
