#include "qalora/quant/tiled_weight.h"

#include <ATen/ATen.h>

#include "qalora/core/error.h"
#include "qalora/kernels/cuda_table.h"
#include "qalora/tensor/accelerator.h"

namespace qalora::quant {

using kernels::cuda::Panel;
using tensor::check_status;
using tensor::current_stream;
using tensor::device_kernels;

namespace {

// How the device of this tensor multiplies so many rows with a weight of this shape.
kernels::cuda::Method method_of(const kernels::cuda::TiledShape& shape, int64_t rows, at::ScalarType dtype,
                                c10::Device device) {
  using namespace kernels::cuda;
  const int architecture = tensor::accelerator()->properties(device.index()).architecture;
  const Choice* choice = choose(Operation::kForward, shape, rows, kernel_type(dtype), architecture);
  QALORA_CHECK(choice != nullptr, "a kernel for ", rows, " rows on architecture ", architecture);
  return choice->method;
}

const kernels::cuda::Api& kernels_of(const at::Tensor& tensor) {
  const kernels::cuda::Api* kernels = device_kernels(tensor.device());
  QALORA_CHECK(kernels != nullptr, "kernels for tensors on ", tensor.device().str());
  return *kernels;
}

at::Tensor floats_like(const at::Tensor& like, int64_t count) {
  return at::empty({count}, like.options().dtype(at::kFloat));
}

// The input with its sums twice behind it, for a product with a concat_panel.
at::Tensor input_panel(const PooledInput& x, const kernels::cuda::TiledShape& shape) {
  if (x.panel.defined()) return x.panel;
  const int64_t tokens = x.values.size(0);
  const at::Tensor panel = empty_panel(tokens, shape.in_features, shape.groups(), x.values.options());
  panel.narrow(1, 0, shape.in_features).copy_(x.values);
  check_status(kernels_of(panel).pool(
                   panel.data_ptr(), panel.stride(0), kernel_type(panel.scalar_type()), tokens, shape.in_features,
                   {.sums = nullptr, .group_size = shape.group_size, .columns = true}, current_stream(panel.device())),
               "pool");
  return panel;
}

at::Tensor input_sums(const PooledInput& x, const kernels::cuda::TiledShape& shape) {
  return x.sums.defined() ? x.sums : pool_sums(x.values, shape.group_size);
}

// Rows as the kernels read them: one behind the other, each starting at 16 bytes.
at::Tensor aligned_rows(const at::Tensor& x) {
  const bool fits =
      x.stride(1) == 1 && x.stride(0) % 8 == 0 && reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0;
  return fits ? x : x.contiguous();
}

at::Tensor multiply_codes(const TiledWeight& weight, const PooledInput& input, const at::Tensor& offsets) {
  const at::Tensor x = aligned_rows(input.values), sums = input_sums(input, weight.shape).contiguous();
  const int64_t rows = x.size(0), out_features = weight.shape.out_features;
  const at::Tensor y = at::empty({rows, out_features}, x.options());
  const auto& kernels = kernels_of(x);
  const auto type = kernel_type(x.scalar_type());
  const auto stream = current_stream(x.device());
  const float* pooled = sums.const_data_ptr<float>();
  if (method_of(weight.shape, rows, x.scalar_type(), x.device()) == kernels::cuda::Method::kMatvec) {
    check_status(kernels.matvec(weight.view(offsets), x.const_data_ptr(), x.stride(0), type, pooled, rows, y.data_ptr(),
                                out_features, type, stream),
                 "matvec");
    return y;
  }
  const int multiprocessors = tensor::accelerator()->properties(x.device().index()).multiprocessors;
  const int64_t bytes = kernels.matmul_workspace_bytes(weight.shape, rows, multiprocessors);
  const at::Tensor workspace = at::empty({bytes}, x.options().dtype(at::kByte));
  check_status(kernels.matmul(weight.view(offsets), x.const_data_ptr(), x.stride(0), type, pooled, rows, y.data_ptr(),
                              out_features, type, bytes > 0 ? workspace.data_ptr() : nullptr, multiprocessors, stream),
               "matmul");
  return y;
}

}  // namespace

kernels::cuda::Type kernel_type(at::ScalarType dtype) {
  QALORA_CHECK(dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf, "a kernel for ",
               c10::toString(dtype));
  return dtype == at::kFloat  ? kernels::cuda::Type::kFloat
         : dtype == at::kHalf ? kernels::cuda::Type::kHalf
                              : kernels::cuda::Type::kBFloat16;
}

at::Tensor empty_panel(int64_t rows, int64_t in_features, int64_t groups, const at::TensorOptions& options) {
  const int64_t width = in_features + 2 * groups;
  return at::empty({rows, (width + 7) / 8 * 8}, options).narrow(1, 0, width);
}

bool TiledWeight::wants_panel(int64_t tokens, at::ScalarType dtype) const {
  return dtype != at::kFloat && method_of(shape, tokens, dtype, scales.device()) == kernels::cuda::Method::kPanel;
}

kernels::cuda::TiledView TiledWeight::view(const at::Tensor& these_offsets) const {
  return {shape, reinterpret_cast<const uint32_t*>(codes.const_data_ptr<int32_t>()), scales.const_data_ptr<float>(),
          these_offsets.const_data_ptr<float>()};
}

at::Tensor TiledWeight::folded(const at::Tensor& a, const at::Tensor& b, double scaling) const {
  const at::Tensor result = floats_like(offsets, shape.group_floats());
  const at::Tensor first = a.contiguous(), second = b.contiguous();
  check_status(kernels_of(result).fold(shape, offsets.const_data_ptr<float>(), first.const_data_ptr<float>(),
                                       second.const_data_ptr<float>(), first.size(0), static_cast<float>(scaling),
                                       result.data_ptr<float>(), current_stream(result.device())),
               "fold");
  return result;
}

at::Tensor TiledWeight::dequantize(at::ScalarType dtype, const at::Tensor& these_offsets) const {
  const at::Tensor out = at::empty({shape.out_features, shape.in_features}, scales.options().dtype(dtype));
  check_status(kernels_of(out).dequantize(view(these_offsets), 0, shape.out_features, Panel::kWhole, kernel_type(dtype),
                                          out.data_ptr(), shape.in_features, current_stream(out.device())),
               "dequantize");
  return out;
}

at::Tensor TiledWeight::multiply(const PooledInput& x, const at::Tensor& these_offsets) const {
  const at::ScalarType dtype = x.values.scalar_type();
  if (dtype == at::kFloat) return x.values.matmul(dequantize(dtype, these_offsets).t());
  if (!wants_panel(x.values.size(0), dtype)) return multiply_codes(*this, x, these_offsets);
  return multiply_panel(x, panel(dtype, these_offsets));
}

at::Tensor TiledWeight::panel(at::ScalarType dtype, const at::Tensor& these_offsets) const {
  const at::Tensor out =
      empty_panel(shape.out_features, shape.in_features, shape.groups(), scales.options().dtype(dtype));
  check_status(
      kernels_of(out).dequantize(view(these_offsets), 0, shape.out_features, Panel::kConcat, kernel_type(dtype),
                                 out.data_ptr(), out.stride(0), current_stream(out.device())),
      "dequantize");
  return out;
}

at::Tensor TiledWeight::multiply_panel(const PooledInput& x, const at::Tensor& weight_panel) const {
  return input_panel(x, shape).matmul(weight_panel.t());
}

TiledWeight tile(const std::string& name, const PackedWeight& weight, c10::Device device) {
  TiledWeight result;
  result.shape = {weight.out_features(), weight.in_features, weight.group_size, weight.bits};
  QALORA_REQUIRE(
      kernels::cuda::supports(result.shape), UserError, name, ": ", weight.bits, " bits with groups of ",
      weight.group_size, " of ", weight.in_features,
      " inputs run on the CPU only; the GPU takes 2, 3 and 4 bits and groups (and inputs) that are multiples of 32. "
      "Use --device cpu");
  const at::Tensor codes = weight.codes.to(device), scales = weight.scales.to(device),
                   offsets = weight.offsets.to(device);
  result.codes = at::empty({result.shape.code_words()}, codes.options());
  result.scales = floats_like(codes, result.shape.group_floats());
  result.offsets = floats_like(codes, result.shape.group_floats());
  PackedWeight moved = weight;
  moved.codes = codes, moved.scales = scales, moved.offsets = offsets;
  check_status(kernels_of(codes).repack(moved.view(), reinterpret_cast<uint32_t*>(result.codes.data_ptr<int32_t>()),
                                        result.scales.data_ptr<float>(), result.offsets.data_ptr<float>(),
                                        current_stream(device)),
               "repack");
  return result;
}

at::Tensor to_lane_order(const TiledWeight& weight, const at::Tensor& offsets) {
  // A product with rank `groups`: 0 + 1 * (offsets . identity), exact because every other term is 0.
  const at::Tensor rows = offsets.to(weight.scales.device(), at::kFloat);
  TiledWeight empty = weight;
  empty.offsets = at::zeros_like(weight.offsets);
  return empty.folded(at::eye(rows.size(1), rows.options()), rows, 1.0);
}

}  // namespace qalora::quant
