#!/usr/bin/env python3
"""How much of a KL of the sample model is chance: the same model with its channels in another order, several times.

usage: build/venv/bin/python tests/bench/quality_draws.py --tokens FILE [--draws 8] [--first 0] [--sequences 8]
                                                          [--bits 4 3] [--group 64 128]
A draw permutes the hidden channels, those between up and down, and those of the values within each head: the function
stays the same, but other weights share groups and tiles, so every rounding error is drawn anew. Draw 0 is the model as
it is. Prints for each way the mean over the draws of KL over that of profile upstream (the authors' SINQ within 1 %,
quality_table.py) and the standard error of the mean. Each draw uses its own --sequences of the tokens.
"""

import argparse
import pathlib
import shutil
import sys

import numpy as np
import torch

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "interop"), str(ROOT / "tests" / "e2e"), str(ROOT / "tests" / "bench")]
import native  # noqa: E402
import quality  # noqa: E402
from harness import SAMPLE, Server, workspace  # noqa: E402
from quality_table import LanguageModel, published, read_output  # noqa: E402

BASELINE = ("upstream profile", ["--profile", "upstream"])
WAYS = [("default", []), ("default, symmetric", ["--symmetric"])]
LAYERS, HIDDEN, BETWEEN, HEADS, VALUE_HEADS, HEAD_DIM = 6, 256, 768, 4, 2, 64  # of the sample model


def permute_columns(tensors, names, order):
    for name in names:
        dtype, array = tensors[name]
        tensors[name] = (dtype, array[..., order])


def permute_rows(tensors, names, order):
    for name in names:
        dtype, array = tensors[name]
        tensors[name] = (dtype, array[order])


def draw(tensors, seed):
    """The same model in another order of its channels; seed 0 leaves it."""
    if seed == 0:
        return tensors
    random, tensors = np.random.default_rng(seed), dict(tensors)
    hidden = random.permutation(HIDDEN)
    permute_columns(tensors, ["model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"], hidden)
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        readers = [f"{at}{p}_proj.weight" for p in ("self_attn.q", "self_attn.k", "self_attn.v", "mlp.gate", "mlp.up")]
        norms = [f"{at}input_layernorm.weight", f"{at}post_attention_layernorm.weight"]
        out, down = f"{at}self_attn.o_proj.weight", f"{at}mlp.down_proj.weight"
        permute_columns(tensors, readers + norms, hidden)
        permute_rows(tensors, [out, down], hidden)
        between = random.permutation(BETWEEN)
        permute_rows(tensors, readers[3:], between)
        permute_columns(tensors, [down], between)
        values = [random.permutation(HEAD_DIM) + HEAD_DIM * head for head in range(VALUE_HEADS)]
        shift = [HEAD_DIM * (head - head * VALUE_HEADS // HEADS) for head in range(HEADS)]
        heads = [values[head * VALUE_HEADS // HEADS] + shift[head] for head in range(HEADS)]
        permute_rows(tensors, [readers[2]], np.concatenate(values))
        permute_columns(tensors, [out], np.concatenate(heads))
    return tensors


def write_draw(directory, seed):
    directory.mkdir()
    shutil.copy(SAMPLE / "config.json", directory)
    native.write_safetensors(directory / "model.safetensors", draw(native.read_checkpoint(SAMPLE), seed))


def ratios_of(server, home, subject, bits, group):
    """{way: log of its KL over the baseline's}"""
    kl = {}
    for name, flags in [BASELINE, *WAYS]:
        out = home / f"{subject.directory.name}-{bits}-{group}-{len(kl)}"
        published(server, subject.directory, out, ["--bits", str(bits), "--group-size", str(group), *flags])
        kl[name] = subject.figures(read_output(out)[0])["kl"]
        shutil.rmtree(out)
    return {name: np.log(kl[name] / kl[BASELINE[0]]) for name, _ in WAYS}


def summary(logs):
    spread = f" +- {100 * np.std(logs, ddof=1) / len(logs) ** 0.5:.1f}" if len(logs) > 1 else ""
    return f"{100 * np.expm1(np.mean(logs)):+.1f}{spread} %"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", default=quality.SAMPLED)
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3])
    parser.add_argument("--group", type=int, nargs="+", default=[64, 128])
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    ids = quality.token_ids(args.tokens)
    settings = [(bits, group) for bits in args.bits for group in args.group]
    logs = {(setting, name): [] for setting in settings for name, _ in WAYS}
    with workspace() as home:
        server = Server(home, roots=[]).start()
        try:
            for seed in range(args.first, args.first + args.draws):
                write_draw(home / f"draw{seed}", seed)
                start = seed * args.sequences % max(1, len(ids) - args.sequences + 1)
                subject = LanguageModel(home / f"draw{seed}", ids[start : start + args.sequences])
                for setting in settings:
                    for name, ratio in ratios_of(server, home, subject, *setting).items():
                        logs[setting, name].append(ratio)
                        print(f"draw {seed}, {setting}, {name}: {100 * np.expm1(ratio):+.1f} %", flush=True)
        finally:
            server.stop()
    print("\n| | " + " | ".join(f"{b} bits, g {g}" for b, g in settings) + " |\n" + "|---" * (len(settings) + 1) + "|")
    for name, _ in WAYS:
        print(f"| {name} | " + " | ".join(summary(logs[setting, name]) for setting in settings) + " |")


if __name__ == "__main__":
    sys.exit(main())
