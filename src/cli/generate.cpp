#include <iostream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "qalora/cli/command.h"
#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/core/interrupted.h"
#include "qalora/core/log.h"
#include "qalora/generate/generator.h"
#include "qalora/model/load.h"
#include "qalora/text/template.h"
#include "qalora/text/tokenizer.h"

namespace qalora::cli {
namespace {

constexpr const char* kExamples =
    "Examples:\n"
    "  qalora generate --model llama-7b-int4 --prompt 'The capital of France is' --max-tokens 20\n"
    "  qalora generate --model llama-7b-int4 --adapter run --template alpaca --prompt 'Name three rivers.' --top-p 0.9\n";

struct PromptOptions {
  std::shared_ptr<CommonOptions> common;
  CLI::App* app = nullptr;
  std::string model, adapter, prompt, prompt_file, kind = "none";
  generate::GenerateOptions generate;
};

std::string read_prompt(const PromptOptions& options) {
  std::string prompt = options.prompt;
  if (options.prompt_file == "-") {
    prompt = read_text_file("/dev/stdin");  // hears a signal while it waits
  } else if (!options.prompt_file.empty()) {
    require_file(options.prompt_file, "--prompt-file");
    prompt = read_text_file(options.prompt_file);
  }
  QALORA_REQUIRE(valid_utf8(prompt), UserError, "the prompt is not UTF-8 text");
  return prompt;
}

std::string counted(int64_t count, const std::string& what) { return message(count, " ", what, count == 1 ? "" : "s"); }

// --top-p and --top-k ask for sampling, which is temperature 1 unless --temperature says otherwise.
void settle_temperature(PromptOptions& options) {
  const auto given = [&](const char* flag) { return options.app->get_option(flag)->count() > 0; };
  const bool samples = given("--top-p") || given("--top-k");
  double& temperature = options.generate.sampler.temperature;
  if (samples && !given("--temperature")) temperature = 1;
  generate::check_sampler(options.generate.sampler);
  if (samples && temperature == 0)
    log::warn("--top-p and --top-k have no effect at --temperature 0, which takes the most likely token");
}

void run(PromptOptions& options) {
  apply_common(*options.common);
  const bool has_prompt = options.app->get_option("--prompt")->count() > 0;
  QALORA_REQUIRE(has_prompt != !options.prompt_file.empty(), UserError,
                 "give --prompt TEXT or --prompt-file FILE, one of them");
  settle_temperature(options);
  const text::TemplateKind kind = text::parse_template(options.kind);
  require_model(options.model, "--model");
  if (!options.adapter.empty()) require_folder(options.adapter, "--adapter");
  QALORA_REQUIRE(
      text::Tokenizer::exists(options.model), UserError, options.model,
      ": no tokenizer (tokenizer.model or tokenizer.json) in it; copy the one that belongs to the model into the folder");
  const text::Tokenizer tokenizer{fs::path(options.model)};
  const std::string prompt = read_prompt(options);
  const std::vector<int64_t> ids = text::make_prompt(tokenizer, kind, prompt);
  model::LoadOptions load;
  load.compute = options.common->compute;
  load.device = options.common->where;
  model::Llama model = model::load_model_with_adapter(options.model, options.adapter, load);

  options.generate.stop_ids = tokenizer.stop_ids();
  // What continues a bare prompt is spelt with its blank, so that prompt + text is right; an answer to a template
  // stands alone.
  generate::TextStream stream(tokenizer, kind == text::TemplateKind::kNone ? ids : std::vector<int64_t>());
  const bool show = !options.common->json;
  int64_t streamed = 0;
  const auto on_token = [&](int64_t id) {
    ++streamed;
    const std::string piece = stream.push(id);
    if (show && !piece.empty()) print(piece);
  };
  generate::Generation result;
  try {
    result = generate::generate(model, ids, options.generate, on_token);
  } catch (const Interrupted& stop) {
    if (show) print("\n");
    log::info(message("stopped after ", streamed, " tokens"));
    throw InterruptedAndTold(stop);
  }
  const std::string rest = stream.finish();
  if (show) print(rest + "\n");

  const auto rate = [](int64_t tokens, double seconds) {
    return seconds > 0 ? static_cast<double>(tokens) / seconds : 0.0;
  };
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
  const char* end = result.stopped                          ? "end of sequence"
                    : tokens == options.generate.max_tokens ? "--max-tokens"
                                                            : "the end of the model's context";
  log::info(message(counted(result.prompt_tokens, "prompt token"), " at ", format_fixed(prefill, 1), " tokens/s, ",
                    counted(tokens, "token"), " at ", format_fixed(decode, 1), " tokens/s, ended by ", end));
}

}  // namespace

Command make_generate(CLI::App& root) {
  CLI::App* app = root.add_subcommand("generate", "Generate text from a prompt");
  auto options = std::make_shared<PromptOptions>();
  options->app = app;
  app->footer(kExamples);
  auto& sampler = options->generate.sampler;
  app->add_option("--model", options->model, "folder of a checkpoint, dense or quantised")->required();
  app->add_option("--adapter", options->adapter, "adapter, checkpoint or run folder to put on the model");
  app->add_option("--prompt", options->prompt, "what to continue or, with a template, to answer");
  app->add_option("--prompt-file", options->prompt_file, "file with the prompt; - reads standard input");
  app->add_option("--template", options->kind, "none, alpaca, alpaca-paper or chat")->capture_default_str();
  app->add_option("--max-tokens", options->generate.max_tokens, "longest answer")
      ->capture_default_str()
      ->check(whole_number(1));
  app->add_option(
         "--temperature", sampler.temperature,
         "0 takes the most likely token, higher is more varied (default: 0; 1 when --top-p or --top-k is given)")
      ->check(number());
  app->add_option("--top-p", sampler.top_p, "sample from the likeliest tokens that reach this probability")
      ->check(number())
      ->capture_default_str();
  app->add_option("--top-k", sampler.top_k, "sample from the k likeliest tokens; 0: all")
      ->capture_default_str()
      ->check(whole_number(0));
  app->add_option("--seed", sampler.seed, "of the random numbers, which temperature 0 does not use")
      ->capture_default_str()
      ->check(whole_number(0));
  options->common = add_common(*app, kComputes);
  return {app, [options] { run(*options); }};
}

}  // namespace qalora::cli
