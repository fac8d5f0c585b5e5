#include <nlohmann/json.hpp>

#include "input.h"
#include "qalora/io/json_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const qalora::fuzz::InputFile file(data, size);
  return qalora::fuzz::attempt([&] { qalora::io::read_json_file(file.path()).dump(); });
}
