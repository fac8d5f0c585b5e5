#include "qalora/train/optimizer.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "qalora/core/error.h"
#include "qalora/io/checkpoint.h"
#include "support/support.h"

namespace qalora::train {
namespace {

at::Tensor parameter_of(const at::Tensor& value) { return value.clone().requires_grad_(true); }

// Runs the golden's 20 given gradients -> parameters after each step [20, ...]
at::Tensor run(const at::Tensor& initial, const at::Tensor& gradients, double learning_rate, AdamWOptions options) {
  at::Tensor value = parameter_of(initial);
  AdamW optimizer({{"w", value}}, options);
  std::vector<at::Tensor> history;
  for (int64_t step = 0; step < gradients.size(0); ++step) {
    value.mutable_grad() = gradients[step].clone();
    optimizer.step(learning_rate);
    history.push_back(value.detach().clone());
  }
  return at::stack(history);
}

TEST(AdamW, EqualsTorch) {
  REQUIRE_SHARED("goldens/optimizer/optimizer.safetensors");
  const fs::path folder = test::shared_dir() / "goldens/optimizer";
  const io::SafetensorsFile golden(folder / "optimizer.safetensors");
  const auto about = io::read_json_file(folder / "optimizer.json").at("optimizers");
  const at::Tensor initial = golden.read("initial"), gradients = golden.read("gradients");
  for (const char* name : {"adamw", "adamw_decay"}) {
    AdamWOptions options;
    options.weight_decay = about.at(name).at("weight_decay");
    const double rate = about.at(name).at("lr");
    const at::Tensor expected = golden.read(std::string(name) + ".parameters");
    EXPECT_LE((run(initial, gradients, rate, options) - expected).abs().max().item<double>(), 1e-5);
    options.beta2 = 0.9;  // must differ
    EXPECT_GT((run(initial, gradients, rate, options) - expected).abs().max().item<double>(), 5e-5);
  }
}

TEST(AdamW, ClipsByTheGlobalNormAsTorch) {
  REQUIRE_SHARED("goldens/optimizer/optimizer.safetensors");
  const fs::path folder = test::shared_dir() / "goldens/optimizer";
  const io::SafetensorsFile golden(folder / "optimizer.safetensors");
  for (const auto& [name, about] : io::read_json_file(folder / "optimizer.json").at("clip_grad_norm").items()) {
    std::vector<Parameter> parameters;
    std::vector<at::Tensor> after;
    for (int i = 0; golden.contains("clip." + name + ".before." + std::to_string(i)); ++i) {
      const at::Tensor before = golden.read("clip." + name + ".before." + std::to_string(i));
      at::Tensor value = parameter_of(at::zeros_like(before));
      value.mutable_grad() = before;
      parameters.push_back({"p" + std::to_string(i), value});
      after.push_back(golden.read("clip." + name + ".after." + std::to_string(i)));
    }
    ASSERT_GT(parameters.size(), 1u);
    AdamW optimizer(parameters, {});
    const double norm = optimizer.gradient_norm();
    EXPECT_NEAR(norm, about.at("total_norm").get<double>(), 1e-6 * std::max(norm, 1e-30)) << name;
    optimizer.clip(norm, about.at("max_norm"));
    for (size_t i = 0; i < after.size(); ++i) {
      const double scale = std::max(after[i].abs().max().item<double>(), 1e-30);
      EXPECT_LE((parameters[i].value.grad() - after[i]).abs().max().item<double>() / scale, 1e-6) << name;
    }
  }
}

TEST(AdamW, DecayOfMatricesOnlyWhereAsked) {
  at::Tensor decays = parameter_of(at::ones({2})), stays = parameter_of(at::ones({2}));
  AdamW optimizer({{"a", decays, true}, {"b", stays, false}}, {.weight_decay = 0.5});
  decays.mutable_grad() = at::zeros({2});
  stays.mutable_grad() = at::zeros({2});
  optimizer.step(0.1);
  EXPECT_FLOAT_EQ(decays[0].item<float>(), 0.95f);
  EXPECT_FLOAT_EQ(stays[0].item<float>(), 1.0f);
}

TEST(AdamW, StateContinuesToTheBit) {
  const auto gradient = [](int step) { return at::full({3}, 0.1 * (step + 1)); };
  at::Tensor whole = parameter_of(at::ones({3})), part = parameter_of(at::ones({3}));
  AdamW one({{"w", whole}}, {}), first({{"w", part}}, {});
  for (int step = 0; step < 6; ++step) {
    whole.mutable_grad() = gradient(step);
    one.step(0.01);
    if (step < 3) {
      part.mutable_grad() = gradient(step);
      first.step(0.01);
    }
  }
  AdamW second({{"w", part}}, {});
  second.load_state(first.state(), first.updates(), "test");
  for (int step = 3; step < 6; ++step) {
    part.mutable_grad() = gradient(step);
    second.step(0.01);
  }
  EXPECT_TRUE(at::equal(whole, part));
  EXPECT_THROW(second.load_state({}, 3, "state.safetensors"), DataError);
  at::Tensor fresh = parameter_of(part.detach());
  AdamW forgot({{"w", fresh}}, {});
  fresh.mutable_grad() = gradient(6);
  part.mutable_grad() = gradient(6);
  forgot.step(0.01);
  second.step(0.01);
  EXPECT_FALSE(at::equal(fresh, part));  // must differ: the moments matter
}

}  // namespace
}  // namespace qalora::train
