// The benchmark of whole models runs where there is no GPU too, on a shape that is small enough.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "accelerator/tiny_model.h"
#include "bench/model_bench.h"

namespace qalora::test {
namespace {

TEST(ModelBench, TrainsAndDecodesRandomModels) {
  bench::ModelBench tiny;
  tiny.config = tiny_config();
  tiny.rank = 4, tiny.rows = 2, tiny.row_tokens = 60, tiny.micro_batches = 2, tiny.steps = 1, tiny.decode_tokens = 4;
  const nlohmann::json packed = bench::run_model_bench(tiny, use_fake_accelerator());
  for (const char* key : {"tokens_per_second", "peak_bytes", "estimated_bytes", "decode_tokens_per_second"})
    EXPECT_GT(packed.at(key), 0) << key;
  tiny.bits = 0, tiny.decode_tokens = 0;
  const nlohmann::json dense = bench::run_model_bench(tiny, use_fake_accelerator());
  EXPECT_GT(dense.at("tokens_per_second"), 0);
  EXPECT_FALSE(dense.contains("estimated_bytes"));
}

}  // namespace
}  // namespace qalora::test
