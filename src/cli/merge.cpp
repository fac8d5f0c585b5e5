#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "qalora/cli/command.h"
#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/core/log.h"
#include "qalora/eval/merge_proof.h"
#include "qalora/model/merge_checkpoint.h"

namespace qalora::cli {
namespace {

constexpr const char* kExamples =
    "Examples:\n"
    "  qalora merge --model llama-7b-int4 --adapter run --out llama-7b-int4-alpaca\n"
    "  qalora merge --model llama-7b-int4 --adapter run/checkpoints/step-500 --out early --data alpaca.json\n";

struct MergeOptions {
  std::shared_ptr<CommonOptions> common;
  std::string model, adapter, out, data;
};

// The written files against the base and the adapter; VerificationError when anything but rounding differs.
void require_exact(const std::string& out, const model::ByteChanges& changes, const eval::MergeProof& proof) {
  const bool kept = changes.codes == 0 && changes.scales == 0 && changes.others == 0;
  QALORA_REQUIRE(kept, VerificationError, out, ": not written: ", changes.codes, " bytes of codes, ", changes.scales, " of scales and ",
                 changes.others, " of other tensors differ from the base; the disk or the memory of this machine is not reliable");
  QALORA_REQUIRE(!(proof.tolerance == 0), VerificationError, out,
                 ": not written: the logits of base + adapter do not depend on the offsets, so nothing can be proved; the adapter is so "
                 "large that the model overflows");
  QALORA_REQUIRE(proof.verified(), VerificationError, out, ": not written: the merged model's logits differ from base + adapter by ",
                 proof.max_logit_difference, ", rounding explains at most ", proof.tolerance, " on ", proof.tokens,
                 " tokens; please report this with the adapter's adapter_config.json");
}

void report(const MergeOptions& options, const nlohmann::json& json, const model::ByteChanges& changes, const eval::MergeProof& proof,
            const std::string& source) {
  if (options.common->json) {
    print_json(json);
    return;
  }
  print(format_table({{"merge", "value"},
                      {"linear layers merged", format_count(json["layers"])},
                      {"largest logit difference, merged - (base + adapter)", format_number(proof.max_logit_difference)},
                      {"what rounding can explain", format_number(proof.tolerance)},
                      {"what the adapter does to the logits", format_number(proof.effect)},
                      {"tokens compared (" + source + ")", format_count(proof.tokens)},
                      {"bytes of offsets changed", format_count(static_cast<int64_t>(changes.offsets))},
                      {"bytes of codes changed", format_count(static_cast<int64_t>(changes.codes))},
                      {"bytes of scales changed", format_count(static_cast<int64_t>(changes.scales))}}));
}

void run(MergeOptions& options) {
  apply_common(*options.common);
  require_folder(options.model, "--model");
  if (!options.data.empty()) require_input(options.data, "--data");
  if (options.common->compute != at::kFloat && !options.common->dtype.empty()) {
    log::warn("--dtype has no effect here: the proof runs in float32, where rounding is smallest");
  }
  const auto start = std::chrono::steady_clock::now();
  const fs::path model_folder = options.model, adapter_folder = io::find_adapter(options.adapter);
  if (!options.common->dry_run) {
    QALORA_REQUIRE(!options.out.empty(), UserError, "--out: give the folder to write");
    require_output(options.out, options.common->force, {model_folder, options.adapter, adapter_folder});
  }
  const io::Checkpoint base(model_folder);
  const io::AdapterFile adapter = io::read_adapter(adapter_folder);
  model::check_mergeable(base, adapter_folder, adapter);
  const uint64_t bytes = model::merged_bytes(base, adapter);
  const model::LlamaConfig config = model::read_config(model_folder);
  const eval::ProofTokens tokens = options.data.empty() ? eval::proof_tokens(model_folder, config, adapter.config.training_data)
                                                        : eval::proof_tokens_of(model_folder, config, options.data);
  log::info(message("merging ", adapter_folder.string(), " (rank ", adapter.config.rank, ", ", io::pooling_name(adapter.config.pooling),
                    " pooling, ", adapter.modules.size(), " layers) into ", options.model, ": writes ", format_bytes(bytes)));
  if (options.common->dry_run) {
    if (options.common->json) print_json({{"layers", adapter.modules.size()}, {"bytes", bytes}, {"dry_run", true}});
    log::info("dry run: nothing was written");
    return;
  }
  constexpr uint64_t kSidecarBytes = 8'000'000;  // headers, config.json and the tokenizer's files
  AtomicFolder folder(options.out, options.common->force, bytes + kSidecarBytes);
  const int64_t layers = model::merge_checkpoint(base, adapter_folder, adapter, folder.staging());
  const model::ByteChanges changes = model::compare_bytes(base, io::Checkpoint(folder.staging()));
  const eval::MergeProof proof = eval::prove_merge(model_folder, adapter, folder.staging(), tokens);
  require_exact(options.out, changes, proof);
  folder.commit();

  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  report(options,
         {{"layers", layers},
          {"max_logit_difference", proof.max_logit_difference},
          {"tolerance", proof.tolerance},
          {"verified", proof.verified()},
          {"adapter_effect", proof.effect},
          {"tokens", proof.tokens},
          {"tokens_from", tokens.source},
          {"offset_bytes_changed", changes.offsets},
          {"code_bytes_changed", changes.codes},
          {"scale_bytes_changed", changes.scales},
          {"bytes", bytes},
          {"seconds", seconds}},
         changes, proof, tokens.source);
  if (proof.effect <= proof.tolerance) {
    log::warn("the adapter changes the logits by no more than rounding does: it is untrained, or was trained very little");
  }
  log::info(message("merged and verified: wrote ", options.out, " in ", format_duration(seconds)));
  log::info(message("score it with: qalora eval --model ", options.out, " --task perplexity --data FILE"));
}

}  // namespace

Command make_merge(CLI::App& root) {
  CLI::App* app = root.add_subcommand("merge", "An adapter into its quantised model: only the offsets change, and that is proved");
  auto options = std::make_shared<MergeOptions>();
  app->footer(kExamples);
  app->add_option("--model", options->model, "folder of the quantised checkpoint that the adapter was trained on")->required();
  app->add_option("--adapter", options->adapter, "adapter, checkpoint or run folder")->required();
  app->add_option("--out", options->out, "folder to write");
  app->add_option("--data", options->data, "data whose first records the proof uses (default: the adapter's training data)");
  options->common = add_common(*app, kComputes | kWrites);
  return {app, [options] { run(*options); }};
}

}  // namespace qalora::cli
