#include "qalora/train/schedule.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "qalora/io/safetensors.h"
#include "support/support.h"

namespace qalora::train {
namespace {

TEST(Schedule, EqualsTransformers) {
  REQUIRE_SHARED("goldens/optimizer/optimizer.safetensors");
  const io::SafetensorsFile golden(test::shared_dir() / "goldens/optimizer/optimizer.safetensors");
  // Ours on the left honours warm-up under every name; theirs has a name of its own for a constant rate with it.
  for (const auto& [ours, theirs] : {std::pair{"constant", "constant_with_warmup"},
                                     {"linear", "linear_with_warmup"},
                                     {"cosine", "cosine_with_warmup"}}) {
    const at::Tensor rates = golden.read(std::string("schedule.") + theirs);
    for (int64_t step = 0; step < rates.size(0); ++step) {
      // Past the end their cosine turns up again; ours stays at its last value.
      if (step > 50 && std::string(ours) == "cosine") break;
      EXPECT_NEAR(learning_rate_at(ours, 2e-4, 7, 50, step), rates[step].item<double>(), 1e-12) << ours << " " << step;
    }
    EXPECT_GT(std::abs(learning_rate_at(ours, 2e-4, 6, 50, 3) - rates[3].item<double>()),
              1e-6);  // must differ: another warm-up
  }
}

TEST(Schedule, EndsAtZeroAndStartsAtThePeak) {
  EXPECT_EQ(learning_rate_at("linear", 1.0, 0, 10, 0), 1.0);
  EXPECT_EQ(learning_rate_at("linear", 1.0, 0, 10, 10), 0.0);
  EXPECT_EQ(learning_rate_at("linear", 1.0, 0, 10, 12), 0.0);
  EXPECT_NEAR(learning_rate_at("cosine", 1.0, 0, 10, 5), 0.5, 1e-15);
  EXPECT_EQ(learning_rate_at("constant", 1.0, 0, 10, 99), 1.0);
}

}  // namespace
}  // namespace qalora::train
