#include <algorithm>
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
#include "qalora/tensor/dtype.h"
#include "qalora/text/tokenizer.h"

namespace qalora::cli {
namespace {

constexpr const char* kExamples =
    "Examples:\n"
    "  qalora eval --model llama-7b-int4 --adapter run --task mmlu --data mmlu --shots 5 --details answers.jsonl\n"
    "  qalora eval --model llama-7b-int4 --task perplexity --data wikitext.txt --json\n";

struct EvalOptions {
  std::shared_ptr<CommonOptions> common;
  CLI::App* app = nullptr;
  std::string model, adapter, task, data, protocol = "hendrycks", split = "test", details, token_ids, save_logits;
  std::vector<std::string> subjects;
  int64_t shots = -1, limit = 0, context_length = 0, batch_tokens = eval::kDefaultBatchTokens;
};

// What the task runs on, read and checked before a model is loaded.
struct Work {
  std::optional<text::Tokenizer> tokenizer;
  eval::MmluSource source;
  std::vector<eval::MmluSubject> subjects;      // mmlu
  std::vector<eval::ChoiceQuestion> questions;  // choice
  eval::TokenBlocks blocks;                     // perplexity
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

// After the result was printed: a disk that is full by now costs the details, not the result.
template <typename Line>
void write_details(const EvalOptions& options, size_t lines, const Line& line) {
  if (options.details.empty()) return;
  AtomicFile file(options.details);
  for (size_t i = 0; i < lines; ++i) file.write(line(i) + "\n");
  file.commit();
}

void print_result(const EvalOptions& options, nlohmann::json json, const std::string& text) {
  json["dtype"] = tensor::dtype_name(options.common->compute);
  if (options.common->json) {
    print_json(json);
  } else {
    print(text);
  }
}

std::string mmlu_table(const eval::MmluResult& result) {
  const eval::MmluSummary summary = eval::summarise(result);
  std::vector<std::vector<std::string>> rows = {{"subject", "category", "questions", "accuracy"}};
  for (size_t i = 0; i < result.subjects.size(); ++i) {
    const auto category = eval::category_of(result.subjects[i]);
    const eval::Accuracy& accuracy = summary.subjects[i];
    rows.push_back({result.subjects[i], category ? eval::category_name(*category) : "-",
                    format_count(accuracy.questions), percent(accuracy.value())});
  }
  for (eval::Category category : eval::kCategories) {
    const eval::Accuracy& accuracy = summary.categories[static_cast<size_t>(category)];
    if (accuracy.questions == 0) continue;
    rows.push_back({"all " + eval::category_name(category), eval::category_name(category),
                    format_count(accuracy.questions), percent(accuracy.value())});
  }
  rows.push_back({"all, mean of questions", "", format_count(summary.micro.questions),
                  percent(summary.micro.value(), summary.micro_error)});
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

void run_mmlu(const EvalOptions& options, model::Llama& model, const Work& work) {
  const eval::MmluResult result =
      eval::run_mmlu(model, *work.tokenizer, work.subjects, work.source.protocol, options.batch_tokens);
  report_cuts(result);
  std::error_code error;
  const std::string split =
      fs::is_directory(options.data, error) ? work.source.split : "file";  // QLoRA's file does not say
  nlohmann::json json = eval::to_json(result);
  json["split"] = split;
  print_result(options, std::move(json),
               message("mmlu, split ", split, ", protocol ", eval::protocol_name(result.protocol), ", ", result.shots,
                       " shots, ", format_count(static_cast<int64_t>(result.answers.size())), " questions\n",
                       mmlu_table(result)));
  log_speed(result.tokens, result.seconds);
  write_details(options, result.answers.size(),
                [&](size_t i) { return eval::details_line(result, result.answers[i]); });
}

void run_choice(const EvalOptions& options, model::Llama& model, const Work& work) {
  const eval::ChoiceResult result = eval::run_choices(model, *work.tokenizer, work.questions, options.batch_tokens);
  const int64_t count = static_cast<int64_t>(work.questions.size());
  if (result.cut_prompts > 0)
    log::warn(message(result.cut_prompts, " of ", count, " contexts do not fit and were cut on the left"));
  const eval::Accuracy plain{count, result.correct}, norm{count, result.correct_norm};
  print_result(
      options, eval::to_json(result),
      format_table(
          {{"choice", "questions", "accuracy"},
           {"by log-likelihood", format_count(count), percent(plain.value(), eval::standard_error({&plain, 1}))},
           {"per byte", format_count(count), percent(norm.value(), eval::standard_error({&norm, 1}))}}));
  log_speed(result.tokens, result.seconds);
  write_details(options, result.answers.size(), [&](size_t i) { return eval::details_line(result, i); });
}

void run_perplexity(const EvalOptions& options, model::Llama& model, const Work& work) {
  const auto report = [&](const eval::PerplexityResult& result) {
    const nlohmann::json json = eval::to_json(result, work.blocks);
    const std::string value = json["perplexity"].is_null() ? "too large" : format_fixed(json["perplexity"], 4);
    print_result(
        options, json,
        format_table({{"perplexity", "nll", "tokens", "blocks", "of tokens", "partial"},
                      {value, format_fixed(result.nll, 6), format_count(result.tokens), format_count(result.blocks),
                       format_count(work.blocks.block_tokens), format_count(work.blocks.partial_blocks)}}));
    log_speed(result.tokens, result.seconds);
  };
  if (options.save_logits.empty()) {
    report(eval::run_perplexity(model, work.blocks, options.batch_tokens));
  } else {
    eval::save_logits(model, work.blocks, options.batch_tokens, options.save_logits, report);
  }
}

// A flag of another task would be ignored: it is an error instead.
void check_task_flags(const EvalOptions& options) {
  const std::pair<const char*, std::vector<std::string>> table[] = {
      {"--protocol", {"mmlu"}},          {"--shots", {"mmlu"}},
      {"--subjects", {"mmlu"}},          {"--split", {"mmlu"}},
      {"--details", {"mmlu", "choice"}}, {"--context-length", {"perplexity"}},
      {"--token-ids", {"perplexity"}},   {"--save-logits", {"perplexity"}}};
  for (const auto& [flag, tasks] : table) {
    const bool belongs = std::find(tasks.begin(), tasks.end(), options.task) != tasks.end();
    QALORA_REQUIRE(belongs || options.app->get_option(flag)->count() == 0, UserError, flag, " belongs to --task ",
                   join(tasks, " and --task "), ", got --task ", options.task);
  }
}

void check(const EvalOptions& options) {
  check_task_flags(options);
  const bool ids = !options.token_ids.empty();
  require_model(options.model, "--model");
  if (!options.adapter.empty()) require_folder(options.adapter, "--adapter");
  QALORA_REQUIRE(ids || !options.data.empty(), UserError, "--data is missing: what to run the task on");
  QALORA_REQUIRE(!ids || options.data.empty(), UserError, "--data and --token-ids: give one of them");
  QALORA_REQUIRE(!ids || options.context_length == 0, UserError,
                 "--context-length cuts --data into blocks; --token-ids are taken as they are");
  QALORA_REQUIRE(options.save_logits.empty() || ids, UserError, "--save-logits needs --token-ids");
  const bool folder_too = options.task == "mmlu";
  (folder_too ? require_input : require_file)(ids ? options.token_ids : options.data, ids ? "--token-ids" : "--data");
  for (const auto& [flag, out] :
       {std::pair{"--details", options.details}, std::pair{"--save-logits", options.save_logits}}) {
    if (out.empty()) continue;
    require_output_file(flag, out, options.common->force,
                        {options.model, options.adapter, options.data, options.token_ids});
  }
  QALORA_REQUIRE(ids || text::Tokenizer::exists(options.model), UserError, options.model,
                 ": no tokenizer (tokenizer.model or tokenizer.json) in it, and --task ", options.task,
                 " needs one; copy the one that belongs to the model into the folder");
}

Work read_work(const EvalOptions& options, const model::LlamaConfig& config) {
  Work work;
  if (!options.token_ids.empty()) {
    work.blocks = eval::read_token_ids(options.token_ids, config, options.limit);
    return work;
  }
  work.tokenizer.emplace(fs::path(options.model));
  if (options.task == "choice") {
    work.questions = eval::read_choices(options.data, options.limit);
  } else if (options.task == "perplexity") {
    work.blocks = eval::read_blocks(options.data, *work.tokenizer, eval::block_length(options.context_length, config),
                                    options.limit);
  } else {
    work.source = {.data = options.data,
                   .protocol = eval::parse_protocol(options.protocol),
                   .subjects = options.subjects,
                   .limit = options.limit,
                   .split = options.split};
    if (options.shots >= 0) work.source.shots = options.shots;
    work.subjects = eval::read_mmlu(work.source);
  }
  return work;
}

void print_dry_run(const EvalOptions& options, const Work& work) {
  size_t count = options.task == "choice" ? work.questions.size() : work.blocks.blocks.size();
  for (const auto& subject : work.subjects) count += subject.questions.size();
  const char* what = options.task == "perplexity" ? "blocks" : "questions";
  print_result(options, {{"task", options.task}, {what, count}, {"dry_run", true}},
               message(options.task, ": ", format_count(static_cast<int64_t>(count)), " ", what, " to score\n"));
  log::info("dry run: no model was loaded, nothing was written");
}

void run(EvalOptions& options) {
  apply_common(*options.common);
  check(options);
  const Work work = read_work(options, model::read_config(options.model));
  if (options.common->dry_run) return print_dry_run(options, work);
  model::LoadOptions load;
  load.compute = options.common->compute;
  load.device = options.common->where;
  model::Llama model = model::load_model_with_adapter(options.model, options.adapter, load);
  if (options.task == "perplexity") return run_perplexity(options, model, work);
  if (options.task == "mmlu") return run_mmlu(options, model, work);
  run_choice(options, model, work);
}

}  // namespace

Command make_eval(CLI::App& root) {
  CLI::App* app = root.add_subcommand("eval", "Score a model: MMLU, multiple choice, perplexity");
  auto options = std::make_shared<EvalOptions>();
  app->add_option("--model", options->model, "folder of a checkpoint, dense or quantised")->required();
  app->add_option("--adapter", options->adapter, "adapter, checkpoint or run folder to put on the model");
  options->app = app;
  app->footer(kExamples);
  app->add_option("--task", options->task, "mmlu, choice or perplexity")
      ->required()
      ->check(one_of({"mmlu", "choice", "perplexity"}));
  app->add_option(
      "--data", options->data,
      "mmlu: the folder with dev/ and test/, or QLoRA's JSON-Lines file; choice: JSON Lines; perplexity: text, or "
      ".jsonl with \"text\"");
  app->add_option("--protocol", options->protocol, "mmlu: hendrycks, qlora or lm-eval")
      ->capture_default_str()
      ->check(one_of({"hendrycks", "qlora", "lm-eval"}));
  app->add_option("--shots", options->shots,
                  "mmlu: worked examples in front of a question (default: 5; a QLoRA file: its own)")
      ->check(whole_number(0));
  app->add_option("--split", options->split,
                  "mmlu: test or val, the folder's part that is asked (QLoRA's own runs ask val)")
      ->capture_default_str()
      ->check(one_of({"test", "val"}));
  app->add_option("--subjects", options->subjects, "mmlu: only these, separated by commas")->delimiter(',');
  app->add_option("--limit", options->limit,
                  "only the first N questions (mmlu: of each subject), blocks of text or rows of ids")
      ->check(whole_number(0));
  app->add_option("--details", options->details, "mmlu, choice: write one JSON line a question to this file");
  app->add_option("--context-length", options->context_length,
                  "perplexity: tokens a block (default: 2048 or the model's context)")
      ->check(whole_number(2));
  app->add_option("--token-ids", options->token_ids,
                  "perplexity: a JSON list of ids, or a list of lists of one length, instead of --data");
  app->add_option("--save-logits", options->save_logits,
                  "perplexity: write the logits of --token-ids to this safetensors file");
  app->add_option("--batch-tokens", options->batch_tokens,
                  "tokens computed at a time: memory and speed; scores do not depend on it (float32, CPU)")
      ->capture_default_str()
      ->check(whole_number(1));
  options->common = add_common(*app, kComputes | kWrites);
  return {app, [options] { run(*options); }};
}

}  // namespace qalora::cli
