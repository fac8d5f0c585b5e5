// Rows of Q4_1 read back from what was written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "qalora/io/gguf_blocks.h"
#include "qalora/quant/packed_weight.h"

namespace qalora::exporting {

// Reads rows back as they were written and holds them beside what they should be. One object a thread: it keeps the
// rows' buffers.
class RowCheck {
 public:
  explicit RowCheck(const quant::PackedWeight& weight)
      : weight_(weight),
        blocks_(weight.in_features / io::kGgufBlock),
        codes_(static_cast<size_t>(weight.in_features)),
        exact_(codes_.size()),
        scales_(static_cast<size_t>(blocks_)),
        offsets_(scales_.size()) {}

  // InternalError unless the codes are the same. The error of a block is largest at its smallest or its largest code,
  // because it is linear in the code; returned in steps of the grid.
  double error(int64_t row, const std::byte* written);

 private:
  const quant::PackedWeight& weight_;
  int64_t blocks_;
  std::vector<uint8_t> codes_, exact_;
  std::vector<float> scales_, offsets_;
};

}  // namespace qalora::exporting
