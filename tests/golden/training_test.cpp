// Six optimizer steps of QA-LoRA as PEFT and torch ran them, against `qalora finetune` on the same base, data and
// initial adapter.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <sstream>

#include "qalora/core/error.h"
#include "qalora/io/adapter_file.h"
#include "qalora/io/checkpoint.h"
#include "support/support.h"

namespace qalora {
namespace {

using nlohmann::json;
using std::filesystem::path;

// A GPTQ layer (4 bits, version 1: the zero points are stored less one) in our layout, by other means than the
// program's. Both pack eight codes of consecutive inputs into a word, lowest first; GPTQ's words run down the inputs,
// ours along them.
std::map<std::string, at::Tensor> convert_layer(const io::SafetensorsFile& file, const std::string& module) {
  const at::Tensor scales = file.read(module + ".scales").to(at::kFloat).t().contiguous();  // [out, groups]
  const at::Tensor packed = file.read(module + ".qzeros");                                  // [groups, out / 8] i32
  std::vector<at::Tensor> fields;
  for (int64_t shift = 0; shift < 32; shift += 4) fields.push_back(packed.bitwise_right_shift(shift).bitwise_and(15));
  const at::Tensor zeros = (at::stack(fields, -1).flatten(1) + 1).to(at::kFloat).t();  // [out, groups]
  return {{module + ".weight", file.read(module + ".qweight").t().contiguous()},
          {module + ".scales", scales},
          {module + ".biases", (-scales * zeros).contiguous()}};  // exact: 11 bits times 4
}

void convert_base(const path& from, const path& to) {
  const io::SafetensorsFile file(from / "model.safetensors");
  std::map<std::string, at::Tensor> tensors;
  std::vector<io::PlannedTensor> plan;
  for (const auto& [name, info] : file.tensors()) {
    if (name.ends_with(".qweight")) tensors.merge(convert_layer(file, name.substr(0, name.rfind('.'))));
    if (name.ends_with("norm.weight") || name == "lm_head.weight" || name == "model.embed_tokens.weight")
      tensors[name] = file.read(name);
  }
  for (const auto& [name, value] : tensors) {
    const bool codes = value.scalar_type() == at::kInt;
    plan.push_back({name, codes ? io::Dtype::kU32 : io::dtype_of(value.scalar_type()), value.sizes().vec()});
  }
  fs::create_directories(to);
  io::CheckpointWriter writer(to, plan, {});
  for (const auto& tensor : plan) writer.write(tensor.name, tensors.at(tensor.name));
  writer.finish();
  json config = io::read_json_file(from / "config.json");
  config.erase("quantization_config");
  config["quantization"] = {{"bits", 4}, {"group_size", 32}};
  io::write_json_file(to / "config.json", config);
}

class TrainingGolden : public ::testing::TestWithParam<const char*> {
 protected:
  void prepare() {
    golden_ = std::make_unique<io::SafetensorsFile>(peft_ / (std::string(GetParam()) + ".safetensors"));
    about_ = io::read_json_file(peft_ / (std::string(GetParam()) + ".json"));
    base_ = peft_.parent_path() / about_.at("base").get<std::string>();
    write_adapter(about_.at("pooling"), dir_ / "initial");
    const at::Tensor ids = golden_->read("input_ids"), labels = golden_->read("labels");  // [steps, rows, length]
    std::string lines;
    const auto row_of = [](const at::Tensor& t) {
      const int64_t* begin = t.const_data_ptr<int64_t>();
      return std::vector<int64_t>(begin, begin + t.numel());
    };
    for (int64_t step = 0; step < ids.size(0); ++step) {
      for (int64_t row = 0; row < ids.size(1); ++row) {
        lines += json{{"input_ids", row_of(ids[step][row])}, {"labels", row_of(labels[step][row])}}.dump() + "\n";
      }
    }
    test::write_file(dir_ / "data.jsonl", lines);
  }

  void write_adapter(const std::string& pooling, const path& folder) {
    io::AdapterFile adapter;
    io::AdapterConfig& c = adapter.config;
    c.rank = about_.at("rank");
    c.alpha = about_.at("alpha");
    c.scaling = about_.at("scaling");
    c.pooling = io::parse_pooling(pooling);
    c.group_size = about_.at("group_size");
    c.targets = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"};
    const std::string begin = "initial.base_model.model.", end = ".lora_A.weight";
    for (const auto& [name, info] : golden_->tensors()) {
      if (!name.starts_with(begin) || !name.ends_with(end)) continue;
      const std::string module = name.substr(begin.size(), name.size() - begin.size() - end.size());
      adapter.modules[module] = {golden_->read(name), golden_->read(begin + module + ".lora_B.weight")};
    }
    fs::create_directories(folder);
    io::write_adapter(folder, adapter);
  }

  struct Distances {
    double losses = 0, norms = 0, parameters = 0;  // absolute, relative, absolute
  };

  // Trains from `initial` and compares with the golden.
  Distances train(const char* initial, double learning_rate, const std::string& out) {
    const int64_t micro = about_.at("rows_per_micro_batch"),
                  rows = micro * about_.at("micro_batches_per_step").get<int64_t>();
    const auto run = test::run_qalora({"finetune",
                                       "--model",
                                       base_,
                                       "--data",
                                       dir_ / "data.jsonl",
                                       "--out",
                                       dir_ / out,
                                       "--initial-adapter",
                                       dir_ / initial,
                                       "--data-format",
                                       "tokens",
                                       "--sequence-length",
                                       "20",
                                       "--shuffle",
                                       "false",
                                       "--steps",
                                       "6",
                                       "--batch-size",
                                       std::to_string(rows),
                                       "--micro-batch-size",
                                       std::to_string(micro),
                                       "--learning-rate",
                                       message(learning_rate),
                                       "--schedule",
                                       "constant",
                                       "--warmup-steps",
                                       "0",
                                       "--weight-decay",
                                       about_.at("weight_decay").dump(),
                                       "--max-grad-norm",
                                       about_.at("clip_grad_norm").dump(),
                                       "--dropout",
                                       "0",
                                       "--log-interval",
                                       "1",
                                       "--device",
                                       "cpu",
                                       "--dtype",
                                       "float32",
                                       "--threads",
                                       "1",
                                       "--json"});
    if (run.exit_code != 0) throw std::runtime_error(run.err);
    Distances result;
    const at::Tensor losses = golden_->read("losses"), norms = golden_->read("gradient_norms_before_clipping");
    int64_t steps = 0;
    std::istringstream lines(run.out);
    for (std::string line; std::getline(lines, line);) {
      const json event = json::parse(line);
      if (event.at("event") != "step") continue;
      const double norm = norms[steps].item<double>();
      result.losses = std::max(result.losses, std::abs(event.at("loss").get<double>() - losses[steps].item<double>()));
      result.norms = std::max(result.norms, std::abs(event.at("grad_norm").get<double>() - norm) / norm);
      ++steps;
    }
    EXPECT_EQ(steps, 6);
    const io::AdapterFile trained = io::read_adapter(dir_ / out / "adapter");
    EXPECT_EQ(trained.modules.size(), 14u);
    for (const auto& [module, weights] : trained.modules) {
      for (const auto& [part, value] : {std::pair{"lora_A", weights.a}, {"lora_B", weights.b}}) {
        const at::Tensor expected = golden_->read(message("final.base_model.model.", module, ".", part, ".weight"));
        result.parameters = std::max(result.parameters, (value - expected).abs().max().item<double>());
      }
    }
    return result;
  }

  path peft_ = test::shared_dir() / "goldens/peft", base_;
  test::TempDir dir_;
  std::unique_ptr<io::SafetensorsFile> golden_;
  json about_;
};

TEST_P(TrainingGolden, StepsLossesAndNormsEqualPefts) {
  REQUIRE_SHARED("goldens/peft");
  prepare();
  convert_base(base_, dir_ / "base");
  const io::Checkpoint imported(base_), converted(dir_ / "base");
  EXPECT_EQ(io::base_fingerprint(imported), io::base_fingerprint(converted));
  EXPECT_EQ(io::base_state_fingerprint(imported), io::base_state_fingerprint(converted));
  const double rate = about_.at("learning_rate");
  // The tolerances of the goldens' README; both files' fp32 runs lie within 6.2e-6 of double, so 5e-5 is the larger
  // bound.
  const Distances ours = train("initial", rate, "run");
  EXPECT_LE(ours.losses, 2e-5);
  EXPECT_LE(ours.norms, 2e-5);
  EXPECT_LE(ours.parameters, 5e-5);

  // Must differ: the other pooling, and a learning rate that is one percent higher.
  write_adapter(about_.at("pooling") == "sum" ? "mean" : "sum", dir_ / "other");
  const Distances pooled = train("other", rate, "pooled");
  EXPECT_GT(pooled.losses, 1e-2);
  EXPECT_GT(pooled.norms, 1e-2);
  const Distances faster = train("initial", 1.01 * rate, "faster");
  EXPECT_GT(faster.losses, 1e-4);
  EXPECT_GT(faster.parameters, 1e-4);
}

INSTANTIATE_TEST_SUITE_P(Peft, TrainingGolden, ::testing::Values("training_sum", "training_mean_accumulated"));

}  // namespace
}  // namespace qalora
