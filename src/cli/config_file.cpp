#include "qalora/cli/config_file.h"

#include <algorithm>
#include <set>
#include <sstream>

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

  CLI::Option* operator()(int64_t* value) const { return app.add_option(flag_of(key.name), *value, key.help)->type_name("N")->take_last(); }
  CLI::Option* operator()(double* value) const { return app.add_option(flag_of(key.name), *value, key.help)->type_name("X")->take_last(); }
  CLI::Option* operator()(bool* value) const { return app.add_option(flag_of(key.name), *value, key.help)->type_name("true|false")->take_last(); }
  CLI::Option* operator()(std::string* value) const { return app.add_option(flag_of(key.name), *value, key.help)->type_name("TEXT")->take_last(); }
  CLI::Option* operator()(std::vector<std::string>* value) const {
    return app.add_option(flag_of(key.name), *value, key.help)->type_name("A,B,..")->delimiter(',');
  }
};

}  // namespace

void bind_keys(CLI::App& app, const std::vector<Key>& keys) {
  for (const Key& key : keys) std::visit(Binder{app, key}, key.value)->group(key.group)->capture_default_str();
}

void load_config_file(CLI::App& app, const std::string& path, const std::vector<Key>& keys) {
  std::vector<std::string> names;
  for (const Key& key : keys) names.push_back(key.name);
  std::istringstream input(read_text_file(path));
  std::set<std::string> seen;
  for (const CLI::ConfigItem& item : CLI::ConfigTOML().from_config(input)) {
    if (item.name == "++" || item.name == "--") continue;  // CLI11's own marks for the begin and end of a section
    const std::string section = join(item.parents, ".");
    QALORA_REQUIRE(section.empty() || section == app.get_name(), UserError, path, ": section [", section,
                   "] is not known; keys stand at the top or under [", app.get_name(), "]");
    const bool known = std::find(names.begin(), names.end(), item.name) != names.end();
    QALORA_REQUIRE(known, UserError, path, ": key '", item.name, "' is not known", did_you_mean(item.name, names));
    QALORA_REQUIRE(seen.insert(item.name).second, UserError, path, ": key '", item.name, "' is given twice");
    CLI::Option* option = app.get_option(flag_of(item.name));
    if (option->count() > 0) continue;
    try {
      option->add_result(item.inputs);
      option->run_callback();
    } catch (const CLI::ParseError&) {
      throw UserError(message(path, ": '", item.name, "' is ", join(item.inputs, ", "), ", expected ", option->get_type_name()));
    }
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
