#include "support/fake_kernels.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cstddef>
#include <type_traits>

#include "support/fake_graph.h"
#include "support/fake_memory.h"

namespace qalora::test {

namespace {

using kernels::Status;
using kernels::cuda::Api;

const Api* host_kernels = nullptr;

template <typename T>
T* on_host(T* device, const char* kernel) {
  return static_cast<T*>(to_host_pointer(device, kernel));
}
kernels::PackedView on_host(kernels::PackedView view, const char* kernel) {
  view.codes = on_host(view.codes, kernel), view.scales = on_host(view.scales, kernel),
  view.offsets = on_host(view.offsets, kernel);
  return view;
}
kernels::cuda::TiledView on_host(kernels::cuda::TiledView view, const char* kernel) {
  view.codes = on_host(view.codes, kernel), view.scales = on_host(view.scales, kernel),
  view.offsets = on_host(view.offsets, kernel);
  return view;
}
kernels::cuda::PoolOutput on_host(kernels::cuda::PoolOutput pool, const char* kernel) {
  pool.sums = on_host(pool.sums, kernel);
  return pool;
}
kernels::cuda::TiledShape on_host(const kernels::cuda::TiledShape& shape, const char*) { return shape; }
template <typename T>
requires std::is_arithmetic_v<T> || std::is_enum_v<T> T on_host(T value, const char*) { return value; }

template <size_t N>
struct Name {
  char text[N];
  constexpr Name(const char (&from)[N]) { std::copy(from, from + N, text); }  // NOLINT: "matvec" is to become one
};

template <auto Member, Name kName>
struct Wrapped;
template <typename... Arguments, Status (*Api::*Member)(Arguments...), Name kName>
struct Wrapped<Member, kName> {
  static Status call(Arguments... arguments) {
    TORCH_CHECK(host_kernels->*Member != nullptr, kName.text, ": the table has no such kernel");
    // By value, what is behind references as well: a launch copies its arguments.
    const auto launch = [=] { return (host_kernels->*Member)(on_host(arguments, kName.text)...); };
    count_kernel();
    const Status status = launch();
    if (recording() && status == Status::kOk) {
      add_step([=] { TORCH_CHECK(launch() == Status::kOk, "replay: ", kName.text, " failed"); });
    }
    return status;
  }
};

template <auto Member, Name kName>
void wrap(Api& device) {
  device.*Member = &Wrapped<Member, kName>::call;
}

int64_t matmul_workspace_bytes(const kernels::cuda::TiledShape& shape, int64_t rows, int multiprocessors) {
  TORCH_CHECK(host_kernels->matmul_workspace_bytes != nullptr,
              "matmul_workspace_bytes: the table has no such function");
  return host_kernels->matmul_workspace_bytes(shape, rows, multiprocessors);
}

Api wrap_all() {
  static_assert(sizeof(Api) == 14 * sizeof(void*), "a new function of the table has to be wrapped here");
  Api device;
  wrap<&Api::repack, "repack">(device);
  wrap<&Api::fold, "fold">(device);
  wrap<&Api::dequantize, "dequantize">(device);
  wrap<&Api::matvec, "matvec">(device);
  device.matmul_workspace_bytes = &matmul_workspace_bytes;
  wrap<&Api::matmul, "matmul">(device);
  wrap<&Api::pool, "pool">(device);
  wrap<&Api::rms_norm, "rms_norm">(device);
  wrap<&Api::rms_norm_backward, "rms_norm_backward">(device);
  wrap<&Api::swiglu, "swiglu">(device);
  wrap<&Api::swiglu_backward, "swiglu_backward">(device);
  wrap<&Api::rope, "rope">(device);
  wrap<&Api::cross_entropy, "cross_entropy">(device);
  device.last_error = host_kernels->last_error;
  return device;
}

}  // namespace

const Api& fake_kernels(const Api& host) {
  static const Api device = [&] {
    host_kernels = &host;
    return wrap_all();
  }();
  TORCH_CHECK(host_kernels == &host, "fake_kernels knows one table of kernels");
  return device;
}

}  // namespace qalora::test
