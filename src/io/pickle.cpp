#include "qalora/io/pickle.h"

#include "qalora/core/error.h"

namespace qalora::io {

int64_t Pickle::integer(Index value) const {
  const Value& found = values_[value];
  QALORA_REQUIRE(found.kind == Kind::kInt || found.kind == Kind::kBool, DataError, where_,
                 ": expected a whole number, got ", describe(value));
  return static_cast<int64_t>(found.number);
}

std::string_view Pickle::text(Index value) const {
  const Value& found = values_[value];
  const bool has_text = found.kind == Kind::kText || found.kind == Kind::kBytes || found.kind == Kind::kLongInt ||
                        found.kind == Kind::kGlobal;
  QALORA_REQUIRE(has_text, DataError, where_, ": expected text, got ", describe(value));
  return texts_[found.number];
}

std::span<const Pickle::Index> Pickle::items(Index value) const {
  const Value& found = values_[value];
  if (found.kind == Kind::kTuple) return std::span(items_).subspan(found.number, found.count);
  if (found.kind != Kind::kList && found.kind != Kind::kDict) return {};
  const auto container = containers_.find(value);
  return container == containers_.end() ? std::span<const Index>() : std::span<const Index>(container->second);
}

std::optional<Pickle::Index> Pickle::find(Index dict, std::string_view key) const {
  std::optional<Index> result;
  if (kind(dict) != Kind::kDict) return result;
  const auto pairs = items(dict);
  for (size_t i = 0; i + 1 < pairs.size(); i += 2) {
    if (kind(pairs[i]) == Kind::kText && text(pairs[i]) == key) result = pairs[i + 1];
  }
  return result;
}

std::string Pickle::describe(Index value) const {
  const auto count = [&] { return std::to_string(items(value).size()); };
  switch (kind(value)) {
    case Kind::kNone: return "None";
    case Kind::kBool: return values_[value].number != 0 ? "True" : "False";
    case Kind::kInt: return "the number " + std::to_string(static_cast<int64_t>(values_[value].number));
    case Kind::kLongInt: return "a number of more than 64 bits";
    case Kind::kFloat: return "a decimal number";
    case Kind::kText: return "text";
    case Kind::kBytes: return "bytes";
    case Kind::kTuple: return "a tuple of " + count();
    case Kind::kList: return "a list of " + count();
    case Kind::kDict: return "a dictionary of " + std::to_string(items(value).size() / 2);
    case Kind::kGlobal: return "the name " + std::string(text(value));
    case Kind::kStorage: return "a storage";
    case Kind::kTensor: return "a tensor";
    case Kind::kOpaque: return "an object";
  }
  return "an unknown value";
}

}  // namespace qalora::io
