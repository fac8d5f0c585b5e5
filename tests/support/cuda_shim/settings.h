// How the shim runs a grid, what it found wrong, and what was launched: for tests.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine.h"

namespace cuda_shim {

// The launch broke a rule: a deadlock, a warp operation with the wrong lanes, a misaligned address, a limit of the
// hardware. what() names kernel, block, thread and, for a deadlock, what each waits for.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Its name where a sanitizer is linked, which knows the symbols; else its address.
std::string name_of_kernel(const void* kernel);

// In which order the threads that can go on do so, and when an asynchronous copy lands. CUDA promises none: results may
// not differ.
enum class Order {
  kAscending,  // the first warp goes as far as it can, then the second; lanes likewise; copies land as late as they may
  kDescending,  // the last warp first, the last lane first; copies land at once
  kShuffled,    // single threads, newly shuffled every round; copies land late or at once by chance; blocks in a
                // scattered order
};
constexpr Order kOrders[] = {Order::kAscending, Order::kDescending, Order::kShuffled};
const char* name_of(Order order);

struct Settings {
  Order order = Order::kAscending;
  uint64_t seed = 1;                        // of kShuffled
  int64_t max_shared_bytes = 227 * 1024;    // a block's limit: sm_90; sm_80 163 KB, sm_86 and sm_89 99 KB
  bool record_only = false;                 // launches are noted and not run
  std::vector<Launch>* launches = nullptr;  // where they are noted, or null
};
// Of this OS thread.
Settings& settings();

// Sets for a scope.
class With {
 public:
  explicit With(const Settings& now) : before_(settings()) { settings() = now; }
  ~With() { settings() = before_; }
  With(const With&) = delete;

 private:
  Settings before_;
};

template <typename Function>
void for_each_order(Function function) {
  for (const Order order : kOrders) {
    Settings now = settings();
    now.order = order;
    const With with(now);
    function(order);
  }
}

}  // namespace cuda_shim
