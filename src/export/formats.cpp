#include "gguf.h"
#include "mlx.h"
#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/export/export.h"

namespace qalora::exporting {

const std::vector<Format>& formats() {
  static const std::vector<Format> all = {
      {.name = "gguf",
       .summary = "one file for llama.cpp: Q4_1 blocks for codes of up to 4 bits, tokenizer and all",
       .is_file = true,
       .next_step = "llama-cli -m OUT -p TEXT",
       .plan = plan_gguf,
       .write = write_gguf},
      {.name = "mlx",
       .summary = "a folder for mlx-lm: our own layout with the configuration it expects",
       .is_file = false,
       .next_step = "mlx_lm.generate --model OUT --prompt TEXT",
       .plan = plan_mlx,
       .write = write_mlx},
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
