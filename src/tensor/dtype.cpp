#include "qalora/tensor/dtype.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "qalora/core/error.h"
#include "qalora/core/format.h"

namespace qalora::tensor {

namespace {

// AMX tiles exist, multiply bf16, and the system lets this process use them.
bool has_amx_bf16() {
#if defined(__x86_64__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;  // cpuid leaf 7, edx
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & kAmxBf16) == 0 || (d & kAmxTile) == 0) return false;
  // Linux hands out the large tile state only on request (kernel 5.16 and later; older ones refuse the call).
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace

at::ScalarType parse_compute_dtype(std::string_view name) {
  if (name == "float32") return at::ScalarType::Float;
  if (name == "bfloat16") return at::ScalarType::BFloat16;
  throw UserError(message("dtype '", name, "' is not known; expected float32 or bfloat16",
                          did_you_mean(name, {"float32", "bfloat16"})));
}

std::string dtype_name(at::ScalarType dtype) {
  switch (dtype) {
    case at::ScalarType::Float: return "float32";
    case at::ScalarType::BFloat16: return "bfloat16";
    case at::ScalarType::Half: return "float16";
    case at::ScalarType::Double: return "float64";
    case at::ScalarType::Byte: return "uint8";
    case at::ScalarType::Char: return "int8";
    case at::ScalarType::Short: return "int16";
    case at::ScalarType::Int: return "int32";
    case at::ScalarType::Long: return "int64";
    case at::ScalarType::UInt16: return "uint16";
    case at::ScalarType::UInt32: return "uint32";
    case at::ScalarType::UInt64: return "uint64";
    case at::ScalarType::Bool: return "bool";
    default: return c10::toString(dtype);
  }
}

at::ScalarType default_compute_dtype(c10::Device device) {
  if (!device.is_cpu()) return at::ScalarType::BFloat16;
  static const bool fast_bf16 = has_amx_bf16();
  return fast_bf16 ? at::ScalarType::BFloat16 : at::ScalarType::Float;
}

}  // namespace qalora::tensor
