#include "../../../src/cli/inspect_table.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace qalora::cli {
namespace {

using nlohmann::json;

// The row of a name, without the blanks between name and value.
std::string row(const json& document, const std::string& name) {
  const std::string text = inspect_text(document), start = "\n  " + name + "  ";
  const size_t at = text.find(start);
  if (at == std::string::npos) return "no row";
  const size_t value = text.find_first_not_of(' ', at + start.size());
  return text.substr(value, text.find('\n', value) - value);
}

json document(json more) {
  more.update({{"kind", "thing"}, {"path", "x"}});
  return more;
}

TEST(InspectTable, NamesOfFilesStandAsTheyAre) {
  const json found = document({{"keys", {{"adam_beta1", "0.9"}, {"data", ""}}},
                               {"metadata", {{"llama.attention.layer_norm_rms_epsilon", 1e-5}, {"n", 123456}}},
                               {"types", {{"Q4_1", 39}}},
                               {"quantization_of_modules", {{"model.q_proj", {{"group_size", 64}}}}},
                               {"kv_heads", 4}});
  EXPECT_EQ(row(found, "keys, adam_beta1"), "0.9");
  EXPECT_EQ(row(found, "keys, data"), "\"\"");
  EXPECT_EQ(row(found, "metadata, llama.attention.layer_norm_rms_epsilon"), "1e-05");
  EXPECT_EQ(row(found, "metadata, n"), "123456");
  EXPECT_EQ(row(found, "types, Q4_1"), "39");
  EXPECT_EQ(row(found, "quantization of modules, model.q_proj, group_size"), "64");
  EXPECT_EQ(row(found, "kv heads"), "4");
}

TEST(InspectTable, ListsAreText) {
  const json found = document({{"stop_ids", {2, 3}},
                               {"bad_records", {{{"line", 3}, {"reason", "no text"}}, {{"line", 5}, {"reason", "x"}}}},
                               {"state", {{"identity", {{"settings", {"method=qalora", "rank=4"}}}}}},
                               {"memory_bytes", {{"float32", 2000000}}}});
  EXPECT_EQ(row(found, "stop ids"), "2, 3");
  EXPECT_EQ(row(found, "bad records"), "line 3, reason no text; line 5, reason x");
  EXPECT_EQ(row(found, "state, identity, settings"), "method=qalora, rank=4");
  EXPECT_EQ(row(found, "memory bytes, float32"), "2.00 MB");
}

TEST(InspectTable, WhatIsEmptyIsLeftOut) {
  const json found = document({{"base_fingerprint", ""},
                               {"training_data", nullptr},
                               {"checkpoints", json::array()},
                               {"group_size", 0},
                               {"layers", 0}});
  EXPECT_EQ(inspect_text(found), "x: thing\n  layers  0\n");
  EXPECT_EQ(row(document({{"group_size", -1}}), "group size"), "the whole row");
}

TEST(InspectTable, SaysWhichBitsAreCounted) {
  const auto bits = [](const char* kind) { return json{{"kind", kind}, {"path", "x"}, {"bits_per_weight", 4.5}}; };
  EXPECT_EQ(row(bits("quantised checkpoint"), "bits per weight of linear layers"), "4.5");
  EXPECT_EQ(row(bits("gguf"), "bits per weight of linear layers"), "4.5");
  EXPECT_EQ(row(bits("safetensors"), "bits per number"), "4.5");
}

}  // namespace
}  // namespace qalora::cli
