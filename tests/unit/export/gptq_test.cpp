#include "fixture.h"
#include "qalora/core/error.h"

namespace qalora::exporting {
namespace {

const std::string kQ = "model.layers.0.self_attn.q_proj";

// One code or zero point out of GPTQ's words, by the format's text: `bits` bits from bit k * bits of the stream of
// words on.
int64_t field(const at::Tensor& words, int64_t k, int bits) {
  int64_t value = 0;
  for (int bit = 0; bit < bits; ++bit) {
    const int64_t at = k * bits + bit;
    value |= ((words[at / 32].item<int64_t>() >> (at % 32)) & 1) << bit;
  }
  return value;
}

TEST_F(ExportTest, GptqHoldsTheSameWeightsInItsOwnOrder) {
  make_integer_zeros(dir_ / "base");
  const auto reports = run("gptq", dir_ / "base", {}, "gptq");
  EXPECT_EQ(reports.size(), 14u);
  EXPECT_EQ(totals(reports).largest_error, 0);  // its scales fit into fp16
  const io::SafetensorsFile file(dir_ / "gptq/model.safetensors");
  const at::Tensor qweight = file.read(kQ + ".qweight"), qzeros = file.read(kQ + ".qzeros"),
                   scales = file.read(kQ + ".scales").to(at::kFloat);
  EXPECT_EQ(qweight.sizes(), at::IntArrayRef({64 * 4 / 32, 64}));
  EXPECT_EQ(qzeros.sizes(), at::IntArrayRef({2, 64 * 4 / 32}));
  EXPECT_EQ(scales.sizes(), at::IntArrayRef({2, 64}));
  EXPECT_TRUE(at::equal(file.read(kQ + ".g_idx"), at::arange(64, at::kInt).floor_divide(32)));
  const io::Checkpoint base(dir_ / "base");
  const at::Tensor dense =
      model::read_packed(base, kQ, 64, 64, *model::read_config(base).quantization).dequantize(at::kFloat);
  for (int64_t row : {0, 1, 63}) {
    for (int64_t column : {0, 7, 8, 31, 32, 63}) {
      const int64_t group = column / 32, zero = field(qzeros[group], row, 4),
                    code = field(qweight.select(1, row), column, 4);
      const float weight = scales[group][row].item<float>() * static_cast<float>(code - zero);
      EXPECT_FLOAT_EQ(weight, dense[row][column].item<float>()) << row << " " << column;
    }
  }
  const nlohmann::json config = io::read_json_file(dir_ / "gptq/quantize_config.json");
  EXPECT_EQ(config["checkpoint_format"], "gptq_v2");
  EXPECT_EQ(io::read_json_file(dir_ / "gptq/config.json")["quantization_config"], config);
  EXPECT_FALSE(io::read_json_file(dir_ / "gptq/config.json").contains("quantization"));
}

TEST_F(ExportTest, GptqRefusesOffsetsThatAreNoZeroPoints) {
  make_integer_zeros(dir_ / "base");
  const std::string name = kQ + ".biases";
  const at::Tensor good = io::Checkpoint(dir_ / "base").read(name),
                   scales = io::Checkpoint(dir_ / "base").read(kQ + ".scales");
  const auto refused = [&](float offset) {
    at::Tensor bad = good.clone();
    bad[5][1] = offset;
    test::rewrite(dir_ / "base", name, bad);
    return test::refusal<UserError>([&] { run("gptq", dir_ / "base", {}, "out"); });
  };
  const float scale = scales[5][1].item<float>();
  const std::string text = refused(-scale * 7.001f);
  test::expect_part(text, "row 5, group 1");
  test::expect_part(text, "--to gguf");
  test::expect_part(text, "--to lora");
  refused(-scale * 16);  // one more than four bits hold
  refused(scale);
  refused(std::nextafter(-scale * 7, 1.0f));
  EXPECT_FALSE(fs::exists(dir_ / "out"));
  at::Tensor fine = good.clone();
  fine[5][1] = -(scale * 7);
  test::rewrite(dir_ / "base", name, fine);
  run("gptq", dir_ / "base", {}, "out");  // must be taken: the same place, a whole zero point
}

TEST_F(ExportTest, GptqReportsScalesThatFloat16Rounds) {
  make_integer_zeros(dir_ / "base");
  const std::string name = kQ + ".scales";
  at::Tensor scales = io::Checkpoint(dir_ / "base").read(name),
             offsets = io::Checkpoint(dir_ / "base").read(kQ + ".biases");
  const at::Tensor zeros = (-offsets / scales).round();
  scales = scales * (1 + std::ldexp(1.0, -12));  // a quarter of a unit in fp16's last place
  test::rewrite(dir_ / "base", name, scales);
  test::rewrite(dir_ / "base", kQ + ".biases", -(scales * zeros));
  const auto reports = run("gptq", dir_ / "base", {}, "gptq");
  const auto worst_one = worst(reports, 1).front();
  EXPECT_EQ(worst_one.tensor, kQ);
  EXPECT_NEAR(worst_one.largest_error, 15 * std::ldexp(1.0, -12),
              8 * std::ldexp(1.0, -12));  // codes are up to 15 from their zero point
  EXPECT_EQ(totals(reports).lossless, 13);
}

TEST_F(ExportTest, GptqRefusesABaseWithSingleDenseLayers) {
  make_integer_zeros(dir_ / "base");
  const at::Tensor dense = io::Checkpoint(dir_ / "dense").read(kQ + ".weight");
  for (const char* part : {".scales", ".biases"}) test::rewrite(dir_ / "base", kQ + part, {});
  test::rewrite(dir_ / "base", kQ + ".weight", dense);
  nlohmann::json config = io::read_json_file(dir_ / "base/config.json");
  config["quantization"][kQ] = false;
  io::write_json_file(dir_ / "base/config.json", config);
  const std::string text = test::refusal<UserError>([&] { run("gptq", dir_ / "base", {}, "out"); });
  test::expect_part(text, kQ + ".weight' is dense");
  test::expect_part(text, "--to mlx");
}

TEST_F(ExportTest, GptqNamesTheWayOutForWhatItCannotHold) {
  test::expect_part(test::refusal<UserError>([&] { run("gptq", dir_ / "dense", {}, "out"); }), "qalora quantize");
  test::expect_part(
      test::refusal<UserError>([&] { run("gptq", dir_ / "base", adapter(io::Pooling::kSum, "adapter"), "out"); }),
      "--to lora");
  test::expect_part(test::refusal<UserError>([&] { run("gptq", dir_ / "base", {}, "out"); }),
                    "not -scale * zero");  // rounded with real offsets
}

}  // namespace
}  // namespace qalora::exporting
