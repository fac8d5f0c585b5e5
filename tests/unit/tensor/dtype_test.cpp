#include "qalora/tensor/dtype.h"

#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <string>

#include "qalora/core/error.h"

namespace qalora::tensor {
namespace {

TEST(Dtype, Parse) {
  EXPECT_EQ(parse_compute_dtype("float32"), at::ScalarType::Float);
  EXPECT_EQ(parse_compute_dtype("bfloat16"), at::ScalarType::BFloat16);
  for (const char* name : {"float31", "float16", "", "int8"}) {
    try {
      parse_compute_dtype(name);
      FAIL() << name;
    } catch (const UserError& error) {
      const std::string text = error.what();
      EXPECT_NE(text.find("'" + std::string(name) + "' is not known; expected float32 or bfloat16"), std::string::npos)
          << text;
      EXPECT_EQ(text.find("did you mean 'float32'") != std::string::npos, std::string(name) == "float31") << text;
    }
  }
}

TEST(Dtype, NamesReadBack) {
  for (const char* name : {"float32", "bfloat16"}) EXPECT_EQ(dtype_name(parse_compute_dtype(name)), name);
  EXPECT_EQ(dtype_name(at::ScalarType::Half), "float16");
  EXPECT_EQ(dtype_name(at::ScalarType::UInt32), "uint32");
}

TEST(Dtype, DefaultIsBfloat16OnlyWithAmx) {
  std::ifstream file("/proc/cpuinfo");
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  const bool amx = text.find(" amx_bf16") != std::string::npos;
  EXPECT_EQ(default_compute_dtype(), amx ? at::ScalarType::BFloat16 : at::ScalarType::Float);
}

}  // namespace
}  // namespace qalora::tensor
