// Configuration keys: one table that makes the flags, reads the TOML file and writes the resolved one.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>
#include <variant>
#include <vector>

namespace qalora::cli {

struct Key {
  std::string name;  // as in the file: "batch_size"; the flag is --batch-size
  std::variant<int64_t*, double*, bool*, std::string*, std::vector<std::string>*> value;
  std::string help;
  std::string group;  // heading in --help and in the file
};

// Adds a flag for each key and `--config FILE`. Precedence: default < file < flag. Unknown keys of the file are errors.
void bind_keys(CLI::App& app, const std::vector<Key>& keys);

// The values as a TOML file with a comment over every key.
std::string to_toml(const std::vector<Key>& keys, const std::string& heading);

// Reads TOML with the file's spelling of keys (batch_size), as CLI11 options (--batch-size). Sections other than the command's
// own name are errors.
class TomlReader : public CLI::ConfigTOML {
 public:
  TomlReader(std::string command, std::vector<std::string> keys) : command_(std::move(command)), keys_(std::move(keys)) {}
  std::vector<CLI::ConfigItem> from_config(std::istream& input) const override;

 private:
  std::string command_;
  std::vector<std::string> keys_;
};

}  // namespace qalora::cli
