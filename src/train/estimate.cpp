#include "qalora/train/estimate.h"

#include <ATen/ATen.h>

#include <chrono>

#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/io/adapter_file.h"
#include "qalora/kernels/packed.h"
#include "qalora/model/llama.h"
#include "qalora/model/load.h"
#include "qalora/quant/packed_weight.h"
#include "qalora/tensor/accelerator.h"
#include "qalora/tensor/device.h"

namespace qalora::train {

namespace {

bool is_target(const TrainConfig& config, const std::string& weight) {
  return std::any_of(config.targets.begin(), config.targets.end(),
                     [&](const std::string& target) { return weight.ends_with("." + target + ".weight"); });
}

// Numbers that pooling leaves of one token's `in_features` inputs.
int64_t pooled_inputs(const model::LlamaConfig& model, int64_t in_features) {
  if (!model.quantization) return in_features;
  const int64_t group_size = model.quantization->group_size;
  return kernels::groups_per_row(in_features, group_size == quant::kWholeRow ? in_features : group_size);
}

uint64_t packed_bytes(int bits, int64_t out_features, int64_t in_features, int64_t groups) {
  const int64_t words = kernels::words_per_row(in_features, bits) + 2 * groups;  // codes, f32 scales and offsets
  return static_cast<uint64_t>(out_features * words) * 4;
}

}  // namespace

Workload expected_workload(const model::LlamaConfig& model, const TrainConfig& config, at::ScalarType compute,
                           c10::Device device) {
  Workload workload{model, compute, 0, 0, device};
  const uint64_t head_bytes = device.is_cpu() || config.full() ? 4 : c10::elementSize(compute);
  for (const model::ExpectedTensor& tensor : model::expected_tensors(model)) {
    const int64_t elements = c10::multiply_integers(tensor.shape);
    if (config.full()) workload.trained_elements += elements;
    if (tensor.linear) {
      const std::string module = io::module_of(tensor.name);
      const int64_t in_features = tensor.shape[1];
      const int64_t inputs =
          model.quantization
              ? kernels::groups_per_row(in_features, model.quantization->group_size_of(module, in_features))
              : in_features;
      workload.weight_bytes +=
          model.quantization
              ? packed_bytes(model.quantization->of(module).bits, tensor.shape[0], tensor.shape[1], inputs)
              : static_cast<uint64_t>(elements) * (config.full() ? 4 : c10::elementSize(compute));
      if (!config.full() && is_target(config, tensor.name))
        workload.trained_elements += config.rank * (inputs + tensor.shape[0]);
    } else if (tensor.shape.size() == 2) {
      const bool looked_up_only =
          tensor.name.find("embed_tokens") != std::string::npos && !model.tied_head && !config.full();
      workload.weight_bytes += static_cast<uint64_t>(elements) * (looked_up_only ? 2 : head_bytes);
    }
  }
  if (config.initial_adapter.empty()) return workload;
  workload.trained_elements = 0;
  for (const auto& [module, weights] : io::read_adapter(config.initial_adapter).modules) {
    workload.trained_elements += weights.a.numel() + weights.b.numel();
  }
  return workload;
}

namespace {

// Bytes that a layer keeps of a token when its adapters are folded into the offsets: two residual states in f32; q, k,
// v after rotation, the attention's output and its statistics, gate and up; of every linear's input the sums of its
// groups.
uint64_t folded_layer_bytes(const model::LlamaConfig& c, uint64_t element) {
  const uint64_t hidden = c.hidden_size, q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim,
                 inner = c.intermediate_size;
  const int64_t sums = 2 * pooled_inputs(c, c.hidden_size) + pooled_inputs(c, c.heads * c.head_dim) +
                       pooled_inputs(c, c.intermediate_size);
  return 2 * 4 * (hidden + 1) + element * (2 * q + 2 * kv + 2 * inner) + 4 * static_cast<uint64_t>(c.heads) +
         4 * static_cast<uint64_t>(sums);
}

// The part of them that the MLP keeps: gate, up, and the sums (or the whole) of its linears' inputs.
uint64_t mlp_bytes(const model::LlamaConfig& c, const TrainConfig& config, uint64_t element) {
  const uint64_t hidden = c.hidden_size, inner = c.intermediate_size;
  if (config.method != "qalora") return element * (2 * inner + hidden + inner);
  return element * 2 * inner +
         4 * static_cast<uint64_t>(pooled_inputs(c, c.hidden_size) + pooled_inputs(c, c.intermediate_size));
}

// Of a token, by all layers. layer, mlp: what one keeps, and its MLP's part; state: its input, f32
uint64_t kept_bytes(const TrainConfig& config, uint64_t layer, uint64_t mlp, uint64_t state, uint64_t layers) {
  if (!config.gradient_checkpointing) return layer * layers;
  return config.recompute == "mlp" ? (layer - mlp) * layers + mlp : state * layers + layer;
}

// Beside what is kept, at the worst moment of a step on an accelerator: the loss (a chunk of logits, their 16-bit
// gradient, three copies of the hidden states) or the backward pass of an MLP (one dequantised matrix, three gradients
// of its width, two of the residual stream).
uint64_t device_scratch(const Workload& workload, uint64_t tokens) {
  const model::LlamaConfig& c = workload.model;
  const uint64_t hidden = c.hidden_size, inner = c.intermediate_size, element = c10::elementSize(workload.compute);
  const uint64_t chunk = std::min<uint64_t>(2048, tokens);
  const uint64_t loss = chunk * static_cast<uint64_t>(c.vocab_size) * (4 + element) + tokens * hidden * 3 * 4;
  const uint64_t offsets = inner * static_cast<uint64_t>(pooled_inputs(c, c.hidden_size)) * 4;
  const uint64_t backward = inner * hidden * element + offsets + tokens * (3 * inner * element + 2 * 4 * hidden);
  return std::max(loss, backward);
}

}  // namespace

MemoryEstimate estimate_memory(const Workload& workload, const TrainConfig& config, int64_t rows, int64_t length) {
  const model::LlamaConfig& c = workload.model;
  const uint64_t tokens = static_cast<uint64_t>(rows * length), element = c10::elementSize(workload.compute);
  const uint64_t hidden = c.hidden_size, q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim,
                 inner = c.intermediate_size;
  MemoryEstimate result;
  result.weights = workload.weight_bytes;
  // Value, gradient, two moments; for "full" the value is already among the weights.
  result.trained = static_cast<uint64_t>(workload.trained_elements) * 4 * (config.full() ? 3 : 4);
  result.loaded =
      result.weights + result.trained - static_cast<uint64_t>(workload.trained_elements) * 4;  // gradients come later
  // Kept by a layer: two residual states in f32; q, k, v after rotation, the attention's output and its statistics,
  // gate and up. Dense products with a trained weight or an ordinary LoRA keep their inputs as well, pooled ones
  // 1/group of them.
  uint64_t layer = 2 * 4 * hidden + element * (q + 2 * kv + q + 2 * inner) + 4 * static_cast<uint64_t>(c.heads);
  const uint64_t inputs = 2 * hidden + q + inner;
  if (config.method == "qalora" && !workload.device.is_cpu()) {
    layer = folded_layer_bytes(c, element);
  } else if (config.method == "qalora") {
    const int64_t pooled = 2 * pooled_inputs(c, c.hidden_size) + pooled_inputs(c, c.heads * c.head_dim) +
                           pooled_inputs(c, c.intermediate_size);
    layer += 4 * static_cast<uint64_t>(pooled) + 4 * 7 * static_cast<uint64_t>(config.rank);
  } else {
    layer += inputs * element + (config.full() ? 0 : 4 * inputs);
  }
  result.activations =
      tokens * kept_bytes(config, layer, mlp_bytes(c, config, element), 4 * hidden, static_cast<uint64_t>(c.layers));
  // Transient: the largest dequantised matrix, three intermediate rows of the MLP in f32, the logits of 512 tokens
  // three times.
  if (!workload.device.is_cpu()) {
    result.scratch = device_scratch(workload, tokens);
    result.libraries = uint64_t{100} << 20;
    return result;
  }
  result.scratch =
      inner * hidden * element + tokens * 3 * 4 * inner + uint64_t{512} * 4 * 3 * static_cast<uint64_t>(c.vocab_size);
  return result;
}

double flops_per_token(const model::LlamaConfig& model, const TrainConfig& config, int64_t length) {
  model::Llama shape;  // no weights: the count follows from the configuration
  shape.config = model;
  const double forward = static_cast<double>(shape.forward_flops_per_token(length / 2));
  // A frozen base costs one product forward and one for the input's gradient; trained weights one more; recomputing one
  // more.
  return forward * (2.0 + (config.full() ? 1.0 : 0.0) +
                    (!config.gradient_checkpointing ? 0.0
                     : config.recompute == "mlp"    ? 2.0 / 3
                                                    : 1.0));
}

double measure_flops(at::ScalarType dtype, int64_t size, c10::Device device) {
  using clock = std::chrono::steady_clock;
  const int64_t rows = device.is_cpu() ? 256 : 4096;
  const auto options = at::TensorOptions(device).dtype(dtype);
  const at::Tensor x = at::ones({rows, size}, options), w = at::ones({size, size}, options);
  const auto finish = [&] {
    if (!device.is_cpu()) tensor::accelerator()->synchronize(device.index());
  };
  x.matmul(w);  // threads and buffers are set up by the first product
  finish();
  const auto start = clock::now();
  double seconds = 0;
  int64_t count = 0;
  do {
    x.matmul(w);
    finish();
    ++count;
    seconds = std::chrono::duration<double>(clock::now() - start).count();
  } while (seconds < 0.05);
  return 2.0 * static_cast<double>(rows) * static_cast<double>(size) * static_cast<double>(size) *
         static_cast<double>(count) / seconds;
}

bool Estimate::hopeless() const {
  return memory.weights + memory.trained - (weights_loaded ? memory.loaded : 0) > available_bytes;
}

std::string Estimate::unfit_text(const TrainConfig& config) const {
  if (fits()) return "";
  const bool large_adapter = !config.full() && config.initial_adapter.empty() && 2 * memory.trained > memory.total();
  return message(hopeless() ? "this does not fit: " : "this may not fit: ",
                 large_adapter ? message("lower rank (it is ", config.rank, ")")
                 : hopeless()  ? "take a smaller model, fewer bits or another device"
                               : "lower micro_batch_size or sequence_length, or set gradient_checkpointing = true");
}

std::string Estimate::memory_text() const {
  constexpr uint64_t kGigabyte = 1'000'000'000;
  return message("about ", format_bytes(memory.total()), " and ", memory.total() < kGigabyte ? "200 MB" : "0.2 GB",
                 " for the program (weights ", format_bytes(memory.weights), ", trained ", format_bytes(memory.trained),
                 ", activations ", format_bytes(memory.activations), ", scratch ", format_bytes(memory.scratch), "), ",
                 format_bytes(available_bytes), " available");
}

std::string Estimate::time_text() const {
  return message("at least ", format_duration(seconds), " at ", format_fixed(flops_per_second / 1e9, 0), " GFLOP/s");
}

namespace {

uint64_t available_bytes(c10::Device device) {
  return device.is_cpu() ? tensor::available_memory_bytes() : tensor::accelerator()->memory(device.index()).free;
}

}  // namespace

void require_memory(const Workload& workload, const TrainConfig& config) {
  constexpr uint64_t kSwapped = 2;  // swap may take as much again
  const uint64_t needed = 16 * static_cast<uint64_t>(workload.trained_elements);
  const uint64_t available = available_bytes(workload.device);
  QALORA_REQUIRE(config.full() || needed / kSwapped <= available, MemoryError, "the adapter of rank ", config.rank,
                 " takes ", format_bytes(needed), " with its gradient and moments, but ", format_bytes(available),
                 " are available; lower rank");
}

Estimate estimate_run(const Workload& workload, const TrainConfig& config, const TrainingData& data, int64_t steps) {
  const DataReport& report = data.report();
  const int64_t length = config.packing ? config.sequence_length : report.longest;
  const double mean = static_cast<double>(report.tokens) / static_cast<double>(report.examples);
  const double row_tokens = config.packing ? static_cast<double>(config.sequence_length) : mean;
  Estimate result;
  result.memory = estimate_memory(workload, config, config.micro_batch_size, length);
  const c10::Device device = workload.device;
  result.available_bytes = available_bytes(device);
  result.flops_per_second = measure_flops(
      workload.compute, std::min<int64_t>(device.is_cpu() ? 1024 : 4096, workload.model.hidden_size * 4), device);
  const double tokens = row_tokens * static_cast<double>(config.batch_size * steps);
  result.seconds = flops_per_token(workload.model, config, length) * tokens / result.flops_per_second;
  return result;
}

int64_t largest_micro_batch(const Workload& workload, const TrainConfig& config, const TrainingData& data,
                            bool weights_loaded) {
  constexpr double kUsable = 0.9;  // allocators lose some to rounding and to blocks that fit nothing
  const int64_t length = config.packing ? config.sequence_length : data.report().longest;
  const c10::Device device = workload.device;
  const uint64_t free = available_bytes(device);
  int64_t best = 1;
  for (int64_t rows = 1; rows <= config.batch_size; ++rows) {
    if (config.batch_size % rows != 0) continue;
    const MemoryEstimate memory = estimate_memory(workload, config, rows, length);
    if (static_cast<double>(memory.total() - (weights_loaded ? memory.loaded : 0)) >
        kUsable * static_cast<double>(free))
      break;
    best = rows;
  }
  return best;
}

}  // namespace qalora::train
