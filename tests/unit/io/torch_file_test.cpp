#include "qalora/io/torch_file.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cstring>

#include "qalora/core/error.h"
#include "qalora/io/torch_folder.h"
#include "support/support.h"
#include "torch_archive.h"

namespace qalora::io {
namespace {

using test::make_zip;
using test::pickle;
using test::pickled_state;
using test::TempDir;
using test::TensorText;

fs::path fixture(const std::string& name) { return test::source_dir() / "tests/data/torch" / name; }

std::string refusal(const fs::path& path) {
  try {
    const TorchFile file(path);
    for (const auto& [name, info] : file.tensors()) file.read(name);
  } catch (const DataError& error) {
    EXPECT_TRUE(std::string(error.what()).starts_with(path.string() + ": ")) << error.what();
    return error.what();
  }
  return "(taken)";
}

void expect_part(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << "got: " << text << "\nexpected: " << part;
}

std::string refusal_of(const std::string& content) {
  static const TempDir dir;
  test::write_file(dir / "file.bin", content);
  return refusal(dir / "file.bin");
}

// An archive with one storage of four f32.
std::string archive(const std::string& table, const std::string& storage = std::string(16, '\0'),
                    const std::string& root = "m") {
  return make_zip({{root + "/data.pkl", table}, {root + "/data/0", storage}}).bytes;
}

class TorchFileForms : public ::testing::TestWithParam<const char*> {};

// What make_files.py wrote, in each form and protocol.
TEST_P(TorchFileForms, ReadsWhatTorchWrote) {
  const TorchFile file(fixture(GetParam()));
  EXPECT_EQ(file.legacy(), std::string(GetParam()).starts_with("legacy"));
  EXPECT_EQ(file.tensors().size(), 15u);
  const at::Tensor base = at::arange(24, at::kFloat).reshape({4, 6});
  const auto expect = [&](const char* name, const at::Tensor& expected) {
    const at::Tensor read = file.read(name);
    EXPECT_TRUE(read.is_contiguous() && read.scalar_type() == expected.scalar_type()) << name;
    EXPECT_TRUE(at::equal(read, expected)) << name << "\n" << read;
    EXPECT_EQ(at::IntArrayRef(file.info(name).shape), expected.sizes()) << name;
    EXPECT_EQ(file.info(name).bytes(), expected.nbytes()) << name;
    const TensorBytes bytes = file.bytes(name);
    ASSERT_EQ(bytes.span.size(), read.nbytes()) << name;
    EXPECT_TRUE(bytes.span.empty() || std::memcmp(bytes.span.data(), read.const_data_ptr(), read.nbytes()) == 0)
        << name;
    file.release(name);
  };
  expect("whole", base);
  expect("rows", base.slice(0, 1, 3));
  expect("transposed", base.t());
  expect("columns", base.slice(1, 1, 6, 2));
  for (const auto& [name, type] : std::vector<std::pair<const char*, at::ScalarType>>{{"f16", at::kHalf},
                                                                                      {"bf16", at::kBFloat16},
                                                                                      {"f64", at::kDouble},
                                                                                      {"i64", at::kLong},
                                                                                      {"i32", at::kInt},
                                                                                      {"i16", at::kShort},
                                                                                      {"i8", at::kChar},
                                                                                      {"u8", at::kByte}}) {
    expect(name, at::arange(5, 8).to(type));
  }
  expect("bool", at::arange(3).ne(1));
  expect("scalar", at::full({}, 2.5f));
  expect("empty", at::empty({0, 7}));
  // Must differ: strides or offsets that are not looked at.
  EXPECT_FALSE(at::equal(file.read("transposed"), base.reshape({6, 4})));
  EXPECT_FALSE(at::equal(file.read("rows"), base.slice(0, 0, 2)));
}

INSTANTIATE_TEST_SUITE_P(Forms, TorchFileForms,
                         ::testing::Values("zip.pt", "legacy.pt", "protocol4.pt", "legacy_protocol4.pt"));

TEST(TorchFile, ParametersInsideOtherThingsAreFound) {
  const TorchFile file(fixture("nested.pt"));
  ASSERT_EQ(file.tensors().size(), 1u);
  EXPECT_TRUE(at::equal(file.read("weight"), (at::arange(4) + 1).to(at::kBFloat16).reshape({2, 2})));
}

TEST(TorchFile, AStateDictWithMetadataIsRead) {
  const TorchFile file(fixture("module.pt"));
  EXPECT_TRUE(at::equal(file.read("weight"), at::arange(6, at::kFloat).reshape({2, 3})));
  EXPECT_TRUE(at::equal(file.read("bias"), at::arange(10, 12, at::kFloat)));
}

TEST(TorchFile, WhatTorchAlsoWritesIsRefusedWithASentence) {
  expect_part(refusal(fixture("expanded.pt")), "more elements than the 1 of the storage");
  expect_part(refusal(fixture("whole_module.pt")), "asks for torch.nn.modules.linear.Linear");
  expect_part(refusal(fixture("rebuild_v3.pt")), "asks for torch._utils._rebuild_tensor_v3");
  expect_part(refusal(fixture("deflated.pt")), "the entry is compressed (method 8)");
}

TEST(TorchFile, OtherFilesAreNamed) {
  expect_part(refusal_of(""), "the file is empty");
  expect_part(refusal_of("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull");
  expect_part(refusal_of("GGUF\3"), "GGUF");
  expect_part(refusal_of(std::string("\x40\0\0\0\0\0\0\0{\"a\":", 13)), "safetensors");
  expect_part(refusal_of("\x1f\x8b"
                         "compressed"),
              "compressed");
  expect_part(refusal_of("pickle" + std::string(251, '\0') + "ustar  "), "tar archive");
  expect_part(refusal_of("<!DOCTYPE html>"), "web page");
  expect_part(refusal_of(pickle("}")), "a Python pickle, but none of torch.save");
  expect_part(refusal_of("anything"), "expected a file of torch.save");
  expect_part(refusal_of(make_zip({{"word/document.xml", "x"}}).bytes), "a zip archive without data.pkl");
  expect_part(refusal_of(make_zip({{"m/data.pkl", ""}, {"m/constants.pkl", ""}}).bytes), "TorchScript");
  expect_part(refusal_of(make_zip({{"m/data.pkl", ""}, {"n/data.pkl", ""}}).bytes), "both m/data.pkl and n/data.pkl");
  expect_part(refusal_of(make_zip({{"m/data.pkl", pickle("}")}, {"m/byteorder", "big"}}).bytes), "big-endian");
  expect_part(refusal_of(archive(pickle("K\x01"))), "holds the number 1, expected a dictionary of tensors");
  expect_part(refusal_of(archive(pickle("}(" + test::pickled("epoch") + "K\x01u"))),
              "there is no tensor in it; its keys are epoch");
  expect_part(refusal_of(archive(
                  pickle("}q" + test::raw(uint8_t{0}) + test::pickled("model") + "h" + test::raw(uint8_t{0}) + "s"))),
              "only dictionaries in dictionaries");
}

TEST(TorchFile, TensorsMustLieInTheirStorage) {
  const auto refused = [](const TensorText& tensor) {
    return refusal_of(archive(pickle(pickled_state({{"w", tensor}}))));
  };
  EXPECT_EQ(refused({}), "(taken)");
  EXPECT_EQ(refused({.offset = 2, .shape = {2}, .strides = {1}}), "(taken)");
  EXPECT_EQ(refused({.offset = 4, .shape = {0, 3}, .strides = {3, 1}}), "(taken)");
  const int64_t huge = int64_t{1} << 62;
  expect_part(refused({.offset = 1}), "tensor 'w': reaches beyond the 4 elements");
  expect_part(refused({.offset = INT64_MAX}), "reaches beyond");
  expect_part(refused({.offset = 5, .shape = {0}, .strides = {1}}), "reaches beyond");
  expect_part(refused({.strides = {3, 1}}), "reaches beyond");
  expect_part(refused({.strides = {INT64_MAX, INT64_MAX}}), "reaches beyond");
  expect_part(refused({.shape = {3, 1}, .strides = {huge, 1}}), "reaches beyond");  // 2 * 2^62 overflows
  expect_part(refused({.shape = {5}, .strides = {0}}), "more elements than the 4");
  expect_part(refused({.shape = {huge}, .strides = {0}}), "more elements than the 4");
  expect_part(refused({.shape = {huge, 4}, .strides = {0, 0}}), "dimensions overflows");
  expect_part(refused({.shape = {0, huge, 4}, .strides = {0, 0, 0}}), "dimensions overflows");
  expect_part(refused({.key = "1"}), "storage '1' is not in the archive");
  expect_part(refused({.key = "../0"}), "storage '../0' is not in the archive");
  expect_part(refused({.elements = 5}), "should have 5 x F32, the archive has 16 bytes");
  expect_part(refused({.elements = INT64_MAX}), "should have 9223372036854775807 x F32");
  expect_part(refused({.storage = "DoubleStorage"}), "should have 4 x F64");
}

TEST(TorchFile, NamesMustBeTextAndStandOnce) {
  const std::string tensor = test::pickled(TensorText{});
  expect_part(refusal_of(archive(pickle("}(K\x01" + tensor + "u"))), "a tensor's name is the number 1");
  expect_part(refusal_of(archive(pickle(pickled_state({{"w", {}}, {"w", {}}})))), "tensor 'w': stands twice");
}

TEST(TorchFile, EveryTruncationIsRefused) {
  for (const char* name : {"module.pt", "nested.pt", "legacy.pt"}) {
    const std::string whole = test::read_file(fixture(name));
    for (size_t length = 0; length < whole.size(); ++length) {
      EXPECT_NE(refusal_of(whole.substr(0, length)), "(taken)") << name << " " << length;
    }
  }
}

// A damaged byte is refused, or is a number of a tensor or a name; nothing worse.
TEST(TorchFile, EveryDamagedByteIsRefusedOrHarmless) {
  for (const char* name : {"module.pt", "legacy.pt"}) {
    const std::string whole = test::read_file(fixture(name));
    size_t refused = 0;
    for (size_t position = 0; position < whole.size(); ++position) {
      for (const int flip : {0x01, 0x80, 0xff}) {
        std::string damaged = whole;
        damaged[position] = static_cast<char>(damaged[position] ^ flip);
        refused += refusal_of(damaged) != "(taken)" ? 1 : 0;
      }
    }
    EXPECT_GT(refused, whole.size() / 2) << name;  // of three times as many
  }
}

// The legacy form behind its table of tensors.
TEST(TorchFile, LegacyStoragesAreChecked) {
  const std::string magic = pickle("\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"), version = pickle("M\xe9\x03");
  const auto machine = [](bool little) {
    return pickle("}" + test::pickled("little_endian") + (little ? "\x88" : "\x89") + "s");
  };
  const std::string table = pickle(pickled_state({{"w", {}}})), keys = pickle("](" + test::pickled("0") + "e");
  const std::string storage = test::raw(uint64_t{4}) + std::string(16, '\0');
  const std::string start = magic + version + machine(true);
  EXPECT_EQ(refusal_of(start + table + keys + storage), "(taken)");
  expect_part(refusal_of(magic + version + machine(false) + table + keys + storage), "big-endian");
  expect_part(refusal_of(magic + pickle("M\xe8\x03") + machine(true) + table + keys + storage),
              "version 1000, expected 1001");
  expect_part(refusal_of(start + table + keys + storage + "x"), "1 bytes follow the last storage");
  expect_part(refusal_of(start + table + keys + test::raw(uint64_t{5}) + std::string(20, '\0')),
              "has 5 elements, expected 4");
  expect_part(refusal_of(start + table + pickle("](" + test::pickled("1") + "e") + storage),
              "storage '1' is listed twice, or no tensor");
  expect_part(refusal_of(start + table + pickle("]")), "storage '0' is not in the file");
  const std::string absurd = pickle(pickled_state({{"w", {.elements = INT64_MAX}}}));
  expect_part(refusal_of(start + absurd + keys + test::raw(INT64_MAX)), "9223372036854775807 elements are too many");
  const std::string missing = pickle(pickled_state({{"w", {.elements = int64_t{1} << 40}}}));
  expect_part(refusal_of(start + missing + keys + test::raw(int64_t{1} << 40)), "bytes were expected");
}

TEST(TorchFolder, TakesTheUsualNameTheIndexOrTheOnlyFile) {
  TempDir dir;
  EXPECT_FALSE(TorchFolder::exists(dir.path()));
  test::write_file(dir / "training_args.bin", "not weights");
  EXPECT_FALSE(TorchFolder::exists(dir.path()));
  fs::copy_file(fixture("module.pt"), dir / "gptq_model-4bit-32g.bin");
  EXPECT_EQ(TorchFolder(dir.path()).tensors().size(), 2u);
  fs::copy_file(fixture("nested.pt"), dir / "other.pt");
  try {
    TorchFolder folder(dir.path());
    FAIL();
  } catch (const DataError& error) {
    expect_part(error.what(), "gptq_model-4bit-32g.bin, other.pt; leave one of them");
  }
  fs::copy_file(fixture("module.pt"), dir / "s1.bin");
  fs::copy_file(fixture("zip.pt"), dir / "s2.bin");
  std::string map;
  const TorchFile second(fixture("zip.pt"));
  for (const auto& [name, info] : second.tensors()) map += ", \"" + name + "\": \"s2.bin\"";
  const std::string head = "{\"weight_map\": {\"weight\": \"s1.bin\"";
  test::write_file(dir / "pytorch_model.bin.index.json", head + ", \"bias\": \"s1.bin\"" + map + "}}");
  const TorchFolder sharded(dir.path());
  EXPECT_EQ(sharded.tensors().size(), 17u);
  EXPECT_EQ(sharded.file_of("bf16").filename(), "s2.bin");
  test::write_file(dir / "pytorch_model.bin.index.json", head + map + "}}");
  EXPECT_THROW(TorchFolder{dir.path()}, DataError);  // must differ: "bias" is forgotten
  fs::copy_file(fixture("nested.pt"), dir / "pytorch_model.bin");
  EXPECT_EQ(TorchFolder(dir.path()).tensors().size(), 1u);
}

}  // namespace
}  // namespace qalora::io
