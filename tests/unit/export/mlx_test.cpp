#include "fixture.h"
#include "qalora/core/error.h"

namespace qalora::exporting {
namespace {

TEST_F(ExportTest, MlxKeepsEveryByteOfCodesScalesAndOffsets) {
  const auto reports = run("mlx", dir_ / "base", {}, "mlx");
  EXPECT_EQ(totals(reports).largest_error, 0);
  const io::Checkpoint before(dir_ / "base"), after(dir_ / "mlx");
  EXPECT_EQ(before.names(), after.names());
  for (const auto& name : before.names()) {
    if (name.ends_with("norm.weight")) {
      // So that MLX does not round the activations before the first product.
      EXPECT_EQ(after.info(name).dtype, io::Dtype::kF32) << name;
      EXPECT_TRUE(at::equal(before.read(name).to(at::kFloat), after.read(name))) << name;
    } else {
      EXPECT_TRUE(std::ranges::equal(before.bytes(name).span, after.bytes(name).span)) << name;
    }
  }
  EXPECT_TRUE(at::equal(logits(dir_ / "mlx"), logits(dir_ / "base")));
}

TEST_F(ExportTest, MlxInFloat16SaysWhatWasLost) {
  const auto reports = run("mlx", dir_ / "base", {}, "mlx", {.weights_dtype = "", .offsets_dtype = "float16"});
  ASSERT_EQ(reports.size(), 14u);
  const io::Checkpoint before(dir_ / "base"), after(dir_ / "mlx");
  for (const auto& report : reports) {
    // By plain loops: w = scale * code + offset in both.
    const std::string module = report.tensor;
    const at::Tensor scales = before.read(module + ".scales"), offsets = before.read(module + ".biases");
    const at::Tensor rounded = after.read(module + ".scales").to(at::kFloat),
                     moved = after.read(module + ".biases").to(at::kFloat);
    EXPECT_EQ(after.info(module + ".biases").dtype, io::Dtype::kF16);
    double largest = 0;
    for (int code : {0, 15}) {  // the error is linear in the code, and a group of 32 codes has both of its ends
      largest = std::max(
          largest, ((rounded * code + moved) - (scales * code + offsets)).abs().div(scales.abs()).max().item<double>());
    }
    EXPECT_NEAR(report.largest_error, largest, 0.02 * largest) << module;
    // formats.md: half a unit in fp16's last place of a scale and of an offset is 2^-11 * (15 + 15) steps at most.
    EXPECT_GT(report.largest_error, 1e-5);
    EXPECT_LT(report.largest_error, 30.0 / 2048);
  }
  EXPECT_GT(distance(logits(dir_ / "mlx"), logits(dir_ / "base")), 1e-6);
}

TEST_F(ExportTest, MlxRefusesWhatItsKernelsLack) {
  test::quantize_to(dir_ / "dense", dir_ / "odd", 4, 48);
  test::quantize_to(dir_ / "dense", dir_ / "rest", 4, 64);  // 160 inputs are two groups and a half
  test::expect_part(test::refusal<UserError>([&] { run("mlx", dir_ / "odd", {}, "out"); }), "groups of 48");
  test::expect_part(test::refusal<UserError>([&] { run("mlx", dir_ / "rest", {}, "out"); }),
                    "not a multiple of the group size 64");
  const fs::path with = adapter(io::Pooling::kSum, "adapter");
  test::expect_part(test::refusal<UserError>([&] { run("mlx", dir_ / "base", with, "out"); }), "qalora merge");
  test::expect_part(test::refusal<UserError>([&] {
                      run("mlx", dir_ / "base", {}, "out", {.weights_dtype = "float16", .offsets_dtype = ""});
                    }),
                    "--dtype-of-weights");
  test::expect_part(test::refusal<UserError>([&] {
                      run("mlx", dir_ / "base", {}, "out", {.weights_dtype = "", .offsets_dtype = "bfloat16"});
                    }),
                    "--dtype-of-offsets");
  EXPECT_FALSE(fs::exists(dir_ / "out"));
  // An offset that fp16 cannot hold.
  const std::string name = "model.layers.0.self_attn.q_proj.biases";
  at::Tensor offsets = io::Checkpoint(dir_ / "base").read(name);
  offsets[3][1] = 1e6;
  test::rewrite(dir_ / "base", name, offsets);
  test::expect_part(test::refusal<UserError>([&] {
                      run("mlx", dir_ / "base", {}, "out", {.weights_dtype = "", .offsets_dtype = "float16"});
                    }),
                    "too large");
  EXPECT_FALSE(fs::exists(dir_ / "out"));
  run("mlx", dir_ / "base", {}, "out");
}

TEST_F(ExportTest, MlxOfADenseModelIsACopy) {
  run("mlx", dir_ / "dense", {}, "mlx");
  const io::Checkpoint before(dir_ / "dense"), after(dir_ / "mlx");
  for (const auto& name : before.names())
    EXPECT_TRUE(std::ranges::equal(before.bytes(name).span, after.bytes(name).span)) << name;
  EXPECT_EQ(io::SafetensorsFile(dir_ / "mlx/model.safetensors").metadata().at("format"), "mlx");
  EXPECT_FALSE(after.config().contains("quantization"));
}

TEST(Formats, ANameThatIsNoneGetsTheNearest) {
  EXPECT_STREQ(format_named("mlx").name, "mlx");
  test::expect_part(test::refusal<UserError>([] { format_named("mlc"); }), "did you mean 'mlx'");
}

}  // namespace
}  // namespace qalora::exporting
