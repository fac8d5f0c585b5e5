#include "qalora/train/prepare.h"

#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/core/log.h"
#include "qalora/train/run_folder.h"

namespace qalora::train {

namespace {

void require_base(const TrainConfig& config, const model::LlamaConfig& model) {
  QALORA_REQUIRE(config.sequence_length <= model.context_length, UserError, "sequence_length is ",
                 config.sequence_length, ", but ", config.model, " reads at most ", model.context_length,
                 " tokens; set sequence_length to that or less");
  QALORA_REQUIRE(
      config.method != "qalora" || model.quantization, UserError, config.model,
      ": is a dense checkpoint, method 'qalora' trains on a quantised one; run 'qalora quantize' first, or set ",
      "method = \"lora\"");
  QALORA_REQUIRE(config.method == "qalora" || !model.quantization, UserError, config.model, ": is quantised, method '",
                 config.method, "' needs a dense checkpoint; give that, or set method = \"qalora\"");
}

void warn_unused(const TrainConfig& config) {
  if (config.eval_interval > 0) return;
  if (!config.eval_data.empty())
    log::warn("eval_data is given, but eval_interval is 0: nothing will be evaluated; set eval_interval");
  if (config.eval_examples > 0) {
    log::warn(message("eval_examples keeps ", config.eval_examples,
                      " examples out of training, but eval_interval is 0: nothing will be ",
                      "evaluated; set eval_interval"));
  }
}

}  // namespace

Prepared prepare(const TrainConfig& config) {
  const std::vector<std::string> problems = validate(config);
  QALORA_REQUIRE(problems.empty(), UserError, join(problems, "\n"));
  warn_unused(config);
  Prepared result;
  result.model = model::read_config(config.model);
  require_base(config, result.model);
  if (!text::Tokenizer::exists(config.model)) return result;
  result.tokenizer.emplace(config.model);
  QALORA_REQUIRE(result.tokenizer->vocab_size() <= result.model.vocab_size, DataError, config.model,
                 ": the tokenizer has ", result.tokenizer->vocab_size(), " pieces, more than the ",
                 result.model.vocab_size, " rows of the embedding; do they belong together?");
  return result;
}

void require_output(const TrainConfig& config, bool resume, bool force) {
  QALORA_REQUIRE(!config.out.empty(), UserError, "out is missing: the run folder (--out DIR)");
  std::vector<fs::path> inputs = {config.model, config.initial_adapter};
  for (const std::string& file : {config.data, config.eval_data}) {
    std::error_code error;
    if (!fs::is_directory(file, error))
      inputs.push_back(file);  // a folder in a file's place is refused by who reads it
  }
  RunFolder::require_apart(config.out, inputs);
  RunFolder::require_usable(config.out, resume, force);
}

void require_room(const TrainConfig& config, int64_t trained_elements) {
  const uint64_t checkpoint = 12 * static_cast<uint64_t>(trained_elements);
  const AtomicFolder probe(fs::path(config.out) / "checkpoints", /*replace=*/true, 2 * checkpoint);
}

}  // namespace qalora::train
