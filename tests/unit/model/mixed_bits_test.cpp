// A checkpoint whose modules differ in bits and group size, as MLX writes them.
#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include <cmath>

#include "qalora/core/error.h"
#include "qalora/model/merge_checkpoint.h"
#include "unit/model/random_checkpoint.h"

namespace qalora::model {
namespace {

using nlohmann::json;

const std::string kWide = "model.layers.0.mlp.down_proj", kLong = "model.layers.1.self_attn.q_proj",
                  kDense = "model.layers.1.mlp.up_proj";

// Packed tensors of random codes. name: of the module
void add_packed(std::map<std::string, at::Tensor>& tensors, const std::string& name, int64_t out, int64_t in, int bits,
                int64_t group_size) {
  at::Tensor words = at::zeros({out, kernels::words_per_row(in, bits)}, at::kInt);
  const at::Tensor codes =
      (tensor::RandomStream(4, name).uniform_tensor({out, in}, 0, 1) * std::ldexp(1.0, bits)).to(at::kByte);
  for (int64_t row = 0; row < out; ++row) {
    auto* packed = reinterpret_cast<uint32_t*>(words.data_ptr<int32_t>()) + row * words.size(1);
    kernels::pack_row(codes.const_data_ptr<uint8_t>() + row * in, in, bits, packed);
  }
  const int64_t groups = kernels::groups_per_row(in, group_size);
  const double step = 0.5 / std::ldexp(1.0, bits);
  tensors[name + ".weight"] = words;
  tensors[name + ".scales"] = tensor::RandomStream(5, name).uniform_tensor({out, groups}, -step, step);
  tensors[name + ".biases"] = tensor::RandomStream(6, name).uniform_tensor({out, groups}, -0.2, 0.2);
}

class MixedBits : public ::testing::Test {
 protected:
  MixedBits() {
    test::write_random_dense(dir_ / "dense");
    test::quantize_to(dir_ / "dense", folder_, 4, 32);
    const io::Checkpoint quantised(folder_), dense(dir_ / "dense");
    std::map<std::string, at::Tensor> tensors;
    for (const std::string& name : quantised.names()) tensors[name] = quantised.read(name);
    add_packed(tensors, kWide, 64, 160, 8, 64);
    add_packed(tensors, kLong, 64, 64, 5, 64);
    tensors[kDense + ".weight"] = dense.read(kDense + ".weight");
    tensors.erase(kDense + ".scales");
    tensors.erase(kDense + ".biases");
    add_packed(tensors, "model.embed_tokens", 400, 64, 6, 32);
    json config = quantised.config();
    for (const char* key : {"quantization", "quantization_config"}) {
      config[key][kWide] = {{"bits", 8}, {"group_size", 64}};
      config[key][kLong] = {{"bits", 5}, {"group_size", 64}, {"mode", "affine"}};
      config[key]["model.embed_tokens"] = {{"bits", 6}, {"group_size", 32}};
      config[key][kDense] = false;
    }
    write(tensors, config);
  }

  void write(const std::map<std::string, at::Tensor>& tensors, const json& config) {
    std::vector<io::PlannedTensor> plan;
    for (const auto& [name, tensor] : tensors) {
      const bool codes = name.ends_with(".weight") && tensors.contains(io::module_of(name) + ".scales");
      plan.push_back({name, codes ? io::Dtype::kU32 : io::dtype_of(tensor.scalar_type()), tensor.sizes().vec()});
    }
    io::sort_by_alignment(plan);
    io::CheckpointWriter writer(folder_, plan, {{"format", "mlx"}});
    for (const auto& tensor : plan) writer.write(tensor.name, tensors.at(tensor.name));
    writer.finish();
    io::write_json_file(folder_ / "config.json", config);
  }

  void change(const std::string& module, const json& value) {
    json config = io::read_json_file(folder_ / "config.json");
    config["quantization"][module] = value;
    io::write_json_file(folder_ / "config.json", config);
  }

  test::TempDir dir_;
  fs::path folder_ = dir_ / "mixed";
};

TEST_F(MixedBits, EveryModuleIsReadAsItSays) {
  const LlamaConfig config = read_config(folder_);
  EXPECT_EQ(config.quantization->of(kWide).bits, 8);
  EXPECT_EQ(config.quantization->of("model.layers.0.mlp.up_proj").bits, 4);
  Llama model = load_model(folder_, {});
  const std::map<std::string, std::pair<int, int64_t>> expected = {{kWide, {8, 64}}, {kLong, {5, 64}}};
  for (Linear* linear : model.linears()) {
    if (linear->module() == kDense) {
      EXPECT_FALSE(linear->quantised());
      continue;
    }
    const auto found = expected.find(linear->module());
    EXPECT_EQ(linear->packed().bits, found == expected.end() ? 4 : found->second.first) << linear->module();
    EXPECT_EQ(linear->packed().group_size, found == expected.end() ? 32 : found->second.second) << linear->module();
  }
  EXPECT_EQ(model.embedding.sizes(), (std::vector<int64_t>{400, 64}));
}

// A derived folder says the same of every module.
TEST_F(MixedBits, AMergeKeepsThem) {
  io::AdapterFile adapter = test::random_adapter(folder_, io::Pooling::kMean, 0.5);
  adapter.modules.erase(kDense);
  for (const auto& [module, in_features] : {std::pair{kWide, 160}, {kLong, 64}}) {
    adapter.modules.at(module).a = tensor::RandomStream(8, module).normal_tensor({4, (in_features + 63) / 64}, 0.5);
  }
  test::write_adapter_to(dir_ / "adapter", adapter);
  const io::Checkpoint base(folder_);
  check_mergeable(base, dir_ / "adapter", adapter, false);
  fs::create_directories(dir_ / "merged");
  EXPECT_EQ(merge_checkpoint(base, dir_ / "adapter", adapter, dir_ / "merged"), 13);
  const LlamaConfig config = read_config(dir_ / "merged");
  EXPECT_EQ(config.quantization->modules.size(), 3u);
  EXPECT_EQ(config.quantization->of(kLong).bits, 5);
  EXPECT_EQ(config.quantization->of(kLong).group_size, 64);

  Llama beside = load_model_with_adapter(folder_, dir_ / "adapter", {}), merged = load_model(dir_ / "merged", {}),
        plain = load_model(folder_, {});
  text::Batch batch;
  batch.input_ids = at::arange(24, at::kLong).unsqueeze(0);
  batch.positions = batch.input_ids;
  batch.segments = {{0, 24}};
  const c10::NoGradGuard no_grad;
  const at::Tensor expected = beside.forward(batch);
  EXPECT_LE((merged.forward(batch) - expected).abs().max().item<double>(), 2e-4);
  EXPECT_GT((plain.forward(batch) - expected).abs().max().item<double>(),
            2e-2);  // must differ: the base without the adapter
}

TEST_F(MixedBits, WhatDoesNotFitIsNamed) {
  const auto refusal = [&] { return test::refusal<DataError>([&] { load_model(folder_, {}); }); };
  change(kWide, {{"bits", 4}, {"group_size", 64}});
  test::expect_part(refusal(), "'" + kWide + ".weight' has shape [64, 40], expected [64, 20]");
  change(kWide, {{"bits", 8}, {"group_size", 32}});
  test::expect_part(refusal(), "'" + kWide + ".scales' has shape [64, 3], expected [64, 5]");
  change(kWide, {{"bits", 7}, {"group_size", 64}});
  test::expect_part(refusal(), kWide + ": 'bits' is 7, expected 2, 3, 4, 5, 6 or 8");
  change(kWide, {{"bits", 8}});
  test::expect_part(refusal(), kWide + ": key 'group_size' is missing");
  change(kWide, {{"bits", 8}, {"group_size", 64}, {"mode", "mxfp4"}});
  test::expect_part(refusal(), "mode 'mxfp4' is not supported");
  change(kWide, "eight");
  test::expect_part(refusal(), "'" + kWide + "' is not supported");
}

TEST_F(MixedBits, AnOrderOfInputsThatIsDamagedIsNamed) {
  const std::string module = "model.layers.0.mlp.gate_proj", name = module + ".g_idx";
  at::Tensor groups = at::arange(64, at::kInt).flip(0).floor_divide(32).to(at::kInt);
  test::rewrite(folder_, name, groups);
  Llama sorted = load_model(folder_, {});
  EXPECT_TRUE(sorted.layers[0].gate.input_order().defined());
  const auto refusal = [&] { return test::refusal<DataError>([&] { load_model(folder_, {}); }); };
  groups[3] = 7;
  test::rewrite(folder_, name, groups);
  test::expect_part(refusal(), "tensor '" + name + "': input 3 is said to be of group 7");
  groups[3] = 0;
  test::rewrite(folder_, name, groups);
  test::expect_part(refusal(), "group 0 has more than 32 inputs");
  test::rewrite(folder_, name, groups.narrow(0, 0, 32));
  test::expect_part(refusal(), "has shape [32], expected [64]");
}

}  // namespace
}  // namespace qalora::model
