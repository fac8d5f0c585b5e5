#include "qalora/io/gptq_view.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>

#include "qalora/core/error.h"
#include "qalora/io/input_order.h"
#include "support/memory_source.h"
#include "support/support.h"

namespace qalora::io {
namespace {

using Json = nlohmann::json;
using Tensors = std::map<std::string, at::Tensor>;

constexpr int64_t kIn = 160, kOut = 96, kGroup = 32;  // neither a whole tile of outputs nor of inputs
const std::string kModule = "model.layers.0.mlp.up_proj";

void expect_part(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << "'" << part << "' is not in: " << text;
}

// ---- A plain writer of the layouts: one bit after the other.

// values: [count] i64 below 2^bits -> words in which value k has its bit j at place(k, j)
std::vector<int32_t> pack(const at::Tensor& values, int bits, const std::function<int64_t(int64_t, int)>& place) {
  std::vector<uint32_t> words(static_cast<size_t>(values.size(0) * bits / 32));
  for (int64_t k = 0; k < values.size(0); ++k) {
    for (int j = 0; j < bits; ++j) {
      const uint32_t bit = static_cast<uint32_t>(values[k].item<int64_t>() >> j & 1);
      words[static_cast<size_t>(place(k, j) / 32)] |= bit << (place(k, j) % 32);
    }
  }
  return {words.begin(), words.end()};
}

std::vector<int32_t> pack_as(ForeignLayout layout, int bits, const at::Tensor& values) {
  return pack(values, bits, [=](int64_t k, int j) -> int64_t {
    if (layout == ForeignLayout::kAwq) {
      static const int kNibble[] = {0, 4, 1, 5, 2, 6, 3, 7};
      return k / 8 * 32 + 4 * kNibble[k % 8] + j;
    }
    if (layout == ForeignLayout::kPlanar && bits == 3) return k / 32 * 96 + (j < 2 ? k % 32 * 2 + j : 64 + k % 32);
    return k * bits + j;
  });
}

at::Tensor rows_of(const at::Tensor& values, ForeignLayout layout, int bits) {  // [rows, count] -> [rows, words] i32
  std::vector<at::Tensor> rows;
  for (int64_t r = 0; r < values.size(0); ++r) rows.push_back(at::tensor(pack_as(layout, bits, values[r]), at::kInt));
  return at::stack(rows);
}

struct Layer {
  at::Tensor codes, zeros, scales;  // [in, out], [groups, out] i64, [groups, out] f16
  int64_t groups() const { return zeros.size(0); }
};

Layer random_layer(int bits, int64_t groups = kIn / kGroup) {
  at::manual_seed(bits);
  const int64_t top = int64_t{1} << bits;
  return {at::randint(0, top, {kIn, kOut}, at::kLong), at::randint(0, top, {groups, kOut}, at::kLong),
          at::rand({groups, kOut}).to(at::kHalf)};
}

Tensors packed(const Layer& layer, ForeignLayout layout, int bits) {
  const bool awq = layout == ForeignLayout::kAwq;
  const at::Tensor codes =
      awq ? rows_of(layer.codes, layout, bits) : rows_of(layer.codes.t(), layout, bits).t().contiguous();
  return {{kModule + ".qweight", codes},
          {kModule + ".qzeros", rows_of(layer.zeros, layout, bits)},
          {kModule + ".scales", layer.scales}};
}

ForeignQuantization settings(ForeignLayout layout, int bits, int64_t group_size = kGroup) {
  return {.layout = layout,
          .zeros = ZeroRule::kStored,
          .bits = bits,
          .group_size = group_size,
          .overrides = false,
          .act_order = false,
          .name = "quantize_config.json"};
}

GptqView view_of(const Tensors& tensors, const ForeignQuantization& quantization, bool has_bias = false) {
  return GptqView(std::make_unique<test::MemorySource>(tensors), quantization,
                  [=](const std::string&) { return has_bias; });
}

std::string refusal(const Tensors& tensors, const ForeignQuantization& quantization) {
  try {
    view_of(tensors, quantization);
  } catch (const DataError& error) {
    return error.what();
  }
  ADD_FAILURE() << "nothing was refused";
  return "";
}

// The canonical words of the codes in this order of the inputs.
at::Tensor canonical(const Layer& layer, int bits, const at::Tensor& order = {}) {
  const at::Tensor codes = order.defined() ? layer.codes.index_select(0, order) : layer.codes;
  return rows_of(codes.t(), ForeignLayout::kGptq, bits);
}

struct Case {
  ForeignLayout layout;
  int bits;
};
const Case kCases[] = {{ForeignLayout::kGptq, 2}, {ForeignLayout::kGptq, 3},   {ForeignLayout::kGptq, 4},
                       {ForeignLayout::kGptq, 8}, {ForeignLayout::kPlanar, 3}, {ForeignLayout::kPlanar, 4},
                       {ForeignLayout::kAwq, 4}};

TEST(GptqView, EveryLayoutBecomesTheCanonicalOne) {
  for (const auto& [layout, bits] : kCases) {
    SCOPED_TRACE(message("layout ", static_cast<int>(layout), ", bits ", bits));
    const Layer layer = random_layer(bits);
    const GptqView view = view_of(packed(layer, layout, bits), settings(layout, bits));
    EXPECT_EQ(view.tensors().size(), 3u);
    EXPECT_EQ(view.info(kModule + ".weight").dtype, Dtype::kU32);
    EXPECT_EQ(view.info(kModule + ".weight").shape, (std::vector<int64_t>{kOut, kIn * bits / 32}));
    EXPECT_TRUE(view.read(kModule + ".weight").equal(canonical(layer, bits)));
    EXPECT_TRUE(view.read(kModule + ".scales").equal(layer.scales.to(at::kFloat).t()));
    const at::Tensor offsets = view.read(kModule + ".biases");
    EXPECT_TRUE(offsets.equal(-(layer.scales.to(at::kFloat) * layer.zeros).t()));
    EXPECT_TRUE(at::round(-offsets / view.read(kModule + ".scales")).equal(layer.zeros.t().to(at::kFloat)));
    for (const auto& [name, info] : view.tensors()) EXPECT_EQ(view.bytes(name).span.size(), info.bytes()) << name;
  }
}

TEST(GptqView, LayoutsAreNotEachOthers) {
  const Layer layer = random_layer(3);
  const Tensors planar = packed(layer, ForeignLayout::kPlanar, 3);
  const GptqView view = view_of(planar, settings(ForeignLayout::kGptq, 3));
  EXPECT_FALSE(view.read(kModule + ".weight").equal(canonical(layer, 3)));
  EXPECT_FALSE(view.read(kModule + ".biases").equal(-(layer.scales.to(at::kFloat) * layer.zeros).t()));
}

TEST(GptqView, SortedGroupsComeInOrder) {
  for (const auto& [layout, bits] : kCases) {
    SCOPED_TRACE(message("layout ", static_cast<int>(layout), ", bits ", bits));
    const Layer layer = random_layer(bits);
    Tensors tensors = packed(layer, layout, bits);
    const at::Tensor groups_of =
        at::arange(kIn, at::kInt).floor_divide(kGroup).index_select(0, at::randperm(kIn, at::kLong));
    tensors[kModule + ".g_idx"] = groups_of;
    const GptqView view = view_of(tensors, settings(layout, bits));
    const at::Tensor order = groups_of.argsort(/*stable=*/true, 0, /*descending=*/false);
    EXPECT_TRUE(view.read(kModule + ".weight").equal(canonical(layer, bits, order)));
    EXPECT_FALSE(view.read(kModule + ".weight").equal(canonical(layer, bits)));
    EXPECT_TRUE(view.read(kModule + ".g_idx").equal(groups_of));
    EXPECT_TRUE(input_order("g", groups_of, kGroup).equal(order));
    // A plain grouping says nothing.
    tensors[kModule + ".g_idx"] = at::arange(kIn, at::kInt).floor_divide(kGroup).to(at::kInt);
    EXPECT_FALSE(view_of(tensors, settings(layout, bits)).contains(kModule + ".g_idx"));
  }
}

TEST(GptqView, WholeRowsAndAShorterLastGroup) {
  const Layer whole = random_layer(4, 1);
  EXPECT_EQ(view_of(packed(whole, ForeignLayout::kGptq, 4), settings(ForeignLayout::kGptq, 4, -1))
                .info(kModule + ".scales")
                .shape[1],
            1);
  const Layer three = random_layer(4, 3);  // 64, 64, 32
  Tensors tensors = packed(three, ForeignLayout::kGptq, 4);
  EXPECT_EQ(view_of(tensors, settings(ForeignLayout::kGptq, 4, 64)).info(kModule + ".biases").shape[1], 3);
  tensors[kModule + ".g_idx"] = at::arange(kIn - 1, -1, -1, at::kInt).floor_divide(64).to(at::kInt);
  EXPECT_TRUE(view_of(tensors, settings(ForeignLayout::kGptq, 4, 64)).contains(kModule + ".g_idx"));
}

TEST(GptqView, ABiasOfZerosIsLeftOutWhereTheArchitectureHasNone) {
  Tensors tensors = packed(random_layer(4), ForeignLayout::kGptq, 4);
  const auto quantization = settings(ForeignLayout::kGptq, 4);
  const std::string bias = kModule + ".bias";
  tensors[bias] = at::zeros({kOut}, at::kHalf);
  EXPECT_FALSE(view_of(tensors, quantization).contains(bias));
  EXPECT_TRUE(view_of(tensors, quantization, /*has_bias=*/true).contains(bias));
  tensors[bias][3] = 1;
  EXPECT_TRUE(view_of(tensors, quantization).contains(bias));
  EXPECT_TRUE(view_of(tensors, quantization).read(bias).equal(tensors[bias]));
}

TEST(GptqView, ModulesWithBitsOfTheirOwnSayThem) {
  Tensors tensors = packed(random_layer(8, 5), ForeignLayout::kGptq, 8);
  auto quantization = settings(ForeignLayout::kGptq, 4, 64);
  expect_part(refusal(tensors, quantization), "4 bits");
  quantization.overrides = true;
  const GptqView view = view_of(tensors, quantization);
  EXPECT_EQ(view.quantization(),
            (Json{{"bits", 4}, {"group_size", 64}, {"mode", "affine"}, {kModule, {{"bits", 8}, {"group_size", 32}}}}));
  EXPECT_TRUE(view.read(kModule + ".weight").equal(canonical(random_layer(8, 5), 8)));
}

TEST(GptqView, AwqHasFourBitsInEveryModule) {
  Tensors tensors = packed(random_layer(4), ForeignLayout::kAwq, 4);
  auto quantization = settings(ForeignLayout::kAwq, 4, 64);
  quantization.overrides = true;
  EXPECT_TRUE(view_of(tensors, quantization).read(kModule + ".weight").equal(canonical(random_layer(4), 4)));
  for (const int64_t words : {6, 9, 24}) {  // as zero points of 2, 3 and 8 bits have
    tensors[kModule + ".qzeros"] = at::zeros({kIn / kGroup, words}, at::kInt);
    expect_part(refusal(tensors, quantization), "of 4 bits in 32-bit words");
  }
}

// ---- What is refused, and with which words.

TEST(GptqView, GroupsThatNothingNamesAreRefused) {
  Tensors tensors = packed(random_layer(4), ForeignLayout::kGptq, 4);
  auto quantization = settings(ForeignLayout::kGptq, 4);
  EXPECT_NO_THROW(view_of(tensors, quantization));
  quantization.act_order = true;
  expect_part(refusal(tensors, quantization), ".g_idx' is missing, but quantize_config.json says desc_act");
  tensors[kModule + ".g_idx"] = at::arange(kIn, at::kInt).floor_divide(kGroup).to(at::kInt);
  EXPECT_NO_THROW(view_of(tensors, quantization));
  quantization.group_size = -1;  // one group has all inputs
  EXPECT_NO_THROW(view_of(packed(random_layer(4, 1), ForeignLayout::kGptq, 4), quantization));
}

TEST(GptqView, DamagedTensorsAreRefusedByName) {
  const auto quantization = settings(ForeignLayout::kGptq, 4);
  const auto with = [](const std::string& part, const at::Tensor& value) {
    Tensors tensors = packed(random_layer(4), ForeignLayout::kGptq, 4);
    if (value.defined()) tensors[kModule + part] = value;
    else tensors.erase(kModule + part);
    return tensors;
  };
  const auto ints = [](at::IntArrayRef shape) { return at::zeros(shape, at::kInt); };
  const auto groups = [] { return at::arange(kIn, at::kInt).floor_divide(kGroup).to(at::kInt); };
  const auto changed = [&](int64_t index, int value) {
    at::Tensor result = groups();
    result[index] = value;
    return result;
  };
  const std::vector<std::tuple<std::string, at::Tensor, std::string>> cases = {
      {".qzeros", {}, "has no '" + kModule + ".qzeros'"},
      {".scales", {}, "has no '" + kModule + ".scales'"},
      {".qweight", ints({20, kOut, 1}), ".qweight' has shape [20, 96, 1], which is absurd"},
      {".qweight", ints({20}), "expected two dimensions"},
      {".qweight", at::zeros({20, kOut}, at::kLong), "is I64, expected I32"},
      {".qweight", ints({20, kOut - 1}), ".qweight' has shape [20, 95]"},
      {".qweight", ints({0, kOut}), ".qweight' has shape [0, 96], which is absurd"},
      {".qweight", ints({19, kOut}), "152 inputs, expected a multiple of 32"},
      {".qweight", ints({24, kOut}), ".scales' has 5 groups, expected 6 for 192 inputs"},
      {".qzeros", ints({4, 12}), ".qzeros' has shape [4, 12], expected 5 groups"},
      {".qzeros", ints({5, 24}), "of 4 bits in 32-bit words, as quantize_config.json says"},
      {".qzeros", at::zeros({5, 12}), "is F32, expected I32"},
      {".scales", ints({5, kOut}), "is I32, expected F16"},
      {".scales", at::ones({5, 40}), "40 outputs, expected a multiple of 32"},
      {".scales", at::ones({5}), "expected two dimensions"},
      {".g_idx", ints({kIn - 1}), ".g_idx' has shape [159], expected [160]"},
      {".g_idx", at::zeros({kIn}), "is F32, expected I32"},
      {".g_idx", changed(7, -1), "input 7 is said to be of group -1"},
      {".g_idx", changed(7, 5), "input 7 is said to be of group 5, there are 5 groups"},
      {".g_idx", changed(7, 1), "group 1 has more than 32 inputs"},
      {".zeros", at::ones({5}), ".zeros' beside"},
      {".weight", at::ones({5}), ".weight' beside"},
      {".bias", ints({kOut}), "is I32, expected F16"},
  };
  for (const auto& [part, value, words] : cases) expect_part(refusal(with(part, value), quantization), words);
  expect_part(refusal(with(".g_idx", changed(0, -1)), quantization), "memory.safetensors: tensor '" + kModule);
  EXPECT_NO_THROW(view_of(with(".g_idx", groups()), quantization));
}

TEST(GptqView, AConfigurationThatLiesIsRefused) {
  const Tensors four = packed(random_layer(4), ForeignLayout::kGptq, 4);
  expect_part(refusal(four, settings(ForeignLayout::kGptq, 2)), "of 2 bits");
  expect_part(refusal(four, settings(ForeignLayout::kGptq, 8)), "of 8 bits");
  expect_part(refusal(four, settings(ForeignLayout::kGptq, 4, 64)), "5 groups, expected 3");
  expect_part(refusal(four, settings(ForeignLayout::kGptq, 4, -1)), "5 groups, expected 1");
  expect_part(refusal(four, settings(ForeignLayout::kAwq, 4)), "in AWQ's order");
  expect_part(refusal(packed(random_layer(4), ForeignLayout::kAwq, 4), settings(ForeignLayout::kGptq, 4)),
              "in GPTQ's order");
}

// ---- The zero points' rules, on one word each.

at::Tensor zeros_read(ZeroRule rule, int bits, const at::Tensor& stored) {
  Layer layer = random_layer(bits);
  layer.zeros = stored;
  layer.scales = at::ones_like(layer.scales);
  auto quantization = settings(ForeignLayout::kGptq, bits);
  quantization.zeros = rule;
  return -view_of(packed(layer, ForeignLayout::kGptq, bits), quantization).read(kModule + ".biases").t();
}

TEST(GptqView, ZeroPointsFollowTheirWriter) {
  for (const int bits : {2, 3, 4, 8}) {
    SCOPED_TRACE(bits);
    const int64_t top = (int64_t{1} << bits) - 1;
    at::Tensor stored = at::randint(0, top, {kIn / kGroup, kOut}, at::kLong);  // below the largest
    EXPECT_TRUE(zeros_read(ZeroRule::kStored, bits, stored).equal(stored.to(at::kFloat)));
    EXPECT_TRUE(zeros_read(ZeroRule::kFieldPlusOne, bits, stored).equal((stored + 1).to(at::kFloat)));
    EXPECT_TRUE(zeros_read(ZeroRule::kWordPlusOne, bits, stored).equal((stored + 1).to(at::kFloat)));
    stored[0][0] = top;  // the lowest field of its word
    EXPECT_EQ(zeros_read(ZeroRule::kFieldPlusOne, bits, stored)[0][0].item<int64_t>(), top + 1);
    const at::Tensor word = zeros_read(ZeroRule::kWordPlusOne, bits, stored);
    EXPECT_EQ(word[0][0].item<int64_t>(), 0);
    // A whole word was one smaller: the borrow went to its neighbour, except at 3 bits.
    EXPECT_EQ(word[0][1].item<int64_t>(), (stored[0][1].item<int64_t>() + (bits == 3 ? 1 : 2)) % (top + 1));
  }
}

// ---- Configurations.

class ForeignConfig : public ::testing::Test {
 protected:
  ForeignQuantization read(const Json& own, const Json& in_config = nullptr,
                           const std::string& file = "quantize_config.json") {
    fs::remove_all(dir_.path());
    fs::create_directories(dir_.path());
    if (!own.is_null()) test::write_file(dir_ / file, own.dump());
    config_ = Json::object();
    if (!in_config.is_null()) config_["quantization_config"] = in_config;
    return read_foreign_quantization(dir_.path(), config_);
  }
  std::string refusal(const Json& own, const Json& in_config = nullptr) {
    try {
      read(own, in_config);
    } catch (const DataError& error) {
      return error.what();
    }
    ADD_FAILURE() << "nothing was refused";
    return "";
  }

  test::TempDir dir_;
  Json config_;
};

TEST_F(ForeignConfig, EverySpellingIsUnderstood) {
  const auto v1 = read({{"bits", 4}, {"group_size", 128}, {"desc_act", false}});
  EXPECT_EQ(v1.layout, ForeignLayout::kGptq);
  EXPECT_EQ(v1.zeros, ZeroRule::kFieldPlusOne);
  EXPECT_EQ(v1.bits, 4);
  EXPECT_EQ(v1.group_size, 128);
  EXPECT_FALSE(v1.overrides);
  EXPECT_FALSE(v1.act_order);
  EXPECT_TRUE(read({{"bits", 4}, {"group_size", 128}, {"desc_act", true}}).act_order);
  EXPECT_TRUE(
      read(nullptr, {{"quant_method", "gptq"}, {"bits", 4}, {"group_size", 128}, {"desc_act", true}}).act_order);
  EXPECT_TRUE(is_foreign_quantised(dir_.path(), config_));
  const Json meta = {{"quantizer", {"optimum:1.23", "gptqmodel:7.6.0"}}};
  EXPECT_EQ(read({{"bits", 3}, {"group_size", -1}, {"checkpoint_format", "gptq"}, {"meta", meta}}).zeros,
            ZeroRule::kWordPlusOne);
  EXPECT_EQ(read({{"bits", 3}, {"group_size", -1}, {"format", "gptq_v2"}, {"meta", meta}}).zeros, ZeroRule::kStored);
  EXPECT_EQ(read({{"bits", 3}, {"group_size", 32}, {"format", "gptq_p"}, {"meta", meta}}).layout,
            ForeignLayout::kPlanar);
  EXPECT_TRUE(read({{"bits", 4}, {"group_size", 32}, {"dynamic", {{"+:down", {{"bits", 8}}}}}}).overrides);
  const auto awq = read({{"w_bit", 4}, {"q_group_size", 128}, {"zero_point", true}, {"version", "GEMM"}}, nullptr,
                        "quant_config.json");
  EXPECT_EQ(awq.layout, ForeignLayout::kAwq);
  EXPECT_EQ(awq.zeros, ZeroRule::kStored);
  EXPECT_EQ(awq.group_size, 128);
  const auto both = read({{"w_bit", 4}, {"q_group_size", 64}, {"version", "GEMM"}},
                         {{"quant_method", "awq"}, {"bits", 4}, {"group_size", 64}, {"version", "gemm"}});
  EXPECT_EQ(both.group_size, 64);
  EXPECT_EQ(read(nullptr, {{"quant_method", "gptq"}, {"bits", 2}, {"group_size", 64}}).bits, 2);
  EXPECT_TRUE(is_foreign_quantised(dir_.path(), config_));
  EXPECT_FALSE(
      is_foreign_quantised(dir_.path(), {{"quantization_config", {{"bits", 4}, {"group_size", 64}}}}));  // MLX's
}

TEST_F(ForeignConfig, WhatIsNotReadSaysWhy) {
  const auto with = [](const std::string& key, const Json& value) {
    Json result = {{"bits", 4}, {"group_size", 32}, {"quant_method", "gptq"}};
    result[key] = value;
    return result;
  };
  expect_part(refusal(nullptr), "nothing says how");
  for (const Json& bits : {Json(5), Json(0), Json(-4), Json("4"), Json(4.0), Json(nullptr), Json(int64_t{1} << 40)}) {
    expect_part(refusal(with("bits", bits)), "expected 2, 3, 4 or 8");
  }
  for (const Json& size : {Json(0), Json(-2), Json(int64_t{1} << 40), Json("32"), Json(nullptr)}) {
    expect_part(refusal(with("group_size", size)), "expected -1 (whole rows)");
  }
  expect_part(refusal(with("quant_method", "bitsandbytes")), "quant_method 'bitsandbytes' is not read");
  expect_part(refusal(with("quant_method", 3)), "expected text");
  expect_part(refusal(with("checkpoint_format", "marlin")), "format 'marlin' is not read");
  expect_part(refusal(with("is_marlin_format", true)), "Marlin's order");
  expect_part(refusal(with("pack_dtype", "int16")), "only int32");
  expect_part(refusal({{"w_bit", 4}, {"q_group_size", 128}, {"version", "gemv_fast"}}),
              "AWQ's layout 'gemv_fast' is not read");
  expect_part(refusal({{"w_bit", 3}, {"q_group_size", 128}, {"version", "gemm"}}), "expected 4");
  expect_part(refusal(with("bits", 4), with("bits", 3)), "'bits' is 3, but");
  expect_part(refusal(Json::array()), "expected a JSON object");
}

TEST(ForeignConfigBias, FollowsTheArchitecture) {
  const Json llama = {{"model_type", "llama"}}, qwen = {{"model_type", "qwen2"}};
  EXPECT_FALSE(architecture_has_bias(llama, "model.layers.0.self_attn.q_proj"));
  EXPECT_TRUE(architecture_has_bias(qwen, "model.layers.0.self_attn.q_proj"));
  EXPECT_FALSE(architecture_has_bias(qwen, "model.layers.0.self_attn.o_proj"));
  EXPECT_TRUE(architecture_has_bias({{"attention_bias", true}}, "model.layers.0.self_attn.o_proj"));
  EXPECT_FALSE(architecture_has_bias({{"attention_bias", true}}, "model.layers.0.mlp.up_proj"));
  EXPECT_TRUE(architecture_has_bias({{"mlp_bias", true}}, "model.layers.0.mlp.up_proj"));
  EXPECT_FALSE(architecture_has_bias(nullptr, "lm_head"));
}

}  // namespace
}  // namespace qalora::io
