#include "q4_1_check.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "qalora/core/error.h"

namespace qalora::exporting {
namespace {

using io::GgufType;

struct Extent {
  uint8_t least, most;
};

// Of a block's codes: [32] u8. Plain comparisons, so that the compiler makes vector code of them.
Extent extent(const uint8_t* codes) {
  Extent result{255, 0};
  for (int i = 0; i < io::kGgufBlock; ++i) {
    result.least = codes[i] < result.least ? codes[i] : result.least;
    result.most = codes[i] > result.most ? codes[i] : result.most;
  }
  return result;
}

}  // namespace

double RowCheck::error(int64_t row, const std::byte* written) {
  const int64_t words = weight_.codes.size(1), groups = weight_.groups();
  io::gguf_row_codes(GgufType::kQ4_1, written, blocks_, 8, reinterpret_cast<uint32_t*>(codes_.data()));
  const auto* exact = reinterpret_cast<const uint32_t*>(weight_.codes.const_data_ptr<int32_t>()) + row * words;
  kernels::unpack_row(exact, weight_.in_features, weight_.bits, exact_.data());
  QALORA_CHECK(codes_ == exact_, "the codes that were written are those of row ", row);
  io::gguf_row_scales(GgufType::kQ4_1, written, blocks_, scales_.data());
  io::gguf_row_offsets(GgufType::kQ4_1, written, blocks_, offsets_.data());
  const float* scales = weight_.scales.const_data_ptr<float>() + row * groups;
  const float* offsets = weight_.offsets.const_data_ptr<float>() + row * groups;
  const int64_t blocks_of_group = weight_.group_size / io::kGgufBlock;
  double largest = 0;
  for (int64_t b = 0, group = 0; b < blocks_; ++b) {
    if (b > 0 && b % blocks_of_group == 0) ++group;
    const double scale = scales[group], offset = offsets[group];
    const double of_scale = scales_[static_cast<size_t>(b)] - scale,
                 of_offset = offsets_[static_cast<size_t>(b)] - offset;
    if (of_scale == 0 && of_offset == 0) continue;
    const auto [least, most] = extent(codes_.data() + b * io::kGgufBlock);
    const double error = std::max(std::abs(of_scale * least + of_offset), std::abs(of_scale * most + of_offset));
    if (error != 0) largest = std::max(largest, error / (scale != 0 ? std::abs(scale) : std::abs(offset)));
  }
  return largest;
}

}  // namespace qalora::exporting
