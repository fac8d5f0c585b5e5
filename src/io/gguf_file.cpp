#include "qalora/io/gguf_file.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <utility>

#include "qalora/core/checked.h"
#include "qalora/core/error.h"
#include "qalora/core/format.h"

namespace qalora::io {
namespace {

constexpr uint32_t kMostDimensions = 4;
constexpr uint64_t kLongestTensorName = 63;  // the reference keeps names in 64 bytes with a NUL
constexpr uint64_t kLongestKey = 65535;
constexpr uint64_t kMostEntries = uint64_t{1}
                                  << 20;  // tensors, or entries of the metadata: a thousand times a large model's
// The least that one entry takes: a key of one letter with its length, a type and a one-byte value; a name of one
// letter with its length, the number of dimensions, one of them, type and offset.
constexpr uint64_t kLeastEntry = 8 + 1 + 4 + 1, kLeastTensor = 8 + 1 + 4 + 8 + 4 + 8;

constexpr std::array<GgufLayout, 35> kLayouts = {{
    {0, "F32", 1, 4},         {1, "F16", 1, 2},         {2, "Q4_0", 32, 18},      {3, "Q4_1", 32, 20},
    {6, "Q5_0", 32, 22},      {7, "Q5_1", 32, 24},      {8, "Q8_0", 32, 34},      {9, "Q8_1", 32, 36},
    {10, "Q2_K", 256, 84},    {11, "Q3_K", 256, 110},   {12, "Q4_K", 256, 144},   {13, "Q5_K", 256, 176},
    {14, "Q6_K", 256, 210},   {15, "Q8_K", 256, 292},   {16, "IQ2_XXS", 256, 66}, {17, "IQ2_XS", 256, 74},
    {18, "IQ3_XXS", 256, 98}, {19, "IQ1_S", 256, 50},   {20, "IQ4_NL", 32, 18},   {21, "IQ3_S", 256, 110},
    {22, "IQ2_S", 256, 82},   {23, "IQ4_XS", 256, 136}, {24, "I8", 1, 1},         {25, "I16", 1, 2},
    {26, "I32", 1, 4},        {27, "I64", 1, 8},        {28, "F64", 1, 8},        {29, "IQ1_M", 256, 56},
    {30, "BF16", 1, 2},       {34, "TQ1_0", 256, 54},   {35, "TQ2_0", 256, 66},   {39, "MXFP4", 32, 17},
    {40, "NVFP4", 64, 36},    {41, "Q1_0", 128, 18},    {42, "Q2_0", 64, 18},
}};

// Bytes of one element; 0: strings and arrays have no fixed size.
uint64_t value_bytes(GgufValueType type) {
  constexpr std::array<uint64_t, 13> kBytes = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
  return kBytes[static_cast<size_t>(type)];
}

const char* type_name(GgufValueType type) {
  constexpr std::array<const char*, 13> kNames = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                                  "bool", "string", "array", "u64", "i64", "f64"};
  return kNames[static_cast<size_t>(type)];
}

template <typename T>
T load(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof value);  // the file owes no alignment
  return value;
}

// Walks the bytes from the front; nothing is read that is not there.
class Cursor {
 public:
  Cursor(std::span<const std::byte> bytes, const std::string& name) : bytes_(bytes), name_(name) {}

  uint64_t position() const { return at_; }
  uint64_t remaining() const { return bytes_.size() - at_; }

  std::span<const std::byte> take(uint64_t count, std::string_view what) {
    QALORA_REQUIRE(count <= remaining(), DataError, name_, ": ", what, " would take ", count, " bytes at byte ", at_,
                   ", but only ", remaining(), " are left; the file is damaged or only a part of one");
    const auto part = bytes_.subspan(at_, count);
    at_ += count;
    return part;
  }

  template <typename T>
  T number(std::string_view what) {
    return load<T>(take(sizeof(T), what).data());
  }

  std::string_view text(std::string_view what) {
    const auto length = number<uint64_t>(what);
    const auto part = take(length, what);
    return {reinterpret_cast<const char*>(part.data()), part.size()};
  }

 private:
  std::span<const std::byte> bytes_;
  const std::string& name_;
  uint64_t at_ = 0;
};

class Parser {
 public:
  Parser(std::span<const std::byte> bytes, const std::string& name) : bytes_(bytes), cursor_(bytes, result_.name) {
    result_.name = name;
  }

  GgufContents parse() {
    const auto [tensors, entries] = header();
    for (uint64_t i = 0; i < entries; ++i) entry(i);
    set_alignment();
    std::vector<Planned> planned;
    planned.reserve(tensors);  // bounded by the file's size in header()
    for (uint64_t i = 0; i < tensors; ++i) planned.push_back(tensor(i));
    place(planned);
    return std::move(result_);
  }

 private:
  struct Planned {
    GgufTensor* tensor;  // in the map, which keeps its places
    const std::string* name;
    uint64_t offset, bytes;
  };

  std::pair<uint64_t, uint64_t> header() {
    const std::string& name = result_.name;
    QALORA_REQUIRE(bytes_.size() >= 4 && std::memcmp(bytes_.data(), "GGUF", 4) == 0, DataError, name,
                   ": does not begin with 'GGUF'; expected a GGUF file");
    cursor_.take(4, "the magic number");
    const auto version = cursor_.number<uint32_t>("the version");
    QALORA_REQUIRE(version == 0 || (version & 0xffff) != 0, DataError, name,
                   ": is written in big-endian order; expected a little-endian file");
    QALORA_REQUIRE(version == 2 || version == 3, DataError, name, ": has GGUF version ", version, ", expected 2 or 3",
                   version < 2 ? "; convert the original model again" : "");
    result_.version = version;
    const auto tensors = cursor_.number<uint64_t>("the number of tensors");
    const auto entries = cursor_.number<uint64_t>("the number of metadata entries");
    QALORA_REQUIRE(tensors <= std::min(cursor_.remaining() / kLeastTensor, kMostEntries), DataError, name,
                   ": says that it holds ", tensors, " tensors, more than its ", bytes_.size(),
                   " bytes have room for or any model has; the file is damaged");
    QALORA_REQUIRE(entries <= std::min(cursor_.remaining() / kLeastEntry, kMostEntries), DataError, name,
                   ": says that it holds ", entries, " metadata entries, more than its ", bytes_.size(),
                   " bytes have room for or any model has; the file is damaged");
    return {tensors, entries};
  }

  GgufValueType value_type(const std::string& what) {
    const auto id = cursor_.number<uint32_t>(what + "'s type");
    QALORA_REQUIRE(id <= static_cast<uint32_t>(GgufValueType::kF64), DataError, result_.name, ": ", what,
                   " has the value type ", id, ", expected 0 to 12");
    return static_cast<GgufValueType>(id);
  }

  void check_flags(const GgufValue& value, const std::string& what) const {
    if (value.type != GgufValueType::kBool) return;
    const bool good = std::all_of(value.bytes.begin(), value.bytes.end(),
                                  [](std::byte b) { return b == std::byte{0} || b == std::byte{1}; });
    QALORA_REQUIRE(good, DataError, result_.name, ": ", what, " is a bool that is neither 0 nor 1");
  }

  void entry(uint64_t index) {
    const std::string where = message("metadata entry ", index);
    const std::string_view key = cursor_.text(where + "'s key");
    QALORA_REQUIRE(
        !key.empty() && key.size() <= kLongestKey && key.find('\0') == std::string_view::npos && valid_utf8(key),
        DataError, result_.name, ": ", where, " has a key that is empty, too long or no text");
    const std::string what = message("metadata '", key.substr(0, 100), "'");
    GgufValue value;
    value.type = value_type(what);
    if (value.type == GgufValueType::kArray) {
      value.is_array = true;
      value.type = value_type(what);
      QALORA_REQUIRE(value.type != GgufValueType::kArray, DataError, result_.name, ": ", what,
                     " is an array of arrays, which the format forbids");
      value.count = cursor_.number<uint64_t>(what + "'s count");
    }
    value.bytes = value.type == GgufValueType::kString ? strings(value, what) : numbers(value, what);
    check_flags(value, what);
    const bool fresh = result_.metadata.emplace(key, value).second;
    QALORA_REQUIRE(fresh, DataError, result_.name, ": ", what, " is there twice");
  }

  std::span<const std::byte> numbers(const GgufValue& value, const std::string& what) {
    const auto bytes = checked_mul(value.count, value_bytes(value.type));
    QALORA_REQUIRE(bytes, DataError, result_.name, ": ", what, " has ", value.count,
                   " elements, more than any file holds");
    return cursor_.take(*bytes, what);
  }

  std::span<const std::byte> strings(const GgufValue& value, const std::string& what) {
    if (!value.is_array) {
      const std::string_view text = cursor_.text(what);
      return std::as_bytes(std::span(text));
    }
    QALORA_REQUIRE(value.count <= cursor_.remaining() / 8, DataError, result_.name, ": ", what, " has ", value.count,
                   " strings, more than the rest of the file has room for");
    const uint64_t begin = cursor_.position();
    for (uint64_t i = 0; i < value.count; ++i) cursor_.text(what);
    return bytes_.subspan(begin, cursor_.position() - begin);
  }

  void set_alignment() {
    const auto found = result_.metadata.find("general.alignment");
    if (found == result_.metadata.end()) return;
    const GgufValue& value = found->second;
    QALORA_REQUIRE(value.type == GgufValueType::kU32 && !value.is_array, DataError, result_.name,
                   ": metadata 'general.alignment' is ", type_name(value.type), value.is_array ? " array" : "",
                   ", expected u32");
    const auto alignment = load<uint32_t>(value.bytes.data());
    QALORA_REQUIRE(alignment != 0 && (alignment & (alignment - 1)) == 0, DataError, result_.name,
                   ": metadata 'general.alignment' is ", alignment, ", expected a power of two");
    result_.alignment = alignment;
  }

  Planned tensor(uint64_t index) {
    const std::string where = message("tensor ", index);
    const std::string_view name = cursor_.text(where + "'s name");
    QALORA_REQUIRE(!name.empty() && name.size() <= kLongestTensorName && name.find('\0') == std::string_view::npos &&
                       valid_utf8(name),
                   DataError, result_.name, ": ", where, " has a name of ", name.size(), " bytes, expected 1 to ",
                   kLongestTensorName, " bytes of text");
    const std::string what = message("tensor '", name, "'");
    const auto dimensions = cursor_.number<uint32_t>(what + "'s number of dimensions");
    QALORA_REQUIRE(dimensions >= 1 && dimensions <= kMostDimensions, DataError, result_.name, ": ", what, " has ",
                   dimensions, " dimensions, expected 1 to ", kMostDimensions);
    GgufTensor tensor;
    for (uint32_t i = 0; i < dimensions; ++i) {
      const auto size = cursor_.number<uint64_t>(what + "'s shape");
      QALORA_REQUIRE(size >= 1 && size <= static_cast<uint64_t>(INT64_MAX), DataError, result_.name, ": ", what,
                     " has a dimension of ", size, ", expected 1 or more");
      tensor.shape.insert(tensor.shape.begin(), static_cast<int64_t>(size));
    }
    tensor.type = cursor_.number<uint32_t>(what + "'s type");
    const auto offset = cursor_.number<uint64_t>(what + "'s offset");
    const uint64_t bytes = tensor_size(tensor, what);
    const auto [entry, fresh] = result_.tensors.emplace(name, std::move(tensor));
    QALORA_REQUIRE(fresh, DataError, result_.name, ": ", what, " is there twice");
    return {&entry->second, &entry->first, offset, bytes};
  }

  uint64_t tensor_size(const GgufTensor& tensor, const std::string& what) const {
    const GgufLayout* layout = gguf_layout(tensor.type);
    QALORA_REQUIRE(layout != nullptr, DataError, result_.name, ": ", what, " has type ", tensor.type,
                   ", which is not known");
    const int64_t row = tensor.shape.back();
    QALORA_REQUIRE(row % layout->block_elements == 0, DataError, result_.name, ": ", what, " has rows of ", row,
                   " elements, not a multiple of the ", layout->block_elements, " of a ", layout->name, " block");
    const auto elements = checked_elements(tensor.shape);
    const auto bytes = elements
                           ? checked_mul(static_cast<uint64_t>(*elements) / layout->block_elements, layout->block_bytes)
                           : std::nullopt;
    QALORA_REQUIRE(bytes, DataError, result_.name, ": ", what, " has more elements than any file holds");
    return *bytes;
  }

  // Up to the next multiple of the alignment; nothing where that does not fit into 64 bits.
  std::optional<uint64_t> padded(uint64_t size) const {
    const auto sum = checked_add(size, result_.alignment - 1);
    return sum ? std::optional(*sum & ~(result_.alignment - 1)) : std::nullopt;
  }

  // Tensors lie back to back in the order of their descriptions, each padded: no holes, no sharing.
  void place(const std::vector<Planned>& planned) {
    if (planned.empty()) return;
    const auto begin = padded(cursor_.position());
    QALORA_REQUIRE(begin && *begin <= bytes_.size(), DataError, result_.name,
                   ": ends before its tensors begin; the file is damaged or only a part "
                   "of one");
    const auto data = bytes_.subspan(*begin);
    uint64_t expected = 0;
    for (const Planned& part : planned) {
      QALORA_REQUIRE(part.offset == expected, DataError, result_.name, ": tensor '", *part.name, "' is said to lie at ",
                     part.offset, " of the data, expected ", expected, ", right behind the tensor before it");
      QALORA_REQUIRE(part.offset <= data.size() && part.bytes <= data.size() - part.offset, DataError, result_.name,
                     ": tensor '", *part.name, "' of ", part.bytes, " bytes does not fit into the ",
                     data.size() - std::min<uint64_t>(part.offset, data.size()),
                     " bytes that are left; the file is damaged or only a part of one");
      part.tensor->bytes = data.subspan(part.offset, part.bytes);
      const auto end = padded(part.bytes);
      const auto next = end ? checked_add(expected, *end) : std::nullopt;
      QALORA_REQUIRE(next, DataError, result_.name, ": tensor '", *part.name,
                     "': the sizes of the tensors do not fit into 64 bits");
      expected = *next;
    }
  }

  GgufContents result_;
  std::span<const std::byte> bytes_;
  Cursor cursor_;
};

const GgufValue* find(const GgufContents& contents, std::string_view key) {
  const auto found = contents.metadata.find(key);
  return found == contents.metadata.end() ? nullptr : &found->second;
}

[[noreturn]] void wrong_type(const GgufContents& contents, std::string_view key, const GgufValue& value,
                             const char* expected) {
  throw DataError(message(contents.name, ": metadata '", key, "' is ", type_name(value.type),
                          value.is_array ? " array" : "", ", expected ", expected));
}

bool is_integer(GgufValueType type) {
  return value_bytes(type) > 0 && type != GgufValueType::kF32 && type != GgufValueType::kF64 &&
         type != GgufValueType::kBool;
}

// Element `i`; nothing where it does not fit into 64 bits with a sign.
std::optional<int64_t> integer_at(const GgufValue& value, uint64_t i) {
  const std::byte* at = value.bytes.data() + i * value_bytes(value.type);
  switch (value.type) {
    case GgufValueType::kU8: return load<uint8_t>(at);
    case GgufValueType::kI8: return load<int8_t>(at);
    case GgufValueType::kU16: return load<uint16_t>(at);
    case GgufValueType::kI16: return load<int16_t>(at);
    case GgufValueType::kU32: return load<uint32_t>(at);
    case GgufValueType::kI32: return load<int32_t>(at);
    case GgufValueType::kI64: return load<int64_t>(at);
    case GgufValueType::kU64: {
      const auto number = load<uint64_t>(at);
      return number <= static_cast<uint64_t>(INT64_MAX) ? std::optional(static_cast<int64_t>(number)) : std::nullopt;
    }
    default: return std::nullopt;
  }
}

}  // namespace

const GgufLayout* gguf_layout(uint32_t id) {
  const auto found =
      std::find_if(kLayouts.begin(), kLayouts.end(), [&](const GgufLayout& layout) { return layout.id == id; });
  return found == kLayouts.end() ? nullptr : &*found;
}

const GgufLayout& gguf_layout(GgufType type) { return *gguf_layout(static_cast<uint32_t>(type)); }

GgufContents parse_gguf(std::span<const std::byte> bytes, const std::string& name) {
  return Parser(bytes, name).parse();
}

std::optional<int64_t> GgufContents::signed_integer(std::string_view key) const {
  const GgufValue* value = find(*this, key);
  if (value == nullptr) return std::nullopt;
  if (value->is_array || !is_integer(value->type)) wrong_type(*this, key, *value, "a whole number");
  const auto number = integer_at(*value, 0);
  QALORA_REQUIRE(number, DataError, name, ": metadata '", key, "' is above ", INT64_MAX);
  return number;
}

std::optional<int64_t> GgufContents::integer(std::string_view key) const {
  const auto number = signed_integer(key);
  QALORA_REQUIRE(!number || *number >= 0, DataError, name, ": metadata '", key, "' is ", *number,
                 ", expected 0 or more");
  return number;
}

std::optional<double> GgufContents::number(std::string_view key) const {
  const GgufValue* value = find(*this, key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_array && is_integer(value->type)) return static_cast<double>(*signed_integer(key));
  if (value->is_array || (value->type != GgufValueType::kF32 && value->type != GgufValueType::kF64))
    wrong_type(*this, key, *value, "a number");
  const double number =
      value->type == GgufValueType::kF32 ? load<float>(value->bytes.data()) : load<double>(value->bytes.data());
  QALORA_REQUIRE(std::isfinite(number), DataError, name, ": metadata '", key, "' is ", number,
                 ", expected a finite number");
  return number;
}

std::optional<bool> GgufContents::flag(std::string_view key) const {
  const GgufValue* value = find(*this, key);
  if (value == nullptr) return std::nullopt;
  if (value->is_array || value->type != GgufValueType::kBool) wrong_type(*this, key, *value, "a bool");
  return value->bytes[0] != std::byte{0};
}

std::optional<std::string> GgufContents::text(std::string_view key) const {
  const GgufValue* value = find(*this, key);
  if (value == nullptr) return std::nullopt;
  if (value->is_array || value->type != GgufValueType::kString) wrong_type(*this, key, *value, "a string");
  return std::string(reinterpret_cast<const char*>(value->bytes.data()), value->bytes.size());
}

std::optional<std::vector<std::string_view>> GgufContents::texts(std::string_view key) const {
  const GgufValue* value = find(*this, key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_array || value->type != GgufValueType::kString) wrong_type(*this, key, *value, "an array of strings");
  std::vector<std::string_view> result;
  result.reserve(value->count);  // each has its length in the file, checked when it was parsed
  Cursor cursor(value->bytes, name);
  for (uint64_t i = 0; i < value->count; ++i) result.push_back(cursor.text(key));
  return result;
}

std::optional<std::vector<float>> GgufContents::floats(std::string_view key) const {
  const GgufValue* value = find(*this, key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_array || value->type != GgufValueType::kF32) wrong_type(*this, key, *value, "an array of f32");
  std::vector<float> result(value->count);
  if (value->count > 0) std::memcpy(result.data(), value->bytes.data(), value->bytes.size());
  return result;
}

std::optional<std::vector<int64_t>> GgufContents::integers(std::string_view key) const {
  const GgufValue* value = find(*this, key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_array || !is_integer(value->type)) wrong_type(*this, key, *value, "an array of whole numbers");
  std::vector<int64_t> result;
  result.reserve(value->count);
  for (uint64_t i = 0; i < value->count; ++i) {
    const auto number = integer_at(*value, i);
    QALORA_REQUIRE(number, DataError, name, ": metadata '", key, "': element ", i, " is too large");
    result.push_back(*number);
  }
  return result;
}

}  // namespace qalora::io
