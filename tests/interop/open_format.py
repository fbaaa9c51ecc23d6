#!/usr/bin/env python3
"""Opens checkpoints with transformers and the packages that their format needs; saves what the reader made of them.

usage: open_format.py --packages DIR[:DIR...] CHECKPOINT...
Writes CHECKPOINT/read.safetensors: "logits" [sequences, length, vocabulary] of the first two sampled sequences, and
"<module>" [N, K], the weights of every quantized module as the reader computes with them, all in F32. Exit code 1 if
the reader misses a tensor or does not expect one. Runs in a process of its own: the packages patch and replace others.
"""

import argparse
import json
import pathlib
import sys
import warnings


def options(config):
    """Kernels that compute with the weights as they are: the fast ones repack them and round to bf16."""
    from transformers import AwqConfig, GPTQConfig

    method = config["quant_method"]
    if method == "gptq":
        return {"quantization_config": GPTQConfig(bits=config["bits"], backend="torch")}
    if method == "awq":
        return {"quantization_config": AwqConfig(backend="torch_awq")}
    return {}


def weight_of(module):
    """[N, K] or None for a module that is not quantized."""
    kind = type(module).__name__
    if kind == "TorchLinear":
        return module.dequantize_weight().T
    if kind == "AwqTorchLinear":
        from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm

        return dequantize_gemm(module.qweight, module.qzeros, module.scales, module.bits, module.group_size).T
    if kind == "Linear" and hasattr(module, "quantization_scheme"):
        return module.weight
    return None


def read(directory):
    import torch
    from transformers import AutoModelForCausalLM

    import native
    import quality

    config = json.loads((directory / "config.json").read_text())["quantization_config"]
    model, info = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, output_loading_info=True, **options(config)
    )
    problems = {key: sorted(map(str, value))[:5] for key, value in info.items() if value}
    if problems:
        sys.exit(f"{directory}: {problems}")
    with torch.no_grad():
        out = {"logits": model.eval()(quality.token_ids()[:2]).logits.float()}
        for name, module in model.named_modules():
            weight = weight_of(module)
            if weight is not None:
                out[name] = weight.float()
    native.write_safetensors(
        directory / "read.safetensors", {n: ("F32", t.contiguous().numpy()) for n, t in out.items()}
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", required=True)
    parser.add_argument("checkpoints", nargs="+", type=pathlib.Path)
    args = parser.parse_args()
    sys.path[:0] = args.packages.split(":")
    warnings.simplefilter("ignore")
    for directory in args.checkpoints:
        read(directory)


if __name__ == "__main__":
    main()
