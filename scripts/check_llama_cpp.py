#!/usr/bin/env python3
"""Compares llama.cpp (wheel xllamacpp) with qalora on exported GGUF files: next-token log-probabilities, greedy choices, tokenisation, an
adapter beside its base. Started by check_llama_cpp.sh. Models that are not given are made here: random weights of a few layers."""
import argparse
import json
import math
import struct
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np

# fp32 on both sides, another order of summation: 1.6e-5 was measured. Q4_1 is multiplied by activations of 8 bits there: in rms 3 % of the
# log-probabilities' spread was measured on models like these; a wrong permutation, nibble or minimum is off by more than the spread itself.
FLOAT_TOLERANCE, BLOCK_TOLERANCE = 1e-4, 0.06
PREFIXES = (1, 2, 5, 11, 24)


def write_safetensors(path, tensors):
    header, data = {}, []
    at = 0
    for name, value in tensors.items():
        value = np.ascontiguousarray(value, dtype=np.float32)
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [at, at + value.nbytes]}
        data.append(value.tobytes())
        at += value.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data))


def read_safetensors(path):
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    tensors = {}
    for name, about in json.loads(data[8:8 + size]).items():
        if name != "__metadata__":
            begin, end = about["data_offsets"]
            tensors[name] = np.frombuffer(data[8 + size + begin:8 + size + end], np.float32).reshape(about["shape"])
    return tensors


def random_model(folder, generator, **changes):
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 512, "hidden_size": 96, "intermediate_size": 192,
              "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256,
              "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2} | changes
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    hidden, inner, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    rows = {"self_attn.q_proj": (config["num_attention_heads"] * dim, hidden), "self_attn.k_proj": (config["num_key_value_heads"] * dim,
        hidden),
            "self_attn.v_proj": (config["num_key_value_heads"] * dim, hidden), "self_attn.o_proj": (hidden,
                config["num_attention_heads"] * dim),
            "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner)}
    normal = lambda *shape, scale: generator.normal(0, scale, shape)
    tensors = {"model.embed_tokens.weight": normal(config["vocab_size"], hidden, scale=0.3), "model.norm.weight": 1 + normal(hidden,
        scale=0.1)}
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = normal(config["vocab_size"], hidden, scale=0.3)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[prefix + norm + ".weight"] = 1 + normal(hidden, scale=0.1)
        for name, shape in rows.items():
            tensors[prefix + name + ".weight"] = normal(*shape, scale=1.5 / math.sqrt(shape[1]))
            biased = config["model_type"] == "qwen2" and name.startswith("self_attn") and "o_proj" not in name
            if biased or (config.get("attention_bias") and name.startswith("self_attn")):
                tensors[prefix + name + ".bias"] = normal(shape[0], scale=0.5)
        if config["model_type"] == "qwen3":
            for norm in ("q_norm", "k_norm"):
                tensors[prefix + f"self_attn.{norm}.weight"] = 1 + normal(dim, scale=0.1)
    write_safetensors(folder / "model.safetensors", tensors)
    return rows, config


def random_adapter(folder, base, generator, pooling, group_size, rank=4):
    config = json.loads((base / "config.json").read_text())
    hidden, inner, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    shapes = {"q_proj": (heads * dim, hidden), "k_proj": (kv_heads * dim, hidden), "down_proj": (hidden, inner)}
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for name, (out, width) in shapes.items():
            part = "mlp" if name == "down_proj" else "self_attn"
            prefix = f"base_model.model.model.layers.{layer}.{part}.{name}."
            tensors[prefix + "lora_A.weight"] = generator.normal(0, 0.3, (rank, -(-width // group_size)))
            tensors[prefix + "lora_B.weight"] = generator.normal(0, 0.1, (out, rank))
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    about = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": sorted(shapes), "bias": "none",
             "qalora": {"pooling": pooling, "group_size": group_size, "scaling": 2.0, "base_fingerprint": ""}}
    (folder / "adapter_config.json").write_text(json.dumps(about))


def run(program, *arguments):
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"check_llama_cpp: qalora {' '.join(map(str, arguments))}\n{done.stderr}")
    return done.stdout


class Engine:
    """llama.cpp with one file, in this process."""

    def __init__(self, path, adapter=None):
        import xllamacpp as xl
        params = xl.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.n_gpu_layers, params.verbosity, params.port = 256, 1, 0, 0, 0
        params.warmup = params.ui = params.fit_params = False
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 2
        params.cache_type_k = params.cache_type_v = xl.ggml_type.GGML_TYPE_F32  # f16 keys would be the largest difference
        params.flash_attn_type = xl.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED  # it computes with f16 queries
        if adapter is not None:
            info = xl.CommonAdapterLoraInfo()
            info.path, info.scale = str(adapter), 1.0
            params.lora_adapters = [info]
        self.server = xl.Server(params)

    def post(self, path, document):
        request = urllib.request.Request(self.server.listening_address + path, json.dumps(document).encode(),
            {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)

    def log_probabilities(self, ids, vocab):
        # The probabilities are those before sampling, and the server leaves them out when the token that it sampled is a part of a
        # character:
        # the bias makes it sample a full stop (byte 0x2E of a SentencePiece vocabulary).
        answer = self.post("/completion", {"prompt": ids, "n_predict": 1, "temperature": -1, "n_probs": vocab, "cache_prompt": False,
                                           "logit_bias": [[3 + 0x2E, 1000.0]]})
        if "completion_probabilities" not in answer:
            raise SystemExit(f"check_llama_cpp: llama.cpp answers {json.dumps(answer)[:300]}")
        result = np.full(vocab, np.nan)
        for entry in answer["completion_probabilities"][0]["top_logprobs"]:
            result[entry["id"]] = entry["logprob"]
        return result

    def tokenize(self, text, add_bos=False):
        return self.post("/tokenize", {"content": text, "add_special": add_bos, "parse_special": False})["tokens"]

    def greedy(self, prompt, count):
        return self.post("/completion", {"prompt": prompt, "n_predict": count, "temperature": -1, "cache_prompt": False,
            "return_tokens": True})


class Check:
    def __init__(self, program, work):
        self.program, self.work, self.failures = program, work, 0

    def report(self, good, text):
        print(("ok      " if good else "FAILED  ") + text, flush=True)
        self.failures += not good

    def our_log_probabilities(self, model, adapter, ids):
        (self.work / "ids.json").write_text(json.dumps(ids))
        out = self.work / "logits.safetensors"
        extra = [] if adapter is None else ["--adapter", adapter]
        run(self.program, "eval", "--model", model, *extra, "--task", "perplexity", "--token-ids", self.work / "ids.json", "--save-logits",
            out,
            "--dtype", "float32", "--device", "cpu", "--force" if out.exists() else "-q", "-q")
        logits = read_safetensors(out)["logits"].astype(np.float64)
        out.unlink()
        shifted = logits - logits.max(-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))

    def compare(self, name, model, engine, exact, adapter=None):
        vocab = self.our_log_probabilities(model, adapter, [[1, 3, 5]]).shape[-1]
        ids = np.random.default_rng(7).integers(3, vocab, (2, max(PREFIXES))).tolist()
        ours = self.our_log_probabilities(model, adapter, ids)
        differences, spread, same = [], 0.0, 0
        for row, prefix in enumerate(ids):
            for length in PREFIXES:
                theirs, here = engine.log_probabilities(prefix[:length], vocab), ours[row, length - 1]
                # Further than 16 nats below the best, an fp32 softmax over a whole vocabulary has no digits left that say anything.
                differences.append(np.abs(np.nan_to_num(theirs, nan=-1e9) - here)[here > here.max() - 16])
                same += int(np.nanargmax(theirs)) == int(here.argmax())
                spread = max(spread, float(here.std()))
        worst = max(float(part.max()) for part in differences)
        rms = float(np.sqrt(np.mean(np.concatenate(differences) ** 2)))
        if exact:
            self.report(worst <= FLOAT_TOLERANCE,
                f"{name}: log-probabilities differ by {worst:.2g} at most (allowed {FLOAT_TOLERANCE:g}, spread {spread:.2g})")
            self.report(same == len(differences), f"{name}: the same greedy choice after {same} of {len(differences)} prefixes")
        else:
            self.report(rms <= BLOCK_TOLERANCE * spread,
                f"{name}: log-probabilities differ by {rms:.2g} in rms (allowed {BLOCK_TOLERANCE * spread:.2g}), "
                        f"{worst:.2g} at most; spread {spread:.2g}; the same greedy choice after {same} of {len(differences)} prefixes")


def check_model(check, name, model, adapter=None, dtype=None):
    out = check.work / (name.replace(" ", "_") + ".gguf")
    extra = (["--adapter", adapter] if adapter else []) + (["--dtype-of-weights", dtype] if dtype else [])
    said = json.loads(run(check.program, "export", "--model", model, "--to", "gguf", "--out", out, "--force", "--json", "-q", *extra))
    config = Path(model) / "config.json"
    quantised = '"quantization"' in config.read_text() if config.exists() else True
    engine = Engine(out, out.with_suffix(".lora.gguf") if adapter else None)
    check.compare(name, model, engine, not quantised and dtype == "float32", adapter)
    if adapter:  # must differ: the base without it
        ids = [[1, 7, 9, 11, 13]]
        here = check.our_log_probabilities(model, adapter, ids)[0, -1]
        theirs = Engine(out).log_probabilities(ids[0], len(here))
        check.report(float(np.nanmax(np.abs(theirs - here))) > 1, f"{name}: the base without its adapter is another model")
    print(f"        largest error of a weight {said.get('largest_error', 0):.3g} (of its largest, or steps of its grid)", flush=True)
    return engine


def check_tokens(check, tokenizer, vectors, work, generator):
    """llama.cpp's ids through our file beside recorded ones (SentencePiece's own)."""
    folder = work / "with-tokenizer"
    random_model(folder, generator, vocab_size=32064, hidden_size=64, num_attention_heads=4)
    (folder / "tokenizer.model").write_bytes(tokenizer.read_bytes())
    engine = check_model(check, "a tokenizer and 64 rows more than it has tokens", folder, dtype="float32")
    texts = vectors.with_suffix(".inp").read_text().split("\n__ggml_vocab_test__\n")
    expected = [[int(i) for i in line.split()] for line in vectors.with_suffix(".out").read_text().splitlines()]
    wrong = sum(engine.tokenize(text) != ids for text, ids in zip(texts, expected))
    check.report(wrong == 0 and len(expected) > 10,
        f"tokenisation: {len(expected) - wrong} of {len(expected)} recorded texts get their ids")
    prompt = "The quick brown fox"
    ours = json.loads(run(check.program, "generate", "--model", folder, "--prompt", prompt, "--template", "none", "--max-tokens", "12",
        "--temperature", "0",
                          "--dtype", "float32", "--device", "cpu", "--json", "-q"))["text"]
    theirs = engine.greedy(prompt, 12)["content"]
    check.report(ours.strip() == theirs.strip(),
        f"greedy text: {ours!r}" + ("" if ours.strip() == theirs.strip() else f" beside {theirs!r}"))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--program", required=True)
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--tokenizer-data", type=Path, help="folder with llama2.tokenizer.model and llama_spm_vectors.{inp,out}")
    parser.add_argument("models", nargs="*")
    options = parser.parse_args()
    check, generator = Check(options.program, options.work), np.random.default_rng(20230927)
    for model in options.models:
        check_model(check, Path(model).name, model)
    if not options.models:
        made = options.work / "models"
        llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64}
        kinds = {"llama": {}, "llama tied with scaled rope": {"tie_word_embeddings": True, "rope_theta": 500000.0, "rope_scaling": llama3},
                 "llama with biases and linear rope": {"attention_bias": True, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
                 "mistral": {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None},
                 "qwen2": {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "rope_theta": 1000000.0},
                 "qwen3": {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "rope_theta": 1000000.0}}
        for name, changes in kinds.items():
            random_model(made / name, generator, **changes)
            check_model(check, name, made / name, dtype="float32")
        for bits in (2, 3, 4):
            quantised = made / f"int{bits}"
            run(options.program, "quantize", "--model", made / "llama", "--out", quantised, "--bits", bits, "--group-size", 32, "--force",
                "-q", "--method", "rtn")
            check_model(check, f"llama in {bits} bits", quantised)
        random_adapter(made / "adapter", made / "llama", generator, "sum", 32)
        check_model(check, "llama in 4 bits with an adapter", made / "int4", adapter=made / "adapter")
        data = options.tokenizer_data
        if data and (data / "llama2.tokenizer.model").exists():
            check_tokens(check, data / "llama2.tokenizer.model", data / "llama_spm_vectors", options.work, generator)
        else:
            print("skipped tokenisation: no recorded vectors (--tokenizer-data)")
    print(f"check_llama_cpp: {check.failures} of the comparisons failed" if check.failures else "check_llama_cpp: everything agrees")
    return 1 if check.failures else 0


if __name__ == "__main__":
    sys.exit(main())
