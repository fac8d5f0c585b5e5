// matvec and matmul at the sizes of real layers, each against the weight that the device itself dequantises to f32 and
// LibTorch's product in double precision. tests/cuda proves the same kernels value by value, at sizes that the host can
// run.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "qalora/tensor/accelerator.h"

namespace qalora::tensor {
namespace {

using kernels::cuda::Api;
using kernels::cuda::Panel;
using kernels::cuda::TiledShape;
using kernels::cuda::TiledView;
using kernels::cuda::Type;

const c10::Device kDevice(c10::DeviceType::CUDA, 0);

at::TensorOptions options(at::ScalarType dtype) { return at::TensorOptions().dtype(dtype).device(kDevice); }
// In (-1, 1).
at::Tensor uniform(at::IntArrayRef shape) { return at::rand(shape, options(at::kFloat)) * 2 - 1; }

// Random codes, scales and offsets, packed as in a checkpoint and in lane order.
struct Weight {
  const Api& api;
  TiledShape shape;
  at::Tensor packed, scales, offsets;  // [out, words], [out, groups], [out, groups]
  at::Tensor lane_codes, lane_scales, lane_offsets;

  Weight(const Api& api, const TiledShape& shape)
      : api(api),
        shape(shape),
        packed(at::randint(-2147483648LL, 2147483648LL,
                           {shape.out_features, kernels::words_per_row(shape.in_features, shape.bits)},
                           options(at::kInt))),
        scales(0.02 * uniform({shape.out_features, shape.groups()})),
        // As a quantiser makes them: b_c = b + s * c is small.
        offsets(0.02 * uniform({shape.out_features, shape.groups()}) - centre() * scales),
        lane_codes(at::empty({shape.code_words()}, options(at::kInt))),
        lane_scales(at::empty({shape.group_floats()}, options(at::kFloat))),
        lane_offsets(at::empty({shape.group_floats()}, options(at::kFloat))) {
    repack();
  }

  double centre() const { return 1 << (shape.bits - 1); }
  TiledView view() const {
    return {shape, static_cast<const uint32_t*>(lane_codes.data_ptr()), lane_scales.data_ptr<float>(),
            lane_offsets.data_ptr<float>()};
  }
  void repack() {
    const kernels::PackedView from{static_cast<const uint32_t*>(packed.data_ptr()),
                                   scales.data_ptr<float>(),
                                   offsets.data_ptr<float>(),
                                   shape.out_features,
                                   shape.in_features,
                                   shape.group_size,
                                   shape.bits};
    check_status(api.repack(from, static_cast<uint32_t*>(lane_codes.data_ptr()), lane_scales.data_ptr<float>(),
                            lane_offsets.data_ptr<float>(), current_stream(kDevice)),
                 "repack");
  }
  // [out, in] f64 of the f32 weights
  at::Tensor dense() const {
    const at::Tensor result = at::empty({shape.out_features, shape.in_features}, options(at::kFloat));
    check_status(api.dequantize(view(), 0, shape.out_features, Panel::kWhole, Type::kFloat, result.data_ptr(),
                                shape.in_features, current_stream(kDevice)),
                 "dequantize");
    return result.to(at::kDouble);
  }
};

struct Activations {
  Type type;
  at::Tensor x, sums, sizes;  // [rows, in] of `type`; of each group the sum, f32, and the sum of absolute values, f64

  Activations(const TiledShape& shape, int64_t rows, Type type)
      : type(type),
        x(uniform({rows, shape.in_features}).to(type == Type::kHalf ? at::kHalf : at::kBFloat16)) {
    const at::Tensor groups = x.to(at::kFloat).reshape({rows, shape.groups(), shape.group_size});
    sums = groups.sum(-1);
    sizes = groups.abs().sum(-1, /*keepdim=*/false, at::kDouble);
  }
  int64_t rows() const { return x.size(0); }
};

// [rows, out] f32, NaN where the kernel writes nothing.
at::Tensor multiply(const Weight& weight, const Activations& a, int multiprocessors) {
  const TiledShape& shape = weight.shape;
  const at::Tensor y = at::full({a.rows(), shape.out_features}, NAN, options(at::kFloat));
  if (a.rows() <= 8) {
    check_status(weight.api.matvec(weight.view(), a.x.data_ptr(), shape.in_features, a.type, a.sums.data_ptr<float>(),
                                   a.rows(), y.data_ptr(), shape.out_features, Type::kFloat, current_stream(kDevice)),
                 "matvec");
    return y;
  }
  const int64_t bytes = weight.api.matmul_workspace_bytes(shape, a.rows(), multiprocessors);
  const at::Tensor workspace = at::empty({std::max<int64_t>(bytes, 1)}, options(at::kByte));
  check_status(weight.api.matmul(weight.view(), a.x.data_ptr(), shape.in_features, a.type, a.sums.data_ptr<float>(),
                                 a.rows(), y.data_ptr(), shape.out_features, Type::kFloat,
                                 bytes > 0 ? workspace.data_ptr() : nullptr, multiprocessors, current_stream(kDevice)),
               "matmul");
  return y;
}

// How far y may be from the double-precision product of the f32 weights, [rows, out]. In units of 2^-23, for tensor
// cores may cut where fp32 rounds: a term s (q - c) x or b_c sum goes through at most 40 + in / 32 additions (two sums
// of 16 to a block of 32 inputs, all blocks, the parts, the zero term's own three sums); the sum of up to 128 inputs
// that is given adds 8, and b_c itself 1. The f32 weight, s q + b, has two roundings of half a unit each. matmul cuts
// b_c and the sum to two bf16 halves: 2^-17 of each, and the product of the low halves, 2^-16.
at::Tensor tolerance(const Weight& weight, const Activations& a) {
  const at::Tensor s = weight.scales.to(at::kDouble), b = weight.offsets.to(at::kDouble),
                   centred = (b + s * weight.centre()).abs();
  const double roundings = 49 + static_cast<double>(weight.shape.in_features) / 32;
  const at::Tensor terms =
      roundings * (s.abs() * weight.centre() + centred) + s.abs() * (2 * weight.centre()) + b.abs();
  const at::Tensor rounding = 0x1p-23 * at::matmul(a.sizes, terms.t());
  if (a.rows() <= 8) return rounding;
  return rounding + 0x1p-15 * at::matmul(a.sums.to(at::kDouble).abs(), centred.t());
}

// Elements further from what is expected than they may be; NaN counts.
at::Tensor wrong(const at::Tensor& y, const at::Tensor& expected, const at::Tensor& allowed) {
  return (y.to(at::kDouble) - expected).abs().le(allowed).logical_not();
}

void check_product(Weight& weight, const at::Tensor& dense, int64_t rows, Type type, int multiprocessors) {
  const Activations a(weight.shape, rows, type);
  const at::Tensor expected = at::matmul(a.x.to(at::kDouble), dense.t()), allowed = tolerance(weight, a);
  const at::Tensor y = multiply(weight, a, multiprocessors);
  EXPECT_EQ(wrong(y, expected, allowed).sum().item<int64_t>(), 0)
      << "worst " << (y - expected).abs().div(allowed).max().item<double>();
  EXPECT_TRUE(at::equal(y, multiply(weight, a, multiprocessors))) << "a second run has other bits";

  // One offset more by 1: its row of W alone differs, and is wrong for the token whose sum of that group is far from 0.
  const int64_t out = weight.shape.out_features * 2 / 3, group = a.sums[0].abs().argmax().item<int64_t>();
  const at::Tensor offsets = weight.offsets.clone();
  weight.offsets[out][group].add_(1);
  weight.repack();
  const at::Tensor other = multiply(weight, a, multiprocessors);
  weight.offsets = offsets;
  weight.repack();
  EXPECT_TRUE(wrong(other, expected, allowed)[0][out].item<bool>()) << "an offset does not count";
  other.select(1, out).copy_(y.select(1, out));
  EXPECT_TRUE(at::equal(other, y)) << "an offset counts in other rows of W";
}

struct Size {
  int64_t out_features, in_features, group_size;
};

class Products : public testing::TestWithParam<Size> {};

TEST_P(Products, AreThoseOfTheDequantisedWeight) {
  std::string problem;
  const Accelerator* const cuda = load_cuda(&problem);
  if (cuda == nullptr) GTEST_SKIP() << "no GPU here: " << problem;
  at::manual_seed(1);
  const int multiprocessors = cuda->properties(0).multiprocessors;
  for (const int bits : {2, 3, 4}) {
    Weight weight(*device_kernels(kDevice),
                  {GetParam().out_features, GetParam().in_features, GetParam().group_size, bits});
    const at::Tensor dense = weight.dense();
    for (const int64_t rows : {1, 8, 16, 64, 128, 256}) {
      for (const Type type : {Type::kBFloat16, Type::kHalf}) {
        SCOPED_TRACE(std::to_string(bits) + " bits, " + std::to_string(rows) + " rows of " +
                     (type == Type::kHalf ? "fp16" : "bf16"));
        check_product(weight, dense, rows, type, multiprocessors);
      }
    }
  }
}

// A Llama's projections: 7B, 70B.
INSTANTIATE_TEST_SUITE_P(Layers, Products,
                         testing::Values(Size{8192, 8192, 32}, Size{28672, 8192, 128}, Size{4096, 11008, 32},
                                         Size{22016, 4096, 64}));

}  // namespace
}  // namespace qalora::tensor
