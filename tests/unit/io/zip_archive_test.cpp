#include "qalora/io/zip_archive.h"

#include <gtest/gtest.h>

#include <functional>

#include "qalora/core/error.h"
#include "torch_archive.h"

namespace qalora::io {
namespace {

using test::make_zip;
using test::put;
using test::raw;
using test::Zip;

std::span<const std::byte> bytes_of(const std::string& text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}
std::string text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

void expect_refused(const std::string& archive, const std::string& part) {
  try {
    const ZipArchive opened(bytes_of(archive), "file");
    ADD_FAILURE() << "taken, expected a refusal that says: " << part;
  } catch (const DataError& error) {
    EXPECT_TRUE(std::string(error.what()).starts_with("file: ")) << error.what();
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what() << "\nexpected: " << part;
  }
}

const std::vector<std::pair<std::string, std::string>> kTwo = {{"a", "first"}, {"folder/b", "the second"}};

TEST(ZipArchive, EntriesArePiecesOfTheFile) {
  const Zip zip = make_zip(kTwo);
  const ZipArchive archive(bytes_of(zip.bytes), "file");
  ASSERT_EQ(archive.entries().size(), 2u);
  EXPECT_EQ(text_of(archive.entries().at("a")), "first");
  EXPECT_EQ(text_of(archive.entries().at("folder/b")), "the second");
  EXPECT_EQ(ZipArchive(bytes_of(make_zip({}).bytes), "file").entries().size(), 0u);
}

TEST(ZipArchive, ACommentMayFollow) {
  Zip zip = make_zip(kTwo);
  put<uint16_t>(zip.bytes, zip.end + 20, 4);
  expect_refused(zip.bytes, "the directory at its end is missing");  // must differ: a comment that is not there
  EXPECT_EQ(ZipArchive(bytes_of(zip.bytes + "last"), "file").entries().size(), 2u);
}

// The sizes of the second entry and the place of the directory in 64 bits, as for archives over 4 GB.
Zip make_zip64() {
  const Zip plain = make_zip(kTwo);
  Zip zip = plain;
  const std::string field =
      raw(uint16_t{1}) + raw(uint16_t{24}) + raw(uint64_t{10}) + raw(uint64_t{10}) + raw(uint64_t{plain.local[1]});
  const size_t second = plain.central[1];
  for (const size_t position : {second + 20, second + 24, second + 42}) put<uint32_t>(zip.bytes, position, 0xffffffff);
  put<uint16_t>(zip.bytes, second + 30, static_cast<uint16_t>(field.size()));
  zip.bytes.resize(plain.end);
  zip.bytes += field;
  zip.end = zip.bytes.size();
  zip.bytes += "PK\x06\x06" + raw(uint64_t{44}) + raw(uint32_t{0}) + raw(uint64_t{0}) + raw(uint64_t{2}) +
               raw(uint64_t{2}) + raw(uint64_t{zip.end - zip.directory}) + raw(uint64_t{zip.directory});
  zip.bytes += "PK\x06\x07" + raw(uint32_t{0}) + raw(uint64_t{zip.end}) + raw(uint32_t{1});
  return zip.bytes += "PK\x05\x06" + std::string(4, '\0') + std::string(12, '\xff') + raw(uint16_t{0}), zip;
}

TEST(ZipArchive, Zip64IsRead) {
  const Zip zip = make_zip64();
  const ZipArchive archive(bytes_of(zip.bytes), "file");
  EXPECT_EQ(text_of(archive.entries().at("folder/b")), "the second");
}

struct Damage {
  const char* says;
  std::function<void(Zip&)> act;
};

TEST(ZipArchive, DamageIsRefused) {
  const std::vector<Damage> cases = {
      {"'a': the entry is compressed (method 8)", [](Zip& z) { put<uint16_t>(z.bytes, z.central[0] + 10, 8); }},
      {"'a': the entry is encrypted", [](Zip& z) { put<uint16_t>(z.bytes, z.central[0] + 8, 1); }},
      {"takes 5 bytes in the archive and has 6", [](Zip& z) { put<uint32_t>(z.bytes, z.central[0] + 24, 6); }},
      {"do not agree", [](Zip& z) { z.bytes[z.local[0] + 30] = 'x'; }},                // the name
      {"do not agree", [](Zip& z) { put<uint16_t>(z.bytes, z.local[0] + 8, 8); }},     // the method
      {"do not agree", [](Zip& z) { put<uint32_t>(z.bytes, z.local[0] + 18, 4); }},    // the size
      {"do not agree", [](Zip& z) { put<uint32_t>(z.bytes, z.central[0] + 16, 1); }},  // the checksum
      {"there is no entry at byte", [](Zip& z) { put<uint32_t>(z.bytes, z.central[0] + 42, 3); }},
      {"the archive's data ends at", [](Zip& z) { put<uint32_t>(z.bytes, z.central[0] + 42, 0x7fffffff); }},
      {"is none; the archive is damaged", [](Zip& z) { z.bytes[z.central[1]] = 'x'; }},
      {"the directory claims bytes", [](Zip& z) { put<uint32_t>(z.bytes, z.end + 16, 0xfffffff0); }},
      {"the directory claims bytes", [](Zip& z) { put<uint32_t>(z.bytes, z.end + 12, 0xfffffff0); }},
      {"the directory: ends at byte", [](Zip& z) { put<uint16_t>(z.bytes, z.end + 10, 3); }},  // an entry more
      {"belong to no entry", [](Zip& z) { put<uint16_t>(z.bytes, z.end + 10, 1); }},           // one less
      {"one part of several", [](Zip& z) { put<uint16_t>(z.bytes, z.end + 4, 1); }},
      {"one part of several", [](Zip& z) { put<uint16_t>(z.bytes, z.central[0] + 34, 1); }},
      {"bytes were expected", [](Zip& z) { put<uint16_t>(z.bytes, z.central[1] + 28, 0xffff); }},  // the name's length
      {"the directory at its end is missing", [](Zip& z) { z.bytes[z.end] = 'x'; }},
  };
  for (const Damage& damage : cases) {
    Zip zip = make_zip(kTwo);
    damage.act(zip);
    std::string says = damage.says;
    if (says.starts_with("the directory: ")) says = "the archive's directory: ends at byte";
    expect_refused(zip.bytes, says);
  }
}

// Both sizes agree everywhere and lie in the file, but reach over the next entry: a few bytes that would be read many
// times.
TEST(ZipArchive, OverlapIsRefused) {
  Zip zip = make_zip(kTwo);
  const auto longer = static_cast<uint32_t>(5 + 30 + 8 + 10);
  for (const size_t position : {zip.local[0] + 18, zip.local[0] + 22, zip.central[0] + 20, zip.central[0] + 24}) {
    put<uint32_t>(zip.bytes, position, longer);
  }
  expect_refused(zip.bytes, "'a' and 'folder/b' overlap");
  const auto beyond = longer + 1;
  for (const size_t position : {zip.local[0] + 18, zip.local[0] + 22, zip.central[0] + 20, zip.central[0] + 24}) {
    put<uint32_t>(zip.bytes, position, beyond);
  }
  expect_refused(zip.bytes, "bytes were expected");  // into the directory
}

TEST(ZipArchive, AnEntryTwiceIsRefused) {
  expect_refused(make_zip({{"a", "1"}, {"a", "2"}}).bytes, "'a': stands twice");
  Zip zip = make_zip({{"a", "1"}, {"b", "1"}});
  put<uint32_t>(zip.bytes, zip.central[1] + 42, 0);  // both entries of the directory at the same place
  expect_refused(zip.bytes, "do not agree");
}

TEST(ZipArchive, Zip64SizesThatCannotBeAreRefused) {
  const auto with = [](size_t back, uint64_t value) {  // bytes before the end of the archive
    Zip zip = make_zip64();
    put(zip.bytes, zip.bytes.size() - back, value);
    return zip.bytes;
  };
  constexpr size_t kEnd = 22, kLocator = 20, kEnd64 = 56;
  expect_refused(with(kEnd + kLocator - 8, ~uint64_t{0}), "the zip64 directory should end at byte");
  expect_refused(with(kEnd + kLocator - 8, 5), "the zip64 directory should end at byte");
  expect_refused(with(kEnd + kLocator + kEnd64 - 40, ~uint64_t{0}),
                 "the directory claims bytes");  // begin + bytes would overflow
  expect_refused(with(kEnd + kLocator + kEnd64 - 48, uint64_t{1} << 63), "the directory claims bytes");
  expect_refused(with(kEnd + kLocator + kEnd64 - 32, uint64_t{1} << 60), "bytes were expected");  // so many entries
  Zip zip = make_zip64();
  for (const uint64_t size : {~uint64_t{0}, uint64_t{1} << 40}) {
    put(zip.bytes, zip.end - 24, size);
    put(zip.bytes, zip.end - 16, size);
    expect_refused(zip.bytes, "do not agree");
  }
}

TEST(ZipArchive, EveryTruncationIsRefused) {
  for (const std::string& whole : {make_zip(kTwo).bytes, make_zip64().bytes}) {
    for (size_t length = 0; length < whole.size(); ++length) expect_refused(whole.substr(0, length), "");
  }
}

}  // namespace
}  // namespace qalora::io
