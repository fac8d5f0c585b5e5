// The input is a tokenizer.json; what can be read encodes and decodes a text, and goes through a vocabulary's files and
// back.
#include "input.h"
#include "qalora/text/save_tokenizer.h"
#include "qalora/text/tokenizer.h"

namespace {

const qalora::fuzz::InputFolder& folder() {
  static const qalora::fuzz::InputFolder made;
  return made;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  folder().put("tokenizer.json", qalora::fuzz::text(data, size));
  return qalora::fuzz::attempt([&] {
    using qalora::text::Tokenizer;
    const Tokenizer tokenizer(folder().path());
    const auto ids = tokenizer.encode("It's 1234 na\u00efve  words\n\n\u6f22\u5b57 \xff<|end|>",
                                      {.add_bos = true, .parse_special = true});
    tokenizer.decode(ids);
    for (const int64_t id : ids) tokenizer.decode_next({id}, id);
    const Tokenizer again(tokenizer.vocabulary(), "again");
    again.encode("some text", {});
  });
}
