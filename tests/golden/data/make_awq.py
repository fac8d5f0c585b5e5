#!/usr/bin/env python3
"""Writes awq_gemm.safetensors: one linear layer that AutoAWQ itself packed (WQLinear_GEMM) and dequantised (dequantize_gemm).

    pip download autoawq==0.2.9 --no-deps && tar xf autoawq-0.2.9.tar.gz
    make_awq.py autoawq-0.2.9 awq_gemm.safetensors      (needs torch, safetensors; runs on the CPU)

Its weights lie on the grid of random codes, so that the packer has nothing to round: codes and zeros are what went in.
"""
import importlib.util
import sys
import types
from pathlib import Path

import torch
from safetensors.torch import save_file

IN_FEATURES, OUT_FEATURES, GROUP_SIZE, BITS = 96, 64, 32, 4


def module_of(root, name):
    """One file of the package, without the package: the rest of it wants a GPU."""
    spec = importlib.util.spec_from_file_location(name, root / (name.replace(".", "/") + ".py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def stand_in(name, **functions):
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(functions)


def main():
    root, out = Path(sys.argv[1]), sys.argv[2]
    for package in ("awq", "awq.utils", "awq.modules", "awq.modules.linear"):
        stand_in(package)
    stand_in("awq.utils.module", try_import=lambda name: (None, ""))
    stand_in("awq.utils.utils", get_best_device=lambda: "cpu")
    packing = module_of(root, "awq.utils.packing_utils")
    gemm = module_of(root, "awq.modules.linear.gemm")

    random = torch.Generator().manual_seed(7)
    groups = IN_FEATURES // GROUP_SIZE
    codes = torch.randint(0, 2**BITS, (IN_FEATURES, OUT_FEATURES), generator=random)
    zeros = torch.randint(0, 2**BITS, (groups, OUT_FEATURES), generator=random)
    scales = (torch.rand(groups, OUT_FEATURES, generator=random) * 0.02 + 0.001).half().float()
    group = torch.arange(IN_FEATURES) // GROUP_SIZE
    linear = torch.nn.Linear(IN_FEATURES, OUT_FEATURES, bias=False)
    linear.weight.data = ((codes - zeros[group]) * scales[group]).t().contiguous()
    layer = gemm.WQLinear_GEMM.from_linear(linear, BITS, GROUP_SIZE, scales=scales, zeros=zeros)
    dense = packing.dequantize_gemm(layer.qweight, layer.qzeros, layer.scales, BITS, GROUP_SIZE)
    save_file({"model.layers.0.mlp.up_proj.qweight": layer.qweight, "model.layers.0.mlp.up_proj.qzeros": layer.qzeros,
               "model.layers.0.mlp.up_proj.scales": layer.scales, "dense": dense.t().contiguous(),
               "codes": codes.t().contiguous().to(torch.uint8), "zeros": zeros.t().contiguous().to(torch.uint8)}, out)


if __name__ == "__main__":
    main()
