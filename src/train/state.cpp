#include "qalora/train/state.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <nlohmann/json.hpp>

#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/io/checkpoint.h"
#include "qalora/model/load.h"

namespace qalora::train {

using nlohmann::json;

namespace {

constexpr const char* kState = "state.json";
constexpr const char* kOptimizer = "optimizer.safetensors";

json identity_json(const RunIdentity& identity) {
  return {{"data_fingerprint", identity.data_fingerprint},
          {"base_fingerprint", identity.base_fingerprint},
          {"tokenizer_fingerprint", identity.tokenizer_fingerprint},
          {"settings", identity.settings}};
}

void require_same(const std::string& source, const char* what, const json& saved, const std::string& now) {
  QALORA_REQUIRE(saved.value(what, std::string()) == now, DataError, source, ": the run was started with another ", what, " (",
                 saved.value(what, std::string("none")).substr(0, 16), "..., now ", now.substr(0, 16),
                 "...); give the same files, or start a new run");
}

int64_t read_count(const json& object, const char* key, const std::string& source) {
  QALORA_REQUIRE(object.contains(key) && object.at(key).is_number_integer() && object.at(key).get<int64_t>() >= 0, DataError, source, ": '", key,
                 "' is missing or not a count");
  return object.at(key).get<int64_t>();
}

}  // namespace

std::vector<std::string> decisive_settings(const TrainConfig& c) {
  const auto text = [](const auto& value) { return message(value); };
  const auto flag = [](bool value) { return std::string(value ? "true" : "false"); };
  std::vector<std::string> result = {
      "method=" + c.method, "initialize=" + c.initialize, "rank=" + text(c.rank), "alpha=" + format_number(c.alpha),
      "dropout=" + format_number(c.dropout), "pooling=" + c.pooling, "targets=" + join(c.targets, ","), "data_format=" + c.data_format,
      "template=" + c.template_name, "sequence_length=" + text(c.sequence_length), "packing=" + flag(c.packing), "shuffle=" + flag(c.shuffle),
      "group_by_length=" + flag(c.group_by_length), "train_on_prompt=" + flag(c.train_on_prompt),
      "skip_bad_records=" + flag(c.skip_bad_records), "batch_size=" + text(c.batch_size), "micro_batch_size=" + text(c.micro_batch_size),
      "learning_rate=" + format_number(c.learning_rate), "schedule=" + c.schedule, "warmup_steps=" + text(c.warmup_steps),
      "weight_decay=" + format_number(c.weight_decay), "max_grad_norm=" + format_number(c.max_grad_norm),
      "adam_beta1=" + format_number(c.adam_beta1), "adam_beta2=" + format_number(c.adam_beta2),
      "adam_epsilon=" + format_number(c.adam_epsilon), "seed=" + text(c.seed)};
  // Held-out examples are taken out of the training file, so their number decides what is trained on; a file of its own does not.
  if (c.eval_data.empty()) result.push_back("eval_examples=" + text(c.eval_examples));
  return result;
}

void save_checkpoint(const fs::path& folder, const Trained& trained, const AdamW& optimizer, const TrainState& state, const RunIdentity& identity) {
  AtomicFolder target(folder, /*replace=*/true);
  if (trained.adapter != nullptr) {
    io::write_adapter(target.staging(), *trained.adapter);
  } else {
    model::save_dense(*trained.model, target.staging(), *trained.config_json, at::kFloat);
  }
  io::write_safetensors(target.staging() / kOptimizer, optimizer.state());
  json out = {{"step", state.step}, {"updates", state.updates}, {"skipped", state.skipped}, {"skipped_in_a_row", state.skipped_in_a_row},
              {"tokens", state.tokens}, {"trained_tokens", state.trained_tokens}, {"identity", identity_json(identity)}};
  io::write_json_file(target.staging() / kState, out);
  target.commit();
}

TrainState read_state(const fs::path& folder, const RunIdentity& identity) {
  const fs::path path = folder / kState;
  const json saved = io::read_json_file(path);
  const std::string source = path.string();
  QALORA_REQUIRE(saved.is_object() && saved.contains("identity") && saved.at("identity").is_object(), DataError, source,
                 ": is not the state of a training run");
  const json& same = saved.at("identity");
  require_same(source, "data_fingerprint", same, identity.data_fingerprint);
  require_same(source, "base_fingerprint", same, identity.base_fingerprint);
  require_same(source, "tokenizer_fingerprint", same, identity.tokenizer_fingerprint);
  const auto settings = same.value("settings", std::vector<std::string>());
  for (const std::string& setting : identity.settings) {
    if (std::find(settings.begin(), settings.end(), setting) != settings.end()) continue;
    const std::string key = setting.substr(0, setting.find('=') + 1);
    const auto old = std::find_if(settings.begin(), settings.end(), [&](const std::string& s) { return s.starts_with(key); });
    throw DataError(message(source, ": the run was started with ", old == settings.end() ? "no " + key : *old, ", now it is ", setting,
                            "; give the same value, or start a new run"));
  }
  TrainState state;
  state.step = read_count(saved, "step", source);
  state.updates = read_count(saved, "updates", source);
  state.skipped = read_count(saved, "skipped", source);
  state.skipped_in_a_row = read_count(saved, "skipped_in_a_row", source);
  state.tokens = read_count(saved, "tokens", source);
  state.trained_tokens = read_count(saved, "trained_tokens", source);
  return state;
}

void load_values(const fs::path& folder, const Trained& trained, AdamW& optimizer, int64_t updates) {
  const c10::NoGradGuard no_grad;
  std::map<std::string, at::Tensor> saved;
  if (trained.adapter != nullptr) {
    for (const auto& [module, weights] : io::read_adapter(folder).modules) {
      saved[module + ".lora_A.weight"] = weights.a;
      saved[module + ".lora_B.weight"] = weights.b;
    }
  } else {
    const io::Checkpoint checkpoint(folder);
    for (const std::string& name : checkpoint.names()) saved[name] = checkpoint.read(name);
  }
  for (const Parameter& parameter : optimizer.parameters()) {
    const auto found = saved.find(parameter.name);
    QALORA_REQUIRE(found != saved.end() && found->second.sizes() == parameter.value.sizes(), DataError, folder.string(), ": tensor '",
                   parameter.name, "' is missing or has another shape than ", parameter.value.sizes());
    at::Tensor value = parameter.value;
    value.copy_(found->second);
  }
  const io::SafetensorsFile file(folder / kOptimizer);
  std::map<std::string, at::Tensor> moments;
  for (const auto& [name, info] : file.tensors()) moments[name] = file.read(name);
  optimizer.load_state(moments, updates, file.path().string());
}

}  // namespace qalora::train
