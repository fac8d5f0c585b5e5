#include "input.h"
#include "qalora/cli/toml.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return qalora::fuzz::attempt([&] {
    for (const auto& entry : qalora::cli::parse_toml(qalora::fuzz::text(data, size), "input"))
      qalora::cli::toml_plain(entry.value);
  });
}
