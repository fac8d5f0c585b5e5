#include "fixture.h"
#include "qalora/core/error.h"

namespace qalora::exporting {
namespace {

class LoraExport : public ExportTest, public ::testing::WithParamInterface<io::Pooling> {};

TEST_P(LoraExport, ComputesWhatThePooledAdapterDoes) {
  const fs::path with = adapter(GetParam(), "adapter");
  const auto reports = run("lora", dir_ / "base", with, "lora");
  EXPECT_EQ(reports.size(), 14u);
  const io::AdapterFile lora = io::read_adapter(dir_ / "lora");
  EXPECT_EQ(lora.config.origin, io::AdapterOrigin::kLora);
  EXPECT_EQ(lora.config.scaling, 1);
  EXPECT_FALSE(io::read_json_file(dir_ / "lora/adapter_config.json").contains("qalora"));
  // fp32 products in another order: 160 inputs, logits of order 1.
  const at::Tensor expected = logits(dir_ / "base", with);
  EXPECT_LE(distance(logits(dir_ / "base", dir_ / "lora"), expected), 1e-4);
  EXPECT_GT(distance(logits(dir_ / "base"), expected), 1e-2);  // must differ: without it
  io::AdapterFile wrong = lora;
  wrong.config.alpha *= 1.1, wrong.config.scaling *= 1.1;
  test::write_adapter_to(dir_ / "wrong", wrong);
  EXPECT_GT(distance(logits(dir_ / "base", dir_ / "wrong"), expected), 1e-3);
}

INSTANTIATE_TEST_SUITE_P(Poolings, LoraExport,
                         ::testing::Values(io::Pooling::kSum, io::Pooling::kMean, io::Pooling::kNone),
                         [](const auto& info) { return io::pooling_name(info.param); });

TEST_F(ExportTest, LoraOfSeveralRanksIsPaddedToOne) {
  io::AdapterFile mixed = test::random_adapter(dir_ / "base", io::Pooling::kSum, 0.05);
  auto& weights = mixed.modules.at("model.layers.0.self_attn.q_proj");
  weights = {weights.a.narrow(0, 0, 2).clone(), weights.b.narrow(1, 0, 2).clone(), 3.5};
  test::write_adapter_to(dir_ / "mixed", mixed);
  run("lora", dir_ / "base", dir_ / "mixed", "lora");
  for (const auto& [module, parts] : io::read_adapter(dir_ / "lora").modules) EXPECT_EQ(parts.a.size(0), 4) << module;
  EXPECT_LE(distance(logits(dir_ / "base", dir_ / "lora"), logits(dir_ / "base", dir_ / "mixed")), 1e-4);
}

TEST_F(ExportTest, LoraInFloat16ReportsItsRounding) {
  const fs::path with = adapter(io::Pooling::kMean, "adapter");
  const double exact = totals(run("lora", dir_ / "base", with, "wide")).largest_error;
  const double rounded =
      totals(run("lora", dir_ / "base", with, "narrow", {.weights_dtype = "float16", .offsets_dtype = ""}))
          .largest_error;
  EXPECT_LT(exact, 1e-5);
  EXPECT_GT(rounded, 20 * exact);
  EXPECT_EQ(io::open_adapter_tensors(dir_ / "narrow")->tensors().begin()->second.dtype, io::Dtype::kF16);
}

TEST_F(ExportTest, LoraThatIsInfiniteIsRefused) {
  io::AdapterFile large = test::random_adapter(dir_ / "base", io::Pooling::kSum, 0.05);
  large.config.alpha = 4e300, large.config.scaling = 1e300;  // of rank 4
  test::write_adapter_to(dir_ / "large", large);
  test::expect_part(test::refusal<DataError>([&] { run("lora", dir_ / "base", dir_ / "large", "out"); }), "not finite");
  EXPECT_FALSE(fs::exists(dir_ / "out"));
}

TEST_F(ExportTest, AnAdapterThatNamesNoBaseIsExportedWithAWarning) {
  io::AdapterFile foreign = test::random_adapter(dir_ / "base", io::Pooling::kSum, 0.05);
  const auto said = [&](const std::string& name) {
    test::write_adapter_to(dir_ / name, foreign);
    testing::internal::CaptureStderr();
    run("lora", dir_ / "base", dir_ / name, "out-" + name);
    return testing::internal::GetCapturedStderr();
  };
  EXPECT_EQ(said("own").find("does not name the model"), std::string::npos);
  foreign.config.base_fingerprint = foreign.config.base_state_fingerprint = "";
  test::expect_part(said("foreign"), "does not name the model");
}

TEST_F(ExportTest, LoraRefusesAnOrderOfInputsThatIsNone) {
  const std::string name = "model.layers.0.self_attn.q_proj.g_idx";
  const fs::path model = dir_ / "base";
  at::Tensor groups = at::arange(64, at::kInt).remainder(2);
  test::rewrite(model, name, groups);
  const fs::path with = adapter(io::Pooling::kSum, "adapter");
  run("lora", model, with, "fine");
  groups[3] = 2;
  test::rewrite(model, name, groups);
  const fs::path damaged = adapter(io::Pooling::kSum, "damaged");
  test::expect_part(test::refusal<DataError>([&] { run("lora", model, damaged, "out"); }), "of group 2");
}

TEST_F(ExportTest, LoraAsksForTheAdaptersOwnBase) {
  test::expect_part(test::refusal<UserError>([&] { run("lora", dir_ / "base", {}, "out"); }), "--adapter");
  const fs::path with = adapter(io::Pooling::kSum, "adapter");
  test::expect_part(test::refusal<DataError>([&] { run("lora", dir_ / "dense", with, "out"); }), "is dense");
  test::quantize_to(dir_ / "dense", dir_ / "other", 3, 32);
  test::expect_part(test::refusal<DataError>([&] { run("lora", dir_ / "other", with, "out"); }), "another base");
}

}  // namespace
}  // namespace qalora::exporting
