// The bugs that were found in readers of GGUF, class by class: each has a file here that is refused with a sentence.
#include "qalora/io/gguf_file.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include "qalora/core/error.h"
#include "support/gguf_bytes.h"

namespace qalora::io {
namespace {

using test::gguf_string;
using test::GgufBytes;
using test::raw;

GgufContents parse(const std::string& bytes) { return parse_gguf(std::as_bytes(std::span(bytes)), "f.gguf"); }

std::string refusal(const std::string& bytes) {
  try {
    parse(bytes);
  } catch (const DataError& error) {
    EXPECT_EQ(std::string(error.what()).substr(0, 6), "f.gguf");
    return error.what();
  }
  ADD_FAILURE() << "accepted";
  return "";
}
std::string refusal(const GgufBytes& file) { return refusal(file.bytes()); }
#define EXPECT_REFUSED(file, part)                                                                       \
  EXPECT_PRED2([](const std::string& text, const char* p) { return text.find(p) != std::string::npos; }, \
               refusal(file), part)

// One array entry of so many elements.
GgufBytes with_array(uint32_t type, uint64_t count, const std::string& bytes) {
  return GgufBytes().entry("a", 9, raw(type) + raw(count) + bytes);
}

const std::string kFloats(64, '\1');  // 16 of f32

TEST(GgufFile, ReadsEveryKindOfValue) {
  GgufBytes file;
  file.u32("count", 7)
      .f32("half", 0.5f)
      .text("name", "model")
      .entry("yes", 7, "\1")
      .entry("long", 10, raw(uint64_t{1} << 40));
  file.entry("minus", 5, raw(int32_t{-3})).entry("double", 12, raw(0.25)).entry("byte", 0, "\7");
  file.entry("words", 9, raw(uint32_t{8}) + raw(uint64_t{2}) + gguf_string("a") + gguf_string(""))
      .entry("nums", 9, raw(uint32_t{6}) + raw(uint64_t{1}) + raw(2.f));
  file.tensor("t", {4, 2}, 0, std::string(32, '\2')).tensor("u", {32}, 8, std::string(34, '\3'));
  const std::string bytes = file.bytes();
  const GgufContents contents = parse(bytes);
  EXPECT_EQ(contents.integer("count"), 7);
  EXPECT_EQ(contents.number("half"), 0.5);
  EXPECT_EQ(contents.number("double"), 0.25);
  EXPECT_EQ(contents.text("name"), "model");
  EXPECT_EQ(contents.flag("yes"), true);
  EXPECT_EQ(contents.integer("long"), int64_t{1} << 40);
  EXPECT_EQ(contents.integer("byte"), 7);
  EXPECT_EQ(contents.signed_integer("minus"), -3);
  EXPECT_THROW(contents.integer("minus"), DataError);
  EXPECT_THROW(contents.integer("name"), DataError);
  EXPECT_THROW(contents.text("count"), DataError);
  EXPECT_EQ(contents.integer("absent"), std::nullopt);
  EXPECT_EQ(contents.texts("words")->size(), 2u);
  EXPECT_EQ((*contents.texts("words"))[0], "a");
  EXPECT_EQ((*contents.floats("nums"))[0], 2.f);
  EXPECT_EQ(contents.tensors.at("t").shape, (std::vector<int64_t>{2, 4}));  // slowest first
  EXPECT_EQ(contents.tensors.at("u").bytes.size(), 34u);
  EXPECT_EQ(contents.tensors.at("u").bytes[0], std::byte{3});
}

TEST(GgufFile, RefusesOtherFilesAndVersions) {
  EXPECT_REFUSED(std::string(""), "expected a GGUF file");
  EXPECT_REFUSED(std::string("GGU"), "expected a GGUF file");
  EXPECT_REFUSED((GgufBytes{.magic = "GGML"}), "expected a GGUF file");
  EXPECT_REFUSED((GgufBytes{.version = 0}), "version 0");
  EXPECT_REFUSED((GgufBytes{.version = 1}), "convert the original model again");
  EXPECT_REFUSED((GgufBytes{.version = 4}), "version 4");
  EXPECT_REFUSED((GgufBytes{.version = 0x03000000}), "big-endian");
}

TEST(GgufFile, EveryTruncationIsRefused) {
  GgufBytes file;
  file.u32("count", 7)
      .text("name", "model")
      .entry("w", 9, raw(uint32_t{8}) + raw(uint64_t{2}) + gguf_string("ab") + gguf_string("c"));
  file.tensor("t", {16}, 0, kFloats);
  const std::string bytes = file.bytes();
  parse(bytes);
  for (size_t size = 0; size < bytes.size(); ++size) EXPECT_THROW(parse(bytes.substr(0, size)), DataError) << size;
}

TEST(GgufFile, StringsLongerThanTheFileAreRefused) {
  for (const uint64_t length : {uint64_t{100}, uint64_t{1} << 40, UINT64_MAX, UINT64_MAX - 7}) {
    EXPECT_REFUSED(GgufBytes().entry("s", 8, raw(length) + "abc"), "are left");
    GgufBytes key;
    key.entries.push_back(raw(length) + std::string(40, 'k'));
    EXPECT_REFUSED(key, "metadata entry 0");
  }
}

TEST(GgufFile, CountsBeyondTheFileAreRefused) {
  for (const int64_t count : {int64_t{1000}, int64_t{1} << 60, INT64_MAX}) {
    EXPECT_REFUSED((GgufBytes{.claimed_entries = count}), "metadata entries, more than");
    EXPECT_REFUSED((GgufBytes{.claimed_tensors = count}), "tensors, more than");
  }
  for (const uint64_t count : {uint64_t{1} << 32, uint64_t{1} << 62, UINT64_MAX}) {
    EXPECT_REFUSED(with_array(8, count, "xxxxxxxx"), "strings, more than");
    EXPECT_REFUSED(with_array(0, count, "xxxxxxxx"), "'a'");
    EXPECT_REFUSED(with_array(12, count, "xxxxxxxx"), "'a'");  // 2^62 * 8 wraps to 0
  }
}

TEST(GgufFile, ArraysOfArraysAreRefused) {
  EXPECT_REFUSED(with_array(9, 1, raw(uint32_t{0}) + raw(uint64_t{0})), "array of arrays");
}

TEST(GgufFile, UnknownTypesAreRefused) {
  EXPECT_REFUSED(GgufBytes().entry("a", 13, "x"), "value type 13");
  EXPECT_REFUSED(GgufBytes().entry("a", UINT32_MAX, "x"), "value type");
  EXPECT_REFUSED(with_array(13, 0, ""), "value type 13");
  EXPECT_REFUSED(GgufBytes().entry("a", 7, "\2"), "bool");
  for (const uint32_t type : {4u, 5u, 31u, 1000u, 0x80000000u, UINT32_MAX})
    EXPECT_REFUSED(GgufBytes().tensor("t", {32}, type, kFloats), "not known");
}

TEST(GgufFile, DuplicatesAndNamesThatAreNoneAreRefused) {
  EXPECT_REFUSED(GgufBytes().u32("a", 1).u32("a", 1), "'a' is there twice");
  EXPECT_REFUSED(GgufBytes().tensor("t", {16}, 0, kFloats).tensor("t", {16}, 0, kFloats), "'t' is there twice");
  EXPECT_REFUSED(GgufBytes().u32("", 1), "empty");
  EXPECT_REFUSED(GgufBytes().u32(std::string("a\0b", 3), 1), "no text");
  EXPECT_REFUSED(GgufBytes().u32("\xff", 1), "no text");
  EXPECT_REFUSED(GgufBytes().tensor("", {16}, 0, kFloats), "name of 0 bytes");
  EXPECT_REFUSED(GgufBytes().tensor(std::string(64, 'n'), {16}, 0, kFloats), "name of 64 bytes");
  parse(GgufBytes().tensor(std::string(63, 'n'), {16}, 0, kFloats).bytes());
}

TEST(GgufFile, ShapesAreChecked) {
  EXPECT_REFUSED(GgufBytes().tensor("t", {}, 0, kFloats), "0 dimensions");
  EXPECT_REFUSED(GgufBytes().tensor("t", {2, 2, 2, 2, 1}, 0, kFloats), "5 dimensions");
  GgufBytes many;
  many.tensors.push_back(gguf_string("t") + raw(UINT32_MAX) + std::string(64, '\1'));
  EXPECT_REFUSED(many, "4294967295 dimensions");
  EXPECT_REFUSED(GgufBytes().tensor("t", {0}, 0, ""), "dimension of 0");
  EXPECT_REFUSED(GgufBytes().tensor("t", {uint64_t{1} << 63}, 0, ""), "dimension of");
  EXPECT_REFUSED(GgufBytes().tensor("t", {UINT64_MAX}, 0, ""), "dimension of");
  EXPECT_REFUSED(GgufBytes().tensor("t", {INT64_MAX, 2}, 0, ""), "more elements than");
  EXPECT_REFUSED(GgufBytes().tensor("t", {uint64_t{1} << 32, uint64_t{1} << 32}, 0, ""), "more elements than");
  EXPECT_REFUSED(GgufBytes().tensor("t", {uint64_t{1} << 62}, 0, ""),
                 "more elements than");  // elements fit, bytes do not
  EXPECT_REFUSED(GgufBytes().tensor("t", {uint64_t{1} << 61, 1, 1, 2}, 3, ""),
                 "does not fit");  // and where both do, the file is too short
  EXPECT_REFUSED(GgufBytes().tensor("t", {48}, 3, kFloats), "not a multiple of the 32");
  EXPECT_REFUSED(GgufBytes().tensor("t", {32}, 12, kFloats), "not a multiple of the 256");
}

TEST(GgufFile, OffsetsAreTheRunningPaddedSum) {
  const auto two = [](uint64_t first, uint64_t second) {
    GgufBytes file;
    file.tensor_raw("t", {10}, 0, first).tensor_raw("u", {10}, 0, second);
    file.data = std::string(256, '\1');
    return file;
  };
  parse(two(0, 64).bytes());
  EXPECT_REFUSED(two(0, 40), "expected 64");  // not padded
  EXPECT_REFUSED(two(0, 0), "expected 64");   // the same bytes twice
  EXPECT_REFUSED(two(0, 96), "expected 64");  // a hole
  EXPECT_REFUSED(two(64, 0), "expected 0");   // another order
  EXPECT_REFUSED(two(0, UINT64_MAX - 31), "expected 64");
  GgufBytes wraps;  // sizes whose sum, or whose padding, passes 2^64
  wraps.tensor_raw("t", {(uint64_t{1} << 61) - 1}, 24, 0).tensor_raw("u", {16}, 0, (uint64_t{1} << 61));
  EXPECT_REFUSED(wraps, "does not fit");
  EXPECT_REFUSED(GgufBytes().tensor_raw("t", {INT64_MAX}, 24, 0), "does not fit");
  GgufBytes none;  // data shorter than promised
  none.tensor_raw("t", {16}, 0, 0);
  EXPECT_REFUSED(none, "does not fit");
}

TEST(GgufFile, TheAlignmentIsAPowerOfTwoInU32) {
  const auto aligned = [](uint32_t alignment) {
    GgufBytes file{.alignment = alignment};
    file.u32("general.alignment", alignment);
    file.tensor_raw("t", {16}, 0, 0);
    file.data = kFloats;
    return file;
  };
  for (const uint32_t good : {1u, 8u, 64u, 4096u}) parse(aligned(good).bytes());
  for (const uint32_t bad : {0u, 3u, 48u, UINT32_MAX}) EXPECT_REFUSED(aligned(bad), "power of two");
  EXPECT_REFUSED(aligned(uint32_t{1} << 31), "before its tensors begin");
  EXPECT_REFUSED(GgufBytes().entry("general.alignment", 10, raw(uint64_t{32})), "expected u32");
  EXPECT_REFUSED(GgufBytes().text("general.alignment", "32"), "expected u32");
}

// Millions of claimed entries in a small file, under a limit that a reader which believes them would break.
TEST(GgufFile, ABombIsRefusedBeforeMemoryIsTaken) {
  rusage before, after;
  getrusage(RUSAGE_SELF, &before);
  EXPECT_REFUSED(with_array(8, uint64_t{1} << 40, std::string(1 << 16, '\0')), "strings, more than");
  EXPECT_REFUSED((GgufBytes{.claimed_tensors = int64_t{1} << 50}), "tensors, more than");
  EXPECT_REFUSED(GgufBytes().entry("s", 8, raw(uint64_t{1} << 50) + "x"), "are left");
  EXPECT_REFUSED(GgufBytes().tensor("t", {uint64_t{1} << 40}, 0, kFloats), "does not fit");
  getrusage(RUSAGE_SELF, &after);
  EXPECT_LE(after.ru_maxrss - before.ru_maxrss, 16 * 1024);  // kB
}

}  // namespace
}  // namespace qalora::io
