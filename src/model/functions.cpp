#include "qalora/model/functions.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>

#include "qalora/core/error.h"

namespace qalora::model {

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

class RmsNorm : public torch::autograd::Function<RmsNorm> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& h, const at::Tensor& weight, double eps, at::ScalarType dtype) {
    const at::Tensor inverse = h.square().mean(-1, /*keepdim=*/true).add_(eps).rsqrt_();  // [tokens, 1]
    ctx->save_for_backward({h, weight, inverse});
    return (h * inverse).mul_(weight).to(dtype);
  }

  // With n = h * r: dh = r * (g - n * mean(g * n)), g = dy * weight; dweight = sum over tokens of dy * n.
  static tensor_list backward(AutogradContext* ctx, const tensor_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &h = saved[0], &weight = saved[1], &inverse = saved[2];
    const at::Tensor dy = grads[0].to(at::kFloat), normed = h * inverse;
    at::Tensor dweight;
    if (ctx->needs_input_grad(1)) dweight = (dy * normed).sum(0);
    const at::Tensor g = dy * weight;
    const at::Tensor dh = (g - normed * (g * normed).mean(-1, /*keepdim=*/true)).mul_(inverse);
    return {dh, dweight, at::Tensor(), at::Tensor()};
  }
};

class SwiGlu : public torch::autograd::Function<SwiGlu> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& gate, const at::Tensor& up) {
    ctx->save_for_backward({gate, up});
    return at::silu(gate).mul_(up);
  }

  static tensor_list backward(AutogradContext* ctx, const tensor_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &gate = saved[0], &up = saved[1];
    return {at::silu_backward(grads[0] * up, gate), grads[0] * at::silu(gate)};
  }
};

class LinearCrossEntropy : public torch::autograd::Function<LinearCrossEntropy> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& hidden, const at::Tensor& head, const at::Tensor& targets,
                            int64_t chunk, bool with_gradients) {
    const int64_t rows = hidden.size(0);
    const bool wants_hidden = with_gradients && hidden.requires_grad(), wants_head = with_gradients && head.requires_grad();
    at::Tensor dhidden = wants_hidden ? at::empty_like(hidden) : at::Tensor();
    at::Tensor dhead = wants_head ? at::zeros_like(head) : at::Tensor();
    double total = 0;
    for (int64_t begin = 0; begin < rows; begin += chunk) {
      const int64_t count = std::min(chunk, rows - begin);
      const at::Tensor x = hidden.narrow(0, begin, count), target = targets.narrow(0, begin, count).unsqueeze(1);
      at::Tensor scores = at::log_softmax(x.matmul(head.t()), -1);  // [count, vocab]
      total -= scores.gather(1, target).sum(at::kDouble).item<double>();
      if (!wants_hidden && !wants_head) continue;
      // d loss / d logits = softmax - one_hot(target)
      scores.exp_().scatter_add_(1, target, at::full(target.sizes(), -1.0, scores.options()));
      if (wants_hidden) dhidden.narrow(0, begin, count).copy_(scores.matmul(head));
      if (wants_head) dhead.addmm_(scores.t(), x);
    }
    ctx->save_for_backward({dhidden, dhead});
    return at::scalar_tensor(total, at::kFloat);
  }

  static tensor_list backward(AutogradContext* ctx, const tensor_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto scaled = [&](const at::Tensor& gradient) { return gradient.defined() ? gradient * grads[0] : at::Tensor(); };
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
    return t.reshape({segments, t.size(0) / segments, t.size(1), t.size(2)}).transpose(1, 2);  // [segments, heads, length, head_dim]
  };
  const at::Tensor out = at::scaled_dot_product_attention(rows(q), rows(k), rows(v), {}, 0.0, /*is_causal=*/true, std::nullopt,
                                                          /*enable_gqa=*/q.size(1) != k.size(1));
  return out.transpose(1, 2).reshape({q.size(0), q.size(1) * q.size(2)});
}

}  // namespace

at::Tensor rms_norm(const at::Tensor& h, const at::Tensor& weight, double eps, at::ScalarType dtype) {
  return RmsNorm::apply(h, weight, eps, dtype);
}

at::Tensor swiglu(const at::Tensor& gate, const at::Tensor& up) { return SwiGlu::apply(gate, up); }

at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const std::vector<std::pair<int64_t, int64_t>>& segments) {
  const int64_t tokens = q.size(0);
  const int64_t count = static_cast<int64_t>(segments.size());
  QALORA_CHECK(count > 0 && segments.front().first == 0 && segments.back().second == tokens, "segments cover all ", tokens, " tokens");
  const int64_t length = segments[0].second;
  const bool uniform = std::all_of(segments.begin(), segments.end(), [&](const auto& s) { return s.second - s.first == length; });
  if (uniform) return attend(q, k, v, count);
  std::vector<at::Tensor> parts;
  parts.reserve(segments.size());
  for (const auto& [begin, end] : segments) {
    parts.push_back(attend(q.slice(0, begin, end), k.slice(0, begin, end), v.slice(0, begin, end), 1));
  }
  return at::cat(parts, 0);
}

at::Tensor linear_cross_entropy(const at::Tensor& hidden, const at::Tensor& head, const at::Tensor& targets, int64_t chunk) {
  // Asked here because inside a Function's forward the mode is always off.
  return LinearCrossEntropy::apply(hidden, head, targets, chunk, c10::GradMode::is_enabled());
}

at::Tensor checkpointed(const at::Tensor& h, std::function<at::Tensor(const at::Tensor&)> run) {
  return Checkpointed::apply(h, c10::make_intrusive<Recomputation>(std::move(run)));
}

}  // namespace qalora::model
