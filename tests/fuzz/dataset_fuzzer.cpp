// The input is a data set of any format that is told apart by its contents; the first byte chooses the file's ending.
#include "input.h"
#include "qalora/text/dataset.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const qalora::fuzz::InputFolder folder;
  static constexpr const char* kNames[] = {"data.json", "data.jsonl", "data.csv", "data.txt"};
  if (size == 0) return 0;
  const char* name = kNames[data[0] % 4];
  folder.put(name, qalora::fuzz::text(data + 1, size - 1));
  return qalora::fuzz::attempt([&] {
    const qalora::text::Dataset dataset(folder.path() / name, qalora::text::DataFormat::kAuto,
                                        /*skip_bad_records=*/true);
    for (int64_t i = 0; i < static_cast<int64_t>(dataset.size()); ++i) dataset.record(i);
  });
}
