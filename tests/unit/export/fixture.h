// A quantised model of random weights, and what an export of it computes.
#pragma once

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "../model/random_checkpoint.h"
#include "qalora/export/export.h"
#include "qalora/model/adapter_base.h"
#include "qalora/text/batch.h"

namespace qalora::exporting {

inline at::Tensor logits_of(model::Llama model, const at::Tensor& ids) {
  const c10::NoGradGuard no_grad;
  text::Batch batch;
  batch.input_ids = ids;
  batch.positions = at::arange(ids.size(1), at::kLong).unsqueeze(0).expand_as(ids).contiguous();
  for (int64_t row = 0; row < ids.size(0); ++row)
    batch.segments.push_back({row * ids.size(1), (row + 1) * ids.size(1)});
  return model.logits(model.forward(batch));
}

inline at::Tensor some_ids() { return tensor::RandomStream(3, "ids").uniform_tensor({2, 12}, 0, 400).to(at::kLong); }

inline double distance(const at::Tensor& a, const at::Tensor& b) { return (a - b).abs().max().item<double>(); }

class ExportTest : public ::testing::Test {
 protected:
  void SetUp() override {
    test::write_random_dense(dir_ / "dense");
    test::quantize_to(dir_ / "dense", dir_ / "base", 4, 32);
  }

  // The base with offsets that are -scale * zero for whole zero points, and scales that fp16 holds.
  void make_integer_zeros(const fs::path& folder) {
    const io::Checkpoint checkpoint(folder);
    std::map<std::string, at::Tensor> changed;
    for (const auto& name : checkpoint.names()) {
      if (!name.ends_with(".scales")) continue;
      const std::string module = io::module_of(name);
      const at::Tensor scales = checkpoint.read(name).to(at::kHalf).to(at::kFloat);
      const at::Tensor zeros = (-checkpoint.read(module + ".biases") / scales).round().clamp(0, 15);
      changed[name] = scales;
      changed[module + ".biases"] = -(scales * zeros);
    }
    for (const auto& [name, value] : changed) test::rewrite(folder, name, value);
  }

  fs::path adapter(io::Pooling pooling, const std::string& name) {
    test::write_adapter_to(dir_ / name, test::random_adapter(dir_ / "base", pooling, 0.05));
    return dir_ / name;
  }

  std::vector<TensorReport> run(const char* format, const fs::path& model, const fs::path& with, const std::string& out,
                                const Options& options = {}) {
    const Source source(model, with);
    format_named(format).plan(source, options);
    return format_named(format).write(source, options, dir_ / out, /*replace=*/false);
  }

  at::Tensor logits(const fs::path& model, const fs::path& with = {}) {
    return logits_of(model::load_model_with_adapter(model, with, {}), some_ids());
  }

  test::TempDir dir_;
};

}  // namespace qalora::exporting
