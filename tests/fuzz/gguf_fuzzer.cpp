#include "input.h"
#include "qalora/io/gguf_checkpoint.h"
#include "read_all.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const qalora::fuzz::InputFile file(data, size);
  return qalora::fuzz::attempt([&] {
    const qalora::io::GgufCheckpoint checkpoint(file.path());
    checkpoint.config().dump();
    qalora::fuzz::read_all(checkpoint);
  });
}
