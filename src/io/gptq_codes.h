// The words of GPTQ and AWQ files, turned into rows of codes. Raw pointers that may be misaligned, sizes that were
// checked; no LibTorch.
#pragma once

#include <cstddef>
#include <cstdint>

#include "qalora/io/foreign_quantization.h"

namespace qalora::io {

struct ForeignCodes {
  ForeignLayout layout = ForeignLayout::kGptq;
  int bits = 0;
  int64_t in_features = 0, out_features = 0;  // multiples of 32
  const std::byte* words = nullptr;           // qweight
  const int64_t* order = nullptr;             // [in_features]: input order[k] becomes column k; null: as they are
};

constexpr int64_t kTileColumns = 64;  // outputs that are turned at a time

// Outputs [begin, end), begin a multiple of kTileColumns -> their rows of `packed` [out_features, in_features * bits /
// 32] u32, each row one little-endian bit stream (the canonical form).
void turn_codes(const ForeignCodes& from, int64_t begin, int64_t end, uint32_t* packed);

struct ForeignZeros {
  ForeignLayout layout = ForeignLayout::kGptq;
  ZeroRule rule = ZeroRule::kStored;
  int bits = 0;
  int64_t groups = 0, out_features = 0;  // the latter a multiple of 32
  const std::byte* words = nullptr;      // qzeros [groups, out_features * bits / 32]
  const float* scales = nullptr;         // [groups, out_features]
};

// Outputs [begin, end), begin a multiple of kTileColumns -> their rows of `offsets` [out_features, groups]: -(scale *
// zero), one product in fp32. -> how many zero points are stored as 2^bits - 1 where ZeroRule::kFieldPlusOne reads
// 2^bits.
int64_t turn_zeros(const ForeignZeros& from, int64_t begin, int64_t end, float* offsets);

}  // namespace qalora::io
