#!/usr/bin/env python3
"""What quantization costs: KL divergence, perplexity ratio and same-top-token rate against a reference model.

usage: quality.py REFERENCE_DIR OTHER_DIR [--ids FILE.safetensors] [--sequences N]
Either directory may be an ordinary checkpoint or one of a quantized format. Weights are brought to F32, so that only
they differ.
FILE holds one integer tensor [sequences, length]; default: the ids sampled from the sample model itself.
One JSON line: kl (mean over positions, nats, KL(reference || other)), perplexity_ratio, same_top.
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


def token_ids(path=SAMPLED, sequences=None):
    ((_, array),) = native.read_safetensors(path).values()
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


def dense_of(directory):
    directory = pathlib.Path(directory)
    if (directory / native.SIDECAR).exists():
        return native.dense_tensors(directory)[0]
    if formats.is_format(directory):
        return formats.dense_tensors(directory)[0]
    return {n: native.as_float32(d, a) for n, (d, a) in native.read_checkpoint(directory).items()}


def open_model(directory):
    return model_of(directory, dense_of(directory))


@torch.no_grad()
def log_probabilities(model, ids, batch=8):
    return torch.cat([model(part).logits.float().log_softmax(-1) for part in ids.split(batch)])


def compare(reference, other, ids):
    """Both are log probabilities [sequences, length, vocabulary]."""
    kl = (reference.double().exp() * (reference.double() - other.double())).sum(-1).mean().item()
    picked = [lp[:, :-1].gather(-1, ids[:, 1:, None]).mean().item() for lp in (reference, other)]
    same = (reference.argmax(-1) == other.argmax(-1)).float().mean().item()
    return {"kl": kl, "perplexity_ratio": float(np.exp(picked[0] - picked[1])), "same_top": same}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference")
    parser.add_argument("other")
    parser.add_argument("--ids", default=SAMPLED)
    parser.add_argument("--sequences", type=int)
    args = parser.parse_args()
    ids = token_ids(args.ids, args.sequences)
    lps = [log_probabilities(open_model(d), ids) for d in (args.reference, args.other)]
    print(json.dumps(compare(*lps, ids)))


if __name__ == "__main__":
    sys.exit(main())
