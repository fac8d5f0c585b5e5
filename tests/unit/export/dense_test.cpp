#include "fixture.h"
#include "qalora/core/error.h"

namespace qalora::exporting {
namespace {

const Options kWide{.weights_dtype = "float32", .offsets_dtype = ""};

TEST_F(ExportTest, DenseInFloat32IsTheSameModel) {
  const auto reports = run("safetensors", dir_ / "base", {}, "dense32", kWide);
  EXPECT_EQ(totals(reports).largest_error, 0);
  EXPECT_FALSE(model::read_config(dir_ / "dense32").quantization.has_value());
  // One dequantised product instead of another order of the same sums.
  EXPECT_LE(distance(logits(dir_ / "dense32"), logits(dir_ / "base")), 1e-5);
}

TEST_F(ExportTest, DenseTakesAnAdapterIntoItsWeights) {
  for (io::Pooling pooling : {io::Pooling::kSum, io::Pooling::kMean, io::Pooling::kNone}) {
    const std::string name = io::pooling_name(pooling);
    const fs::path with = adapter(pooling, "adapter_" + name);
    run("safetensors", dir_ / "base", with, "out_" + name, kWide);
    EXPECT_LE(distance(logits(dir_ / ("out_" + name)), logits(dir_ / "base", with)), 1e-4) << name;
    EXPECT_GT(distance(logits(dir_ / ("out_" + name)), logits(dir_ / "base")), 1e-2) << name;
  }
  // An ordinary LoRA on a dense model.
  io::AdapterFile lora = test::random_adapter(dir_ / "base", io::Pooling::kNone, 0.05);
  lora.config.base_fingerprint = lora.config.base_state_fingerprint = "";
  test::write_adapter_to(dir_ / "lora", lora);
  run("safetensors", dir_ / "dense", dir_ / "lora", "out", kWide);
  EXPECT_LE(distance(logits(dir_ / "out"), logits(dir_ / "dense", dir_ / "lora")), 1e-4);
  const std::string twice =
      test::refusal<UserError>([&] { run("safetensors", dir_ / "out", dir_ / "lora", "twice", kWide); });
  test::expect_part(twice, "contains the adapter");
}

TEST_F(ExportTest, DenseIsRoundedOnceToTheDtypeThatWasAskedFor) {
  const auto half = run("safetensors", dir_ / "base", {}, "half");  // as the source's embedding: float16
  EXPECT_EQ(io::Checkpoint(dir_ / "half").info("model.layers.0.mlp.up_proj.weight").dtype, io::Dtype::kF16);
  const auto brain = run("safetensors", dir_ / "base", {}, "brain", {.weights_dtype = "bfloat16", .offsets_dtype = ""});
  run("safetensors", dir_ / "base", {}, "wide", kWide);
  const std::string name = "model.layers.1.mlp.down_proj.weight";
  const at::Tensor exact = io::Checkpoint(dir_ / "wide").read(name);
  EXPECT_TRUE(at::equal(io::Checkpoint(dir_ / "half").read(name), exact.to(at::kHalf)));
  EXPECT_TRUE(at::equal(io::Checkpoint(dir_ / "brain").read(name), exact.to(at::kBFloat16)));
  EXPECT_EQ(io::Checkpoint(dir_ / "brain").config()["torch_dtype"], "bfloat16");
  // The report against the whole matrices: the largest error in steps of its group's scale.
  const at::Tensor scales = io::Checkpoint(dir_ / "base").read("model.layers.1.mlp.down_proj.scales").abs();
  const auto find = [](const std::vector<TensorReport>& reports) {
    for (const auto& report : reports) {
      if (report.tensor == "model.layers.1.mlp.down_proj") return report.largest_error;
    }
    return -1.0;
  };
  for (const auto& [reports, type] : {std::pair{half, at::kHalf}, {brain, at::kBFloat16}}) {
    const at::Tensor error = (exact - exact.to(type).to(at::kFloat)).abs().view({64, 5, 32}).amax(-1) / scales;
    EXPECT_NEAR(find(reports), error.max().item<double>(), 1e-6 * error.max().item<double>());
  }
  EXPECT_GT(find(brain), 4 * find(half));
}

TEST_F(ExportTest, DenseRefusesWeightsThatFloat16CannotHold) {
  const std::string name = "model.layers.0.mlp.up_proj.biases";
  at::Tensor offsets = io::Checkpoint(dir_ / "base").read(name);
  offsets[0][0] = 1e5;
  test::rewrite(dir_ / "base", name, offsets);
  const std::string text = test::refusal<UserError>([&] { run("safetensors", dir_ / "base", {}, "out"); });
  test::expect_part(text, "up_proj");
  test::expect_part(text, "bfloat16");
  EXPECT_FALSE(fs::exists(dir_ / "out"));
  run("safetensors", dir_ / "base", {}, "out", {.weights_dtype = "bfloat16", .offsets_dtype = ""});
}

TEST_F(ExportTest, ADenseModelInItsOwnDtypeIsCopied) {
  const auto reports = run("safetensors", dir_ / "dense", {}, "out");
  EXPECT_EQ(totals(reports).largest_error, 0);
  const io::Checkpoint before(dir_ / "dense"), after(dir_ / "out");
  for (const auto& name : before.names())
    EXPECT_TRUE(std::ranges::equal(before.bytes(name).span, after.bytes(name).span)) << name;
}

TEST(Report, CountsWhatFloat16Does) {
  const at::Tensor exact = at::tensor({1.0f, 1e-5f, 1e-9f, 0.0f, 7e4f, 65504.0f, -1e-9f});
  TensorReport report;
  count_rounding(exact, exact.to(at::kHalf), report);
  EXPECT_EQ(report.subnormal, 1);  // 1e-5 lies between two subnormal numbers
  EXPECT_EQ(report.flushed, 2);
  EXPECT_EQ(report.overflow, 1);
  TensorReport wide;
  count_rounding(exact, exact.clone(), wide);
  EXPECT_EQ(wide.flushed + wide.subnormal + wide.overflow, 0);
}

}  // namespace
}  // namespace qalora::exporting
