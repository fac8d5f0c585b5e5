// Chooses the instruction set, once, and checks arguments before anything is read.
#include <cstdlib>
#include <cstring>

#include "qalora/kernels/isa.h"

namespace qalora::kernels {

namespace {

bool always() { return true; }

// The compiler's helper asks the processor and whether the system saves the wide registers.
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

struct Choice {
  const char* error = nullptr;
  const Isa& isa = choose_isa(std::getenv("QALORA_FORCE_ISA"), &error);
};

const Choice& choice() {
  static const Choice instance;
  return instance;
}

Status check(const PackedView& view, int64_t row_begin, int64_t row_end, const void* out) {
  switch (view.bits) {
    case 2:
    case 3:
    case 4:
    case 5:
    case 6:
    case 8: break;
    default: return Status::kUnsupported;
  }
  if (view.out_features < 0 || view.in_features < 0 || view.group_size <= 0) return Status::kBadArgument;
  if (row_begin < 0 || row_begin > row_end || row_end > view.out_features) return Status::kBadArgument;
  const bool empty = row_begin == row_end || view.in_features == 0;
  const bool complete = view.codes != nullptr && view.scales != nullptr && view.offsets != nullptr && out != nullptr;
  return empty || complete ? Status::kOk : Status::kBadArgument;
}

}  // namespace

const Isa kIsas[kIsaCount] = {
    {"avx512", has_avx512, avx512::dequantize, avx512::dequantize_bf16, avx512::matvec},
    {"avx2", has_avx2, avx2::dequantize, avx2::dequantize_bf16, avx2::matvec},
    {"scalar", always, scalar::dequantize, scalar::dequantize_bf16, scalar::matvec},
};

const Isa& choose_isa(const char* forced, const char** error) {
  *error = nullptr;
  const bool wish = forced != nullptr && *forced != '\0';
  bool known = false;
  const Isa* best = nullptr;
  for (const Isa& isa : kIsas) {
    const bool named = wish && std::strcmp(isa.name, forced) == 0;
    known = known || named;
    if (!isa.supported()) continue;
    if (named) return isa;
    if (best == nullptr) best = &isa;
  }
  if (wish && !known) *error = "QALORA_FORCE_ISA: expected scalar, avx2 or avx512";
  if (wish && known) *error = "QALORA_FORCE_ISA names an instruction set that this processor does not have";
  return *best;
}

const char* active_isa() { return choice().isa.name; }
const char* force_isa_error() { return choice().error; }

Status dequantize_rows(const PackedView& view, int64_t row_begin, int64_t row_end, float* out) {
  const Status status = check(view, row_begin, row_end, out);
  if (status == Status::kOk && view.in_features > 0) choice().isa.dequantize(view, row_begin, row_end, out);
  return status;
}

Status dequantize_rows_bf16(const PackedView& view, int64_t row_begin, int64_t row_end, uint16_t* out) {
  const Status status = check(view, row_begin, row_end, out);
  if (status == Status::kOk && view.in_features > 0) choice().isa.dequantize_bf16(view, row_begin, row_end, out);
  return status;
}

Status matvec_rows(const PackedView& view, const float* x, int64_t tokens, int64_t row_begin, int64_t row_end,
                   float* y) {
  if (tokens < 0 || (tokens > 0 && x == nullptr && view.in_features > 0)) return Status::kBadArgument;
  const Status status = check(view, row_begin, row_end, y);
  if (status == Status::kOk && tokens > 0) choice().isa.matvec(view, x, tokens, row_begin, row_end, y);
  return status;
}

}  // namespace qalora::kernels
