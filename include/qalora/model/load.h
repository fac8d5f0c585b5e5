// From a folder to a model.
#pragma once

#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "qalora/io/adapter_file.h"
#include "qalora/io/checkpoint.h"
#include "qalora/model/llama.h"

namespace qalora::model {

struct LoadOptions {
  at::ScalarType compute = at::kFloat;
  bool trainable = false;          // method "full": every weight becomes f32 with a gradient
  c10::Device device = c10::kCPU;  // layer after layer goes there; packed weights in lane order (quant::TiledWeight)
};

// Checks every tensor before it reads the first (check_tensors). NaN or infinite weights are a DataError that names the
// tensor. Memory: packed weights stay packed, dense ones are kept in the compute dtype.
Llama load_model(const fs::path& folder, const LoadOptions& options);

// One layer of a checkpoint that check_tensors has passed; the frame has norms and biases, but none of its projections'
// weights.
Layer load_layer(const io::Checkpoint& checkpoint, const LlamaConfig& config, const LoadOptions& options,
                 int64_t index);
Layer load_layer_frame(const io::Checkpoint& checkpoint, const LlamaConfig& config, const LoadOptions& options,
                       int64_t index);

// What tells a quantised base from others: io::base_fingerprint and io::base_state_fingerprint. Both "" for a dense
// one.
struct BaseIdentity {
  std::string fingerprint, state;
};
BaseIdentity base_identity(const io::Checkpoint& checkpoint);
// DataError when the adapter says that it was trained on another base; what it does not say is not compared.
void require_base(const io::AdapterConfig& adapter, const BaseIdentity& base);

// DataError when an adapter's groups cannot be those of a module whose base sorts its inputs (io/input_order.h).
void require_known_order(const io::AdapterConfig& adapter, const std::string& module, bool sorted);

// Attaches A and B to the layers they name. The adapter's group_size is the one that most of the model's modules have;
// those with one of their own are pooled by it. DataError when shapes, group size or the base do not fit. base: of what
// is in `model`.
void attach_adapter(Llama& model, const io::AdapterFile& adapter, const BaseIdentity& base);
// load_model, then attach_adapter when `adapter` is not empty (any folder io::find_adapter takes). UserError when the
// model contains the adapter already.
Llama load_model_with_adapter(const fs::path& folder, const fs::path& adapter, const LoadOptions& options);

// Every tensor a checkpoint of this configuration must hold, with its dense shape.
struct ExpectedTensor {
  std::string name;
  std::vector<int64_t> shape;
  bool linear = false;  // one of the seven projections: what `quantize` packs
};
std::vector<ExpectedTensor> expected_tensors(const LlamaConfig& config);
// DataError naming file and tensor when one that config.json asks for is missing, has another shape or is no float, and
// when there is one that no layer would read: then this is another architecture than config.json says.
void check_tensors(const io::Checkpoint& checkpoint, const LlamaConfig& config);
// Is tensor "P.weight" of this checkpoint stored packed (P.scales beside it)?
bool is_packed(const io::Checkpoint& checkpoint, const std::string& weight_name);
// P.weight, P.scales, P.biases and, where the groups do not lie side by side, P.g_idx (io/input_order.h); module = P,
// whose bits and group size may be its own.
quant::PackedWeight read_packed(const io::Checkpoint& checkpoint, const std::string& module, int64_t out_features,
                                int64_t in_features, const QuantizationConfig& quantization);

// A random start for method "full": normal(0, initializer_range), residual outputs (o, down) divided by sqrt(2 *
// layers), norms 1.
Llama new_model(const LlamaConfig& config, uint64_t seed);
// Every weight of a dense model by its name in a checkpoint; the tensors share their storage with the model.
std::map<std::string, at::Tensor> named_weights(const Llama& model);
// The dense checkpoint of a trained model (method "full") in `dtype`; its config.json is `config_json` with that dtype,
// no sidecars.
void save_dense(const Llama& model, const fs::path& folder, const nlohmann::json& config_json, at::ScalarType dtype);

}  // namespace qalora::model
