#include "qalora/io/safetensors.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cstring>
#include <nlohmann/json.hpp>

#include "qalora/core/error.h"
#include "support/support.h"

namespace qalora::io {
namespace {

using test::TempDir;

std::string length_bytes(uint64_t length) {
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  return bytes;
}

// A file from its parts: length of the header, the header, `data_bytes` zero bytes.
std::string file_of(const std::string& header, size_t data_bytes = 0) {
  return length_bytes(header.size()) + header + std::string(data_bytes, '\0');
}

// The message of the DataError that reading these bytes must give.
std::string refusal(const std::string& bytes) {
  TempDir dir;
  test::write_file(dir / "x.safetensors", bytes);
  try {
    SafetensorsFile file(dir / "x.safetensors");
  } catch (const DataError& error) {
    EXPECT_NE(std::string(error.what()).find("x.safetensors"), std::string::npos) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "the file was accepted: " << bytes.substr(0, 200);
  return "";
}

void expect_refused(const std::string& bytes, const std::string& part) {
  const std::string text = refusal(bytes);
  EXPECT_NE(text.find(part), std::string::npos) << "'" << part << "' is not in: " << text;
}

void expect_accepted(const std::string& bytes) {
  TempDir dir;
  test::write_file(dir / "x.safetensors", bytes);
  EXPECT_NO_THROW(SafetensorsFile(dir / "x.safetensors"));
}

const std::string kGood = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";

TEST(Safetensors, RefusesFewerThanEightBytes) {
  expect_refused("", "0 bytes");
  expect_refused("1234567", "7 bytes");
}

TEST(Safetensors, RefusesAHeaderAboveTheLimit) {
  expect_refused(length_bytes(100'000'001) + "{}", "100000001");
  expect_refused(length_bytes(UINT64_MAX) + "{}", "18446744073709551615");
}

TEST(Safetensors, RefusesAHeaderBeyondTheFile) {
  expect_refused(length_bytes(100'000'000) + "{}", "incomplete download");
  expect_refused(length_bytes(3) + "{}", "claims 3 bytes, the file has 2");
}

TEST(Safetensors, RefusesWhatIsNotJson) {
  expect_refused(file_of("not json"), "not a JSON object");
  expect_refused(file_of(""), "not a JSON object");
  expect_refused(file_of("[]"), "not a JSON object");
  expect_refused(file_of("{\"a\":"), "not valid JSON");
  expect_refused(file_of("{} x"), "not valid JSON");
  expect_refused(file_of("\xEF\xBB\xBF{}"), "not a JSON object");
  expect_refused(file_of(std::string("{}\0", 3)), "not a JSON object");
}

TEST(Safetensors, RefusesWhatIsNotUtf8) { expect_refused(file_of("{\"a\xff\":{}}"), "not UTF-8"); }

TEST(Safetensors, RefusesDeepNesting) {
  const std::string deep = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":)" + std::string(100000, '[') +
                           std::string(100000, ']') + "}}";
  expect_refused(file_of(deep, 8), "levels deep");
  expect_refused(file_of(std::string(100000, '['), 0), "not a JSON object");
}

TEST(Safetensors, RefusesDuplicates) {
  const std::string entry = R"({"dtype":"F32","shape":[2],"data_offsets":[0,8]})";
  expect_refused(file_of("{\"same\":" + entry + ",\"same\":" + entry + "}", 8), "'same' stands twice");
  expect_refused(file_of(R"({"__metadata__":{"k":"a","k":"b"}})"), "'k' stands twice");
  expect_refused(file_of(R"({"__metadata__":{},"__metadata__":{}})"), "'__metadata__' stands twice");
  expect_refused(file_of(R"({"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8),
                 "'dtype' stands twice");
}

TEST(Safetensors, RefusesMetadataThatIsNotText) {
  expect_refused(file_of(R"({"__metadata__":{"format":1}})"), "must be text");
  expect_refused(file_of(R"({"__metadata__":{"format":["pt"]}})"), "must be text");
  expect_refused(file_of(R"({"__metadata__":{"format":{"a":"b"}}})"), "must be text");
  expect_refused(file_of(R"({"__metadata__":{"format":null}})"), "must be text");
}

TEST(Safetensors, RefusesUnknownDtypesByName) {
  expect_refused(file_of(R"({"a":{"dtype":"X99","shape":[2],"data_offsets":[0,8]}})", 8), "'X99' is not known");
  expect_refused(file_of(R"({"a":{"dtype":"F8_E4M3","shape":[8],"data_offsets":[0,8]}})", 8),
                 "'F8_E4M3' is not supported");
  expect_refused(file_of(R"({"a":{"dtype":"C64","shape":[1],"data_offsets":[0,8]}})", 8), "'C64' is not supported");
  expect_refused(file_of(R"({"a":{"dtype":7,"shape":[2],"data_offsets":[0,8]}})", 8), "the number 7");
}

TEST(Safetensors, RefusesMissingOrWrongFields) {
  expect_refused(file_of(R"({"a":{"dtype":"F32","shape":[2]}})", 8), "no 'data_offsets'");
  expect_refused(file_of(R"({"a":{"dtype":"F32","data_offsets":[0,8]}})", 8), "no 'shape'");
  expect_refused(file_of(R"({"a":{"shape":[2],"data_offsets":[0,8]}})", 8), "no 'dtype'");
  expect_refused(file_of(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8,9]}})", 8), "two numbers, got 3");
  expect_refused(file_of(R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", 8), "negative number -2");
  expect_refused(file_of(R"({"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}})", 8), "the number 2.0");
  expect_refused(file_of(R"({"a":{"dtype":"F32","shape":[[2]],"data_offsets":[0,8]}})", 8),
                 "a list where none belongs");
  expect_refused(file_of(R"({"a":[1]})", 8), "a list where none belongs");
  expect_refused(file_of(R"({"a":null})", 8), "the entry is null");
}

TEST(Safetensors, RefusesGapsOverlapsAndReversedOffsets) {
  const auto two = [](const std::string& first, const std::string& second) {
    return R"({"a":{"dtype":"U8","shape":[4],"data_offsets":)" + first +
           R"(},"b":{"dtype":"U8","shape":[4],"data_offsets":)" + second + "}}";
  };
  expect_accepted(file_of(two("[0,4]", "[4,8]"), 8));
  expect_accepted(file_of(two("[4,8]", "[0,4]"), 8));  // the order of names is free
  expect_refused(file_of(two("[0,4]", "[5,9]"), 9), "'b': begins at byte 5 of the data, expected 4");
  expect_refused(file_of(two("[1,5]", "[5,9]"), 9), "'a': begins at byte 1 of the data, expected 0");
  expect_refused(file_of(two("[0,4]", "[3,7]"), 7), "'b': begins at byte 3 of the data, expected 4");
  expect_refused(file_of(two("[0,4]", "[0,4]"), 4), "begins at byte 0 of the data, expected 4");
  expect_refused(file_of(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[4,0]}})", 4),
                 "ends at byte 0 before its begin 4");
}

TEST(Safetensors, RefusesOverflowingShapes) {
  expect_refused(file_of(R"({"a":{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]}})"), "overflows");
  expect_refused(file_of(R"({"a":{"dtype":"F64","shape":[4611686018427387904],"data_offsets":[0,0]}})"), "overflows");
  expect_refused(file_of(R"({"a":{"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,0]}})"), "too large");
  expect_refused(file_of(R"({"a":{"dtype":"U8","shape":[36893488147419103232],"data_offsets":[0,0]}})"),
                 "36893488147419103232");
}

TEST(Safetensors, RefusesASizeThatDoesNotFitTheShape) {
  expect_refused(file_of(R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", 8),
                 "needs 12 bytes, its offsets span 8");
}

TEST(Safetensors, RefusesTruncatedDataAndTrailingBytes) {
  expect_refused(file_of(kGood, 7), "promises 8 bytes of tensors, the file has 7; incomplete download");
  expect_refused(file_of(kGood, 9), "1 bytes follow the last tensor");
  expect_refused(file_of("{}", 1), "1 bytes follow");
}

TEST(Safetensors, NamesOtherFormats) {
  expect_refused("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull");
  expect_refused(std::string("PK\x03\x04 archive content ........"), "zip archive");
  expect_refused("\x80\x02}q.............................", "pickle");
  expect_refused("GGUF\x03..............................", "GGUF");
  expect_refused("<!DOCTYPE html><html>not found</html>", "web page");
}

TEST(Safetensors, AcceptsWhatTheReferenceReaderAccepts) {
  expect_accepted(file_of(kGood, 8));
  expect_accepted(file_of(" \n\t" + kGood + "   \n", 8));
  expect_accepted(file_of("{}"));
  expect_accepted(file_of(R"({"__metadata__":{"format":"pt"}})"));
  expect_accepted(file_of(R"({"__metadata__":null})"));
  expect_accepted(file_of(R"({"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}})", 4));
  expect_accepted(file_of(R"({"a":{"dtype":"F32","shape":[0,3],"data_offsets":[0,0]}})"));
  expect_accepted(file_of(R"({"a":{"extra":{"x":[1,{"y":null}]},"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8));
}

TEST(Safetensors, AHeaderOf640BytesIsNoPickle) {
  // Its length begins with the bytes 80 02, as a pickle does.
  std::string header = kGood;
  header.resize(640, ' ');
  expect_accepted(file_of(header, 8));
}

TEST(Safetensors, ReadsATensorThatIsNotAligned) {
  TempDir dir;
  std::string bytes = file_of(
      R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}})",
      9);
  const float values[2] = {1.5f, -2.25f};
  std::memcpy(bytes.data() + bytes.size() - 8, values, 8);
  test::write_file(dir / "x.safetensors", bytes);
  const at::Tensor read = SafetensorsFile(dir / "x.safetensors").read("b");
  EXPECT_TRUE(at::equal(read, at::tensor({1.5f, -2.25f})));
}

TEST(Safetensors, AMissingTensorIsNamed) {
  TempDir dir;
  test::write_file(dir / "x.safetensors", file_of(kGood, 8));
  SafetensorsFile file(dir / "x.safetensors");
  try {
    file.read("absent");
    FAIL();
  } catch (const DataError& error) {
    EXPECT_NE(std::string(error.what()).find("'absent'"), std::string::npos);
  }
}

TEST(Safetensors, EveryDtypeComesBackAsItWas) {
  TempDir dir;
  std::map<std::string, at::Tensor> tensors;
  for (auto type : {at::kBool, at::kByte, at::kChar, at::kShort, at::kHalf, at::kBFloat16, at::kInt, at::kFloat,
                    at::kLong, at::kDouble}) {
    tensors[c10::toString(type)] = at::arange(0, 6, at::kLong).reshape({2, 3}).to(type);
  }
  tensors["scalar"] = at::scalar_tensor(2.5, at::kFloat);
  tensors["empty"] = at::zeros({0, 4}, at::kFloat);
  tensors["strided"] = at::arange(0, 6, at::kFloat).reshape({2, 3}).t();
  write_safetensors(dir / "x.safetensors", tensors, {{"k", "v"}});
  const SafetensorsFile file(dir / "x.safetensors");
  EXPECT_EQ(file.metadata(), (std::map<std::string, std::string>{{"k", "v"}}));
  ASSERT_EQ(file.tensors().size(), tensors.size());
  for (const auto& [name, tensor] : tensors) {
    const at::Tensor read = file.read(name);
    EXPECT_EQ(read.scalar_type(), tensor.scalar_type()) << name;
    EXPECT_TRUE(at::equal(read, tensor)) << name;
  }
}

TEST(Safetensors, WritesTheSameBytesEveryTimeWithAlignedData) {
  TempDir dir;
  const std::map<std::string, at::Tensor> tensors = {{"a", at::ones({3})}, {"b", at::zeros({2, 2}, at::kHalf)}};
  write_safetensors(dir / "1.safetensors", tensors);
  write_safetensors(dir / "2.safetensors", tensors);
  const std::string bytes = test::read_file(dir / "1.safetensors");
  EXPECT_EQ(bytes, test::read_file(dir / "2.safetensors"));
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  EXPECT_EQ(length % 8, 0u);
  EXPECT_EQ(nlohmann::json::parse(bytes.substr(8, length))["__metadata__"]["format"], "pt");
  auto changed = tensors;
  changed["a"] = at::ones({3}) * 2;
  write_safetensors(dir / "3.safetensors", changed);
  EXPECT_NE(bytes, test::read_file(dir / "3.safetensors"));
}

TEST(Safetensors, AWriterThatIsNotFinishedLeavesNothing) {
  TempDir dir;
  {
    SafetensorsWriter writer(dir / "x.safetensors", {{"a", Dtype::kF32, {2}}, {"b", Dtype::kF32, {2}}}, {});
    writer.write("a", at::ones({2}));
    EXPECT_THROW(writer.write("c", at::ones({2})), InternalError);  // another name
    EXPECT_THROW(writer.write("b", at::ones({3})), InternalError);  // another shape
    EXPECT_THROW(writer.write("b", at::ones({2}, at::kInt)), InternalError);
    EXPECT_THROW(writer.finish(), InternalError);
  }
  EXPECT_TRUE(std::filesystem::is_empty(dir.path()));
}

TEST(Safetensors, EveryTruncationOfARealFileIsRefused) {
  TempDir dir;
  write_safetensors(dir / "x.safetensors", {{"a", at::ones({5})}, {"b", at::ones({3, 2}, at::kHalf)}});
  const std::string bytes = test::read_file(dir / "x.safetensors");
  for (size_t size = 0; size < bytes.size(); ++size) refusal(bytes.substr(0, size));
}

TEST(Safetensors, ReadsWhatOthersWrote) {
  REQUIRE_SHARED("goldens/llama/mha/model.safetensors");
  const SafetensorsFile file(test::shared_dir() / "goldens/llama/mha/model.safetensors");
  EXPECT_EQ(file.info("model.embed_tokens.weight").shape, (std::vector<int64_t>{512, 64}));
  EXPECT_TRUE(at::isfinite(file.read("lm_head.weight")).all().item<bool>());
}

}  // namespace
}  // namespace qalora::io
