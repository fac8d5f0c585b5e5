#include "qalora/cli/cli.h"

#include <unistd.h>

#include <c10/util/Exception.h>
#include <CLI/CLI.hpp>

#include <torch/version.h>
#include <cstdlib>
#include <iostream>
#include <new>
#include <nlohmann/json.hpp>

#include "cuda_report.h"
#include "qalora/cli/command.h"
#include "qalora/cli/faults.h"
#include "qalora/cli/version.h"
#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/core/interrupted.h"
#include "qalora/core/log.h"
#include "qalora/core/signals.h"
#include "qalora/kernels/packed.h"
#include "qalora/tensor/caching_allocator.h"
#include "qalora/tensor/device.h"
#include "qalora/tensor/dtype.h"

namespace qalora::cli {

namespace {

constexpr const char* kExamples =
    "Examples:\n"
    "  qalora quantize --model llama-7b --out llama-7b-int4 --bits 4 --group-size 32\n"
    "  qalora finetune --config configs/alpaca-7b.toml --model llama-7b-int4 --data alpaca.json --out run\n"
    "  qalora merge --model llama-7b-int4 --adapter run --out llama-7b-int4-alpaca\n"
    "  qalora eval --model llama-7b-int4-alpaca --task mmlu --data mmlu --shots 5\n"
    "\n"
    "'qalora COMMAND --help' explains one command.\n";

nlohmann::json version_json() {
  const c10::Device where = tensor::parse_device("");
  return {{"version", version_number()},
          {"commit", version_commit()},
          {"libtorch", TORCH_VERSION},
          {"cuda", cuda_json()},
          {"cpu_kernels", kernels::active_isa()},
          {"threads", tensor::threads()},
          {"default_device", where.str()},
          {"default_dtype", tensor::dtype_name(tensor::default_compute_dtype(where))}};
}

std::string version_text() {
  const c10::Device where = tensor::parse_device("");
  return message("qalora ", version_number(), " (", version_commit(), ")\nLibTorch ", TORCH_VERSION, "\n", cuda_line(),
                 "\nCPU kernels ", kernels::active_isa(), ", ", tensor::threads(), " threads, default device ",
                 where.str(), ", dtype ", tensor::dtype_name(tensor::default_compute_dtype(where)), "\n");
}

int fail(const std::string& text, ExitCode code) {
  log::error(text);
  return static_cast<int>(code);
}

// What CLI11 throws, in our words: its exit codes become 2, a misspelt command or flag gets the nearest name.
int usage_error(const CLI::ParseError& error, const CLI::App& app, int argc, char** argv) {
  std::string text = error.what();
  const CLI::App* command = &app;
  for (const CLI::App* sub : app.get_subcommands()) command = sub;
  std::vector<std::string> names;
  for (const CLI::App* sub : app.get_subcommands([](const CLI::App*) { return true; }))
    names.push_back(sub->get_name());
  if (command == &app && argc > 1 && argv[1][0] != '-') {
    text = message("'", argv[1], "' is not a command", did_you_mean(argv[1], names), "; there are ", join(names, ", "));
  } else if (!command->remaining(/*recurse=*/true).empty()) {  // before what is missing: a misspelt flag is both
    std::vector<std::string> flags;
    for (const CLI::Option* option : command->get_options()) {
      for (const std::string& name : option->get_lnames()) flags.push_back("--" + name);
    }
    const std::string word = command->remaining(/*recurse=*/true).front();
    text = message("'", word, "' is not a flag of ", command->get_name(), did_you_mean(word, flags));
  }
  const std::string help = command == &app ? "qalora --help" : "qalora " + command->get_name() + " --help";
  return fail(text + "\nsee '" + help + "'", ExitCode::kUsage);
}

// The only place where errors end: each becomes a sentence on stderr and an exit code.
int guarded(const std::function<void()>& run) {
  try {
    run();
    return 0;
  } catch (const InterruptedAndTold& error) {
    return static_cast<int>(error.code());
  } catch (const Interrupted& error) {
    log::info("stopped; nothing was written");
    return static_cast<int>(error.code());
  } catch (const Error& error) {
    return fail(error.what(), error.code());
  } catch (const std::bad_alloc&) {
    return fail("out of memory; lower micro_batch_size, sequence_length or the batch, or use a smaller model",
                ExitCode::kOutOfMemory);
  } catch (const c10::Error& error) {
    const std::string what = error.what_without_backtrace();
    if (const auto fault = known_fault(what)) return fail(fault->text, fault->code);
    return fail("internal error in LibTorch: " + what + "\nplease report this with the command line",
                ExitCode::kFailure);
  } catch (const fs::filesystem_error& error) {
    return fail(error.path1().string() + ": " + error.code().message(), ExitCode::kIo);
  } catch (const std::exception& error) {
    return fail(std::string("internal error: ") + error.what() + "\nplease report this with the command line",
                ExitCode::kFailure);
  }
}

// Worker threads that spin for a millisecond between two products, as they do by default, make a step several times
// slower beside another busy process. The OpenMP library reads how long to spin when it is loaded, before main: only a
// new start of the program can tell it. Where that fails the program runs as it is.
void restart_with_short_spinning(char** argv) {
  if (std::getenv("OMP_WAIT_POLICY") != nullptr || std::getenv("GOMP_SPINCOUNT") != nullptr) return;
  setenv("GOMP_SPINCOUNT", "10000", /*overwrite=*/1);
  execv("/proc/self/exe", argv);
}

// "--refit,--no-refit", where CLI11 writes "--refit,--no-refit{false}".
class HelpFormatter : public CLI::Formatter {
 public:
  std::string make_option_name(const CLI::Option* option, bool positional) const override {
    constexpr std::string_view kNegated = "{false}";
    std::string name = CLI::Formatter::make_option_name(option, positional);
    if (const size_t at = name.find(kNegated); at != std::string::npos) name.erase(at, kNegated.size());
    return name;
  }
};

}  // namespace

int run(int argc, char** argv) {
  install_stop_handlers();
  CLI::App app(
      "Fine-tunes LLaMA models while they are quantised (QA-LoRA) and merges the result back with nothing lost.",
      "qalora");
  app.formatter(std::make_shared<HelpFormatter>());  // its commands inherit it
  app.footer(kExamples);
  app.require_subcommand(0, 1);
  bool version = false, json = false;
  app.add_flag("--version", version, "versions of the program and its libraries");
  app.add_flag("--json", json, "with --version: as JSON");
  std::vector<Command> commands = {make_quantize(app), make_finetune(app), make_merge(app),    make_eval(app),
                                   make_export(app),   make_compare(app),  make_generate(app), make_inspect(app)};
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    return guarded([&] { print(app.help()); });  // of the chosen command, under its full name
  } catch (const CLI::ParseError& error) {
    return usage_error(error, app, argc, argv);
  }
  if (version) return guarded([&] { json ? print_json(version_json()) : print(version_text()); });
  for (const Command& command : commands) {
    if (!command.app->parsed()) continue;
    if (command.app->get_name() != "inspect") restart_with_short_spinning(argv);
    tensor::use_caching_allocator();
    return guarded(command.run);
  }
  std::cerr << app.help();
  return static_cast<int>(ExitCode::kUsage);
}

}  // namespace qalora::cli
