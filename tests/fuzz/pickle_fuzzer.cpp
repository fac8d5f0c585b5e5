// The table of tensors alone, without the archive around it.
#include "input.h"
#include "qalora/io/pickle.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using qalora::io::Pickle;
  return qalora::fuzz::attempt([&] {
    const Pickle pickle({reinterpret_cast<const std::byte*>(data), size}, "input");
    QALORA_CHECK(pickle.bytes_read() <= size, "more was read than is there");
    pickle.describe(pickle.root());
    for (const Pickle::Index item : pickle.items(pickle.root())) {
      if (pickle.kind(item) == Pickle::Kind::kTensor)
        QALORA_CHECK(pickle.tensor(item).storage < pickle.storages().size(), "no such storage");
    }
  });
}
