// A small SentencePiece model made by the tests, so that they need no file from elsewhere, and LLaMA's own where it is
// there.
#pragma once

#include <cstring>
#include <string>
#include <vector>

#include "qalora/text/tokenizer.h"
#include "support/support.h"

namespace qalora::test {

inline std::string varint(uint64_t value) {
  std::string bytes;
  for (; value >= 0x80; value >>= 7) bytes += static_cast<char>(value | 0x80);
  return bytes + static_cast<char>(value);
}
inline std::string bytes_field(int number, const std::string& bytes) {
  return varint(number << 3 | 2) + varint(bytes.size()) + bytes;
}
inline std::string number_field(int number, uint64_t value) { return varint(number << 3) + varint(value); }

enum PieceType { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kByte = 6 };

inline std::string piece_field(const std::string& piece, float score, PieceType type) {
  char raw[4];
  std::memcpy(raw, &score, 4);
  return bytes_field(1, bytes_field(1, piece) + varint(2 << 3 | 5) + std::string(raw, 4) + number_field(3, type));
}

// BPE with byte fallback: ids 0 to 2 <unk> <s> </s>, 3 to 258 the bytes, then merged pieces and characters.
inline std::string tiny_model(bool dummy_prefix = true, bool has_end = true) {
  std::string model = piece_field("<unk>", 0, kUnknown) + piece_field("<s>", 0, kControl);
  model += piece_field(has_end ? "</s>" : "<end>", 0, kControl);
  for (int byte = 0; byte < 256; ++byte) {
    char name[8];
    std::snprintf(name, sizeof name, "<0x%02X>", byte);
    model += piece_field(name, 0, kByte);
  }
  float score = 0;
  for (const char* piece : {"\u2581t", "he", "\u2581the", "\u2581a", "ll", "in", "##", "###"})
    model += piece_field(piece, -(score += 1), kNormal);
  model += piece_field("\u2581", -(score += 1), kNormal);
  for (char c = '!'; c <= '~'; ++c) model += piece_field(std::string(1, c), -(score += 1), kNormal);
  model += bytes_field(2, number_field(3, 2) + number_field(35, 1));
  return model + bytes_field(3, bytes_field(1, "identity") + number_field(3, dummy_prefix) + number_field(4, 0) +
                                    number_field(5, 1));
}

// A folder with a tokenizer.model and, where given, its tokenizer_config.json.
inline void write_tiny_tokenizer(const fs::path& folder, const std::string& config = "") {
  write_file(folder / "tokenizer.model", tiny_model());
  if (!config.empty()) write_file(folder / "tokenizer_config.json", config);
}

inline void copy_llama_tokenizer(const fs::path& folder, const std::string& config = "") {
  write_file(folder / "tokenizer.model", read_file(shared_dir() / "data/tokenizer/llama2.tokenizer.model"));
  if (!config.empty()) write_file(folder / "tokenizer_config.json", config);
}
inline constexpr const char* kLlamaModel = "data/tokenizer/llama2.tokenizer.model";

// The error's text when `act` throws E, else a failure.
template <typename E, typename F>
std::string error_of(F&& act) {
  try {
    act();
  } catch (const E& error) {
    return error.what();
  } catch (const std::exception& error) {
    ADD_FAILURE() << "another error: " << error.what();
    return "";
  }
  ADD_FAILURE() << "no error";
  return "";
}

inline bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }
#define EXPECT_CONTAINS(text, part) EXPECT_PRED2(::qalora::test::contains, text, part)

}  // namespace qalora::test
