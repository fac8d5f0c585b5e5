// Python pickles as torch.save writes them, read without Python: a machine of some forty opcodes that build values, and
// a short list of the names that may be called, each of which only describes a tensor. Nothing is ever executed;
// whatever is not on the list is refused by name.
//
// Values lie in one array and know each other by index, so that nothing is copied however often it is used, and depth
// costs no stack.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "qalora/io/tensor_source.h"

namespace qalora::io {

// What a persistent id stands for: a run of elements in another part of the file.
struct PickleStorage {
  std::string_view key;
  Dtype dtype = Dtype::kU8;
  uint64_t elements = 0;
};

// A view of a storage; offset and strides count elements.
struct PickleTensor {
  uint32_t storage = 0;  // in Pickle::storages()
  uint64_t offset = 0;
  std::vector<int64_t> shape, strides;  // of one length; none is negative
};

class Pickle {
 public:
  using Index = uint32_t;  // of a value
  enum class Kind : uint8_t {
    kNone,
    kBool,
    kInt,
    kLongInt,
    kFloat,
    kText,
    kBytes,
    kTuple,
    kList,
    kDict,
    kGlobal,
    kStorage,
    kTensor,
    kOpaque
  };

  // Reads one pickle, from the first byte to its STOP. The bytes must outlive this; where: begins every message.
  // DataError.
  Pickle(std::span<const std::byte> bytes, const std::string& where);

  uint64_t bytes_read() const { return bytes_read_; }  // through STOP
  Index root() const { return root_; }

  Kind kind(Index value) const { return values_[value].kind; }
  int64_t integer(Index value) const;  // kInt, kBool; else DataError
  std::string_view text(
      Index value) const;  // kText, kBytes; kLongInt: its little-endian bytes; kGlobal: "module.name"; else DataError
  // Of tuples and lists the items; of dicts key, value, key, value. Empty for everything else.
  std::span<const Index> items(Index value) const;
  // The value under a key that is text, the last one if it stands there more often.
  std::optional<Index> find(Index dict, std::string_view key) const;
  const PickleTensor& tensor(Index value) const { return tensors_[values_[value].number]; }
  const std::vector<PickleStorage>& storages() const { return storages_; }
  std::string describe(Index value) const;  // for messages: "a tuple of 3"

 private:
  friend class PickleMachine;
  struct Value {
    Kind kind = Kind::kNone;
    uint32_t count = 0;  // kTuple: how many items
    uint64_t number =
        0;  // kInt, kBool, kFloat: the bits; kTuple: its first item in items_; else an index into what its kind uses
  };

  std::string where_;
  std::vector<Value> values_;
  std::vector<Index> items_;                                  // of all tuples
  std::unordered_map<Index, std::vector<Index>> containers_;  // of lists and dicts that are not empty
  std::vector<std::string_view> texts_;
  std::vector<PickleStorage> storages_;
  std::vector<PickleTensor> tensors_;
  uint64_t bytes_read_ = 0;
  Index root_ = 0;
};

}  // namespace qalora::io
