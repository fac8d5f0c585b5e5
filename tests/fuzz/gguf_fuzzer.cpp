// The input is a GGUF file: its header, its tokenizer, which encodes and decodes, and the model in it with every
// tensor.
#include "input.h"
#include "qalora/io/gguf_checkpoint.h"
#include "qalora/text/gguf_vocabulary.h"
#include "qalora/text/tokenizer.h"
#include "read_all.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const qalora::fuzz::InputFile file(data, size);
  qalora::fuzz::attempt([&] {
    const qalora::io::GgufFile opened(file.path());
    if (!qalora::text::has_gguf_vocabulary(opened.contents())) return;
    const qalora::text::Tokenizer tokenizer(qalora::text::read_gguf_vocabulary(opened.contents()), "input");
    tokenizer.decode(
        tokenizer.encode("It's 1234 na\u00efve  words\n\n\u6f22 \xff</s>", {.add_bos = true, .parse_special = true}));
  });
  return qalora::fuzz::attempt([&] {
    const qalora::io::GgufCheckpoint checkpoint(file.path());
    checkpoint.config().dump();
    qalora::fuzz::read_all(checkpoint);
  });
}
