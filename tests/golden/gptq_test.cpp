// GPTQ of single matrices against GPTQModel's and AutoGPTQ's own results (see the goldens' README).
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "qalora/io/json_file.h"
#include "qalora/io/safetensors.h"
#include "qalora/quant/gptq.h"
#include "support/support.h"

namespace qalora::quant {
namespace {

struct Matrix {
  at::Tensor weight, inputs, hessian;
};

double loss_in_double(const at::Tensor& weight, const at::Tensor& quantised, const at::Tensor& inputs) {
  const at::Tensor errors = (weight.to(at::kDouble) - quantised.to(at::kDouble)).mm(inputs.to(at::kDouble).t());  // [out_features, tokens]
  return 2 * errors.square().sum().item<double>() / static_cast<double>(inputs.size(0));
}

class GptqGolden : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    REQUIRE_SHARED("goldens/gptq");
    const test::fs::path folder = test::shared_dir() / "goldens/gptq";
    about = io::read_json_file(folder / "matrices.json").at("matrices").at(GetParam()).at("cases");
    file.emplace(folder / (std::string(GetParam()) + ".safetensors"));
    weight = file->read("weight"), inputs = file->read("inputs");
    Hessian gathered(weight.size(1), at::kCPU);
    gathered.add(inputs.slice(0, 0, 100)), gathered.add(inputs.slice(0, 100));
    hessian = gathered.matrix();
  }

  nlohmann::json about;
  std::optional<io::SafetensorsFile> file;
  at::Tensor weight, inputs, hessian;
};

TEST_P(GptqGolden, LossIsBelowTheOtherProgramsAtEverySetting) {
  for (const auto& [name, setting] : about.items()) {
    GptqOptions options;
    options.bits = setting.at("bits"), options.group_size = setting.at("group_size");
    const GptqResult result = gptq(name, weight, hessian, options);
    const double loss = loss_in_double(weight, result.weight.dequantize(at::kFloat), inputs), reference = setting.at("proxy_loss");
    std::printf("%-24s %9.5f  theirs %9.5f  before refit %9.5f  rounding %9.5f\n", name.c_str(), loss, reference, result.loss_before_refit,
                result.loss_round_to_nearest);
    EXPECT_LE(loss, reference) << name;
    EXPECT_NEAR(result.loss, loss, 1e-4 * loss) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(Matrices, GptqGolden, ::testing::Values("matrix_a", "matrix_tail", "matrix_dead"));

}  // namespace
}  // namespace qalora::quant
