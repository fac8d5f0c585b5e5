// Logits of checkpoints that other projects wrote, against what those projects computed (see the goldens' README).
#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "golden/logits.h"
#include "qalora/core/error.h"
#include "qalora/io/checkpoint.h"
#include "qalora/model/load.h"
#include "support/support.h"

namespace qalora::model {
namespace {

class LlamaGolden : public ::testing::TestWithParam<const char*> {};

TEST_P(LlamaGolden, LogitsEqualTheOtherImplementations) {
  REQUIRE_SHARED(std::string("goldens/") + GetParam());
  const fs::path folder = test::shared_dir() / "goldens" / GetParam();
  const io::SafetensorsFile expected(folder / "expected.safetensors");
  // Dense folders say their own tolerance: six times the golden's distance from double precision. MLX folders: 1e-4.
  const nlohmann::json about = io::read_json_file(folder / "expected.json");
  const double tolerance = about.contains("accuracy") && about["accuracy"].contains("tolerance_logits_abs")
                               ? about["accuracy"]["tolerance_logits_abs"].get<double>()
                               : 1e-4;
  Llama model = load_model(folder, {});
  const at::Tensor ids = expected.read("input_ids").to(at::kLong), logits = logits_of(model, ids);
  EXPECT_LE(distance(logits, expected.read("logits")), tolerance);

  // Must differ: another epsilon, the mildest mistake the goldens' README lists, is far outside.
  model.config.norm_eps *= 30;
  EXPECT_GT(distance(logits_of(model, ids), expected.read("logits")), 3 * tolerance);
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, LlamaGolden,
                         ::testing::Values("llama/mha", "llama/gqa_tied", "llama/mistral", "llama/qwen2",
                                           "llama/sharded_fp16", "llama/pytorch_bin", "llama/meta", "mlx/w3g32",
                                           "mlx/w4g32", "mlx/w2g64_everything"));

// What Meta's layout is easily mistaken for gives other logits.
TEST(LlamaGoldenText, MetasPartsAndRowsHaveAnOrder) {
  REQUIRE_SHARED("goldens/llama/meta");
  const fs::path folder = test::shared_dir() / "goldens/llama/meta";
  const io::SafetensorsFile expected(folder / "expected.safetensors");
  const double tolerance =
      io::read_json_file(folder / "expected.json").at("accuracy").at("tolerance_logits_abs").get<double>();
  const auto difference = [&](const fs::path& other) {
    Llama model = load_model(other, {});
    return distance(logits_of(model, expected.read("input_ids").to(at::kLong)), expected.read("logits"));
  };
  const test::TempDir swapped, unmoved;
  fs::copy_file(folder / "params.json", swapped / "params.json");
  fs::copy_file(folder / "consolidated.00.pth", swapped / "consolidated.01.pth");
  fs::copy_file(folder / "consolidated.01.pth", swapped / "consolidated.00.pth");
  EXPECT_GT(difference(swapped.path()), 100 * tolerance);
  // Written anew as Hugging Face has it: equal; with the rows of q and k in Meta's order: not.
  const io::Checkpoint checkpoint(folder);
  io::write_json_file(unmoved / "config.json", checkpoint.config());
  std::map<std::string, at::Tensor> tensors;
  for (const std::string& name : checkpoint.names()) tensors[name] = checkpoint.read(name);
  io::write_safetensors(unmoved / "model.safetensors", tensors);
  EXPECT_LE(difference(unmoved.path()), tolerance);
  for (auto& [name, tensor] : tensors) {
    if (!name.ends_with("q_proj.weight") && !name.ends_with("k_proj.weight")) continue;
    tensor = tensor.reshape({4, 2, 8, tensor.size(1)})
                 .transpose(1, 2)
                 .reshape(tensor.sizes())
                 .contiguous();  // 4 heads of 16
  }
  io::write_safetensors(unmoved / "model.safetensors", tensors);
  EXPECT_GT(difference(unmoved.path()), 100 * tolerance);
}

TEST(LlamaGoldenText, CachedForwardEqualsTheWholeForward) {
  REQUIRE_SHARED("goldens/llama/gqa_tied");
  const fs::path folder = test::shared_dir() / "goldens/llama/gqa_tied";
  const io::SafetensorsFile expected(folder / "expected.safetensors");
  Llama model = load_model(folder, {});
  const at::Tensor ids = expected.read("input_ids").to(at::kLong)[0];
  const double tolerance =
      io::read_json_file(folder / "expected.json").at("accuracy").at("tolerance_logits_abs").get<double>();
  const c10::NoGradGuard no_grad;
  const auto difference = [&](int64_t forgotten) {
    KvCache cache;
    std::vector<at::Tensor> parts;
    for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, 10}, {10, 11}, {11, 20}, {20, ids.size(0)}}) {
      parts.push_back(model.logits(model.forward_cached(ids.slice(0, begin, end), cache)));
      if (begin == 0) cache.length -= forgotten;
    }
    return distance(at::cat(parts), expected.read("logits")[0]);
  };
  EXPECT_LE(difference(0), tolerance);
  EXPECT_GT(difference(1), 100 * tolerance);  // must differ: a cache that lost its last token
}

TEST(LlamaGoldenText, Bfloat16StaysNearFloat32) {
  REQUIRE_SHARED("goldens/llama/mha");
  const fs::path folder = test::shared_dir() / "goldens/llama/mha";
  const io::SafetensorsFile expected(folder / "expected.safetensors");
  Llama model = load_model(folder, {.compute = at::kBFloat16});
  const at::Tensor golden = expected.read("logits");
  const double difference = distance(logits_of(model, expected.read("input_ids").to(at::kLong)), golden);
  // bf16 keeps 8 bits: rounding errs by 2^-9 on average; two layers of seven products with random signs stay well below
  // a hundred such roundings of the logits' spread. It must also really be bf16, not f32 under another name.
  const double spread = golden.std().item<double>();
  EXPECT_LE(difference, 100 * std::ldexp(1.0, -9) * spread);
  EXPECT_GT(difference, 1e-3);
}

}  // namespace
}  // namespace qalora::model
