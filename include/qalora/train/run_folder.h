// A run's folder: config.toml, metrics.jsonl, loss.svg, checkpoints/step-N/, best/, and at the end adapter/ (or model/).
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "qalora/core/file.h"

namespace qalora::train {

class RunFolder {
 public:
  // The checks of the constructor alone; nothing is created or removed.
  static void require_usable(const fs::path& path, bool resume, bool force);
  // Fresh run: creates the folder; one that holds a run already is a UserError (resume, or force to start over: then
  // what the old run wrote is removed). Resume: the folder must hold a run.
  RunFolder(const fs::path& path, bool resume, bool force);

  const fs::path& path() const { return path_; }
  fs::path checkpoint_path(int64_t step) const;
  std::vector<int64_t> checkpoints() const;          // steps of complete checkpoints, ascending
  void prune_checkpoints(int64_t keep) const;        // all but the newest `keep`; 0 keeps all

  void write_config(const std::string& toml) const;
  // One line of metrics.jsonl, flushed.
  void append_metrics(const nlohmann::json& event) const;
  // After a resume from `step`: later lines are dropped, they will be written again.
  void truncate_metrics(int64_t step) const;
  std::vector<nlohmann::json> metrics() const;

 private:
  fs::path path_;
};

}  // namespace qalora::train
