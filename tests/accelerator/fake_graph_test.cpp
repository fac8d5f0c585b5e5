// Graphs recorded on the fake accelerator: as strict as CUDA's.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <memory>
#include <optional>

#include "accelerator/support.h"
#include "qalora/tensor/accelerator.h"

namespace qalora::test {
namespace {

using at::Tensor;

std::unique_ptr<tensor::RecordedGraph> record(const std::function<void()>& work) {
  use_fake_accelerator();
  return tensor::accelerator()->record(0, work);
}

TEST(FakeGraph, ReplayComputesFromTheSameAddresses) {
  const Tensor x = device(numbers({4, 6})), sum = device(at::zeros({4}));
  Tensor made;
  const auto graph = record([&] {
    made = at::silu(x.t().contiguous()).mul_(2);  // fresh, in place, through views
    sum.add_(made.sum(0));
  });
  EXPECT_TRUE(same_bits(sum, at::zeros({4}))) << "recording computes nothing";
  EXPECT_TRUE(made.isnan().all().item<bool>());
  Tensor expected = at::zeros({4});
  for (int step = 1; step <= 3; ++step) {
    x.copy_(numbers({4, 6}) * step);
    graph->replay();
    const Tensor fresh = at::silu((numbers({4, 6}) * step).t().contiguous()) * 2;
    expected.add_(fresh.sum(0));
    EXPECT_TRUE(same_bits(made, fresh)) << step;
    EXPECT_TRUE(same_bits(sum, expected)) << step;
  }
}

TEST(FakeGraph, WhatTheHostComputedIsFrozen) {
  const Tensor x = device(numbers({4, 6})), row = device(at::zeros({6})), position = device(at::zeros({1}, c10::kLong));
  int64_t host_position = 1;
  const auto wrong = record([&] { row.copy_(x[host_position]); });
  const auto right = record([&] { row.copy_(x.index_select(0, position)[0]); });
  host_position = 3;
  position.fill_(3);
  wrong->replay();
  EXPECT_TRUE(same_bits(row, numbers({4, 6})[1]));
  right->replay();
  EXPECT_TRUE(same_bits(row, numbers({4, 6})[3]));
  double factor = 2;
  const auto scaled = record([&] { row.mul_(factor); });
  factor = 10;
  scaled->replay();
  EXPECT_TRUE(same_bits(row, numbers({4, 6})[3] * 2));
}

TEST(FakeGraph, WaitingThrows) {
  const Tensor x = device(numbers({4, 6})), mask = x > 0;
  for (const auto& work : std::vector<std::function<void()>>{[&] { x.sum().item<float>(); }, [&] { x.cpu(); },
                                                             [&] {
                                                               x.copy_(numbers({4, 6}));
                                                             },
                                                             [&] { mask.nonzero(); }, [&] { x.index({mask}); },
                                                             [&] { at::equal(x, x); }}) {
    EXPECT_NE(refusal([&] { record(work); }).find("waits for the device"), std::string::npos);
    EXPECT_EQ(refusal(work), "") << "fine at other times, and after a recording that failed";
  }
}

TEST(FakeGraph, Memory) {
  use_fake_accelerator();
  reset_fake_statistics();
  const uint64_t before = fake_statistics().used_bytes;
  std::optional<Tensor> x = device(numbers({1024}));
  Tensor result;
  auto graph = record([&] { result = (*x * 2 + 1).exp(); });  // what was between stays the graph's
  EXPECT_EQ(fake_statistics().used_bytes, before + 4 * 4096);
  graph->replay();
  EXPECT_TRUE(same_bits(result, (numbers({1024}) * 2 + 1).exp()));
  result = Tensor();
  EXPECT_EQ(refusal([&] { graph->replay(); }), "") << "its own memory lives as long as the graph";
  x.reset();
  EXPECT_NE(refusal([&] { graph->replay(); }).find("no longer there"), std::string::npos)
      << "what it was given does not";
  graph.reset();
  EXPECT_EQ(fake_statistics().used_bytes, before);
}

TEST(FakeGraph, Backward) {
  const Tensor weight = device(numbers({3, 6})).requires_grad_(), x = device(numbers({4, 6}));
  weight.mutable_grad() = at::zeros_like(weight);
  const auto graph = record([&] { at::silu(at::linear(x, weight)).sum().backward(); });
  EXPECT_TRUE(same_bits(weight.grad(), at::zeros({3, 6})));
  graph->replay();
  const Tensor on_cpu = numbers({3, 6}).requires_grad_();
  at::silu(at::linear(numbers({4, 6}), on_cpu)).sum().backward();
  EXPECT_TRUE(same_bits(weight.grad(), on_cpu.grad()));
}

}  // namespace
}  // namespace qalora::test
