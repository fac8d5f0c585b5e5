// Finished blocks of a quantised model, kept beside the output until all of them are there: a run that was stopped goes
// on behind the last one.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "qalora/core/file.h"
#include "qalora/quant/packed_weight.h"

namespace qalora::model {

struct FinishedBlock {
  std::map<std::string, quant::PackedWeight> weights;  // by module
  nlohmann::json report;                               // of its matrices, as a list
};

class WorkFolder {
 public:
  static fs::path path_for(const fs::path& out);  // OUT.partial
  static int64_t finished_in(const fs::path& out,
                             const nlohmann::json& identity);     // without a trace; 0 where it is another's
  static uint64_t bytes_in(const fs::path& out, int64_t blocks);  // of the files of blocks 0 .. blocks - 1

  // identity: everything that the bytes of a block follow from. A folder of another identity is a UserError that says
  // what differs, unless `restart`, which removes its blocks. UserError while another process works in it.
  WorkFolder(const fs::path& out, const nlohmann::json& identity, bool restart);
  ~WorkFolder();
  WorkFolder(const WorkFolder&) = delete;
  WorkFolder& operator=(const WorkFolder&) = delete;

  const fs::path& path() const { return path_; }
  int64_t finished() const { return finished_; }            // blocks 0 .. finished - 1 are here, whole
  void save(int64_t block, const FinishedBlock& finished);  // the next one
  FinishedBlock load(int64_t block) const;
  nlohmann::json report(int64_t block) const;
  quant::PackedWeight weight(int64_t block, const std::string& module) const;
  void remove();  // its work is done

 private:
  fs::path file_of(int64_t block) const;
  bool is_same(const nlohmann::json& identity) const;
  void require_same(const nlohmann::json& identity) const;
  void begin(const nlohmann::json& identity);
  bool readable(int64_t block) const;

  fs::path path_;
  int lock_ = -1;
  int64_t finished_ = 0;
};

}  // namespace qalora::model
