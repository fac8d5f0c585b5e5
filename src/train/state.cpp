#include "qalora/train/state.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <nlohmann/json.hpp>

#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/io/checkpoint.h"
#include "qalora/model/load.h"
#include "qalora/tensor/device.h"
#include "qalora/tensor/dtype.h"

namespace qalora::train {

using nlohmann::json;

namespace {

constexpr const char* kState = "state.json";
constexpr const char* kOptimizer = "optimizer.safetensors";

json identity_json(const RunIdentity& identity) {
  return {{"data_fingerprint", identity.data_fingerprint},
          {"base_fingerprint", identity.base_fingerprint},
          {"tokenizer_fingerprint", identity.tokenizer_fingerprint},
          {"initial_adapter_fingerprint", identity.initial_adapter_fingerprint},
          {"settings", identity.settings}};
}

std::string read_text(const json& object, const char* key, const std::string& source) {
  QALORA_REQUIRE(object.contains(key) && object.at(key).is_string(), DataError, source, ": '", key,
                 "' is missing or no text");
  return object.at(key).get<std::string>();
}

RunIdentity read_identity(const json& saved, const std::string& source) {
  QALORA_REQUIRE(saved.is_object() && saved.contains("identity") && saved.at("identity").is_object(), DataError, source,
                 ": is not the state of a training run");
  const json& object = saved.at("identity");
  RunIdentity identity;
  identity.data_fingerprint = read_text(object, "data_fingerprint", source);
  identity.base_fingerprint = read_text(object, "base_fingerprint", source);
  identity.tokenizer_fingerprint = read_text(object, "tokenizer_fingerprint", source);
  identity.initial_adapter_fingerprint = read_text(object, "initial_adapter_fingerprint", source);
  QALORA_REQUIRE(object.contains("settings") && object.at("settings").is_array(), DataError, source,
                 ": 'settings' is missing or no list");
  for (const json& setting : object.at("settings")) {
    QALORA_REQUIRE(setting.is_string(), DataError, source, ": 'settings' must hold texts, got ", setting.dump());
    identity.settings.push_back(setting.get<std::string>());
  }
  return identity;
}

void require_same(const std::string& source, const char* what, const std::string& saved, const std::string& now) {
  const auto shown = [](const std::string& fingerprint) {
    return fingerprint.empty() ? "none" : fingerprint.substr(0, 16) + "...";
  };
  QALORA_REQUIRE(saved == now, DataError, source, ": the run was started with another ", what, " (", shown(saved),
                 ", now ", shown(now), "); give the same, or start a new run");
}

// The entry "key=..." of a list of settings, or "no key".
std::string setting_of(const std::vector<std::string>& settings, const std::string& key) {
  const auto found =
      std::find_if(settings.begin(), settings.end(), [&](const std::string& s) { return s.starts_with(key + "="); });
  return found == settings.end() ? "no " + key : *found;
}

int64_t read_count(const json& object, const char* key, const std::string& source) {
  QALORA_REQUIRE(object.contains(key) && object.at(key).is_number_integer() && object.at(key).get<int64_t>() >= 0,
                 DataError, source, ": '", key, "' is missing or not a count");
  return object.at(key).get<int64_t>();
}

// A and B mean nothing without these.
void require_same_adapter(const fs::path& folder, const io::AdapterConfig& saved, const io::AdapterConfig& now) {
  const bool same = saved.rank == now.rank && saved.scaling == now.scaling && saved.pooling == now.pooling &&
                    saved.group_size == now.group_size && saved.base_fingerprint == now.base_fingerprint;
  QALORA_REQUIRE(same, DataError, folder.string(), ": its adapter (rank ", saved.rank, ", scaling ",
                 format_number(saved.scaling), ", pooling ", io::pooling_name(saved.pooling),
                 ") is not what this run trains (rank ", now.rank, ", scaling ", format_number(now.scaling),
                 ", pooling ", io::pooling_name(now.pooling), ")");
}

}  // namespace

std::vector<std::string> decisive_settings(const TrainConfig& c, at::ScalarType compute) {
  const auto text = [](const auto& value) { return message(value); };
  const auto flag = [](bool value) { return std::string(value ? "true" : "false"); };
  std::vector<std::string> result = {
      "method=" + c.method, "initialize=" + c.initialize, "rank=" + text(c.rank), "alpha=" + format_number(c.alpha),
      "dropout=" + format_number(c.dropout), "pooling=" + c.pooling, "targets=" + join(c.targets, ","),
      "data_format=" + c.data_format, "template=" + c.template_name, "sequence_length=" + text(c.sequence_length),
      "packing=" + flag(c.packing), "shuffle=" + flag(c.shuffle), "group_by_length=" + flag(c.group_by_length),
      "train_on_prompt=" + flag(c.train_on_prompt), "skip_bad_records=" + flag(c.skip_bad_records),
      "batch_size=" + text(c.batch_size), "micro_batch_size=" + text(c.micro_batch_size),
      "learning_rate=" + format_number(c.learning_rate), "schedule=" + c.schedule,
      "warmup_steps=" + text(c.warmup_steps), "weight_decay=" + format_number(c.weight_decay),
      "max_grad_norm=" + format_number(c.max_grad_norm), "adam_beta1=" + format_number(c.adam_beta1),
      "adam_beta2=" + format_number(c.adam_beta2), "adam_epsilon=" + format_number(c.adam_epsilon),
      "seed=" + text(c.seed),
      // Held-out examples are taken out of the training file, so their number decides what is trained on; a file of its
      // own does not.
      "eval_examples=" + text(c.eval_examples), "dtype=" + tensor::dtype_name(compute)};
  result.push_back("source_length=" + text(c.source_length));
  result.push_back("target_length=" + text(c.target_length));
  if (c.schedule != "constant") result.push_back("steps=" + text(c.steps));
  return result;
}

void save_checkpoint(const fs::path& folder, const Trained& trained, const AdamW& optimizer, const TrainState& state,
                     const RunIdentity& identity) {
  AtomicFolder target(folder, /*replace=*/true);
  if (trained.adapter != nullptr) {
    io::write_adapter(target.staging(), *trained.adapter);
  } else {
    model::save_dense(*trained.model, target.staging(), *trained.config_json, at::kFloat);
  }
  io::write_safetensors(target.staging() / kOptimizer, optimizer.state());
  json out = {{"step", state.step},
              {"updates", state.updates},
              {"skipped", state.skipped},
              {"skipped_in_a_row", state.skipped_in_a_row},
              {"tokens", state.tokens},
              {"trained_tokens", state.trained_tokens},
              {"evaluation_due", state.evaluation_due},
              {"threads", tensor::threads()},
              {"identity", identity_json(identity)}};
  io::write_json_file(target.staging() / kState, out);
  target.commit();
}

SavedState read_state(const fs::path& folder) {
  const fs::path path = folder / kState;
  const json saved = io::read_json_file(path);
  const std::string source = path.string();
  SavedState result;
  result.identity = read_identity(saved, source);
  result.threads = read_count(saved, "threads", source);
  TrainState& state = result.state;
  state.step = read_count(saved, "step", source);
  state.updates = read_count(saved, "updates", source);
  state.skipped = read_count(saved, "skipped", source);
  state.skipped_in_a_row = read_count(saved, "skipped_in_a_row", source);
  state.tokens = read_count(saved, "tokens", source);
  state.trained_tokens = read_count(saved, "trained_tokens", source);
  QALORA_REQUIRE(saved.contains("evaluation_due") && saved.at("evaluation_due").is_boolean(), DataError, source,
                 ": 'evaluation_due' is missing or neither true nor false");
  state.evaluation_due = saved.at("evaluation_due").get<bool>();
  return result;
}

void require_same_run(const std::string& source, const RunIdentity& saved, const RunIdentity& now) {
  require_same(source, "training file", saved.data_fingerprint, now.data_fingerprint);
  require_same(source, "base model", saved.base_fingerprint, now.base_fingerprint);
  require_same(source, "tokenizer", saved.tokenizer_fingerprint, now.tokenizer_fingerprint);
  require_same(source, "initial_adapter", saved.initial_adapter_fingerprint, now.initial_adapter_fingerprint);
  // Both ways: a setting that only one of them has makes another run too.
  for (const auto& [some, others] :
       {std::pair(&now.settings, &saved.settings), std::pair(&saved.settings, &now.settings)}) {
    for (const std::string& setting : *some) {
      if (std::find(others->begin(), others->end(), setting) != others->end()) continue;
      const std::string key = setting.substr(0, setting.find('='));
      const char* why =
          key == "steps"
              ? " (the schedule falls towards the last step: the steps done so far would have had other rates)"
              : "";
      throw DataError(message(source, ": the run was started with ", setting_of(saved.settings, key), ", now it is ",
                              setting_of(now.settings, key), why, "; give the same value, or start a new run"));
    }
  }
}

void load_values(const fs::path& folder, const Trained& trained, AdamW& optimizer, int64_t updates) {
  const c10::NoGradGuard no_grad;
  std::map<std::string, at::Tensor> saved;
  if (trained.adapter != nullptr) {
    const io::AdapterFile adapter = io::read_adapter(folder);
    require_same_adapter(folder, adapter.config, trained.adapter->config);
    for (const auto& [module, weights] : adapter.modules) {
      saved[module + ".lora_A.weight"] = weights.a;
      saved[module + ".lora_B.weight"] = weights.b;
    }
  } else {
    const io::Checkpoint checkpoint(folder);
    for (const std::string& name : checkpoint.names()) saved[name] = checkpoint.read(name);
  }
  for (const Parameter& parameter : optimizer.parameters()) {
    const auto found = saved.find(parameter.name);
    QALORA_REQUIRE(found != saved.end() && found->second.sizes() == parameter.value.sizes(), DataError, folder.string(),
                   ": tensor '", parameter.name, "' is missing or has another shape than ", parameter.value.sizes());
    at::Tensor value = parameter.value;
    value.copy_(found->second);
  }
  const io::SafetensorsFile file(folder / kOptimizer);
  std::map<std::string, at::Tensor> moments;
  for (const auto& [name, info] : file.tensors()) moments[name] = file.read(name);
  optimizer.load_state(moments, updates, file.path().string());
}

}  // namespace qalora::train
