// The examples of FIPS 180-4 and NIST's CAVP, and pieces of every length.
#include <gtest/gtest.h>

#include <string>

#include "qalora/core/file.h"

namespace qalora {
namespace {

std::string of(std::string_view text) { return sha256(std::as_bytes(std::span(text))); }

TEST(Sha256, NistExamples) {
  EXPECT_EQ(of(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(of("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(of("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(
      of("abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopqklmnopqrlmnopqrsmnopqrstnopqrstu"),
      "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1");
  EXPECT_EQ(of(std::string(1000000, 'a')), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  EXPECT_EQ(of("\xbd"), "68325720aabd7c82f30f554b313d0570c95accbb7dc4b5aae11204c08ffe732b");
  EXPECT_NE(of("abd"), of("abc"));
}

TEST(Sha256, PiecesGiveTheSameAsTheWhole) {
  std::string text;
  for (int i = 0; i < 300; ++i) text += static_cast<char>(i * 7);
  for (size_t length = 0; length <= text.size(); ++length) {  // over every place where the padding can fall
    const std::string_view whole = std::string_view(text).substr(0, length);
    for (size_t piece : {1, 55, 64, 100}) {
      Sha256 hash;
      for (size_t at = 0; at < length; at += piece) hash.update(whole.substr(at, piece));
      ASSERT_EQ(hash.hex(), of(whole)) << length << " in pieces of " << piece;
    }
  }
}

}  // namespace
}  // namespace qalora
