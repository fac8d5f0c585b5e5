#include "mlx.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "folder.h"
#include "qalora/core/error.h"
#include "qalora/core/progress.h"
#include "qalora/core/signals.h"

namespace qalora::exporting {
namespace {

bool is_norm(const std::string& name) { return name.ends_with("norm.weight"); }
bool is_scale_or_offset(const Source& source, const std::string& name) {
  return (name.ends_with(".scales") || name.ends_with(".biases")) &&
         source.checkpoint.contains(io::module_of(name) + ".scales");
}

io::Dtype offsets_dtype(const Options& options) {
  return choose_dtype(options.offsets_dtype, "--dtype-of-offsets", io::Dtype::kF32, {"float32", "float16"});
}

// MLX computes in the widest dtype of a layer's tensors. Where the offsets are to stay fp32 the norms are fp32 too: a
// norm in 16 bits would round the activations before the first product.
io::Dtype dtype_of(const Source& source, const Options& options, const std::string& name) {
  if (source.quantised() && is_scale_or_offset(source, name)) return offsets_dtype(options);
  if (source.quantised() && is_norm(name) && offsets_dtype(options) == io::Dtype::kF32) return io::Dtype::kF32;
  return source.checkpoint.info(name).dtype;
}

std::vector<io::PlannedTensor> plan_tensors(const Source& source, const Options& options) {
  std::vector<io::PlannedTensor> plan;
  for (const auto& name : tensor_names(source))
    plan.push_back({name, dtype_of(source, options, name), source.checkpoint.info(name).shape});
  io::sort_by_alignment(plan);
  return plan;
}

void check_groups(const Source& source) {
  const std::string where = source.checkpoint.folder().string();
  for (const Matrix& matrix : packed_matrices(source)) {
    const int64_t group_size = source.config.quantization->of(matrix.module).group_size;
    QALORA_REQUIRE(
        group_size == 32 || group_size == 64 || group_size == 128, UserError, where, ": '", matrix.module,
        "' is quantised in ", group_size == quant::kWholeRow ? "whole rows" : message("groups of ", group_size),
        "; MLX reads groups of 32, 64 and 128. ", "--to gguf takes any multiple of 32, --to safetensors everything");
    QALORA_REQUIRE(matrix.in_features % group_size == 0, UserError, where, ": '", matrix.module, "' has ",
                   matrix.in_features, " inputs, not a multiple of the group size ", group_size,
                   ", which MLX asks for; use --to safetensors");
  }
}

// -> the same values in the planned dtype
at::Tensor converted(const Source& source, const io::PlannedTensor& planned) {
  const at::Tensor stored = source.checkpoint.read(planned.name);
  source.checkpoint.release(planned.name);
  return stored.to(io::scalar_type(planned.dtype)).contiguous();
}

// What scales and offsets lost when they were rounded to `dtype`.
TensorReport report_of(const Source& source, const Matrix& matrix, io::Dtype dtype) {
  TensorReport report{.tensor = matrix.module};
  const quant::PackedWeight exact = read_packed(source, matrix);
  if (dtype == io::Dtype::kF32) return report;  // every dtype that is read fits into fp32
  quant::PackedWeight written = exact;
  const at::ScalarType type = io::scalar_type(dtype);
  const at::Tensor scales = exact.scales.to(type), offsets = exact.offsets.to(type);
  count_rounding(exact.scales, scales, report);
  count_rounding(exact.offsets, offsets, report);
  written.scales = scales.to(at::kFloat);
  written.offsets = offsets.to(at::kFloat);
  QALORA_REQUIRE(report.overflow == 0, UserError, source.checkpoint.file_of(matrix.module + ".biases").string(), ": '",
                 matrix.module, "': ", report.overflow,
                 " of its scales and offsets are too large for float16; leave --dtype-of-offsets at float32");
  compare_packed(exact, written, report);
  return report;
}

}  // namespace

Plan plan_mlx(const Source& source, const Options& options) {
  const bool merges = source.quantised() && source.adapter && source.adapter->config.pooling != io::Pooling::kNone;
  refuse_adapter(source, "an MLX folder",
                 merges
                     ? "merge it first ('qalora merge' proves that nothing is lost) and export what that wrote"
                     : "an ordinary LoRA goes into dense weights alone: export with --to safetensors and the adapter, "
                       "then export what that wrote with --to mlx");
  refuse_option(options.weights_dtype, "--dtype-of-weights", "mlx");
  refuse_permuted(source, "MLX's layout");
  if (source.quantised()) {
    check_groups(source);
  } else {
    refuse_option(options.offsets_dtype, "--dtype-of-offsets", "mlx of a dense model");
  }
  const std::vector<io::PlannedTensor> tensors = plan_tensors(source, options);
  Plan plan{.bytes = folder_bytes(source, tensors), .peak_bytes = peak_bytes(tensors, 2), .notes = {}};
  if (source.quantised() && offsets_dtype(options) == io::Dtype::kF16) {
    plan.notes = {"scales and offsets are rounded to float16, and MLX then computes in float16"};
  }
  return plan;
}

std::vector<TensorReport> write_mlx(const Source& source, const Options& options, const fs::path& out, bool replace) {
  const std::vector<io::PlannedTensor> plan = plan_tensors(source, options);
  AtomicFolder folder(out, replace, folder_bytes(source, plan));
  io::CheckpointWriter writer(folder.staging(), plan, {{"format", "mlx"}});
  Progress progress("exporting", static_cast<int64_t>(plan.size()), "tensors");
  for (const io::PlannedTensor& planned : plan) {
    throw_if_stopped();
    if (planned.dtype == source.checkpoint.info(planned.name).dtype) {
      writer.write(planned.name, source.checkpoint.bytes(planned.name).span);
      source.checkpoint.release(planned.name);
    } else {
      writer.write(planned.name, converted(source, planned));
    }
    progress.add();
  }
  writer.finish();
  progress.finish();
  std::vector<TensorReport> reports;
  if (source.quantised()) {
    for (const Matrix& matrix : packed_matrices(source))
      reports.push_back(report_of(source, matrix, offsets_dtype(options)));
  }
  write_beside_weights(source,
                       model::derived_config(source.checkpoint.config(), source.config, source.config.quantization),
                       folder.staging());
  folder.commit();
  return reports;
}

}  // namespace qalora::exporting
