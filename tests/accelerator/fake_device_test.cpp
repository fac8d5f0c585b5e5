// The fake accelerator itself: an operator on it gives the CPU's bits, and what a GPU would refuse, it refuses.
#include "support/fake_device.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "accelerator/support.h"
#include "qalora/tensor/accelerator.h"

namespace qalora::test {
namespace {

using at::Tensor;
using Operation = std::function<Tensor(const std::vector<Tensor>&)>;

// `operation` on the device gives what it gives on the CPU, without a copy between the two.
void expect_as_on_cpu(const std::string& name, const std::vector<Tensor>& inputs, const Operation& operation) {
  SCOPED_TRACE(name);
  std::vector<Tensor> copies, on_device;
  for (const Tensor& input : inputs) copies.push_back(input.clone()), on_device.push_back(device(input));
  reset_fake_statistics();
  const Tensor got = operation(on_device);
  const FakeStatistics statistics = fake_statistics();
  EXPECT_EQ(statistics.copies_to_device, 0u);
  EXPECT_EQ(statistics.copies_to_host, name == "nonzero" ? 1u : 0u);
  EXPECT_GT(statistics.operators, 0u);
  EXPECT_EQ(got.device(), use_fake_accelerator());
  const Tensor expected = operation(copies);
  EXPECT_EQ(got.sizes(), expected.sizes());
  EXPECT_EQ(got.strides(), expected.strides());
  EXPECT_TRUE(same_bits(got, expected));
  // What the operator wrote into its arguments is there, too.
  for (size_t i = 0; i < inputs.size(); ++i) EXPECT_TRUE(same_bits(on_device[i], copies[i])) << "argument " << i;
}

TEST(FakeDevice, IsAnAccelerator) {
  const c10::Device fake = use_fake_accelerator();
  EXPECT_EQ(use_fake_accelerator(), fake);
  EXPECT_EQ(fake.str(), "fake:0");
  const tensor::Accelerator* accelerator = tensor::accelerator();
  ASSERT_NE(accelerator, nullptr);
  EXPECT_EQ(accelerator->type, fake.type());
  EXPECT_EQ(accelerator->count(), 1);
  EXPECT_EQ(accelerator->properties(0).architecture, 90);
  EXPECT_EQ(accelerator->current_stream(0), nullptr);
}

TEST(FakeDevice, Arithmetic) {
  const Tensor x = numbers({3, 8}), y = numbers({3, 8}).flip(0);
  expect_as_on_cpu("add", {x, y}, [](const auto& t) { return t[0] + t[1]; });
  expect_as_on_cpu("scalar", {x}, [](const auto& t) { return t[0] * 0.3 - 1; });
  expect_as_on_cpu("bf16 and a number stay bf16", {x.to(c10::kBFloat16)}, [](const auto& t) { return t[0] * 0.3; });
  expect_as_on_cpu("promotion", {x, y.to(c10::kDouble)}, [](const auto& t) { return t[0] / t[1]; });
  expect_as_on_cpu("broadcast", {x, numbers({8})}, [](const auto& t) { return t[0] * t[1]; });
  expect_as_on_cpu("lerp", {x, y}, [](const auto& t) { return at::lerp(t[0], t[1], 0.25); });
  expect_as_on_cpu("addcmul", {x, y}, [](const auto& t) { return at::addcmul(t[0], t[1], t[1], 0.5); });
  expect_as_on_cpu("addcdiv", {x, y}, [](const auto& t) { return at::addcdiv(t[0], t[1], t[1] + 3, 0.5); });
  expect_as_on_cpu("silu", {x}, [](const auto& t) { return at::silu(t[0]); });
  expect_as_on_cpu("sum", {x}, [](const auto& t) { return t[0].sum(); });
  expect_as_on_cpu("mean of a dimension", {x}, [](const auto& t) { return t[0].mean(1, true); });
  expect_as_on_cpu("norm", {x}, [](const auto& t) { return t[0].norm(); });
  expect_as_on_cpu("log_softmax", {x}, [](const auto& t) { return at::log_softmax(t[0], -1); });
  expect_as_on_cpu("logsumexp", {x}, [](const auto& t) { return at::logsumexp(t[0], -1); });
  expect_as_on_cpu("isfinite", {x}, [](const auto& t) { return t[0].isfinite().all(); });
  expect_as_on_cpu("tril", {x}, [](const auto& t) { return t[0].tril(); });
}

TEST(FakeDevice, Products) {
  for (const auto dtype : {c10::kFloat, c10::kBFloat16, c10::kHalf}) {
    const Tensor x = numbers({5, 32}, dtype), w = numbers({7, 32}, dtype), bias = numbers({7}, dtype);
    expect_as_on_cpu("mm", {x, w}, [](const auto& t) { return t[0].mm(t[1].t()); });
    expect_as_on_cpu("matmul", {x.unsqueeze(0), w}, [](const auto& t) { return t[0].matmul(t[1].t()); });
    expect_as_on_cpu("addmm", {bias, x, w}, [](const auto& t) { return at::addmm(t[0], t[1], t[2].t()); });
    expect_as_on_cpu("addmm_", {numbers({5, 7}, dtype), x, w},
                     [](const auto& t) { return t[0].addmm_(t[1], t[2].t(), 0.5, 2); });
    expect_as_on_cpu("linear", {x, w, bias}, [](const auto& t) { return at::linear(t[0], t[1], t[2]); });
    expect_as_on_cpu("bmm", {x.view({1, 5, 32}), w.view({1, 7, 32})},
                     [](const auto& t) { return t[0].bmm(t[1].transpose(1, 2)); });
  }
}

TEST(FakeDevice, Indices) {
  const Tensor x = numbers({6, 8}), rows = at::tensor({4, 0, 4}, c10::kLong),
               columns = at::tensor({7, 1, 2, 2, 0, 5}, c10::kLong).view({6, 1});
  expect_as_on_cpu("index_select", {x, rows}, [](const auto& t) { return t[0].index_select(0, t[1]); });
  expect_as_on_cpu("embedding", {x, rows}, [](const auto& t) { return at::embedding(t[0], t[1]); });
  expect_as_on_cpu("gather", {x, columns}, [](const auto& t) { return t[0].gather(1, t[1]); });
  expect_as_on_cpu("scatter", {x, columns, numbers({6, 1})}, [](const auto& t) { return t[0].scatter(1, t[1], t[2]); });
  expect_as_on_cpu("scatter_add_", {x, columns, numbers({6, 1})},
                   [](const auto& t) { return t[0].scatter_add_(1, t[1], t[2]); });
  expect_as_on_cpu("index", {x, rows}, [](const auto& t) { return t[0].index({t[1]}); });
  expect_as_on_cpu("index_put_", {x, rows, numbers({8})},
                   [](const auto& t) { return Tensor(t[0]).index_put_({t[1]}, t[2], true); });
  expect_as_on_cpu("index_add_", {x, rows, numbers({3, 8})},
                   [](const auto& t) { return Tensor(t[0]).index_add_(0, t[1], t[2]); });
  expect_as_on_cpu("masked_fill", {x}, [](const auto& t) { return t[0].masked_fill(t[0] > 0, -1); });
  expect_as_on_cpu("where", {x}, [](const auto& t) { return at::where(t[0] > 0, t[0], at::zeros_like(t[0])); });
  expect_as_on_cpu("argmax", {x}, [](const auto& t) { return t[0].argmax(1); });
  expect_as_on_cpu("topk", {x}, [](const auto& t) { return std::get<0>(t[0].topk(3, 1)); });
  expect_as_on_cpu("sort", {x}, [](const auto& t) { return std::get<1>(t[0].sort(-1, true)); });
  expect_as_on_cpu("nonzero", {x}, [](const auto& t) { return (t[0] > 0).nonzero(); });
  expect_as_on_cpu("cumsum", {x}, [](const auto& t) { return t[0].cumsum(1); });
  expect_as_on_cpu("cat", {x, x + 1}, [](const auto& t) { return at::cat({t[0], t[1]}, 1); });
  expect_as_on_cpu("stack", {x, x + 1}, [](const auto& t) { return at::stack({t[0], t[1]}); });
}

TEST(FakeDevice, Views) {
  const Tensor x = device(numbers({4, 6}));
  const void* data = x.data_ptr();
  for (const Tensor& view :
       {x.view({6, 4}), x.t(), x.narrow(0, 0, 2), x.reshape({2, 2, 6}), x.unsqueeze(0), x.expand({3, 4, 6}), x.detach(),
        x.view(c10::kInt), x.unfold(1, 2, 2), x.unbind(0)[0], x.split(2, 1)[0]}) {
    EXPECT_EQ(view.data_ptr(), data);
    EXPECT_TRUE(view.is_alias_of(x));
  }
  x.narrow(1, 2, 2).fill_(5);
  x.t()[0].mul_(2);
  Tensor expected = numbers({4, 6});
  expected.narrow(1, 2, 2).fill_(5);
  expected.t()[0].mul_(2);
  EXPECT_TRUE(same_bits(x, expected));
  EXPECT_FALSE(same_bits(x, numbers({4, 6})));
}

TEST(FakeDevice, InPlaceAndOut) {
  Tensor x = device(numbers({4, 6}));
  EXPECT_TRUE(x.add_(1).is_same(x));
  EXPECT_TRUE(same_bits(x, numbers({4, 6}) + 1));
  EXPECT_TRUE(x.zero_().is_same(x));
  EXPECT_TRUE(same_bits(x, at::zeros({4, 6})));

  Tensor out = device(at::empty({0}));  // grows
  EXPECT_TRUE(at::mul_out(out, device(numbers({2, 3})), device(numbers({2, 3}))).is_same(out));
  EXPECT_TRUE(same_bits(out, numbers({2, 3}) * numbers({2, 3})));
  const void* before = out.data_ptr();
  at::mm_out(out, device(numbers({2, 4})), device(numbers({4, 3})));  // stays
  EXPECT_EQ(out.data_ptr(), before);
  EXPECT_TRUE(same_bits(out, numbers({2, 4}).mm(numbers({4, 3}))));
  Tensor rows = device(at::zeros({4, 3})), part = rows.narrow(0, 2, 2);
  at::mm_out(part, device(numbers({2, 4})), device(numbers({4, 3})));  // into a view
  EXPECT_TRUE(same_bits(rows.narrow(0, 2, 2), numbers({2, 4}).mm(numbers({4, 3}))));
  EXPECT_TRUE(same_bits(rows.narrow(0, 0, 2), at::zeros({2, 3})));

  out.resize_({3, 5}).fill_(2);
  EXPECT_TRUE(same_bits(out, at::full({3, 5}, 2.f)));
  Tensor other = device(at::empty({0}));
  other.set_(out.storage(), 1, {2, 2}, {5, 1});
  out[0][1] = 7;
  EXPECT_EQ(other[0][0].item<float>(), 7);
  Tensor third = device(at::empty({0}));
  third.set_(other);
  EXPECT_TRUE(third.is_alias_of(out));
}

TEST(FakeDevice, Copies) {
  const Tensor x = numbers({4, 6});
  reset_fake_statistics();
  const Tensor there = device(x);
  EXPECT_EQ(fake_statistics().copies_to_device, 1u);
  EXPECT_EQ(fake_statistics().copied_bytes, 4u * 6 * 4);
  EXPECT_TRUE(at::equal(there.cpu(), x));
  EXPECT_EQ(fake_statistics().copies_to_host, 1u);
  EXPECT_TRUE(at::equal(there.to(c10::kDouble).cpu(), x.to(c10::kDouble)));
  EXPECT_TRUE(at::equal(device(x.t()).cpu(), x.t()));
  EXPECT_TRUE(same_bits(there.t().contiguous(), x.t()));
  Tensor host = at::zeros({6, 4});
  host.t().copy_(there);  // into a view of the CPU's, from the device
  EXPECT_TRUE(at::equal(host.t(), x));
  there.narrow(0, 1, 2).copy_(at::ones({6}));  // broadcast, from the CPU
  EXPECT_EQ(there.sum().item<float>(),
            at::cat({x.narrow(0, 0, 1), at::ones({2, 6}), x.narrow(0, 3, 1)}).sum().item<float>());
  EXPECT_TRUE(same_bits(there.clone(), there));
  EXPECT_FALSE(there.clone().is_alias_of(there));
  const uint64_t before = fake_statistics().copies_to_host;
  EXPECT_EQ(there[1][0].item<float>(), 1);
  EXPECT_TRUE((there[1][0] == 1).item<bool>());
  EXPECT_EQ(fake_statistics().copies_to_host, before + 2);
}

TEST(FakeDevice, FreshMemoryIsNotANumber) {
  const auto options = at::TensorOptions().device(use_fake_accelerator());
  EXPECT_TRUE(at::empty({5}, options.dtype(c10::kBFloat16)).isnan().all().item<bool>());
  EXPECT_TRUE(at::empty_strided({2, 3}, {1, 2}, options).isnan().all().item<bool>());
  EXPECT_TRUE(same_bits(at::zeros({5}, options), at::zeros({5})));
  EXPECT_TRUE(same_bits(at::arange(5, options), at::arange(5)));
  EXPECT_TRUE(same_bits(at::full({2}, 3, options.dtype(c10::kLong)), at::full({2}, 3, c10::kLong)));
}

TEST(FakeDevice, MixturesThrow) {
  const Tensor cpu = numbers({4, 4}), fake = device(cpu), rows = at::tensor({1, 0}, c10::kLong);
  // Each with its operator's name; the same on one side passes.
  const struct {
    const char* name;
    std::function<void(const Tensor&, const Tensor&)> work;
  } cases[] = {
      {"aten::add", [](const Tensor& a, const Tensor& b) { return a + b; }},
      {"aten::mm", [](const Tensor& a, const Tensor& b) { return a.matmul(b); }},
      {"aten::mul_", [](const Tensor& a, const Tensor& b) { return a.clone().mul_(b); }},
      {"aten::cat",
       [](const Tensor& a, const Tensor& b) {
         return at::cat({a, b});
       }},
      {"aten::where", [](const Tensor& a, const Tensor& b) { return at::where(a > 0, a, b); }},
      {"aten::equal", [](const Tensor& a, const Tensor& b) { return at::equal(a, b) ? a : b; }},
      {"aten::addmm", [](const Tensor& a, const Tensor& b) { return at::addmm(a[0], a, b); }},
      {"aten::bmm", [](const Tensor& a, const Tensor& b) { return a.unsqueeze(0).bmm(b.unsqueeze(0)); }},
      {"aten::mul",
       [](const Tensor& a, const Tensor& b) {
         Tensor out = at::empty_like(a);
         return at::mul_out(out, b, b);
       }},
      {"aten::masked_fill_", [](const Tensor& a, const Tensor& b) { return a.clone().masked_fill_(b > 0, 1); }},
      {"aten::lerp", [](const Tensor& a, const Tensor& b) { return at::lerp(a, b, 0.5); }},
  };
  for (const auto& [name, work] : cases) {
    for (const auto& [a, b] : {std::pair(cpu, fake), std::pair(fake, cpu)}) {
      const std::string said = refusal([&] { work(a, b); });
      EXPECT_NE(said.find(std::string(name) + ": expected all tensors on the fake device"), std::string::npos)
          << name << ": " << said;
    }
    EXPECT_EQ(refusal([&] { work(cpu, cpu); }), "");
    EXPECT_EQ(refusal([&] { work(fake, fake); }), "");
  }
  EXPECT_NE(refusal([&] { fake.index_select(0, rows); }), "");
  EXPECT_NE(refusal([&] { at::embedding(fake, rows); }), "");
  EXPECT_NE(refusal([&] { fake.gather(0, rows.view({2, 1})); }), "");
  EXPECT_NE(refusal([&] { at::index(fake, {rows}); }).find("aten::index: expected all"), std::string::npos);
  EXPECT_NE(refusal([&] { at::index(cpu, {device(rows)}); }).find("aten::index: expected all"), std::string::npos);
  EXPECT_NE(refusal([&] { fake.clone().index_put_({rows}, fake[0]); }), "");
  EXPECT_EQ(refusal([&] { fake.index_select(0, device(rows)); }), "");
  EXPECT_EQ(refusal([&] { fake.clone().index_put_({device(rows)}, fake[0]); }), "");
}

TEST(FakeDevice, NumbersOfTheCpuAreTakenWhereCudaTakesThem) {
  const Tensor cpu = numbers({4, 4}), fake = device(cpu), number = at::scalar_tensor(0.3, c10::kFloat);
  EXPECT_TRUE(same_bits(fake + number, cpu + number));
  EXPECT_TRUE(same_bits(number / fake, number / cpu));
  EXPECT_TRUE(same_bits(fake.clone().mul_(number), cpu * number));
  EXPECT_TRUE(same_bits(at::where(fake > 0, fake, number), at::where(cpu > 0, cpu, number)));
  EXPECT_TRUE(same_bits(fake.masked_fill(fake > 0, number), cpu.masked_fill(cpu > 0, number)));
  EXPECT_TRUE(same_bits(at::lerp(fake, fake, number), at::lerp(cpu, cpu, number)));
  Tensor written = number.clone();
  EXPECT_NE(refusal([&] { written.add_(device(number)); }), "") << "a CPU tensor is no place for the device's results";
  EXPECT_NE(refusal([&] { fake.index_select(0, at::scalar_tensor(1, c10::kLong)); }), "");
  EXPECT_NE(refusal([&] { at::cat({fake[0], number.view({1})}); }), "");
  EXPECT_NE(refusal([&] { cpu + device(number); }), "") << "nor is a number of the device taken on the CPU";
}

TEST(FakeDevice, RefusesWhatCudaLacks) {
  const Tensor integers = at::ones({2, 2}, c10::kLong);
  EXPECT_NE(refusal([&] { device(integers).mm(device(integers)); }).find("multiplies no matrices of integers"),
            std::string::npos);
  EXPECT_EQ(refusal([&] { integers.mm(integers); }), "");
}

TEST(FakeDeviceDeathTest, HostAccess) {
  const Tensor cpu = numbers({4}), fake = device(cpu);
  const auto first = [](const Tensor& tensor) { return *static_cast<const volatile float*>(tensor.data_ptr()); };
  EXPECT_EQ(first(cpu), cpu[0].item<float>());
  EXPECT_DEATH(first(fake), "");
}

TEST(FakeDevice, Memory) {
  const auto options = at::TensorOptions().device(use_fake_accelerator());
  constexpr uint64_t kMiB = 1 << 20;
  reset_fake_statistics();
  const uint64_t before = fake_statistics().used_bytes;
  {
    const Tensor x = at::empty({kMiB / 4}, options);
    EXPECT_EQ(fake_statistics().used_bytes, before + kMiB);
    const Tensor y = x + 1;  // made by a CPU kernel
    EXPECT_EQ(fake_statistics().used_bytes, before + 2 * kMiB);
    const Tensor view = y.view({-1, 2});
    EXPECT_EQ(fake_statistics().used_bytes, before + 2 * kMiB);
    Tensor grown = at::empty({0}, options);
    at::cat_out(grown, {x, y});
    EXPECT_EQ(fake_statistics().used_bytes, before + 4 * kMiB);
  }
  const Tensor odd = at::empty({1}, options);
  EXPECT_EQ(fake_statistics().used_bytes, before + 512);
  EXPECT_EQ(fake_statistics().peak_bytes, before + 4 * kMiB);
  const tensor::AcceleratorMemory memory = tensor::accelerator()->memory(0);
  EXPECT_EQ(memory.peak, before + 4 * kMiB);
  EXPECT_EQ(memory.free, memory.total - before - 512);
}

TEST(FakeDevice, MemoryLimit) {
  const auto options = at::TensorOptions().device(use_fake_accelerator());
  constexpr uint64_t kMiB = 1 << 20;
  const Tensor x = at::zeros({kMiB / 4}, options);
  {
    const FakeMemoryLimit limit(fake_statistics().used_bytes + kMiB);
    EXPECT_THROW(at::empty({kMiB / 4 + 1}, options), c10::OutOfMemoryError);
    EXPECT_EQ(tensor::accelerator()->memory(0).free, kMiB);
    const Tensor y = x + 1;
    EXPECT_THROW(x + 1, c10::OutOfMemoryError);
    EXPECT_NE(
        refusal([&] { x + 1; }).find("FAKE out of memory. Tried to allocate 1 MiB. GPU 0 has a total capacity of"),
        std::string::npos);
    EXPECT_NO_THROW(x.add_(1));  // needs none
    EXPECT_TRUE(same_bits(x, y)) << "still usable";
  }
  EXPECT_NO_THROW(x + 1);
}

// ---- Autograd
// -------------------------------------------------------------------------------------------------------------------

struct Square : torch::autograd::Function<Square> {
  static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& x) {
    context->save_for_backward({x});
    return x * x;
  }
  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext* context,
                                               torch::autograd::tensor_list gradient) {
    return {gradient[0] * 2 * context->get_saved_variables()[0]};
  }
};

// Loss and gradients of a small network with an embedding, a norm, a gate, our own function and a cross entropy.
std::vector<Tensor> two_layers(const c10::Device& place, c10::ScalarType dtype) {
  const auto leaf = [&](c10::IntArrayRef sizes) { return numbers(sizes).to(place, dtype).requires_grad_(); };
  const Tensor table = leaf({11, 16}), first = leaf({24, 16}), gate = leaf({24, 16}), second = leaf({11, 24}),
               bias = leaf({11});
  const Tensor tokens = at::tensor({3, 10, 0, 3, 7}, c10::kLong).to(place),
               targets = at::tensor({1, 2, 0, 10, 4}, c10::kLong).to(place);
  const Tensor x = at::embedding(table, tokens);
  const Tensor normed = x * at::rsqrt(x.pow(2).mean(-1, true) + 1e-5);
  const Tensor hidden = at::silu(at::linear(normed, gate)) * at::linear(normed, first);
  const Tensor logits = at::linear(Square::apply(hidden), second, bias).to(c10::kFloat);
  const Tensor loss =
      -at::log_softmax(logits, -1).gather(1, targets.unsqueeze(1)).masked_fill(targets.unsqueeze(1) == 0, 0).sum() / 4;
  loss.backward();
  return {loss, table.grad(), first.grad(), gate.grad(), second.grad(), bias.grad()};
}

TEST(FakeDevice, AutogradGivesTheCpusBits) {
  for (const auto dtype : {c10::kFloat, c10::kBFloat16}) {
    const auto expected = two_layers(c10::Device(c10::DeviceType::CPU), dtype),
               got = two_layers(use_fake_accelerator(), dtype);
    for (size_t i = 0; i < got.size(); ++i) {
      EXPECT_EQ(got[i].device(), use_fake_accelerator());
      EXPECT_TRUE(same_bits(got[i], expected[i])) << i;
      EXPECT_GT(expected[i].abs().max().item<float>(), 0) << i;
    }
  }
}

TEST(FakeDevice, AutogradThroughViewsAndCopies) {
  const Tensor x = device(numbers({4, 6})).requires_grad_();
  Tensor y = x * 2;
  y.narrow(0, 1, 2).mul_(3);        // in place, through a view
  y.cpu().pow(2).sum().backward();  // across the devices
  Tensor expected = numbers({4, 6}) * 8;
  expected.narrow(0, 1, 2).mul_(9);
  EXPECT_EQ(x.grad().device(), use_fake_accelerator());
  EXPECT_TRUE(at::allclose(x.grad().cpu(), expected, 1e-6));  // four products of 2^-24 each
  const Tensor saved = device(numbers({3})).requires_grad_(), product = saved * saved;
  {
    const at::NoGradGuard no_gradient;
    Tensor(saved).add_(1);
  }
  EXPECT_NE(refusal([&] { product.sum().backward(); }).find("modified by an inplace operation"), std::string::npos);
}

TEST(FakeDevice, Attention) {
  const auto inputs = [](const c10::Device& place) {
    return std::vector<Tensor>{numbers({1, 4, 7, 8}).to(place).requires_grad_(),
                               numbers({1, 2, 7, 8}).to(place).requires_grad_(),
                               (numbers({1, 2, 7, 8}) + 1).to(place).requires_grad_()};
  };
  const auto results = [&](const c10::Device& place, bool causal, const std::optional<Tensor>& mask, bool math) {
    const auto t = inputs(place);
    const Tensor out = math ? std::get<0>(at::_scaled_dot_product_attention_math(t[0], t[1], t[2], mask, 0, causal,
                                                                                 std::nullopt, std::nullopt, true))
                            : at::scaled_dot_product_attention(t[0], t[1], t[2], mask, 0, causal, std::nullopt, true);
    out.pow(2).sum().backward();
    return std::vector<Tensor>{out.detach(), t[0].grad(), t[1].grad(), t[2].grad()};
  };
  const c10::Device cpu(c10::DeviceType::CPU), fake = use_fake_accelerator();
  // Added to the scores; the math function itself does not make one from booleans.
  const Tensor mask = at::zeros({7, 7}).masked_fill(numbers({7, 7}) < -0.9, -INFINITY);
  const auto plain = results(cpu, false, std::nullopt, true);
  for (const bool causal : {true, false}) {
    const auto given = causal ? std::nullopt : std::optional(mask);
    const auto expected = results(cpu, causal, given, true);
    const auto got = results(fake, causal, given ? std::optional(given->to(fake)) : std::nullopt, false);
    for (size_t i = 0; i < got.size(); ++i) {
      EXPECT_TRUE(same_bits(got[i], expected[i])) << i;
      EXPECT_FALSE(same_bits(got[i], plain[i])) << "the mask does nothing to " << i;
    }
  }
}

TEST(FakeDevice, FusedAdamW) {
  const auto step = [](const c10::Device& place) {
    std::vector<Tensor> weights{numbers({5, 3}).to(place), numbers({7}).to(place)},
        gradients{numbers({5, 3}).to(place) * 2, numbers({7}).to(place)};
    std::vector<Tensor> first, second, steps;
    for (const Tensor& weight : weights) {
      first.push_back(at::zeros_like(weight)), second.push_back(at::zeros_like(weight));
      steps.push_back(at::full({}, 1, weight.options()));
    }
    at::_fused_adamw_(weights, gradients, first, second, {}, steps, 0.1, 0.9, 0.999, 0.01, 1e-8, false, false);
    weights.insert(weights.end(), second.begin(), second.end());
    return weights;
  };
  const auto expected = step(c10::Device(c10::DeviceType::CPU)), got = step(use_fake_accelerator());
  for (size_t i = 0; i < got.size(); ++i) EXPECT_TRUE(same_bits(got[i], expected[i]));
  EXPECT_FALSE(same_bits(got[0], numbers({5, 3})));
}

TEST(FakeDevice, InferenceMode) {
  const c10::InferenceMode inference;
  const Tensor x = device(numbers({4, 6}));
  EXPECT_TRUE(same_bits(x.mm(x.t()).softmax(-1), numbers({4, 6}).mm(numbers({4, 6}).t()).softmax(-1)));
  EXPECT_TRUE(same_bits(Tensor(x).narrow(0, 1, 2).add_(1), numbers({4, 6}).narrow(0, 1, 2) + 1));
}

}  // namespace
}  // namespace qalora::test
