#include "../../../src/io/module_pattern.h"

#include <gtest/gtest.h>

#include "qalora/core/error.h"

namespace qalora::io {
namespace {

const std::string kModule = "model.layers.10.self_attn.q_proj";

bool matches(const std::string& pattern) { return matches_module("here", pattern, kModule); }

TEST(ModulePattern, MatchesToTheEndFromTheStartOrADot) {
  for (const char* pattern :
       {"q_proj", "self_attn.q_proj", "model.layers.10.self_attn.q_proj", "^model.layers.10.self_attn.q_proj$",
        "self_attn\\.q_proj", "layers\\.\\d+\\.self_attn.q_proj", "layers.[0-9]+.self_attn.(q_proj|k_proj)",
        "(?:q|k|v)_proj", "k_proj|q_proj", ".*q_proj", "[qk]_proj", "q_\\w*", "qx?_proj",
        "layers.1[^1].self_attn.q_proj"}) {
    EXPECT_TRUE(matches(pattern)) << pattern;
  }
  for (const char* pattern : {"proj", "q_pro", "k_proj", "^self_attn.q_proj", "layers\\.1\\.self_attn.q_proj",
                              "layers.\\d.self_attn.q_proj", "(k|v)_proj", "q_proj_extra", "[^q]_proj", "qx+_proj"}) {
    EXPECT_FALSE(matches(pattern)) << pattern;
  }
}

TEST(ModulePattern, WhatIsNotReadIsRefusedAndNotGuessed) {
  for (const char* pattern : {"", "(?!x)q_proj", "q_proj{1}", "(q|(k|v))_proj", "(q)*_proj", "q_proj\\b", "[", "[a",
                              "(q", "q)", "a**", "\\", "q^", "q_proj|(?=x)"}) {
    EXPECT_THROW(matches(pattern), DataError) << pattern;
  }
  EXPECT_THROW(matches(std::string(600, 'a')), DataError);
  std::string many;
  for (int i = 0; i < 12; ++i) many += "(a|b)";  // 4096 alternatives
  EXPECT_THROW(matches(many), DataError);
}

TEST(ModulePattern, TimeIsLinear) {
  std::string greedy;
  for (int i = 0; i < 200; ++i) greedy += "a*";
  EXPECT_FALSE(matches_module("here", greedy + "b", std::string(2000, 'a')));
}

}  // namespace
}  // namespace qalora::io
