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

// Adds a flag for each key. A key that is true or false may stand bare: --packing is --packing true.
void bind_keys(CLI::App& app, const std::vector<Key>& keys);

// Reads a TOML file into the keys that no flag was given for, so that flags win. UserError names file, line and key:
// unknown ones, sections other than the command's own name, keys given twice, values of another type. A value that a
// flag wins over must fit too.
void load_config_file(CLI::App& app, const std::string& path, const std::vector<Key>& keys);

// The values as a TOML file with a comment over every key.
std::string to_toml(const std::vector<Key>& keys, const std::string& heading);

}  // namespace qalora::cli
