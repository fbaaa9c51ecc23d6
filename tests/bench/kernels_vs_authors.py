#!/usr/bin/env python3
"""One thread: our kernels, memcpy of the same input, and the authors' PyTorch code, one after another in one run.

usage: build/venv/bin/python tests/bench/kernels_vs_authors.py [--seconds 1]
4 bits, groups of 64, bf16 4096 x 4096. Needs build/release/bin/quantize_bench and tests/interop/make_env.sh.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import time

import torch

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "interop"))
import authors  # noqa: E402

SIZE = 4096


def ours(seconds):
    command = [ROOT / "build/release/bin/quantize_bench", "--benchmark_format=json", f"--benchmark_min_time={seconds}"]
    report = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return {b["name"]: b["weights_per_second"] for b in report["benchmarks"]}


def theirs():
    """Weights per second of the authors' sinq (asymmetric, 8-bit scales), best of two."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    weight = torch.randn(SIZE, SIZE) * (0.2 * torch.randn(SIZE, 1)).exp() * (0.2 * torch.randn(1, SIZE)).exp() * 0.02
    weight = weight.bfloat16()
    _, _, quantizer = authors.import_sinq()
    best = 0
    for _ in range(2):
        start = time.monotonic()
        quantizer.quantize(weight, None, nbits=4, group_size=64, axis=1, compute_dtype=torch.float32, device="cpu",
                           method="sinq_quantAux")
        best = max(best, SIZE * SIZE / (time.monotonic() - start))
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1)
    args = parser.parse_args()
    figures = ours(args.seconds) | {"authors' PyTorch": theirs()}
    for name, rate in figures.items():
        print(f"{name:32} {rate / 1e9:9.4f} G weights/s")


if __name__ == "__main__":
    main()
