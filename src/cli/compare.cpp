#include "qalora/eval/compare.h"

#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "qalora/cli/command.h"
#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/core/log.h"
#include "qalora/eval/scorer.h"
#include "qalora/model/load.h"
#include "qalora/tensor/dtype.h"
#include "qalora/text/tokenizer.h"

namespace qalora::cli {
namespace {

constexpr const char* kExamples =
    "Examples:\n"
    "  qalora compare --model llama-7b --other llama-7b-int4 --data wikitext.txt\n"
    "  qalora compare --model llama-7b-int4 --adapter run --other llama-7b-int4-alpaca --data wikitext.txt\n";

struct CompareOptions {
  std::shared_ptr<CommonOptions> common;
  std::string model, adapter, other, data;
  int64_t context_length = 0, limit = 0, batch_tokens = eval::kDefaultBatchTokens;
};

std::string number_or_large(const nlohmann::json& value) {
  return value.is_null() ? "too large" : format_fixed(value, 4);
}

void print_table(const nlohmann::json& json) {
  print(format_table({{"measure", "value"},
                      {"KL divergence, mean", short_number(json["kl_mean"])},
                      {"KL divergence, largest", short_number(json["kl_max"])},
                      {"same most likely token", format_fixed(100 * json["top1_agreement"].get<double>(), 2) + " %"},
                      {"largest logit difference", short_number(json["max_logit_difference"])},
                      {"perplexity of --model", number_or_large(json["perplexity"])},
                      {"perplexity of --other", number_or_large(json["other_perplexity"])},
                      {"tokens", format_count(json["tokens"])},
                      {"computed in", json["dtype"]}}));
}

void run(CompareOptions& options) {
  apply_common(*options.common);
  require_model(options.model, "--model");
  require_model(options.other, "--other");
  if (!options.adapter.empty()) require_folder(options.adapter, "--adapter");
  require_file(options.data, "--data");
  QALORA_REQUIRE(
      text::Tokenizer::exists(options.model), UserError, options.model,
      ": no tokenizer (tokenizer.model or tokenizer.json) in it; copy the one that belongs to the model into the folder");
  const text::Tokenizer tokenizer{fs::path(options.model)};
  if (text::Tokenizer::exists(options.other) &&
      text::Tokenizer(fs::path(options.other)).fingerprint() != tokenizer.fingerprint()) {
    log::warn(message("the tokenizers of ", options.model, " and ", options.other,
                      " differ; both models read the ids of the first"));
  }
  // Before the models, which take longer to read.
  const model::LlamaConfig config = model::read_config(options.model), other_config = model::read_config(options.other);
  const int64_t length = eval::block_length(
      options.context_length, config.context_length < other_config.context_length ? config : other_config);
  const auto blocks = eval::read_blocks(options.data, tokenizer, length, options.limit);
  model::LoadOptions load;
  load.compute = options.common->compute;
  load.device = options.common->where;
  model::Llama model = model::load_model_with_adapter(options.model, options.adapter, load);
  model::Llama other = model::load_model(options.other, load);
  const eval::CompareResult result = eval::compare_models(model, other, blocks, options.batch_tokens);
  nlohmann::json json = eval::to_json(result);
  json["dtype"] = tensor::dtype_name(options.common->compute);
  if (options.common->json) {
    print_json(json);
  } else {
    print_table(json);
  }
  log::info(message(format_count(result.tokens), " tokens in ", format_duration(result.seconds)));
}

}  // namespace

Command make_compare(CLI::App& root) {
  CLI::App* app = root.add_subcommand("compare", "Measure how far two models are apart on the same text");
  auto options = std::make_shared<CompareOptions>();
  app->footer(kExamples);
  app->add_option("--model", options->model, "folder of a checkpoint")->required();
  app->add_option("--adapter", options->adapter, "adapter to put on --model");
  app->add_option("--other", options->other, "folder of the other checkpoint")->required();
  app->add_option("--data", options->data, "text, or .jsonl with \"text\"")->required();
  app->add_option("--context-length", options->context_length, "tokens a block (default: 2048 or the smaller context)")
      ->check(whole_number(2));
  app->add_option("--limit", options->limit, "only the first N blocks")->check(whole_number(0));
  app->add_option("--batch-tokens", options->batch_tokens, "tokens computed at a time")
      ->capture_default_str()
      ->check(whole_number(1));
  options->common = add_common(*app, kComputes);
  return {app, [options] { run(*options); }};
}

}  // namespace qalora::cli
