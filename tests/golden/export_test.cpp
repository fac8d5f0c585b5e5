// What goes out comes back: exports of files that other packages wrote, byte for byte where the format can hold it.
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "qalora/io/json_file.h"
#include "qalora/io/safetensors.h"
#include "support/support.h"

namespace qalora {
namespace {

using std::filesystem::path;

bool same_bytes(const io::SafetensorsFile& a, const io::SafetensorsFile& b, const std::string& name) {
  return a.info(name).dtype == b.info(name).dtype && a.info(name).shape == b.info(name).shape &&
         std::ranges::equal(a.bytes(name).span, b.bytes(name).span);
}

class GptqRoundTrip : public ::testing::TestWithParam<const char*> {};

TEST_P(GptqRoundTrip, WhatGptqmodelWroteIsWrittenAgain) {
  REQUIRE_SHARED(std::string("goldens/gptq/") + GetParam());
  const path golden = test::shared_dir() / "goldens/gptq" / GetParam();
  const test::TempDir dir;
  const auto run =
      test::run_qalora({"export", "--model", golden, "--to", "gptq", "--out", (dir / "out").string(), "--json"});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const nlohmann::json report = nlohmann::json::parse(run.out);
  EXPECT_EQ(report.at("largest_error"), 0.0);
  EXPECT_EQ(report.at("lossless"), 14);
  const io::SafetensorsFile before(golden / "model.safetensors"), after(dir / "out/model.safetensors");
  ASSERT_EQ(before.tensors().size(), after.tensors().size());
  // Version 1 stores each zero point less one; written is version 2.
  const bool v2 = std::string(GetParam()).ends_with("v2");
  size_t different = 0;
  for (const auto& [name, info] : before.tensors()) {
    ASSERT_TRUE(after.contains(name)) << name;
    if (same_bytes(before, after, name)) continue;
    EXPECT_TRUE(!v2 && name.ends_with(".qzeros")) << name;
    ++different;
  }
  EXPECT_EQ(different, v2 ? 0u : 14u);
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, GptqRoundTrip, ::testing::Values("w4g32_v2", "w2g64_v2", "w3g32_v1", "w4g32_v1"));

TEST(MlxRoundTrip, WhatMlxLmWroteIsWrittenAgain) {
  REQUIRE_SHARED("goldens/mlx/w3g32");
  for (const char* name : {"w4g32", "w3g32"}) {
    const path golden = test::shared_dir() / "goldens/mlx" / name;
    const test::TempDir dir;
    const auto run =
        test::run_qalora({"export", "--model", golden, "--to", "mlx", "--out", (dir / "out").string(), "--json"});
    ASSERT_EQ(run.exit_code, 0) << run.err;
    EXPECT_EQ(nlohmann::json::parse(run.out).at("largest_error"), 0.0);
    const io::SafetensorsFile before(golden / "model.safetensors"), after(dir / "out/model.safetensors");
    ASSERT_EQ(before.tensors().size(), after.tensors().size());
    for (const auto& [tensor, info] : before.tensors()) EXPECT_TRUE(same_bytes(before, after, tensor)) << tensor;
    const nlohmann::json config = io::read_json_file(dir / "out/config.json");
    EXPECT_TRUE(config.contains("rope_theta") &&
                config.contains("tie_word_embeddings"));  // mlx-lm's defaults for both are other values
  }
}

}  // namespace
}  // namespace qalora
