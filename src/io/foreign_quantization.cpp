#include "qalora/io/foreign_quantization.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <vector>

#include "qalora/core/error.h"
#include "qalora/io/json_file.h"

namespace qalora::io {
namespace {

using nlohmann::json;

constexpr int64_t kLargestGroup = int64_t{1} << 24;

// One place that describes the quantisation.
struct Place {
  std::string name;
  json object;
};

bool is_there(const fs::path& path) { return kind_of(path) != fs::file_type::not_found; }

// The quantiser's own files first: config.json is often copied from the dense model.
std::vector<Place> places_of(const fs::path& folder, const json& config) {
  std::vector<Place> places;
  for (const char* file : {"quantize_config.json", "quant_config.json"}) {
    const fs::path path = folder / file;
    if (!is_there(path)) continue;
    places.push_back({path.string(), read_json_file(path)});
    QALORA_REQUIRE(places.back().object.is_object(), DataError, path.string(), ": expected a JSON object");
  }
  if (config.is_object() && config.contains("quantization_config") && config["quantization_config"].is_object()) {
    places.push_back({(folder / "config.json").string() + ": quantization_config", config["quantization_config"]});
  }
  return places;
}

// The same thing under the names that different programs give it, from the first place that has it.
class Settings {
 public:
  explicit Settings(std::vector<Place> places) : places_(std::move(places)) {}

  // null when nobody says it. DataError when two places contradict each other.
  const json& find(const std::vector<const char*>& keys) const {
    static const json kNothing;
    const json* found = &kNothing;
    std::string by;
    for (const Place& place : places_) {
      for (const char* key : keys) {
        if (!place.object.contains(key) || place.object[key].is_null()) continue;
        const json& value = place.object[key];
        const std::string here = message(place.name, ": '", key, "'");
        // Whole objects (how it was made) may differ in what does not matter here.
        QALORA_REQUIRE(by.empty() || value.is_object() || lower(value) == lower(*found), DataError, here, " is ",
                       shown(value), ", but ", by, " is ", shown(*found), "; remove the one that is wrong");
        if (by.empty()) found = &value, by = here;
      }
    }
    return *found;
  }

  std::string text(const std::vector<const char*>& keys) const {
    const json& value = find(keys);
    QALORA_REQUIRE(value.is_null() || value.is_string(), DataError, name(), ": '", keys[0], "' is ", shown(value),
                   ", expected text");
    return value.is_null() ? "" : lower(value).get<std::string>();
  }

  bool anyone_sets(const char* key) const {
    return std::ranges::any_of(
        places_, [&](const Place& place) { return place.object.contains(key) && place.object[key] == true; });
  }

  bool says(const char* key) const { return !find({key}).is_null(); }
  const std::string& name() const { return places_.at(0).name; }
  static std::string shown(const json& value) { return value.dump().substr(0, 60); }

 private:
  // Text in small letters: "GEMM" is "gemm".
  static json lower(const json& value) {
    if (!value.is_string()) return value;
    std::string result = value.get<std::string>();
    for (char& c : result) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
    return result;
  }

  std::vector<Place> places_;
};

constexpr const char* kStartAgain =
    "; start from the dense checkpoint and run 'qalora quantize', or from a GPTQ, AWQ or MLX checkpoint";

// "gptq" or "awq", by what is said or by the keys that only AWQ has.
std::string method_of(const Settings& settings) {
  std::string method = settings.text({"quant_method", "method"});
  if (method.empty())
    method = settings.says("zero_point") || settings.says("version") || settings.says("w_bit") ? "awq" : "gptq";
  QALORA_REQUIRE(method == "gptq" || method == "awq", DataError, settings.name(), ": quant_method '", method,
                 "' is not read", kStartAgain);
  return method;
}

bool made_by_gptqmodel(const Settings& settings) {
  const json& meta = settings.find({"meta"});
  if (!meta.is_object() || !meta.contains("quantizer")) return false;
  const json& quantizer = meta["quantizer"];
  for (const json& maker : quantizer.is_array() ? quantizer : json::array({quantizer})) {
    if (maker.is_string() && maker.get_ref<const std::string&>().starts_with("gptqmodel")) return true;
  }
  return false;
}

void read_layout(const Settings& settings, ForeignQuantization& result) {
  if (method_of(settings) == "awq") {
    const std::string version = settings.text({"version", "checkpoint_format", "format"});
    QALORA_REQUIRE(version.empty() || version == "gemm", DataError, settings.name(), ": AWQ's layout '", version,
                   "' is not read, only 'gemm'", kStartAgain);
    result.layout = ForeignLayout::kAwq;
    return;
  }
  const std::string format = settings.text({"checkpoint_format", "format"});
  const json& marlin = settings.find({"is_marlin_format"});
  QALORA_REQUIRE(marlin.is_null() || marlin == false, DataError, settings.name(),
                 ": the weights are in Marlin's order, which is not read", kStartAgain);
  if (format == "gptq_p") {
    result.layout = ForeignLayout::kPlanar;
  } else if (format.empty() || format == "gptq") {
    result.zeros = made_by_gptqmodel(settings) ? ZeroRule::kWordPlusOne : ZeroRule::kFieldPlusOne;
  } else {
    QALORA_REQUIRE(format == "gptq_v2", DataError, settings.name(), ": GPTQ's format '", format,
                   "' is not read; gptq, gptq_v2 and gptq_p are", kStartAgain);
  }
}

}  // namespace

bool is_foreign_quantised(const fs::path& folder, const json& config) {
  for (const Place& place : places_of(folder, config)) {
    if (!place.name.ends_with("quantization_config")) return true;
    for (const char* key : {"quant_method", "method"}) {
      if (place.object.contains(key) && (place.object[key] == "gptq" || place.object[key] == "awq")) return true;
    }
  }
  return false;
}

ForeignQuantization read_foreign_quantization(const fs::path& folder, const json& config) {
  const std::vector<Place> places = places_of(folder, config);
  QALORA_REQUIRE(!places.empty(), DataError, folder.string(),
                 ": the weights are packed as GPTQ or AWQ pack them, but nothing says how: "
                 "expected quantize_config.json, quant_config.json, or 'quantization_config' in config.json");
  const Settings settings(places);
  ForeignQuantization result;
  result.name = settings.name();
  read_layout(settings, result);
  const bool awq = result.layout == ForeignLayout::kAwq;
  const json& bits = settings.find({"bits", "w_bit"});
  const bool known = bits.is_number_integer() && (awq ? bits == 4 : bits == 2 || bits == 3 || bits == 4 || bits == 8);
  QALORA_REQUIRE(known, DataError, settings.name(), ": 'bits' is ", Settings::shown(bits), ", expected ",
                 awq ? "4" : "2, 3, 4 or 8");
  result.bits = bits.get<int>();
  const json& size = settings.find({"group_size", "q_group_size"});
  const bool fits = size.is_number_integer() && (size == -1 || (size >= 1 && size <= kLargestGroup));
  QALORA_REQUIRE(fits, DataError, settings.name(), ": 'group_size' is ", Settings::shown(size),
                 ", expected -1 (whole rows) or 1 to ", kLargestGroup);
  result.group_size = size.get<int64_t>();
  const std::string words = settings.text({"pack_dtype"});
  QALORA_REQUIRE(words.empty() || words == "int32", DataError, settings.name(), ": 'pack_dtype' is '", words,
                 "', only int32 is read");
  const json& dynamic = settings.find({"dynamic"});
  result.overrides = dynamic.is_object() && !dynamic.empty();
  result.act_order = settings.anyone_sets("desc_act");
  return result;
}

bool architecture_has_bias(const json& config, const std::string& module) {
  const auto flag = [&](const char* key) { return config.is_object() && config.contains(key) && config[key] == true; };
  const bool qkv = module.ends_with(".q_proj") || module.ends_with(".k_proj") || module.ends_with(".v_proj");
  if (module.find(".mlp.") != std::string::npos) return flag("mlp_bias");
  if (config.is_object() && config.contains("model_type") && config["model_type"] == "qwen2") return qkv;
  return flag("attention_bias") && (qkv || module.ends_with(".o_proj"));
}

}  // namespace qalora::io
