#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "qalora/cli/command.h"
#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/core/log.h"
#include "qalora/eval/choice.h"
#include "qalora/eval/mmlu.h"
#include "qalora/eval/perplexity.h"
#include "qalora/eval/scorer.h"
#include "qalora/model/load.h"
#include "qalora/text/tokenizer.h"

namespace qalora::cli {
namespace {

struct EvalOptions {
  std::shared_ptr<CommonOptions> common;
  std::string model, adapter, task, data, protocol = "hendrycks", details, token_ids, save_logits;
  std::vector<std::string> subjects;
  int64_t shots = -1, limit = 0, context_length = 0, batch_tokens = eval::kDefaultBatchTokens;
};

std::string percent(double share) { return format_fixed(100 * share, 2) + " %"; }

std::string percent(double share, const std::optional<double>& error) {
  return percent(share) + (error ? " +- " + format_fixed(100 * *error, 2) : "");
}

void log_speed(int64_t tokens, double seconds) {
  if (seconds <= 0) return;
  log::info(message(format_count(tokens), " tokens in ", format_duration(seconds), ", ",
                    format_count(static_cast<int64_t>(static_cast<double>(tokens) / seconds)), " tokens/s"));
}

template <typename Line>
void write_details(const EvalOptions& options, size_t lines, const Line& line) {
  if (options.details.empty()) return;
  AtomicFile file(options.details);
  for (size_t i = 0; i < lines; ++i) file.write(line(i) + "\n");
  file.commit();
}

std::string mmlu_table(const eval::MmluResult& result) {
  const eval::MmluSummary summary = eval::summarise(result);
  std::vector<std::vector<std::string>> rows = {{"subject", "category", "questions", "accuracy"}};
  for (size_t i = 0; i < result.subjects.size(); ++i) {
    const auto category = eval::category_of(result.subjects[i]);
    const eval::Accuracy& accuracy = summary.subjects[i];
    rows.push_back({result.subjects[i], category ? eval::category_name(*category) : "-", format_count(accuracy.questions),
                    percent(accuracy.value())});
  }
  for (eval::Category category : eval::kCategories) {
    const eval::Accuracy& accuracy = summary.categories[static_cast<size_t>(category)];
    if (accuracy.questions == 0) continue;
    rows.push_back({"all " + eval::category_name(category), eval::category_name(category), format_count(accuracy.questions),
                    percent(accuracy.value())});
  }
  rows.push_back(
      {"all, mean of questions", "", format_count(summary.micro.questions), percent(summary.micro.value(), summary.micro_error)});
  rows.push_back({"all, mean of subjects", "", format_count(summary.micro.questions), percent(summary.macro_subjects)});
  return format_table(rows);
}

void report_cuts(const eval::MmluResult& result) {
  if (result.cut_prompts == 0) return;
  const char* how = result.protocol == eval::Protocol::kHendrycks ? "were asked with fewer worked examples"
                    : result.protocol == eval::Protocol::kQlora   ? "were cut on the right, their question included"
                                                                  : "were cut on the left";
  log::warn(message(result.cut_prompts, " of ", result.answers.size(), " prompts do not fit and ", how, " (--protocol ",
                    eval::protocol_name(result.protocol), ")"));
}

void run_mmlu(const EvalOptions& options, model::Llama& model, const text::Tokenizer& tokenizer) {
  eval::MmluSource source;
  source.data = options.data;
  source.protocol = eval::parse_protocol(options.protocol);
  if (options.shots >= 0) source.shots = options.shots;
  source.subjects = options.subjects;
  source.limit = options.limit;
  const eval::MmluResult result = eval::run_mmlu(model, tokenizer, source, options.batch_tokens);
  report_cuts(result);
  write_details(options, result.answers.size(), [&](size_t i) { return eval::details_line(result, result.answers[i]); });
  if (options.common->json) {
    print_json(eval::to_json(result));
  } else {
    print(message("mmlu, protocol ", eval::protocol_name(result.protocol), ", ", result.shots, " shots, ",
                  format_count(static_cast<int64_t>(result.answers.size())), " questions\n", mmlu_table(result)));
  }
  log_speed(result.tokens, result.seconds);
}

void run_choice(const EvalOptions& options, model::Llama& model, const text::Tokenizer& tokenizer) {
  const auto questions = eval::read_choices(options.data, options.limit);
  const eval::ChoiceResult result = eval::run_choices(model, tokenizer, questions, options.batch_tokens);
  if (result.cut_prompts > 0) {
    log::warn(message(result.cut_prompts, " of ", questions.size(), " contexts do not fit and were cut on the left"));
  }
  write_details(options, result.answers.size(), [&](size_t i) { return eval::details_line(result, i); });
  if (options.common->json) {
    print_json(eval::to_json(result));
  } else {
    const int64_t count = static_cast<int64_t>(questions.size());
    const eval::Accuracy plain{count, result.correct}, norm{count, result.correct_norm};
    print(format_table({{"choice", "questions", "accuracy"},
                        {"by log-likelihood", format_count(count), percent(plain.value(), eval::standard_error({&plain, 1}))},
                        {"per byte", format_count(count), percent(norm.value(), eval::standard_error({&norm, 1}))}}));
  }
  log_speed(result.tokens, result.seconds);
}

void print_perplexity(const EvalOptions& options, const eval::PerplexityResult& result, const eval::TokenBlocks& blocks) {
  const nlohmann::json json = eval::to_json(result, blocks);
  if (options.common->json) {
    print_json(json);
  } else {
    const std::string value = json["perplexity"].is_null() ? "too large" : format_fixed(json["perplexity"], 4);
    print(format_table({{"perplexity", "nll", "tokens", "blocks", "of tokens", "partial"},
                        {value, format_fixed(result.nll, 6), format_count(result.tokens), format_count(result.blocks),
                         format_count(blocks.block_tokens), format_count(blocks.partial_blocks)}}));
  }
  log_speed(result.tokens, result.seconds);
}

void run_perplexity(const EvalOptions& options, model::Llama& model) {
  if (!options.token_ids.empty()) {
    const auto rows = eval::read_token_ids(options.token_ids, model.config);
    const auto result = options.save_logits.empty() ? eval::run_perplexity(model, rows, options.batch_tokens)
                                                    : eval::save_logits(model, rows, options.batch_tokens, options.save_logits);
    print_perplexity(options, result, rows);
    return;
  }
  const text::Tokenizer tokenizer{fs::path(options.model)};
  const int64_t length = eval::block_length(options.context_length, model.config);
  const auto blocks = eval::read_blocks(options.data, tokenizer, length, options.limit);
  print_perplexity(options, eval::run_perplexity(model, blocks, options.batch_tokens), blocks);
}

// What does not go together is refused before a model is read.
void check(const EvalOptions& options) {
  const bool ids = !options.token_ids.empty();
  require_folder(options.model, "--model");
  if (!options.adapter.empty()) require_folder(options.adapter, "--adapter");
  QALORA_REQUIRE(ids || !options.data.empty(), UserError, "--data is missing: what to run the task on");
  QALORA_REQUIRE(!ids || options.data.empty(), UserError, "--data and --token-ids: give one of them");
  QALORA_REQUIRE(ids || fs::exists(options.data), UserError, "--data: ", options.data, " does not exist");
  QALORA_REQUIRE(!ids || options.task == "perplexity", UserError, "--token-ids belongs to --task perplexity, got --task ",
                 options.task);
  QALORA_REQUIRE(options.save_logits.empty() || ids, UserError, "--save-logits needs --token-ids");
  QALORA_REQUIRE(options.context_length == 0 || (options.task == "perplexity" && !ids), UserError,
                 "--context-length belongs to --task perplexity with --data");
  QALORA_REQUIRE(options.details.empty() || options.task != "perplexity", UserError,
                 "--details belongs to --task mmlu and --task choice");
  QALORA_REQUIRE(options.task == "mmlu" || (options.shots < 0 && options.subjects.empty()), UserError,
                 "--shots and --subjects belong to --task mmlu, got --task ", options.task);
  QALORA_REQUIRE(options.limit >= 0, UserError, "--limit: expected 0 (all) or more, got ", options.limit);
  QALORA_REQUIRE(options.batch_tokens > 0, UserError, "--batch-tokens: expected 1 or more, got ", options.batch_tokens);
  for (const auto& [flag, out] : {std::pair{"--details", options.details}, std::pair{"--save-logits", options.save_logits}}) {
    if (out.empty()) continue;
    QALORA_REQUIRE(options.common->force || !fs::exists(out), UserError, flag, " ", out,
                   ": exists already; choose another place or give --force to replace it");
    require_output(out, true, {options.model, options.data, options.token_ids});
  }
  QALORA_REQUIRE(ids || text::Tokenizer::exists(options.model), UserError, options.model,
                 ": no tokenizer.model in it, and --task ", options.task,
                 " needs one; copy the one that belongs to the model into the folder");
  if (options.task == "mmlu") eval::parse_protocol(options.protocol);
}

void run(EvalOptions& options) {
  apply_common(*options.common);
  check(options);
  model::LoadOptions load;
  load.compute = options.common->compute;
  model::Llama model = model::load_model_with_adapter(options.model, options.adapter, load);
  if (options.task == "perplexity") return run_perplexity(options, model);
  const text::Tokenizer tokenizer{fs::path(options.model)};
  if (options.task == "mmlu") return run_mmlu(options, model, tokenizer);
  run_choice(options, model, tokenizer);
}

}  // namespace

Command make_eval(CLI::App& root) {
  CLI::App* app = root.add_subcommand("eval", "Score a model: MMLU, multiple choice, perplexity");
  auto options = std::make_shared<EvalOptions>();
  app->add_option("--model", options->model, "folder of a checkpoint, dense or quantised")->required();
  app->add_option("--adapter", options->adapter, "adapter, checkpoint or run folder to put on the model");
  app->add_option("--task", options->task, "mmlu, choice or perplexity")
      ->required()
      ->check(CLI::IsMember({"mmlu", "choice", "perplexity"}));
  app->add_option("--data", options->data,
                  "mmlu: the folder with dev/ and test/, or QLoRA's JSON-Lines file; choice: JSON Lines; perplexity: text, or "
                  ".jsonl with \"text\"");
  app->add_option("--protocol", options->protocol, "mmlu: hendrycks, qlora or lm-eval")->capture_default_str();
  app->add_option("--shots", options->shots, "mmlu: worked examples in front of a question (default: 5; a QLoRA file: its own)")
      ->check(CLI::NonNegativeNumber);
  app->add_option("--subjects", options->subjects, "mmlu: only these, separated by commas")->delimiter(',');
  app->add_option("--limit", options->limit, "only the first N questions (mmlu: of each subject) or blocks of text");
  app->add_option("--details", options->details, "mmlu, choice: write one JSON line a question to this file");
  app->add_option("--context-length", options->context_length,
                  "perplexity: tokens a block (default: 2048 or the model's context)");
  app->add_option("--token-ids", options->token_ids,
                  "perplexity: a JSON list of ids, or a list of lists of one length, instead of --data");
  app->add_option("--save-logits", options->save_logits, "perplexity: write the logits of --token-ids to this safetensors file");
  app->add_option("--batch-tokens", options->batch_tokens,
                  "tokens computed at a time: memory and speed; scores do not depend on it (float32, CPU)")
      ->capture_default_str();
  options->common = add_common(*app, kComputes);
  app->add_flag("--force", options->common->force, "replace an existing output file");
  return {app, [options] { run(*options); }};
}

}  // namespace qalora::cli
