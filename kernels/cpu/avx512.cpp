// Sixteen weights a step, like avx2.cpp. Masked loads read exactly the bytes of their codes, so there is no edge to
// watch. Codes of up to 4 bits look their value up in a register that holds the group's values. The same rule about
// includes holds.
#include <immintrin.h>

#include "qalora/kernels/isa.h"

namespace qalora::kernels::avx512 {

namespace {

// Sixteen codes of `kBits` bits are 2 * kBits bytes. control: bytes that hold code i, moved to 32-bit lane i; shift:
// where there.
template <int kBits>
struct Lanes {
  __m512i control, shift, mask;

  Lanes() {
    alignas(64) unsigned char places[64];
    alignas(64) int shifts[16];
    for (int lane = 0; lane < 16; ++lane) {
      const int byte = lane * kBits / 8;
      shifts[lane] = lane * kBits % 8;
      places[4 * lane] = static_cast<unsigned char>(byte);
      places[4 * lane + 1] = static_cast<unsigned char>(shifts[lane] + kBits > 8 ? byte + 1 : 0x80);
      places[4 * lane + 2] = places[4 * lane + 3] = 0x80;  // zero
    }
    control = _mm512_load_si512(places);
    shift = _mm512_load_si512(shifts);
    mask = _mm512_set1_epi32((1 << kBits) - 1);
  }

  __m512i codes(const unsigned char* bytes) const {
    constexpr __mmask16 kBytes = static_cast<__mmask16>((1u << (2 * kBits)) - 1);
    const __m512i chunk = _mm512_broadcast_i32x4(_mm_maskz_loadu_epi8(kBytes, bytes));
    return _mm512_and_si512(_mm512_srlv_epi32(_mm512_shuffle_epi8(chunk, control), shift), mask);
  }
};

// One group's weights from codes.
template <int kBits>
struct Weights {
  __m512 scale, offset, table;

  Weights(float s, float b) : scale(_mm512_set1_ps(s)), offset(_mm512_set1_ps(b)) {
    const __m512 all = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    table = _mm512_add_ps(_mm512_mul_ps(all, scale), offset);
  }

  __m512 of(__m512i codes) const {
    if constexpr (kBits <= 4) return _mm512_permutexvar_ps(codes, table);
    return _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(codes), scale), offset);
  }
};

inline void store(__m512 values, float* out) { _mm512_storeu_ps(out, values); }

// bf16, to nearest, ties to even; a NaN stays a NaN.
inline void store(__m512 values, unsigned short* out) {
  const __m512i words = _mm512_castps_si512(values);
  const __m512i high = _mm512_srli_epi32(words, 16);
  const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
  const __m512i rounded =
      _mm512_srli_epi32(_mm512_add_epi32(words, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF))), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);
  const __m512i result = _mm512_mask_or_epi32(rounded, nan, high, _mm512_set1_epi32(0x40));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm512_cvtepi32_epi16(result));
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
        for (; k + 16 <= end; k += 16, bytes += 2 * kBits) store(weights.of(lanes.codes(bytes)), out + k);
      }
      if (k < end) finish(stream, kBits, k, end, scale, offset, out + k);
    }
  }
}

// What a product reads of one row.
struct Row {
  const unsigned char* stream;
  const float *scales, *offsets;

  Row(const PackedView& view, int64_t row)
      : stream(reinterpret_cast<const unsigned char*>(view.codes) + row * view.words() * 4),
        scales(view.scales + row * view.groups()),
        offsets(view.offsets + row * view.groups()) {}

  template <int kBits>
  Weights<kBits> group(int64_t index) const {
    float scale, offset;
    __builtin_memcpy(&scale, scales + index, sizeof scale);
    __builtin_memcpy(&offset, offsets + index, sizeof offset);
    return {scale, offset};
  }
};

// y for kTokens tokens, any group size.
template <int kBits, int kTokens>
void products(const PackedView& view, const float* x, int64_t row_begin, int64_t row_end, float* y) {
  const int64_t groups = view.groups(), in_features = view.in_features;
  const Lanes<kBits> lanes;
  for (int64_t r = row_begin; r < row_end; ++r) {
    const Row row(view, r);
    __m512 sums[kTokens];
    float rest[kTokens];
    for (int t = 0; t < kTokens; ++t) sums[t] = _mm512_setzero_ps(), rest[t] = 0;
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t begin = group * view.group_size;
      const int64_t end = in_features - begin < view.group_size ? in_features : begin + view.group_size;
      const Weights<kBits> weights = row.group<kBits>(group);
      int64_t k = begin;
      if (begin % 8 == 0) {
        const unsigned char* bytes = row.stream + begin / 8 * kBits;
        for (; k + 16 <= end; k += 16, bytes += 2 * kBits) {
          const __m512 w = weights.of(lanes.codes(bytes));
          for (int t = 0; t < kTokens; ++t)
            sums[t] = _mm512_fmadd_ps(w, _mm512_loadu_ps(x + t * in_features + k), sums[t]);
        }
      }
      while (k < end) {  // what is left, at most sixteen at a time
        const int64_t count = end - k < 16 ? end - k : 16;
        float left[16], scale, offset;
        __builtin_memcpy(&scale, row.scales + group, sizeof scale);
        __builtin_memcpy(&offset, row.offsets + group, sizeof offset);
        scalar::dequantize_stretch(row.stream, kBits, k, k + count, scale, offset, left);
        for (int t = 0; t < kTokens; ++t) {
          for (int64_t i = 0; i < count; ++i) rest[t] += left[i] * x[t * in_features + k + i];
        }
        k += count;
      }
    }
    for (int t = 0; t < kTokens; ++t) y[t * view.out_features + r] = _mm512_reduce_add_ps(sums[t]) + rest[t];
  }
}

// The same for 4 bits and whole groups of a multiple of 32: sixteen bytes are 32 codes, of which the even ones are the
// low and the odd ones the high halves. A lookup sees only the low four bits of an index, so one widening and one shift
// unpack all of them. x: [kTokens, in_features], each 32 inputs as 16 even and 16 odd ones.
template <int kTokens>
void products_of_halves(const PackedView& view, const float* x, int64_t row_begin, int64_t row_end, float* y) {
  const int64_t groups = view.groups(), in_features = view.in_features;
  for (int64_t r = row_begin; r < row_end; ++r) {
    const Row row(view, r);
    __m512 even[kTokens], odd[kTokens];
    for (int t = 0; t < kTokens; ++t) even[t] = odd[t] = _mm512_setzero_ps();
    const unsigned char* bytes = row.stream;
    int64_t k = 0;
    for (int64_t group = 0; group < groups; ++group) {
      const Weights<4> weights = row.group<4>(group);
      for (int64_t end = k + view.group_size; k < end; k += 32, bytes += 16) {
        const __m512i codes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
        const __m512 low = weights.of(codes), high = weights.of(_mm512_srli_epi32(codes, 4));
        for (int t = 0; t < kTokens; ++t) {
          even[t] = _mm512_fmadd_ps(low, _mm512_loadu_ps(x + t * in_features + k), even[t]);
          odd[t] = _mm512_fmadd_ps(high, _mm512_loadu_ps(x + t * in_features + k + 16), odd[t]);
        }
      }
    }
    for (int t = 0; t < kTokens; ++t)
      y[t * view.out_features + r] = _mm512_reduce_add_ps(_mm512_add_ps(even[t], odd[t]));
  }
}

// Each 32 inputs as 16 even and 16 odd ones. in, out: [count], a multiple of 32
void split_halves(const float* in, int64_t count, float* out) {
  for (int64_t k = 0; k < count; k += 32) {
    for (int i = 0; i < 16; ++i) out[k + i] = in[k + 2 * i], out[k + 16 + i] = in[k + 2 * i + 1];
  }
}

// Four tokens at a time, then what is left.
template <int kBits, bool kHalves>
void any_tokens(const PackedView& view, const float* x, int64_t tokens, int64_t row_begin, int64_t row_end, float* y) {
  const auto run = [&]<int kTokens>() {
    if constexpr (kHalves) products_of_halves<kTokens>(view, x, row_begin, row_end, y);
    else products<kBits, kTokens>(view, x, row_begin, row_end, y);
  };
  for (; tokens >= 4; tokens -= 4, x += 4 * view.in_features, y += 4 * view.out_features) run.template operator()<4>();
  if (tokens == 3) run.template operator()<3>();
  if (tokens == 2) run.template operator()<2>();
  if (tokens == 1) run.template operator()<1>();
}

void four_bits(const PackedView& view, const float* x, int64_t tokens, int64_t row_begin, int64_t row_end, float* y) {
  const bool whole = view.group_size % 32 == 0 && view.in_features % view.group_size == 0;
  const int64_t count = tokens * view.in_features;
  float* halves = whole ? static_cast<float*>(__builtin_malloc(static_cast<size_t>(count) * sizeof(float))) : nullptr;
  if (halves == nullptr) return any_tokens<4, false>(view, x, tokens, row_begin, row_end, y);
  split_halves(x, count, halves);
  any_tokens<4, true>(view, halves, tokens, row_begin, row_end, y);
  __builtin_free(halves);
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
    case 2: return any_tokens<2, false>(view, x, tokens, row_begin, row_end, y);
    case 3: return any_tokens<3, false>(view, x, tokens, row_begin, row_end, y);
    case 4: return four_bits(view, x, tokens, row_begin, row_end, y);
    case 5: return any_tokens<5, false>(view, x, tokens, row_begin, row_end, y);
    case 6: return any_tokens<6, false>(view, x, tokens, row_begin, row_end, y);
    case 8: return any_tokens<8, false>(view, x, tokens, row_begin, row_end, y);
  }
}

}  // namespace qalora::kernels::avx512
