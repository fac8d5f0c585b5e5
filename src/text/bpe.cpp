#include "bpe.h"

#include <queue>

namespace qalora::text {

// A pair that could be joined when it was looked at.
struct Merges::Joint {
  int32_t rank, position, result;
  bool operator<(const Joint& other) const {  // the queue gives the greatest first
    return rank != other.rank ? rank > other.rank : position > other.position;
  }
};

void Merges::apply(std::vector<int32_t>& symbols) const {
  const auto count = static_cast<int32_t>(symbols.size());
  std::vector<int32_t> next(count),
      previous(count);  // places in `symbols`; a joined symbol stands at its left half's, -1 at the other's
  std::priority_queue<Joint> queue;
  const auto consider = [&](int32_t left) {
    if (left < 0 || next[left] >= count) return;
    if (const Merge* merge = find(symbols[left], symbols[next[left]])) queue.push({merge->rank, left, merge->result});
  };
  for (int32_t at = 0; at < count; ++at) {
    next[at] = at + 1;
    previous[at] = at - 1;
  }
  for (int32_t at = 0; at + 1 < count; ++at) consider(at);
  while (!queue.empty()) {
    const Joint best = queue.top();
    queue.pop();
    const int32_t left = best.position;
    if (symbols[left] < 0 || next[left] >= count) continue;
    const int32_t right = next[left];
    // The neighbours may have changed since. What they give now counts, as in the tokenizers library.
    const Merge* now = find(symbols[left], symbols[right]);
    if (now == nullptr || now->result != best.result) continue;
    symbols[left] = best.result;
    symbols[right] = -1;
    next[left] = next[right];
    if (next[left] < count) previous[next[left]] = left;
    consider(previous[left]);
    consider(left);
  }
  std::erase(symbols, -1);
}

}  // namespace qalora::text
