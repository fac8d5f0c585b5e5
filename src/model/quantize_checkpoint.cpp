#include "qalora/model/quantize_checkpoint.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <set>

#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/core/progress.h"
#include "qalora/core/signals.h"
#include "qalora/model/load.h"
#include "qalora/quant/round_to_nearest.h"
#include "qalora/tensor/device.h"
#include "qalora/text/gguf_vocabulary.h"

namespace qalora::model {
namespace {

std::string group_text(int64_t group_size) {
  return group_size == quant::kWholeRow ? "whole rows" : "group size " + std::to_string(group_size);
}

std::vector<std::string> make_notes(const QuantizationConfig& quantization, const std::set<int64_t>& widths) {
  std::vector<std::string> notes;
  const int64_t group_size = quantization.group_size;
  bool divides = true;
  for (int64_t width : widths) {
    if (group_size == quant::kWholeRow || width % group_size == 0) continue;
    divides = false;
    notes.push_back(message("group size ", group_size, " does not divide ", width,
                            " inputs: the last group of these rows has ", width % group_size,
                            " and a scale and an offset of its own"));
  }
  const bool mlx_size = group_size == 32 || group_size == 64 || group_size == 128;
  if (!divides || !mlx_size) {
    notes.push_back(message("MLX cannot read ", group_text(group_size), divides ? "" : " with a shorter last group",
                            "; it takes 32, 64 and 128 where they divide the inputs. qalora reads it"));
  }
  return notes;
}

// A weight's tensors in the layout of the output.
struct PackedShapes {
  io::PlannedTensor codes, scales, offsets;
  uint64_t bytes() const { return codes.bytes() + scales.bytes() + offsets.bytes(); }
};

PackedShapes packed_shapes(const ExpectedTensor& tensor, const QuantizationConfig& quantization) {
  const int64_t rows = tensor.shape[0], columns = tensor.shape[1];
  const int64_t group_size = quantization.group_size == quant::kWholeRow ? columns : quantization.group_size;
  const int64_t words = kernels::words_per_row(columns, quantization.bits),
                groups = kernels::groups_per_row(columns, group_size);
  const std::string module = io::module_of(tensor.name);
  return {{module + ".weight", io::Dtype::kU32, {rows, words}},
          {module + ".scales", io::Dtype::kF32, {rows, groups}},
          {module + ".biases", io::Dtype::kF32, {rows, groups}}};
}

// In the order in which they are written: the widest elements first (io::sort_by_alignment).
std::vector<ExpectedTensor> ordered_tensors(const io::Checkpoint& checkpoint, const LlamaConfig& config) {
  std::vector<ExpectedTensor> tensors = expected_tensors(config);
  const auto width = [&](const ExpectedTensor& tensor) {
    return tensor.linear ? io::dtype_bytes(io::Dtype::kF32) : io::dtype_bytes(checkpoint.info(tensor.name).dtype);
  };
  std::stable_sort(tensors.begin(), tensors.end(), [&](const auto& a, const auto& b) { return width(a) > width(b); });
  return tensors;
}

// What quantising takes beside tensors: LibTorch's code that is first used there, the pieces of the check for NaN, each
// thread's stack and rows. Measured 65 MB with two threads.
uint64_t working_bytes() { return 100'000'000 + 2'000'000 * static_cast<uint64_t>(tensor::threads()); }

std::string tensor_place(const io::Checkpoint& checkpoint, const std::string& name) {
  return message(checkpoint.file_of(name).string(), ": tensor '", name, "'");
}

}  // namespace

QuantizePlan plan_quantization(const io::Checkpoint& checkpoint, const QuantizationConfig& quantization) {
  QuantizePlan plan;
  plan.config_json = checkpoint.config();
  plan.config = read_config(checkpoint);
  plan.quantization = quantization;
  if (plan.config.quantization) {
    throw UserError(message(checkpoint.folder().string(), ": is quantised already (", plan.config.quantization->bits,
                            " bits, ", group_text(plan.config.quantization->group_size),
                            "); give the dense checkpoint that it was made from"));
  }
  check_tensors(checkpoint, plan.config);

  uint64_t packed_bytes = 0, packed_weights = 0, largest = 0;
  std::set<int64_t> widths;
  for (const auto& tensor : ordered_tensors(checkpoint, plan.config)) {
    const io::TensorInfo& info = checkpoint.info(tensor.name);
    plan.input_bytes += info.bytes();
    // The stored bytes stand in the map and in a copy for a moment; then come the packed ones beside the copy.
    if (tensor.linear) {
      const PackedShapes packed = packed_shapes(tensor, quantization);
      largest = std::max(largest, std::max(2 * info.bytes(), info.bytes() + packed.bytes()));
      packed_bytes += packed.bytes();
      packed_weights += static_cast<uint64_t>(tensor.shape[0]) * static_cast<uint64_t>(tensor.shape[1]);
      widths.insert(tensor.shape[1]);
      plan.output_bytes += packed.bytes();
      plan.tensors.insert(plan.tensors.end(), {packed.codes, packed.scales, packed.offsets});
      ++plan.linears;
    } else {
      largest = std::max(largest, 2 * info.bytes());
      plan.output_bytes += info.bytes();
      plan.tensors.push_back({tensor.name, info.dtype, info.shape});
    }
  }
  plan.bits_per_weight = 8.0 * static_cast<double>(packed_bytes) / static_cast<double>(packed_weights);
  plan.peak_bytes = tensor::peak_memory_bytes() + largest + working_bytes();
  plan.disk_bytes = plan.output_bytes + io::sidecar_bytes(checkpoint.folder());
  plan.notes = make_notes(quantization, widths);
  return plan;
}

void require_finite(const io::Checkpoint& checkpoint, const std::string& name, const at::Tensor& tensor) {
  const at::Tensor flat = tensor.flatten();
  constexpr int64_t kPiece = int64_t{1} << 22;  // a whole mask would be as large as the tensor
  for (int64_t begin = 0; begin < flat.numel(); begin += kPiece) {
    const at::Tensor piece = flat.narrow(0, begin, std::min(kPiece, flat.numel() - begin));
    QALORA_REQUIRE(at::isfinite(piece).all().item<bool>(), DataError, tensor_place(checkpoint, name),
                   " holds values that are not finite; the checkpoint is damaged");
  }
}

void write_quantized_checkpoint(const io::Checkpoint& checkpoint, const QuantizePlan& plan, const fs::path& out,
                                bool replace, const PackedProducer& produce) {
  AtomicFolder folder(out, replace, plan.disk_bytes);
  io::CheckpointWriter writer(folder.staging(), plan.tensors, {{"format", "mlx"}});
  for (const auto& tensor : ordered_tensors(checkpoint, plan.config)) {
    throw_if_stopped();
    if (!tensor.linear) {
      const at::Tensor value = checkpoint.read(tensor.name);
      checkpoint.release(tensor.name);
      require_finite(checkpoint, tensor.name, value);
      writer.write(tensor.name, value);
      continue;
    }
    const std::string module = io::module_of(tensor.name);
    const quant::PackedWeight weight = produce(module);
    writer.write(module + ".weight", weight.codes);
    writer.write(module + ".scales", weight.scales);
    writer.write(module + ".biases", weight.offsets);
  }
  writer.finish();
  io::write_json_file(folder.staging() / "config.json",
                      derived_config(plan.config_json, plan.config, plan.quantization));
  io::copy_sidecars(checkpoint.folder(), folder.staging());
  text::save_gguf_tokenizer(checkpoint.folder(), folder.staging());
  folder.commit();
}

std::vector<QuantizedLayer> quantize_checkpoint(const io::Checkpoint& checkpoint, const QuantizePlan& plan,
                                                const fs::path& out, bool replace) {
  std::vector<QuantizedLayer> layers;
  Progress progress("quantising", plan.linears, "matrices");
  write_quantized_checkpoint(checkpoint, plan, out, replace, [&](const std::string& module) {
    const std::string name = module + ".weight";
    const at::Tensor weight = checkpoint.read(name);
    checkpoint.release(name);
    const auto [packed, error] = quant::round_to_nearest(tensor_place(checkpoint, name), weight, plan.quantization.bits,
                                                         plan.quantization.group_size);
    layers.push_back({module, error});
    progress.add();
    return packed;
  });
  progress.finish();
  return layers;
}

}  // namespace qalora::model
