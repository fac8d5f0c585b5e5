// Which kernel multiplies with a packed weight on a device: one table, for how many rows, which bits, groups and
// architectures, and why. Host only: the program asks it, `--explain-kernels` prints it. The rows' limits are computed
// (kernels.md 2.2) until they are measured.
#pragma once

#include <cstdint>
#include <string>

#include "qalora/kernels/cuda.h"

namespace qalora::kernels::cuda {

enum class Operation : int {
  kForward,   // y = x . W^T
  kBackward,  // dx = dy . W
};

enum class Method : int {
  kMatvec,  // Api::matvec
  kMatmul,  // Api::matmul
  kPanel,   // Api::dequantize to a panel, then the library's product
};

constexpr int64_t kAnyRows = INT64_MAX;
constexpr int kAnyArchitecture = INT32_MAX;

struct Choice {
  Operation operation;
  int64_t min_rows, max_rows;
  int min_bits, max_bits;
  int64_t group_multiple;                  // the group size is a multiple of it
  int min_architecture, max_architecture;  // 10 * major + minor
  bool sixteen_bits;                       // activations must be bf16 or fp16
  Method method;
  const char* name;
  const char* reason;
};

// Dequantising costs c / rows of a dense product: c = (2.75 bytes a weight / the memory's speed) / (2 FLOP / the tensor
// cores' speed). A kernel that reaches the share f of the library's speed wins up to rows = c * f / (1 - f).
inline constexpr Choice kTable[] = {
    {Operation::kForward, 1, 8, 2, 4, 32, 80, kAnyArchitecture, true, Method::kMatvec, "matvec",
     "bound by the codes' bytes: a fifth to a third of bf16's; the 8 columns of one mma hold all rows"},
    {Operation::kForward, 9, 256, 2, 4, 32, 90, kAnyArchitecture, true, Method::kMatmul, "matmul",
     "mma.sync reaches about half of the library's wgmma, and dequantising costs 241 / rows of its product on an H200: "
     "even at about 256 rows"},
    {Operation::kForward, 9, 512, 2, 4, 32, 86, 89, true, Method::kMatmul, "matmul",
     "the library uses mma.sync too and memory is slow beside it: dequantising costs 110 to 230 / rows of its product, "
     "ours is 0.7 to 0.85 as fast"},
    {Operation::kForward, 9, 256, 2, 4, 32, 80, 85, true, Method::kMatmul, "matmul",
     "dequantising costs 202 / rows of the library's product on an A100, ours is 0.55 to 0.6 as fast"},
    {Operation::kForward, 1, kAnyRows, 2, 4, 32, 80, kAnyArchitecture, false, Method::kPanel,
     "dequantize + library product",
     "one pass writes the weights, and the library's product is the fastest there is; the pass is 3 % of it at 8192 rows on an H200"},
    {Operation::kBackward, 1, kAnyRows, 2, 4, 32, 80, kAnyArchitecture, false, Method::kPanel,
     "dequantize + library product",
     "training has thousands of rows: the pass that writes the weights is a few percent of the product"},
};

// The first row of the table that fits, or null: then the weight stays on the CPU. type: of the activations.
const Choice* choose(Operation operation, const TiledShape& shape, int64_t rows, Type type, int architecture);

// "forward, rows 1 to 8: matvec (bound by ...)", a line for each stretch of rows that one row of the table serves.
std::string explain(const TiledShape& shape, Type type, int architecture);

}  // namespace qalora::kernels::cuda
