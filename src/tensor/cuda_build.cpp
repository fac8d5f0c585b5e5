// In a file of its own: only this one is compiled anew when the build's choice of CUDA changes.
#include "cuda_build.h"

#include "qalora/tensor/cuda_plugin.h"

namespace qalora::tensor {

const CudaBuild& cuda_build() {
  static const CudaBuild build = {.built = QALORA_CUDA_BUILT,
                                  .missing = QALORA_CUDA_MISSING,
                                  .toolkit = QALORA_CUDA_TOOLKIT,
                                  .architectures = {QALORA_CUDA_ARCHITECTURE_LIST},
                                  .contract = QALORA_CUDA_CONTRACT};
  return build;
}

}  // namespace qalora::tensor
