// Whole checkpoints and single tensors in the layouts of other quantisers, against what those wrote and computed (see
// the goldens' README).
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <functional>
#include <nlohmann/json.hpp>

#include "golden/logits.h"
#include "qalora/core/error.h"
#include "qalora/io/checkpoint.h"
#include "qalora/io/gptq_view.h"
#include "qalora/model/load.h"
#include "qalora/model/merge_checkpoint.h"
#include "support/memory_source.h"
#include "support/support.h"
#include "unit/model/random_checkpoint.h"

namespace qalora::model {
namespace {

// The codes of a packed weight, columns as the inputs come. [out_features, in_features] u8
at::Tensor codes_of(const quant::PackedWeight& weight) {
  at::Tensor codes = at::empty({weight.out_features(), weight.in_features}, at::kByte);
  for (int64_t row = 0; row < weight.out_features(); ++row) {
    const auto* words =
        reinterpret_cast<const uint32_t*>(weight.codes.const_data_ptr<int32_t>()) + row * weight.codes.size(1);
    kernels::unpack_row(words, weight.in_features, weight.bits, codes.data_ptr<uint8_t>() + row * weight.in_features);
  }
  return weight.input_order.defined() ? codes.index_select(1, weight.input_order.argsort()) : codes;
}

at::Tensor zeros_of(const quant::PackedWeight& weight) { return at::round(-weight.offsets / weight.scales); }

class GptqFolder : public ::testing::TestWithParam<const char*> {};

TEST_P(GptqFolder, GivesTheRecordedLogitsCodesAndWeights) {
  const std::string relative = std::string("goldens/gptq/") + GetParam();
  REQUIRE_SHARED(relative);
  const fs::path folder = test::shared_dir() / relative;
  const io::SafetensorsFile expected(folder / "expected.safetensors");
  Llama model = load_model(folder, {});
  const at::Tensor ids = expected.read("input_ids").to(at::kLong), golden = expected.read("logits");
  EXPECT_LE(distance(logits_of(model, ids), golden), 1e-4);

  const io::Checkpoint checkpoint(folder);
  int modules = 0;
  for (const auto& [name, info] : expected.tensors()) {
    if (!name.ends_with(".codes")) continue;
    const std::string module = io::module_of(name);
    const quant::PackedWeight weight =
        read_packed(checkpoint, module, info.shape[0], info.shape[1], *model.config.quantization);
    EXPECT_TRUE(codes_of(weight).equal(expected.read(name))) << module;
    EXPECT_TRUE(zeros_of(weight).equal(expected.read(module + ".zeros").to(at::kFloat))) << module;
    EXPECT_TRUE(weight.dequantize(at::kFloat).equal(expected.read(module + ".dequantised"))) << module;
    // Every offset says its zero point, to the last bit (gptq_view.h).
    EXPECT_TRUE((-(weight.scales * zeros_of(weight))).equal(weight.offsets)) << module;
    ++modules;
  }
  EXPECT_GE(modules, 1);

  // Must differ: every zero point off by one.
  for (Linear* linear : model.linears()) {
    quant::PackedWeight weight = linear->packed();
    weight.offsets = weight.offsets - weight.scales;
    weight.input_order = linear->input_order();
    *linear = Linear(linear->module(), std::move(weight));
  }
  EXPECT_GT(distance(logits_of(model, ids), golden), 0.1);
}

// A layer that AutoAWQ packed and dequantised itself (data/make_awq.py), in a folder with the config.json that it
// writes.
TEST(AwqGolden, GivesTheCodesZerosAndWeightsOfAutoAwq) {
  const io::SafetensorsFile file(test::source_dir() / "tests/golden/data/awq_gemm.safetensors");
  const std::string module = "model.layers.0.mlp.up_proj";
  const test::TempDir dir;
  std::map<std::string, at::Tensor> packed;
  for (const char* part : {".qweight", ".qzeros", ".scales"}) packed[module + part] = file.read(module + part);
  io::write_safetensors(dir / "model.safetensors", packed);
  nlohmann::json config = test::random_config_json();
  config["quantization_config"] = {{"quant_method", "awq"}, {"bits", 4},         {"group_size", 32},
                                   {"zero_point", true},    {"version", "gemm"}, {"backend", nullptr}};
  io::write_json_file(dir / "config.json", config);
  const at::Tensor codes = file.read("codes"), zeros = file.read("zeros").to(at::kFloat), dense = file.read("dense");
  const quant::PackedWeight weight =
      read_packed(io::Checkpoint(dir.path()), module, codes.size(0), codes.size(1), {.bits = 4, .group_size = 32});
  EXPECT_TRUE(codes_of(weight).equal(codes));
  EXPECT_TRUE(zeros_of(weight).equal(zeros));
  // Theirs is one product in fp16.
  EXPECT_TRUE(weight.dequantize(at::kFloat).to(at::kHalf).equal(dense));
  // Must differ: the nibbles of a word as they stand, without AWQ's order.
  EXPECT_FALSE(codes_of(weight).index_select(0, at::tensor({0, 2, 4, 6, 1, 3, 5, 7})).equal(codes.slice(0, 0, 8)));
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, GptqFolder,
                         ::testing::Values("auto_gptq_w2g32_bin", "auto_gptq_w4g32", "w2g64_v2", "w3g32_planar",
                                           "w3g32_v1", "w4g32_v1", "w4g32_v1_act_order", "w4g32_v2"));

// What a folder gives, written as a folder of our own.
void write_folder(const io::Checkpoint& from, const fs::path& to) {
  std::vector<io::PlannedTensor> plan;
  for (const std::string& name : from.names()) plan.push_back({name, from.info(name).dtype, from.info(name).shape});
  io::sort_by_alignment(plan);
  fs::create_directories(to);
  io::CheckpointWriter writer(to, plan, {{"format", "mlx"}});
  for (const auto& tensor : plan) writer.write(tensor.name, from.bytes(tensor.name).span);
  writer.finish();
  const LlamaConfig config = read_config(from);
  io::write_json_file(to / "config.json", derived_config(from.config(), config, config.quantization));
}

TEST_P(GptqFolder, GoesThroughAFolderOfOursUnchanged) {
  const std::string relative = std::string("goldens/gptq/") + GetParam();
  REQUIRE_SHARED(relative);
  const fs::path folder = test::shared_dir() / relative;
  const test::TempDir dir;
  const io::Checkpoint in(folder);
  write_folder(in, dir / "ours");
  const io::Checkpoint out(dir / "ours");
  const ByteChanges changes = compare_bytes(in, out);
  EXPECT_EQ(changes.codes + changes.scales + changes.offsets + changes.others, 0u);
  EXPECT_EQ(io::base_fingerprint(in), io::base_fingerprint(out));
  EXPECT_EQ(io::base_state_fingerprint(in), io::base_state_fingerprint(out));
  const io::SafetensorsFile expected(folder / "expected.safetensors");
  Llama model = load_model(dir / "ours", {});
  EXPECT_LE(distance(logits_of(model, expected.read("input_ids").to(at::kLong)), expected.read("logits")), 1e-4);
}

// An adapter on the base and merged into it: the same logits, also where the groups' inputs do not lie side by side.
TEST_P(GptqFolder, MergesAnAdapterExactly) {
  const std::string relative = std::string("goldens/gptq/") + GetParam();
  REQUIRE_SHARED(relative);
  const fs::path folder = test::shared_dir() / relative;
  const at::Tensor ids = io::SafetensorsFile(folder / "expected.safetensors").read("input_ids").to(at::kLong);
  for (const io::Pooling pooling : {io::Pooling::kSum, io::Pooling::kMean}) {
    const test::TempDir dir;
    io::AdapterFile adapter = test::random_adapter(folder, pooling, pooling == io::Pooling::kSum ? 0.02 : 0.5);
    test::write_adapter_to(dir / "adapter", adapter);
    const io::Checkpoint base(folder);
    check_mergeable(base, dir / "adapter", adapter, false);
    fs::create_directories(dir / "merged");
    EXPECT_EQ(merge_checkpoint(base, dir / "adapter", adapter, dir / "merged"), 14);
    Llama plain = load_model(folder, {}), beside = load_model_with_adapter(folder, dir / "adapter", {}),
          merged = load_model(dir / "merged", {});
    const at::Tensor expected = logits_of(beside, ids);
    EXPECT_LE(distance(logits_of(merged, ids), expected), 1e-4);
    EXPECT_GT(distance(logits_of(plain, ids), expected), 0.05);  // must differ: no adapter
    const ByteChanges changes = compare_bytes(base, io::Checkpoint(dir / "merged"));
    EXPECT_EQ(changes.codes + changes.scales + changes.others, 0u);
    // An adapter that another program trained pools inputs that lie side by side.
    adapter.config.base_fingerprint = adapter.config.base_state_fingerprint = "";
    if (!base.contains("model.layers.0.mlp.down_proj.g_idx")) {
      EXPECT_NO_THROW(check_mergeable(base, dir / "adapter", adapter, true));
    } else {
      EXPECT_NE(
          test::refusal<DataError>([&] { check_mergeable(base, dir / "adapter", adapter, true); }).find("act-order"),
          std::string::npos);
      EXPECT_NE(test::refusal<DataError>([&] { attach_adapter(plain, adapter, {}); }).find("act-order"),
                std::string::npos);
    }
  }
}

class GptqDamage : public ::testing::Test {
 protected:
  // A copy of a golden with one tensor changed.
  void copy(const std::string& tensor, const std::function<at::Tensor(const at::Tensor&)>& change) {
    const fs::path from = test::shared_dir() / "goldens/gptq/w4g32_v1";
    const io::SafetensorsFile file(from / "model.safetensors");
    std::map<std::string, at::Tensor> tensors;
    for (const auto& [name, info] : file.tensors()) tensors[name] = file.read(name);
    tensors.at(tensor) = change(tensors.at(tensor));
    io::write_safetensors(dir_ / "model.safetensors", tensors);
    for (const char* name : {"config.json", "quantize_config.json"}) {
      fs::copy_file(from / name, dir_ / name, fs::copy_options::overwrite_existing);
    }
  }
  std::string refusal() const {
    return test::refusal<DataError>([&] { load_model(dir_.path(), {}); });
  }

  test::TempDir dir_;
  const std::string module_ = "model.layers.1.mlp.up_proj";
};

TEST_F(GptqDamage, IsNamed) {
  REQUIRE_SHARED("goldens/gptq/w4g32_v1");
  const auto with = [](std::array<int64_t, 2> place, double value) {
    return [=](const at::Tensor& tensor) {
      at::Tensor changed = tensor.clone();
      changed[place[0]][place[1]] = value;
      return changed;
    };
  };
  copy(module_ + ".scales", with({1, 3}, NAN));
  test::expect_part(refusal(), "'" + module_ + "': scales of row 3, group 1 is not finite");
  copy(module_ + ".scales", with({1, 3}, INFINITY));
  test::expect_part(refusal(), "scales of row 3, group 1 is not finite");
  copy(module_ + ".g_idx", [](const at::Tensor& groups) { return groups - 1; });
  test::expect_part(refusal(), "'" + module_ + ".g_idx': input 0 is said to be of group -1");
}

TEST_F(GptqDamage, AFolderThatDoesNotSayHowItIsPacked) {
  REQUIRE_SHARED("goldens/gptq/w4g32_v1");
  copy(module_ + ".scales", [](const at::Tensor& scales) { return scales; });
  EXPECT_NO_THROW(load_model(dir_.path(), {}));
  fs::remove(dir_ / "quantize_config.json");
  EXPECT_NO_THROW(load_model(dir_.path(), {}));  // config.json says it too
  nlohmann::json config = io::read_json_file(dir_ / "config.json");
  config.erase("quantization_config");
  io::write_json_file(dir_ / "config.json", config);
  test::expect_part(refusal(), "nothing says how");
}

// ---- Known codes and zero points in every layout.

struct Written {
  const char* by;  // the tensors' prefix
  io::ForeignLayout layout;
  io::ZeroRule zeros;
};

// The codes [out, in] and zero points [out, groups] that the view makes of "PREFIX.qweight" and "PREFIX.qzeros", both
// f32.
std::pair<at::Tensor, at::Tensor> view_of(const io::SafetensorsFile& file, const std::string& prefix,
                                          const std::string& scales, int bits, io::ForeignLayout layout,
                                          io::ZeroRule zeros) {
  auto raw = std::make_unique<test::MemorySource>(
      std::map<std::string, at::Tensor>{{"p.qweight", file.read(prefix + ".qweight")},
                                        {"p.qzeros", file.read(prefix + ".qzeros")},
                                        {"p.scales", file.read(scales).t().contiguous()}});
  const io::GptqView view(
      std::move(raw),
      {.layout = layout, .zeros = zeros, .bits = bits, .group_size = 32, .overrides = false, .name = "test"},
      [](const std::string&) { return false; });
  const quant::PackedWeight weight = quant::make_packed_weight("p", view.read("p.weight"), view.read("p.scales"),
                                                               view.read("p.biases"), 128, 32, bits);
  return {codes_of(weight).to(at::kFloat), zeros_of(weight)};
}

TEST(GptqPacking, EveryWritersCodesAndZeroPoints) {
  REQUIRE_SHARED("goldens/gptq/packing.safetensors");
  const io::SafetensorsFile file(test::shared_dir() / "goldens/gptq/packing.safetensors");
  using io::ForeignLayout, io::ZeroRule;
  const Written writers[] = {{"auto_gptq", ForeignLayout::kGptq, ZeroRule::kFieldPlusOne},
                             {"gptqmodel_v1", ForeignLayout::kGptq, ZeroRule::kWordPlusOne},
                             {"gptqmodel_v2", ForeignLayout::kGptq, ZeroRule::kStored},
                             {"gptqmodel_planar", ForeignLayout::kPlanar, ZeroRule::kStored}};
  int cases = 0;
  for (const auto& [by, layout, rule] : writers) {
    for (const char* kind : {"safe", "edge"}) {
      for (const int bits : {2, 3, 4}) {
        const std::string known = message(kind, ".w", bits), prefix = message(by, ".", known);
        if (!file.contains(prefix + ".qweight")) continue;
        SCOPED_TRACE(prefix);
        const at::Tensor codes = file.read(known + ".codes").to(at::kFloat),
                         zeros = file.read(known + ".zeros").to(at::kFloat);
        const auto [got_codes, got_zeros] = view_of(file, prefix, known + ".scales", bits, layout, rule);
        EXPECT_TRUE(got_codes.equal(codes));
        // AutoGPTQ's files of zero points of 0 are damaged; what counts is what it reads itself.
        const bool own = rule == ZeroRule::kFieldPlusOne;
        EXPECT_TRUE(got_zeros.equal(own ? file.read(prefix + ".zeros_read_back").to(at::kFloat) : zeros));
        // Must differ: v1 read as v2 and the other way round, planar as a stream, one writer's rule on the other's edge
        // cases.
        const ZeroRule wrong = rule == ZeroRule::kStored ? ZeroRule::kFieldPlusOne : ZeroRule::kStored;
        EXPECT_FALSE(view_of(file, prefix, known + ".scales", bits, layout, wrong).second.equal(got_zeros));
        if (layout == ForeignLayout::kPlanar) {
          EXPECT_FALSE(view_of(file, prefix, known + ".scales", bits, ForeignLayout::kGptq, rule).first.equal(codes));
        }
        if (rule == ZeroRule::kWordPlusOne && std::string(kind) == "edge") {
          EXPECT_FALSE(
              view_of(file, prefix, known + ".scales", bits, layout, ZeroRule::kFieldPlusOne).second.equal(zeros));
        }
        ++cases;
      }
    }
  }
  EXPECT_EQ(cases, 6 + 6 + 6 + 2);
}

// ---- MLX

TEST(MlxMatrices, PackingValuesAndProducts) {
  REQUIRE_SHARED("goldens/mlx/matrices.safetensors");
  const io::SafetensorsFile file(test::shared_dir() / "goldens/mlx/matrices.safetensors");
  const at::Tensor weight = file.read("weight"), x = file.read("x");
  const double largest = weight.abs().max().item<double>();
  int cases = 0;
  for (const auto& [name, info] : file.tensors()) {
    if (!name.ends_with(".packed")) continue;
    SCOPED_TRACE(name);
    const std::string prefix = io::module_of(name);
    const int bits = prefix[1] - '0';
    const int64_t group_size = std::stoll(prefix.substr(3));
    const quant::PackedWeight packed =
        quant::make_packed_weight(name, file.read(name), file.read(prefix + ".scales"), file.read(prefix + ".biases"),
                                  weight.size(1), group_size, bits);
    // Known codes packed here give MLX's words.
    const at::Tensor codes = codes_of(packed);
    at::Tensor again = at::zeros_like(packed.codes);
    for (int64_t row = 0; row < codes.size(0); ++row) {
      kernels::pack_row(codes.const_data_ptr<uint8_t>() + row * codes.size(1), codes.size(1), bits,
                        reinterpret_cast<uint32_t*>(again.data_ptr<int32_t>()) + row * again.size(1));
    }
    EXPECT_TRUE(again.equal(packed.codes));
    // The goldens' README: one product and one sum; scales in 16 bits are those of a 16-bit product there.
    const double tolerance = std::ldexp(1.0, prefix.ends_with("bfloat16")  ? -6
                                             : prefix.ends_with("float16") ? -9
                                                                           : -22) *
                             largest;
    const at::Tensor dequantised = file.read(prefix + ".dequantised");
    EXPECT_LE(distance(packed.dequantize(at::kFloat), dequantised), tolerance);
    if (!prefix.ends_with("float16")) {
      EXPECT_LE(distance(packed.multiply(x), file.read(prefix + ".x_times_transpose")), 4e-6);
    }
    EXPECT_LT(packed.scales.min().item<double>(), 0);
    // Must differ: scales without their sign.
    quant::PackedWeight unsigned_scales = packed;
    unsigned_scales.scales = packed.scales.abs();
    EXPECT_GT(distance(unsigned_scales.dequantize(at::kFloat), dequantised), 10 * tolerance);
    ++cases;
  }
  EXPECT_GE(cases, 14);
}

}  // namespace
}  // namespace qalora::model
