// Every instruction set against the double-precision reference and, bit by bit, against the scalar code.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "qalora/kernels/isa.h"
#include "qalora/kernels/reference.h"

namespace qalora::kernels {
namespace {

struct Matrix {
  std::vector<uint32_t> codes;
  std::vector<float> scales, offsets;
  PackedView view;

  Matrix(int64_t out_features, int64_t in_features, int64_t group_size, int bits, unsigned seed = 1) {
    view = {nullptr, nullptr, nullptr, out_features, in_features, group_size, bits};
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    codes.resize(static_cast<size_t>(out_features * view.words()));
    for (auto& word : codes)
      word = static_cast<uint32_t>(random());  // rubbish behind a row's last code must not matter
    scales.resize(static_cast<size_t>(out_features * view.groups()));
    offsets.resize(scales.size());
    for (auto& scale : scales) scale = 0.01f * normal(random);
    for (auto& offset : offsets) offset = 0.1f * normal(random);
    view.codes = codes.data(), view.scales = scales.data(), view.offsets = offsets.data();
  }
  Matrix(const Matrix&) = delete;
  size_t elements() const { return static_cast<size_t>(view.out_features * view.in_features); }
};

struct Shape {
  int64_t out_features, in_features, group_size;
};

// Whole groups, tails of every kind, groups that are no multiple of 8 or 32, a row that is one group, rows shorter than
// a group.
const Shape kShapes[] = {{4, 256, 32},  {3, 256, 64},   {5, 512, 128}, {2, 512, 256}, {4, 256, 256}, {3, 100, 32},
                         {3, 99, 32},   {3, 101, 64},   {7, 33, 32},   {5, 31, 32},   {4, 1, 32},    {6, 7, 128},
                         {3, 8, 8},     {3, 72, 24},    {3, 70, 20},   {3, 50, 7},    {3, 40, 1},    {2, 333, 333},
                         {1, 4096, 32}, {2, 1000, 128}, {9, 24, 16}};
const int kWidths[] = {2, 3, 4, 5, 6, 8};

// Not std::vector<float>::operator==: that one says that NaN differs from NaN and that -0 is 0.
template <typename T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

float from_bf16(uint16_t half) {
  const uint32_t word = uint32_t{half} << 16;
  float value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

class Dequantize : public testing::TestWithParam<const Isa*> {
 protected:
  void SetUp() override {
    if (!GetParam()->supported()) GTEST_SKIP() << "this processor has no " << GetParam()->name;
  }
  std::vector<float> run(const PackedView& view) const { return run(view, 0, view.out_features); }
  std::vector<float> run(const PackedView& view, int64_t begin, int64_t end) const {
    std::vector<float> out(static_cast<size_t>((end - begin) * view.in_features) + 1, 12345.0f);
    GetParam()->dequantize(view, begin, end, out.data());
    EXPECT_EQ(out.back(), 12345.0f) << "wrote behind the output";
    out.pop_back();
    return out;
  }
  std::vector<uint16_t> run_bf16(const PackedView& view) const {
    std::vector<uint16_t> out(static_cast<size_t>(view.out_features * view.in_features) + 1, 0xABCD);
    GetParam()->dequantize_bf16(view, 0, view.out_features, out.data());
    EXPECT_EQ(out.back(), 0xABCD) << "wrote behind the output";
    out.pop_back();
    return out;
  }
};

TEST_P(Dequantize, AgreesWithTheDoubleReference) {
  for (int bits : kWidths) {
    for (const Shape& shape : kShapes) {
      const Matrix matrix(shape.out_features, shape.in_features, shape.group_size, bits);
      std::vector<double> expected(matrix.elements());
      reference::dequantize(matrix.view, expected.data());
      const auto out = run(matrix.view);
      const auto half = run_bf16(matrix.view);
      for (size_t i = 0; i < out.size(); ++i) {
        const size_t row = i / static_cast<size_t>(shape.in_features),
                     column = i % static_cast<size_t>(shape.in_features);
        const size_t group =
            row * static_cast<size_t>(matrix.view.groups()) + column / static_cast<size_t>(shape.group_size);
        // Two roundings to fp32, half an ulp each: of the product, and of the sum.
        const double product = std::fabs(expected[i] - matrix.offsets[group]);
        const double tolerance = 0x1p-24 * (product + std::fabs(expected[i]) + product * 0x1p-24);
        ASSERT_NEAR(out[i], expected[i], tolerance) << "bits " << bits << " in " << shape.in_features << " group "
                                                    << shape.group_size << " row " << row << " column " << column;
        ASSERT_LE(std::fabs(from_bf16(half[i]) - out[i]), 0x1p-8 * std::fabs(out[i]))
            << "bf16 keeps 8 bits, half an ulp";
      }
    }
  }
}

TEST_P(Dequantize, HasTheScalarCodesBits) {
  for (int bits : kWidths) {
    for (const Shape& shape : kShapes) {
      Matrix matrix(shape.out_features, shape.in_features, shape.group_size, bits, 7);
      std::vector<float> expected(matrix.elements());
      std::vector<uint16_t> expected_bf16(matrix.elements());
      scalar::dequantize(matrix.view, 0, shape.out_features, expected.data());
      scalar::dequantize_bf16(matrix.view, 0, shape.out_features, expected_bf16.data());
      ASSERT_TRUE(same_bits(run(matrix.view), expected))
          << "bits " << bits << " in " << shape.in_features << " group " << shape.group_size;
      ASSERT_TRUE(same_bits(run_bf16(matrix.view), expected_bf16)) << "bits " << bits << " in " << shape.in_features;
      matrix.codes[0] ^= 1;  // code 0 of row 0
      ASSERT_FALSE(same_bits(run(matrix.view), expected));
      matrix.codes[0] ^= 1;
      matrix.offsets.back() += 1;
      ASSERT_FALSE(same_bits(run_bf16(matrix.view), expected_bf16));
    }
  }
}

TEST_P(Dequantize, ExactAnswers) {
  for (int bits : kWidths) {
    // scale 0.5 and offset -1 are exact in fp32 and bf16: weight k is (k mod 2^bits) / 2 - 1.
    Matrix matrix(2, 300, 64, bits);
    std::vector<uint8_t> codes(300);
    for (size_t k = 0; k < codes.size(); ++k) codes[k] = static_cast<uint8_t>(k & ((1u << bits) - 1));
    for (int64_t row = 0; row < 2; ++row)
      pack_row(codes.data(), 300, bits, matrix.codes.data() + row * matrix.view.words());
    std::fill(matrix.scales.begin(), matrix.scales.end(), 0.5f);
    std::fill(matrix.offsets.begin(), matrix.offsets.end(), -1.0f);
    const auto out = run(matrix.view);
    const auto half = run_bf16(matrix.view);
    for (size_t i = 0; i < out.size(); ++i) {
      const float expected = 0.5f * static_cast<float>(codes[i % 300]) - 1.0f;
      ASSERT_EQ(out[i], expected) << "bits " << bits << " at " << i;
      ASSERT_EQ(from_bf16(half[i]), expected) << "bits " << bits << " at " << i;
    }
  }
}

TEST_P(Dequantize, ProductIsRoundedBeforeTheSum) {
  // 3 * (1 + 2^-23) rounds up to 3 + 2^-21; less 3 leaves 2^-21. A fused multiply-add would leave 3 * 2^-23.
  for (int bits : kWidths) {
    for (int64_t in_features : {64, 5}) {
      Matrix matrix(1, in_features, 64, bits);
      const std::vector<uint8_t> codes(static_cast<size_t>(in_features), 3);
      pack_row(codes.data(), in_features, bits, matrix.codes.data());
      matrix.scales[0] = 1 + 0x1p-23f;
      matrix.offsets[0] = -3;
      for (float value : run(matrix.view)) ASSERT_EQ(value, 0x1p-21f) << "bits " << bits;
    }
  }
}

TEST_P(Dequantize, Bf16RoundsTiesToEvenAndKeepsInfinityAndNan) {
  const struct {
    float value;
    uint16_t expected;
  } cases[] = {{1.0f + 0x1p-8f, 0x3F80},      // a tie, down to the even 1
               {1.0f + 3 * 0x1p-8f, 0x3F82},  // a tie, up to the even one
               {1.0f + 0x1.02p-8f, 0x3F81},   // above the tie
               {-0.0f, 0x8000},
               {3.4e38f, 0x7F80},  // rounds up to infinity
               {std::numeric_limits<float>::infinity(), 0x7F80},
               {0x1p-133f, 0x0001}};  // the smallest denormal
  for (int bits : kWidths) {
    for (int64_t in_features : {32, 3}) {
      Matrix matrix(1, in_features, 32, bits);
      std::fill(matrix.codes.begin(), matrix.codes.end(), 0u);
      matrix.scales[0] = -0.0f;  // times code 0: -0, which adds nothing to any offset
      for (const auto& c : cases) {
        matrix.offsets[0] = c.value;
        for (uint16_t half : run_bf16(matrix.view)) ASSERT_EQ(half, c.expected) << c.value << " bits " << bits;
      }
      uint32_t low_nan = 0x7F800001;  // its high half alone would be infinity
      std::memcpy(&matrix.offsets[0], &low_nan, sizeof low_nan);
      for (uint16_t half : run_bf16(matrix.view)) ASSERT_TRUE(std::isnan(from_bf16(half))) << "bits " << bits;
      for (float value : run(matrix.view)) ASSERT_TRUE(std::isnan(value));
    }
  }
}

TEST_P(Dequantize, RowsFromTheMiddle) {
  for (int bits : kWidths) {
    const Matrix matrix(9, 77, 32, bits);
    const auto all = run(matrix.view), part = run(matrix.view, 3, 7);
    EXPECT_TRUE(same_bits(part, std::vector<float>(all.begin() + 3 * 77, all.begin() + 7 * 77)));
    EXPECT_FALSE(same_bits(part, std::vector<float>(all.begin() + 2 * 77, all.begin() + 6 * 77)));
  }
}

TEST_P(Dequantize, AnyAddress) {
  for (int bits : kWidths) {
    const Matrix matrix(3, 99, 32, bits);
    const auto expected = run(matrix.view);
    const auto moved = [](const void* data, size_t bytes, size_t shift) {
      std::vector<unsigned char> copy(bytes + shift);
      std::memcpy(copy.data() + shift, data, bytes);
      return copy;
    };
    for (size_t shift = 1; shift < 4; ++shift) {
      const auto codes = moved(matrix.codes.data(), matrix.codes.size() * 4, shift);
      const auto scales = moved(matrix.scales.data(), matrix.scales.size() * 4, shift);
      const auto offsets = moved(matrix.offsets.data(), matrix.offsets.size() * 4, shift);
      PackedView view = matrix.view;
      view.codes = reinterpret_cast<const uint32_t*>(codes.data() + shift);
      view.scales = reinterpret_cast<const float*>(scales.data() + shift);
      view.offsets = reinterpret_cast<const float*>(offsets.data() + shift);
      EXPECT_TRUE(same_bits(run(view), expected)) << "bits " << bits << " shift " << shift;
    }
  }
}

TEST_P(Dequantize, NeverReadsBehindTheCodes) {
  // The codes end where an unreadable page begins.
  const size_t page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  auto* pages = static_cast<unsigned char*>(
      ::mmap(nullptr, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(pages, MAP_FAILED);
  ASSERT_EQ(::mprotect(pages + page, page, PROT_NONE), 0);
  for (int bits : kWidths) {
    for (int64_t in_features = 1; in_features <= 70; ++in_features) {
      const Matrix matrix(3, in_features, 32, bits);
      PackedView view = matrix.view;
      const size_t bytes = matrix.codes.size() * 4;
      std::memcpy(pages + page - bytes, matrix.codes.data(), bytes);
      view.codes = reinterpret_cast<const uint32_t*>(pages + page - bytes);
      ASSERT_TRUE(same_bits(run(view), run(matrix.view))) << "bits " << bits << " in " << in_features;
    }
  }
  ::munmap(pages, 2 * page);
}

INSTANTIATE_TEST_SUITE_P(EveryIsa, Dequantize, testing::Values(&kIsas[0], &kIsas[1], &kIsas[2]),
                         [](const auto& info) { return std::string(info.param->name); });

}  // namespace
}  // namespace qalora::kernels
