#include "qalora/export/dense.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <future>
#include <nlohmann/json.hpp>

#include "expand.h"
#include "folder.h"
#include "qalora/core/error.h"
#include "qalora/core/progress.h"
#include "qalora/core/signals.h"
#include "qalora/io/input_order.h"
#include "qalora/model/merge_checkpoint.h"
#include "qalora/quant/merge.h"
#include "rounding.h"

namespace qalora::exporting {
namespace {

constexpr const char* kFlag = "--dtype-of-weights";

// As the embedding is stored: it is what a checkpoint of this model looked like before it was quantised.
io::Dtype weights_dtype(const Source& source, const Options& options) {
  const io::Dtype stored = source.checkpoint.info("model.embed_tokens.weight").dtype;
  const bool is_float = stored == io::Dtype::kF32 || stored == io::Dtype::kF16 || stored == io::Dtype::kBF16;
  return choose_dtype(options.weights_dtype, kFlag, is_float ? stored : io::Dtype::kF16,
                      {"float32", "float16", "bfloat16"});
}

bool adapted(const Source& source, const std::string& module) {
  return source.adapter && source.adapter->modules.contains(module);
}

std::vector<io::PlannedTensor> plan_tensors(const Source& source, const Options& options) {
  std::vector<io::PlannedTensor> plan;
  for (const auto& tensor : model::expected_tensors(source.config))
    plan.push_back({tensor.name, weights_dtype(source, options), tensor.shape});
  return plan;
}

// An adapter whose groups are the base's merges into the offsets, as `merge` does it; any other one is added to the
// dense weight.
bool merges(const Source& source) {
  const io::AdapterConfig& config = source.adapter->config;
  return config.pooling != io::Pooling::kNone && config.group_size == source.config.quantization->group_size;
}

class Writer {
 public:
  Writer(const Source& source, at::ScalarType type) : source_(source), type_(type) {}

  at::Tensor weight(const io::PlannedTensor& planned, TensorReport& report) const {
    const std::string module = io::module_of(planned.name);
    if (model::is_packed(source_.checkpoint, planned.name)) {
      quant::PackedWeight packed = read_packed(source_, {module, planned.shape[0], planned.shape[1]});
      at::Tensor a, b;
      if (adapted(source_, module)) {
        if (merges(source_)) {
          io::AdapterConfig config = source_.adapter->config;
          config.group_size = packed.group_size;  // a module may have groups of its own
          packed = quant::merge(message(source_.adapter_folder.string(), ": module '", module, "'"), packed, config,
                                source_.adapter->modules.at(module));
        } else {
          std::tie(a, b) = low_rank(module, planned.shape[1]);
        }
      }
      return rounded_packed(packed, a, b, report);
    }
    const at::Tensor stored = source_.checkpoint.read(planned.name, planned.shape);
    source_.checkpoint.release(planned.name);
    if (!adapted(source_, module) || planned.shape.size() != 2) return round_tensor(stored, type_, report);
    const auto [a, b] = low_rank(module, planned.shape[1]);
    const RowSource rows = [&, a = a, b = b](int64_t begin, int64_t end, float* out) {
      at::Tensor block = at::from_blob(out, {end - begin, planned.shape[1]}, at::kFloat);
      block.copy_(stored.narrow(0, begin, end - begin));
      block.addmm_(b.narrow(0, begin, end - begin), a);
    };
    return round_rows(rows, planned.shape[0], planned.shape[1], type_, {}, report);
  }

 private:
  // k A and B in fp32
  std::pair<at::Tensor, at::Tensor> low_rank(const std::string& module, int64_t in_features) const {
    return {expanded_a(source_, module, in_features).to(at::kFloat), source_.adapter->modules.at(module).b};
  }

  at::Tensor rounded_packed(const quant::PackedWeight& packed, const at::Tensor& a, const at::Tensor& b,
                            TensorReport& report) const {
    const kernels::PackedView view = packed.view();
    const RowSource rows = [&](int64_t begin, int64_t end, float* out) {
      const kernels::Status status = kernels::dequantize_rows(view, begin, end, out);
      QALORA_CHECK(status == kernels::Status::kOk, "dequantising ", report.tensor);
      at::Tensor block = at::from_blob(out, {end - begin, packed.in_features}, at::kFloat);
      if (packed.input_order.defined()) block.copy_(io::in_input_order(block, packed.input_order));
      if (a.defined()) block.addmm_(b.narrow(0, begin, end - begin), a);
    };
    // Sorted groups are no stretches of a row; the loss then counts beside the largest weight.
    const bool sorted = packed.input_order.defined();
    const RoundOptions options{sorted ? nullptr : packed.scales.const_data_ptr<float>(), packed.group_size};
    return round_rows(rows, packed.out_features(), packed.in_features, type_, options, report);
  }

  const Source& source_;
  at::ScalarType type_;
};

// Nothing about this tensor changes.
bool is_copied(const Source& source, const io::PlannedTensor& planned) {
  return source.checkpoint.info(planned.name).dtype == planned.dtype && !adapted(source, io::module_of(planned.name));
}

nlohmann::json dense_config(const Source& source, io::Dtype dtype) {
  nlohmann::json config = model::derived_config(source.checkpoint.config(), source.config, std::nullopt);
  config["torch_dtype"] = config["dtype"] = dtype == io::Dtype::kF16    ? "float16"
                                            : dtype == io::Dtype::kBF16 ? "bfloat16"
                                                                        : "float32";
  if (source.adapter) model::mark_merged(config, source.adapter_folder);
  return config;
}

}  // namespace

Plan plan_dense(const Source& source, const Options& options) {
  refuse_option(options.offsets_dtype, "--dtype-of-offsets", "safetensors, whose weights are dense");
  if (source.adapter) check_adapter(source);
  const std::vector<io::PlannedTensor> tensors = plan_tensors(source, options);
  return {.bytes = folder_bytes(source, tensors), .peak_bytes = peak_bytes(tensors, 4), .notes = {}};
}

std::vector<TensorReport> write_dense(const Source& source, const Options& options, const fs::path& out, bool replace) {
  const std::vector<io::PlannedTensor> plan = plan_tensors(source, options);
  const io::Dtype dtype = weights_dtype(source, options);
  AtomicFolder folder(out, replace, folder_bytes(source, plan));
  io::CheckpointWriter writer(folder.staging(), plan, {{"format", "pt"}});
  const Writer weights(source, io::scalar_type(dtype));
  std::vector<TensorReport> reports;
  std::future<void> writing;  // of the tensor before, while the next is made
  const auto finish_writing = [&] {
    if (writing.valid()) writing.get();
  };
  Progress progress("exporting", static_cast<int64_t>(plan.size()), "tensors");
  for (const io::PlannedTensor& planned : plan) {
    throw_if_stopped();
    TensorReport report{.tensor = io::module_of(planned.name)};
    if (is_copied(source, planned)) {
      finish_writing();
      writer.write(planned.name, source.checkpoint.bytes(planned.name).span);
      source.checkpoint.release(planned.name);
    } else {
      const at::Tensor weight = weights.weight(planned, report);
      QALORA_REQUIRE(report.overflow == 0, UserError, source.checkpoint.file_of(planned.name).string(), ": tensor '",
                     planned.name, "': ", report.overflow, " of its weights are not finite in ", io::dtype_name(dtype),
                     "; export with ", kFlag, " bfloat16 or float32");
      finish_writing();
      writing = std::async(std::launch::async, [&writer, &planned, weight] { writer.write(planned.name, weight); });
    }
    reports.push_back(std::move(report));
    progress.add();
  }
  finish_writing();
  writer.finish();
  progress.finish();
  write_beside_weights(source, dense_config(source, dtype), folder.staging());
  folder.commit();
  return reports;
}

}  // namespace qalora::exporting
