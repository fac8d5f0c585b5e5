// What a run trains: an adapter beside a frozen base, or every weight of a dense model.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "qalora/io/adapter_file.h"
#include "qalora/model/llama.h"
#include "qalora/model/load.h"
#include "qalora/train/config.h"
#include "qalora/train/optimizer.h"
#include "qalora/train/state.h"

namespace qalora::train {

class TrainingSubject {
 public:
  // Loads the base and prepares what is trained: method "qalora" needs a quantised base, "lora" and "full" a dense one.
  TrainingSubject(const TrainConfig& config, at::ScalarType compute, c10::Device device);

  model::Llama& model() { return model_; }
  const model::Llama& model() const { return model_; }
  std::vector<Parameter> parameters() const;
  int64_t trained_elements() const;
  // Of the quantised base (codes and scales, then all else), or of the dense one's shapes and samples of its bytes.
  const std::string& base_fingerprint() const { return fingerprint_; }
  const std::string& initial_adapter_fingerprint() const { return initial_fingerprint_; }  // "" for a fresh one

  Trained trained() const;
  // The current adapter, or the model in f32, into an existing folder.
  void save(const fs::path& folder) const;
  // run/adapter, or run/model in save_dtype with the tokenizer's files -> its path.
  fs::path save_final(const fs::path& run, const TrainConfig& config) const;

 private:
  void prepare_adapter(const TrainConfig& config);

  bool full_;
  std::string source_;  // the base's folder
  nlohmann::json config_json_;
  model::Llama model_;
  io::AdapterFile adapter_;
  model::BaseIdentity base_;  // of a quantised base
  std::string fingerprint_, initial_fingerprint_;
};

}  // namespace qalora::train
