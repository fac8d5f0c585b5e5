#include "qalora/model/quantize_checkpoint.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "qalora/cli/command.h"
#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/core/log.h"
#include "qalora/quant/packed_weight.h"
#include "qalora/tensor/device.h"

namespace qalora::cli {
namespace {

constexpr const char* kExamples =
    "Examples:\n"
    "  qalora quantize --model llama-7b --out llama-7b-int4\n"
    "  qalora quantize --model llama-7b --out llama-7b-int2 --bits 2 --group-size 32 --dry-run\n";

struct QuantizeOptions {
  std::shared_ptr<CommonOptions> common;
  CLI::App* app = nullptr;
  std::string model, out, group_size = "32", method = "rtn", of_gptq;
  int bits = 4;
};

constexpr const char* kGptqFlags[] = {"--calibration", "--samples", "--sequence-length", "--seed"};

int64_t parse_group_size(const std::string& text) {
  if (text == "row" || text == "-1") return quant::kWholeRow;
  for (int64_t size : {32, 64, 128, 256}) {
    if (text == std::to_string(size)) return size;
  }
  throw UserError(message("--group-size ", text, ": expected 32, 64, 128, 256 or row"));
}

void check_options(const QuantizeOptions& options) {
  QALORA_REQUIRE(options.bits >= 2 && options.bits <= 4, UserError, "--bits ", options.bits, ": expected 2, 3 or 4");
  QALORA_REQUIRE(options.method != "gptq", UserError, "--method gptq: not in this version; use --method rtn (round to nearest)");
  QALORA_REQUIRE(options.method == "rtn", UserError, "--method ", options.method, ": not known",
                 did_you_mean(options.method, {"rtn", "gptq"}), "; expected rtn");
  for (const char* flag : kGptqFlags) {
    QALORA_REQUIRE(options.app->get_option(flag)->count() == 0, UserError, flag,
                   ": belongs to --method gptq, which is not in this version");
  }
  require_model(options.model, "--model");
  if (options.common->compute != at::kFloat && !options.common->dtype.empty()) {
    log::warn("--dtype has no effect here: quantising computes in float32");
  }
  QALORA_REQUIRE(options.common->dry_run || !options.out.empty(), UserError, "--out: give the folder to write");
  if (!options.out.empty()) require_output(options.out, options.common->force, {options.model});
}

void print_estimate(const model::QuantizePlan& plan) {
  log::info(message("quantising ", plan.linears, " matrices to ", plan.quantization.bits, " bits (",
                    format_fixed(plan.bits_per_weight, 2), " with scales and offsets): ", format_bytes(plan.input_bytes), " -> ",
                    format_bytes(plan.output_bytes), ", peak memory about ", format_bytes(plan.peak_bytes)));
  for (const auto& note : plan.notes) log::warn(note);
}

void print_summary(const std::vector<model::QuantizedLayer>& layers) {
  double sum = 0;
  for (const auto& layer : layers) sum += layer.error;
  std::vector<model::QuantizedLayer> worst(layers);
  std::stable_sort(worst.begin(), worst.end(), [](const auto& a, const auto& b) { return a.error > b.error; });
  worst.resize(std::min<size_t>(worst.size(), 5));
  std::vector<std::vector<std::string>> rows = {{"relative error of", "%"}};
  for (const auto& layer : worst) rows.push_back({layer.name, format_fixed(100 * layer.error, 2)});
  rows.push_back({message("mean of all ", layers.size(), " matrices"), format_fixed(100 * sum / static_cast<double>(layers.size()), 2)});
  print(format_table(rows));
}

void run(QuantizeOptions& options) {
  apply_common(*options.common);
  const int64_t group_size = parse_group_size(options.group_size);
  check_options(options);
  const auto start = std::chrono::steady_clock::now();
  const io::Checkpoint checkpoint{fs::path(options.model)};
  const model::QuantizePlan plan = model::plan_quantization(checkpoint, {options.bits, group_size});
  print_estimate(plan);
  nlohmann::json json = {{"bits", options.bits},
                         {"group_size", group_size},
                         {"method", options.method},
                         {"layers", nlohmann::json::array()},
                         {"bytes", plan.output_bytes},
                         {"bits_per_weight", plan.bits_per_weight},
                         {"dry_run", options.common->dry_run}};
  if (options.common->dry_run) {
    if (!options.out.empty()) require_writable(options.out, options.common->force, plan.disk_bytes);
    json["estimated_peak_memory_bytes"] = plan.peak_bytes;
    if (options.common->json) print_json(json);
    log::info("dry run: nothing was written");
    return;
  }
  const auto layers = model::quantize_checkpoint(checkpoint, plan, options.out, options.common->force);
  for (const auto& layer : layers) json["layers"].push_back({{"name", layer.name}, {"error", layer.error}, {"loss", nullptr}});
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  json["seconds"] = seconds;
  json["peak_memory_bytes"] = tensor::peak_memory_bytes();
  if (options.common->json) {
    print_json(json);
  } else {
    print_summary(layers);
  }
  log::info(message("wrote ", options.out, ": ", format_bytes(plan.output_bytes), " in ", format_duration(seconds), ", peak memory ",
                    format_bytes(tensor::peak_memory_bytes())));
  log::info(message("fine-tune it with: qalora finetune --config FILE --model ", options.out, " --data FILE --out RUN"));
}

}  // namespace

Command make_quantize(CLI::App& root) {
  CLI::App* app = root.add_subcommand("quantize", "Quantise a dense checkpoint to 4, 3 or 2 bits");
  auto options = std::make_shared<QuantizeOptions>();
  options->app = app;
  app->footer(kExamples);
  app->add_option("--model", options->model, "folder of a dense checkpoint")->required();
  app->add_option("--out", options->out, "folder to write");
  app->add_option("--bits", options->bits, "2, 3 or 4")->capture_default_str();
  app->add_option("--group-size", options->group_size, "inputs that share a scale and an offset: 32, 64, 128, 256 or row")
      ->capture_default_str();
  app->add_option("--method", options->method, "rtn: round to nearest")->capture_default_str();
  for (const char* flag : kGptqFlags) app->add_option(flag, options->of_gptq, "of gptq, which is not in this version")->group("");
  options->common = add_common(*app, kComputes | kWrites);
  options->common->computes = false;  // rounding is the CPU's work: no device's libraries are loaded unasked
  return {app, [options] { run(*options); }};
}

}  // namespace qalora::cli
