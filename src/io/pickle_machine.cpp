// The machine that builds a Pickle's values. Every opcode takes at least one byte and makes at most one value, hence
// memory is bounded by the pickle's length, and that by a limit; nothing is made from a number that the file merely
// claims.
#include <array>
#include <cstring>

#include "byte_reader.h"
#include "pickle_opcodes.h"
#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/io/pickle.h"

namespace qalora::io {
namespace {

constexpr uint64_t kMaxBytes = uint64_t{2} << 20;  // over ten thousand tensors; LLaMA 70B has 723 and needs 120 kB
constexpr size_t kMaxDimensions = 16;
constexpr int kNewestProtocol = 5;

// What a name that may stand in a pickle does when it is called.
enum class Call : uint8_t { kNothing, kDict, kTensor, kParameter, kTuple };

struct Name {
  std::string_view name;  // module.name
  Call call = Call::kNothing;
  std::optional<Dtype> dtype;  // of a storage's class
};

constexpr std::array kNames = {
    Name{"collections.OrderedDict", Call::kDict, {}},
    Name{"torch._utils._rebuild_tensor_v2", Call::kTensor, {}},
    Name{"torch._utils._rebuild_parameter", Call::kParameter, {}},
    Name{"torch.Size", Call::kTuple, {}},
    Name{"torch.DoubleStorage", Call::kNothing, Dtype::kF64},
    Name{"torch.FloatStorage", Call::kNothing, Dtype::kF32},
    Name{"torch.HalfStorage", Call::kNothing, Dtype::kF16},
    Name{"torch.BFloat16Storage", Call::kNothing, Dtype::kBF16},
    Name{"torch.LongStorage", Call::kNothing, Dtype::kI64},
    Name{"torch.IntStorage", Call::kNothing, Dtype::kI32},
    Name{"torch.ShortStorage", Call::kNothing, Dtype::kI16},
    Name{"torch.CharStorage", Call::kNothing, Dtype::kI8},
    Name{"torch.ByteStorage", Call::kNothing, Dtype::kU8},
    Name{"torch.BoolStorage", Call::kNothing, Dtype::kBool},
    Name{"torch.float16", Call::kNothing, {}},
    Name{"torch.bfloat16", Call::kNothing, {}},
    Name{"torch.float32", Call::kNothing, {}},
    Name{"torch.float64", Call::kNothing, {}},
    Name{"torch.uint8", Call::kNothing, {}},
    Name{"torch.int8", Call::kNothing, {}},
    Name{"torch.int16", Call::kNothing, {}},
    Name{"torch.int32", Call::kNothing, {}},
    Name{"torch.int64", Call::kNothing, {}},
    Name{"torch.bool", Call::kNothing, {}},
};

const Name* find_name(std::string_view module, std::string_view name) {
  for (const Name& known : kNames) {
    const size_t dot = known.name.rfind('.');
    if (known.name.substr(0, dot) == module && known.name.substr(dot + 1) == name) return &known;
  }
  return nullptr;
}

// A name out of a file, fit to be shown: printable, and not without end.
std::string shown(std::string_view name) {
  std::string result;
  for (const char c : name.substr(0, 80)) result += c >= ' ' && c <= '~' ? c : '?';
  return result;
}

}  // namespace

class PickleMachine {
 public:
  using Index = Pickle::Index;
  using Kind = Pickle::Kind;

  PickleMachine(Pickle& pickle, std::span<const std::byte> bytes)
      : pickle_(pickle),
        reader_(bytes.first(std::min<uint64_t>(bytes.size(), kMaxBytes)), pickle.where_),
        cut_(bytes.size() > kMaxBytes) {
    none_ = add(Kind::kNone);
    true_ = add(Kind::kBool, 1);
    false_ = add(Kind::kBool, 0);
    empty_tuple_ = add(Kind::kTuple);
  }

  void run() {
    for (bool more = true; more;) {
      QALORA_REQUIRE(!cut_ || reader_.left() > 0, DataError, where(), ": a pickle of more than ", kMaxBytes,
                     " bytes, too much for a model's table of tensors");
      const uint64_t position = reader_.position();
      const auto opcode = reader_.number<uint8_t>();
      more = step(opcode, position);
    }
    pickle_.bytes_read_ = reader_.position();
  }

 private:
  const std::string& where() const { return pickle_.where_; }

  // False after the last one.
  bool step(uint8_t opcode, uint64_t position) {
    switch (static_cast<Opcode>(opcode)) {
      case Opcode::kStop: return stop();
      case Opcode::kProto: protocol(); break;
      case Opcode::kFrame: reader_.number<uint64_t>(); break;  // how much to read ahead
      case Opcode::kMark: marks_.push_back(stack_.size()); break;
      case Opcode::kNone: push(none_); break;
      case Opcode::kNewTrue: push(true_); break;
      case Opcode::kNewFalse: push(false_); break;
      case Opcode::kBinInt: push_integer(reader_.number<int32_t>()); break;
      case Opcode::kBinInt1: push_integer(reader_.number<uint8_t>()); break;
      case Opcode::kBinInt2: push_integer(reader_.number<uint16_t>()); break;
      case Opcode::kLong1: long_integer(reader_.number<uint8_t>()); break;
      case Opcode::kBinFloat: push(add(Kind::kFloat, __builtin_bswap64(reader_.number<uint64_t>()))); break;
      case Opcode::kBinString:
      case Opcode::kBinUnicode: push_text(Kind::kText, reader_.number<uint32_t>()); break;
      case Opcode::kShortBinString:
      case Opcode::kShortBinUnicode: push_text(Kind::kText, reader_.number<uint8_t>()); break;
      case Opcode::kBinUnicode8: push_text(Kind::kText, reader_.number<uint64_t>()); break;
      case Opcode::kBinBytes: push_text(Kind::kBytes, reader_.number<uint32_t>()); break;
      case Opcode::kShortBinBytes: push_text(Kind::kBytes, reader_.number<uint8_t>()); break;
      case Opcode::kEmptyTuple: push(empty_tuple_); break;
      case Opcode::kTuple: push_tuple(stack_.size() - mark()); break;
      case Opcode::kTuple1: push_tuple(1); break;
      case Opcode::kTuple2: push_tuple(2); break;
      case Opcode::kTuple3: push_tuple(3); break;
      case Opcode::kEmptyList: push(add(Kind::kList)); break;
      case Opcode::kEmptyDict: push(add(Kind::kDict)); break;
      case Opcode::kAppend: extend(Kind::kList, 1); break;
      case Opcode::kAppends: extend(Kind::kList, stack_.size() - mark()); break;
      case Opcode::kSetItem: extend(Kind::kDict, 2); break;
      case Opcode::kSetItems: extend(Kind::kDict, stack_.size() - mark()); break;
      case Opcode::kBinPut: memo_[reader_.number<uint8_t>()] = top(); break;
      case Opcode::kLongBinPut: memo_[reader_.number<uint32_t>()] = top(); break;
      case Opcode::kMemoize: memoize(); break;
      case Opcode::kBinGet: recall(reader_.number<uint8_t>()); break;
      case Opcode::kLongBinGet: recall(reader_.number<uint32_t>()); break;
      case Opcode::kGlobal: global(); break;
      case Opcode::kStackGlobal: stack_global(); break;
      case Opcode::kReduce: reduce(); break;
      case Opcode::kBuild: build(); break;
      case Opcode::kBinPersId: persistent_id(); break;
      default: refuse(opcode, position);
    }
    return true;
  }

  [[noreturn]] void refuse(uint8_t opcode, uint64_t position) const {
    const char printable = opcode > ' ' && opcode <= '~' ? static_cast<char>(opcode) : '?';
    throw DataError(
        message(where(), ": opcode ", int{opcode}, " ('", printable, "') at byte ", position,
                " is none that torch.save writes for a model's tensors; nothing in the file was executed. Save the "
                "state_dict() alone, or convert the model to safetensors"));
  }

  bool stop() {
    const Index result = pop();
    QALORA_REQUIRE(stack_.empty() && marks_.empty(), DataError, where(), ": ends with ", stack_.size(),
                   " values left over; it is damaged");
    pickle_.root_ = result;
    return false;
  }

  void protocol() {
    const int version = reader_.number<uint8_t>();
    QALORA_REQUIRE(version >= 2 && version <= kNewestProtocol, DataError, where(), ": pickle protocol ", version,
                   ", expected 2 to ", kNewestProtocol);
  }

  Index add(Kind kind, uint64_t number = 0, uint32_t count = 0) {
    pickle_.values_.push_back({.kind = kind, .count = count, .number = number});
    return static_cast<Index>(pickle_.values_.size() - 1);  // fewer than kMaxBytes
  }

  void push(Index value) { stack_.push_back(value); }
  void push_integer(int64_t value) { push(add(Kind::kInt, static_cast<uint64_t>(value))); }

  // Values above the innermost mark.
  size_t floor() const { return marks_.empty() ? 0 : marks_.back(); }
  void require_values(size_t count) const {
    QALORA_REQUIRE(stack_.size() - floor() >= count, DataError, where(), ": byte ", reader_.position(), " takes ",
                   count, " values, there are ", stack_.size() - floor(), "; the pickle is damaged");
  }
  Index top() const {
    require_values(1);
    return stack_.back();
  }
  Index pop() {
    const Index value = top();
    stack_.pop_back();
    return value;
  }
  // Removes the innermost mark and says where on the stack it was.
  size_t mark() {
    QALORA_REQUIRE(!marks_.empty(), DataError, where(), ": byte ", reader_.position(),
                   " ends what was never begun; the pickle is damaged");
    const size_t position = marks_.back();
    marks_.pop_back();
    return position;
  }

  void push_text(Kind kind, uint64_t bytes) {
    const std::string_view text = reader_.text(bytes);
    QALORA_REQUIRE(kind != Kind::kText || valid_utf8(text), DataError, where(), ": the text before byte ",
                   reader_.position(), " is not UTF-8; the pickle is damaged");
    push(add(kind, pickle_.texts_.size()));
    pickle_.texts_.push_back(text);
  }

  // Little-endian, two's complement.
  void long_integer(uint64_t bytes) {
    const std::string_view digits = reader_.text(bytes);
    if (bytes > sizeof(int64_t)) {
      push(add(Kind::kLongInt, pickle_.texts_.size()));
      pickle_.texts_.push_back(digits);
      return;
    }
    int64_t value = bytes > 0 && (digits.back() & 0x80) != 0 ? -1 : 0;
    std::memcpy(&value, digits.data(), bytes);
    push_integer(value);
  }

  void push_tuple(size_t count) {
    require_values(count);
    const auto first = stack_.end() - static_cast<std::ptrdiff_t>(count);
    const Index tuple =
        count == 0 ? empty_tuple_ : add(Kind::kTuple, pickle_.items_.size(), static_cast<uint32_t>(count));
    pickle_.items_.insert(pickle_.items_.end(), first, stack_.end());
    stack_.erase(first, stack_.end());
    push(tuple);
  }

  // Moves the top `count` values into the list or dict under them.
  void extend(Kind kind, size_t count) {
    require_values(count + 1);
    const auto first = stack_.end() - static_cast<std::ptrdiff_t>(count);
    const Index container = *(first - 1);
    const bool fits = pickle_.kind(container) == kind && (kind == Kind::kList || count % 2 == 0);
    QALORA_REQUIRE(fits, DataError, where(), ": byte ", reader_.position(), " adds ", count, " values to ",
                   pickle_.describe(container), "; the pickle is damaged");
    if (count > 0) {
      auto& items = pickle_.containers_[container];
      items.insert(items.end(), first, stack_.end());
    }
    stack_.erase(first, stack_.end());
  }

  void memoize() {
    const auto next = static_cast<uint32_t>(memo_.size());
    memo_[next] = top();
  }

  void recall(uint32_t number) {
    const auto found = memo_.find(number);
    QALORA_REQUIRE(found != memo_.end(), DataError, where(), ": byte ", reader_.position(), " recalls value ", number,
                   ", which was never kept; the pickle is damaged");
    push(found->second);
  }

  void global() {
    const std::string_view module = reader_.line();
    push_name(module, reader_.line());
  }

  void stack_global() {
    const Index name = pop(), module = pop();
    push_name(pickle_.text(module), pickle_.text(name));
  }

  void push_name(std::string_view module, std::string_view name) {
    const Name* known = find_name(module, name);
    QALORA_REQUIRE(
        known != nullptr, DataError, where(), ": asks for ", shown(module), ".", shown(name),
        ", which is not among the few names that a model's tensors need; nothing in the file was executed. Save the "
        "state_dict() alone, or convert the model to safetensors");
    push(add(Kind::kGlobal, pickle_.texts_.size(), static_cast<uint32_t>(known - kNames.data())));
    pickle_.texts_.push_back(known->name);
  }

  const Name& name_of(Index value) const {
    QALORA_REQUIRE(pickle_.kind(value) == Kind::kGlobal, DataError, where(), ": byte ", reader_.position(),
                   ": expected a name, got ", pickle_.describe(value));
    return kNames[pickle_.values_[value].count];
  }

  void reduce() {
    const Index arguments = pop();
    const Name& name = name_of(pop());
    QALORA_REQUIRE(pickle_.kind(arguments) == Kind::kTuple, DataError, where(), ": ", name.name, " is called with ",
                   pickle_.describe(arguments));
    const auto given = pickle_.items(arguments);
    switch (name.call) {
      case Call::kNothing: break;
      case Call::kDict:
        if (given.empty()) return push(add(Kind::kDict));
        break;
      case Call::kTensor:
        if (given.size() >= 4) return push_tensor(given);
        break;
      case Call::kParameter:  // (tensor, requires_grad, hooks)
        if (!given.empty() && pickle_.kind(given[0]) == Kind::kTensor) return push(given[0]);
        break;
      case Call::kTuple:
        if (given.size() == 1 && pickle_.kind(given[0]) == Kind::kTuple) return push(given[0]);
        break;
    }
    throw DataError(message(where(), ": ", name.name, " is called with ", pickle_.describe(arguments),
                            ", which is not how torch.save uses it; the pickle is damaged"));
  }

  // What an OrderedDict carries beside its items: a state_dict's _metadata, which nobody needs.
  void build() {
    pop();
    QALORA_REQUIRE(pickle_.kind(top()) == Kind::kDict, DataError, where(), ": byte ", reader_.position(),
                   " gives attributes to ", pickle_.describe(top()), "; only a dictionary may have them");
  }

  // (storage, offset, size, stride, requires_grad, hooks, perhaps metadata)
  void push_tensor(std::span<const Index> given) {
    QALORA_REQUIRE(pickle_.kind(given[0]) == Kind::kStorage, DataError, where(), ": a tensor's storage is ",
                   pickle_.describe(given[0]));
    PickleTensor tensor;
    tensor.storage = static_cast<uint32_t>(pickle_.values_[given[0]].number);
    tensor.offset = static_cast<uint64_t>(whole(given[1]));
    tensor.shape = dimensions(given[2]);
    tensor.strides = dimensions(given[3]);
    QALORA_REQUIRE(tensor.shape.size() == tensor.strides.size(), DataError, where(), ": a tensor has ",
                   tensor.shape.size(), " dimensions and ", tensor.strides.size(), " strides");
    push(add(Kind::kTensor, pickle_.tensors_.size()));
    pickle_.tensors_.push_back(std::move(tensor));
  }

  int64_t whole(Index value) const {
    const int64_t number = pickle_.integer(value);
    QALORA_REQUIRE(number >= 0, DataError, where(), ": a tensor's place or size is the negative number ", number);
    return number;
  }

  std::vector<int64_t> dimensions(Index tuple) const {
    const auto items = pickle_.items(tuple);
    QALORA_REQUIRE(pickle_.kind(tuple) == Kind::kTuple && items.size() <= kMaxDimensions, DataError, where(),
                   ": a tensor's size or stride is ", pickle_.describe(tuple), "; expected a tuple of at most ",
                   kMaxDimensions);
    std::vector<int64_t> result;
    for (const Index item : items) result.push_back(whole(item));
    return result;
  }

  // ('storage', torch.XStorage, key, location, elements), and in the oldest files a sixth, the part of another storage
  // that it is.
  void persistent_id() {
    const Index id = pop();
    const auto items = pickle_.items(id);
    const bool good = pickle_.kind(id) == Kind::kTuple && (items.size() == 5 || items.size() == 6) &&
                      pickle_.kind(items[0]) == Kind::kText && pickle_.text(items[0]) == "storage" &&
                      pickle_.kind(items[2]) == Kind::kText;
    QALORA_REQUIRE(good, DataError, where(), ": byte ", reader_.position(), ": ", pickle_.describe(id),
                   " does not describe a storage");
    QALORA_REQUIRE(
        items.size() == 5 || pickle_.kind(items[5]) == Kind::kNone, DataError, where(),
        ": a storage is a part of another one, as PyTorch before 0.4 wrote; load and save the file with a newer PyTorch");
    const Name& type = name_of(items[1]);
    QALORA_REQUIRE(type.dtype.has_value(), DataError, where(), ": ", type.name, " is no storage of known numbers");
    const PickleStorage storage = {
        .key = pickle_.text(items[2]), .dtype = *type.dtype, .elements = static_cast<uint64_t>(whole(items[4]))};
    push(add(Kind::kStorage, storage_number(storage)));
  }

  uint32_t storage_number(const PickleStorage& storage) {
    const auto [found, fresh] = storage_of_key_.emplace(storage.key, static_cast<uint32_t>(pickle_.storages_.size()));
    if (fresh) pickle_.storages_.push_back(storage);
    const PickleStorage& known = pickle_.storages_[found->second];
    QALORA_REQUIRE(known.dtype == storage.dtype && known.elements == storage.elements, DataError, where(),
                   ": storage '", shown(storage.key), "' is once ", known.elements, " x ", dtype_name(known.dtype),
                   " and once ", storage.elements, " x ", dtype_name(storage.dtype));
    return found->second;
  }

  Pickle& pickle_;
  ByteReader reader_;
  bool cut_;  // there are more bytes than may be read
  std::vector<Index> stack_;
  std::vector<size_t> marks_;  // sizes of the stack
  std::unordered_map<uint32_t, Index> memo_;
  std::unordered_map<std::string_view, uint32_t> storage_of_key_;
  Index none_ = 0, true_ = 0, false_ = 0, empty_tuple_ = 0;
};

Pickle::Pickle(std::span<const std::byte> bytes, const std::string& where) : where_(where) {
  PickleMachine(*this, bytes).run();
}

}  // namespace qalora::io
