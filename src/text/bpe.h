// Byte-pair encoding: neighbours are joined, the pair that was learnt first before all others.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

namespace qalora::text {

class Merges {
 public:
  void reserve(size_t count) { table_.reserve(count); }
  // false: the pair is there already, and stays as it was.
  bool add(int32_t left, int32_t right, int32_t rank, int32_t result) {
    return table_.emplace(key(left, right), Merge{rank, result}).second;
  }
  size_t size() const { return table_.size(); }

  // Joins in place until no pair of neighbours can be joined; of equal ranks the leftmost first. O(n log n).
  void apply(std::vector<int32_t>& symbols) const;

 private:
  struct Merge {
    int32_t rank, result;
  };
  struct Joint;
  static uint64_t key(int32_t left, int32_t right) {
    return static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
  }
  const Merge* find(int32_t left, int32_t right) const {
    const auto found = table_.find(key(left, right));
    return found == table_.end() ? nullptr : &found->second;
  }

  std::unordered_map<uint64_t, Merge> table_;  // by the ids of both sides
};

}  // namespace qalora::text
