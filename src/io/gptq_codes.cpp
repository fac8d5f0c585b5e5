#include "gptq_codes.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace qalora::io {
namespace {

constexpr int64_t kStep = 128;  // inputs that are turned at a time: a few whole lines of memory for each output
constexpr int kMostBits = 8;
constexpr int64_t kTileWords = kStep / 32 * kMostBits;

// Words of kStep inputs (a code of 32 bits' stream every `bits` bits) for kTileColumns outputs side by side.
using Tile = std::array<std::array<uint32_t, kTileColumns>, kTileWords>;
using Lane = std::array<uint32_t, kTileColumns>;

// Column c of eight outputs lies at bits 4 * kAwqPlace[c] of their word.
constexpr std::array<int, 8> kAwqPlace = {0, 4, 1, 5, 2, 6, 3, 7};

uint32_t load(const std::byte* words, int64_t index) {
  uint32_t word;
  std::memcpy(&word, words + index * 4, sizeof word);
  return word;
}

// Words [begin, begin + columns) of row `row` of a matrix of words with `stride` columns.
void load_row(const std::byte* words, int64_t row, int64_t stride, int64_t begin, int64_t columns, Lane& lane) {
  std::memcpy(lane.data(), words + (row * stride + begin) * 4, static_cast<size_t>(columns) * 4);
}

// Codes of input `input` for outputs [begin, begin + columns).
void load_codes(const ForeignCodes& from, int64_t input, int64_t begin, int64_t columns, Lane& codes) {
  const uint32_t mask = (1u << from.bits) - 1;
  if (from.layout == ForeignLayout::kAwq) {
    const int64_t first = (input * from.out_features + begin) / 8;
    for (int64_t c = 0; c < columns; ++c) {
      codes[static_cast<size_t>(c)] =
          load(from.words, first + c / 8) >> (4 * kAwqPlace[static_cast<size_t>(c % 8)]) & mask;
    }
    return;
  }
  if (from.layout == ForeignLayout::kPlanar && from.bits == 3) {
    const int64_t block = input / 32 * 3, place = input % 32;
    Lane high{};
    load_row(from.words, block + place / 16, from.out_features, begin, columns, codes);
    load_row(from.words, block + 2, from.out_features, begin, columns, high);
    for (size_t c = 0; c < kTileColumns; ++c)
      codes[c] = (codes[c] >> (2 * (place % 16)) & 3) | (high[c] >> place & 1) << 2;
    return;
  }
  const int64_t position = input * from.bits, row = position / 32;
  const int shift = static_cast<int>(position % 32), left = 32 - shift;
  load_row(from.words, row, from.out_features, begin, columns, codes);
  for (uint32_t& code : codes) code >>= shift;
  if (left < from.bits) {  // the rest of it begins the next word
    Lane next{};
    load_row(from.words, row + 1, from.out_features, begin, columns, next);
    for (size_t c = 0; c < kTileColumns; ++c) codes[c] |= next[c] << left;
  }
  for (uint32_t& code : codes) code &= mask;
}

void add_codes(Tile& tile, int64_t index, int bits, const Lane& codes) {
  const int64_t position = index * bits;
  const size_t word = static_cast<size_t>(position / 32);
  const int shift = static_cast<int>(position % 32), left = 32 - shift;
  for (size_t c = 0; c < kTileColumns; ++c) tile[word][c] |= codes[c] << shift;
  if (left >= bits) return;
  for (size_t c = 0; c < kTileColumns; ++c) tile[word + 1][c] |= codes[c] >> left;
}

// The tile of inputs [first, first + inputs).
void fill(const ForeignCodes& from, int64_t first, int64_t inputs, int64_t begin, int64_t columns, Tile& tile) {
  const int64_t words = inputs * from.bits / 32;
  const bool stream = from.layout == ForeignLayout::kGptq || (from.layout == ForeignLayout::kPlanar && from.bits != 3);
  if (stream && from.order == nullptr) {  // GPTQ's stream along the inputs is the canonical one, standing upright
    const int64_t row = first * from.bits / 32;
    for (int64_t w = 0; w < words; ++w)
      load_row(from.words, row + w, from.out_features, begin, columns, tile[static_cast<size_t>(w)]);
    return;
  }
  for (int64_t w = 0; w < words; ++w) tile[static_cast<size_t>(w)].fill(0);
  Lane codes{};
  for (int64_t k = 0; k < inputs; ++k) {
    load_codes(from, from.order == nullptr ? first + k : from.order[first + k], begin, columns, codes);
    add_codes(tile, k, from.bits, codes);
  }
}

// What is stored for outputs [begin, begin + columns) of one group, row: its words.
void load_fields(const ForeignZeros& from, const std::byte* row, int64_t begin, int64_t columns, Lane& fields) {
  const int bits = from.bits;
  const uint32_t mask = (1u << bits) - 1;
  // One in every field of a word.
  const uint32_t ones = from.rule != ZeroRule::kWordPlusOne || bits == 3 ? 0 : 0xFFFFFFFFu / mask;
  const std::byte* words = row + begin * bits / 8;  // a multiple of 32 outputs is a whole number of words
  if (bits != 3) {
    const int64_t in_word = 32 / bits;
    for (int64_t w = 0; w < columns / in_word; ++w) {
      const uint32_t word = load(words, w) + ones;
      for (int64_t j = 0; j < in_word; ++j) {
        const int place = from.layout == ForeignLayout::kAwq ? kAwqPlace[static_cast<size_t>(j)] : static_cast<int>(j);
        fields[static_cast<size_t>(w * in_word + j)] = word >> (place * bits) & mask;
      }
    }
    return;
  }
  for (int64_t o = 0; o < columns; ++o) {
    const int64_t block = o / 32 * 3, place = o % 32;
    uint32_t& field = fields[static_cast<size_t>(o)];
    if (from.layout == ForeignLayout::kPlanar) {
      field = (load(words, block + place / 16) >> (2 * (place % 16)) & 3) | (load(words, block + 2) >> place & 1) << 2;
      continue;
    }
    const int64_t position = o * 3, shift = position % 32;
    field = load(words, position / 32) >> shift;
    if (shift > 29) field |= load(words, position / 32 + 1) << (32 - shift);
    field &= 7;
  }
}

// offsets: [columns]
int64_t group_offsets(const ForeignZeros& from, int64_t group, int64_t begin, int64_t columns, float* offsets) {
  const uint32_t mask = (1u << from.bits) - 1;
  const uint32_t modulo_one = from.rule == ZeroRule::kWordPlusOne && from.bits == 3,
                 plus_one = from.rule == ZeroRule::kFieldPlusOne;
  const float* scales = from.scales + group * from.out_features + begin;
  Lane fields{};
  load_fields(from, from.words + group * (from.out_features * from.bits / 8), begin, columns, fields);
  int64_t beyond = 0;
  for (int64_t c = 0; c < columns; ++c) {
    const uint32_t stored = (fields[static_cast<size_t>(c)] + modulo_one) & mask;
    beyond += plus_one & (stored == mask);
    offsets[c] = -(scales[c] * static_cast<float>(static_cast<int32_t>(stored + plus_one)));
  }
  return beyond;
}

}  // namespace

void turn_codes(const ForeignCodes& from, int64_t begin, int64_t end, uint32_t* packed) {
  const int64_t row_words = from.in_features * from.bits / 32;
  Tile tile{};
  for (; begin < end; begin += kTileColumns) {
    const int64_t columns = std::min(kTileColumns, end - begin);
    for (int64_t first = 0; first < from.in_features; first += kStep) {
      const int64_t inputs = std::min(kStep, from.in_features - first), words = inputs * from.bits / 32;
      fill(from, first, inputs, begin, columns, tile);
      uint32_t* to = packed + begin * row_words + first * from.bits / 32;
      for (size_t c = 0; c < static_cast<size_t>(columns); ++c, to += row_words) {
        for (size_t w = 0; w < static_cast<size_t>(words); ++w) to[w] = tile[w][c];
      }
    }
  }
}

int64_t turn_zeros(const ForeignZeros& from, int64_t begin, int64_t end, float* offsets) {
  constexpr int64_t kGroups = 16;  // turned at a time: a line of memory for each output
  std::array<std::array<float, kTileColumns>, kGroups> tile;
  int64_t beyond = 0;
  for (; begin < end; begin += kTileColumns) {
    const int64_t columns = std::min(kTileColumns, end - begin);
    for (int64_t first = 0; first < from.groups; first += kGroups) {
      const int64_t groups = std::min(kGroups, from.groups - first);
      for (int64_t g = 0; g < groups; ++g) {
        beyond += group_offsets(from, first + g, begin, columns, tile[static_cast<size_t>(g)].data());
      }
      for (int64_t c = 0; c < columns; ++c) {
        float* to = offsets + (begin + c) * from.groups + first;
        for (int64_t g = 0; g < groups; ++g) to[g] = tile[static_cast<size_t>(g)][static_cast<size_t>(c)];
      }
    }
  }
  return beyond;
}

}  // namespace qalora::io
