#include "qalora/quant/packed_weight.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>

#include "qalora/core/error.h"
#include "qalora/io/input_order.h"

namespace qalora::quant {
namespace {

// tensor: [out_features, groups] in a float dtype -> f32, finite
at::Tensor checked_floats(const std::string& name, const char* part, const at::Tensor& tensor, at::IntArrayRef shape) {
  const auto type = tensor.scalar_type();
  QALORA_REQUIRE(type == at::kFloat || type == at::kHalf || type == at::kBFloat16, DataError, name, ": ", part, " are ",
                 c10::toString(type), ", expected float32, float16 or bfloat16");
  QALORA_REQUIRE(tensor.sizes() == shape, DataError, name, ": ", part, " have shape ", tensor.sizes(), ", expected ",
                 shape);
  at::Tensor widened = tensor.to(at::kFloat).contiguous();
  const at::Tensor bad = at::isfinite(widened).logical_not();
  if (bad.any().item<bool>()) {
    const int64_t first = bad.flatten().to(at::kByte).argmax().item<int64_t>();
    throw DataError(
        message(name, ": ", part, " of row ", first / shape[1], ", group ", first % shape[1], " is not finite"));
  }
  return widened;
}

// Up to here the weights are read straight from their codes; above, unpacking them once for all tokens is cheaper.
constexpr int64_t kMatvecTokens = 4;

// Rows of `packed` as a dense matrix [out_features, in_features], by all threads.
at::Tensor dense_rows(const kernels::PackedView& packed, at::ScalarType dtype) {
  QALORA_CHECK(dtype == at::kFloat || dtype == at::kBFloat16, "dequantising to ", c10::toString(dtype));
  const at::Tensor dense = at::empty({packed.out_features, packed.in_features}, at::dtype(dtype));
  void* out = dense.data_ptr();
  const int64_t grain =
      std::max<int64_t>(1, 32768 / std::max<int64_t>(1, packed.in_features));  // a thread's start is worth some rows
  at::parallel_for(0, packed.out_features, grain, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * packed.in_features;
    const kernels::Status status =
        dtype == at::kFloat ? kernels::dequantize_rows(packed, begin, end, static_cast<float*>(out) + first)
                            : kernels::dequantize_rows_bf16(packed, begin, end, static_cast<uint16_t*>(out) + first);
    QALORA_CHECK(status == kernels::Status::kOk, "dequantising rows ", begin, " to ", end, " of [", packed.out_features,
                 ", ", packed.in_features, "], bits ", packed.bits, ", group size ", packed.group_size);
  });
  return dense;
}

// x: [tokens, in_features] f32 -> [tokens, out_features] f32
at::Tensor matvec(const kernels::PackedView& packed, const at::Tensor& x) {
  const at::Tensor inputs = x.contiguous(), y = at::empty({x.size(0), packed.out_features}, at::kFloat);
  const int64_t grain = std::max<int64_t>(1, 131072 / std::max<int64_t>(1, packed.in_features));
  at::parallel_for(0, packed.out_features, grain, [&](int64_t begin, int64_t end) {
    const kernels::Status status =
        kernels::matvec_rows(packed, inputs.const_data_ptr<float>(), inputs.size(0), begin, end, y.data_ptr<float>());
    QALORA_CHECK(status == kernels::Status::kOk, "multiplying by rows ", begin, " to ", end, " of [",
                 packed.out_features, ", ", packed.in_features, "], bits ", packed.bits, ", group size ",
                 packed.group_size);
  });
  return y;
}

}  // namespace

kernels::PackedView PackedWeight::view() const {
  kernels::PackedView view;
  view.codes = reinterpret_cast<const uint32_t*>(codes.const_data_ptr<int32_t>());
  view.scales = scales.const_data_ptr<float>();
  view.offsets = offsets.const_data_ptr<float>();
  view.out_features = out_features();
  view.in_features = in_features;
  view.group_size = group_size;
  view.bits = bits;
  return view;
}

uint64_t PackedWeight::bytes() const { return codes.nbytes() + scales.nbytes() + offsets.nbytes(); }

at::Tensor PackedWeight::dequantize(at::ScalarType dtype) const {
  const at::Tensor dense = dense_rows(view(), dtype);
  return input_order.defined() ? io::in_input_order(dense, input_order) : dense;
}

at::Tensor PackedWeight::multiply(const at::Tensor& inputs) const {
  const at::Tensor x = input_order.defined() ? inputs.index_select(1, input_order) : inputs;
  if (x.size(0) <= kMatvecTokens) return matvec(view(), x.to(at::kFloat));
  if (x.scalar_type() == at::kFloat) return x.matmul(dense_rows(view(), at::kFloat).t());
  // w = scale * (code - centre) + (offset + scale * centre): the first part has small numbers that do not know of any
  // merge.
  const double centre = (std::ldexp(1.0, bits) - 1) / 2;
  const at::Tensor centred = scales * -centre, rest = offsets - centred;  // [out_features, groups]
  kernels::PackedView packed = view();
  packed.offsets = centred.const_data_ptr<float>();
  const at::Tensor y = x.matmul(dense_rows(packed, x.scalar_type()).t()).to(at::kFloat);  // [tokens, out_features]
  return at::addmm(y, pool_sums(x, group_size), rest.t());
}

at::Tensor pool_sums(const at::Tensor& x, int64_t group_size) {
  const int64_t in_features = x.size(1), groups = kernels::groups_per_row(in_features, group_size);
  const int64_t missing = groups * group_size - in_features;
  const at::Tensor padded = missing == 0 ? x : at::constant_pad_nd(x, {0, missing});
  return padded.reshape({x.size(0), groups, group_size}).sum(-1, /*keepdim=*/false, at::kFloat);
}

bool is_bits(int64_t bits) { return bits == 2 || bits == 3 || bits == 4 || bits == 5 || bits == 6 || bits == 8; }

PackedWeight make_packed_weight(const std::string& name, const at::Tensor& codes, const at::Tensor& scales,
                                const at::Tensor& offsets, int64_t in_features, int64_t group_size, int bits) {
  QALORA_REQUIRE(is_bits(bits), DataError, name, ": ", bits, " bits are not supported; expected 2, 3, 4, 5, 6 or 8");
  QALORA_REQUIRE(group_size > 0 || group_size == kWholeRow, DataError, name, ": group_size is ", group_size,
                 ", expected a positive number or -1 (whole rows)");
  QALORA_REQUIRE(in_features > 0, DataError, name, ": in_features is ", in_features);
  PackedWeight weight;
  weight.in_features = in_features;
  weight.group_size = group_size == kWholeRow ? in_features : group_size;
  weight.bits = bits;
  QALORA_REQUIRE(codes.scalar_type() == at::kInt, DataError, name, ": codes are ", c10::toString(codes.scalar_type()),
                 ", expected 32-bit words (U32)");
  const int64_t words = kernels::words_per_row(in_features, bits);
  QALORA_REQUIRE(codes.dim() == 2 && codes.size(1) == words, DataError, name, ": codes have shape ", codes.sizes(),
                 ", expected ", words, " words a row for ", in_features, " inputs of ", bits, " bits");
  weight.codes = codes.contiguous();
  const int64_t groups = kernels::groups_per_row(in_features, weight.group_size);
  weight.scales = checked_floats(name, "scales", scales, {codes.size(0), groups});
  weight.offsets = checked_floats(name, "offsets", offsets, {codes.size(0), groups});
  return weight;
}

}  // namespace qalora::quant
