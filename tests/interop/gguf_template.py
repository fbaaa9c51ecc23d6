#!/usr/bin/env python3
"""A GGUF file of a checkpoint as llama.cpp's convert_hf_to_gguf.py makes it, for the architectures that sinqd patches.

usage: gguf_template.py --packages DIR CHECKPOINT FILE [--outtype f32|f16|bf16]
PyPI's gguf writes it and has the names. Rows of q and k are reordered for the architecture llama; vectors are F32,
matrices of the output type. Tokens are made up: what a tokenizer's files say is not looked at.
"""

import argparse
import json
import pathlib
import sys

import numpy as np

import native

# model_type: architecture
ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "phi3": "phi3",
    "olmo2": "olmo2",
    "olmo3": "olmo2",
}


def name_map(architecture, blocks):
    import gguf

    (arch,) = [a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == architecture]
    return gguf.get_tensor_name_map(arch, blocks)


def gguf_name(names, name):
    return names.get_name(name, try_suffixes=(".weight", ".bias"))


def heads_of(name, config):
    """Heads whose halves alternate, for a tensor of the architecture llama; 0: rows stay."""
    heads = config["num_attention_heads"]
    if "q_proj." in name:
        return heads
    return config.get("num_key_value_heads", heads) if "k_proj." in name else 0


def alternate(array, heads):
    return array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def restore(array, heads):
    """alternate backwards."""
    return array.reshape(heads, array.shape[0] // heads // 2, 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def add_metadata(writer, config, file_type):
    import gguf

    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    rope = config.get("rope_parameters") or {}
    writer.add_type("model")
    writer.add_name("template")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads", heads))
    writer.add_rope_freq_base(rope.get("rope_theta", 10000.0))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_file_type(file_type)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_rope_dimension_count(head_dim)
    tokens = [f"<{i}>" for i in range(config["vocab_size"])]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([gguf.TokenType.NORMAL] * len(tokens))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def make_template(checkpoint, path, outtype="f16"):
    import gguf
    from gguf import quants

    config = json.loads((pathlib.Path(checkpoint) / "config.json").read_text())
    architecture = ARCHITECTURES[config["model_type"]]
    kind = {"f32": "F32", "f16": "F16", "bf16": "BF16"}[outtype]
    matrices = gguf.GGMLQuantizationType[kind]
    file_type = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16"}[outtype]
    names = name_map(architecture, config["num_hidden_layers"])
    writer = gguf.GGUFWriter(path, architecture)
    add_metadata(writer, config, gguf.LlamaFileType[file_type])
    for name, (dtype, array) in native.read_checkpoint(checkpoint).items():
        array = native.as_float32(dtype, array)
        heads = heads_of(name, config) if architecture == "llama" else 0
        array = alternate(array, heads) if heads else array
        kept = gguf.GGMLQuantizationType.F32 if array.ndim == 1 else matrices
        writer.add_tensor(gguf_name(names, name), quants.quantize(array, kept), raw_dtype=kept)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", required=True)
    parser.add_argument("checkpoint", type=pathlib.Path)
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("--outtype", choices=("f32", "f16", "bf16"), default="f16")
    args = parser.parse_args()
    sys.path[:0] = args.packages.split(":")
    make_template(args.checkpoint, args.file, args.outtype)


if __name__ == "__main__":
    main()
