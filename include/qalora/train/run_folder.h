// A run's folder: config.toml, metrics.jsonl, loss.svg, checkpoints/step-N/, best/, and at the end adapter/ (or
// model/).
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "qalora/core/file.h"

namespace qalora::train {

class RunFolder {
 public:
  // First line of config.toml, behind "# ": by it a folder is known to be a run of ours.
  static constexpr const char* kConfigHeading =
      "Resolved configuration of a run; 'qalora finetune --config' takes it back.";

  // UserError when a run at `path` would equal, hold or lie in one of `inputs` (empty ones are passed over).
  static void require_apart(const fs::path& path, const std::vector<fs::path>& inputs);
  // The checks of the constructor alone, and whether the folder can be written (IoError); leaves no trace.
  static void require_usable(const fs::path& path, bool resume, bool force);
  // Fresh run: creates the folder with its config.toml. It may exist only when it is empty, when it holds a run that
  // saved nothing, or when it holds a run and `force` says to start over: then what the old run wrote is removed, and
  // nothing else. Resume: the folder must hold a run; what a killed process left half-written is removed.
  RunFolder(const fs::path& path, bool resume, bool force, const std::string& config_toml);

  const fs::path& path() const { return path_; }
  fs::path checkpoint_path(int64_t step) const;
  bool holds_work() const;                     // a checkpoint, a best or a final adapter or model
  std::vector<int64_t> checkpoints() const;    // steps that have a folder, ascending; it may be damaged
  void prune_checkpoints(int64_t keep) const;  // all but the newest `keep`; 0 keeps all
  void remove_checkpoints_after(int64_t step) const;

  void write_config(const std::string& toml) const;
  // One line of metrics.jsonl, flushed.
  void append_metrics(const nlohmann::json& event) const;
  // After a resume from `step`: later lines are dropped, they will be written again; so is the evaluation of that step
  // where it is still due.
  void truncate_metrics(int64_t step, bool evaluation_due) const;
  std::vector<nlohmann::json> metrics() const;

 private:
  static std::shared_ptr<int> lock(const fs::path& path);
  void remove_leftovers() const;

  fs::path path_;
  std::shared_ptr<int> lock_;  // a descriptor of the folder; null where it could not be locked
};

}  // namespace qalora::train
