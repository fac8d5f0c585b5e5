// tests/cuda on a real device: what stands in for the shim's settings. The hardware chooses the order of the threads; a
// check runs three times and must give the same bits.
#pragma once

#include <stdexcept>

namespace cuda_shim {

struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class Order { kFirst, kSecond, kThird };
constexpr Order kOrders[] = {Order::kFirst, Order::kSecond, Order::kThird};
inline const char* name_of(Order order) {
  return order == Order::kFirst ? "the first run" : order == Order::kSecond ? "the second" : "the third";
}

template <typename Function>
void for_each_order(Function function) {
  for (const Order order : kOrders) function(order);
}

}  // namespace cuda_shim

namespace qalora::test::cuda {

// Leaves only the test that says what is missing.
void filter_without_device();

}  // namespace qalora::test::cuda
