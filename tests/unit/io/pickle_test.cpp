#include "qalora/io/pickle.h"

#include <gtest/gtest.h>

#include <set>

#include "qalora/core/error.h"
#include "torch_archive.h"

namespace qalora::io {
namespace {

using test::pickle;
using test::pickled;
using test::pickled_name;
using test::raw;
using test::TensorText;
using Kind = Pickle::Kind;

std::span<const std::byte> bytes_of(const std::string& text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

void expect_refused(const std::string& text, const std::string& part) {
  try {
    const Pickle parsed(bytes_of(text), "file");
    ADD_FAILURE() << "taken, expected a refusal that says: " << part;
  } catch (const DataError& error) {
    EXPECT_TRUE(std::string(error.what()).starts_with("file: ")) << error.what();
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what() << "\nexpected: " << part;
  }
}

TEST(Pickle, BuildsTheValuesThatPythonMeans) {
  const std::string text = pickle("}(" + pickled("none") + "N" + pickled("yes") + "\x88" + pickled("small") + "K\x07" +
                                  pickled("minus") + "J" + raw(int32_t{-5}) + pickled("list") + "](K\x01K\x02" + "e" +
                                  pickled("pair") + "K\x03K\x04\x86" + "u") +
                           "what follows is not read";
  const Pickle parsed(bytes_of(text), "file");
  const auto value = [&](const char* key) { return parsed.find(parsed.root(), key).value(); };
  EXPECT_EQ(text.substr(parsed.bytes_read()), "what follows is not read");
  EXPECT_EQ(parsed.kind(value("none")), Kind::kNone);
  EXPECT_EQ(parsed.integer(value("yes")), 1);
  EXPECT_EQ(parsed.integer(value("small")), 7);
  EXPECT_EQ(parsed.integer(value("minus")), -5);
  ASSERT_EQ(parsed.items(value("list")).size(), 2u);
  EXPECT_EQ(parsed.integer(parsed.items(value("list"))[1]), 2);
  ASSERT_EQ(parsed.items(value("pair")).size(), 2u);
  EXPECT_EQ(parsed.integer(parsed.items(value("pair"))[0]), 3);
  EXPECT_FALSE(parsed.find(parsed.root(), "absent").has_value());
}

TEST(Pickle, LongNumbersAreTwosComplement) {
  const auto integer = [](const std::string& digits) {
    const std::string text =
        pickle(std::string("\x8a").append(raw(static_cast<uint8_t>(digits.size()))).append(digits));
    const Pickle parsed(bytes_of(text), "file");
    return parsed.integer(parsed.root());
  };
  EXPECT_EQ(integer(""), 0);
  EXPECT_EQ(integer("\xff"), -1);
  EXPECT_EQ(integer(std::string("\xff\x00", 2)), 255);
  EXPECT_EQ(integer(std::string("\x00\x80", 2)), -32768);
  EXPECT_EQ(integer(std::string(7, '\xff') + "\x7f"), INT64_MAX);
}

TEST(Pickle, ADictionaryKeepsTheLastOfEqualKeysAsPythonDoes) {
  const std::string text = pickle("}(" + pickled("a") + "K\x01" + pickled("a") + "K\x02u");
  const Pickle parsed(bytes_of(text), "file");
  EXPECT_EQ(parsed.integer(*parsed.find(parsed.root(), "a")), 2);
}

// What an attacker would call, and what only looks like a name that is allowed.
TEST(Pickle, EveryOtherNameIsRefusedByName) {
  for (const auto& [module, name] :
       std::vector<std::pair<std::string, std::string>>{{"os", "system"},
                                                        {"posix", "system"},
                                                        {"builtins", "eval"},
                                                        {"__builtin__", "exec"},
                                                        {"subprocess", "Popen"},
                                                        {"torch", "load"},
                                                        {"torch.nn.modules.linear", "Linear"},
                                                        {"argparse", "Namespace"},
                                                        {"numpy.core.multiarray", "_reconstruct"},
                                                        {"torch._utils", "_rebuild_tensor_v2.__globals__"},
                                                        {"torch", "_utils._rebuild_tensor_v2"},
                                                        {"torch._utils._rebuild_tensor_v2", ""},
                                                        {"", "torch.Size"},
                                                        {"collections", "OrderedDict "}}) {
    expect_refused(pickle(pickled_name(module, name) + ")R"), "asks for " + module + "." + name + ",");
    expect_refused(pickle(pickled(module) + pickled(name) + "\x93)R"), "asks for " + module + "." + name + ",");
  }
  expect_refused(pickle(pickled_name("os\x1b[31m", "x")),
                 "asks for os?[31m.x");  // nothing reaches the terminal as it is
}

TEST(Pickle, EveryOtherOpcodeIsRefused) {
  const std::string known = "(.NRbcQJKMGTUXBC)t]ae}suqrhj\x88\x89\x8a\x8c\x8d\x85\x86\x87\x94\x80\x95\x93";
  EXPECT_EQ(std::set<char>(known.begin(), known.end()).size(), known.size());
  int refused = 0;
  for (int opcode = 0; opcode < 256; ++opcode) {
    if (known.find(static_cast<char>(opcode)) != std::string::npos) continue;
    expect_refused(pickle(std::string(1, static_cast<char>(opcode))), "opcode " + std::to_string(opcode));
    ++refused;
  }
  EXPECT_EQ(refused, 256 - static_cast<int>(known.size()));
}

TEST(Pickle, DamageIsRefused) {
  expect_refused("", "the file is cut short");
  expect_refused(std::string("\x80\x01", 2), "pickle protocol 1");
  expect_refused(std::string("\x80\x06", 2), "pickle protocol 6");
  expect_refused(pickle(""), "takes 1 values, there are 0");
  expect_refused(pickle("NN"), "1 values left over");
  expect_refused(pickle("N("), "there are 0");
  expect_refused(pickle("t"), "ends what was never begun");
  expect_refused(pickle("N\x86"), "takes 2 values, there are 1");
  expect_refused(pickle("N(N\x86"), "takes 2 values, there are 1");  // not through a mark
  expect_refused(pickle("h\x05"), "recalls value 5");
  expect_refused(pickle("j" + raw(uint32_t{1} << 31)), "recalls value 2147483648");
  expect_refused(pickle("K\x01K\x02"
                        "a"),
                 "adds 1 values to the number 1");
  expect_refused(pickle("](K\x01K\x02u"), "adds 2 values to a list of 0");
  expect_refused(pickle("}(K\x01u"), "adds 1 values to a dictionary of 0");
  expect_refused(pickle("NNR"), "expected a name, got None");
  expect_refused(pickle(pickled_name("torch", "Size") + "NR"), "torch.Size is called with None");
  expect_refused(pickle(pickled_name("torch", "FloatStorage") + ")R"),
                 "torch.FloatStorage is called with a tuple of 0");
  expect_refused(pickle(pickled_name("torch._utils", "_rebuild_parameter") + "K\x01\x85R"),
                 "_rebuild_parameter is called with a tuple of 1");
  expect_refused(pickle("N}b"), "gives attributes to None");
  expect_refused(pickle("NQ"), "None does not describe a storage");
  expect_refused(pickle(pickled("\xff\xfe")), "not UTF-8");
  expect_refused(pickle("cnever ends"), "a line that begins at byte 3 never ends");
}

TEST(Pickle, SizesThatTheFileDoesNotHaveAreRefused) {
  expect_refused(pickle("X" + raw(uint32_t{0xffffffff})), "4294967295 bytes were expected");
  expect_refused(pickle("B" + raw(uint32_t{0xfffffff0})), "4294967280 bytes were expected");
  expect_refused(pickle("\x8d" + raw(~uint64_t{0})), "18446744073709551615 bytes were expected");
  expect_refused(pickle("\x8d" + raw(uint64_t{1} << 63)), "bytes were expected");
  expect_refused(pickle("\x8a\xff"), "255 bytes were expected");
}

// Python would need gigabytes, or its stack, for these.
TEST(Pickle, BombsAreHarmless) {
  std::string laughs("]q\0", 3);  // each list holds the one before ten times
  for (int level = 1; level < 100; ++level) {
    laughs += "](";
    for (int i = 0; i < 10; ++i) laughs.append("h").append(raw(static_cast<uint8_t>(level - 1)));
    laughs += "eq" + raw(static_cast<uint8_t>(level));
  }
  for (int level = 0; level < 99; ++level)
    laughs += "\x86";  // the hundred lists that are left on the stack, as pairs of pairs
  const std::string laugh = pickle(laughs);
  const Pickle laughing(bytes_of(laugh), "file");
  EXPECT_EQ(laughing.describe(laughing.root()), "a tuple of 2");

  const std::string deep = pickle("N" + std::string(1'000'000, '\x85'));  // tuples in tuples
  const Pickle nested(bytes_of(deep), "file");
  EXPECT_EQ(nested.describe(nested.root()), "a tuple of 1");

  std::string wide = "(";
  for (int i = 0; i < 1'000'000; ++i) wide += "K\x01";
  wide = pickle(wide + "t");
  const Pickle tuple(bytes_of(wide), "file");
  EXPECT_EQ(tuple.items(tuple.root()).size(), 1'000'000u);

  const std::string itself = pickle("]q" + raw(uint8_t{0}) + "h" + raw(uint8_t{0}) + "a");  // a list that holds itself
  EXPECT_EQ(Pickle(bytes_of(itself), "file").describe(4), "a list of 1");

  expect_refused(pickle(std::string(size_t{3} << 20, ')')), "a pickle of more than 2097152 bytes");
}

TEST(Pickle, TensorsAreChecked) {
  const auto one = [](const TensorText& tensor) { return pickle(pickled(tensor)); };
  const std::string good = one({});
  const Pickle parsed(bytes_of(good), "file");
  ASSERT_EQ(parsed.kind(parsed.root()), Kind::kTensor);
  EXPECT_EQ(parsed.tensor(parsed.root()).shape, (std::vector<int64_t>{2, 2}));
  EXPECT_EQ(parsed.storages().at(0).elements, 4u);

  expect_refused(one({.storage = "QInt8Storage"}), "asks for torch.QInt8Storage");
  expect_refused(one({.storage = "float32"}), "torch.float32 is no storage");
  expect_refused(one({.elements = -1}), "the negative number -1");
  expect_refused(one({.offset = -8}), "the negative number -8");
  expect_refused(one({.shape = {2, -2}}), "the negative number -2");
  expect_refused(one({.strides = {2, -1}}), "the negative number -1");
  expect_refused(one({.strides = {1}}), "2 dimensions and 1 strides");
  const std::vector<int64_t> many(17, 1);
  expect_refused(one({.shape = many, .strides = many}), "a tuple of 17; expected a tuple of at most 16");
  expect_refused(pickle(pickled(TensorText{}) + pickled(TensorText{.elements = 5}) + "\x86"),
                 "once 4 x F32 and once 5 x F32");
  expect_refused(pickle(pickled(TensorText{}) + pickled(TensorText{.storage = "IntStorage"}) + "\x86"),
                 "once 4 x F32 and once 4 x I32");
}

TEST(Pickle, EveryTruncationIsRefused) {
  const std::string whole = pickle(test::pickled_state({{"a", {}}, {"b", {.key = "1"}}}));
  ASSERT_EQ(Pickle(bytes_of(whole), "file").bytes_read(), whole.size());
  for (size_t length = 0; length < whole.size(); ++length) expect_refused(whole.substr(0, length), "");
}

}  // namespace
}  // namespace qalora::io
