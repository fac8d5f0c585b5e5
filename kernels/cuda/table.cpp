// Host side only: built into the program (which asks before it moves a weight to a device), into the plug-in and into the tests.
#include "qalora/kernels/cuda.h"

namespace qalora::kernels::cuda {

bool supports(const TiledShape& shape) {
  return shape.bits >= 2 && shape.bits <= 4 && shape.group_size > 0 && shape.group_size % 32 == 0 && shape.in_features > 0 &&
         shape.in_features % 32 == 0 && shape.out_features > 0;
}

}  // namespace qalora::kernels::cuda
