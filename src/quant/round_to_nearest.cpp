#include "qalora/quant/round_to_nearest.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>

#include "qalora/core/error.h"

namespace qalora::quant {
namespace {

// One group's scale and offset, and its codes.
// values: [count] f32, finite -> codes: [count] u8
void quantize_group(const float* values, int64_t count, int bits, uint8_t* codes, float* scale, float* offset) {
  const auto [low, high] = std::minmax_element(values, values + count);
  const int top = (1 << bits) - 1;
  *offset = *low;
  *scale = static_cast<float>((static_cast<double>(*high) - static_cast<double>(*low)) / top);
  const double stored_scale = *scale, stored_offset = *offset;
  // A constant group, or a range below the smallest fp32 number: the offset alone is as near as fp32 gets.
  const double inverse = stored_scale > 0 ? 1.0 / stored_scale : 0.0;
  for (int64_t i = 0; i < count; ++i) {
    // Never negative, so adding a half and cutting off is rounding; the top code may be exceeded where the scale was
    // rounded down.
    const int code = static_cast<int>((static_cast<double>(values[i]) - stored_offset) * inverse + 0.5);
    codes[i] = static_cast<uint8_t>(std::min(code, top));
  }
}

struct RowError {
  double difference = 0, norm = 0;  // sums of squares
};

class RowQuantizer {
 public:
  RowQuantizer(const std::string& name, PackedWeight& weight)
      : name_(name),
        weight_(weight),
        codes_(weight.in_features) {}

  // values: [in_features] f32
  RowError run(int64_t row, const float* values) {
    const int64_t groups = weight_.groups();
    float* scales = weight_.scales.data_ptr<float>() + row * groups;
    float* offsets = weight_.offsets.data_ptr<float>() + row * groups;
    RowError error;
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t begin = group * weight_.group_size;
      const int64_t count = std::min(weight_.group_size, weight_.in_features - begin);
      check_range(row, values, begin, count);
      quantize_group(values + begin, count, weight_.bits, codes_.data() + begin, &scales[group], &offsets[group]);
      for (int64_t i = begin; i < begin + count; ++i) {
        const float restored = scales[group] * static_cast<float>(codes_[i]) + offsets[group];
        const double difference = static_cast<double>(values[i]) - static_cast<double>(restored);
        error.difference += difference * difference;
        error.norm += static_cast<double>(values[i]) * static_cast<double>(values[i]);
      }
    }
    auto* words = reinterpret_cast<uint32_t*>(weight_.codes.data_ptr<int32_t>()) + row * weight_.codes.size(1);
    kernels::pack_row(codes_.data(), weight_.in_features, weight_.bits, words);
    return error;
  }

 private:
  void check_range(int64_t row, const float* values, int64_t begin, int64_t count) const {
    float low = values[begin], high = low;
    for (int64_t i = begin; i < begin + count; ++i) {
      QALORA_REQUIRE(std::isfinite(values[i]), DataError, name_, ": the weight at row ", row, ", column ", i, " is ",
                     values[i], "; the checkpoint is damaged or its training diverged");
      low = std::min(low, values[i]);
      high = std::max(high, values[i]);
    }
    QALORA_REQUIRE(std::isfinite(high - low), DataError, name_, ": the weights of row ", row, ", columns ", begin,
                   " to ", begin + count - 1, " range from ", low, " to ", high, ", which is more than fp32 can hold");
  }

  const std::string& name_;
  PackedWeight& weight_;
  std::vector<uint8_t> codes_;
};

}  // namespace

QuantizeResult round_to_nearest(const std::string& name, const at::Tensor& weight, int bits, int64_t group_size) {
  QALORA_CHECK(bits >= 2 && bits <= 4, "bits ", bits);
  QALORA_CHECK(group_size > 0 || group_size == kWholeRow, "group size ", group_size);
  QALORA_REQUIRE(weight.dim() == 2 && weight.numel() > 0, DataError, name, ": has shape ", weight.sizes(),
                 ", expected a matrix");
  const auto type = weight.scalar_type();
  QALORA_REQUIRE(type == at::kFloat || type == at::kHalf || type == at::kBFloat16, DataError, name, ": is ",
                 c10::toString(type), ", expected float32, float16 or bfloat16");
  const int64_t rows = weight.size(0), columns = weight.size(1);
  QuantizeResult result;
  PackedWeight& packed = result.weight;
  packed.in_features = columns;
  packed.group_size = group_size == kWholeRow ? columns : group_size;
  packed.bits = bits;
  const int64_t groups = kernels::groups_per_row(columns, packed.group_size);
  packed.codes = at::empty({rows, kernels::words_per_row(columns, bits)}, at::kInt);
  packed.scales = at::empty({rows, groups}, at::kFloat);
  packed.offsets = at::empty({rows, groups}, at::kFloat);

  // Sums are kept a row and added up in order: the error does not depend on the number of threads.
  std::vector<RowError> errors(static_cast<size_t>(rows));
  at::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
    RowQuantizer quantizer(name, packed);
    for (int64_t row = begin; row < end; ++row) {
      const at::Tensor values = weight.select(0, row).to(at::kFloat).contiguous();  // [in_features]
      errors[row] = quantizer.run(row, values.const_data_ptr<float>());
    }
  });
  RowError sum;
  for (const auto& error : errors) {
    sum.difference += error.difference;
    sum.norm += error.norm;
  }
  result.error = sum.norm > 0 ? std::sqrt(sum.difference / sum.norm) : 0;
  return result;
}

}  // namespace qalora::quant
