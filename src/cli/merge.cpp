#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "qalora/cli/command.h"
#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/core/log.h"
#include "qalora/eval/verified_merge.h"
#include "qalora/model/adapter_base.h"

namespace qalora::cli {
namespace {

constexpr const char* kExamples =
    "Examples:\n"
    "  qalora merge --model llama-7b-int4 --adapter run --out llama-7b-int4-alpaca\n"
    "  qalora merge --model llama-7b-int4 --adapter run/checkpoints/step-500 --out early --data alpaca.json\n";

struct MergeOptions {
  std::shared_ptr<CommonOptions> common;
  std::string model, adapter, out, data;
  bool accept_unknown_base = false;
};

// What of the base the adapter names, so that it could be compared.
const char* base_checked(const io::AdapterConfig& config) {
  return config.base_fingerprint.empty()         ? "nothing"
         : config.base_state_fingerprint.empty() ? "codes and scales"
                                                 : "everything";
}

void print_report(const eval::MergeReport& report, const std::string& tokens_from) {
  print(format_table(
      {{"merge", "value"},
       {"linear layers merged", format_count(report.layers)},
       {"offsets compared, all correctly rounded", format_count(report.offsets.offsets)},
       {"largest logit difference, merged - (base + adapter)", short_number(report.logits.max_logit_difference)},
       {"what rounding can explain", short_number(report.logits.tolerance)},
       {"what the adapter does to the logits", short_number(report.logits.effect)},
       {"tokens compared (" + tokens_from + ")", format_count(report.logits.tokens)},
       {"bytes of offsets changed", format_count(static_cast<int64_t>(report.changes.offsets))},
       {"bytes of codes changed", format_count(static_cast<int64_t>(report.changes.codes))},
       {"bytes of scales changed", format_count(static_cast<int64_t>(report.changes.scales))}}));
}

nlohmann::json report_json(const eval::MergeReport& report, const std::string& tokens_from) {
  return {{"layers", report.layers},
          {"max_logit_difference", report.logits.max_logit_difference},
          {"tolerance", report.logits.tolerance},
          {"verified", report.logits.verified() && report.offsets.exact()},
          {"adapter_effect", report.logits.effect},
          {"logits_decide", report.logits.decides()},
          {"tokens", report.logits.tokens},
          {"tokens_from", tokens_from},
          {"offsets_compared", report.offsets.offsets},
          {"worst_offset_error", report.offsets.worst},
          {"offset_bytes_changed", report.changes.offsets},
          {"code_bytes_changed", report.changes.codes},
          {"scale_bytes_changed", report.changes.scales},
          {"bytes", report.bytes}};
}

// Refusals that cost nothing come first.
void check_output(const MergeOptions& options, const fs::path& adapter_folder, const std::string& training_data) {
  QALORA_REQUIRE(options.common->dry_run || !options.out.empty(), UserError, "--out: give the folder to write");
  if (options.out.empty()) return;
  require_output(options.out, options.common->force,
                 {options.model, options.adapter, adapter_folder, options.data, training_data});
}

void run(MergeOptions& options) {
  apply_common(*options.common);
  require_model(options.model, "--model");
  if (!options.data.empty()) require_file(options.data, "--data");
  if (options.common->compute != at::kFloat && !options.common->dtype.empty()) {
    log::warn("--dtype has no effect here: the proof runs in float32, where rounding is smallest");
  }
  const auto start = std::chrono::steady_clock::now();
  const fs::path model_folder = options.model, adapter_folder = io::find_adapter(options.adapter);
  const model::LlamaConfig config = model::read_config(model_folder);
  const io::AdapterFile adapter = model::read_adapter_for(adapter_folder, config);
  check_output(options, adapter_folder, adapter.config.training_data);
  const io::Checkpoint base(model_folder);
  model::check_mergeable(base, adapter_folder, adapter, options.accept_unknown_base);
  const uint64_t bytes = model::merged_bytes(base, adapter);
  const eval::ProofTokens tokens = options.data.empty()
                                       ? eval::proof_tokens(model_folder, config, adapter.config.training_data)
                                       : eval::proof_tokens_of(model_folder, config, options.data);
  log::info(message("merging ", adapter_folder.string(), " (rank ", adapter.config.rank, ", ",
                    io::pooling_name(adapter.config.pooling), " pooling, ", adapter.modules.size(), " layers) into ",
                    options.model, ": writes ", format_bytes(bytes)));
  if (options.common->dry_run) {
    if (!options.out.empty())
      require_writable(options.out, options.common->force, bytes + io::sidecar_bytes(model_folder));
    if (options.common->json) {
      print_json({{"layers", adapter.modules.size()},
                  {"bytes", bytes},
                  {"base_checked", base_checked(adapter.config)},
                  {"dry_run", true}});
    }
    log::info("dry run: nothing was written");
    return;
  }
  const eval::MergeReport report = eval::merge_verified(base, adapter_folder, adapter, tokens, options.out,
                                                        options.common->force, options.common->where);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (options.common->json) {
    nlohmann::json json = report_json(report, tokens.source);
    json["base_checked"] = base_checked(adapter.config);
    json["seconds"] = seconds;
    print_json(json);
  } else {
    print_report(report, tokens.source);
  }
  if (!report.logits.decides()) {
    log::warn(
        "the adapter changes the logits by no more than rounding does: it is untrained, or was trained very little; the offsets alone "
        "prove this merge");
  }
  log::info(message("merged and verified: wrote ", options.out, " in ", format_duration(seconds)));
  log::info(message("score it with: qalora eval --model ", options.out, " --task perplexity --data FILE"));
}

}  // namespace

Command make_merge(CLI::App& root) {
  CLI::App* app = root.add_subcommand(
      "merge", "Merge an adapter into its quantised model: only the offsets change, and that is proved");
  auto options = std::make_shared<MergeOptions>();
  app->footer(kExamples);
  app->add_option("--model", options->model, "folder of the quantised checkpoint that the adapter was trained on")
      ->required();
  app->add_option("--adapter", options->adapter, "adapter, checkpoint or run folder")->required();
  app->add_option("--out", options->out, "folder to write");
  app->add_option("--data", options->data,
                  "data whose first records the proof uses (default: the adapter's training data)");
  app->add_flag(
      "--accept-unknown-base", options->accept_unknown_base,
      "merge an adapter that does not say on which base it was trained, because you know that it was this one");
  options->common = add_common(*app, kComputes | kWrites);
  return {app, [options] { run(*options); }};
}

}  // namespace qalora::cli
