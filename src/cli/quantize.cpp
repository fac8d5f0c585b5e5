#include "qalora/model/quantize_checkpoint.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "qalora/cli/command.h"
#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/core/log.h"
#include "qalora/model/gptq_checkpoint.h"
#include "qalora/quant/packed_weight.h"
#include "qalora/tensor/device.h"
#include "qalora/text/calibration.h"

namespace qalora::cli {
namespace {

using nlohmann::json;

constexpr const char* kExamples =
    "Examples:\n"
    "  qalora quantize --model llama-7b --out llama-7b-int4 --calibration alpaca.json\n"
    "  qalora quantize --model llama-7b --out llama-7b-int2 --bits 2 --group-size 32 --dry-run\n";

struct QuantizeOptions {
  std::shared_ptr<CommonOptions> common;
  CLI::App* app = nullptr;
  std::string model, out, group_size = "32", method, search_scale, calibration, template_name = "alpaca",
                          data_format = "auto";
  int bits = 4;
  text::CalibrationOptions rows;
  model::GptqSettings gptq;
  int64_t seed = 42;

  bool is_gptq() const { return method == "gptq" || (method.empty() && !calibration.empty()); }
};

// What only gptq looks at.
constexpr const char* kGptqFlags[] = {"--calibration", "--samples",       "--sequence-length",  "--seed",
                                      "--template",    "--data-format",   "--skip-bad-records", "--batch-size",
                                      "--damping",     "--static-groups", "--act-order",        "--search-scale",
                                      "--refit",       "--one-pass",      "--integer-zeros"};

int64_t parse_group_size(const std::string& text) {
  if (text == "row" || text == "-1") return quant::kWholeRow;
  for (int64_t size : {32, 64, 128, 256}) {
    if (text == std::to_string(size)) return size;
  }
  throw UserError(message("--group-size ", text, ": expected 32, 64, 128, 256 or row"));
}

// As it was typed: "--no-refit" of the flag --refit.
std::string typed(const CLI::Option& option, const std::string& flag) {
  return option.results() == std::vector<std::string>{"false"} ? "--no-" + flag.substr(2) : flag;
}

// rtn: round to nearest
void check_rtn(const QuantizeOptions& options) {
  for (const char* flag : kGptqFlags) {
    const CLI::Option& option = *options.app->get_option(flag);
    if (option.count() == 0) continue;
    const std::string name = typed(option, flag);
    throw UserError(options.method == "rtn" ? "--method rtn takes no " + name : name + " needs --calibration FILE");
  }
}

// Once nothing is wrong with the input any more.
void advise_rtn(const QuantizeOptions& options) {
  if (options.common->compute != at::kFloat && !options.common->dtype.empty()) {
    log::warn("--dtype has no effect here: rounding computes in float32");
  }
  if (options.bits == 4) {
    log::info(
        "rounding to nearest; GPTQ loses less, at 4 bits too: give --calibration FILE, for example the data you will fine-tune on");
    return;
  }
  log::warn(message("rounding to nearest at ", options.bits,
                    " bits loses much of the model: it does not let the other weights make up for an error. "
                    "GPTQ does: give --calibration FILE, for example the data you will fine-tune on"));
}

void check_options(const QuantizeOptions& options) {
  QALORA_REQUIRE(options.bits != 16, UserError,
                 "--bits 16: a dense copy is what 'qalora export --to safetensors' writes; use that");
  const bool known = options.method.empty() || options.method == "rtn" || options.method == "gptq";
  QALORA_REQUIRE(known, UserError, "--method ", options.method, ": not known",
                 did_you_mean(options.method, {"rtn", "gptq"}), "; expected gptq or rtn");
  QALORA_REQUIRE(
      options.method != "gptq" || !options.calibration.empty(), UserError,
      "--method gptq: needs --calibration FILE, text or records that the model's inputs look like, for example the "
      "data you will fine-tune on");
  if (!options.is_gptq()) check_rtn(options);
  require_model(options.model, "--model");
  if (options.is_gptq()) require_file(options.calibration, "--calibration");
  QALORA_REQUIRE(options.common->dry_run || !options.out.empty(), UserError, "--out: give the folder to write");
  if (!options.out.empty()) require_output(options.out, options.common->force, {options.model, options.calibration});
}

void print_estimate(const model::QuantizePlan& plan, uint64_t peak_bytes) {
  log::info(message("quantising ", plan.linears, " matrices to ", plan.quantization.bits, " bits (",
                    format_fixed(plan.bits_per_weight, 2),
                    " with scales and offsets): ", format_bytes(plan.input_bytes), " -> ",
                    format_bytes(plan.output_bytes), ", peak memory about ", format_bytes(peak_bytes)));
  for (const auto& note : plan.notes) log::warn(note);
}

json start_json(const QuantizeOptions& options, const model::QuantizePlan& plan) {
  return {{"bits", options.bits},
          {"group_size", plan.quantization.group_size},
          {"method", options.is_gptq() ? "gptq" : "rtn"},
          {"layers", json::array()},
          {"bytes", plan.output_bytes},
          {"bits_per_weight", plan.bits_per_weight},
          {"dry_run", options.common->dry_run}};
}

void print_summary(const std::vector<model::QuantizedLayer>& layers) {
  double sum = 0;
  for (const auto& layer : layers) sum += layer.error;
  std::vector<model::QuantizedLayer> worst(layers);
  std::stable_sort(worst.begin(), worst.end(), [](const auto& a, const auto& b) { return a.error > b.error; });
  worst.resize(std::min<size_t>(worst.size(), 5));
  std::vector<std::vector<std::string>> rows = {{"relative error of", "%"}};
  for (const auto& layer : worst) rows.push_back({layer.name, format_fixed(100 * layer.error, 2)});
  rows.push_back({message("mean of all ", layers.size(), " matrices"),
                  format_fixed(100 * sum / static_cast<double>(layers.size()), 2)});
  print(format_table(rows));
}

// A line a kind of projection: sums over all blocks.
void print_losses(const std::vector<model::GptqLayer>& layers) {
  struct Sums {
    double loss = 0, rounding = 0, error = 0;
    int64_t count = 0;
  };
  std::vector<std::pair<std::string, Sums>> kinds;
  const auto add = [&](const std::string& kind, const model::GptqLayer& layer) {
    auto found = std::find_if(kinds.begin(), kinds.end(), [&](const auto& entry) { return entry.first == kind; });
    if (found == kinds.end()) found = kinds.insert(kinds.end(), {kind, {}});
    found->second.loss += layer.loss;
    found->second.rounding += layer.loss_round_to_nearest;
    found->second.error += layer.error;
    ++found->second.count;
  };
  for (const auto& layer : layers) add(layer.name.substr(layer.name.rfind('.') + 1), layer);
  for (const auto& layer : layers) add("all", layer);
  std::vector<std::vector<std::string>> rows = {
      {"sum over blocks", "loss", "rounding to nearest", "share %", "mean relative error %"}};
  for (const auto& [kind, sums] : kinds) {
    rows.push_back({kind, short_number(sums.loss), short_number(sums.rounding),
                    sums.rounding > 0 ? format_fixed(100 * sums.loss / sums.rounding, 1) : "-",
                    format_fixed(100 * sums.error / static_cast<double>(sums.count), 2)});
  }
  print(format_table(rows));
}

void say_written(const QuantizeOptions& options, const model::QuantizePlan& plan, double seconds) {
  log::info(message("wrote ", options.out, ": ", format_bytes(plan.output_bytes), " in ", format_duration(seconds),
                    ", peak memory ", format_bytes(tensor::peak_memory_bytes())));
  log::info(
      message("fine-tune it with: qalora finetune --config FILE --model ", options.out, " --data FILE --out RUN"));
}

void finish_dry(const QuantizeOptions& options, const model::QuantizePlan& plan, uint64_t disk_bytes,
                const json& result) {
  if (!options.out.empty()) require_writable(options.out, options.common->force, disk_bytes);
  if (options.common->json) print_json(result);
  log::info("dry run: nothing was written");
}

void run_rtn(const QuantizeOptions& options, const io::Checkpoint& checkpoint, const model::QuantizePlan& plan) {
  const auto start = std::chrono::steady_clock::now();
  print_estimate(plan, plan.peak_bytes);
  advise_rtn(options);
  json result = start_json(options, plan);
  result["estimated_peak_memory_bytes"] = plan.peak_bytes;
  if (options.common->dry_run) return finish_dry(options, plan, plan.disk_bytes, result);
  const auto layers = model::quantize_checkpoint(checkpoint, plan, options.out, options.common->force);
  for (const auto& layer : layers)
    result["layers"].push_back({{"name", layer.name}, {"error", layer.error}, {"loss", nullptr}});
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  result["seconds"] = seconds;
  result["peak_memory_bytes"] = tensor::peak_memory_bytes();
  options.common->json ? print_json(result) : print_summary(layers);
  say_written(options, plan, seconds);
}

text::Calibration calibrate(const QuantizeOptions& options, const model::LlamaConfig& config) {
  text::CalibrationOptions rows = options.rows;
  if (options.app->get_option("--sequence-length")->count() == 0)
    rows.sequence_length = std::min(rows.sequence_length, config.context_length);
  QALORA_REQUIRE(rows.sequence_length <= config.context_length, UserError, "--sequence-length ", rows.sequence_length,
                 ": ", options.model, " reads at most ", config.context_length, " tokens");
  rows.kind = text::parse_template(options.template_name);
  rows.format = text::parse_data_format(options.data_format);
  rows.seed = static_cast<uint64_t>(options.seed);
  std::optional<text::Tokenizer> tokenizer;
  if (text::Tokenizer::exists(options.model)) tokenizer.emplace(fs::path(options.model));
  const text::Calibration result =
      text::read_calibration(options.calibration, tokenizer ? &*tokenizer : nullptr, config.vocab_size, rows);
  log::info(message(options.calibration, ": ", result.rows.size(), " rows of ", rows.sequence_length, " tokens from ",
                    format_count(result.records), " of ", format_count(result.all_records), " records (format ",
                    text::data_format_name(result.format), ")",
                    result.tasks > 0 ? message(", balanced over ", result.tasks, " tasks") : ""));
  if (std::ssize(result.rows) < rows.samples) {
    log::warn(message(options.calibration, ": gives ", result.rows.size(), " rows, --samples asks for ", rows.samples,
                      "; all of it is used"));
  }
  return result;
}

// With fewer tokens than inputs H says nothing of some directions: errors there count as no loss, whatever they do to
// other texts.
void warn_of_few_tokens(const text::Calibration& calibration, const model::LlamaConfig& config) {
  const int64_t widest = std::max({config.hidden_size, config.heads * config.head_dim, config.intermediate_size});
  if (calibration.tokens >= widest) return;
  log::warn(message("the calibration has ", format_count(calibration.tokens), " tokens, and a layer has ",
                    format_count(widest),
                    " inputs: losses will look better than they are. Give more --samples or a longer "
                    "--sequence-length"));
}

json layers_json(const std::vector<model::GptqLayer>& layers) {
  json list = json::array();
  for (const auto& layer : layers) {
    list.push_back({{"name", layer.name},
                    {"error", layer.error},
                    {"loss", layer.loss},
                    {"loss_before_refit", layer.loss_before_refit},
                    {"loss_round_to_nearest", layer.loss_round_to_nearest},
                    {"damping", layer.damping},
                    {"dead_inputs", layer.dead_inputs}});
  }
  return list;
}

void describe(json& result, const text::Calibration& calibration, const model::GptqMemory& memory, int64_t finished) {
  result["calibration"] = {{"rows", calibration.rows.size()},
                           {"tokens", calibration.tokens},
                           {"records", calibration.records},
                           {"tasks", calibration.tasks},
                           {"format", text::data_format_name(calibration.format)}};
  result["estimated_peak_memory_bytes"] = memory.peak;
  result["estimated_memory"] = {{"activations", memory.activations},
                                {"blocks", memory.blocks},
                                {"solver", memory.solver},
                                {"forward", memory.forward},
                                {"embedding", memory.embedding}};
  result["finished_blocks"] = finished;
}

void run_gptq(QuantizeOptions& options, const io::Checkpoint& checkpoint, const model::QuantizePlan& plan) {
  const auto start = std::chrono::steady_clock::now();
  model::GptqSettings& settings = options.gptq;
  settings.solver.bits = plan.quantization.bits;
  settings.solver.group_size = plan.quantization.group_size;
  if (!options.search_scale.empty())
    settings.solver.search = options.search_scale == "mse" ? quant::ScaleSearch::kMse : quant::ScaleSearch::kMinMax;
  settings.compute = options.common->compute;
  settings.device = options.common->where;
  settings.model_fingerprint = io::dense_fingerprint(checkpoint);
  const text::Calibration calibration = calibrate(options, plan.config);
  warn_of_few_tokens(calibration, plan.config);
  const model::GptqMemory memory = model::gptq_memory(checkpoint, plan, calibration, settings);
  print_estimate(plan, memory.peak);
  json result = start_json(options, plan);
  const int64_t finished =
      options.out.empty() ? 0 : model::finished_blocks(checkpoint, calibration, settings, options.out);
  describe(result, calibration, memory, finished);
  if (options.common->dry_run)
    return finish_dry(options, plan, model::gptq_disk_bytes(plan, options.out, finished), result);
  const model::GptqReport report =
      model::gptq_checkpoint(checkpoint, plan, calibration, settings, options.out, options.common->force);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  result["layers"] = layers_json(report.layers);
  result["seconds"] = seconds;
  result["forward_seconds"] = report.forward_seconds;
  result["hessian_seconds"] = report.hessian_seconds;
  result["solver_seconds"] = report.solver_seconds;
  result["peak_memory_bytes"] = tensor::peak_memory_bytes();
  options.common->json ? print_json(result) : print_losses(report.layers);
  log::info(message("forward passes ", format_duration(report.forward_seconds), ", Hessians ",
                    format_duration(report.hessian_seconds), ", solver ", format_duration(report.solver_seconds)));
  say_written(options, plan, seconds);
}

void run(QuantizeOptions& options) {
  options.common->computes = options.is_gptq();  // rounding is the CPU's work: no device's libraries are loaded unasked
  apply_common(*options.common);
  const int64_t group_size = parse_group_size(options.group_size);
  check_options(options);
  const io::Checkpoint checkpoint{fs::path(options.model)};
  const model::QuantizePlan plan = model::plan_quantization(checkpoint, {options.bits, group_size});
  options.is_gptq() ? run_gptq(options, checkpoint, plan) : run_rtn(options, checkpoint, plan);
}

// 16 has an answer of its own.
std::string check_bits(const std::string& text) {
  int64_t bits = 0;
  const bool good = parse_whole(text, bits) && ((bits >= 2 && bits <= 4) || bits == 16);
  return good ? "" : message("expected 2, 3 or 4, got '", text, "'");
}

std::string check_share(const std::string& text) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  const bool good = !text.empty() && *end == '\0' && value >= 1e-9 && value <= 1;
  return good ? "" : message("expected a number from 1e-9 to 1, got '", text, "'");
}

void add_gptq(CLI::App& app, QuantizeOptions& options) {
  const std::string data = "Calibration", solver = "GPTQ";
  app.add_option("--calibration", options.calibration,
                 "data whose inputs decide what may be lost: any file that 'finetune --data' takes")
      ->group(data)
      ->type_name("FILE");
  app.add_option("--samples", options.rows.samples, "rows of tokens")
      ->group(data)
      ->check(whole_number(1))
      ->capture_default_str();
  app.add_option("--sequence-length", options.rows.sequence_length,
                 "tokens of a row, filled with records (default: 2048, or the model's context)")
      ->group(data)
      ->check(whole_number(1))
      ->type_name("N");
  app.add_option("--seed", options.seed, "of the choice of records")
      ->group(data)
      ->check(whole_number(0))
      ->capture_default_str();
  app.add_option("--template", options.template_name, "prompt around a record: alpaca, alpaca-paper, none or chat")
      ->group(data)
      ->capture_default_str();
  app.add_option("--data-format", options.data_format, "as finetune has it")->group(data)->capture_default_str();
  app.add_flag("--skip-bad-records", options.rows.skip_bad_records,
               "leave bad records out instead of stopping at the first")
      ->group(data);
  app.add_option("--batch-size", options.gptq.batch_size, "rows of one forward pass (default: what makes 4096 tokens)")
      ->group(data)
      ->check(whole_number(1))
      ->type_name("N");
  quant::GptqOptions& gptq = options.gptq.solver;
  app.add_option("--damping", gptq.damping,
                 "share of the Hessian's mean diagonal that is added to it; grows where that is too little")
      ->group(solver)
      ->check(CLI::Validator(check_share, ""))
      ->capture_default_str();
  app.add_flag("--static-groups,!--no-static-groups", gptq.static_groups,
               "scales of all groups first, not from the updated weights (default: on)")
      ->group(solver);
  app.add_flag("--act-order,!--no-act-order", gptq.act_order,
               "the columns that matter most first; groups stay contiguous (default: on)")
      ->group(solver);
  app.add_option("--search-scale", options.search_scale,
                 "minmax: the grid spans a group; mse: what makes the error least (default: mse)")
      ->group(solver)
      ->check(one_of({"minmax", "mse"}))
      ->type_name("HOW");
  app.add_flag("--refit,!--no-refit", gptq.refit, "fit scales and offsets to the codes by least squares (default: on)")
      ->group(solver);
  app.add_flag("--one-pass", options.gptq.one_pass,
               "a block's matrices all on its unquantised inputs, not one behind the other")
      ->group(solver);
  app.add_flag("--integer-zeros", gptq.integer_zeros,
               "offsets are -scale * whole number, as GPTQ's own files need ('export --to gptq')")
      ->group(solver);
}

}  // namespace

Command make_quantize(CLI::App& root) {
  CLI::App* app = root.add_subcommand("quantize", "Quantise a dense checkpoint to 4, 3 or 2 bits");
  auto options = std::make_shared<QuantizeOptions>();
  options->app = app;
  app->footer(kExamples);
  app->add_option("--model", options->model, "folder of a dense checkpoint")->required();
  app->add_option("--out", options->out, "folder to write");
  app->add_option("--bits", options->bits, "2, 3 or 4")->check(CLI::Validator(check_bits, ""))->capture_default_str();
  app->add_option("--group-size", options->group_size,
                  "inputs that share a scale and an offset: 32, 64, 128, 256 or row")
      ->capture_default_str();
  app->add_option("--method", options->method, "gptq (the default with --calibration), or rtn: round to nearest")
      ->type_name("NAME");
  add_gptq(*app, *options);
  options->common = add_common(*app, kComputes | kWrites);
  return {app, [options] { run(*options); }};
}

}  // namespace qalora::cli
