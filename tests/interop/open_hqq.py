#!/usr/bin/env python3
"""Opens an HQQ checkpoint, module by module, with the hqq package.

usage: open_hqq.py --packages DIR CHECKPOINT...
Writes CHECKPOINT/read.safetensors with "<module>" [N, K] in F32: what HQQLinear.dequantize makes of the stored
tensors. transformers 5 no longer loads such checkpoints and transformers 4 needs another torch, so the layer class is
as far as this goes.
"""

import argparse
import pathlib
import sys


def read(directory):
    import torch
    from hqq.core.quantize import HQQLinear

    import native

    tensors = native.read_checkpoint(directory)
    out = {}
    for name in [n for n in tensors if n.endswith(".W_q")]:
        module = name.removesuffix(".W_q")
        prefix = f"{module}."
        state = {}
        for key, (dtype, array) in tensors.items():
            if key.startswith(prefix):
                value = torch.from_numpy(array.copy())
                state[key.removeprefix(prefix)] = value.view(torch.bfloat16) if dtype == "BF16" else value
        layer = HQQLinear(None, None, compute_dtype=torch.float32, device="cpu", initialize=False)
        missing = layer.state_dict_keys() - state.keys() - {"bias"}
        if missing or state.keys() - layer.state_dict_keys():
            sys.exit(f"{module}: missing {missing}, unexpected {state.keys() - layer.state_dict_keys()}")
        layer.load_state_dict(state)
        out[module] = ("F32", layer.dequantize().float().numpy())
    native.write_safetensors(directory / "read.safetensors", out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", required=True)
    parser.add_argument("checkpoints", nargs="+", type=pathlib.Path)
    args = parser.parse_args()
    sys.path[:0] = args.packages.split(":")
    for directory in args.checkpoints:
        read(directory)


if __name__ == "__main__":
    main()
