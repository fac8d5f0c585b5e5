// What a run will need, told before its first step.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <cstdint>
#include <string>

#include "qalora/model/config.h"
#include "qalora/train/config.h"
#include "qalora/train/data.h"

namespace qalora::train {

struct MemoryEstimate {      // bytes
  uint64_t weights = 0;      // base, embedding, head
  uint64_t trained = 0;      // parameters, gradients and both moments, f32
  uint64_t activations = 0;  // kept for the backward pass of the largest micro-batch
  uint64_t scratch = 0;      // one dequantised layer, a chunk of logits and its gradient
  uint64_t libraries = 0;    // work space of a device's libraries
  uint64_t loaded =
      0;  // of all these: what is in memory once the model and the optimizer are there (weights, values, moments)
  uint64_t total() const { return weights + trained + activations + scratch + libraries; }
};

// What is trained on: of a loaded model, or told from its config.json alone.
struct Workload {
  model::LlamaConfig model;
  at::ScalarType compute = at::kFloat;
  uint64_t weight_bytes = 0;
  int64_t trained_elements = 0;  // numbers that the optimizer moves
  c10::Device device = c10::kCPU;
};

// No file but an initial adapter is read. An embedding that is neither trained nor the head is taken for 16 bits a
// number.
Workload expected_workload(const model::LlamaConfig& model, const TrainConfig& config, at::ScalarType compute,
                           c10::Device device = c10::kCPU);

// rows x length: the largest micro-batch.
MemoryEstimate estimate_memory(const Workload& workload, const TrainConfig& config, int64_t rows, int64_t length);
// The most rows that divide batch_size and fit into nine tenths of the free memory of the device; at least 1.
// weights_loaded: they are no longer part of what is free.
int64_t largest_micro_batch(const Workload& workload, const TrainConfig& config, const TrainingData& data,
                            bool weights_loaded);
// MemoryError where the adapter alone is so large that its allocation must fail, or end the process.
void require_memory(const Workload& workload, const TrainConfig& config);
// Multiplications of one trained token: forward, input gradient, and what else the method needs.
double flops_per_token(const model::LlamaConfig& model, const TrainConfig& config, int64_t length);
// Products per second of this machine in the compute dtype, measured for about 50 ms.
double measure_flops(at::ScalarType dtype, int64_t size, c10::Device device = c10::kCPU);

struct Estimate {
  MemoryEstimate memory;
  uint64_t available_bytes = 0;
  double flops_per_second = 0, seconds = 0;
  bool weights_loaded = false;  // they are no longer part of what is available

  bool fits() const { return memory.total() - (weights_loaded ? memory.loaded : 0) <= available_bytes; }
  // The weights and what is trained alone need more than there is: no other batch helps.
  bool hopeless() const;
  // "this may not fit: lower ..", or "" where it fits
  std::string unfit_text(const TrainConfig& config) const;
  std::string memory_text() const;
  std::string time_text() const;
};

// steps: how many are still to be run.
Estimate estimate_run(const Workload& workload, const TrainConfig& config, const TrainingData& data, int64_t steps);

}  // namespace qalora::train
