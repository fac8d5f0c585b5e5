#include "inspect_table.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "qalora/core/error.h"
#include "qalora/core/format.h"

namespace qalora::cli {
namespace {

using nlohmann::json;
using Rows = std::vector<std::pair<std::string, std::string>>;

constexpr size_t kLongestCell = 200;

// Objects whose names are a file's, not ours.
const std::set<std::string> kOfFiles = {"keys",   "metadata",  "types", "values", "quantization_of_modules",
                                        "events", "last_step", "state"};
// Printed elsewhere: in the first line, in the list below, as a warning.
const std::set<std::string> kElsewhere = {"kind", "tensors", "path", "tokenizer_problem"};

// A chat template would fill the screen.
std::string shortened(std::string text) {
  std::replace_if(
      text.begin(), text.end(), [](unsigned char c) { return c < ' '; }, ' ');
  if (text.size() <= kLongestCell) return text;
  size_t end = kLongestCell;
  while ((static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) --end;  // between two characters of UTF-8
  return text.substr(0, end) + "..";
}

// "a, b" of a list, "name value, name value" of an object; objects in a list are parted by semicolons.
std::string plain(const json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_number_float()) return message(value.get<double>());  // six digits are enough to read
  if (!value.is_structured()) return value.dump();
  std::vector<std::string> parts;
  for (const auto& [key, child] : value.items())
    parts.push_back(value.is_object() ? message(key, " ", plain(child)) : plain(child));
  const bool nested = value.is_array() && !value.empty() && value[0].is_structured();
  return join(parts, nested ? "; " : ", ");
}

std::string own_cell(const std::string& key, const json& value) {
  if (key == "group_size" && value == -1) return "the whole row";
  if (value.is_number_integer() && key.find("bytes") != std::string::npos) return format_bytes(value.get<uint64_t>());
  if (value.is_number_integer() && value.get<int64_t>() >= 10000) return format_count(value.get<int64_t>());
  return shortened(plain(value));
}

// An ordinary LoRA has no groups.
bool is_empty(const std::string& key, const json& value) {
  return value.is_null() || value == json::array() || value == "" || (key == "group_size" && value == 0);
}

void add_rows_of_file(Rows& rows, const std::string& prefix, const json& object) {
  for (const auto& [key, value] : object.items()) {
    if (value.is_object()) {
      add_rows_of_file(rows, prefix + key + ", ", value);
    } else if (!value.is_null()) {
      const bool nothing = value == "" || value == json::array();
      rows.emplace_back(prefix + key, nothing ? value.dump() : shortened(plain(value)));
    }
  }
}

// Of a model the linear layers alone are counted, of a file of tensors every number in it.
std::string bits_label(const json& document) {
  const std::string kind = document.value("kind", "");
  if (kind == "safetensors" || kind == "pytorch") return "bits per number";
  const bool model = kind.ends_with("checkpoint") || (kind == "gguf" && !document.contains("not_read"));
  return model ? "bits per weight of linear layers" : "bits per weight";
}

std::string label(const std::string& key, const json& document) {
  if (key == "bits_per_weight") return bits_label(document);
  std::string name = key;
  std::replace(name.begin(), name.end(), '_', ' ');
  return name;
}

// One row a fact; objects one level down become "outer, inner".
void add_rows(Rows& rows, const std::string& prefix, const std::string& outer, const json& object) {
  for (const auto& [key, value] : object.items()) {
    if (kElsewhere.contains(key)) continue;
    const std::string name = prefix + label(key, object);
    if (value.is_object()) {
      kOfFiles.contains(key) ? add_rows_of_file(rows, name + ", ", value) : add_rows(rows, name + ", ", key, value);
    } else if (!is_empty(key, value)) {
      rows.emplace_back(name, own_cell(outer + key, value));
    }
  }
}

std::string tensor_table(const json& tensors) {
  std::vector<std::vector<std::string>> rows = {{"tensor", "dtype", "shape"}};
  for (const auto& tensor : tensors) {
    std::string shape;
    for (const auto& size : tensor["shape"]) shape += (shape.empty() ? "" : " x ") + size.dump();
    rows.push_back(
        {tensor["name"].get<std::string>(), tensor["dtype"].get<std::string>(), shape.empty() ? "scalar" : shape});
  }
  return format_table(rows);
}

}  // namespace

std::string inspect_text(const json& document) {
  Rows rows;
  add_rows(rows, "", "", document);
  size_t width = 0;
  for (const auto& [name, value] : rows) width = std::max(width, name.size());
  std::string text = document["path"].get<std::string>() + ": " + document["kind"].get<std::string>() + "\n";
  for (const auto& [name, value] : rows) text += "  " + name + std::string(width + 2 - name.size(), ' ') + value + "\n";
  return document.contains("tensors") ? text + "\n" + tensor_table(document["tensors"]) : text;
}

}  // namespace qalora::cli
