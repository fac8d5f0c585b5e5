#include "qalora/model/gptq_checkpoint.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <memory>

#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/core/interrupted.h"
#include "qalora/core/log.h"
#include "qalora/core/progress.h"
#include "qalora/core/signals.h"
#include "qalora/model/calibration_pass.h"
#include "qalora/model/load.h"
#include "qalora/model/work_folder.h"
#include "qalora/tensor/accelerator.h"
#include "qalora/tensor/device.h"
#include "qalora/tensor/dtype.h"

namespace qalora::model {
namespace {

using nlohmann::json;

// Adds the time of its life to a sum.
class Stopwatch {
 public:
  explicit Stopwatch(double& sum) : sum_(sum), start_(std::chrono::steady_clock::now()) {}
  ~Stopwatch() { sum_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

 private:
  double& sum_;
  std::chrono::steady_clock::time_point start_;
};

int64_t batch_rows(const text::Calibration& calibration, const GptqSettings& settings) {
  if (settings.batch_size > 0) return settings.batch_size;
  return std::max<int64_t>(1,
                           GptqSettings::kBatchTokens / std::max<int64_t>(1, std::ssize(calibration.rows.front().ids)));
}

// Everything that a block's bytes follow from. Not the number of threads: a person may go on with fewer.
json identity_of(const io::Checkpoint& checkpoint, const text::Calibration& calibration, const GptqSettings& settings) {
  const quant::GptqOptions& solver = settings.solver;
  return {
      {"format", 2},
      {"model", settings.model_fingerprint.empty() ? io::dense_fingerprint(checkpoint) : settings.model_fingerprint},
      {"calibration", calibration.digest()},
      {"bits", solver.bits},
      {"group_size", solver.group_size},
      {"damping", solver.damping},
      {"static_groups", solver.static_groups},
      {"search_scale", solver.search == quant::ScaleSearch::kMse ? "mse" : "minmax"},
      {"act_order", solver.act_order},
      {"integer_zeros", solver.integer_zeros},
      {"refit", solver.refit},
      {"sweeps", solver.sweeps},
      {"one_pass", settings.one_pass},
      {"batch_size", batch_rows(calibration, settings)},
      {"dtype", tensor::dtype_name(settings.compute)},
      {"device", settings.device.is_cpu() ? "cpu" : "accelerator"}};
}

json json_of(const GptqLayer& layer) {
  return {{"name", layer.name},
          {"error", layer.error},
          {"loss", layer.loss},
          {"loss_before_refit", layer.loss_before_refit},
          {"damping", layer.damping},
          {"loss_round_to_nearest", layer.loss_round_to_nearest},
          {"dead_inputs", layer.dead_inputs}};
}

GptqLayer layer_of(const json& value) {
  return {value.at("name"),
          value.at("error"),
          value.at("loss"),
          value.at("loss_before_refit"),
          value.at("loss_round_to_nearest"),
          value.at("damping"),
          value.at("dead_inputs")};
}

// Of the place where states lie.
uint64_t free_bytes(c10::Device device) {
  if (device.is_cpu()) return tensor::available_memory_bytes();
  return tensor::accelerator()->memory(device.index() < 0 ? 0 : device.index()).free;
}

// The projections that read the same inputs, in the order of the true-sequential pass.
using Projection = Linear Layer::*;
const std::vector<std::vector<Projection>> kGroups = {
    {&Layer::q, &Layer::k, &Layer::v}, {&Layer::o}, {&Layer::gate, &Layer::up}, {&Layer::down}};

const char* name_of(Projection member) {
  for (const auto& projection : kProjections) {
    if (projection.member == member) return projection.name;
  }
  throw InternalError("internal error: a projection without a name");
}

// H and what becomes of it (damped, factor, inverse), and a matrix with its errors, codes and restored values.
// in_features: of the widest matrix, elements: of the largest
uint64_t solver_bytes(uint64_t in_features, uint64_t elements) {
  return 20 * in_features * in_features + 20 * elements;
}

// What each thread holds beside that: its rows at work, and the refit's normal equations with their factor and a copy,
// of as many rows at once as fit into 2^20 doubles, at least 8.
uint64_t thread_bytes(uint64_t in_features, const quant::GptqOptions& solver) {
  const uint64_t size = solver.group_size == quant::kWholeRow ? in_features : static_cast<uint64_t>(solver.group_size);
  const uint64_t unknowns = 2 * ((in_features + size - 1) / size);
  const uint64_t equations = solver.refit ? 3 * 8 * std::max(uint64_t{1} << 20, 8 * unknowns * unknowns) : 0;
  return equations + quant::kGptqRows * in_features * 48;
}

// The tensors that stay as they are are checked when they are written, which is behind hours of work on the others.
void require_finite_rest(const io::Checkpoint& checkpoint, const LlamaConfig& config) {
  for (const ExpectedTensor& tensor : expected_tensors(config)) {
    if (tensor.linear) continue;
    require_finite(checkpoint, tensor.name, checkpoint.read(tensor.name));
    checkpoint.release(tensor.name);
  }
}

class Run {
 public:
  Run(const io::Checkpoint& checkpoint, const QuantizePlan& plan, const text::Calibration& calibration,
      const GptqSettings& settings, WorkFolder& work)
      : checkpoint_(checkpoint),
        plan_(plan),
        settings_(settings),
        load_{.compute = settings.compute, .device = settings.device},
        work_(work),
        pass_(checkpoint.folder().string(), plan.config, calibration.rows,
              {settings.compute, settings.device, batch_rows(calibration, settings),
               gptq_memory(checkpoint, plan, calibration, settings).keep_products}),
        progress_("quantising", plan.linears - 7 * work.finished(), "matrices") {}

  GptqReport run() {
    report_.resumed_blocks = work_.finished();
    if (work_.finished() < plan_.config.layers) embed();
    for (int64_t block = 0; block < plan_.config.layers; ++block) {
      throw_if_stopped();
      block < report_.resumed_blocks ? walk(block) : quantise(block);
    }
    progress_.finish();
    for (int64_t block = 0; block < plan_.config.layers; ++block) {
      for (const json& layer : work_.report(block)) report_.layers.push_back(layer_of(layer));
    }
    return std::move(report_);
  }

 private:
  bool last(int64_t block) const { return block + 1 == plan_.config.layers; }

  void embed() {
    const Stopwatch watch(report_.forward_seconds);
    const std::string name = "model.embed_tokens.weight";
    const at::Tensor embedding = checkpoint_.read(name, {plan_.config.vocab_size, plan_.config.hidden_size});
    checkpoint_.release(name);
    pass_.embed(embedding.to(settings_.device));
  }

  // A block that an earlier call finished: its output is the next one's input.
  void walk(int64_t block) {
    if (report_.resumed_blocks == plan_.config.layers) return;
    Layer layer = load_layer_frame(checkpoint_, plan_.config, load_, block);
    for (const auto& [module, weight] : work_.load(block).weights) {
      for (const auto& projection : kProjections) {
        if (layer_prefix(block) + projection.name == module) place(layer, projection.member, module, weight);
      }
    }
    const Stopwatch watch(report_.forward_seconds);
    pass_.run(layer);
  }

  void quantise(int64_t block) {
    progress_.update(done_, message("block ", block + 1, "/", plan_.config.layers));
    Layer layer = load_layer_frame(checkpoint_, plan_.config, load_, block);
    finished_ = {};
    settings_.one_pass ? quantise_at_once(block, layer) : quantise_in_sequence(block, layer);
    finished_.report = json::array();
    for (const auto& projection : kProjections)
      finished_.report.push_back(reports_.at(layer_prefix(block) + projection.name));
    work_.save(block, finished_);
    if (settings_.on_block) settings_.on_block(block);
  }

  void quantise_in_sequence(int64_t block, Layer& layer) {
    using Step = void (CalibrationPass::*)(const std::string&, const Layer&, const CalibrationPass::Observe&);
    constexpr Step kSteps[] = {&CalibrationPass::attention_input, &CalibrationPass::attend, &CalibrationPass::mlp_input,
                               &CalibrationPass::mlp_product};
    for (size_t step = 0; step < kGroups.size(); ++step) {
      at::Tensor hessian;
      {
        quant::Hessian gathered = new_hessian(kGroups[step]);
        timed([&] { (pass_.*kSteps[step])(layer_prefix(block), layer, observer(gathered)); });
        hessian = matrix_of(gathered);
      }
      solve(block, layer, kGroups[step], hessian);
    }
    if (!last(block)) timed([&] { pass_.finish(layer); });
  }

  void quantise_at_once(int64_t block, Layer& layer) {
    std::vector<at::Tensor> hessians;
    {
      std::vector<quant::Hessian> gathered;
      for (const auto& group : kGroups) gathered.push_back(new_hessian(group));
      const Layer dense = load_layer(checkpoint_, plan_.config, load_, block);
      std::vector<CalibrationPass::Observe> observers;
      for (quant::Hessian& hessian : gathered) observers.push_back(observer(hessian));
      timed([&] { pass_.observe_all(layer_prefix(block), dense, observers); });
      for (const quant::Hessian& hessian : gathered) hessians.push_back(matrix_of(hessian));
    }
    for (size_t step = 0; step < kGroups.size(); ++step) solve(block, layer, kGroups[step], hessians[step]);
    if (!last(block)) timed([&] { pass_.run(layer); });
  }

  quant::Hessian new_hessian(const std::vector<Projection>& group) const {
    const int64_t head_inputs = plan_.config.heads * plan_.config.head_dim;
    const int64_t in_features = group.front() == &Layer::o      ? head_inputs
                                : group.front() == &Layer::down ? plan_.config.intermediate_size
                                                                : plan_.config.hidden_size;
    return quant::Hessian(in_features, settings_.device);
  }

  CalibrationPass::Observe observer(quant::Hessian& hessian) {
    return [&](const at::Tensor& x) {
      const Stopwatch watch(report_.hessian_seconds);
      hessian.add(x);
    };
  }

  // What the Hessians took of it is counted there.
  template <typename Work>
  void timed(const Work& work) {
    const double before = report_.hessian_seconds;
    {
      const Stopwatch watch(report_.forward_seconds);
      work();
    }
    report_.forward_seconds -= report_.hessian_seconds - before;
  }

  at::Tensor matrix_of(const quant::Hessian& gathered) {
    const Stopwatch watch(report_.hessian_seconds);
    return gathered.matrix();
  }

  void solve(int64_t block, Layer& layer, const std::vector<Projection>& group, const at::Tensor& hessian) {
    std::unique_ptr<const quant::GptqSolver> solver;
    for (const Projection member : group) {
      throw_if_stopped();
      const std::string module = layer_prefix(block) + name_of(member), name = module + ".weight";
      const std::string where = message(checkpoint_.file_of(name).string(), ": tensor '", name, "'");
      quant::GptqResult result;
      {
        const Stopwatch watch(report_.solver_seconds);
        if (!solver) solver = std::make_unique<const quant::GptqSolver>(where, hessian, settings_.solver);
        const at::Tensor weight = checkpoint_.read(name);
        checkpoint_.release(name);
        result = solver->solve(where, weight);
      }
      report(module, result);
      place(layer, member, module, result.weight);
      finished_.weights[module] = std::move(result.weight);
      progress_.update(++done_, message("block ", block + 1, "/", plan_.config.layers));
    }
  }

  void report(const std::string& module, const quant::GptqResult& result) {
    if (result.damping > settings_.solver.damping) {
      log::warn(message(module,
                        ": the inputs of the calibration's tokens depend on one another; damping was raised from ",
                        settings_.solver.damping, " to ", result.damping,
                        " of the Hessian's mean diagonal. More or longer samples may help"));
    }
    log::verbose(message(module, ": loss ", result.loss, ", of rounding to nearest ", result.loss_round_to_nearest,
                         ", ", result.dead_inputs, " inputs always zero"));
    reports_[module] = json_of({module, result.error, result.loss, result.loss_before_refit,
                                result.loss_round_to_nearest, result.damping, result.dead_inputs});
  }

  // The layer that runs from now on: dequantised once, for it multiplies all the calibration's tokens; rounding its
  // weights to 16 bits moves them by a hundredth of what 4 bits do.
  void place(Layer& layer, Projection member, const std::string& module, const quant::PackedWeight& weight) const {
    Linear placed(module, weight.dequantize(settings_.compute));
    placed.to(settings_.device);
    placed.bias = (layer.*member).bias;
    layer.*member = std::move(placed);
  }

  const io::Checkpoint& checkpoint_;
  const QuantizePlan& plan_;
  const GptqSettings& settings_;
  LoadOptions load_;
  WorkFolder& work_;
  CalibrationPass pass_;
  Progress progress_;
  int64_t done_ = 0;  // matrices of this call
  FinishedBlock finished_;
  std::map<std::string, json> reports_;
  GptqReport report_;
};

}  // namespace

GptqMemory gptq_memory(const io::Checkpoint& checkpoint, const QuantizePlan& plan, const text::Calibration& calibration,
                       const GptqSettings& settings) {
  const LlamaConfig& c = plan.config;
  const uint64_t width = settings.compute == at::kFloat ? 4 : 2, tokens = static_cast<uint64_t>(calibration.tokens);
  const auto hidden = static_cast<uint64_t>(c.hidden_size), inner = static_cast<uint64_t>(c.intermediate_size);
  const auto heads = static_cast<uint64_t>(c.heads * c.head_dim);
  GptqMemory memory;
  const uint64_t states = tokens * hidden * 4, mixed = tokens * heads * width, products = tokens * inner * width;
  // Kept where they take less than a third of what is free.
  memory.keep_products = products < free_bytes(settings.device) / 3;
  memory.activations = states + tokens * static_cast<uint64_t>(c.head_dim) * 8 +
                       (memory.keep_products ? std::max(mixed, products) : mixed);
  uint64_t weights = 0, widest = 0, largest = 0;
  for (const ExpectedTensor& tensor : expected_tensors(c)) {
    if (!tensor.linear || !tensor.name.starts_with(layer_prefix(0))) continue;
    const auto elements = static_cast<uint64_t>(tensor.shape[0]) * static_cast<uint64_t>(tensor.shape[1]);
    weights += elements;
    largest = std::max(largest, elements);
    widest = std::max(widest, static_cast<uint64_t>(tensor.shape[1]));
  }
  const double packed = static_cast<double>(weights) * plan.bits_per_weight / 8;
  memory.blocks = weights * width * (settings.one_pass ? 2 : 1) + static_cast<uint64_t>(packed);
  const uint64_t batch = static_cast<uint64_t>(batch_rows(calibration, settings)) * calibration.rows.front().ids.size();
  const auto threads = settings.device.is_cpu() ? static_cast<uint64_t>(tensor::threads()) : 1;
  memory.solver = solver_bytes(widest, largest) + threads * thread_bytes(widest, settings.solver);
  if (settings.one_pass)
    memory.solver += 8 * (2 * hidden * hidden + heads * heads + inner * inner);  // all Hessians at once, in float64
  memory.forward = std::min(batch, tokens) * (hidden * 12 + heads * width * 4 + inner * (4 + 3 * width));
  memory.embedding = 2 * checkpoint.info("model.embed_tokens.weight").bytes();
  memory.peak = tensor::peak_memory_bytes() + 150'000'000 + memory.activations +
                std::max(memory.embedding, memory.blocks + std::max(memory.solver, memory.forward));
  return memory;
}

GptqReport gptq_checkpoint(const io::Checkpoint& checkpoint, const QuantizePlan& plan,
                           const text::Calibration& calibration, const GptqSettings& settings, const fs::path& out,
                           bool force) {
  QALORA_CHECK(
      settings.solver.bits == plan.quantization.bits && settings.solver.group_size == plan.quantization.group_size,
      "plan and solver agree");
  const c10::NoGradGuard no_grad;
  WorkFolder work(out, identity_of(checkpoint, calibration, settings), force);
  const int64_t before = work.finished();
  try {
    const AtomicFolder probe(out, force, gptq_disk_bytes(plan, out, before));
    if (before == 0) require_finite_rest(checkpoint, plan.config);
  } catch (...) {
    if (before == 0) work.remove();
    throw;
  }
  if (before > 0)
    log::info(message(work.path().string(), ": ", before, " of ", plan.config.layers,
                      " blocks are finished; going on behind them"));
  GptqReport report;
  try {
    report = Run(checkpoint, plan, calibration, settings, work).run();
  } catch (const Interrupted& stop) {
    log::info(message(work.finished(), " of ", plan.config.layers, " blocks are kept in ", work.path().string(),
                      "; the same command goes on behind them"));
    throw InterruptedAndTold(stop);
  }
  write_quantized_checkpoint(checkpoint, plan, out, force, [&](const std::string& module) {
    int64_t block = 0;
    while (!module.starts_with(layer_prefix(block))) ++block;
    return work.weight(block, module);
  });
  work.remove();
  return report;
}

int64_t finished_blocks(const io::Checkpoint& checkpoint, const text::Calibration& calibration,
                        const GptqSettings& settings, const fs::path& out) {
  return WorkFolder::finished_in(out, identity_of(checkpoint, calibration, settings));
}

uint64_t gptq_disk_bytes(const QuantizePlan& plan, const fs::path& out, int64_t finished) {
  return 2 * plan.disk_bytes - std::min(plan.disk_bytes, WorkFolder::bytes_in(out, finished));
}

}  // namespace qalora::model
