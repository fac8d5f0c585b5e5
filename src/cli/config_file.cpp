#include "qalora/cli/config_file.h"

#include <algorithm>
#include <set>

#include "qalora/core/error.h"
#include "qalora/core/format.h"

namespace qalora::cli {

namespace {

std::string flag_of(const std::string& key) {
  std::string flag = "--" + key;
  std::replace(flag.begin(), flag.end(), '_', '-');
  return flag;
}

std::string quoted(const std::string& text) {
  std::string result = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') result += '\\';
    result += c;
  }
  return result + "\"";
}

struct Writer {
  std::string operator()(const int64_t* value) const { return std::to_string(*value); }
  std::string operator()(const double* value) const { return format_number(*value); }
  std::string operator()(const bool* value) const { return *value ? "true" : "false"; }
  std::string operator()(const std::string* value) const { return quoted(*value); }
  std::string operator()(const std::vector<std::string>* value) const {
    std::vector<std::string> parts;
    for (const std::string& part : *value) parts.push_back(quoted(part));
    return "[" + join(parts, ", ") + "]";
  }
};

struct Binder {
  CLI::App& app;
  const Key& key;

  CLI::Option* operator()(int64_t* value) const { return app.add_option(flag_of(key.name), *value, key.help)->type_name("N"); }
  CLI::Option* operator()(double* value) const { return app.add_option(flag_of(key.name), *value, key.help)->type_name("X"); }
  CLI::Option* operator()(bool* value) const { return app.add_option(flag_of(key.name), *value, key.help)->type_name("true|false"); }
  CLI::Option* operator()(std::string* value) const { return app.add_option(flag_of(key.name), *value, key.help)->type_name("TEXT"); }
  CLI::Option* operator()(std::vector<std::string>* value) const {
    return app.add_option(flag_of(key.name), *value, key.help)->type_name("A,B,..")->delimiter(',');
  }
};

}  // namespace

std::vector<CLI::ConfigItem> TomlReader::from_config(std::istream& input) const {
  std::vector<CLI::ConfigItem> items = CLI::ConfigTOML::from_config(input);
  std::set<std::string> seen;
  std::vector<CLI::ConfigItem> result;
  for (CLI::ConfigItem& item : items) {
    if (item.name == "++" || item.name == "--") continue;  // CLI11's own marks for the begin and end of a section
    const std::string section = join(item.parents, ".");
    QALORA_REQUIRE(section.empty() || section == command_, UserError, "section [", section, "] is not known; keys stand at the top or under [",
                   command_, "]");
    QALORA_REQUIRE(std::find(keys_.begin(), keys_.end(), item.name) != keys_.end(), UserError, "key '", item.name, "' is not known",
                   did_you_mean(item.name, keys_));
    QALORA_REQUIRE(seen.insert(item.name).second, UserError, "key '", item.name, "' is given twice");
    std::replace(item.name.begin(), item.name.end(), '_', '-');
    item.parents.clear();
    result.push_back(std::move(item));
  }
  return result;
}

void bind_keys(CLI::App& app, const std::vector<Key>& keys) {
  std::vector<std::string> names;
  for (const Key& key : keys) {
    std::visit(Binder{app, key}, key.value)->group(key.group)->capture_default_str();
    names.push_back(key.name);
  }
  app.set_config("--config", "", "TOML file with these keys (flags win over it)", /*config_required=*/false)->type_name("FILE");
  app.config_formatter(std::make_shared<TomlReader>(app.get_name(), names));
  app.allow_config_extras(CLI::config_extras_mode::error);
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
