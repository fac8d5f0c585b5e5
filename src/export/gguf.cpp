#include "gguf.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <map>
#include <mutex>
#include <optional>

#include "differences.h"
#include "expand.h"
#include "folder.h"
#include "q4_1_check.h"
#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/core/progress.h"
#include "qalora/core/signals.h"
#include "qalora/io/gguf_blocks.h"
#include "qalora/io/gguf_names.h"
#include "rounding.h"

namespace qalora::exporting {
namespace {

using io::GgufType;

constexpr int64_t kPieceBytes = int64_t{16} << 20;  // of f32 rows that are converted at once
constexpr const char* kDivisors = "rope_freqs.weight";

// How one tensor of the model gets into the file.
enum class Way { kPacked, kDense, kDequantised };
struct Item {
  std::string name;  // here
  io::GgufPlanned there;
  Way way = Way::kDense;
  bool permuted = false;
};

std::string where(const Source& source, const std::string& name) {
  return message(source.checkpoint.file_of(name).string(), ": tensor '", name, "'");
}

GgufType stored_type(io::Dtype dtype) {
  return dtype == io::Dtype::kF16 ? GgufType::kF16 : dtype == io::Dtype::kBF16 ? GgufType::kBF16 : GgufType::kF32;
}

at::ScalarType scalar_type(GgufType type) {
  return type == GgufType::kF16 ? at::kHalf : type == GgufType::kBF16 ? at::kBFloat16 : at::kFloat;
}

// Of --dtype-of-weights; nothing when it was not given.
std::optional<GgufType> chosen_type(const Options& options) {
  static const std::map<std::string, GgufType> names = {{"float32", GgufType::kF32},
                                                        {"float16", GgufType::kF16},
                                                        {"bfloat16", GgufType::kBF16},
                                                        {"q8_0", GgufType::kQ8_0}};
  if (options.weights_dtype.empty()) return std::nullopt;
  const auto found = names.find(options.weights_dtype);
  QALORA_REQUIRE(found != names.end(), UserError,
                 "--dtype-of-weights: expected float32, float16, bfloat16 or q8_0, got '", options.weights_dtype, "'",
                 did_you_mean(options.weights_dtype, {"float32", "float16", "bfloat16", "q8_0"}));
  return found->second;
}

// Why Q4_1 cannot hold these codes; "" when it can.
std::string misfit(const quant::PackedWeight& weight) {
  if (weight.bits > 4) return message("has codes of ", weight.bits, " bits, and Q4_1's have 4");
  if (weight.in_features % io::kGgufBlock != 0)
    return message("has ", weight.in_features, " inputs, not a multiple of Q4_1's blocks of 32");
  if (weight.group_size != weight.in_features && weight.group_size % io::kGgufBlock != 0) {
    return message("is quantised in groups of ", weight.group_size, ", not a multiple of Q4_1's blocks of 32");
  }
  return "";
}

// Shapes alone, without reading any codes.
quant::PackedWeight outline(const Source& source, const model::ExpectedTensor& tensor) {
  const model::QuantizationConfig quantization = source.config.quantization->of(io::module_of(tensor.name));
  quant::PackedWeight weight;
  weight.in_features = tensor.shape[1];
  weight.bits = quantization.bits;
  weight.group_size = quantization.group_size == quant::kWholeRow ? weight.in_features : quantization.group_size;
  return weight;
}

GgufType type_for(const Source& source, const Options& options, const model::ExpectedTensor& tensor, Way& way) {
  const auto chosen = chosen_type(options);
  if (model::is_packed(source.checkpoint, tensor.name)) {
    const std::string why = misfit(outline(source, tensor));
    way = why.empty() ? Way::kPacked : Way::kDequantised;
    if (why.empty()) return GgufType::kQ4_1;
    QALORA_REQUIRE(chosen, UserError, where(source, tensor.name), " ", why,
                   "; choose what it becomes with --dtype-of-weights (float16 and q8_0 "
                   "round it), or export it with --to safetensors");
    return *chosen;
  }
  if (tensor.shape.size() < 2) return GgufType::kF32;  // the engine adds norms and biases in f32
  return chosen.value_or(stored_type(source.checkpoint.info(tensor.name).dtype));
}

std::vector<Item> plan_items(const Source& source, const Options& options) {
  std::vector<Item> items;
  for (const auto& tensor : model::expected_tensors(source.config)) {
    const auto name = io::name_to_gguf(tensor.name);
    QALORA_REQUIRE(name, UserError, where(source, tensor.name),
                   " has no place in a GGUF file; export the model with --to safetensors");
    Item item{.name = tensor.name, .there = {.name = *name, .type = GgufType::kF32, .shape = tensor.shape}};
    item.there.type = type_for(source, options, tensor, item.way);
    QALORA_REQUIRE(item.there.type != GgufType::kQ8_0 || tensor.shape.back() % io::kGgufBlock == 0, UserError,
                   where(source, tensor.name), " has rows of ", tensor.shape.back(),
                   " numbers, not a multiple of q8_0's blocks of 32; choose float16");
    item.permuted = is_permuted(source.config, tensor.name);
    items.push_back(std::move(item));
  }
  return items;
}

std::vector<io::GgufPlanned> plan_tensors(const Source& source, const std::vector<Item>& items) {
  std::vector<io::GgufPlanned> plan;
  if (source.config.rope.kind == model::RopeKind::kLlama3)
    plan.push_back({kDivisors, GgufType::kF32, {source.config.head_dim / 2}});
  for (const Item& item : items) plan.push_back(item.there);
  return plan;
}

// The label that says what most of the weights are.
int64_t file_type(const std::vector<Item>& items) {
  std::map<GgufType, int64_t> count;
  for (const Item& item : items) count[item.there.type] += item.name.ends_with("_proj.weight") ? 1 : 0;
  const auto most =
      std::max_element(count.begin(), count.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  switch (most->first) {
    case GgufType::kQ4_1: return 3;
    case GgufType::kQ8_0: return 7;
    case GgufType::kF16: return 1;
    case GgufType::kBF16: return 32;
    default: return 0;
  }
}

bool any_blocks(const std::vector<Item>& items) {
  return std::any_of(items.begin(), items.end(),
                     [](const Item& item) { return io::gguf_code_bits(item.there.type) > 0; });
}

// Largest distance in steps of the grid, over rows that several threads look at.
class LargestError {
 public:
  void raise(double value) {
    const std::lock_guard lock(mutex_);
    exporting::raise(largest_, value);
  }
  double value() const { return largest_; }

 private:
  std::mutex mutex_;
  double largest_ = 0;
};

class Exporter {
 public:
  Exporter(const Source& source, const fs::path& out, const io::GgufMetadata& metadata,
           std::vector<io::GgufPlanned> plan)
      : source_(source),
        writer_(out, metadata, std::move(plan)) {}

  void write_divisors(const std::vector<float>& divisors) {
    writer_.write(kDivisors, std::as_bytes(std::span(divisors)));
  }

  TensorReport write(const Item& item) {
    TensorReport report{.tensor = item.name};
    if (item.way == Way::kPacked) {
      packed(item, report);
    } else {
      dense(item, report);
    }
    return report;
  }

  void finish() { writer_.finish(); }

 private:
  void packed(const Item& item, TensorReport& report) {
    const quant::PackedWeight weight =
        read_packed(source_, {io::module_of(item.name), item.there.shape[0], item.there.shape[1]});
    const at::Tensor scales = weight.scales.to(at::kHalf), offsets = weight.offsets.to(at::kHalf);
    count_rounding(weight.scales, scales, report);
    count_rounding(weight.offsets, offsets, report);
    QALORA_REQUIRE(report.overflow == 0, UserError, where(source_, item.name), ": ", report.overflow,
                   " of its scales and offsets are above 65504, "
                   "the largest number of Q4_1's 16 bits; export the model with --to mlx or --to safetensors");
    const int64_t rows = weight.out_features(), blocks = weight.in_features / io::kGgufBlock,
                  words = weight.codes.size(1), groups = weight.groups();
    std::vector<std::byte> bytes(item.there.bytes());
    const size_t row_bytes = bytes.size() / static_cast<size_t>(rows);
    const auto* codes = reinterpret_cast<const uint32_t*>(weight.codes.const_data_ptr<int32_t>());
    const auto* s = static_cast<const uint16_t*>(scales.const_data_ptr());
    const auto* o = static_cast<const uint16_t*>(offsets.const_data_ptr());
    LargestError largest;
    at::parallel_for(0, rows, 8, [&](int64_t begin, int64_t end) {
      RowCheck check(weight);
      double here = 0;
      for (int64_t there = begin; there < end; ++there) {
        const int64_t row = item.permuted ? row_from_gguf(there, source_.config.head_dim) : there;
        std::byte* out = bytes.data() + row_bytes * static_cast<size_t>(there);
        io::gguf_pack_q4_1(codes + row * words, weight.bits, s + row * groups, o + row * groups, weight.group_size,
                           blocks, out);
        here = std::max(here, check.error(row, out));
      }
      largest.raise(here);
    });
    report.largest_error = largest.value();
    writer_.write(item.there.name, bytes);
  }

  at::Tensor stored(const Item& item) const {
    if (item.way == Way::kDequantised) {
      return read_packed(source_, {io::module_of(item.name), item.there.shape[0], item.there.shape[1]})
          .dequantize(at::kFloat);
    }
    return source_.checkpoint.read(item.name);
  }

  // The same rows in the file's order.
  at::Tensor reordered(const Item& item, const at::Tensor& values) const {
    if (!item.permuted) return values;
    std::vector<int64_t> rows;
    for (int64_t row = 0; row < values.size(0); ++row) rows.push_back(row_from_gguf(row, source_.config.head_dim));
    return values.index_select(0, at::tensor(rows, at::kLong));
  }

  void dense(const Item& item, TensorReport& report) {
    if (item.way == Way::kDense && stored_type(source_.checkpoint.info(item.name).dtype) == item.there.type)
      return copied(item);
    at::Tensor values = reordered(item, stored(item));
    source_.checkpoint.release(item.name);
    require_finite(item, io::tensor_bytes(values), values.scalar_type());
    if (item.there.type == GgufType::kQ8_0) return q8_0(item, values, report);
    values = round_tensor(values, scalar_type(item.there.type), report);
    QALORA_REQUIRE(report.overflow == 0, UserError, where(source_, item.name), ": ", report.overflow,
                   " of its numbers are too large for 16 bits; choose --dtype-of-weights float32");
    writer_.write(item.there.name, io::tensor_bytes(values));
  }

  // What is stored in the type that it gets.
  void copied(const Item& item) {
    const io::TensorBytes stored = source_.checkpoint.bytes(item.name);
    require_finite(item, stored.span, scalar_type(item.there.type));
    if (item.permuted) {
      const int64_t rows = item.there.shape[0];
      const size_t row_bytes = stored.span.size() / static_cast<size_t>(rows);
      std::vector<std::byte> bytes(stored.span.size());
      for (int64_t there = 0; there < rows; ++there) {
        const auto row = static_cast<size_t>(row_from_gguf(there, source_.config.head_dim));
        std::memcpy(bytes.data() + static_cast<size_t>(there) * row_bytes, stored.span.data() + row * row_bytes,
                    row_bytes);
      }
      writer_.write(item.there.name, bytes);
    } else {
      writer_.write(item.there.name, stored.span);
    }
    source_.checkpoint.release(item.name);
  }

  void require_finite(const Item& item, std::span<const std::byte> values, at::ScalarType type) const {
    QALORA_REQUIRE(all_finite(values, type), DataError, where(source_, item.name), " holds values that are not finite");
  }

  // In pieces, each f32 for a while. values: [rows, columns], finite
  void q8_0(const Item& item, const at::Tensor& values, TensorReport& report) {
    const int64_t rows = values.size(0), step = std::max<int64_t>(1, kPieceBytes / (4 * values.size(1)));
    double largest = 0, size = 0;
    for (int64_t begin = 0; begin < rows; begin += step) {
      throw_if_stopped();
      const at::Tensor exact = values.narrow(0, begin, std::min(step, rows - begin)).to(at::kFloat).contiguous();
      const at::Tensor bytes = q8_0_blocks(item, exact), read = read_back(bytes, exact.sizes());
      TensorReport piece;
      compare_dense(exact, read, piece);
      report.flushed += (exact.ne(0) & read.eq(0)).sum().item<int64_t>();
      const double here = exact.abs().max().item<double>();
      size = std::max(size, here);
      if (piece.largest_error != 0) largest = std::max(largest, piece.largest_error * here);
      writer_.write(item.there.name, io::tensor_bytes(bytes));
    }
    report.largest_error = largest == 0 ? 0 : largest / size;
  }

  // exact: [rows, columns] f32 -> its bytes in the file, [rows, bytes of a row] u8
  at::Tensor q8_0_blocks(const Item& item, const at::Tensor& exact) const {
    const int64_t rows = exact.size(0), columns = exact.size(1);
    const int64_t row_bytes = columns / io::kGgufBlock * io::gguf_layout(GgufType::kQ8_0).block_bytes;
    const at::Tensor bytes = at::empty({rows, row_bytes}, at::kByte);
    std::atomic<bool> fits = true;
    at::parallel_for(0, rows, 16, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const bool good = io::gguf_pack_q8_0(exact.const_data_ptr<float>() + row * columns, columns / io::kGgufBlock,
                                             reinterpret_cast<std::byte*>(bytes.data_ptr<uint8_t>() + row * row_bytes));
        if (!good) fits = false;
      }
    });
    QALORA_REQUIRE(fits, UserError, where(source_, item.name),
                   " has numbers that are too large for q8_0; choose --dtype-of-weights float32");
    return bytes;
  }

  static at::Tensor read_back(const at::Tensor& bytes, at::IntArrayRef shape) {
    at::Tensor values = at::empty(shape, at::kFloat);
    const int64_t columns = shape[1], row_bytes = bytes.size(1);
    at::parallel_for(0, shape[0], 16, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        io::gguf_row_values(GgufType::kQ8_0,
                            reinterpret_cast<const std::byte*>(bytes.const_data_ptr<uint8_t>() + row * row_bytes),
                            columns / io::kGgufBlock, values.data_ptr<float>() + row * columns);
      }
    });
    return values;
  }

  const Source& source_;
  io::GgufWriter writer_;
};

void check_source(const Source& source, const Options& options) {
  refuse_option(options.offsets_dtype, "--dtype-of-offsets", "gguf, whose blocks have 16-bit scales and offsets");
  refuse_permuted(source, "GGUF");
  check_gguf_rope(source);
  if (source.adapter) check_adapter(source);
}

}  // namespace

Plan plan_gguf(const Source& source, const Options& options) {
  check_source(source, options);
  const std::vector<Item> items = plan_items(source, options);
  const std::vector<io::GgufPlanned> tensors = plan_tensors(source, items);
  Plan plan;
  const io::GgufMetadata metadata = gguf_metadata(source, file_type(items), any_blocks(items), plan.notes);
  plan.bytes = io::gguf_file_bytes(metadata, tensors) + (source.adapter ? gguf_adapter_bytes(source) : 0);
  uint64_t largest = 0;
  for (const auto& item : items) {
    largest = std::max(largest, item.there.bytes() + source.checkpoint.info(item.name).bytes());
    if (item.way == Way::kDequantised)
      largest = std::max<uint64_t>(largest, 4 * static_cast<uint64_t>(item.there.shape[0] * item.there.shape[1]));
  }
  plan.peak_bytes = peak_bytes({}, 0) + 2 * largest;
  if (source.adapter)
    plan.notes.push_back(
        "the adapter goes into a file of its own beside the model's, as GGUF LoRA; give both to the engine");
  return plan;
}

std::vector<TensorReport> write_gguf(const Source& source, const Options& options, const fs::path& out, bool replace) {
  const std::vector<Item> items = plan_items(source, options);
  const fs::path beside = gguf_adapter_path(out);
  QALORA_REQUIRE(!source.adapter || replace || kind_of(beside) == fs::file_type::not_found, UserError,
                 "--out: the adapter's file ", beside.string(),
                 " exists already; choose another place or give --force to replace it");
  std::vector<std::string> notes;
  Exporter exporter(source, out, gguf_metadata(source, file_type(items), any_blocks(items), notes),
                    plan_tensors(source, items));
  if (const auto divisors = gguf_rope_divisors(source.config); !divisors.empty()) exporter.write_divisors(divisors);
  Progress progress("exporting", static_cast<int64_t>(items.size()), "tensors");
  std::vector<TensorReport> reports;
  for (const Item& item : items) {
    throw_if_stopped();
    TensorReport report = exporter.write(item);
    if (item.there.shape.size() > 1) reports.push_back(std::move(report));
    progress.add();
  }
  // Both are whole before either appears: the adapter of a model that failed would be taken for another one's.
  const auto adapter = source.adapter ? write_gguf_adapter(source, beside) : nullptr;
  exporter.finish();
  if (adapter) adapter->finish();
  return reports;
}

}  // namespace qalora::exporting
