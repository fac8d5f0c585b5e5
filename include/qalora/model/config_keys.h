// What is known about the keys of config.json besides those that are read.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>

namespace qalora::model {

const std::set<std::string>& handled_keys();   // read by parse_config
const std::set<std::string>& harmless_keys();  // never change what the model computes
const std::set<std::string>& rope_keys();      // inside rope_scaling and rope_parameters
// Keys that would change the result, with the one value under which they do not.
const std::map<std::string, nlohmann::json>& neutral_values();

}  // namespace qalora::model
