#include "lora.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "expand.h"
#include "folder.h"
#include "qalora/core/error.h"
#include "qalora/core/signals.h"
#include "qalora/io/adapter_file.h"
#include "qalora/model/adapter_base.h"
#include "qalora/model/load.h"

namespace qalora::exporting {
namespace {

io::Dtype weights_dtype(const Options& options) {
  return choose_dtype(options.weights_dtype, "--dtype-of-weights", io::Dtype::kF32, {"float32", "float16", "bfloat16"});
}

// Rows or columns of zeros up to `rank`: not every engine reads rank_pattern, and a zero adds nothing.
at::Tensor padded(const at::Tensor& matrix, int64_t dimension, int64_t rank) {
  const int64_t missing = rank - matrix.size(dimension);
  if (missing == 0) return matrix;
  return dimension == 0 ? at::constant_pad_nd(matrix, {0, 0, 0, missing}) : at::constant_pad_nd(matrix, {0, missing});
}

// The steps of the grid beside which a change of the weights is small or large: [out_features, groups] f32; of a dense
// weight undefined.
struct Steps {
  at::Tensor scales;
  int64_t group_size = 1;
};

Steps steps_of(const Source& source, const std::string& module, int64_t out_features, int64_t in_features) {
  const bool sorted = source.checkpoint.contains(module + ".g_idx");  // no stretch of a row shares a scale
  if (sorted || !model::is_packed(source.checkpoint, module + ".weight")) return {};
  const quant::PackedWeight packed = read_packed(source, {module, out_features, in_features});
  return {packed.scales, packed.group_size};
}

// B A in double, of what was meant and of what is written; block by block of rows.
void report_error(const at::Tensor& a, const at::Tensor& b, const at::Tensor& written_a, const at::Tensor& written_b,
                  const Steps& steps, TensorReport& report) {
  constexpr int64_t kRows = 64;
  const at::Tensor before = a.to(at::kDouble), after = written_a.to(at::kDouble);
  double largest = 0, size = 0;
  for (int64_t row = 0; row < b.size(0); row += kRows) {
    const int64_t count = std::min(kRows, b.size(0) - row);
    const at::Tensor exact = b.narrow(0, row, count).to(at::kDouble).mm(before);
    at::Tensor error = written_b.narrow(0, row, count).to(at::kDouble).mm(after).sub_(exact).abs_();
    if (steps.scales.defined()) {
      const at::Tensor groups = at::arange(error.size(1), at::kLong).floor_divide_(steps.group_size);
      const at::Tensor scale = steps.scales.narrow(0, row, count).abs().to(at::kDouble).index_select(1, groups);
      error = at::where(scale > 0, error / scale, error);
    }
    largest = std::max(largest, error.max().item<double>());
    size = std::max(size, exact.abs().max().item<double>());
  }
  report.largest_error = steps.scales.defined() || largest == 0 ? largest : largest / size;
}

io::AdapterWeights written_module(const Source& source, const std::string& module, int64_t in_features, int64_t rank,
                                  at::ScalarType type, TensorReport& report) {
  const io::AdapterWeights& weights = source.adapter->modules.at(module);
  const at::Tensor a = expanded_a(source, module, in_features), b = weights.b.to(at::kFloat);
  const at::Tensor wide_a = a.to(at::kFloat), narrow_a = a.to(type), narrow_b = b.to(type);
  const bool finite = at::isfinite(wide_a).all().item<bool>() && at::isfinite(b).all().item<bool>();
  QALORA_REQUIRE(finite, DataError, source.adapter_folder.string(), ": module '", module,
                 "': A or B is not finite when A's scaling is in it");
  count_rounding(wide_a, narrow_a, report);
  count_rounding(b, narrow_b, report);
  QALORA_REQUIRE(report.overflow == 0, UserError, source.adapter_folder.string(), ": module '", module,
                 "': ", report.overflow,
                 " of its numbers are not finite in 16 bits; leave --dtype-of-weights at float32");
  report_error(a, b, narrow_a, narrow_b, steps_of(source, module, b.size(0), in_features), report);
  return {padded(narrow_a, 0, rank).contiguous(), padded(narrow_b, 1, rank).contiguous()};
}

uint64_t adapter_bytes(const Source& source, const Options& options) {
  const auto shapes = model::linear_shapes(source.config);
  const uint64_t rank = static_cast<uint64_t>(largest_rank(*source.adapter)),
                 size = static_cast<uint64_t>(io::dtype_bytes(weights_dtype(options)));
  uint64_t total = 1'000'000;  // headers and the configuration
  for (const auto& [module, weights] : source.adapter->modules) {
    const auto& shape = shapes.at(module);
    total += size * rank * static_cast<uint64_t>(shape[0] + shape[1]);
  }
  return total;
}

}  // namespace

Plan plan_lora(const Source& source, const Options& options) {
  refuse_option(options.offsets_dtype, "--dtype-of-offsets", "lora");
  QALORA_REQUIRE(source.adapter.has_value(), UserError,
                 "--adapter: --to lora writes an adapter; give it with --adapter, and its base with --model");
  check_adapter(source);
  const uint64_t bytes = adapter_bytes(source, options);
  return {.bytes = bytes, .peak_bytes = peak_bytes({}, 0) + 2 * bytes, .notes = {}};
}

std::vector<TensorReport> write_lora(const Source& source, const Options& options, const fs::path& out, bool replace) {
  const auto shapes = model::linear_shapes(source.config);
  const int64_t rank = largest_rank(*source.adapter);
  io::AdapterFile lora;
  lora.config = source.adapter->config;
  lora.config.origin = io::AdapterOrigin::kLora;
  lora.config.rank = rank;
  lora.config.alpha = static_cast<double>(rank);  // alpha / rank = 1: no engine's own rule for the scaling matters
  lora.config.scaling = 1;
  lora.config.pooling = io::Pooling::kNone;
  lora.config.group_size = 0;
  lora.config.base_model = source.checkpoint.folder().string();
  std::vector<TensorReport> reports;
  for (const auto& [module, weights] : source.adapter->modules) {
    throw_if_stopped();
    TensorReport report{.tensor = module};
    lora.modules[module] =
        written_module(source, module, shapes.at(module)[1], rank, io::scalar_type(weights_dtype(options)), report);
    reports.push_back(std::move(report));
  }
  AtomicFolder folder(out, replace, adapter_bytes(source, options));
  io::write_peft_lora(folder.staging(), lora);
  folder.commit();
  return reports;
}

}  // namespace qalora::exporting
