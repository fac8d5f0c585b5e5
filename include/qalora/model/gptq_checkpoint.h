// GPTQ (arXiv:2210.17323) through a whole model, block by block: each block is quantised on what the quantised blocks
// before it give.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "qalora/model/quantize_checkpoint.h"
#include "qalora/quant/gptq.h"
#include "qalora/text/calibration.h"

namespace qalora::model {

struct GptqSettings {
  quant::GptqOptions solver;  // bits and group_size as the plan has them
  // False: true-sequential as in the paper; o is solved on what the quantised q, k and v give, gate and up behind the
  // quantised o, and so on. True: all of a block on the inputs that its unquantised layers give, which takes a forward
  // pass more.
  bool one_pass = false;
  int64_t batch_size = 0;  // rows of one forward pass; 0: as many as make kBatchTokens
  at::ScalarType compute = at::kFloat;
  c10::Device device = c10::kCPU;
  std::string model_fingerprint;  // io::dense_fingerprint of the checkpoint; "": it is computed where it is needed
  static constexpr int64_t kBatchTokens = 4096;
  std::function<void(int64_t block)>
      on_block;  // called when a block is finished and kept; what it throws ends the run there
};

// Bytes of what lies in memory while a block is quantised, and of the whole process.
struct GptqMemory {
  uint64_t activations = 0;  // states of all tokens between blocks, and between the steps of a block
  uint64_t blocks = 0;       // the block: its dequantised weights and its packed ones (one_pass: its dense ones too)
  uint64_t solver = 0;       // the Hessian with its factor and one matrix with its errors
  uint64_t forward = 0;      // what one forward pass holds for a moment
  uint64_t embedding = 0;    // before the first block, in the place of blocks, solver and forward
  bool keep_products = true;
  uint64_t peak = 0;
};

GptqMemory gptq_memory(const io::Checkpoint& checkpoint, const QuantizePlan& plan, const text::Calibration& calibration,
                       const GptqSettings& settings);

struct GptqLayer {
  std::string name;  // "model.layers.0.self_attn.q_proj"
  double error = 0, loss = 0, loss_before_refit = 0, loss_round_to_nearest = 0, damping = 0;
  int64_t dead_inputs = 0;
};

struct GptqReport {
  std::vector<GptqLayer> layers;
  int64_t resumed_blocks = 0;                                           // that an earlier call had finished
  double forward_seconds = 0, hessian_seconds = 0, solver_seconds = 0;  // of this call
};

// Writes the planned checkpoint. Finished blocks lie in WorkFolder::path_for(out) until it is whole: after a stop the
// same call goes on with them and gives the same bytes. force: an existing `out` gives way, and blocks of other
// settings too.
GptqReport gptq_checkpoint(const io::Checkpoint& checkpoint, const QuantizePlan& plan,
                           const text::Calibration& calibration, const GptqSettings& settings, const fs::path& out,
                           bool force);

// How many blocks of this call are there already; 0 where the work folder is another call's.
int64_t finished_blocks(const io::Checkpoint& checkpoint, const text::Calibration& calibration,
                        const GptqSettings& settings, const fs::path& out);

// What the disk must still have room for: the blocks, `finished` of which lie there already, and the output that they
// become.
uint64_t gptq_disk_bytes(const QuantizePlan& plan, const fs::path& out, int64_t finished);

}  // namespace qalora::model
