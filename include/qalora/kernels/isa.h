// One entry an instruction set. packed.h's functions take the best one; tests run each of them.
#pragma once

#include <cstdint>

#include "qalora/kernels/packed.h"

namespace qalora::kernels {

struct Isa {
  const char* name;     // "scalar", "avx2", "avx512"
  bool (*supported)();  // by this processor and its operating system
  // Rows [row_begin, row_end) of a view that has been checked. Other arguments as in packed.h.
  void (*dequantize)(const PackedView& view, int64_t row_begin, int64_t row_end, float* out);
  void (*dequantize_bf16)(const PackedView& view, int64_t row_begin, int64_t row_end, uint16_t* out);
  void (*matvec)(const PackedView& view, const float* x, int64_t tokens, int64_t row_begin, int64_t row_end, float* y);
};

constexpr int kIsaCount = 3;
extern const Isa kIsas[kIsaCount];  // best first; the last one runs everywhere

// The best supported one, or the one called `forced` (nullptr or "": no wish). When that is not known or not supported,
// *error is set to a sentence that lives for ever, and the best one is returned.
const Isa& choose_isa(const char* forced, const char** error);

// One stretch of a row: out[k - begin] for codes k of [begin, end), all in one group. row: the row's first byte.
// Compiled without special instructions; the fast files call it for what is left over, so that no inline helper is
// shared between them.
namespace scalar {
void dequantize_stretch(const unsigned char* row, int bits, int64_t begin, int64_t end, float scale, float offset,
                        float* out);
void dequantize_stretch_bf16(const unsigned char* row, int bits, int64_t begin, int64_t end, float scale, float offset,
                             uint16_t* out);
void dequantize(const PackedView& view, int64_t row_begin, int64_t row_end, float* out);
void dequantize_bf16(const PackedView& view, int64_t row_begin, int64_t row_end, uint16_t* out);
void matvec(const PackedView& view, const float* x, int64_t tokens, int64_t row_begin, int64_t row_end, float* y);
}  // namespace scalar

namespace avx2 {
void dequantize(const PackedView& view, int64_t row_begin, int64_t row_end, float* out);
void dequantize_bf16(const PackedView& view, int64_t row_begin, int64_t row_end, uint16_t* out);
void matvec(const PackedView& view, const float* x, int64_t tokens, int64_t row_begin, int64_t row_end, float* y);
}  // namespace avx2

namespace avx512 {
void dequantize(const PackedView& view, int64_t row_begin, int64_t row_end, float* out);
void dequantize_bf16(const PackedView& view, int64_t row_begin, int64_t row_end, uint16_t* out);
void matvec(const PackedView& view, const float* x, int64_t tokens, int64_t row_begin, int64_t row_end, float* y);
}  // namespace avx512

}  // namespace qalora::kernels
