#include "gguf.h"
#include "gptq.h"
#include "lora.h"
#include "mlx.h"
#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/export/dense.h"
#include "qalora/export/export.h"

namespace qalora::exporting {

const std::vector<Format>& formats() {
  static const std::vector<Format> all = {
      {.name = "gguf",
       .summary = "one file for llama.cpp: Q4_1 blocks for codes of up to 4 bits, tokenizer and all",
       .is_file = true,
       .next_step = "llama-cli -m OUT -p TEXT",
       .adapter_file = gguf_adapter_path,
       .plan = plan_gguf,
       .write = write_gguf},
      {.name = "mlx",
       .summary = "a folder for mlx-lm: our own layout with the configuration it expects",
       .is_file = false,
       .next_step = "mlx_lm.generate --model OUT --prompt TEXT",
       .plan = plan_mlx,
       .write = write_mlx},
      {.name = "gptq",
       .summary = "a folder for GPTQ's engines (format gptq_v2), of a base whose offsets are integer zero points",
       .is_file = false,
       .next_step = "vllm serve OUT",
       .plan = plan_gptq,
       .write = write_gptq},
      {.name = "lora",
       .summary = "the adapter alone, as an ordinary LoRA that PEFT and vLLM run beside its base",
       .is_file = false,
       .next_step = "vllm serve BASE --enable-lora --max-lora-rank RANK --lora-modules tuned=OUT",
       .plan = plan_lora,
       .write = write_lora},
      {.name = "safetensors",
       .summary = "a dense folder for transformers and everything else; an adapter is merged into it",
       .is_file = false,
       .next_step = "python -c \"import transformers as t; t.AutoModelForCausalLM.from_pretrained('OUT')\"",
       .plan = plan_dense,
       .write = write_dense},
  };
  return all;
}

const Format& format_named(const std::string& name) {
  std::vector<std::string> names;
  for (const Format& format : formats()) {
    if (name == format.name) return format;
    names.push_back(format.name);
  }
  throw UserError(message("--to: expected ", join(names, ", "), ", got '", name, "'", did_you_mean(name, names)));
}

}  // namespace qalora::exporting
