#include "tiktoken_file.h"

#include <charconv>

#include "byte_letters.h"
#include "byte_level_model.h"
#include "piece_table.h"
#include "qalora/core/error.h"

namespace qalora::text {
namespace {

constexpr int64_t kSpecialTokens = 256;
constexpr int64_t kLlama4Ranks = 200'000;  // the same kind of file, but words are cut otherwise

// nullopt for what is no base64 of at least one byte.
std::optional<std::string> from_base64(std::string_view text) {
  if (text.size() % 4 != 0) return std::nullopt;
  while (text.ends_with('=')) text.remove_suffix(1);
  if (text.empty() || text.size() % 4 == 1) return std::nullopt;
  constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string bytes;
  uint32_t bits = 0;
  int count = 0;
  for (const char c : text) {
    const size_t digit = kDigits.find(c);
    if (digit == std::string_view::npos) return std::nullopt;
    bits = (bits << 6 | static_cast<uint32_t>(digit)) & 0xffff;
    count += 6;
    if (count >= 8) bytes += static_cast<char>(bits >> (count -= 8) & 0xff);
  }
  return bytes;
}

// LLaMA 3.2's names; the ids of those that were called reserved before are the same.
std::vector<std::string> special_tokens() {
  std::vector<std::string> names = {"<|begin_of_text|>",
                                    "<|end_of_text|>",
                                    "<|reserved_special_token_0|>",
                                    "<|reserved_special_token_1|>",
                                    "<|finetune_right_pad_id|>",
                                    "<|step_id|>",
                                    "<|start_header_id|>",
                                    "<|end_header_id|>",
                                    "<|eom_id|>",
                                    "<|eot_id|>",
                                    "<|python_tag|>",
                                    "<|image|>"};
  for (int number = 2; std::ssize(names) < kSpecialTokens; ++number)
    names.push_back(message("<|reserved_special_token_", number, "|>"));
  return names;
}

}  // namespace

TokenizerJson read_tiktoken(const fs::path& path, std::string_view bytes) {
  ByteLevelParts parts;
  parts.name = path.string();
  parts.ranked = true;
  parts.ignore_merges = true;  // a word that is a piece is never cut
  parts.steps = named_steps("llama-bpe");
  while (!bytes.empty()) {
    std::string_view line = bytes.substr(0, bytes.find('\n'));
    bytes.remove_prefix(std::min(bytes.size(), line.size() + 1));
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty()) continue;
    const size_t blank = line.find(' ');
    const auto token = from_base64(line.substr(0, blank));
    int64_t rank = -1;
    const std::string_view digits = blank == std::string_view::npos ? "" : line.substr(blank + 1);
    const auto [end, code] = std::from_chars(digits.data(), digits.data() + digits.size(), rank);
    // Ranks without a gap: then they are ids, and no line can ask for more memory than it takes itself.
    QALORA_REQUIRE(
        token && code == std::errc() && end == digits.data() + digits.size() && rank == std::ssize(parts.pieces),
        DataError, path.string(), ": line ", parts.pieces.size() + 1,
        " of a tiktoken vocabulary is damaged; expected a base64 "
        "token and the rank ",
        parts.pieces.size());
    QALORA_REQUIRE(token->size() <= kLongestPiece, DataError, path.string(), ": line ", parts.pieces.size() + 1,
                   " of a tiktoken vocabulary is a token of ", token->size(), " bytes; expected at most ",
                   kLongestPiece);
    parts.pieces.push_back(to_letters(*token));
  }
  const auto ranks = std::ssize(parts.pieces);
  QALORA_REQUIRE(ranks != kLlama4Ranks, DataError, path.string(), ": a tiktoken vocabulary of ", ranks,
                 " ranks is LLaMA 4's; expected LLaMA 3's");
  TokenizerJson result;
  result.rules.adds_bos = true;
  for (const std::string& name : special_tokens()) {
    result.rules.added.push_back({.content = name, .id = ranks + std::ssize(result.rules.added), .special = true});
  }
  parts.bos = ranks;
  parts.eos = ranks + 1;
  result.rules.stop_ids = {ranks + 8, ranks + 9};  // end of message, end of turn
  result.model = make_byte_level_model(std::move(parts));
  return result;
}

}  // namespace qalora::text
