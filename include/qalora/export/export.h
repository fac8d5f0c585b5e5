// A model out of the program and into another engine: one row of formats() a container, one source for them all.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "qalora/export/report.h"
#include "qalora/io/adapter_file.h"
#include "qalora/io/checkpoint.h"
#include "qalora/model/config.h"

namespace qalora::exporting {

// What is exported: a model as it lies on the disk, and maybe an adapter that fits it.
struct Source {
  // DataError or UserError when either cannot be read, or when tensors are missing, unknown or of other shapes than the
  // configuration says.
  Source(const fs::path& model, const fs::path& adapter);

  io::Checkpoint checkpoint;
  model::LlamaConfig config;
  fs::path adapter_folder;  // as io::find_adapter found it; empty: none
  std::optional<io::AdapterFile> adapter;

  bool quantised() const { return config.quantization.has_value(); }
};

// What a person may choose; "" is the format's own choice.
struct Options {
  std::string weights_dtype;  // float32, float16, bfloat16, q8_0: of what is not packed
  std::string offsets_dtype;  // float32, float16: of scales and offsets
};

// What an export would do, known before anything is written.
struct Plan {
  uint64_t bytes = 0;              // of all files
  uint64_t peak_bytes = 0;         // estimated largest memory of the process
  std::vector<std::string> notes;  // what the person should know
};

struct Format {
  const char* name;
  const char* summary;    // for --help: who reads it
  bool is_file;           // --out is a file; else a folder
  const char* next_step;  // a command line that runs it, with OUT for the path, RANK for the adapter's largest
  fs::path (*adapter_file)(const fs::path& out) =
      nullptr;  // where an adapter goes when it gets a file of its own beside a model's
  // Refuses what the container cannot hold, with a sentence that names the format that can (UserError), and what is
  // damaged (DataError).
  Plan (*plan)(const Source& source, const Options& options);
  // Writes `out`, which appears whole or not at all; replace: an existing one gives way. A report a weight matrix,
  // recomputed from what was written.
  std::vector<TensorReport> (*write)(const Source& source, const Options& options, const fs::path& out, bool replace);
};

int64_t largest_rank(const io::AdapterFile& adapter);  // of any module

const std::vector<Format>& formats();
const Format& format_named(const std::string& name);  // UserError with the nearest name

}  // namespace qalora::exporting
