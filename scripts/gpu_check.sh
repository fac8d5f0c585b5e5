#!/usr/bin/env bash
# Builds and proves the CUDA half on a machine with a GPU, without a network, in under eight minutes: build, GPU tests, compute-sanitizer,
# kernels' figures, benchmark. Leaves build-gpu/gpu_check.json. Needs nvcc, cmake, g++, a python3 that has torch (or LIBTORCH=DIR), and
# .gpu-pack/ from scripts/gpu_pack.sh (or the Debian packages). Exit code: 0 all passed, 1 something failed, 2 something could not run.
exec python3 "$(dirname "$0")/gpu_check.py" "$@"
