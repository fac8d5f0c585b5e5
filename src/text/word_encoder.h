// SentencePiece word by word: the same ids as for the whole text, many times faster on text that repeats its words.
#pragma once

#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace sentencepiece {
class SentencePieceProcessor;
}

namespace qalora::text {

inline constexpr std::string_view kBlankMark = "\u2581";  // how SentencePiece writes a blank inside a piece

// BPE joins neighbours only into pieces of the vocabulary. Where no piece has a blank behind another character (LLaMA's
// has none), nothing is ever joined across the front of a run of blanks, so the text may be cut there.
class WordEncoder {
 public:
  // processor: adds no dummy prefix. context_free: see SentencePieceFile; without it texts are encoded whole.
  WordEncoder(const sentencepiece::SentencePieceProcessor& processor, bool context_free);

  // Appends the ids. Returns the library's reason when it cannot encode, else "". Safe to call from several threads.
  std::string append(std::string_view text, std::vector<int64_t>& ids) const;
  bool by_words() const { return by_words_; }

 private:
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
  };
  std::string append_whole(std::string_view text, std::vector<int64_t>& ids) const;

  const sentencepiece::SentencePieceProcessor& processor_;
  bool by_words_;
  mutable std::mutex mutex_;
  mutable std::unordered_map<std::string, std::vector<int64_t>, Hash, std::equal_to<>> known_;
};

}  // namespace qalora::text
