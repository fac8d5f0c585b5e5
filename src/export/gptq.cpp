#include "gptq.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <atomic>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "folder.h"
#include "qalora/core/error.h"
#include "qalora/core/progress.h"
#include "qalora/core/signals.h"

namespace qalora::exporting {
namespace {

constexpr int64_t kMultiple = 32;  // words of 32 codes: what the engines' kernels need of both dimensions

// The zero points of offsets that are -(scale * zero) with an integer zero in 0 .. 2^bits - 1.
struct ZeroPoints {
  at::Tensor zeros;        // [out_features, groups] u8
  int64_t first_bad = -1;  // the first offset that is none of these, counted along the rows
};

// scale_values, offset_values: [out_features, groups] f32
ZeroPoints zero_points(const at::Tensor& scale_values, const at::Tensor& offset_values, int bits) {
  const int64_t rows = scale_values.size(0), groups = scale_values.size(1), largest = (int64_t{1} << bits) - 1;
  ZeroPoints result{.zeros = at::empty({rows, groups}, at::kByte)};
  std::atomic<int64_t> first = INT64_MAX;
  const float *scales = scale_values.const_data_ptr<float>(), *offsets = offset_values.const_data_ptr<float>();
  uint8_t* zeros = result.zeros.data_ptr<uint8_t>();
  at::parallel_for(0, rows * groups, 65536, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      // A group without a step: 0 whatever the zero point, so that it can only hold zeros.
      const float zero = scales[i] == 0 ? 0.0f : std::nearbyint(-offsets[i] / scales[i]);
      const bool fits = zero >= 0 && zero <= static_cast<float>(largest) && -(scales[i] * zero) == offsets[i];
      zeros[i] = fits ? static_cast<uint8_t>(zero) : 0;
      if (fits) continue;
      int64_t seen = first.load();
      while (i < seen && !first.compare_exchange_weak(seen, i)) {
      }
      return;
    }
  });
  result.first_bad = first == INT64_MAX ? -1 : first.load();
  return result;
}

// [rows, columns] u8 -> [rows, words] i32, each row one bit stream
at::Tensor packed_rows(const at::Tensor& values, int bits) {
  const int64_t rows = values.size(0), columns = values.size(1), words = kernels::words_per_row(columns, bits);
  const at::Tensor packed = at::empty({rows, words}, at::kInt);
  for (int64_t row = 0; row < rows; ++row) {
    kernels::pack_row(values.const_data_ptr<uint8_t>() + row * columns, columns, bits,
                      reinterpret_cast<uint32_t*>(packed.data_ptr<int32_t>()) + row * words);
  }
  return packed;
}

std::vector<io::PlannedTensor> matrix_tensors(const Matrix& matrix, const quant::PackedWeight& shape) {
  const int64_t words = kernels::words_per_row(matrix.in_features, shape.bits),
                groups = kernels::groups_per_row(matrix.in_features, shape.group_size);
  return {
      {matrix.module + ".qweight", io::Dtype::kI32, {words, matrix.out_features}},
      {matrix.module + ".qzeros", io::Dtype::kI32, {groups, kernels::words_per_row(matrix.out_features, shape.bits)}},
      {matrix.module + ".g_idx", io::Dtype::kI32, {matrix.in_features}},
      {matrix.module + ".scales", io::Dtype::kF16, {groups, matrix.out_features}}};
}

// Bits and group size, without the numbers.
quant::PackedWeight shape_of(const Source& source, const Matrix& matrix) {
  quant::PackedWeight shape;
  const model::QuantizationConfig& quantization = *source.config.quantization;
  shape.bits = quantization.of(matrix.module).bits;
  shape.in_features = matrix.in_features;
  shape.group_size = quantization.group_size_of(matrix.module, matrix.in_features);
  return shape;
}

std::vector<io::PlannedTensor> plan_tensors(const Source& source) {
  std::vector<io::PlannedTensor> plan;
  for (const auto& tensor : model::expected_tensors(source.config)) {
    const std::string module = io::module_of(tensor.name);
    if (!model::is_packed(source.checkpoint, tensor.name)) {
      plan.push_back({tensor.name, source.checkpoint.info(tensor.name).dtype, tensor.shape});
      continue;
    }
    const Matrix matrix{module, tensor.shape[0], tensor.shape[1]};
    for (auto& part : matrix_tensors(matrix, shape_of(source, matrix))) plan.push_back(std::move(part));
  }
  io::sort_by_alignment(plan);
  return plan;
}

void check_matrix(const Source& source, const Matrix& matrix, const quant::PackedWeight& shape) {
  const std::string where =
      message(source.checkpoint.file_of(matrix.module + ".weight").string(), ": '", matrix.module, "': ");
  const bool linear = matrix.module.starts_with("model.layers.");
  QALORA_REQUIRE(linear, UserError, where,
                 "is quantised, and GPTQ's engines read embedding and head as dense numbers; use --to mlx");
  const std::set<int> known = {2, 3, 4, 8};
  QALORA_REQUIRE(known.contains(shape.bits), UserError, where, "has codes of ", shape.bits,
                 " bits, GPTQ's layout 2, 3, 4 or 8; use --to mlx or "
                 "--to safetensors");
  QALORA_REQUIRE(matrix.in_features % kMultiple == 0 && matrix.out_features % kMultiple == 0, UserError, where, "is [",
                 matrix.out_features, ", ", matrix.in_features, "]; GPTQ's words need multiples of ", kMultiple,
                 " in both dimensions. Use --to mlx or --to safetensors");
  QALORA_REQUIRE(matrix.in_features % shape.group_size == 0, UserError, where, "has ", matrix.in_features,
                 " inputs, not a multiple of the group size ", shape.group_size,
                 ", which GPTQ's engines ask for; use --to safetensors");
}

// Engines take every linear layer of a GPTQ folder for packed: the lists of those that are not differ from engine to
// engine.
void require_all_packed(const Source& source) {
  for (const auto& tensor : model::expected_tensors(source.config)) {
    QALORA_REQUIRE(
        !tensor.linear || model::is_packed(source.checkpoint, tensor.name), UserError,
        source.checkpoint.file_of(tensor.name).string(), ": tensor '", tensor.name,
        "' is dense, and GPTQ's engines expect every linear layer quantised; use --to mlx or --to safetensors");
  }
}

[[noreturn]] void refuse_offset(const Source& source, const Matrix& matrix, const at::Tensor& scales,
                                const at::Tensor& offsets, int bits, int64_t index) {
  const int64_t row = index / scales.size(1), group = index % scales.size(1);
  const double scale = scales[row][group].item<double>(), offset = offsets[row][group].item<double>();
  throw UserError(message(
      source.checkpoint.file_of(matrix.module + ".biases").string(), ": tensor '", matrix.module, ".biases': row ", row,
      ", group ", group, ": the offset ", offset, " is not -scale * zero with a whole zero point of ", bits,
      " bits (scale ", scale,
      "), and GPTQ's files hold no others: a merged adapter or fitted offsets would be rounded away. "
      "--to gguf and --to mlx hold real offsets. For GPTQ's files quantise with 'qalora quantize --calibration FILE "
      "--integer-zeros', and export that base with --to gptq and its adapter with --to lora"));
}

// Scales and offsets of a matrix, whose codes are not needed to know whether GPTQ can hold it.
ZeroPoints checked_zero_points(const Source& source, const Matrix& matrix, int bits) {
  const auto read = [&](const char* part) {
    return source.checkpoint.read(matrix.module + part).to(at::kFloat).contiguous();
  };
  const at::Tensor scales = read(".scales"), offsets = read(".biases");
  QALORA_REQUIRE(scales.sizes() == offsets.sizes() && scales.dim() == 2, DataError,
                 source.checkpoint.file_of(matrix.module + ".scales").string(), ": '", matrix.module, "' has scales ",
                 scales.sizes(), " and offsets ", offsets.sizes());
  ZeroPoints points = zero_points(scales, offsets, bits);
  if (points.first_bad >= 0) refuse_offset(source, matrix, scales, offsets, bits, points.first_bad);
  return points;
}

struct Converted {
  at::Tensor qweight, qzeros, g_idx;
};

Converted convert(const Source& source, const Matrix& matrix, const quant::PackedWeight& weight,
                  const ZeroPoints& points, TensorReport& report) {
  Converted result;
  // A row's stream of codes cut into words is a column of qweight.
  result.qweight = weight.codes.t().contiguous();
  result.qzeros = packed_rows(points.zeros.t().contiguous(), weight.bits);
  result.g_idx = at::arange(matrix.in_features, at::kInt).floor_divide_(weight.group_size);
  const at::Tensor scales = weight.scales.to(at::kHalf);
  count_rounding(weight.scales, scales, report);
  QALORA_REQUIRE(report.overflow == 0, UserError, source.checkpoint.file_of(matrix.module + ".scales").string(), ": '",
                 matrix.module, "': ", report.overflow,
                 " of its scales are too large for GPTQ's float16; use --to mlx");
  // What a reader makes of it: scale * (code - zero), with the scale that was written.
  quant::PackedWeight written = weight;
  written.scales = scales.to(at::kFloat);
  written.offsets = written.scales.mul(points.zeros.to(at::kFloat)).neg_();
  compare_packed(weight, written, report);
  return result;
}

nlohmann::json quantization_json(const model::QuantizationConfig& quantization) {
  return {{"bits", quantization.bits},
          {"group_size", quantization.group_size},
          {"desc_act", false},
          {"sym", false},
          {"lm_head", false},
          {"quant_method", "gptq"},
          {"checkpoint_format", "gptq_v2"},
          {"format", "gptq_v2"},
          {"pack_dtype", "int32"},
          {"meta", {{"quantizer", {"qalora"}}}}};
}

// Writes the tensors as the plan asks for them; a matrix is converted when its first part is due and kept until its
// last.
class MatrixWriter {
 public:
  MatrixWriter(const Source& source, std::vector<TensorReport>& reports) : source_(source), reports_(reports) {
    for (const Matrix& matrix : packed_matrices(source)) matrices_[matrix.module] = matrix;
  }
  bool is_part(const std::string& name) const { return matrices_.contains(io::module_of(name)); }

  at::Tensor part(const std::string& name) {
    const std::string module = io::module_of(name);
    if (name.ends_with(".scales")) return scales(module);
    if (module != current_) convert_next(module);
    return name.ends_with(".qweight")  ? converted_.qweight
           : name.ends_with(".qzeros") ? converted_.qzeros
                                       : converted_.g_idx;
  }

 private:
  void convert_next(const std::string& module) {
    const Matrix& matrix = matrices_.at(module);
    const quant::PackedWeight weight = read_packed(source_, matrix);
    const ZeroPoints points = checked_zero_points(source_, matrix, weight.bits);
    TensorReport report{.tensor = module};
    converted_ = convert(source_, matrix, weight, points, report);
    reports_.push_back(std::move(report));
    current_ = module;
  }

  // Scales come last, in another place of the file (sort_by_alignment).
  at::Tensor scales(const std::string& module) const {
    const at::Tensor stored = source_.checkpoint.read(module + ".scales");
    source_.checkpoint.release(module + ".scales");
    return stored.to(at::kHalf).t().contiguous();
  }

  const Source& source_;
  std::vector<TensorReport>& reports_;
  std::map<std::string, Matrix> matrices_;
  std::string current_;
  Converted converted_;
};

}  // namespace

Plan plan_gptq(const Source& source, const Options& options) {
  const std::string where = source.checkpoint.folder().string();
  refuse_adapter(
      source, "a GPTQ file",
      "export the model with --to gptq and the adapter with --to lora: an engine that runs both computes the tuned "
      "model exactly");
  refuse_option(options.weights_dtype, "--dtype-of-weights", "gptq");
  refuse_option(options.offsets_dtype, "--dtype-of-offsets", "gptq, whose scales are float16");
  refuse_permuted(source, "this export");
  QALORA_REQUIRE(source.quantised(), UserError, where,
                 ": is dense; quantise it first, with the whole zero points that this format holds (qalora quantize "
                 "--calibration FILE --integer-zeros), or use --to safetensors");
  QALORA_REQUIRE(source.config.quantization->modules.empty(), UserError, where,
                 ": bits or group sizes differ from layer to layer ('",
                 source.config.quantization->modules.begin()->first,
                 "'), which few of GPTQ's engines read; use --to mlx or --to safetensors");
  require_all_packed(source);
  for (const Matrix& matrix : packed_matrices(source)) {
    const quant::PackedWeight shape = shape_of(source, matrix);
    check_matrix(source, matrix, shape);
    checked_zero_points(source, matrix, shape.bits);
  }
  const std::vector<io::PlannedTensor> tensors = plan_tensors(source);
  return {.bytes = folder_bytes(source, tensors), .peak_bytes = peak_bytes(tensors, 6), .notes = {}};
}

std::vector<TensorReport> write_gptq(const Source& source, const Options& options, const fs::path& out, bool replace) {
  const std::vector<io::PlannedTensor> plan = plan_tensors(source);
  AtomicFolder folder(out, replace, folder_bytes(source, plan));
  io::CheckpointWriter writer(folder.staging(), plan, {{"format", "pt"}});
  std::vector<TensorReport> reports;
  MatrixWriter matrices(source, reports);
  Progress progress("exporting", static_cast<int64_t>(plan.size()), "tensors");
  for (const io::PlannedTensor& planned : plan) {
    throw_if_stopped();
    const bool bias = planned.name.ends_with(".bias");  // a linear layer's own, beside its quantised weight
    if (matrices.is_part(planned.name) && !bias) {
      writer.write(planned.name, matrices.part(planned.name));
    } else {
      writer.write(planned.name, source.checkpoint.bytes(planned.name).span);
      source.checkpoint.release(planned.name);
    }
    progress.add();
  }
  writer.finish();
  progress.finish();
  const nlohmann::json quantization = quantization_json(*source.config.quantization);
  nlohmann::json config = model::derived_config(source.checkpoint.config(), source.config, std::nullopt);
  config["quantization_config"] = quantization;
  io::write_json_file(folder.staging() / "quantize_config.json", quantization);
  write_beside_weights(source, config, folder.staging());
  folder.commit();
  return reports;
}

}  // namespace qalora::exporting
