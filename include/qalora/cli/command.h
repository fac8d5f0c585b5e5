// What every command shares: the common flags, and how a command is registered.
//
// A command is one file src/cli/<name>.cpp with `Command make_<name>(CLI::App& root)`: it adds its subcommand, binds
// flags to a plain options struct and returns what to run after parsing. No algorithm lives here.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <CLI/CLI.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "qalora/core/file.h"

namespace qalora::cli {

struct CommonOptions {
  std::string device, dtype, color = "auto", log_file;
  int threads = 0;  // 0: all cores
  bool json = false, dry_run = false, force = false, quiet = false;
  bool computes = false;  // has work for a device
  int verbose = 0;

  // After apply_common:
  c10::Device where = c10::kCPU;
  at::ScalarType compute = at::kFloat;
};

enum CommonFlags : unsigned { kComputes = 1, kWrites = 2 };  // --device/--dtype/--threads; --dry-run/--force

struct Command {
  CLI::App* app = nullptr;
  std::function<void()> run;
};

// Adds the common flags to a subcommand; the returned options are filled by parsing.
std::shared_ptr<CommonOptions> add_common(CLI::App& app, unsigned flags);
// Checks them, sets log level, threads, device and compute dtype. First line of every run function.
void apply_common(CommonOptions& options);

// Whole decimal numbers from `least` on, and no others: CLI11 by itself takes the nearest number that fits into 64
// bits.
bool parse_whole(const std::string& text, int64_t& value);
CLI::Validator whole_number(int64_t least = INT64_MIN, int64_t most = INT64_MAX);
CLI::Validator number();  // finite
// One of these words; the error names the nearest.
CLI::Validator one_of(std::vector<std::string> words);

// JSON on one line. File names may be any bytes: what is not UTF-8 in them is shown as U+FFFD.
std::string json_line(const nlohmann::json& document);
// Prints one JSON document to stdout (numbers with full precision; a non-finite number is an InternalError, not
// "null").
void print_json(const nlohmann::json& document);
// Prints text to stdout; a closed pipe ends quietly, a full disk is an IoError.
void print(const std::string& text);
std::string short_number(double value);  // three digits, for tables; --json has them all

// UserError unless `path` is an existing folder or GGUF file; flag: "--model".
void require_model(const fs::path& path, const char* flag);
// UserError unless `path` is an existing folder; flag: "--adapter".
void require_folder(const fs::path& path, const char* flag);
// UserError unless something lies at `path`; flag: "--data".
void require_input(const fs::path& path, const char* flag);
// And unless it is no folder.
void require_file(const fs::path& path, const char* flag);
// For --out, a folder. UserError when it exists and not force, is or holds one of `inputs` (links resolved; empty ones
// are passed over), or is anything but an empty folder and one that a checkpoint or an adapter was written to: --force
// replaces nothing else.
void require_output(const fs::path& out, bool force, const std::vector<fs::path>& inputs);
// For a dry run: IoError when the folder cannot be written, or the disk has less room than that. Leaves nothing behind.
void require_writable(const fs::path& out, bool force, uint64_t required_bytes);
// IoError where the disk of a file to be written has less room than that.
void require_room(const fs::path& out, uint64_t required_bytes);
// For a file that is written when the work is done. UserError when it exists and not force, is no regular file, or is
// one of `inputs` or inside one of them; IoError when nothing can be written there. Before the work, which would be
// lost.
void require_output_file(const char* flag, const fs::path& out, bool force, const std::vector<fs::path>& inputs);

Command make_quantize(CLI::App& root);
Command make_finetune(CLI::App& root);
Command make_merge(CLI::App& root);
Command make_eval(CLI::App& root);
Command make_compare(CLI::App& root);
Command make_generate(CLI::App& root);
Command make_export(CLI::App& root);
Command make_inspect(CLI::App& root);

}  // namespace qalora::cli
