#include "input.h"
#include "qalora/io/torch_file.h"
#include "read_all.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const qalora::fuzz::InputFile file(data, size);
  return qalora::fuzz::attempt([&] { qalora::fuzz::read_all(qalora::io::TorchFile(file.path())); });
}
