// The input is a tokenizer.model (SentencePiece); what opens encodes and decodes.
#include "input.h"
#include "qalora/text/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const qalora::fuzz::InputFolder folder;
  folder.put("tokenizer.model", qalora::fuzz::text(data, size));
  return qalora::fuzz::attempt([&] {
    const qalora::text::Tokenizer tokenizer(folder.path());
    const std::string text = "Hello, world!\n  \xE4\xBD\xA0\xF0\x9F\x98\x80 1234";
    tokenizer.decode(tokenizer.encode(text, {}));
  });
}
