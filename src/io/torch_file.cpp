#include "qalora/io/torch_file.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "byte_reader.h"
#include "qalora/core/checked.h"
#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/io/zip_archive.h"

namespace qalora::io {
namespace {

using Kind = Pickle::Kind;

// torch/serialization.py: 0x1950a86a20f9469cfc6c, little-endian, and what follows it.
constexpr std::string_view kMagic("\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", 10);
constexpr int64_t kLegacyVersion = 1001;
constexpr size_t kStartBytes = 32;  // in which the magic number ends, whatever the pickle's protocol
constexpr int kMaxNesting = 4;
constexpr std::string_view kWrappers[] = {"model", "state_dict", "module", "model_state_dict", "model_state"};

// What a file is that is not torch.save's, with what to do.
std::string foreign(std::string_view start) {
  if (start.starts_with("version https://git-lfs")) {
    return "this is a Git LFS pointer, not the weights themselves; run 'git lfs pull' in the folder it came from";
  }
  if (start.starts_with("GGUF")) return "this is a GGUF file; give it the ending .gguf";
  if (start.size() > 8 && start[8] == '{') return "this looks like a safetensors file; give it the ending .safetensors";
  if (start.starts_with("\x1f\x8b") || start.starts_with("\x28\xb5\x2f\xfd") || start.starts_with("BZh")) {
    return "this file is compressed; unpack it first";
  }
  if (start.size() > 262 && start.substr(257, 5) == "ustar") {
    return "this is a tar archive, as PyTorch wrote before 0.1.10; load it with an older PyTorch and save it with a newer one";
  }
  if (start.starts_with("<!") || start.starts_with("<htm")) return "this is a web page; the download went wrong";
  if (start.starts_with("\x80")) return "this is a Python pickle, but none of torch.save; it is never opened";
  return "expected a file of torch.save: a zip archive, or the older row of pickles";
}

std::string_view view_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// The dictionary that holds tensors: the pickle's own value, or what lies in it under one of the usual names.
Pickle::Index find_state(const Pickle& pickle, const std::string& where) {
  Pickle::Index state = pickle.root();
  for (int depth = 0; depth < kMaxNesting; ++depth) {
    QALORA_REQUIRE(pickle.kind(state) == Kind::kDict, DataError, where, ": holds ", pickle.describe(state),
                   ", expected a dictionary of tensors (a state_dict)");
    const auto pairs = pickle.items(state);
    std::vector<std::string> keys;
    for (size_t i = 0; i + 1 < pairs.size(); i += 2) {
      if (pickle.kind(pairs[i + 1]) == Kind::kTensor) return state;
      if (pickle.kind(pairs[i]) == Kind::kText && keys.size() < 10) keys.emplace_back(pickle.text(pairs[i]));
    }
    std::optional<Pickle::Index> inner;
    for (const auto name : kWrappers) {
      if (const auto found = pickle.find(state, name); found && !inner && pickle.kind(*found) == Kind::kDict)
        inner = found;
    }
    QALORA_REQUIRE(inner.has_value(), DataError, where, ": there is no tensor in it",
                   keys.empty() ? "" : "; its keys are ", join(keys, ", "));
    state = *inner;
  }
  throw DataError(message(where, ": there is no tensor in it, only dictionaries in dictionaries"));
}

}  // namespace

bool TorchFile::looks_like(std::string_view start) {
  const bool pickle = start.starts_with('\x80') && start.substr(0, kStartBytes).find(kMagic) != std::string_view::npos;
  return pickle || ZipArchive::looks_like(start);
}

TorchFile::TorchFile(const fs::path& path) : map_(path) {
  const std::string_view start = view_of(map_.bytes().first(std::min<size_t>(map_.bytes().size(), 512)));
  QALORA_REQUIRE(!start.empty(), DataError, path.string(), ": the file is empty; fetch or write it again");
  QALORA_REQUIRE(looks_like(start), DataError, path.string(), ": ", foreign(start));
  legacy_ = !ZipArchive::looks_like(start);
  legacy_ ? open_legacy() : open_zip();
}

// ROOT/data.pkl describes the tensors, ROOT/data/KEY are the storages. ROOT is the name that the file had when it was
// written.
void TorchFile::open_zip() {
  const std::string name = map_.path().string();
  const ZipArchive archive(map_.bytes(), name);
  constexpr std::string_view kTable = "/data.pkl";
  std::string root;
  for (const auto& [entry, bytes] : archive.entries()) {
    if (!entry.ends_with(kTable) || entry.find('/') != entry.size() - kTable.size()) continue;
    QALORA_REQUIRE(root.empty(), DataError, name, ": both ", root, kTable, " and ", entry, " are in the archive");
    root = entry.substr(0, entry.size() - kTable.size());
  }
  QALORA_REQUIRE(!root.empty(), DataError, name, ": a zip archive without data.pkl, not a file of torch.save");
  const auto& entries = archive.entries();
  QALORA_REQUIRE(
      !entries.contains(root + "/constants.pkl"), DataError, name,
      ": this is a TorchScript program (torch.jit.save), not a dictionary of tensors; save the state_dict() with torch.save");
  const auto order = entries.find(root + "/byteorder");
  QALORA_REQUIRE(
      order == entries.end() || view_of(order->second) == "little", DataError, name,
      ": was written on a big-endian machine, which is not supported; load and save it on a little-endian one");
  const Pickle pickle(entries.find(root + std::string(kTable))->second, message(name, ": ", root, kTable));
  std::vector<Bytes> storages;
  for (const PickleStorage& storage : pickle.storages()) {
    const auto found = entries.find(message(root, "/data/", storage.key));
    QALORA_REQUIRE(found != entries.end(), DataError, name, ": storage '", storage.key,
                   "' is not in the archive; the file is damaged");
    const auto bytes = checked_mul(storage.elements, static_cast<uint64_t>(dtype_bytes(storage.dtype)));
    QALORA_REQUIRE(bytes && *bytes == found->second.size(), DataError, name, ": storage '", storage.key,
                   "' should have ", storage.elements, " x ", dtype_name(storage.dtype), ", the archive has ",
                   found->second.size(), " bytes for it");
    storages.push_back(found->second);
  }
  collect(pickle, storages);
}

// Five pickles (magic number, version, what the writing machine was like, the dictionary, the storages' keys), then for
// each key the number of its elements in 8 bytes and the elements.
void TorchFile::open_legacy() {
  const std::string name = map_.path().string();
  const Bytes file = map_.bytes();
  uint64_t position = 0;
  const auto next = [&](const char* what) {
    Pickle pickle(file.subspan(position), message(name, ": ", what));
    position += pickle.bytes_read();
    return pickle;
  };
  const Pickle magic = next("magic number");
  QALORA_REQUIRE(magic.kind(magic.root()) == Kind::kLongInt && magic.text(magic.root()) == kMagic, DataError, name,
                 ": ", "this is a Python pickle, but none of torch.save; it is never opened");
  const Pickle version = next("version");
  QALORA_REQUIRE(version.integer(version.root()) == kLegacyVersion, DataError, name, ": version ",
                 version.integer(version.root()), ", expected ", kLegacyVersion);
  const Pickle machine = next("description of the machine");
  const auto little = machine.find(machine.root(), "little_endian");
  QALORA_REQUIRE(
      !little || machine.integer(*little) == 1, DataError, name,
      ": was written on a big-endian machine, which is not supported; load and save it on a little-endian one");
  const Pickle pickle = next("table of tensors"), keys = next("list of storages");
  std::map<std::string_view, size_t> number_of;
  for (size_t i = 0; i < pickle.storages().size(); ++i) number_of[pickle.storages()[i].key] = i;
  std::vector<Bytes> storages(pickle.storages().size());
  std::set<std::string_view> seen;
  ByteReader reader(file.subspan(position), name + ": storages");
  for (const Pickle::Index item : keys.items(keys.root())) {
    const std::string_view key = keys.text(item);
    const auto found = number_of.find(key);
    QALORA_REQUIRE(found != number_of.end() && seen.insert(key).second, DataError, name, ": storage '", key,
                   "' is listed twice, or no tensor lies in it");
    const PickleStorage& storage = pickle.storages()[found->second];
    const auto elements = reader.number<uint64_t>();
    QALORA_REQUIRE(elements == storage.elements, DataError, name, ": storage '", key, "' has ", elements,
                   " elements, expected ", storage.elements);
    const auto bytes = checked_mul(elements, static_cast<uint64_t>(dtype_bytes(storage.dtype)));
    QALORA_REQUIRE(bytes.has_value(), DataError, name, ": storage '", key, "': ", elements, " elements are too many");
    storages[found->second] = reader.take(*bytes);
  }
  for (const auto& [key, number] : number_of) {
    QALORA_REQUIRE(seen.contains(key), DataError, name, ": storage '", key, "' is not in the file; it is damaged");
  }
  QALORA_REQUIRE(reader.left() == 0, DataError, name, ": ", reader.left(),
                 " bytes follow the last storage; the file is damaged");
  collect(pickle, storages);
}

void TorchFile::collect(const Pickle& pickle, const std::vector<Bytes>& storages) {
  const std::string name = map_.path().string();
  const auto pairs = pickle.items(find_state(pickle, name));
  for (size_t i = 0; i + 1 < pairs.size(); i += 2) {
    if (pickle.kind(pairs[i + 1]) != Kind::kTensor) continue;  // a step number, a configuration
    QALORA_REQUIRE(pickle.kind(pairs[i]) == Kind::kText, DataError, name, ": a tensor's name is ",
                   pickle.describe(pairs[i]));
    add(std::string(pickle.text(pairs[i])), pickle, pickle.tensor(pairs[i + 1]), storages);
  }
}

void TorchFile::add(const std::string& name, const Pickle& pickle, const PickleTensor& tensor,
                    const std::vector<Bytes>& storages) {
  const std::string where = message(map_.path().string(), ": tensor '", name, "': ");
  const PickleStorage& storage = pickle.storages()[tensor.storage];
  const auto elements = checked_elements(tensor.shape);
  // An empty tensor may have other dimensions whose strides overflow although its size does not.
  std::vector<int64_t> sizes(tensor.shape);
  for (int64_t& dimension : sizes) dimension = std::max<int64_t>(dimension, 1);
  QALORA_REQUIRE(checked_elements(sizes).has_value(), DataError, where, "the product of its ", sizes.size(),
                 " dimensions overflows");
  // A view that repeats elements (torch.expand) could be larger than any memory.
  QALORA_REQUIRE(elements && static_cast<uint64_t>(*elements) <= storage.elements, DataError, where,
                 "shape has more elements than the ", storage.elements,
                 " of the storage it lies in; save a copy of it (contiguous())");
  const auto element_bytes = static_cast<uint64_t>(dtype_bytes(storage.dtype));
  uint64_t span = *elements == 0 ? 0 : 1;  // from the first element to the last, both included
  bool contiguous = true, fits = tensor.offset <= storage.elements;
  int64_t dense = 1;
  for (size_t d = tensor.shape.size(); d-- > 0 && *elements > 0;) {
    const auto steps = static_cast<uint64_t>(tensor.shape[d] - 1), stride = static_cast<uint64_t>(tensor.strides[d]);
    const auto reach = checked_mul(steps, stride);
    const auto sum = reach ? checked_add(span, *reach) : std::nullopt;
    fits = fits && sum.has_value();
    span = sum.value_or(0);
    contiguous = contiguous && (tensor.shape[d] == 1 || tensor.strides[d] == dense);
    dense *= tensor.shape[d];  // at most `elements`
  }
  fits = fits && span <= storage.elements - tensor.offset;
  QALORA_REQUIRE(fits, DataError, where, "reaches beyond the ", storage.elements,
                 " elements of the storage it lies in");
  TensorInfo info{.dtype = storage.dtype,
                  .shape = tensor.shape,
                  .begin = 0,
                  .end = static_cast<uint64_t>(*elements) * element_bytes};
  View view{.bytes = storages[tensor.storage].subspan(tensor.offset * element_bytes, span * element_bytes),
            .strides = {}};
  if (!contiguous) view.strides = tensor.strides;
  QALORA_REQUIRE(tensors_.emplace(name, std::move(info)).second, DataError, where, "stands twice in the file");
  views_.emplace(name, std::move(view));
}

const TorchFile::View& TorchFile::view(const std::string& name) const {
  info(name);
  return views_.at(name);
}

at::Tensor TorchFile::read(const std::string& name) const {
  const View& source = view(name);
  const TensorInfo& tensor = info(name);
  const auto options = at::dtype(scalar_type(tensor.dtype));
  const auto copy = [&](at::Tensor into) {  // the map may be misaligned
    if (!source.bytes.empty()) std::memcpy(into.data_ptr(), source.bytes.data(), source.bytes.size());
    return into;
  };
  if (source.strides.empty()) return copy(at::empty(tensor.shape, options));
  const auto span = static_cast<int64_t>(source.bytes.size()) / dtype_bytes(tensor.dtype);
  return copy(at::empty({span}, options)).as_strided(tensor.shape, source.strides).contiguous();
}

TensorBytes TorchFile::bytes(const std::string& name) const {
  const View& source = view(name);
  return source.strides.empty() ? TensorBytes{{}, source.bytes} : TensorSource::bytes(name);
}

void TorchFile::release(const std::string& name) const { map_.release(view(name).bytes); }

}  // namespace qalora::io
