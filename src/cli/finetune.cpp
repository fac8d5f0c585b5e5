#include <nlohmann/json.hpp>

#include "qalora/cli/command.h"
#include "qalora/cli/config_file.h"
#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/core/log.h"
#include "qalora/tensor/dtype.h"
#include "qalora/train/finetune.h"
#include "qalora/train/run_folder.h"

namespace qalora::cli {

namespace {

using nlohmann::json;

struct FinetuneOptions {
  train::TrainConfig config;
  CLI::App* app = nullptr;
  std::string config_file;
  bool resume = false, dump_config = false;
  std::shared_ptr<CommonOptions> common;
};

std::vector<Key> keys_of(train::TrainConfig& c) {
  const std::string what = "What is trained on what", adapter = "The adapter", data = "The data", steps = "The steps",
                    writes = "What is written when";
  return {
      {"model", &c.model, "checkpoint folder: quantised for method qalora, dense for lora and full", what},
      {"data", &c.data, "training file: JSON, JSON Lines, CSV or text", what},
      {"out", &c.out, "run folder", what},
      {"method", &c.method,
       "qalora: adapter on pooled inputs of a quantised base; lora: ordinary LoRA on a dense one; full: all weights",
       what},
      {"initialize", &c.initialize, "full only: checkpoint, or random to start from config.json alone", what},
      {"initial_adapter", &c.initial_adapter,
       "start from this adapter instead of a fresh one (its rank, alpha and pooling count)", what},
      {"rank", &c.rank, "rank of A and B", adapter},
      {"alpha", &c.alpha, "the adapter's output is scaled by alpha / rank", adapter},
      {"dropout", &c.dropout, "dropped share of the pooled inputs while training", adapter},
      {"pooling", &c.pooling, "sum (the paper) or mean (the authors' code, which trains at 2e-4)", adapter},
      {"targets", &c.targets, "layers that get an adapter", adapter},
      {"data_format", &c.data_format,
       "auto, alpaca, flan, self-instruct, longform, chip2, sharegpt, messages, text or tokens", data},
      {"template", &c.template_name,
       "prompt around a record: alpaca, alpaca-paper (blank after '### Response:'), none or chat", data},
      {"sequence_length", &c.sequence_length,
       "longest row in tokens; longer examples are cut on the right, plain text goes on in another row", data},
      {"source_length", &c.source_length,
       "a prompt is cut to so many tokens, so that its answer survives; 0: no limit of its own", data},
      {"target_length", &c.target_length, "an answer is cut to so many tokens; 0: no limit of its own", data},
      {"packing", &c.packing, "several examples a row, kept apart by attention and positions", data},
      {"shuffle", &c.shuffle, "a new order each epoch; false: file order", data},
      {"group_by_length", &c.group_by_length,
       "rows of similar length together (saves padding, but batches may become single-task)", data},
      {"train_on_prompt", &c.train_on_prompt, "count the prompt's tokens in the loss too", data},
      {"skip_bad_records", &c.skip_bad_records,
       "leave bad records out and say how many, instead of stopping at the first", data},
      {"steps", &c.steps, "optimizer steps", steps},
      {"batch_size", &c.batch_size, "rows of one optimizer step", steps},
      {"micro_batch_size", &c.micro_batch_size,
       "rows of one forward pass (memory); divides batch_size; 0: as many as the free memory takes", steps},
      {"learning_rate", &c.learning_rate, "peak learning rate", steps},
      {"schedule", &c.schedule, "constant, linear or cosine, after warm-up", steps},
      {"warmup_steps", &c.warmup_steps, "steps in which the rate rises from 0", steps},
      {"weight_decay", &c.weight_decay, "decoupled weight decay (matrices only)", steps},
      {"max_grad_norm", &c.max_grad_norm, "gradients are scaled down to this norm; 0: never", steps},
      {"adam_beta1", &c.adam_beta1, "decay of AdamW's first moment", steps},
      {"adam_beta2", &c.adam_beta2, "decay of AdamW's second moment", steps},
      {"adam_epsilon", &c.adam_epsilon, "AdamW's epsilon", steps},
      {"gradient_checkpointing", &c.gradient_checkpointing,
       "keep only each layer's input and recompute the rest: less memory, a third slower", steps},
      {"recompute", &c.recompute,
       "what gradient_checkpointing recomputes: layer, or mlp (two thirds of the saving for two thirds of the time)",
       steps},
      {"seed", &c.seed, "of shuffling, initial values and dropout", steps},
      {"log_interval", &c.log_interval, "steps between lines of metrics.jsonl", writes},
      {"eval_interval", &c.eval_interval, "steps between held-out evaluations; 0: none", writes},
      {"eval_data", &c.eval_data, "held-out file", writes},
      {"eval_examples", &c.eval_examples, "or: so many examples of the training file are held out", writes},
      {"checkpoint_interval", &c.checkpoint_interval, "steps between checkpoints; 0: only at the end", writes},
      {"keep_checkpoints", &c.keep_checkpoints, "so many newest checkpoints are kept; 0: all", writes},
      {"save_dtype", &c.save_dtype, "full only: float16, bfloat16 or float32 for the final checkpoint", writes},
  };
}

// What config.toml holds: the keys, and the dtype, which is a flag of every command but decides the numbers of a run.
std::vector<Key> file_keys(FinetuneOptions& options) {
  std::vector<Key> keys = keys_of(options.config);
  keys.push_back({"dtype", &options.common->dtype, "float32 or bfloat16: of matrix products", "The machine"});
  return keys;
}

std::string resolved(FinetuneOptions& options) { return to_toml(file_keys(options), train::RunFolder::kConfigHeading); }

// After the configuration file, which may name a dtype too; where nobody does it is this machine's, and written down as
// such.
void resolve_dtype(CommonOptions& common) {
  if (!common.dtype.empty()) common.compute = tensor::parse_compute_dtype(common.dtype);
  common.dtype = tensor::dtype_name(common.compute);
}

json spans_json(const std::vector<train::ExampleSpan>& spans) {
  json result = json::array();
  for (const train::ExampleSpan& span : spans) result.push_back({{"trained", span.trained}, {"text", span.text}});
  return result;
}

// A file that is bad throughout must not make a document as large as itself.
json bad_json(const std::vector<text::BadRecord>& records) {
  constexpr size_t kMost = 1000;
  json result = json::array();
  for (size_t i = 0; i < std::min(records.size(), kMost); ++i)
    result.push_back({{"line", records[i].line}, {"reason", records[i].reason}});
  return result;
}

json dry_run_json(const train::DryRun& dry) {
  json result = train::report_json(dry.report);
  result.update({{"dry_run", true},
                 {"data_format", dry.format},
                 {"detected", dry.format_detected},
                 {"bad", bad_json(dry.bad_records)},
                 {"epochs", dry.epochs},
                 {"estimated_memory_bytes", dry.estimate.memory.total()},
                 {"estimated_seconds", dry.estimate.seconds},
                 {"fits", dry.estimate.fits()},
                 {"micro_batch_size", dry.micro_batch_size}});
  result["example"] = {
      {"spans", spans_json(dry.example_spans)}, {"input_ids", dry.example_ids}, {"labels", dry.example_labels}};
  return result;
}

std::string dry_run_text(const train::DryRun& dry, const train::TrainConfig& config) {
  const train::DataReport& r = dry.report;
  const std::string unfit = dry.estimate.unfit_text(config);
  std::string text = message(
      config.data, ": format ", dry.format, dry.format_detected ? " (detected)" : " (from the configuration)", "\n",
      "  records         ", format_count(r.records), ", bad ones skipped ", format_count(r.bad_records), "\n",
      "  examples        ", format_count(r.examples), " to train on, ", format_count(r.held_out), " held out\n",
      "  tokens          ", format_count(r.tokens), " an epoch, ", format_count(r.trained_tokens), " of them trained (",
      format_fixed(100.0 * static_cast<double>(r.trained_tokens) / static_cast<double>(r.tokens), 1), " %)\n",
      "  length          median ", r.median_length, ", 95 % within ", r.p95_length, ", longest ", r.longest, "\n",
      "  cut             ", format_count(r.cut.examples), " examples lose ", format_count(r.cut.tokens), " tokens",
      train::cut_by(r, config), "\n", "  windows         ", format_count(r.split_texts), " long texts are trained in ",
      format_count(r.windows), " examples\n", "  left out        ", format_count(r.without_target),
      " examples with nothing to train on\n", "  the run         ", config.steps, " steps x ", config.batch_size,
      " rows = ", format_fixed(dry.epochs, 2), " epochs\n  memory          ", dry.estimate.memory_text(),
      unfit.empty() ? "" : "; " + unfit, "\n", "  time            ", dry.estimate.time_text(), "\n");
  const size_t shown = std::min<size_t>(dry.bad_records.size(), 5);
  for (size_t i = 0; i < shown; ++i) {
    text +=
        message("  bad record      ", config.data, ":", dry.bad_records[i].line, ": ", dry.bad_records[i].reason, "\n");
  }
  if (shown < dry.bad_records.size())
    text += message("                  and ", dry.bad_records.size() - shown, " more; --json lists them\n");
  text += "\nOne example; only what stands between >>> and <<< is trained:\n";
  if (dry.example_spans.empty()) return text + "  (ready-made token ids)\n";
  for (const train::ExampleSpan& span : dry.example_spans) {
    text += span.trained ? log::bold(">>>") + span.text + log::bold("<<<") : span.text;
  }
  return text + "\n";
}

// Of the device that computed.
uint64_t peak_bytes(const json& end) {
  const json& device = end.at("peak_device_memory_bytes");
  return (device.is_null() ? end.at("peak_memory_bytes") : device).get<uint64_t>();
}

std::string end_text(const json& end, const train::TrainConfig& config) {
  const std::string written =
      message("wrote ", end.at("output").get<std::string>(), " and ", config.out, "/loss.svg\n");
  const int64_t step = end.at("step");
  if (end.at("steps_run") == 0) return message("nothing left to do at step ", step, "\n", written);
  const std::string loss = end.at("loss").is_number() ? format_fixed(end.at("loss").get<double>(), 4) : "not finite";
  const int64_t run = end.at("steps_run");
  return message("trained ", run, " steps in ", format_duration(end.at("seconds").get<double>()),
                 run == step ? "" : message(", up to step ", step), ", last loss ", loss, ", ",
                 format_count(static_cast<int64_t>(end.at("tokens_per_second").get<double>())),
                 " tokens/s, peak memory ", format_bytes(peak_bytes(end)), "\n", written);
}

void run(FinetuneOptions& options) {
  apply_common(*options.common);
  if (!options.config_file.empty()) {
    require_file(options.config_file, "--config");
    load_config_file(*options.app, options.config_file, file_keys(options));
  }
  resolve_dtype(*options.common);
  if (options.dump_config) return print(resolved(options));
  for (const auto& [flag, file] :
       {std::pair{"--data", options.config.data}, std::pair{"--eval-data", options.config.eval_data}}) {
    std::error_code failed;  // one that is missing is said where it is read, behind what --out is wrong about
    QALORA_REQUIRE(!fs::is_directory(file, failed), UserError, flag, " ", file, ": is a folder, expected a file");
  }
  if (options.common->dry_run) {
    train::RunOptions checks;
    checks.resume = options.resume;
    checks.force = options.common->force;
    checks.compute = options.common->compute;
    checks.device = options.common->where;
    const train::DryRun dry = train::dry_run(options.config, checks);
    return options.common->json ? print_json(dry_run_json(dry)) : print(dry_run_text(dry, options.config));
  }
  train::RunOptions run_options;
  run_options.resume = options.resume;
  run_options.force = options.common->force;
  run_options.compute = options.common->compute;
  run_options.device = options.common->where;
  run_options.resolved_config = resolved(options);
  json end;
  run_options.on_event = [&](const json& event) {
    if (options.common->json) print(json_line(event));
    if (event.at("event") == "end") end = event;
  };
  train::finetune(options.config, run_options);
  if (options.common->json) return;
  print(end_text(end, options.config));
  if (options.config.method == "qalora") {
    print(message("merge with: qalora merge --model ", options.config.model, " --adapter ", options.config.out,
                  " --out DIR\n"));
  }
}

}  // namespace

Command make_finetune(CLI::App& root) {
  auto options = std::make_shared<FinetuneOptions>();
  CLI::App* app = root.add_subcommand("finetune", "Train an adapter on a quantised model (or LoRA, or all weights)");
  options->app = app;
  app->footer(
      "Examples:\n  qalora finetune --config configs/alpaca-7b.toml --model llama-7b-int4 --data alpaca.json --out run\n"
      "  qalora finetune --config run/config.toml --resume --steps 20000\n");
  app->add_option("--config", options->config_file, "TOML file with the keys below; flags win over it")
      ->type_name("FILE");
  bind_keys(*app, keys_of(options->config));
  app->add_flag("--resume", options->resume, "continue the run in --out from its newest checkpoint");
  app->add_flag("--dump-config", options->dump_config, "print the resolved configuration and stop");
  options->common = add_common(*app, kComputes | kWrites);
  return {app, [options] { run(*options); }};
}

}  // namespace qalora::cli
