// Whole fine-tuning runs on an accelerator: the same losses as on the CPU, saved and resumed, within its memory.
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "accelerator/tiny_model.h"
#include "qalora/core/error.h"
#include "qalora/core/log.h"
#include "qalora/io/adapter_file.h"
#include "qalora/model/quantize_checkpoint.h"
#include "qalora/train/finetune.h"
#include "qalora/train/run_folder.h"
#include "support/support.h"

namespace qalora::test {
namespace {

using nlohmann::json;

// A miniature, quantised once, and the first records of its tuning set.
class AcceleratorRun : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    use_fake_accelerator();
    log::configure({.level = log::Level::kQuiet, .color = log::Color::kNever, .file = ""});
    dir_ = new TempDir();
    const io::Checkpoint dense(source_dir() / "models/miniature");
    model::quantize_checkpoint(dense, model::plan_quantization(dense, {.bits = 3, .group_size = 32}), *dir_ / "base",
                               false);
    json records = json::parse(read_file(source_dir() / "tests/data/miniature/tune.json"));
    records.erase(records.begin() + 64, records.end());
    write_file(*dir_ / "tune.json", records.dump());
  }
  static void TearDownTestSuite() { delete dir_; }

  static train::TrainConfig config(const std::string& name) {
    train::TrainConfig c;
    c.model = (*dir_ / "base").string();
    c.data = (*dir_ / "tune.json").string();
    c.out = (*dir_ / name).string();
    c.steps = 4;
    c.batch_size = 4;
    c.micro_batch_size = 2;
    c.learning_rate = 2e-3;
    c.warmup_steps = 0;
    c.rank = 4;
    c.sequence_length = 96;
    c.log_interval = 1;
    return c;
  }

  static std::vector<json> run(const train::TrainConfig& config, at::ScalarType compute, c10::Device device,
                               bool resume = false) {
    std::vector<json> events;
    train::RunOptions options;
    options.compute = compute;
    options.device = device;
    options.resume = resume;
    options.resolved_config = std::string("# ") + train::RunFolder::kConfigHeading + "\n";
    options.on_event = [&](const json& event) { events.push_back(event); };
    train::finetune(config, options);
    return events;
  }

  static std::vector<double> numbers_of(const std::vector<json>& events, const char* key) {
    std::vector<double> result;
    for (const json& event : events) {
      if (event.at("event") == "step") result.push_back(event.at(key).get<double>());
    }
    return result;
  }

  static TempDir* dir_;
};

TempDir* AcceleratorRun::dir_ = nullptr;

// Losses of two roads whose products are rounded to `bits` more or less: a loss is a mean over hundreds of tokens, of
// logits that are off by about 2^-8 of a nat each; what the optimizer makes of it grows with each step.
void expect_same_curve(const std::vector<double>& got, const std::vector<double>& expected, double tolerance) {
  ASSERT_EQ(got.size(), expected.size());
  for (size_t i = 0; i < got.size(); ++i)
    EXPECT_NEAR(got[i], expected[i], tolerance * static_cast<double>(i + 1)) << "step " << i + 1;
}

TEST_F(AcceleratorRun, LossesAreTheCpus) {
  const c10::Device fake = use_fake_accelerator();
  const std::vector<json> cpu = run(config("cpu"), at::kFloat, c10::kCPU);
  const std::vector<double> expected = numbers_of(cpu, "loss");
  ASSERT_EQ(expected.size(), 4U);
  expect_same_curve(numbers_of(run(config("float"), at::kFloat, fake), "loss"), expected, 1e-5);
  const std::vector<json> half = run(config("half"), at::kBFloat16, fake);
  expect_same_curve(numbers_of(half, "loss"), expected, 4e-3);
  for (size_t i = 0; i < 4; ++i)
    EXPECT_NEAR(numbers_of(half, "grad_norm")[i] / numbers_of(cpu, "grad_norm")[i], 1, 0.05) << i;
  // Must differ: another rate.
  train::TrainConfig other = config("other");
  other.learning_rate = 4e-2;
  EXPECT_GT(std::abs(numbers_of(run(other, at::kBFloat16, fake), "loss")[3] - expected[3]), 4 * 4e-3);
  EXPECT_GT(half.back().at("peak_device_memory_bytes").get<uint64_t>(), uint64_t{1} << 16);
}

// What is kept of the adapter from one pass to another (16-bit copies of the weights, folded offsets) must move with
// it. Rows of 320 tokens take the panels, two micro-batches and recomputed layers make copies worth while, and a
// held-out pass comes between steps. Without room for copies the same products come out of weights written at each
// visit: the same bits.
TEST_F(AcceleratorRun, KeptCopiesMoveWithTheAdapter) {
  const c10::Device fake = use_fake_accelerator();
  train::TrainConfig c = config("long");
  c.packing = true;
  c.sequence_length = 160;
  c.learning_rate = 2e-2;
  c.eval_examples = 8;
  c.eval_interval = 2;
  struct Result {
    std::vector<double> losses;
    uint64_t peak = 0;
  };
  const auto measure = [&](const std::string& name, bool checkpointing, const char* recompute) {
    c.gradient_checkpointing = checkpointing;
    c.recompute = recompute;
    c.out = (*dir_ / name).string();
    reset_fake_statistics();
    const std::vector<json> events = run(c, at::kBFloat16, fake);
    Result result{numbers_of(events, "loss"), events.back().at("peak_device_memory_bytes")};
    for (const json& event : events) {
      if (event.at("event") == "eval") result.losses.push_back(event.at("loss").get<double>());
    }
    return result;
  };
  Result bare;
  {
    const FakeMemoryLimit limit(fake_statistics().used_bytes +
                                (uint64_t{112} << 20));  // libraries' 100 MiB are set aside, a fifth stays free
    bare = measure("no room", false, "layer");
  }
  ASSERT_EQ(bare.losses.size(), 6U);
  EXPECT_GT(std::abs(bare.losses[3] - bare.losses[0]), 0.1);  // a stale adapter would show
  EXPECT_GT(std::abs(bare.losses[5] - bare.losses[4]), 0.1);
  const Result kept = measure("room", false, "layer");
  EXPECT_EQ(kept.losses, bare.losses);
  EXPECT_GT(kept.peak, bare.peak + 500000);  // the copies are there
  EXPECT_EQ(measure("room, layer", true, "layer").losses, bare.losses);
  EXPECT_EQ(measure("room, mlp", true, "mlp").losses, bare.losses);
}

TEST_F(AcceleratorRun, ResumesToTheSameBits) {
  const c10::Device fake = use_fake_accelerator();
  train::TrainConfig another = config("another");
  another.seed = 8;
  run(another, at::kBFloat16, fake);
  train::TrainConfig half = config("halves");
  half.schedule = "constant";
  train::TrainConfig whole = config("straight");
  whole.schedule = "constant";
  run(whole, at::kBFloat16, fake);
  half.steps = 2;
  run(half, at::kBFloat16, fake);
  half.steps = 4;
  run(half, at::kBFloat16, fake, /*resume=*/true);
  const auto same = [&](const char* one, const char* other) {
    const auto adapter = [&](const char* name) {
      return read_file(*dir_ / name / "adapter/adapter_model.safetensors");
    };
    return adapter(one) == adapter(other);
  };
  EXPECT_TRUE(same("halves", "straight"));
  EXPECT_FALSE(same("halves", "another"));
}

TEST_F(AcceleratorRun, MicroBatchesFillTheFreeMemoryAndNoMore) {
  const c10::Device fake = use_fake_accelerator();
  train::TrainConfig automatic = config("automatic");
  automatic.micro_batch_size = 0;
  automatic.batch_size = 8;
  automatic.steps = 1;
  EXPECT_EQ(run(automatic, at::kBFloat16, fake).front().at("micro_batch_size"), 8);  // all of the batch
  // Estimates leave 100 MiB to libraries, and a tenth free: room for some rows of these 96 tokens.
  const FakeMemoryLimit limit(fake_statistics().used_bytes + (uint64_t{115} << 20));
  automatic.out = (*dir_ / "tight").string();
  const std::vector<json> events = run(automatic, at::kBFloat16, fake);
  EXPECT_LT(events.front().at("micro_batch_size"), 8);
  EXPECT_EQ(events.back().at("event"), "end");
}

TEST_F(AcceleratorRun, MemoryThatRunsOutLeavesTheRunResumable) {
  const c10::Device fake = use_fake_accelerator();
  train::TrainConfig c = config("small");
  c.schedule = "constant";
  c.steps = 2;
  run(c, at::kBFloat16, fake);
  c.steps = 4;
  {
    const FakeMemoryLimit limit(fake_statistics().used_bytes + (uint64_t{1} << 20));
    EXPECT_THROW(run(c, at::kBFloat16, fake, /*resume=*/true), c10::OutOfMemoryError);
  }
  EXPECT_EQ(numbers_of(run(c, at::kBFloat16, fake, /*resume=*/true), "loss").size(), 2U);
}

}  // namespace
}  // namespace qalora::test
