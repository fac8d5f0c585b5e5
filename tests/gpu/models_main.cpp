// The models of tests/accelerator on a GPU: what only CUDA has (attention over packed segments, products with wider
// results, graphs) is tested here alone.
#include <gtest/gtest.h>

#include <cstdio>
#include <string>

#include "accelerator/tiny_model.h"
#include "qalora/tensor/accelerator.h"

namespace qalora::test {

c10::Device test_device() { return c10::Device(tensor::accelerator()->type, 0); }

}  // namespace qalora::test

int main(int argc, char** argv) {
  constexpr int kSkipped = 77;  // for ctest
  ::testing::InitGoogleTest(&argc, argv);
  std::string problem;
  if (qalora::tensor::load_cuda(&problem) == nullptr) {
    std::printf("skipped, no GPU here: %s\n", problem.c_str());
    return kSkipped;
  }
  return RUN_ALL_TESTS();
}
