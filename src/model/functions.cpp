#include "qalora/model/functions.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>

#include "qalora/core/error.h"
#include "qalora/tensor/accelerator.h"
#include "qalora/tensor/products.h"

namespace qalora::model {

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

using quant::kernel_type;
using quant::PooledInput;
using tensor::check_status;
using tensor::current_stream;

// The accelerator's kernels where they take rows of this width; else nullptr, and LibTorch's operators do it.
const kernels::cuda::Api* kernels_for(const at::Tensor& rows) {
  return rows.size(-1) % 32 == 0 ? tensor::device_kernels(rows.device()) : nullptr;
}

// Room for a kernel's outputs and their sums, as `pool` asks.
struct PooledOutput {
  at::Tensor values, sums, panel;

  PooledOutput(int64_t rows, int64_t width, const at::TensorOptions& options, const PoolRequest& pool) {
    const int64_t groups = pool.group_size > 0 ? kernels::groups_per_row(width, pool.group_size) : 0;
    if (groups > 0) sums = at::empty({rows, groups}, options.dtype(at::kFloat));
    if (groups > 0 && pool.panel) panel = quant::empty_panel(rows, width, groups, options);
    values = panel.defined() ? panel.narrow(1, 0, width) : at::empty({rows, width}, options);
    output = {sums.defined() ? sums.data_ptr<float>() : nullptr, pool.group_size, panel.defined()};
  }
  kernels::cuda::PoolOutput output;
};

// dh for y = norm(h) * weight. With n = h * r: dh = r * (g - n * mean(g * n)), g = dy * weight; `through` (or
// undefined) is added.
at::Tensor norm_backward(const at::Tensor& dy, const at::Tensor& h, const at::Tensor& weight, const at::Tensor& inverse,
                         const at::Tensor& through) {
  if (const auto* kernels = kernels_for(h)) {
    const at::Tensor rows = dy.contiguous(), added = through.defined() ? through.contiguous() : through,
                     dh = at::empty_like(h);
    check_status(
        kernels->rms_norm_backward(rows.const_data_ptr(), kernel_type(rows.scalar_type()), h.const_data_ptr<float>(),
                                   weight.const_data_ptr<float>(), inverse.const_data_ptr<float>(),
                                   added.defined() ? added.const_data_ptr<float>() : nullptr, h.size(0), h.size(1),
                                   dh.data_ptr<float>(), current_stream(h.device())),
        "rms_norm_backward");
    return dh;
  }
  const at::Tensor normed = h * inverse, g = dy.to(at::kFloat) * weight;
  const at::Tensor dh = (g - normed * (g * normed).mean(-1, /*keepdim=*/true)).mul_(inverse);
  return through.defined() ? dh + through : dh;
}

class RmsNorm : public torch::autograd::Function<RmsNorm> {
 public:
  // sums and panel of *out are filled on an accelerator
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& h, const at::Tensor& weight, double eps,
                            at::ScalarType dtype, const PoolRequest& pool, PooledInput* out) {
    at::Tensor inverse;  // [tokens, 1]
    if (const auto* kernels = kernels_for(h)) {
      PooledOutput y(h.size(0), h.size(1), h.options().dtype(dtype), pool);
      inverse = at::empty({h.size(0), 1}, h.options());
      check_status(
          kernels->rms_norm(h.const_data_ptr<float>(), nullptr, nullptr, weight.const_data_ptr<float>(),
                            static_cast<float>(eps), h.size(0), h.size(1), kernel_type(dtype), y.values.data_ptr(),
                            y.values.stride(0), y.output, inverse.data_ptr<float>(), current_stream(h.device())),
          "rms_norm");
      *out = PooledInput(y.values, y.sums, y.panel);
    } else {
      inverse = h.square().mean(-1, /*keepdim=*/true).add_(eps).rsqrt_();
      *out = PooledInput((h * inverse).mul_(weight).to(dtype));
    }
    ctx->save_for_backward({h, weight, inverse});
    return out->values;
  }

  static tensor_list backward(AutogradContext* ctx, const tensor_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &h = saved[0], &weight = saved[1], &inverse = saved[2];
    at::Tensor dweight;  // sum over tokens of dy * n
    if (ctx->needs_input_grad(1)) dweight = (grads[0].to(at::kFloat) * (h * inverse)).sum(0);
    return {norm_backward(grads[0], h, weight, inverse, {}),
            dweight,
            at::Tensor(),
            at::Tensor(),
            at::Tensor(),
            at::Tensor()};
  }
};

// On an accelerator only: the sum and its norm in one pass, and one pass back. The weight is frozen there.
class AddRmsNorm : public torch::autograd::Function<AddRmsNorm> {
 public:
  // -> h + residual (f32), its norm
  static tensor_list forward(AutogradContext* ctx, const at::Tensor& h, const at::Tensor& residual,
                             const at::Tensor& weight, double eps, const PoolRequest& pool, PooledInput* out) {
    PooledOutput y(h.size(0), h.size(1), residual.options(), pool);
    const at::Tensor sum = at::empty_like(h), inverse = at::empty({h.size(0), 1}, h.options()),
                     added = residual.contiguous();
    check_status(tensor::device_kernels(h.device())
                     ->rms_norm(h.const_data_ptr<float>(), added.const_data_ptr(), sum.data_ptr<float>(),
                                weight.const_data_ptr<float>(), static_cast<float>(eps), h.size(0), h.size(1),
                                kernel_type(added.scalar_type()), y.values.data_ptr(), y.values.stride(0), y.output,
                                inverse.data_ptr<float>(), current_stream(h.device())),
                 "rms_norm");
    *out = PooledInput(y.values, y.sums, y.panel);
    ctx->save_for_backward({sum, weight, inverse});
    ctx->saved_data["dtype"] = residual.scalar_type();
    return {sum, y.values};
  }

  static tensor_list backward(AutogradContext* ctx, const tensor_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const at::Tensor dh =
        grads[1].defined() ? norm_backward(grads[1], saved[0], saved[1], saved[2], grads[0]) : grads[0];
    return {dh, dh.to(ctx->saved_data["dtype"].toScalarType()), at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

class SwiGlu : public torch::autograd::Function<SwiGlu> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& gate, const at::Tensor& up, const PoolRequest& pool,
                            PooledInput* out) {
    ctx->save_for_backward({gate, up});
    const auto* kernels = kernels_for(gate);
    if (kernels == nullptr) {
      *out = PooledInput(at::silu(gate).mul_(up));
      return out->values;
    }
    const at::Tensor g = gate.contiguous(), u = up.contiguous();
    PooledOutput y(g.size(0), g.size(1), g.options(), pool);
    check_status(
        kernels->swiglu(g.const_data_ptr(), u.const_data_ptr(), kernel_type(g.scalar_type()), g.size(0), g.size(1),
                        y.values.data_ptr(), y.values.stride(0), y.output, current_stream(g.device())),
        "swiglu");
    *out = PooledInput(y.values, y.sums, y.panel);
    return out->values;
  }

  static tensor_list backward(AutogradContext* ctx, const tensor_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &gate = saved[0], &up = saved[1];
    const auto* kernels = kernels_for(gate);
    if (kernels == nullptr) {
      return {at::silu_backward(grads[0] * up, gate), grads[0] * at::silu(gate), at::Tensor(), at::Tensor()};
    }
    const at::Tensor g = gate.contiguous(), u = up.contiguous(), dy = grads[0].contiguous(), dgate = at::empty_like(g),
                     dup = at::empty_like(u);
    check_status(kernels->swiglu_backward(dy.const_data_ptr(), g.const_data_ptr(), u.const_data_ptr(),
                                          kernel_type(g.scalar_type()), g.size(0), g.size(1), dgate.data_ptr(),
                                          dup.data_ptr(), current_stream(g.device())),
                 "swiglu_backward");
    return {dgate, dup, at::Tensor(), at::Tensor()};
  }
};

// logits -> losses, and softmax - one_hot(target) in the logits' place when `gradient`. logits: [n, vocab] f32 -> [n]
// f32
at::Tensor cross_entropy(at::Tensor& logits, const at::Tensor& targets, bool gradient) {
  if (const auto* kernels = tensor::device_kernels(logits.device())) {
    const at::Tensor losses = at::empty({logits.size(0)}, logits.options()), wanted = targets.contiguous();
    check_status(kernels->cross_entropy(logits.data_ptr(), kernels::cuda::Type::kFloat, logits.stride(0),
                                        wanted.const_data_ptr<int64_t>(), logits.size(0), logits.size(1), gradient,
                                        losses.data_ptr<float>(), current_stream(logits.device())),
                 "cross_entropy");
    return losses;
  }
  const at::Tensor target = targets.unsqueeze(1);
  logits = at::log_softmax(logits, -1);
  const at::Tensor losses = logits.gather(1, target).squeeze(1).neg();
  if (gradient) logits.exp_().scatter_add_(1, target, at::full(target.sizes(), -1.0, logits.options()));
  return losses;
}

class LinearCrossEntropy : public torch::autograd::Function<LinearCrossEntropy> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& hidden, const at::Tensor& head,
                            const at::Tensor& targets, int64_t chunk, bool with_gradients) {
    const int64_t rows = hidden.size(0);
    const bool wants_hidden = with_gradients && hidden.requires_grad(),
               wants_head = with_gradients && head.requires_grad();
    at::Tensor dhidden = wants_hidden ? at::empty_like(hidden) : at::Tensor();
    at::Tensor dhead = wants_head ? at::zeros_like(head) : at::Tensor();
    at::Tensor total =
        at::zeros({}, hidden.options().dtype(at::kDouble));  // on the device: nothing waits for a chunk's sum
    for (int64_t begin = 0; begin < rows; begin += chunk) {
      const int64_t count = std::min(chunk, rows - begin);
      const at::Tensor x = hidden.narrow(0, begin, count).to(head.scalar_type());
      at::Tensor scores = tensor::product_f32(x, head.t());  // [count, vocab]
      total += cross_entropy(scores, targets.narrow(0, begin, count), wants_hidden || wants_head).sum(at::kDouble);
      if (!wants_hidden && !wants_head) continue;
      if (wants_hidden) dhidden.narrow(0, begin, count).copy_(scores.to(head.scalar_type()).matmul(head));
      if (wants_head) dhead.addmm_(scores.t(), x);
    }
    ctx->save_for_backward({dhidden, dhead});
    return total.to(at::kFloat);
  }

  static tensor_list backward(AutogradContext* ctx, const tensor_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto scaled = [&](const at::Tensor& gradient) {
      return gradient.defined() ? gradient * grads[0] : at::Tensor();
    };
    return {scaled(saved[0]), scaled(saved[1]), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

struct Recomputation : torch::CustomClassHolder {
  explicit Recomputation(std::function<at::Tensor(const at::Tensor&)> function) : run(std::move(function)) {}
  std::function<at::Tensor(const at::Tensor&)> run;
};

class Checkpointed : public torch::autograd::Function<Checkpointed> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& h, const c10::intrusive_ptr<Recomputation>& call) {
    ctx->save_for_backward({h});
    ctx->saved_data["call"] = c10::IValue::make_capsule(call);
    return call->run(h);
  }

  static tensor_list backward(AutogradContext* ctx, const tensor_list& grads) {
    const c10::AutoGradMode with_gradients(true);
    const at::Tensor h = ctx->get_saved_variables()[0].detach().requires_grad_(true);
    const auto call = c10::static_intrusive_pointer_cast<Recomputation>(ctx->saved_data["call"].toCapsule());
    const at::Tensor out = call->run(h);
    torch::autograd::backward({out}, {grads[0]});
    return {h.grad(), at::Tensor()};
  }
};

// [segments, length, heads, head_dim] for segments of one length -> [segments * length, heads * head_dim]
at::Tensor attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, int64_t segments) {
  const auto rows = [&](const at::Tensor& t) {
    return t.reshape({segments, t.size(0) / segments, t.size(1), t.size(2)})
        .transpose(1, 2);  // [segments, heads, length, head_dim]
  };
  const at::Tensor out =
      at::scaled_dot_product_attention(rows(q), rows(k), rows(v), {}, 0.0, /*is_causal=*/true, std::nullopt,
                                       /*enable_gqa=*/q.size(1) != k.size(1));
  return out.transpose(1, 2).reshape({q.size(0), q.size(1) * q.size(2)});
}

}  // namespace

PooledInput rms_norm(const at::Tensor& h, const at::Tensor& weight, double eps, at::ScalarType dtype,
                     const PoolRequest& pool) {
  PooledInput out{at::Tensor()};
  out.values = RmsNorm::apply(h, weight, eps, dtype, pool, &out);
  return out;
}

NormedSum add_rms_norm(const at::Tensor& h, const at::Tensor& residual, const at::Tensor& weight, double eps,
                       at::ScalarType dtype, const PoolRequest& pool) {
  if (kernels_for(h) == nullptr || weight.requires_grad()) {
    const at::Tensor sum = at::add(h, residual);  // f32
    return {sum, rms_norm(sum, weight, eps, dtype, pool)};
  }
  NormedSum out{at::Tensor(), PooledInput(at::Tensor())};
  const tensor_list both = AddRmsNorm::apply(h, residual, weight, eps, pool, &out.normed);
  out.sum = both[0];
  out.normed.values = both[1];
  return out;
}

PooledInput swiglu(const at::Tensor& gate, const at::Tensor& up, const PoolRequest& pool) {
  PooledInput out{at::Tensor()};
  out.values = SwiGlu::apply(gate, up, pool, &out);
  return out;
}

Segments::Segments(std::vector<std::pair<int64_t, int64_t>> all, c10::Device device) : list(std::move(all)) {
  QALORA_CHECK(!list.empty() && list.front().first == 0, "segments start at token 0");
  const auto length = [](const auto& segment) { return segment.second - segment.first; };
  for (const auto& segment : list) longest = std::max(longest, length(segment));
  uniform = std::all_of(list.begin(), list.end(), [&](const auto& segment) { return length(segment) == longest; });
  if (uniform || !device.is_cuda()) return;
  std::vector<int32_t> edges = {0};
  for (const auto& segment : list) edges.push_back(static_cast<int32_t>(segment.second));
  borders = at::tensor(edges, at::kInt).to(device);
}

at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Segments& segments) {
  const int64_t tokens = q.size(0);
  const int64_t count = std::ssize(segments.list);
  QALORA_CHECK(segments.list.back().second == tokens, "segments cover all ", tokens, " tokens");
  if (segments.uniform) return attend(q, k, v, count);
  const bool flash = q.scalar_type() != at::kFloat && q.size(2) % 8 == 0 &&
                     q.size(2) <= 192;  // what its kernels take, backward included
  if (segments.borders.defined() && flash) {
    // One kernel for segments of all lengths: packed rows hold dozens, and a kernel each would leave the GPU waiting
    // for the CPU.
    const at::Tensor out =
        std::get<0>(at::_flash_attention_forward(q, k, v, segments.borders, segments.borders, segments.longest,
                                                 segments.longest, /*dropout_p=*/0.0, /*is_causal=*/true,
                                                 /*return_debug_mask=*/false));
    return out.reshape({tokens, q.size(1) * q.size(2)});
  }
  std::vector<at::Tensor> parts;
  parts.reserve(segments.list.size());
  for (const auto& [begin, end] : segments.list) {
    parts.push_back(attend(q.slice(0, begin, end), k.slice(0, begin, end), v.slice(0, begin, end), 1));
  }
  return at::cat(parts, 0);
}

at::Tensor linear_cross_entropy(const at::Tensor& hidden, const at::Tensor& head, const at::Tensor& targets,
                                int64_t chunk) {
  // Asked here because inside a Function's forward the mode is always off.
  return LinearCrossEntropy::apply(hidden, head, targets, chunk, c10::GradMode::is_enabled());
}

at::Tensor checkpointed(const at::Tensor& h, std::function<at::Tensor(const at::Tensor&)> run) {
  return Checkpointed::apply(h, c10::make_intrusive<Recomputation>(std::move(run)));
}

}  // namespace qalora::model
