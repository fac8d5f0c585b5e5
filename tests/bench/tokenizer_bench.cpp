// How fast a tokenizer encodes a file, and what ids it gives: tokenizer_bench FOLDER FILE [IDS.txt]. Every line of
// IDS.txt has the ids of one text, where a file of texts parts them with lines "----".
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iostream>

#include "qalora/core/error.h"
#include "qalora/text/tokenizer.h"

namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

std::vector<std::string> parted(const std::string& text) {
  constexpr std::string_view kMark = "\n----\n";
  std::vector<std::string> texts;
  size_t begin = 0;
  for (size_t end; (end = text.find(kMark, begin)) != std::string::npos; begin = end + kMark.size())
    texts.push_back(text.substr(begin, end - begin));
  texts.push_back(text.substr(begin));
  return texts;
}

int run(int argc, char** argv) {
  const auto start = Clock::now();
  const qalora::text::Tokenizer tokenizer{qalora::fs::path(argv[1])};
  std::printf("loaded in %.3f s: %lld pieces\n", seconds_since(start), static_cast<long long>(tokenizer.vocab_size()));
  const std::string text = qalora::read_text_file(argv[2], uint64_t{1} << 30);
  std::ofstream out;
  if (argc > 3) out.open(argv[3]);
  const std::vector<std::string> texts = parted(text);
  for (const char* which : {"first", "second"}) {
    const auto begin = Clock::now();
    size_t tokens = 0;
    for (const std::string& part : texts) {
      const auto ids = tokenizer.encode(part, {.parse_special = true});
      tokens += ids.size();
      if (!out.is_open()) continue;
      for (size_t i = 0; i < ids.size(); ++i) out << (i > 0 ? " " : "") << ids[i];
      out << '\n';
    }
    const double seconds = seconds_since(begin);
    std::printf("%s pass: %.3f s, %.1f MB/s, %zu tokens\n", which, seconds,
                static_cast<double>(text.size()) / 1e6 / seconds, tokens);
    out.close();
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::cerr << "usage: tokenizer_bench FOLDER FILE [IDS.txt]\n";
    return 2;
  }
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
