#include "qalora/export/export.h"

#include <chrono>
#include <cmath>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "qalora/cli/command.h"
#include "qalora/core/error.h"
#include "qalora/core/file.h"
#include "qalora/core/format.h"
#include "qalora/core/log.h"
#include "qalora/tensor/device.h"

namespace qalora::cli {
namespace {

constexpr size_t kWorst = 5;

struct ExportOptions {
  std::shared_ptr<CommonOptions> common;
  std::string model, adapter, to, out;
  exporting::Options of_format;
};

std::string steps(double error) { return error == 0 ? "0" : short_number(error); }

void print_reports(const std::vector<exporting::TensorReport>& reports) {
  if (reports.empty()) return;
  const exporting::ReportTotals sum = exporting::totals(reports);
  const bool changed = sum.largest_error != 0 || sum.subnormal + sum.flushed + sum.overflow > 0;
  if (!changed)
    return print(message("nothing was rounded (", reports.size(), reports.size() == 1 ? " tensor)\n" : " tensors)\n"));
  std::vector<std::vector<std::string>> rows = {
      {"what was rounded", "largest |dw|/scale", "subnormal", "flushed to 0", "overflow"}};
  const auto row = [&](const std::string& name, double error, int64_t subnormal, int64_t flushed, int64_t overflow) {
    rows.push_back({name, steps(error), format_count(subnormal), format_count(flushed), format_count(overflow)});
  };
  for (const auto& report : exporting::worst(reports, kWorst)) {
    if (!report.lossless()) row(report.tensor, report.largest_error, report.subnormal, report.flushed, report.overflow);
  }
  row(message("all ", reports.size(), " matrices (", sum.lossless, " without any loss)"), sum.largest_error,
      sum.subnormal, sum.flushed, sum.overflow);
  print(format_table(rows));
}

nlohmann::json report_json(const exporting::TensorReport& report) {
  return {{"name", report.tensor},
          {"largest_error", report.largest_error},
          {"subnormal", report.subnormal},
          {"flushed", report.flushed},
          {"overflow", report.overflow}};
}

nlohmann::json reports_json(const std::vector<exporting::TensorReport>& reports) {
  const exporting::ReportTotals sum = exporting::totals(reports);
  nlohmann::json json = {
      {"largest_error", sum.largest_error}, {"subnormal", sum.subnormal}, {"flushed", sum.flushed},
      {"overflow", sum.overflow},           {"lossless", sum.lossless},   {"tensors", nlohmann::json::array()}};
  for (const auto& report : reports) json["tensors"].push_back(report_json(report));
  return json;
}

// Of the file beside the model's that an adapter goes to; "": there is none.
fs::path adapter_file(const ExportOptions& options, const exporting::Format& format) {
  return format.adapter_file == nullptr || options.adapter.empty() || options.out.empty()
             ? fs::path()
             : format.adapter_file(options.out);
}

// With --force a file may be replaced, but by a slip of the keyboard that would be somebody's data set.
void require_gguf(const char* flag, const fs::path& out) {
  if (kind_of(out) == fs::file_type::not_found) return;
  const MappedFile there(out);
  const std::span<const std::byte> bytes = there.bytes();
  const bool is_gguf = bytes.empty() || (bytes.size() >= 4 && std::memcmp(bytes.data(), "GGUF", 4) == 0);
  QALORA_REQUIRE(is_gguf, UserError, flag, " ", out.string(), ": is no GGUF file; --force does not replace it");
}

// What lies there now. The plan's number is an estimate that leaves room for headers.
uint64_t written_bytes(const fs::path& out, const fs::path& beside) {
  uint64_t total = beside.empty() ? 0 : fs::file_size(beside);
  if (!fs::is_directory(out)) return total + fs::file_size(out);
  for (const auto& entry : fs::recursive_directory_iterator(out))
    total += entry.is_regular_file() ? entry.file_size() : 0;
  return total;
}

// Refusals that cost nothing come first.
void check_output(const ExportOptions& options, const exporting::Format& format) {
  QALORA_REQUIRE(options.common->dry_run || !options.out.empty(), UserError, "--out: give the ",
                 format.is_file ? "file" : "folder", " to write");
  if (options.out.empty()) return;
  if (format.is_file) {
    const std::vector<fs::path> inputs = {options.model, options.adapter};
    require_output_file("--out", options.out, options.common->force, inputs);
    require_gguf("--out", options.out);
    const fs::path beside = adapter_file(options, format);
    if (beside.empty()) return;
    require_output_file("--out, the adapter's file", beside, options.common->force, inputs);
    require_gguf("--out, the adapter's file", beside);
  } else {
    require_output(options.out, options.common->force, {options.model, options.adapter});
  }
}

// vLLM takes these limits only, and 16 unasked.
int64_t rank_limit(int64_t rank) {
  for (const int64_t limit : {8, 16, 32, 64, 128, 256, 320, 512}) {
    if (rank <= limit) return limit;
  }
  return rank;
}

// The format's next step with the real paths and the real rank in it.
std::string next_step(const exporting::Format& format, const exporting::Source& source, const std::string& out,
                      const fs::path& beside) {
  std::string text = format.next_step;
  const auto replace = [&](const std::string& name, const std::string& value) {
    if (const size_t at = text.find(name); at != std::string::npos) text.replace(at, name.size(), value);
  };
  if (source.adapter) replace("RANK", std::to_string(rank_limit(exporting::largest_rank(*source.adapter))));
  replace("OUT", out);
  return beside.empty() ? text : text + " --lora " + beside.string();
}

void run(ExportOptions& options) {
  apply_common(*options.common);
  const exporting::Format& format = exporting::format_named(options.to);
  require_model(options.model, "--model");
  if (!options.adapter.empty()) require_folder(options.adapter, "--adapter");
  check_output(options, format);
  const auto start = std::chrono::steady_clock::now();
  const exporting::Source source(options.model, options.adapter);
  const exporting::Plan plan = format.plan(source, options.of_format);
  log::info(message("exporting ", options.model, source.adapter ? " with " + source.adapter_folder.string() : "",
                    " to ", format.name, ": writes at most ", format_bytes(plan.bytes), ", peak memory about ",
                    format_bytes(plan.peak_bytes)));
  for (const std::string& note : plan.notes) log::info("note: " + note);
  nlohmann::json json = {
      {"to", format.name}, {"bytes", plan.bytes}, {"notes", plan.notes}, {"dry_run", options.common->dry_run}};
  if (!options.out.empty() && format.is_file) require_room(options.out, plan.bytes);
  if (options.common->dry_run) {
    if (!options.out.empty() && !format.is_file) require_writable(options.out, options.common->force, plan.bytes);
    json["estimated_peak_memory_bytes"] = plan.peak_bytes;
    if (options.common->json) print_json(json);
    log::info("dry run: nothing was written");
    return;
  }
  const std::vector<exporting::TensorReport> reports =
      format.write(source, options.of_format, options.out, options.common->force);
  const fs::path beside = adapter_file(options, format);
  json["bytes"] = written_bytes(options.out, beside);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (options.common->json) {
    json.update(reports_json(reports));
    json["seconds"] = seconds;
    json["peak_memory_bytes"] = tensor::peak_memory_bytes();
    print_json(json);
  } else {
    print_reports(reports);
  }
  log::info(message("wrote ", options.out, beside.empty() ? "" : " and " + beside.string(), " in ",
                    format_duration(seconds), ", peak memory ", format_bytes(tensor::peak_memory_bytes())));
  log::info(message("run it with: ", next_step(format, source, options.out, beside)));
}

std::string footer() {
  std::string text = "Formats:\n";
  for (const auto& format : exporting::formats())
    text += message("  ", format.name, std::string(14 - std::string(format.name).size(), ' '), format.summary, "\n");
  return text +
         "Examples:\n"
         "  qalora export --model llama-7b-int4-alpaca --to mlx --out llama-7b-mlx\n";
}

}  // namespace

Command make_export(CLI::App& root) {
  CLI::App* app = root.add_subcommand("export", "Write a model for another engine, with a report of what that cost");
  auto options = std::make_shared<ExportOptions>();
  app->footer(footer());
  std::vector<std::string> names;
  for (const auto& format : exporting::formats()) names.push_back(format.name);
  app->add_option("--model", options->model, "any checkpoint that can be read: dense or quantised")->required();
  app->add_option("--to", options->to, join(names, ", "))->required()->type_name("FORMAT");
  app->add_option("--out", options->out, "folder or file to write");
  app->add_option("--adapter", options->adapter,
                  "an adapter that belongs to the model: adapter, checkpoint or run folder");
  app->add_option("--dtype-of-weights", options->of_format.weights_dtype,
                  "of what is not packed: float32, float16, bfloat16; gguf: q8_0 too")
      ->type_name("NAME");
  app->add_option("--dtype-of-offsets", options->of_format.offsets_dtype,
                  "of scales and offsets in an MLX folder: float32 or float16")
      ->type_name("NAME");
  options->common = add_common(*app, kComputes | kWrites);
  options->common->computes = false;  // rounding is the CPU's work: no device's libraries are loaded unasked
  return {app, [options] { run(*options); }};
}

}  // namespace qalora::cli
