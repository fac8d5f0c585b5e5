#include "qalora/cli/config_file.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <set>

#include "qalora/cli/command.h"
#include "qalora/cli/toml.h"
#include "qalora/core/error.h"
#include "qalora/core/file.h"
#include "qalora/core/format.h"

namespace qalora::cli {

namespace {

std::string flag_of(const std::string& key) {
  std::string flag = "--" + key;
  std::replace(flag.begin(), flag.end(), '_', '-');
  return flag;
}

struct Writer {
  std::string operator()(const int64_t* value) const { return std::to_string(*value); }
  std::string operator()(const double* value) const { return format_number(*value); }
  std::string operator()(const bool* value) const { return *value ? "true" : "false"; }
  std::string operator()(const std::string* value) const { return toml_quoted(*value); }
  std::string operator()(const std::vector<std::string>* value) const {
    std::vector<std::string> parts;
    for (const std::string& part : *value) parts.push_back(toml_quoted(part));
    return "[" + join(parts, ", ") + "]";
  }
};

struct Binder {
  CLI::App& app;
  const Key& key;

  template <typename T>
  CLI::Option* option(T* value, const char* type) const {
    return app.add_option(flag_of(key.name), *value, key.help)->type_name(type);
  }
  CLI::Option* operator()(int64_t* value) const { return option(value, "N")->check(whole_number())->take_last(); }
  CLI::Option* operator()(double* value) const { return option(value, "X")->check(number())->take_last(); }
  // A flag that takes a word, not an option that may lack one: CLI11 gives a bare option its default.
  CLI::Option* operator()(bool* value) const {
    CLI::Option* flag = app.add_flag(flag_of(key.name), *value, key.help)->type_name("[true|false]")->expected(0, 1);
    return flag->check(one_of({"true", "false"}))->default_str(*value ? "true" : "false");
  }
  CLI::Option* operator()(std::string* value) const { return option(value, "TEXT")->take_last(); }
  CLI::Option* operator()(std::vector<std::string>* value) const { return option(value, "A,B,..")->delimiter(','); }
};

// Puts a value of the file into the key's place, or only tries it; nullptr when it fits, else what was expected.
struct Setter {
  const TomlValue& value;
  bool store;

  template <typename T>
  const char* put(T* place, const T* found, const char* expected) const {
    if (found == nullptr) return expected;
    if (store) *place = *found;
    return nullptr;
  }

  const char* operator()(int64_t* place) const {
    const auto* number = std::get_if<TomlNumber>(&value);
    int64_t read = 0;
    return put(place, number != nullptr && parse_whole(number->digits, read) ? &read : nullptr, "a whole number");
  }
  const char* operator()(double* place) const {
    const auto* number = std::get_if<TomlNumber>(&value);
    double read = 0;
    bool good = number != nullptr;
    if (good) {
      const char* end = number->digits.data() + number->digits.size();
      good = std::from_chars(number->digits.data(), end, read).ec == std::errc() && std::isfinite(read);
    }
    return put(place, good ? &read : nullptr, "a number");
  }
  const char* operator()(bool* place) const { return put(place, std::get_if<bool>(&value), "true or false"); }
  const char* operator()(std::string* place) const {
    return put(place, std::get_if<std::string>(&value), "text in quotes");
  }
  const char* operator()(std::vector<std::string>* place) const {
    return put(place, std::get_if<std::vector<std::string>>(&value), "a list of texts: [\"a\", \"b\"]");
  }
};

}  // namespace

void bind_keys(CLI::App& app, const std::vector<Key>& keys) {
  for (const Key& key : keys) std::visit(Binder{app, key}, key.value)->group(key.group)->capture_default_str();
}

void load_config_file(CLI::App& app, const std::string& path, const std::vector<Key>& keys) {
  std::vector<std::string> names;
  for (const Key& key : keys) names.push_back(key.name);
  std::set<std::string> seen;
  for (const TomlEntry& entry : parse_toml(read_text_file(path), path)) {
    const std::string where = message(path, ":", entry.line);
    QALORA_REQUIRE(entry.section.empty() || entry.section == app.get_name(), UserError, where, ": section [",
                   entry.section, "] is not known; keys stand at the top or under [", app.get_name(), "]");
    const auto key = std::find_if(keys.begin(), keys.end(), [&](const Key& k) { return k.name == entry.key; });
    QALORA_REQUIRE(key != keys.end(), UserError, where, ": key '", entry.key, "' is not known",
                   did_you_mean(entry.key, names));
    QALORA_REQUIRE(seen.insert(entry.key).second, UserError, where, ": key '", entry.key, "' is given twice");
    const bool flag_wins = app.get_option(flag_of(entry.key))->count() > 0;
    const char* expected = std::visit(Setter{entry.value, /*store=*/!flag_wins}, key->value);
    QALORA_REQUIRE(expected == nullptr, UserError, where, ": '", entry.key, "' is ", toml_plain(entry.value),
                   ", expected ", expected);
  }
}

std::string to_toml(const std::vector<Key>& keys, const std::string& heading) {
  std::string text = "# " + heading + "\n";
  std::string group;
  for (const Key& key : keys) {
    if (key.group != group) text += "\n# ---- " + key.group + "\n";
    group = key.group;
    text += "\n# " + key.help + "\n" + key.name + " = " + std::visit(Writer{}, key.value) + "\n";
  }
  return text;
}

}  // namespace qalora::cli
