#!/usr/bin/env python3
"""Writes the small files of torch.save that tests/unit/io/torch_file_test.cpp reads, and the fuzz target's seeds. Needs PyTorch; the files
are kept, so that nobody needs to run this again. Every tensor counts up from a number, so that the test can say what must be in it."""
import collections
import sys
import zipfile
from pathlib import Path

import torch

HERE = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent


def count(shape, start, dtype=torch.float32):
    size = 1
    for dimension in shape:
        size *= dimension
    return (torch.arange(size) + start).to(dtype).reshape(shape)


def views():
    """One storage of 24, seen in four ways; and others of every type."""
    base = count((4, 6), 0)
    state = collections.OrderedDict()
    state["whole"] = base
    state["rows"] = base[1:3]  # offset 6, contiguous
    state["transposed"] = base.t()
    state["columns"] = base[:, 1::2]
    for name, dtype in [("f16", torch.float16), ("bf16", torch.bfloat16), ("f64", torch.float64), ("i64", torch.int64), ("i32", torch.int32),
                        ("i16", torch.int16), ("i8", torch.int8), ("u8", torch.uint8)]:
        state[name] = count((3,), 5, dtype)
    state["bool"] = torch.tensor([True, False, True])
    state["scalar"] = torch.tensor(2.5)
    state["empty"] = torch.empty((0, 7))
    return state


def main():
    torch.save(views(), HERE / "zip.pt")
    torch.save(views(), HERE / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save(views(), HERE / "protocol4.pt", pickle_protocol=4)
    torch.save(views(), HERE / "legacy_protocol4.pt", pickle_protocol=4, _use_new_zipfile_serialization=False)
    parameter = torch.nn.Parameter(count((2, 2), 1, torch.bfloat16))
    torch.save({"model": {"weight": parameter}, "step": 3, "loss": 0.5, "size": torch.Size([2, 2]), "dtype": torch.bfloat16, "tags": ["a", None]},
               HERE / "nested.pt")
    linear = torch.nn.Linear(3, 2)
    with torch.no_grad():
        linear.weight.copy_(count((2, 3), 0))
        linear.bias.copy_(count((2,), 10))
    torch.save(linear.state_dict(), HERE / "module.pt")  # an OrderedDict with _metadata
    torch.save({"wide": torch.zeros(1).expand(1000, 1000)}, HERE / "expanded.pt")
    torch.save(linear, HERE / "whole_module.pt")  # a Python object: to be refused
    torch.save({"a": count((2,), 0, torch.uint16)}, HERE / "rebuild_v3.pt")
    with zipfile.ZipFile(HERE / "module.pt") as source, zipfile.ZipFile(HERE / "deflated.pt", "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))


if __name__ == "__main__":
    main()
