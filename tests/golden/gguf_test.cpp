// GGUF files and blocks that the gguf package wrote, against what it and a double-precision forward pass say (see the
// goldens' README).
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cstring>

#include "golden/logits.h"
#include "qalora/core/error.h"
#include "qalora/io/gguf_blocks.h"
#include "qalora/io/gguf_checkpoint.h"
#include "qalora/io/safetensors.h"
#include "qalora/model/load.h"
#include "support/support.h"

namespace qalora {
namespace {

fs::path golden(const std::string& name) { return test::shared_dir() / "goldens/gguf" / name; }

class GgufBlocks : public ::testing::TestWithParam<std::pair<const char*, io::GgufType>> {};

TEST_P(GgufBlocks, DequantiseAsTheGgufPackageDoes) {
  REQUIRE_SHARED("goldens/gguf/blocks.safetensors");
  const auto [name, type] = GetParam();
  const io::SafetensorsFile file(golden("blocks.safetensors"));
  const at::Tensor raw = file.read(std::string(name) + ".raw"),
                   expected = file.read(std::string(name) + ".dequantised");
  const int64_t rows = expected.size(0), columns = expected.size(1);
  at::Tensor values = at::empty({rows, columns}), last = at::empty({rows, columns});
  for (int64_t row = 0; row < rows; ++row) {
    const auto* bytes = static_cast<const std::byte*>(raw[row].const_data_ptr());
    io::gguf_row_values(type, bytes, columns / 32, values[row].data_ptr<float>());
    // The same through codes, scales and offsets.
    const int bits = io::gguf_code_bits(type);
    std::vector<uint32_t> codes(static_cast<size_t>(kernels::words_per_row(columns, bits)));
    std::vector<float> scales(static_cast<size_t>(columns / 32)), offsets(scales.size());
    io::gguf_row_codes(type, bytes, columns / 32, bits, codes.data());
    io::gguf_row_scales(type, bytes, columns / 32, scales.data());
    io::gguf_row_offsets(type, bytes, columns / 32, offsets.data());
    std::vector<uint8_t> each(static_cast<size_t>(columns));
    kernels::unpack_row(codes.data(), columns, bits, each.data());
    for (int64_t i = 0; i < columns; ++i) {
      last[row][i] = scales[static_cast<size_t>(i / 32)] * static_cast<float>(each[static_cast<size_t>(i)]) +
                     offsets[static_cast<size_t>(i / 32)];
    }
  }
  const double largest = expected.abs().max().item<double>();
  EXPECT_LE(model::distance(values, expected), 1e-7 * largest);
  EXPECT_LE(model::distance(last, expected), 1e-7 * largest);
  // Must differ: neighbouring elements in one byte, as MLX has them.
  EXPECT_GT(model::distance(values.view({rows, -1, 2, 16}).transpose(2, 3).reshape({rows, columns}), expected),
            0.01 * largest);
}

INSTANTIATE_TEST_SUITE_P(Types, GgufBlocks,
                         ::testing::Values(std::pair{"Q4_0", io::GgufType::kQ4_0},
                                           std::pair{"Q4_1", io::GgufType::kQ4_1},
                                           std::pair{"Q8_0", io::GgufType::kQ8_0}));

TEST(GgufGolden, LogitsOfAQ4_1File) {
  REQUIRE_SHARED("goldens/gguf/tiny_q4_1.gguf");
  const io::SafetensorsFile expected(golden("tiny_q4_1.expected.safetensors"));
  model::Llama model = model::load_model(golden("tiny_q4_1.gguf"), {});
  ASSERT_TRUE(model.config.quantization.has_value());
  EXPECT_EQ(model.config.quantization->bits, 4);
  EXPECT_EQ(model.config.quantization->group_size, 32);
  EXPECT_EQ(model.config.norm_eps, 1e-5);  // the decimal that was meant, not its f32 neighbour
  const at::Tensor ids = expected.read("input_ids").to(at::kLong), logits = expected.read("logits");
  EXPECT_LE(model::distance(model::logits_of(model, ids), logits), 1e-4);
}

// Row 2 j + t of a head in the file is row 8 t + j here; not the same order.
TEST(GgufGolden, RowsOfQAreInOurOrder) {
  REQUIRE_SHARED("goldens/gguf/tiny_q4_1.gguf");
  const io::GgufCheckpoint checkpoint(golden("tiny_q4_1.gguf"));
  const at::Tensor ours = checkpoint.read("model.layers.0.self_attn.q_proj.scales");
  const auto& stored = checkpoint.file().contents().tensors.at("blk.0.attn_q.weight");
  at::Tensor as_it_lies = at::empty_like(ours);
  for (int64_t row = 0; row < ours.size(0); ++row) {
    io::gguf_row_scales(io::GgufType::kQ4_1, stored.bytes.data() + row * 40, 2, as_it_lies[row].data_ptr<float>());
  }
  EXPECT_FALSE(at::equal(ours, as_it_lies));
  for (const int64_t head : {0, 3}) {
    const at::Tensor there = as_it_lies.narrow(0, head * 16, 16), here = ours.narrow(0, head * 16, 16);
    EXPECT_TRUE(at::equal(here.slice(0, 0, 8), there.slice(0, 0, 16, 2)));
    EXPECT_TRUE(at::equal(here.slice(0, 8, 16), there.slice(0, 1, 16, 2)));
  }
}

}  // namespace
}  // namespace qalora
