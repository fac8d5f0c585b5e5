// A stand-in for libqalora_cuda.so that needs neither CUDA nor a device. FAKE_DEVICES: how many it claims to have; -1:
// it throws.
#include <stdexcept>

#include "qalora/tensor/accelerator.h"

namespace {

int count() {
  if (FAKE_DEVICES < 0) throw std::runtime_error("the driver is upset");
  return FAKE_DEVICES;
}
std::string problem() { return "the NVIDIA driver finds no device"; }

}  // namespace

extern "C" const char* qalora_cuda_contract() { return "fake"; }

extern "C" const qalora::tensor::Accelerator* qalora_cuda_accelerator() {
  static const qalora::tensor::Accelerator table = {.version = "13.0, driver 12.4", .count = count, .problem = problem};
  return &table;
}
