// ldmatrix and mma.sync by the fragment layouts of the PTX manual.
#pragma once

#include <cstdint>

namespace cuda_shim {

void load_matrix_x4(uint32_t (&r)[4], const void* shared);

enum class Element16 { kBFloat16, kHalf };
// d += a . b. The 16 products and d are added in double, k ascending, and rounded once: the exact result's nearest
// float but for the last bits of a double. Tensor cores keep fewer bits on the way; a kernel's tolerance must allow for
// it.
void multiply_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Element16 element);

}  // namespace cuda_shim
