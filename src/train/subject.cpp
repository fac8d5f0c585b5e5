#include "qalora/train/subject.h"

#include <ATen/ATen.h>

#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/core/log.h"
#include "qalora/io/checkpoint.h"
#include "qalora/io/model_files.h"
#include "qalora/model/adapter_base.h"
#include "qalora/model/load.h"
#include "qalora/quant/adapter.h"

namespace qalora::train {

namespace {

// Of its numbers and of what they mean, not of the paths that its configuration mentions.
std::string adapter_fingerprint(const fs::path& folder, const io::AdapterConfig& config) {
  Sha256 hash;
  hash.update(MappedFile(io::adapter_tensor_file(folder)).bytes());
  hash.update(
      message(" ", format_number(config.scaling), " ", io::pooling_name(config.pooling), " ", config.group_size));
  return hash.hex();
}

bool is_target(const TrainConfig& config, const std::string& module) {
  return std::any_of(config.targets.begin(), config.targets.end(),
                     [&](const std::string& target) { return module.ends_with("." + target); });
}

at::ScalarType save_dtype(const TrainConfig& config) {
  return config.save_dtype == "float16" ? at::kHalf : config.save_dtype == "bfloat16" ? at::kBFloat16 : at::kFloat;
}

}  // namespace

TrainingSubject::TrainingSubject(const TrainConfig& config, at::ScalarType compute, c10::Device device)
    : full_(config.full()),
      source_(config.model) {
  config_json_ = io::read_model_config(config.model);
  if (full_) io::sidecars(config.model);  // they are copied at the end: what is wrong with one is said now
  const model::LlamaConfig shape = model::read_config(config.model);
  if (config.initialize == "random") {
    QALORA_REQUIRE(
        !fs::exists(fs::path(config.model) / "model.safetensors") &&
            !fs::exists(fs::path(config.model) / "model.safetensors.index.json"),
        UserError, config.model,
        ": holds weights, which initialize = \"random\" would ignore; give a folder with config.json and the tokenizer only");
    model_ = model::new_model(shape, static_cast<uint64_t>(config.seed));
    model_.to(device);
    model_.compute = compute;
    Sha256 hash;
    hash.update(config_json_.dump());
    fingerprint_ = hash.hex();
    return;
  }
  model_ = model::load_model(config.model, {.compute = compute, .trainable = full_, .device = device});
  if (shape.quantization) base_ = model::base_identity(io::Checkpoint(config.model));
  fingerprint_ =
      shape.quantization ? base_.fingerprint + " " + base_.state : io::dense_fingerprint(io::Checkpoint(config.model));
  if (!full_) prepare_adapter(config);
}

void TrainingSubject::prepare_adapter(const TrainConfig& config) {
  const bool pooled = config.method == "qalora";
  const int64_t group_size = pooled ? model_.config.quantization->group_size : 0;
  if (!config.initial_adapter.empty()) {
    const fs::path folder = io::find_adapter(config.initial_adapter);
    adapter_ = model::read_adapter_for(folder, model_.config);
    initial_fingerprint_ = adapter_fingerprint(folder, adapter_.config);
    const std::string pooling = io::pooling_name(adapter_.config.pooling);
    QALORA_REQUIRE(pooled == (adapter_.config.pooling != io::Pooling::kNone), UserError, config.initial_adapter,
                   ": its pooling is '", pooling, "', which method '", config.method, "' cannot continue");
    QALORA_REQUIRE(!pooled || adapter_.config.group_size == group_size, UserError, config.initial_adapter,
                   ": pools groups of ", adapter_.config.group_size, " inputs, the model is quantised in groups of ",
                   group_size, "; what it learns could not be merged");
    adapter_.config.origin = io::AdapterOrigin::kOwn;  // it is written by our rules, with the scalings that it had
    // What the adapter is belongs to its file; of the configuration only dropout, a matter of training, is taken.
    adapter_.config.dropout = config.dropout;
  } else {
    io::AdapterConfig& c = adapter_.config;
    c.rank = config.rank;
    c.alpha = config.alpha;
    c.scaling = config.alpha / static_cast<double>(config.rank);
    c.dropout = config.dropout;
    c.pooling = pooled ? io::parse_pooling(config.pooling) : io::Pooling::kNone;
    c.group_size = group_size;
    c.targets = config.targets;
    std::vector<quant::LinearShape> shapes;
    for (const model::Linear* linear : model_.linears()) {
      if (!is_target(config, linear->module())) continue;
      // Some quantisers leave single layers dense, which have no offsets that an adapter could be merged into.
      if (pooled && !linear->quantised()) {
        log::warn(config.model + ": '" + linear->module() + "' is dense in this quantised model; it gets no adapter");
        continue;
      }
      const int64_t inputs = pooled ? linear->groups() : linear->in_features();
      shapes.push_back({linear->module(), linear->out_features(), linear->in_features(), inputs});
    }
    adapter_ = quant::new_adapter(c, shapes, static_cast<uint64_t>(config.seed));
  }
  std::error_code failed;
  const fs::path data = fs::absolute(config.data, failed);  // the merge may be started from another folder
  adapter_.config.training_data = failed ? config.data : data.string();
  const model::BaseIdentity known = pooled ? base_ : model::BaseIdentity{};
  // Of an adapter made elsewhere nothing can be checked; what is trained from here on belongs to this base.
  if (pooled && !config.initial_adapter.empty() && adapter_.config.base_fingerprint.empty()) {
    log::warn(config.initial_adapter + ": does not say on which base it was trained; it is continued on " +
              config.model);
  }
  if (adapter_.config.base_fingerprint.empty()) adapter_.config.base_fingerprint = known.fingerprint;
  if (adapter_.config.base_state_fingerprint.empty()) adapter_.config.base_state_fingerprint = known.state;
  for (auto& [module, weights] : adapter_.modules) {
    weights.a = weights.a.detach().to(model_.device()).requires_grad_(true);
    weights.b = weights.b.detach().to(model_.device()).requires_grad_(true);
  }
  model::attach_adapter(model_, adapter_, known);
  adapter_.config.base_model = config.model;
}

std::vector<Parameter> TrainingSubject::parameters() const {
  std::vector<Parameter> result;
  if (!full_) {
    for (const auto& [module, weights] : adapter_.modules) {
      result.push_back({module + ".lora_A.weight", weights.a});
      result.push_back({module + ".lora_B.weight", weights.b});
    }
    return result;
  }
  for (const auto& [name, value] : model::named_weights(model_))
    result.push_back({name, value, /*decays=*/value.dim() > 1});
  return result;
}

int64_t TrainingSubject::trained_elements() const {
  int64_t total = 0;
  for (const Parameter& parameter : parameters()) total += parameter.value.numel();
  return total;
}

Trained TrainingSubject::trained() const {
  if (full_) return {.adapter = nullptr, .model = &model_, .config_json = &config_json_};
  return {.adapter = &adapter_, .model = nullptr, .config_json = nullptr};
}

void TrainingSubject::save(const fs::path& folder) const {
  if (full_) {
    model::save_dense(model_, folder, config_json_, at::kFloat);
  } else {
    io::write_adapter(folder, adapter_);
  }
}

fs::path TrainingSubject::save_final(const fs::path& run, const TrainConfig& config) const {
  const fs::path path = run / (full_ ? "model" : "adapter");
  AtomicFolder target(path, /*replace=*/true);
  if (full_) {
    model::save_dense(model_, target.staging(), config_json_, save_dtype(config));
    io::copy_sidecars(source_, target.staging());
  } else {
    io::write_adapter(target.staging(), adapter_);
  }
  target.commit();
  return path;
}

}  // namespace qalora::train
