"""Makes the tiny Qwen3 model beside it, with what Transformers computes of it.

    python make.py      (needs torch, transformers 4.51 or newer, safetensors)
"""
import json
import pathlib

import torch
from safetensors.torch import save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

FOLDER = pathlib.Path(__file__).parent
GRADIENTS = ["self_attn.q_norm.weight", "self_attn.k_norm.weight", "self_attn.q_proj.weight", "input_layernorm.weight"]

torch.manual_seed(3)
config = Qwen3Config(
    vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    head_dim=16, max_position_embeddings=64, rms_norm_eps=1e-6, rope_theta=1e6, tie_word_embeddings=False)
config._attn_implementation = "eager"
model = Qwen3ForCausalLM(config).eval()
with torch.no_grad():
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.copy_(1 + 0.4 * torch.randn_like(parameter))
        else:
            parameter.copy_(0.25 * torch.randn_like(parameter))

ids = torch.randint(0, config.vocab_size, (2, 12))


def run(model):
    model.zero_grad()
    out = model(input_ids=ids)
    loss = torch.nn.functional.cross_entropy(out.logits[:, :-1].reshape(-1, config.vocab_size), ids[:, 1:].reshape(-1), reduction="sum")
    loss.backward()
    named = dict(model.named_parameters())
    return out.logits.detach(), loss.detach(), {f"gradient.{n}": named[f"model.layers.0.{n}"].grad.clone() for n in GRADIENTS}


logits, loss, gradients = run(model)
weights = {name: value.detach().clone().contiguous() for name, value in model.state_dict().items()}
wide_logits, wide_loss, wide_gradients = run(model.double())
save_file(weights, FOLDER / "model.safetensors", metadata={"format": "pt"})
about = config.to_dict()
about["architectures"] = ["Qwen3ForCausalLM"]
(FOLDER / "config.json").write_text(json.dumps(about, indent=1) + "\n")
save_file({"input_ids": ids, "logits": wide_logits.float(), "loss": wide_loss.float().reshape(1),
           **{name: value.float().contiguous() for name, value in wide_gradients.items()}}, FOLDER / "expected.safetensors")
print("fp32 against double: logits", (logits - wide_logits).abs().max().item(), "loss", abs(loss.item() - wide_loss.item()),
      {n: ((gradients[n] - g).abs().max() / g.abs().max()).item() for n, g in wide_gradients.items()},
      "largest logit", wide_logits.abs().max().item())
