// The input is a GGUF file: its header, its tokenizer, and the model in it with every tensor.
#include "input.h"
#include "qalora/io/gguf_checkpoint.h"
#include "qalora/text/gguf_vocabulary.h"
#include "read_all.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const qalora::fuzz::InputFile file(data, size);
  qalora::fuzz::attempt([&] {
    const qalora::io::GgufFile opened(file.path());
    if (qalora::text::has_gguf_vocabulary(opened.contents())) qalora::text::read_gguf_vocabulary(opened.contents());
  });
  return qalora::fuzz::attempt([&] {
    const qalora::io::GgufCheckpoint checkpoint(file.path());
    checkpoint.config().dump();
    qalora::fuzz::read_all(checkpoint);
  });
}
