#include <c10/core/impl/VirtualGuardImpl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <nlohmann/json.hpp>

#include "qalora/cli/command.h"
#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/core/log.h"
#include "qalora/kernels/packed.h"
#include "qalora/tensor/device.h"
#include "qalora/tensor/dtype.h"

namespace qalora::cli {

namespace {

void require_finite(const nlohmann::json& value, const std::string& where) {
  if (value.is_number_float()) QALORA_CHECK(std::isfinite(value.get<double>()), "the result ", where, " is finite");
  if (!value.is_structured()) return;
  for (const auto& [key, child] : value.items()) require_finite(child, where + "/" + key);
}

log::Color parse_color(const std::string& name) {
  return name == "always" ? log::Color::kAlways : name == "never" ? log::Color::kNever : log::Color::kAuto;
}

}  // namespace

std::shared_ptr<CommonOptions> add_common(CLI::App& app, unsigned flags) {
  auto options = std::make_shared<CommonOptions>();
  const std::string group = "Common";
  options->computes = (flags & kComputes) != 0;
  if (options->computes) {
    app.add_option("--device", options->device, "cpu or cuda[:N] (default: cuda if there is one)")
        ->group(group)
        ->type_name("NAME");
    app.add_option("--dtype", options->dtype,
                   "float32 or bfloat16: of matrix products (default: bfloat16 where the device is fast at it)")
        ->group(group)
        ->type_name("NAME");
    app.add_option("--threads", options->threads, "threads (default: all cores)")
        ->group(group)
        ->check(whole_number(1, 4096))
        ->type_name("N");
  }
  if (flags & kWrites) {
    app.add_flag("--dry-run", options->dry_run, "check everything, write nothing")->group(group);
    app.add_flag("--force", options->force, "replace an existing output")->group(group);
  }
  app.add_flag("--json", options->json, "the result as JSON on stdout")->group(group);
  app.add_flag("-q,--quiet", options->quiet, "only errors on stderr")->group(group);
  app.add_flag("-v,--verbose", options->verbose,
               "more messages; -vv also waits for each GPU kernel, so that an error stops at its cause")
      ->group(group);
  app.add_option("--color", options->color, "auto, always or never")
      ->group(group)
      ->check(one_of({"auto", "always", "never"}))
      ->type_name("WHEN");
  app.add_option("--log-file", options->log_file, "a copy of all messages, with times")
      ->group(group)
      ->type_name("FILE");
  return options;
}

void apply_common(CommonOptions& options) {
  const log::Level level = options.quiet         ? log::Level::kQuiet
                           : options.verbose > 0 ? log::Level::kVerbose
                                                 : log::Level::kNormal;
  log::configure({.level = level, .color = parse_color(options.color), .file = options.log_file});
  const char* isa_error = kernels::force_isa_error();
  QALORA_REQUIRE(isa_error == nullptr, UserError, isa_error);
  // Before CUDA's libraries are loaded, which read it once.
  if (options.verbose >= 2) setenv("CUDA_LAUNCH_BLOCKING", "1", /*overwrite=*/0);
  // Batches differ in length: without segments that grow, the freed pieces of one fit none of the next.
  setenv("PYTORCH_ALLOC_CONF", "expandable_segments:True", /*overwrite=*/0);
  // A command that computes nothing does not load a device's libraries unasked.
  options.where = tensor::parse_device(options.computes || !options.device.empty() ? options.device : "cpu");
  // Work that names no device of its own, our kernels' launches among it, goes to the current one.
  if (!options.where.is_cpu()) c10::impl::VirtualGuardImpl(options.where.type()).setDevice(options.where);
  options.compute =
      options.dtype.empty() ? tensor::default_compute_dtype(options.where) : tensor::parse_compute_dtype(options.dtype);
  tensor::set_threads(options.threads);
}

bool parse_whole(const std::string& text, int64_t& value) {
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  return error == std::errc() && stop == end;
}

CLI::Validator whole_number(int64_t least, int64_t most) {
  const auto check = [least, most](const std::string& text) -> std::string {
    int64_t value = 0;
    if (parse_whole(text, value) && value >= least && value <= most) return "";
    const std::string range = least == INT64_MIN  ? ""
                              : most == INT64_MAX ? message(", ", least, " or more")
                                                  : message(" from ", least, " to ", most);
    return message("expected a whole number", range, ", got '", text, "'");
  };
  return CLI::Validator(check, "");
}

CLI::Validator number() {
  const auto check = [](const std::string& text) -> std::string {
    double value = 0;
    const char* end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data(), end, value);
    if (error == std::errc() && stop == end && std::isfinite(value)) return "";
    return message("expected a number, got '", text, "'");
  };
  return CLI::Validator(check, "");
}

CLI::Validator one_of(std::vector<std::string> words) {
  const auto check = [words](const std::string& word) -> std::string {
    if (std::find(words.begin(), words.end(), word) != words.end()) return "";
    return message("expected ", join(words, ", "), ", got '", word, "'", did_you_mean(word, words));
  };
  return CLI::Validator(check, "");
}

void print(const std::string& text) {
  size_t written = 0;
  while (written < text.size()) {
    const ssize_t count = ::write(STDOUT_FILENO, text.data() + written, text.size() - written);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && errno == EPIPE) return;  // the reader has seen enough (| head)
    QALORA_REQUIRE(count >= 0, IoError, "stdout: ", std::strerror(errno));
    written += static_cast<size_t>(count);
  }
}

std::string short_number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3g", value);
  return text;
}

void print_json(const nlohmann::json& document) {
  require_finite(document, "");
  print(json_line(document));
}

std::string json_line(const nlohmann::json& document) {
  return document.dump(-1, ' ', /*ensure_ascii=*/false, nlohmann::json::error_handler_t::replace) + "\n";
}

void require_input(const fs::path& path, const char* flag) {
  std::error_code error;
  const bool there = fs::exists(
      path, error);  // a name that is too long or a folder that may not be entered is an error, not an absence
  QALORA_REQUIRE(!error, UserError, flag, " ", path.string(), ": ", error.message());
  QALORA_REQUIRE(there, UserError, flag, " ", path.string(), ": no such file or folder");
}

void require_file(const fs::path& path, const char* flag) {
  require_input(path, flag);
  std::error_code error;
  QALORA_REQUIRE(!fs::is_directory(path, error), UserError, flag, " ", path.string(), ": is a folder, expected a file");
}

void require_model(const fs::path& path, const char* flag) {
  require_input(path, flag);
  if (path.extension() != ".gguf") require_folder(path, flag);
}

void require_folder(const fs::path& path, const char* flag) {
  require_input(path, flag);
  std::error_code error;
  QALORA_REQUIRE(fs::is_directory(path, error), UserError, flag, " ", path.string(), ": is a file, expected a folder");
  const fs::directory_iterator listing(path, error);
  QALORA_REQUIRE(!error, UserError, flag, " ", path.string(), ": ", error.message());
}

namespace {

void require_free(const char* flag, const fs::path& out, bool force) {
  std::error_code error;
  QALORA_REQUIRE(force || !fs::exists(fs::symlink_status(out, error)), UserError, flag, " ", out.string(),
                 ": exists already; choose another place or give --force to replace it");
}

bool is_inside(const fs::path& path, const fs::path& folder) {
  std::error_code error;
  for (fs::path above = fs::absolute(path, error).parent_path();; above = above.parent_path()) {
    if (same_file(above, folder)) return true;
    if (above == above.parent_path()) return false;
  }
}

// As it is written, or as it really lies: both names would be gone with the folder.
bool holds(const fs::path& folder, const fs::path& path) {
  std::error_code error;
  const fs::path real = fs::canonical(path, error);
  return is_inside(path, folder) || (!error && is_inside(real, folder));
}

// A mistyped --out --force must not cost a folder of something else.
void require_replaceable(const fs::path& out) {
  std::error_code error;
  const fs::file_type kind = fs::status(out, error).type();
  if (kind == fs::file_type::not_found) return;
  QALORA_REQUIRE(!error, IoError, "--out ", out.string(), ": cannot be written: ", error.message());
  QALORA_REQUIRE(kind == fs::file_type::directory, UserError, "--out ", out.string(), ": is a file, expected a folder");
  const std::vector<std::string> names = list_folder(out);
  const auto any = [&](const auto& predicate) { return std::any_of(names.begin(), names.end(), predicate); };
  const bool model =
      any([](const std::string& name) { return name == "config.json" || name == "adapter_config.json"; });
  const bool weights = any([](const std::string& name) { return name.ends_with(".safetensors"); });
  QALORA_REQUIRE(
      names.empty() || (model && weights), UserError, "--out ", out.string(),
      ": is a folder that holds no checkpoint and is not empty; --force does not replace it, choose another place");
}

}  // namespace

void require_output(const fs::path& out, bool force, const std::vector<fs::path>& inputs) {
  for (const fs::path& input : inputs) {
    if (input.empty()) continue;
    QALORA_REQUIRE(!same_file(out, input), UserError, "--out ", out.string(), ": is the same place as the input ",
                   input.string());
    QALORA_REQUIRE(!holds(out, input), UserError, "--out ", out.string(), ": holds the input ", input.string(),
                   "; choose another place");
    QALORA_REQUIRE(!is_inside(out, input), UserError, "--out ", out.string(), ": lies inside the input ",
                   input.string(), "; choose another place");
  }
  require_free("--out", out, force);
  require_replaceable(out);
}

void require_writable(const fs::path& out, bool force, uint64_t required_bytes) {
  const AtomicFolder probe(out, force, required_bytes);
}

void require_room(const fs::path& out, uint64_t required_bytes) {
  std::error_code unknown;  // then the writing itself will say
  const fs::space_info disk = fs::space(out.has_parent_path() ? out.parent_path() : fs::path("."), unknown);
  QALORA_REQUIRE(unknown || disk.available >= required_bytes, IoError, out.string(), ": needs ",
                 format_bytes(required_bytes), ", but the disk has only ", format_bytes(disk.available),
                 " free; choose another output or make room");
}

void require_output_file(const char* flag, const fs::path& out, bool force, const std::vector<fs::path>& inputs) {
  for (const fs::path& input : inputs) {
    if (input.empty()) continue;
    QALORA_REQUIRE(!same_file(out, input), UserError, flag, " ", out.string(), ": is the same place as the input ",
                   input.string());
    QALORA_REQUIRE(!is_inside(out, input), UserError, flag, " ", out.string(), ": lies inside the input ",
                   input.string(), "; choose another place");
  }
  require_free(flag, out, force);
  std::error_code error;
  const fs::file_type there = fs::status(out, error).type();
  QALORA_REQUIRE(there != fs::file_type::directory, UserError, flag, " ", out.string(),
                 ": is a folder, expected a file");
  QALORA_REQUIRE(there == fs::file_type::regular || there == fs::file_type::not_found || there == fs::file_type::none,
                 UserError, flag, " ", out.string(), ": is a pipe or a device, which --force does not replace");
  const AtomicFile probe(out);  // an IoError now, not after the work; the probe goes away again
}

}  // namespace qalora::cli
