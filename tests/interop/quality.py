#!/usr/bin/env python3
"""What quantization costs: KL divergence, perplexity ratio and same-top-token rate against the original.

usage: quality.py ORIGINAL QUANTIZED [--tokens FILE] [--sequences N] [--format auto|FORMAT]
Checkpoint directories. Weights are read by readers that share no code with the product and brought to F32, so that
only they differ. FILE: .safetensors with one integer tensor [sequences, length] or [n], or .json with a list of token
ids; a flat list is cut into sequences of --length. Default: the ids sampled from the sample model itself.
One JSON line. kl, kl_median, kl_p999, kl_max: KL(original || quantized) in nats over all positions, the first its mean;
perplexity_ratio: quantized / original; same_top: share of positions with the same most likely token.
"""

import argparse
import json
import pathlib
import sys
import warnings

import numpy as np
import torch

import formats
import native

SAMPLED = pathlib.Path(__file__).resolve().parents[1] / "data" / "tiny-llama" / "sampled_ids.safetensors"
FORMATS = ("sinq", "compressed-tensors", "awq", "gptq", "hqq", "dense")


def token_ids(path=SAMPLED, sequences=None, length=256):
    path = pathlib.Path(path)
    if path.suffix == ".json":
        array = np.array(json.loads(path.read_text()))
    else:
        ((_, array),) = native.read_safetensors(path).values()
    if array.ndim == 1 and len(array) > length:
        array = array[: len(array) // length * length].reshape(-1, length)
    array = np.atleast_2d(array.astype(np.int64))
    return torch.from_numpy(array[:sequences])


def model_of(config_dir, dense):
    """A transformers model with these weights in F32; every parameter must be given."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(config_dir)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    state = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in dense.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    tied = {"lm_head.weight"} if getattr(config, "tie_word_embeddings", False) else set()
    if set(missing) - tied or unexpected:
        raise ValueError(f"missing {sorted(set(missing) - tied)[:5]}, unexpected {sorted(unexpected)[:5]}")
    model.tie_weights()
    return model.eval()


def format_of(directory):
    directory = pathlib.Path(directory)
    if (directory / native.SIDECAR).exists():
        return "sinq"
    config = json.loads((directory / "config.json").read_text())
    method = (config.get("quantization_config") or {}).get("quant_method", "dense")
    if method not in FORMATS:
        raise ValueError(f"{directory} is in format {method}; the formats read here are {', '.join(FORMATS)}")
    return method


def dense_of(directory, form="auto"):
    """{name: F32 array} of a checkpoint in one of FORMATS."""
    directory = pathlib.Path(directory)
    form = format_of(directory) if form == "auto" else form
    if form == "sinq":
        return native.dense_tensors(directory)[0]
    if form != "dense":
        return formats.dense_tensors(directory)[0]
    return {n: native.as_float32(d, a) for n, (d, a) in native.read_checkpoint(directory).items()}


def open_model(directory, form="auto"):
    return model_of(directory, dense_of(directory, form))


@torch.no_grad()
def log_probabilities(model, ids, batch=8):
    return torch.cat([model(part).logits.float().log_softmax(-1) for part in ids.split(batch)])


def compare(reference, other, ids, batch=8):
    """Both are log probabilities [sequences, length, vocabulary]."""
    kl, picked, same = [], np.zeros(2), []
    for a, b, part in zip(reference.split(batch), other.split(batch), ids.split(batch)):
        kl.append((a.exp() * (a - b)).sum(-1, dtype=torch.float64).flatten())
        same.append((a.argmax(-1) == b.argmax(-1)).flatten())
        picked += [lp[:, :-1].double().gather(-1, part[:, 1:, None]).sum().item() for lp in (a, b)]
    kl, predicted = torch.cat(kl).numpy(), ids.shape[0] * (ids.shape[1] - 1)
    return {
        "kl": float(kl.mean()),
        "kl_median": float(np.median(kl)),
        "kl_p999": float(np.quantile(kl, 0.999)),
        "kl_max": float(kl.max()),
        "perplexity_ratio": float(np.exp((picked[0] - picked[1]) / predicted)),
        "same_top": torch.cat(same).float().mean().item(),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("original")
    parser.add_argument("quantized")
    parser.add_argument("--tokens", default=SAMPLED)
    parser.add_argument("--sequences", type=int)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--format", default="auto", choices=("auto", *FORMATS))
    args = parser.parse_args()
    ids = token_ids(args.tokens, args.sequences, args.length)
    models = [open_model(args.original), open_model(args.quantized, args.format)]
    print(json.dumps(compare(*(log_probabilities(model, ids) for model in models), ids)))


if __name__ == "__main__":
    sys.exit(main())
