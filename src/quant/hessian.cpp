#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>

#include <algorithm>

#include "qalora/core/error.h"
#include "qalora/quant/gptq.h"

namespace qalora::quant {
namespace {

// H is symmetric: only blocks on and below the diagonal are computed.
constexpr int64_t kPanel = 1024;

// sum: [columns, columns] f64; x: [tokens, columns] in any float dtype
void add_widened(at::Tensor& sum, const at::Tensor& x) {
  const int64_t columns = sum.size(0);
  const at::Tensor inputs = x.to(at::kFloat);
  for (int64_t first = 0; first < columns; first += kPanel) {
    const int64_t count = std::min(kPanel, columns - first);
    const at::Tensor panel =
        inputs.narrow(1, first, columns - first).t().mm(inputs.narrow(1, first, count));  // [columns - first, count]
    sum.narrow(0, first, columns - first).narrow(1, first, count).add_(panel);
  }
}

#ifdef CPUBLAS_BRGEMM_BF16BF16F32
namespace blas = at::native::cpublas;

// Products of bf16 numbers are exact in fp32, so the processor's bf16 tiles, which sum in fp32, give the same H as
// widened inputs would, in a fraction of the time.
class TiledSum {
 public:
  static constexpr int64_t kPiece = 1024;  // tokens at once: two blocks of columns of so many fit into the second cache

  // sum: [columns, columns] f64 CPU; x: [tokens, columns] bf16 CPU
  TiledSum(at::Tensor& sum, const at::Tensor& x)
      : columns_(sum.size(0)),
        tokens_((x.size(0) + kTokens - 1) / kTokens * kTokens),
        sum_(sum.data_ptr<double>()) {
    const int64_t tiles = (columns_ + kTile - 1) / kTile;
    const at::Tensor padded =
        at::constant_pad_nd(x, {0, tiles * kTile - columns_, 0, tokens_ - x.size(0)}).contiguous();
    // [columns, tokens], rows a line further apart than a power of two: else the rows of a tile share few places of the
    // first cache.
    across_ = at::empty({tiles * kTile, tokens_ + kTokens}, at::kBFloat16);
    across_.narrow(1, 0, tokens_).copy_(padded.t());
    packed_ =
        at::empty({tiles, tokens_ * kTile}, at::kBFloat16);  // pairs of tokens side by side, as the tiles want them
    const auto* from = padded.const_data_ptr<at::BFloat16>();
    auto* to = packed_.data_ptr<at::BFloat16>();
    at::parallel_for(0, tiles, 1, [&](int64_t begin, int64_t end) {
      for (int64_t tile = begin; tile < end; ++tile) {
        blas::pack(tokens_, kTile, tiles * kTile, kTile, at::kBFloat16, at::kBFloat16, from + tile * kTile,
                   to + tile * tokens_ * kTile);
      }
      blas::brgemm_release();
    });
    // Pairs of a row of tiles and its mirror image are about equally long.
    at::parallel_for(0, (tiles + 1) / 2, 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        add_row(row);
        if (tiles - 1 - row != row) add_row(tiles - 1 - row);
      }
      blas::brgemm_release();
    });
  }

 private:
  static constexpr int64_t kTile = 64, kTokens = 32;  // columns of a block; tokens of one step of the tiles

  void add_row(int64_t row) const {
    alignas(64) float block[kTile * kTile];
    const at::BFloat16* a = across_.const_data_ptr<at::BFloat16>() + row * kTile * across_.stride(0);
    const int64_t rows = std::min(kTile, columns_ - row * kTile);
    for (int64_t column = 0; column <= row; ++column) {
      const at::BFloat16* b = packed_.const_data_ptr<at::BFloat16>() + column * tokens_ * kTile;
      blas::brgemm(kTile, kTile, tokens_, across_.stride(0), kTile, kTile, /*add_C=*/false, a, b, block);
      const int64_t count = std::min(kTile, columns_ - column * kTile);
      for (int64_t i = 0; i < rows; ++i) {
        double* to = sum_ + (row * kTile + i) * columns_ + column * kTile;
        for (int64_t j = 0; j < count; ++j) to[j] += block[i * kTile + j];
      }
    }
  }

  int64_t columns_, tokens_;
  double* sum_;
  at::Tensor across_, packed_;
};

bool has_tiles(const at::Tensor& x) {
  return x.is_cpu() && x.scalar_type() == at::kBFloat16 && blas::could_pack(at::kBFloat16);
}
#endif

}  // namespace

Hessian::Hessian(int64_t in_features, c10::Device device)
    : sum_(at::zeros({in_features, in_features}, at::dtype(at::kDouble).device(device))) {}

void Hessian::add(const at::Tensor& x) {
  QALORA_CHECK(x.dim() == 2 && x.size(1) == sum_.size(0), "inputs of shape ", x.sizes(), " for a layer of ",
               sum_.size(0));
  if (x.size(0) == 0) return;
  tokens_ += x.size(0);
#ifdef CPUBLAS_BRGEMM_BF16BF16F32
  if (has_tiles(x)) {
    for (int64_t first = 0; first < x.size(0); first += TiledSum::kPiece) {
      const TiledSum done(sum_, x.narrow(0, first, std::min(TiledSum::kPiece, x.size(0) - first)));
    }
    return;
  }
#endif
  add_widened(sum_, x);
}

at::Tensor Hessian::matrix() const {
  const int64_t columns = sum_.size(0);
  const double factor = 2.0 / static_cast<double>(std::max<int64_t>(1, tokens_));
  at::Tensor matrix = at::empty({columns, columns}, sum_.options().dtype(at::kFloat));
  for (int64_t first = 0; first < columns; first += kPanel) {  // no second matrix in fp64
    const int64_t count = std::min(kPanel, columns - first), rest = columns - first - count;
    const at::Tensor panel = sum_.narrow(1, first, count).narrow(0, first, columns - first).mul(factor).to(at::kFloat);
    const at::Tensor corner = panel.narrow(0, 0, count).tril();
    matrix.narrow(0, first, count).narrow(1, first, count).copy_(corner.add(corner.tril(-1).t()));
    matrix.narrow(0, first + count, rest).narrow(1, first, count).copy_(panel.narrow(0, count, rest));
    matrix.narrow(0, first, count).narrow(1, first + count, rest).copy_(panel.narrow(0, count, rest).t());
  }
  return matrix;
}

}  // namespace qalora::quant
