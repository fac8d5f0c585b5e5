// Eight weights a step. Codes of up to 3 bits choose one of at most 8 values of the group, so a register holds them all
// and one shuffle replaces the arithmetic; wider codes are converted. Compiled with -mavx2 -mfma: whatever an inline
// function of this file became could be picked by the linker for the whole program, so it includes no C++ library
// header that defines one.
#include <immintrin.h>

#include "qalora/kernels/isa.h"

namespace qalora::kernels::avx2 {

namespace {

// Eight codes of `kBits` bits are kBits bytes. control: bytes that hold code i, moved to 32-bit lane i; shift: its
// place there.
template <int kBits>
struct Lanes {
  __m256i control, shift, mask;

  Lanes() {
    alignas(32) unsigned char places[32];
    alignas(32) int shifts[8];
    for (int lane = 0; lane < 8; ++lane) {
      const int byte = lane * kBits / 8;
      shifts[lane] = lane * kBits % 8;
      places[4 * lane] = static_cast<unsigned char>(byte);
      // A code that ends in its first byte needs no second one (which for 8-bit codes would be the ninth).
      places[4 * lane + 1] = static_cast<unsigned char>(shifts[lane] + kBits > 8 ? byte + 1 : 0x80);
      places[4 * lane + 2] = places[4 * lane + 3] = 0x80;  // zero
    }
    control = _mm256_load_si256(reinterpret_cast<const __m256i*>(places));
    shift = _mm256_load_si256(reinterpret_cast<const __m256i*>(shifts));
    mask = _mm256_set1_epi32((1 << kBits) - 1);
  }

  // Reads 8 bytes. The bits above a code are rubbish.
  __m256i codes(const unsigned char* bytes) const {
    long long chunk;
    __builtin_memcpy(&chunk, bytes, sizeof chunk);
    return _mm256_srlv_epi32(_mm256_shuffle_epi8(_mm256_set1_epi64x(chunk), control), shift);
  }
};

// One group's weights from codes.
template <int kBits>
struct Weights {
  __m256 scale, offset, table;

  Weights(float s, float b) : scale(_mm256_set1_ps(s)), offset(_mm256_set1_ps(b)) {
    if constexpr (kBits <= 3) {
      const __m256 all = kBits == 3 ? _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7) : _mm256_setr_ps(0, 1, 2, 3, 0, 1, 2, 3);
      table = _mm256_add_ps(_mm256_mul_ps(all, scale), offset);
    }
  }

  __m256 of(__m256i codes, __m256i mask) const {
    if constexpr (kBits == 2) return _mm256_permutevar_ps(table, codes);      // looks at the low 2 bits
    if constexpr (kBits == 3) return _mm256_permutevar8x32_ps(table, codes);  // at the low 3
    const __m256 values = _mm256_cvtepi32_ps(_mm256_and_si256(codes, mask));
    return _mm256_add_ps(_mm256_mul_ps(values, scale), offset);
  }
};

inline void store(__m256 values, float* out) { _mm256_storeu_ps(out, values); }

// bf16, to nearest, ties to even; a NaN stays a NaN.
inline void store(__m256 values, unsigned short* out) {
  const __m256i words = _mm256_castps_si256(values);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(words, 16), _mm256_set1_epi32(1));
  const __m256i rounded =
      _mm256_srli_epi32(_mm256_add_epi32(words, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF))), 16);
  const __m256i quiet = _mm256_or_si256(_mm256_srli_epi32(words, 16), _mm256_set1_epi32(0x40));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(values, values, _CMP_UNORD_Q));
  const __m256i result = _mm256_blendv_epi8(rounded, quiet, nan);
  const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(result), _mm256_extracti128_si256(result, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), packed);
}

inline void finish(const unsigned char* row, int bits, int64_t begin, int64_t end, float scale, float offset,
                   float* out) {
  scalar::dequantize_stretch(row, bits, begin, end, scale, offset, out);
}

inline void finish(const unsigned char* row, int bits, int64_t begin, int64_t end, float scale, float offset,
                   unsigned short* out) {
  scalar::dequantize_stretch_bf16(row, bits, begin, end, scale, offset, out);
}

template <int kBits, typename Out>
void rows(const PackedView& view, int64_t row_begin, int64_t row_end, Out* out) {
  const auto* codes = reinterpret_cast<const unsigned char*>(view.codes);
  const int64_t row_bytes = view.words() * 4, groups = view.groups();
  const unsigned char* const end_of_codes = codes + view.out_features * row_bytes;
  const Lanes<kBits> lanes;
  for (int64_t row = row_begin; row < row_end; ++row, out += view.in_features) {
    const unsigned char* const stream = codes + row * row_bytes;
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t begin = group * view.group_size;
      const int64_t end = view.in_features - begin < view.group_size ? view.in_features : begin + view.group_size;
      float scale, offset;  // copied: a mapped file need not be aligned
      __builtin_memcpy(&scale, view.scales + row * groups + group, sizeof scale);
      __builtin_memcpy(&offset, view.offsets + row * groups + group, sizeof offset);
      const Weights<kBits> weights(scale, offset);
      int64_t k = begin;
      if (begin % 8 == 0) {
        const unsigned char* bytes = stream + begin / 8 * kBits;
        // A step reads 8 bytes, of which the last ones may lie behind its codes: never behind the whole matrix.
        for (; k + 8 <= end && end_of_codes - bytes >= 8; k += 8, bytes += kBits) {
          store(weights.of(lanes.codes(bytes), lanes.mask), out + k);
        }
      }
      if (k < end) finish(stream, kBits, k, end, scale, offset, out + k);
    }
  }
}

inline float sum_of(__m256 lanes) {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_shuffle_ps(sum, sum, 1)));
}

// y for kTokens tokens. Two sums a token, taken in turn: one alone would wait for itself.
template <int kBits, int kTokens>
void products(const PackedView& view, const float* x, int64_t row_begin, int64_t row_end, float* y) {
  const auto* codes = reinterpret_cast<const unsigned char*>(view.codes);
  const int64_t row_bytes = view.words() * 4, groups = view.groups(), in_features = view.in_features;
  const unsigned char* const end_of_codes = codes + view.out_features * row_bytes;
  const Lanes<kBits> lanes;
  for (int64_t row = row_begin; row < row_end; ++row) {
    const unsigned char* const stream = codes + row * row_bytes;
    __m256 even[kTokens], odd[kTokens];
    float rest[kTokens];
    for (int t = 0; t < kTokens; ++t) even[t] = odd[t] = _mm256_setzero_ps(), rest[t] = 0;
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t begin = group * view.group_size;
      const int64_t end = in_features - begin < view.group_size ? in_features : begin + view.group_size;
      float scale, offset;
      __builtin_memcpy(&scale, view.scales + row * groups + group, sizeof scale);
      __builtin_memcpy(&offset, view.offsets + row * groups + group, sizeof offset);
      const Weights<kBits> weights(scale, offset);
      const unsigned char* bytes = stream + begin / 8 * kBits;
      // As in rows(): a step reads 8 bytes from its first one, never behind the whole matrix.
      const int64_t steps = begin % 8 == 0 ? (end - begin) / 8 : 0;
      int64_t k = begin;
      for (int64_t pair = 0; pair < steps / 2 && end_of_codes - bytes >= 8 + kBits;
           ++pair, k += 16, bytes += 2 * kBits) {
        const __m256 first = weights.of(lanes.codes(bytes), lanes.mask);
        const __m256 second = weights.of(lanes.codes(bytes + kBits), lanes.mask);
        for (int t = 0; t < kTokens; ++t) {
          even[t] = _mm256_fmadd_ps(first, _mm256_loadu_ps(x + t * in_features + k), even[t]);
          odd[t] = _mm256_fmadd_ps(second, _mm256_loadu_ps(x + t * in_features + k + 8), odd[t]);
        }
      }
      while (k < end) {  // what is left, at most eight at a time
        const int64_t count = end - k < 8 ? end - k : 8;
        float left[8];
        scalar::dequantize_stretch(stream, kBits, k, k + count, scale, offset, left);
        for (int t = 0; t < kTokens; ++t) {
          for (int64_t i = 0; i < count; ++i) rest[t] += left[i] * x[t * in_features + k + i];
        }
        k += count;
      }
    }
    for (int t = 0; t < kTokens; ++t) y[t * view.out_features + row] = sum_of(_mm256_add_ps(even[t], odd[t])) + rest[t];
  }
}

template <int kBits>
void any_tokens(const PackedView& view, const float* x, int64_t tokens, int64_t row_begin, int64_t row_end, float* y) {
  for (; tokens >= 4; tokens -= 4, x += 4 * view.in_features, y += 4 * view.out_features) {
    products<kBits, 4>(view, x, row_begin, row_end, y);
  }
  if (tokens == 3) products<kBits, 3>(view, x, row_begin, row_end, y);
  if (tokens == 2) products<kBits, 2>(view, x, row_begin, row_end, y);
  if (tokens == 1) products<kBits, 1>(view, x, row_begin, row_end, y);
}

template <typename Out>
void any_rows(const PackedView& view, int64_t row_begin, int64_t row_end, Out* out) {
  switch (view.bits) {
    case 2: return rows<2>(view, row_begin, row_end, out);
    case 3: return rows<3>(view, row_begin, row_end, out);
    case 4: return rows<4>(view, row_begin, row_end, out);
    case 5: return rows<5>(view, row_begin, row_end, out);
    case 6: return rows<6>(view, row_begin, row_end, out);
    case 8: return rows<8>(view, row_begin, row_end, out);
  }
}

}  // namespace

void dequantize(const PackedView& view, int64_t row_begin, int64_t row_end, float* out) {
  any_rows(view, row_begin, row_end, out);
}

void dequantize_bf16(const PackedView& view, int64_t row_begin, int64_t row_end, uint16_t* out) {
  any_rows(view, row_begin, row_end, out);
}

void matvec(const PackedView& view, const float* x, int64_t tokens, int64_t row_begin, int64_t row_end, float* y) {
  switch (view.bits) {
    case 2: return any_tokens<2>(view, x, tokens, row_begin, row_end, y);
    case 3: return any_tokens<3>(view, x, tokens, row_begin, row_end, y);
    case 4: return any_tokens<4>(view, x, tokens, row_begin, row_end, y);
    case 5: return any_tokens<5>(view, x, tokens, row_begin, row_end, y);
    case 6: return any_tokens<6>(view, x, tokens, row_begin, row_end, y);
    case 8: return any_tokens<8>(view, x, tokens, row_begin, row_end, y);
  }
}

}  // namespace qalora::kernels::avx2
