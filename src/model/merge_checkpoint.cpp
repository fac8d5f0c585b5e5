#include "qalora/model/merge_checkpoint.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "qalora/core/error.h"
#include "qalora/core/log.h"
#include "qalora/core/progress.h"
#include "qalora/core/signals.h"
#include "qalora/io/model_files.h"
#include "qalora/model/adapter_base.h"
#include "qalora/model/load.h"
#include "qalora/quant/merge.h"
#include "qalora/text/gguf_vocabulary.h"

namespace qalora::model {
namespace {

// Adapters that a checkpoint contains already, by the digest of their tensors. Keys that begin with '_' mean nothing to
// anyone else.
constexpr const char* kMergedKey = "_qalora_merged_adapters";
const std::string kOffsets = ".biases";

std::string adapter_digest(const fs::path& adapter_folder) {
  return sha256(MappedFile(io::adapter_tensor_file(adapter_folder)).bytes());
}

// The module whose offsets `name` holds, when the adapter changes them; else "".
std::string merged_module(const io::AdapterFile& adapter, const std::string& name) {
  if (!name.ends_with(kOffsets)) return "";
  std::string module = io::module_of(name);
  return adapter.modules.contains(module) ? module : "";
}

std::vector<io::PlannedTensor> plan_tensors(const io::Checkpoint& base, const io::AdapterFile& adapter) {
  std::vector<io::PlannedTensor> plan;
  for (const auto& name : base.names()) {
    const io::TensorInfo& info = base.info(name);
    plan.push_back({name, merged_module(adapter, name).empty() ? info.dtype : io::Dtype::kF32, info.shape});
  }
  io::sort_by_alignment(plan);
  return plan;
}

uint64_t count_changed(std::span<const std::byte> a, std::span<const std::byte> b) {
  if (a.size() != b.size()) return std::max(a.size(), b.size());
  uint64_t changed = 0;
  for (size_t i = 0; i < a.size(); ++i) changed += a[i] != b[i] ? 1 : 0;
  return changed;
}

// Groups of an adapter made elsewhere that are several of the base's were spread over them already (adapter_base.h).
void refuse_other_groups(const io::AdapterConfig& adapter, const QuantizationConfig& base, const std::string& where,
                         const std::string& folder) {
  if (adapter.group_size == base.group_size) return;
  const bool own = adapter.origin == io::AdapterOrigin::kOwn;
  QALORA_REQUIRE(!own, DataError, where, ": group_size ", adapter.group_size, " does not match the model's ",
                 base.group_size, " in ", folder, "; give the checkpoint that it was trained on");
  throw DataError(
      message(where, ": pools groups of ", adapter.group_size, " inputs, but ", folder, " is quantised in groups of ",
              base.group_size,
              ", which have one offset each: what it adds does not fit into them. Keep it beside the model with "
              "--adapter, or quantise the model in groups that divide ",
              adapter.group_size));
}

}  // namespace

void require_not_merged(const fs::path& model, const fs::path& adapter_folder) {
  const nlohmann::json json = io::read_model_config(model);
  if (!json.contains(kMergedKey) || !json[kMergedKey].is_array()) return;
  const auto& merged = json[kMergedKey];
  QALORA_REQUIRE(std::find(merged.begin(), merged.end(), adapter_digest(adapter_folder)) == merged.end(), UserError,
                 model.string(), ": contains the adapter ", adapter_folder.string(),
                 " already; adding it again would count it twice");
}

void warn_of_unknown_base(const io::AdapterConfig& adapter, const fs::path& adapter_folder, const fs::path& model) {
  if (adapter.pooling == io::Pooling::kNone || !adapter.base_state_fingerprint.empty()) return;
  const char* gap = adapter.base_fingerprint.empty()
                        ? ": does not name the model it was trained on"
                        : ": names only the codes and scales of the model it was trained on, not its offsets";
  log::warn(message(adapter_folder.string(), gap, "; make sure that it was ", model.string()));
}

void mark_merged(nlohmann::json& config, const fs::path& adapter_folder) {
  if (!config.contains(kMergedKey) || !config[kMergedKey].is_array()) config[kMergedKey] = nlohmann::json::array();
  config[kMergedKey].push_back(adapter_digest(adapter_folder));
}

void check_mergeable(const io::Checkpoint& base, const fs::path& adapter_folder, const io::AdapterFile& adapter,
                     bool accept_unknown_base) {
  const std::string where = adapter_folder.string(), folder = base.folder().string();
  for (const auto& [module, weights] : adapter.modules) {
    try {
      require_known_order(adapter.config, module, base.contains(module + ".g_idx"));
    } catch (const DataError& error) {
      throw DataError(where + ": " + error.what());
    }
  }
  const LlamaConfig config = read_config(base);
  const io::AdapterConfig& settings = adapter.config;
  QALORA_REQUIRE(
      settings.pooling != io::Pooling::kNone, DataError, where,
      ": an ordinary LoRA (no pooling): what it adds differs inside a group of inputs, so it does not fit into the offsets; "
      "train with method = \"qalora\" on the quantised model, or keep the adapter beside it with --adapter");
  QALORA_REQUIRE(
      config.quantization.has_value(), UserError, folder,
      ": a dense model; merge moves the offsets of a quantised one. Give the checkpoint that 'qalora quantize' wrote and the adapter "
      "was trained on");
  refuse_other_groups(settings, *config.quantization, where, folder);
  require_not_merged(base.folder(), adapter_folder);
  QALORA_REQUIRE(
      !settings.base_fingerprint.empty() || accept_unknown_base, DataError, where,
      ": does not say on which base it was trained (no base_fingerprint), and merged into another one it would be noise; if "
      "you know that it was ",
      folder, ", say so with --accept-unknown-base");
  try {
    require_base(settings, base_identity(base));
  } catch (const DataError& error) {
    throw DataError(where + ": " + error.what());
  }
  warn_of_unknown_base(settings, adapter_folder, base.folder());
  io::sidecars(base.folder());
  const auto shapes = linear_shapes(config);
  for (const auto& [module, weights] : adapter.modules) {
    const auto found = shapes.find(module);
    QALORA_REQUIRE(found != shapes.end(), DataError, where, ": module '", module, "' is not a linear layer of ",
                   folder);
    QALORA_REQUIRE(base.contains(module + kOffsets), DataError, folder, ": module '", module,
                   "' is not quantised, so it has no offsets");
    QALORA_REQUIRE(weights.b.size(0) == found->second[0], DataError, where, ": module '", module, "': lora_B has ",
                   weights.b.size(0), " rows, the model's layer ", found->second[0]);
  }
}

uint64_t merged_bytes(const io::Checkpoint& base, const io::AdapterFile& adapter) {
  uint64_t total = 0;
  for (const auto& tensor : plan_tensors(base, adapter)) total += tensor.bytes();
  return total;
}

int64_t merge_checkpoint(const io::Checkpoint& base, const fs::path& adapter_folder, const io::AdapterFile& adapter,
                         const fs::path& folder) {
  const nlohmann::json& source = base.config();
  const LlamaConfig config = read_config(base);
  QALORA_CHECK(config.quantization.has_value(), base.folder().string(), " is dense");
  const auto shapes = linear_shapes(config);
  const std::vector<io::PlannedTensor> plan = plan_tensors(base, adapter);
  io::CheckpointWriter writer(folder, plan, {{"format", "mlx"}});
  Progress progress("merging", static_cast<int64_t>(adapter.modules.size()), "modules");
  int64_t merged = 0;
  bool narrow_scales = false;
  for (const auto& [name, dtype, stored] : plan) {
    throw_if_stopped();
    const std::string module = merged_module(adapter, name);
    if (module.empty()) {
      writer.write(name, base.bytes(name).span);
      base.release(name);
      continue;
    }
    const auto& shape = shapes.at(module);
    const quant::PackedWeight weight = read_packed(base, module, shape[0], shape[1], *config.quantization);
    io::AdapterConfig settings = adapter.config;
    settings.group_size = weight.group_size;  // check_mergeable has compared them; a module may have groups of its own
    writer.write(name, quant::merge(message(adapter_folder.string(), ": module '", module, "'"), weight, settings,
                                    adapter.modules.at(module))
                           .offsets);
    narrow_scales = narrow_scales || base.info(module + ".scales").dtype != io::Dtype::kF32;
    ++merged;
    progress.add();
  }
  writer.finish();
  progress.finish();
  if (narrow_scales) {
    log::warn(
        "this base's scales are 16-bit numbers and stay so; MLX computes in the scales' dtype and would round the merged fp32 "
        "offsets. qalora does not");
  }
  const auto sorted = [](const auto& tensor) { return tensor.name.ends_with(".g_idx"); };
  if (std::ranges::any_of(plan, sorted)) {
    log::warn(
        "the groups of this base are of inputs that do not lie side by side (act-order); their order is kept in tensors '.g_idx', which "
        "qalora reads and MLX does not");
  }
  nlohmann::json derived = derived_config(source, config, config.quantization);
  mark_merged(derived, adapter_folder);
  io::write_json_file(folder / "config.json", derived);
  io::copy_sidecars(base.folder(), folder);
  text::save_gguf_tokenizer(base.folder(), folder);
  return merged;
}

ByteChanges compare_bytes(const io::Checkpoint& base, const io::Checkpoint& merged) {
  QALORA_REQUIRE(base.names() == merged.names(), DataError, merged.folder().string(), ": has other tensors than ",
                 base.folder().string());
  ByteChanges changes;
  for (const auto& name : base.names()) {
    throw_if_stopped();
    const std::string module = io::module_of(name);
    const bool packed = base.contains(module + ".scales");
    uint64_t& counter = !packed                     ? changes.others
                        : name.ends_with(kOffsets)  ? changes.offsets
                        : name.ends_with(".scales") ? changes.scales
                        : name.ends_with(".weight") ? changes.codes
                                                    : changes.others;
    counter += count_changed(base.bytes(name).span, merged.bytes(name).span);
    base.release(name);
    merged.release(name);
  }
  return changes;
}

}  // namespace qalora::model
