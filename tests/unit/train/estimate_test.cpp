#include "qalora/train/estimate.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "qalora/core/error.h"
#include "qalora/model/load.h"
#include "qalora/train/subject.h"
#include "unit/model/random_checkpoint.h"

namespace qalora::train {
namespace {

TrainConfig config_of(const fs::path& model, const std::string& method) {
  TrainConfig config;
  config.model = model.string();
  config.method = method;
  config.rank = 4;
  config.targets = {"q_proj", "down_proj"};
  return config;
}

TEST(Estimate, ConfigJsonAloneTellsWhatLoadingTells) {
  test::TempDir dir;
  test::write_random_dense(dir / "dense");
  test::quantize_to(dir / "dense", dir / "grouped", 4, 32);
  test::quantize_to(dir / "dense", dir / "rows", 3, quant::kWholeRow);
  const std::pair<const char*, const char*> cases[] = {
      {"grouped", "qalora"}, {"rows", "qalora"}, {"dense", "lora"}, {"dense", "full"}};
  for (const auto& [folder, method] : cases) {
    const TrainConfig config = config_of(dir / folder, method);
    TrainingSubject subject(config, at::kFloat, c10::kCPU);
    const Workload workload = expected_workload(model::read_config(dir / folder), config, at::kFloat);
    EXPECT_EQ(workload.weight_bytes, subject.model().weight_bytes()) << folder << " " << method;
    EXPECT_EQ(workload.trained_elements, subject.trained_elements()) << folder << " " << method;
    TrainConfig other = config;
    other.rank = 8;
    const int64_t with_other_rank = expected_workload(workload.model, other, at::kFloat).trained_elements;
    EXPECT_EQ(with_other_rank == workload.trained_elements, config.full());  // must differ where there is an adapter
  }
}

TEST(Estimate, WholeRowGroupsKeepOneNumberARow) {
  model::LlamaConfig model = model::parse_config(test::random_config_json(), "test");
  const auto activations = [&](int64_t group_size) {
    model.quantization = model::QuantizationConfig{4, group_size};
    return estimate_memory({model, at::kFloat, 0, 0}, config_of("m", "qalora"), 1, 100).activations;
  };
  // Four distinct inputs of 64, 64, 64 and 160 numbers: one group each, against two of 128 for the longest, and groups
  // of one.
  EXPECT_EQ(activations(128) - activations(quant::kWholeRow), 100u * 2 * 4 * 1);
  EXPECT_EQ(activations(1) - activations(quant::kWholeRow), 100u * 2 * 4 * (64 * 3 + 160 - 4));
}

TEST(Estimate, WeightsCountUntilTheyAreLoaded) {
  Estimate estimate;
  estimate.memory.weights = 100, estimate.memory.trained = 12, estimate.memory.activations = 4,
  estimate.memory.scratch = 4;
  estimate.memory.loaded = 109;  // and the trained values and moments
  estimate.available_bytes = 119;
  EXPECT_FALSE(estimate.fits());
  estimate.available_bytes = 120;
  EXPECT_TRUE(estimate.fits());
  estimate.available_bytes = 11;
  EXPECT_FALSE(estimate.fits());
  estimate.weights_loaded = true;
  EXPECT_TRUE(estimate.fits());
  estimate.available_bytes = 10;
  EXPECT_FALSE(estimate.fits());
}

TEST(Estimate, WhatDoesNotFitNamesWhatIsLarge) {
  TrainConfig config = config_of("m", "qalora");
  config.rank = 512;
  Estimate estimate;
  estimate.memory.weights = 100, estimate.memory.trained = 40, estimate.memory.activations = 60;
  estimate.available_bytes = 200;
  EXPECT_EQ(estimate.unfit_text(config), "");
  estimate.available_bytes = 199;
  EXPECT_NE(estimate.unfit_text(config).find("this may not fit: lower micro_batch_size"), std::string::npos);
  estimate.available_bytes = 139;
  EXPECT_NE(estimate.unfit_text(config).find("this does not fit: take a smaller model"), std::string::npos);
  estimate.memory.trained = 400;
  EXPECT_EQ(estimate.unfit_text(config), "this does not fit: lower rank (it is 512)");
  estimate.available_bytes = 500;
  EXPECT_EQ(estimate.unfit_text(config), "this may not fit: lower rank (it is 512)");
  config.initial_adapter = "run";  // whose rank counts
  EXPECT_EQ(estimate.unfit_text(config).find("rank"), std::string::npos);
}

TEST(Estimate, AnAdapterThatNoMemoryHoldsIsRefused) {
  const TrainConfig config = config_of("m", "qalora");
  Workload workload;
  workload.trained_elements = 1000;
  EXPECT_NO_THROW(require_memory(workload, config));
  workload.trained_elements = int64_t{1} << 50;
  EXPECT_THROW(require_memory(workload, config), MemoryError);
}

}  // namespace
}  // namespace qalora::train
