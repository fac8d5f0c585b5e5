// Logits of the next token, one token after the other. On an accelerator the kernels of a token are recorded once and
// then started as one, because a token's few hundred kernels take the CPU longer to start than the device to run.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "qalora/model/llama.h"
#include "qalora/tensor/accelerator.h"

namespace qalora::generate {

class Decoder {
 public:
  // The model must live as long. Use it without gradients.
  explicit Decoder(model::Llama& model);

  // ids continue what came before -> logits after the last of them: [vocab] f32 on the model's device, valid until the
  // next call.
  at::Tensor next(const std::vector<int64_t>& ids);

 private:
  void run_token();
  void make_room();

  model::Llama& model_;
  model::KvCache cache_;
  bool recordable_;
  bool warm_ = false;         // this capacity's kernels ran once: nothing is set up or copied from the CPU any more
  at::Tensor id_, position_;  // i64 [1]: what a recorded token reads
  at::Tensor logits_;         // [1, vocab] f32: what it writes
  std::unique_ptr<tensor::RecordedGraph> graph_;
};

}  // namespace qalora::generate
