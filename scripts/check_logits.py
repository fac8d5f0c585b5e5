"""What another program computes from an export of qalora's, beside what qalora computes. Called by check_mlx.sh and check_peft.sh."""
import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

ROWS, LENGTH = 2, 24
# fp32 sums in another order: 2e-6 to 2e-5 of the logits' spread on small models. Relative to the spread.
TOLERANCE = 3e-5
# A change that must be noticed has to be this many tolerances large.
NOTICED = 20


class Qalora:
    def __init__(self, binary, work):
        self.binary, self.work = binary, Path(work)

    def run(self, *arguments):
        command = [self.binary, *map(str, arguments)]
        print("$ " + " ".join(command), flush=True)
        done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
        if done.returncode != 0:
            sys.exit(f"qalora ended with exit code {done.returncode}")
        return done.stdout

    def logits(self, model, ids, adapter=None):
        ids_file, out = self.work / "ids.json", self.work / "logits.safetensors"
        ids_file.write_text(json.dumps(ids.tolist()))
        out.unlink(missing_ok=True)
        self.run("eval", "--model", model, *(["--adapter", adapter] if adapter else []), "--task", "perplexity", "--token-ids", ids_file,
                 "--save-logits", out, "--dtype", "float32", "--device", "cpu", "-q", "--json")
        return read_tensor(out, "logits")

    def config(self, model):
        return json.loads((Path(model) / "config.json").read_text())


def read_tensor(path, name):
    """One fp32 tensor of a safetensors file."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    info = json.loads(data[8:8 + size])[name]
    begin, end = info["data_offsets"]
    return np.frombuffer(data[8 + size + begin:8 + size + end], np.float32).reshape(info["shape"])


def token_ids(vocabulary):
    return np.random.default_rng(7).integers(0, vocabulary, (ROWS, LENGTH))


def compare(what, ours, theirs, faults):
    spread = float(ours.std())
    difference = float(np.abs(ours - theirs).max()) / spread
    fine = difference <= TOLERANCE
    print(f"{'ok   ' if fine else 'WRONG'} {what}: largest logit difference {difference:.2e} of the spread ({spread:.3g}), allowed {TOLERANCE:.0e}",
          flush=True)
    if not fine:
        faults.append(what)


def must_differ(what, ours, other, faults):
    difference = float(np.abs(ours - other).max()) / float(ours.std())
    fine = difference > NOTICED * TOLERANCE
    print(f"{'ok   ' if fine else 'BLIND'} {what}: {difference:.2e}", flush=True)
    if not fine:
        faults.append(what)


def mlx_logits(folder, ids, damage=False):
    import mlx.core as mx
    from mlx_lm.utils import load_model
    mx.set_default_device(mx.cpu)
    model, _ = load_model(folder)
    if damage:  # one layer's offsets off by half a unit of bf16: what a file that does not keep them in fp32 may do
        layer = model.model.layers[0].self_attn.q_proj
        layer.biases = layer.biases * (1 + 2.0**-9)
    return np.array(model(mx.array(ids)).astype(mx.float32))


def check_mlx(qalora, models):
    faults = []
    for number, model in enumerate(models):
        config = qalora.config(model)
        ids = token_ids(config["vocab_size"])
        bases = [(model, "as it is")]
        dense = "quantization" not in config and "quantization_config" not in config
        if dense:
            for bits in (4, 3, 2):
                base = qalora.work / f"base-{number}-{bits}"
                qalora.run("quantize", "--model", model, "--out", base, "--bits", bits, "--group-size", 32, "-q", "--json")
                bases.append((base, f"{bits} bits"))
        for base, name in bases:
            out = qalora.work / f"mlx-{number}-{name.replace(' ', '')}"
            qalora.run("export", "--model", base, "--to", "mlx", "--out", out, "-q", "--json")
            ours, theirs = qalora.logits(base, ids), mlx_logits(out, ids)
            if dense and base == model:
                # A dense model runs in its own dtype there: 16-bit activations are no proof of anything but that it loads.
                print(f"      {model}, dense: mlx-lm loads it; its own dtype leaves {np.abs(ours - theirs).max() / ours.std():.1e} of the spread")
                continue
            compare(f"{model}, {name}", ours, theirs, faults)
            must_differ(f"{model}, {name}, one layer's offsets off by 2^-9", ours, mlx_logits(out, ids, damage=True), faults)
    return faults


def make_adapter(qalora, dense):
    """A quantised base and an adapter that a few steps of training moved, on random tokens."""
    base, run, data = qalora.work / "base", qalora.work / "run", qalora.work / "data.jsonl"
    qalora.run("quantize", "--model", dense, "--out", base, "--bits", 3, "--group-size", 32, "-q", "--json")
    rows = np.random.default_rng(3).integers(0, qalora.config(dense)["vocab_size"], (16, LENGTH)).tolist()
    data.write_text("".join(json.dumps({"input_ids": row, "labels": row}) + "\n" for row in rows))
    qalora.run("finetune", "--model", base, "--data", data, "--out", run, "--data-format", "tokens", "--sequence-length", LENGTH, "--steps", 6,
               "--batch-size", 4, "--learning-rate", 0.01, "--rank", 4, "--alpha", 8, "--device", "cpu", "--dtype", "float32", "-q")
    return base, run


def check_peft(qalora, model, adapter):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    faults = []
    if model is None:
        model, adapter = make_adapter(qalora, "models/miniature")
    ids = token_ids(qalora.config(model)["vocab_size"])
    dense, lora, merged = (qalora.work / name for name in ("dense", "lora", "merged"))
    qalora.run("export", "--model", model, "--to", "safetensors", "--dtype-of-weights", "float32", "--out", dense, "-q", "--json")
    qalora.run("export", "--model", model, "--adapter", adapter, "--to", "lora", "--out", lora, "-q", "--json")
    qalora.run("export", "--model", model, "--adapter", adapter, "--to", "safetensors", "--dtype-of-weights", "float32", "--out", merged, "-q", "--json")

    def logits(program):
        with torch.no_grad():
            return program(torch.tensor(ids)).logits.float().numpy()

    def load(folder):
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()

    tuned = qalora.logits(model, ids, adapter)
    compare("base, transformers on the dense export", qalora.logits(model, ids), logits(load(dense)), faults)
    compare("adapter, PEFT on the LoRA export", tuned, logits(PeftModel.from_pretrained(load(dense), lora).eval()), faults)
    compare("adapter merged, transformers on the dense export", tuned, logits(load(merged)), faults)
    must_differ("without the adapter", tuned, logits(load(dense)), faults)
    return faults


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("mlx", "peft"))
    parser.add_argument("--qalora", required=True)
    parser.add_argument("--work", required=True)
    parser.add_argument("paths", nargs="*")
    arguments = parser.parse_intermixed_args()
    qalora = Qalora(arguments.qalora, arguments.work)
    if arguments.what == "mlx":
        faults = check_mlx(qalora, arguments.paths)
    else:
        if len(arguments.paths) not in (0, 2):
            sys.exit("expected MODEL ADAPTER, or nothing")
        faults = check_peft(qalora, *(arguments.paths or (None, None)))
    print("all logits agree" if not faults else f"{len(faults)} WRONG: " + "; ".join(faults))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
