// adapter_config.json, ours and PEFT's: what it says about every module.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "qalora/io/adapter_file.h"

namespace qalora::io {

struct AdapterSettings {
  AdapterConfig config;
  std::string where;                       // the file, for messages
  bool rank_stabilised = false;            // use_rslora
  double alpha = 0;                        // lora_alpha as it stands there
  std::map<std::string, int64_t> ranks;    // rank_pattern, by pattern
  std::map<std::string, double> alphas;    // alpha_pattern, by pattern
  std::map<std::string, double> scalings;  // of our own files, by module
};

// DataError names the file and the field.
AdapterSettings read_adapter_settings(const fs::path& path);

int64_t rank_of(const AdapterSettings& settings, const std::string& module);
// What multiplies B A pool(x) in this module, where it is not the configuration's scaling. a_columns: the width of its
// A.
std::optional<double> own_scaling(const AdapterSettings& settings, const std::string& module, int64_t a_columns);

// The fields of a configuration that read_adapter_settings takes back.
nlohmann::json adapter_config_json(const AdapterFile& adapter);

}  // namespace qalora::io
