#include <iostream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "qalora/cli/command.h"
#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/core/log.h"
#include "qalora/generate/generator.h"
#include "qalora/model/load.h"
#include "qalora/text/template.h"
#include "qalora/text/tokenizer.h"

namespace qalora::cli {
namespace {

struct PromptOptions {
  std::shared_ptr<CommonOptions> common;
  std::string model, adapter, prompt, prompt_file, kind = "none";
  generate::GenerateOptions generate;
};

std::string read_prompt(const PromptOptions& options) {
  std::string prompt = options.prompt;
  if (options.prompt_file == "-") {
    prompt.assign(std::istreambuf_iterator<char>(std::cin), {});
  } else if (!options.prompt_file.empty()) {
    prompt = read_text_file(options.prompt_file);
  }
  QALORA_REQUIRE(valid_utf8(prompt), UserError, "the prompt is not UTF-8 text");
  return prompt;
}

void run(PromptOptions& options, bool has_prompt) {
  apply_common(*options.common);
  QALORA_REQUIRE(has_prompt != !options.prompt_file.empty(), UserError, "give --prompt TEXT or --prompt-file FILE, one of them");
  generate::check_sampler(options.generate.sampler);
  const text::TemplateKind kind = text::parse_template(options.kind);
  require_folder(options.model, "--model");
  if (!options.adapter.empty()) require_folder(options.adapter, "--adapter");
  QALORA_REQUIRE(text::Tokenizer::exists(options.model), UserError, options.model,
                 ": no tokenizer.model in it; copy the one that belongs to the model into the folder");
  const text::Tokenizer tokenizer{fs::path(options.model)};
  const std::string prompt = read_prompt(options);
  model::LoadOptions load;
  load.compute = options.common->compute;
  model::Llama model = model::load_model_with_adapter(options.model, options.adapter, load);

  options.generate.stop_ids = tokenizer.stop_ids();
  generate::TextStream stream(tokenizer);
  const bool show = !options.common->json;
  const auto result = generate::generate(model, text::make_prompt(tokenizer, kind, prompt), options.generate, [&](int64_t id) {
    const std::string piece = stream.push(id);
    if (show && !piece.empty()) print(piece);
  });
  const std::string rest = stream.finish();
  if (show) print(rest + "\n");

  const auto rate = [](int64_t tokens, double seconds) { return seconds > 0 ? static_cast<double>(tokens) / seconds : 0.0; };
  const double prefill = rate(result.prompt_tokens, result.prefill_seconds),
               decode = rate(result.decode_steps, result.decode_seconds);
  const int64_t tokens = static_cast<int64_t>(result.ids.size());
  if (options.common->json) {
    print_json({{"prompt", prompt},
                {"text", stream.text()},
                {"tokens", tokens},
                {"prompt_tokens", result.prompt_tokens},
                {"stop", result.stopped ? "eos" : "length"},
                {"prefill_tokens_per_second", prefill},
                {"tokens_per_second", decode}});
  }
  log::info(message(result.prompt_tokens, " prompt tokens at ", format_fixed(prefill, 1), " tokens/s, ", tokens, " tokens at ",
                    format_fixed(decode, 1), " tokens/s, ended by ", result.stopped ? "end of sequence" : "length"));
}

}  // namespace

Command make_generate(CLI::App& root) {
  CLI::App* app = root.add_subcommand("generate", "Text from a prompt");
  auto options = std::make_shared<PromptOptions>();
  auto& sampler = options->generate.sampler;
  app->add_option("--model", options->model, "folder of a checkpoint, dense or quantised")->required();
  app->add_option("--adapter", options->adapter, "adapter, checkpoint or run folder to put on the model");
  CLI::Option* prompt = app->add_option("--prompt", options->prompt, "what to continue or, with a template, to answer");
  app->add_option("--prompt-file", options->prompt_file, "file with the prompt; - reads standard input");
  app->add_option("--template", options->kind, "none, alpaca, alpaca-paper or chat")->capture_default_str();
  app->add_option("--max-tokens", options->generate.max_tokens, "longest answer")->capture_default_str();
  app->add_option("--temperature", sampler.temperature, "0 takes the most likely token; higher is more varied")
      ->capture_default_str();
  app->add_option("--top-p", sampler.top_p, "sample from the likeliest tokens that reach this probability")
      ->capture_default_str();
  app->add_option("--top-k", sampler.top_k, "sample from the k likeliest tokens; 0: all")->capture_default_str();
  app->add_option("--seed", sampler.seed, "of the random numbers")->capture_default_str();
  options->common = add_common(*app, kComputes);
  return {app, [options, prompt] { run(*options, prompt->count() > 0); }};
}

}  // namespace qalora::cli
