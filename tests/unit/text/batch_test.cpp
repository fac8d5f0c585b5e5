#include "qalora/text/batch.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <numeric>

#include "qalora/core/error.h"

namespace qalora::text {
namespace {

using Ids = std::vector<int64_t>;

Example example(Ids ids, int64_t prompt) {
  Example result;
  result.labels = ids;
  std::fill_n(result.labels.begin(), prompt, kIgnore);
  result.input_ids = std::move(ids);
  return result;
}

Ids row(const at::Tensor& tensor, int64_t index) {
  const at::Tensor values = tensor[index].contiguous();
  return Ids(values.data_ptr<int64_t>(), values.data_ptr<int64_t>() + values.numel());
}

constexpr int64_t X = kIgnore;

TEST(PadBatch, ShiftsTargetsAndPadsOnTheRight) {
  const std::vector<Example> examples = {example({1, 10, 11, 2}, 2), example({1, 20, 2}, 1)};
  const Batch batch = pad_batch(examples);
  EXPECT_EQ(batch.rows(), 2);
  EXPECT_EQ(batch.length(), 4);
  EXPECT_EQ(row(batch.input_ids, 0), (Ids{1, 10, 11, 2}));
  EXPECT_EQ(row(batch.input_ids, 1), (Ids{1, 20, 2, 0}));
  EXPECT_EQ(row(batch.targets, 0), (Ids{X, 11, 2, X}));
  EXPECT_EQ(row(batch.targets, 1), (Ids{20, 2, X, X}));
  EXPECT_EQ(row(batch.positions, 1), (Ids{0, 1, 2, 3}));
  EXPECT_EQ(batch.segments, (std::vector<std::pair<int64_t, int64_t>>{{0, 4}, {4, 8}}));
  EXPECT_EQ(batch.trained_tokens, 4);
  EXPECT_EQ(batch.real_tokens, 7);
  EXPECT_EQ(batch.trained_tokens, (batch.targets != kIgnore).sum().item<int64_t>());
}

TEST(PadBatch, RoundsUpToAMultiple) {
  const std::vector<Example> examples = {example({1, 2, 3}, 0)};
  EXPECT_EQ(pad_batch(examples, 8).length(), 8);
  EXPECT_EQ(pad_batch(examples, 3).length(), 3);
}

TEST(PadBatch, AnExampleWithoutTrainedTokensCountsNothing) {
  const std::vector<Example> examples = {example({1, 5, 6}, 3)};
  EXPECT_EQ(pad_batch(examples).trained_tokens, 0);
  EXPECT_THROW(pad_batch(std::vector<Example>{}), InternalError);
  EXPECT_THROW(pad_batch(std::vector<Example>{Example{}}), InternalError);
}

TEST(PackBatch, NothingCrossesASegmentsBorder) {
  const Batch batch = pack_batch({{example({1, 10, 2}, 1), example({7, 20, 2}, 0)}, {example({1, 30}, 0)}}, 8);
  EXPECT_EQ(row(batch.input_ids, 0), (Ids{1, 10, 2, 7, 20, 2, 0, 0}));
  // The third position would predict 7, the next segment's first id, if targets crossed the border.
  EXPECT_EQ(row(batch.targets, 0), (Ids{10, 2, X, 20, 2, X, X, X}));
  EXPECT_EQ(row(batch.positions, 0), (Ids{0, 1, 2, 0, 1, 2, 3, 4}));
  EXPECT_EQ(batch.segments, (std::vector<std::pair<int64_t, int64_t>>{{0, 3}, {3, 8}, {8, 16}}));
  EXPECT_EQ(batch.trained_tokens, 5);
  EXPECT_EQ(batch.real_tokens, 8);
}

TEST(PackBatch, TrainsTheSameTokensAsPadding) {
  const std::vector<Example> examples = {example({1, 10, 11, 2}, 2), example({1, 20, 2}, 1), example({1, 2}, 1)};
  const Batch padded = pad_batch(examples), packed = pack_batch({examples}, 12);
  EXPECT_EQ(padded.trained_tokens, packed.trained_tokens);
  EXPECT_EQ(padded.real_tokens, packed.real_tokens);
  EXPECT_TRUE(at::equal(padded.targets.masked_select(padded.targets != kIgnore),
                        packed.targets.masked_select(packed.targets != kIgnore)));
}

TEST(PackBatch, RefusesARowThatIsTooLong) {
  EXPECT_THROW(pack_batch({{example({1, 2, 3}, 0), example({1, 2}, 0)}}, 4), InternalError);
  EXPECT_THROW(pack_batch({{}}, 4), InternalError);
}

TEST(PlanPacking, FillsGapsAndKeepsEveryExampleOnce) {
  EXPECT_EQ(plan_packing(Ids{6, 5, 2, 3}, 8), (std::vector<Ids>{{0, 2}, {1, 3}}));
  EXPECT_EQ(plan_packing(Ids{8, 8}, 8), (std::vector<Ids>{{0}, {1}}));
  EXPECT_TRUE(plan_packing(Ids{}, 8).empty());
  Ids lengths;
  for (int64_t i = 0; i < 1000; ++i) lengths.push_back(1 + (i * 7919) % 128);
  const auto rows = plan_packing(lengths, 128);
  std::vector<int> seen(lengths.size(), 0);
  for (const Ids& indices : rows) {
    int64_t used = 0;
    for (const int64_t index : indices) {
      ++seen[index];
      used += lengths[index];
    }
    EXPECT_LE(used, 128);
  }
  EXPECT_EQ(std::accumulate(seen.begin(), seen.end(), 0), 1000);
  EXPECT_EQ(*std::max_element(seen.begin(), seen.end()), 1);
  EXPECT_EQ(rows, plan_packing(lengths, 128));
  const int64_t tokens = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
  EXPECT_LT(std::ssize(rows) * 128, tokens * 11 / 10);  // at most a tenth of padding on mixed lengths
}

TEST(PlanPacking, RefusesAnExampleLongerThanARow) { EXPECT_THROW(plan_packing(Ids{9}, 8), InternalError); }

}  // namespace
}  // namespace qalora::text
