// The table of kernels: complete, and true to what the kernels take.
#include "qalora/kernels/cuda_table.h"

#include "cuda/tiled.h"
#include "kernels/cuda/linear.h"

namespace qalora::kernels::cuda {
namespace {

constexpr int kArchitectures[] = {80, 86, 87, 89, 90, 100, 120};
const TiledShape kShape = {4096, 4096, 32, 4};

TEST(Table, HasOneAnswerForAllThatIsSupported) {
  for (const int bits : {2, 3, 4}) {
    for (const int64_t group_size : {32, 64, 96, 128, 4096}) {
      for (const int architecture : kArchitectures) {
        for (const Type type : test::cuda::kAllTypes) {
          for (const int64_t rows : {1, 8, 9, 16, 256, 257, 512, 513, 1 << 20}) {
            const TiledShape shape = {4096, 4096, group_size, bits};
            for (const Operation operation : {Operation::kForward, Operation::kBackward}) {
              const Choice* choice = choose(operation, shape, rows, type, architecture);
              ASSERT_NE(choice, nullptr);
              EXPECT_TRUE(rows >= choice->min_rows && rows <= choice->max_rows);
              EXPECT_TRUE(operation == Operation::kForward || choice->method == Method::kPanel);
            }
          }
        }
      }
    }
  }
}

TEST(Table, HasNoneForWhatIsNot) {
  const auto none = [](const TiledShape& shape, int architecture) {
    return choose(Operation::kForward, shape, 1, Type::kBFloat16, architecture) == nullptr;
  };
  EXPECT_FALSE(none(kShape, 80));
  EXPECT_TRUE(none(kShape, 75));
  EXPECT_TRUE(none({4096, 4096, 48, 4}, 90));
  EXPECT_TRUE(none({4096, 4096, 32, 8}, 90));
  EXPECT_TRUE(none({4096, 4100, 32, 4}, 90));
  EXPECT_TRUE(none({int64_t{1} << 31, 4096, 32, 4}, 90));
  EXPECT_EQ(choose(Operation::kForward, kShape, 0, Type::kBFloat16, 90), nullptr);
}

TEST(Table, ChangesTheKernelWhereItSays) {
  const auto method = [](int64_t rows, int architecture, Type type = Type::kBFloat16) {
    return choose(Operation::kForward, kShape, rows, type, architecture)->method;
  };
  EXPECT_EQ(method(8, 90), Method::kMatvec);
  EXPECT_EQ(method(9, 90), Method::kMatmul);
  EXPECT_EQ(method(256, 90), Method::kMatmul);
  EXPECT_EQ(method(257, 90), Method::kPanel);
  EXPECT_EQ(method(257, 86), Method::kMatmul);
  EXPECT_EQ(method(257, 80), Method::kPanel);
  EXPECT_EQ(method(513, 89), Method::kPanel);
  EXPECT_EQ(method(1, 90, Type::kHalf), Method::kMatvec);
  EXPECT_EQ(method(1, 90, Type::kFloat), Method::kPanel);
}

// What the table sends to a kernel, the kernel takes; one row more than matvec is told to take it refuses.
TEST(Table, IsWhatTheKernelsTake) {
  for (const Choice& choice : kTable) {
    if (choice.method == Method::kMatvec) {
      EXPECT_EQ(choice.max_rows, kMatvecRows);
    }
    if (choice.method == Method::kPanel) {
      EXPECT_EQ(choice.max_rows, kAnyRows);
    }
    EXPECT_GT(std::string(choice.reason).size(), 20u);
  }
}

TEST(Table, ExplainsItself) {
  const std::string text = explain(kShape, Type::kBFloat16, 90);
  EXPECT_NE(text.find("forward, rows 1 to 8: matvec ("), std::string::npos) << text;
  EXPECT_NE(text.find("forward, rows 9 to 256: matmul ("), std::string::npos) << text;
  EXPECT_NE(text.find("forward, rows 257 and more: dequantize + library product ("), std::string::npos) << text;
  EXPECT_NE(text.find("backward, rows 1 and more: dequantize"), std::string::npos) << text;
  EXPECT_EQ(explain(kShape, Type::kFloat, 90).find("matvec"), std::string::npos);
  EXPECT_EQ(explain(kShape, Type::kBFloat16, 75),
            "forward, rows 1 and more: on the CPU\nbackward, rows 1 and more: on the CPU\n");
}

}  // namespace
}  // namespace qalora::kernels::cuda
