#include "qalora/model/load.h"

#include <ATen/ATen.h>

#include <set>

#include "qalora/core/error.h"
#include "qalora/core/log.h"
#include "qalora/core/progress.h"
#include "qalora/core/signals.h"
#include "qalora/io/input_order.h"
#include "qalora/model/adapter_base.h"
#include "qalora/model/merge_checkpoint.h"

namespace qalora::model {

namespace {

// [out_features, in_features] and whether it has a bias
struct ProjectionShape {
  int64_t out_features, in_features;
  bool bias;
};

ProjectionShape projection_shape(const LlamaConfig& c, std::string_view name) {
  const int64_t q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
  if (name == "self_attn.q_proj") return {q, c.hidden_size, c.qkv_bias};
  if (name == "self_attn.k_proj" || name == "self_attn.v_proj") return {kv, c.hidden_size, c.qkv_bias};
  if (name == "self_attn.o_proj") return {c.hidden_size, q, c.o_bias};
  if (name == "mlp.down_proj") return {c.hidden_size, c.intermediate_size, c.mlp_bias};
  return {c.intermediate_size, c.hidden_size, c.mlp_bias};
}

class Loader {
 public:
  Loader(const io::Checkpoint& checkpoint, const LlamaConfig& config, const LoadOptions& options)
      : checkpoint_(checkpoint),
        config_(config),
        options_(options) {}

  Layer layer(int64_t index) const {
    Layer result = frame(index);
    const std::string prefix = layer_prefix(index);
    for (const auto& part : kProjections) {
      Linear weighted = linear(prefix + part.name, projection_shape(config_, part.name));
      weighted.bias = (result.*part.member).bias;
      result.*part.member = std::move(weighted);
    }
    result.to(options_.device);
    return result;
  }

  // Norms and biases, on the CPU.
  Layer frame(int64_t index) const {
    Layer result;
    const std::string prefix = layer_prefix(index);
    for (const auto& part : kLayerNorms) result.*part.member = norm(prefix + part.name, config_.hidden_size);
    for (const auto& part : kHeadNorms) {
      if (config_.qk_norm) result.*part.member = norm(prefix + part.name, config_.head_dim);
    }
    for (const auto& part : kProjections) {
      const ProjectionShape shape = projection_shape(config_, part.name);
      if (shape.bias)
        (result.*part.member).bias = dense(prefix + part.name + ".bias", {shape.out_features}, at::kFloat);
    }
    return result;
  }

  Linear linear(const std::string& module, const ProjectionShape& shape) const {
    const bool packed = is_packed(checkpoint_, module + ".weight");
    QALORA_REQUIRE(!packed || !options_.trainable, UserError, checkpoint_.folder().string(), ": tensor '", module,
                   ".weight' is quantised; method 'full' trains a dense checkpoint");
    return packed ? Linear(module, read_packed(checkpoint_, module, shape.out_features, shape.in_features,
                                               *config_.quantization))
                  : Linear(module, dense(module + ".weight", {shape.out_features, shape.in_features}, weight_dtype()));
  }

  at::Tensor norm(const std::string& module, int64_t width) const {
    return dense(module + ".weight", {width}, at::kFloat);
  }

  // [vocab, hidden]; an embedding or head may be packed too (MLX writes such files): it is dequantised once.
  at::Tensor vocabulary(const std::string& module, at::ScalarType dtype) const {
    const std::string name = module + ".weight";
    if (!is_packed(checkpoint_, name)) return placed(dense(name, {config_.vocab_size, config_.hidden_size}, dtype));
    return placed(read_packed(checkpoint_, module, config_.vocab_size, config_.hidden_size, *config_.quantization)
                      .dequantize(at::kFloat)
                      .to(dtype));
  }

  at::Tensor placed(const at::Tensor& value) const {
    return value.device() == options_.device ? value
                                             : value.detach().to(options_.device).requires_grad_(value.requires_grad());
  }

  at::Tensor dense(const std::string& name, at::IntArrayRef shape, at::ScalarType dtype) const {
    const at::Tensor stored = checkpoint_.read(name, shape);
    checkpoint_.release(name);
    at::Tensor result = stored.to(dtype);
    QALORA_REQUIRE(result.isfinite().all().item<bool>(), DataError, checkpoint_.file_of(name).string(), ": tensor '",
                   name, "' holds NaN or infinite values");
    if (options_.trainable) result.requires_grad_(true);
    return result;
  }

  at::ScalarType weight_dtype() const { return options_.trainable ? at::kFloat : options_.compute; }
  // The embedding is only looked up, so it stays as it is stored unless it is trained or also serves as the head.
  at::ScalarType embedding_dtype() const {
    if (config_.tied_head) return head_dtype();
    if (options_.trainable || is_packed(checkpoint_, "model.embed_tokens.weight")) return at::kFloat;
    return io::scalar_type(checkpoint_.info("model.embed_tokens.weight").dtype);
  }

  // Logits are f32 sums either way; a GPU multiplies 16 bits ten times as fast.
  at::ScalarType head_dtype() const {
    return options_.device.is_cpu() || options_.trainable ? at::kFloat : options_.compute;
  }

 private:
  const io::Checkpoint& checkpoint_;
  const LlamaConfig& config_;
  const LoadOptions& options_;
};

}  // namespace

std::vector<ExpectedTensor> expected_tensors(const LlamaConfig& config) {
  std::vector<ExpectedTensor> result;
  result.push_back({"model.embed_tokens.weight", {config.vocab_size, config.hidden_size}});
  for (int64_t i = 0; i < config.layers; ++i) {
    const std::string prefix = layer_prefix(i);
    for (const auto& norm : kLayerNorms) result.push_back({prefix + norm.name + ".weight", {config.hidden_size}});
    for (const auto& norm : kHeadNorms) {
      if (config.qk_norm) result.push_back({prefix + norm.name + ".weight", {config.head_dim}});
    }
    for (const auto& projection : kProjections) {
      const ProjectionShape shape = projection_shape(config, projection.name);
      result.push_back({prefix + projection.name + ".weight", {shape.out_features, shape.in_features}, true});
      if (shape.bias) result.push_back({prefix + projection.name + ".bias", {shape.out_features}});
    }
  }
  result.push_back({"model.norm.weight", {config.hidden_size}});
  if (!config.tied_head) result.push_back({"lm_head.weight", {config.vocab_size, config.hidden_size}});
  return result;
}

void check_tensors(const io::Checkpoint& checkpoint, const LlamaConfig& config) {
  std::set<std::string> known;
  for (const ExpectedTensor& tensor : expected_tensors(config)) {
    known.insert(tensor.name);
    const io::TensorInfo& info = checkpoint.info(tensor.name);
    const std::string where = message(checkpoint.file_of(tensor.name).string(), ": tensor '", tensor.name, "' ");
    if (is_packed(checkpoint, tensor.name)) {  // its shapes follow from the group size: read_packed checks them
      QALORA_REQUIRE(config.quantization.has_value(), DataError, where,
                     "is packed, but config.json has no 'quantization' entry");
      QALORA_REQUIRE(info.dtype == io::Dtype::kU32 && tensor.shape.size() == 2, DataError, where, "is ",
                     io::dtype_name(info.dtype), " ", at::IntArrayRef(info.shape),
                     ", expected U32 for packed codes of a matrix, as there are scales beside it");
      const std::string module = io::module_of(tensor.name);
      known.insert({module + ".scales", module + ".biases", module + ".g_idx"});
      continue;
    }
    QALORA_REQUIRE(info.shape == tensor.shape, DataError, where, "has shape ", at::IntArrayRef(info.shape),
                   ", config.json asks for ", at::IntArrayRef(tensor.shape));
    const bool is_float =
        info.dtype == io::Dtype::kF32 || info.dtype == io::Dtype::kF16 || info.dtype == io::Dtype::kBF16;
    QALORA_REQUIRE(is_float, DataError, where, "is ", io::dtype_name(info.dtype), ", expected F32, F16 or BF16");
  }
  if (config.tied_head)
    known.insert(
        {"lm_head.weight", "lm_head.scales", "lm_head.biases", "lm_head.g_idx"});  // kept by some exporters, never used
  for (const std::string& name : checkpoint.names()) {
    // Old exporters kept this table of constants in the file; it is computed here.
    if (known.contains(name) || name.ends_with("rotary_emb.inv_freq")) continue;
    throw DataError(message(checkpoint.file_of(name).string(), ": tensor '", name, "' is not part of a ",
                            config.model_type, " model as config.json describes it"));
  }
}

bool is_packed(const io::Checkpoint& checkpoint, const std::string& weight_name) {
  return weight_name.ends_with(".weight") && checkpoint.contains(io::module_of(weight_name) + ".scales");
}

quant::PackedWeight read_packed(const io::Checkpoint& checkpoint, const std::string& module, int64_t out_features,
                                int64_t in_features, const QuantizationConfig& of_all) {
  const QuantizationConfig quantization = of_all.of(module);
  const std::string weight = module + ".weight", groups_of = module + ".g_idx";
  QALORA_REQUIRE(checkpoint.info(weight).dtype == io::Dtype::kU32, DataError, checkpoint.file_of(weight).string(),
                 ": tensor '", weight, "' has dtype ", io::dtype_name(checkpoint.info(weight).dtype),
                 ", expected U32 for packed codes");
  const int64_t group_size = of_all.group_size_of(module, in_features);
  const int64_t groups = kernels::groups_per_row(in_features, group_size);
  const at::Tensor codes =
      checkpoint.read(weight, {out_features, kernels::words_per_row(in_features, quantization.bits)});
  const at::Tensor scales = checkpoint.read(module + ".scales", {out_features, groups});
  const at::Tensor offsets = checkpoint.read(module + ".biases", {out_features, groups});
  for (const char* part : {".weight", ".scales", ".biases"}) checkpoint.release(module + part);
  quant::PackedWeight packed =
      quant::make_packed_weight(checkpoint.file_of(weight).string() + ": tensor '" + module + "'", codes, scales,
                                offsets, in_features, group_size, quantization.bits);
  if (checkpoint.contains(groups_of)) {
    packed.input_order = io::input_order(checkpoint.file_of(groups_of).string() + ": tensor '" + groups_of + "'",
                                         checkpoint.read(groups_of, {in_features}), group_size);
  }
  return packed;
}

Layer load_layer(const io::Checkpoint& checkpoint, const LlamaConfig& config, const LoadOptions& options,
                 int64_t index) {
  return Loader(checkpoint, config, options).layer(index);
}

Layer load_layer_frame(const io::Checkpoint& checkpoint, const LlamaConfig& config, const LoadOptions& options,
                       int64_t index) {
  Layer frame = Loader(checkpoint, config, options).frame(index);
  frame.to(options.device);
  return frame;
}

Llama load_model(const fs::path& folder, const LoadOptions& options) {
  Llama model;
  const io::Checkpoint checkpoint(folder);
  model.config = read_config(checkpoint);
  model.compute = options.compute;
  check_tensors(checkpoint, model.config);
  const Loader load(checkpoint, model.config, options);
  model.embedding = load.vocabulary("model.embed_tokens", load.embedding_dtype());
  Progress progress("loading", model.config.layers, "layers");
  for (int64_t i = 0; i < model.config.layers; ++i) {
    throw_if_stopped();
    model.layers.push_back(load.layer(i));
    progress.add();
  }
  model.final_norm = load.placed(load.norm("model.norm", model.config.hidden_size));
  model.head = model.config.tied_head ? model.embedding : load.vocabulary("lm_head", load.head_dtype());
  return model;
}

BaseIdentity base_identity(const io::Checkpoint& checkpoint) {
  const std::string fingerprint = io::base_fingerprint(checkpoint);
  return {fingerprint, fingerprint.empty() ? "" : io::base_state_fingerprint(checkpoint)};
}

void require_base(const io::AdapterConfig& adapter, const BaseIdentity& base) {
  const auto shown = [](const std::string& digest) {
    return digest.empty() ? "none (it is dense)" : digest.substr(0, 16) + "...";
  };
  const std::string name = adapter.base_model.empty() ? "" : " (" + adapter.base_model + ")";
  const std::string advice = "; give the checkpoint that it was trained on" + name;
  QALORA_REQUIRE(adapter.base_fingerprint.empty() || adapter.base_fingerprint == base.fingerprint, DataError,
                 "the adapter was trained on another base: the fingerprint of its codes and scales is ",
                 shown(adapter.base_fingerprint), ", this model's is ", shown(base.fingerprint), advice);
  QALORA_REQUIRE(
      adapter.base_state_fingerprint.empty() || adapter.base_state_fingerprint == base.state, DataError,
      "the adapter was trained on another state of this base: the codes and scales are the same, but offsets or dense tensors "
      "are not (another adapter was merged into one of the two?): their fingerprint is ",
      shown(adapter.base_state_fingerprint), ", this model's is ", shown(base.state), advice);
}

void require_known_order(const io::AdapterConfig& adapter, const std::string& module, bool sorted) {
  const bool known = adapter.pooling == io::Pooling::kNone || !adapter.base_fingerprint.empty();
  QALORA_REQUIRE(
      !sorted || known, DataError, "module '", module,
      "': the base's groups are not of inputs that lie side by side (act-order), ",
      "and the adapter does not say that it was trained here: other programs pool inputs that do lie side by side, which is constant ",
      "inside no group of this base, so it can neither be merged nor run here. Train one with 'qalora finetune' on this base, or the ",
      "other program's on a base without act-order");
}

void attach_adapter(Llama& model, const io::AdapterFile& file, const BaseIdentity& base) {
  const io::AdapterConfig& config = file.config;
  const bool quantised = model.config.quantization.has_value();
  if (config.pooling != io::Pooling::kNone) {
    QALORA_REQUIRE(quantised, DataError,
                   "the adapter pools its inputs for a quantised base, but this model is dense; give the quantised "
                   "checkpoint that it was trained on");
    // One made elsewhere may pool groups of its own beside any base; ours are made for the base's.
    const bool fits =
        config.group_size == model.config.quantization->group_size || config.origin != io::AdapterOrigin::kOwn;
    QALORA_REQUIRE(fits, DataError, "the adapter's group_size ", config.group_size, " does not match the model's ",
                   model.config.quantization->group_size, "; give the checkpoint that it was trained on");
  }
  require_base(config, base);
  std::set<std::string> used;
  for (Linear* linear : model.linears()) {
    const auto found = file.modules.find(linear->module());
    if (found == file.modules.end()) continue;
    used.insert(found->first);
    require_known_order(config, linear->module(), linear->input_order().defined());
    const at::Tensor a = found->second.a.to(model.device()),
                     b = found->second.b.to(model.device());  // themselves when they are there
    const int64_t in_features = linear->in_features();
    const bool pooled = config.pooling != io::Pooling::kNone;
    QALORA_REQUIRE(!pooled || linear->quantised(), DataError, "adapter: '", linear->module(),
                   "' is dense in this model and has no groups to pool");
    const bool same_groups = pooled && config.group_size == model.config.quantization->group_size;
    const int64_t group_size =
        same_groups ? model.config.quantization->group_size_of(linear->module(), in_features) : config.group_size;
    const int64_t inputs = pooled ? kernels::groups_per_row(in_features, group_size) : in_features;
    QALORA_REQUIRE(a.size(1) == inputs && b.size(0) == linear->out_features(), DataError, "adapter: '",
                   linear->module(), "' has A ", a.sizes(), " and B ", b.sizes(), ", the model needs A [", a.size(0),
                   ", ", inputs, "] and B [", linear->out_features(), ", ", a.size(0), "]");
    linear->adapter = std::make_shared<Adapter>(
        Adapter{a, b, found->second.scaling(config), config.pooling, group_size, config.dropout});
  }
  for (const auto& [module, weights] : file.modules) {
    QALORA_REQUIRE(used.contains(module), DataError, "adapter: module '", module,
                   "' is not a linear layer of this model");
  }
}

Llama load_model_with_adapter(const fs::path& folder, const fs::path& adapter, const LoadOptions& options) {
  Llama model = load_model(folder, options);
  if (adapter.empty()) return model;
  const fs::path found = io::find_adapter(adapter);
  const io::AdapterFile file = read_adapter_for(found, model.config);
  require_not_merged(folder, found);
  warn_of_unknown_base(file.config, found, folder);
  try {
    attach_adapter(model, file, model.config.quantization ? base_identity(io::Checkpoint(folder)) : BaseIdentity{});
  } catch (const DataError& error) {
    throw DataError(found.string() + ": " + error.what());
  }
  return model;
}

}  // namespace qalora::model
