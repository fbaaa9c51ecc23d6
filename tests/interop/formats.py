"""Independent readers of compressed-tensors, AWQ, GPTQ and HQQ checkpoints: numpy and the formats' descriptions.

usage: formats.py DIR DENSE_DIR      writes an ordinary F32 checkpoint with the dequantized weights
Everything is computed in F32: a code minus a zero is a small integer (or, for HQQ, a rounded real), times a scale.
"""

import json
import pathlib
import sys

import numpy as np

import native

# AWQ: nibble i of a word belongs to column AWQ_ORDER[i] of its eight.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def stream(words, bits, count):
    """The first `count` fields of little-endian bit streams along the last axis of `words`."""
    lanes = np.ascontiguousarray(words).view(np.uint32)
    bit = (lanes[..., None] >> np.arange(32, dtype=np.uint32)) & 1
    bit = bit.reshape(*lanes.shape[:-1], -1)[..., : count * bits].reshape(*lanes.shape[:-1], count, bits)
    return (bit << np.arange(bits, dtype=np.uint32)).sum(-1).astype(np.int32)


def nibbles(words):
    """AWQ: [.., n] words to [.., 8 n] codes."""
    fields = (words.view(np.uint32)[..., None] >> (4 * np.arange(8, dtype=np.uint32))) & 15
    out = np.empty_like(fields)
    out[..., list(AWQ_ORDER)] = fields
    return out.reshape(*words.shape[:-1], -1).astype(np.int32)


def spread(values, count):
    """Values by group along the last axis, repeated for every column."""
    return np.repeat(values, count // values.shape[-1], axis=-1)


def compressed_tensors(tensors, module, config):
    groups = config["config_groups"].values()
    named = [g for g in groups if module in g["targets"]] or [g for g in groups if "Linear" in g["targets"]]
    weights = named[0]["weights"]
    bits = weights["num_bits"]
    rows, cols = tensors[f"{module}.weight_shape"][1]
    codes = stream(tensors[f"{module}.weight_packed"][1], bits, cols)
    scale = native.as_float32(*tensors[f"{module}.weight_scale"])
    if cols // scale.shape[1] != weights["group_size"]:
        raise ValueError(f"{module}: {scale.shape[1]} groups")
    if weights["symmetric"]:
        zero = np.full(scale.shape, 1 << (bits - 1))
    else:
        zero = stream(tensors[f"{module}.weight_zero_point"][1].T, bits, rows).T
    return (codes - spread(zero, cols)).astype(np.float32) * spread(scale, cols)


def awq(tensors, module, config):
    codes = nibbles(tensors[f"{module}.qweight"][1]).T
    scale = tensors[f"{module}.scales"][1].astype(np.float32).T
    zero = nibbles(tensors[f"{module}.qzeros"][1]).T
    cols = codes.shape[1]
    if cols // scale.shape[1] != config["group_size"]:
        raise ValueError(f"{module}: {scale.shape[1]} groups")
    return (codes - spread(zero, cols)).astype(np.float32) * spread(scale, cols)


def gptq(tensors, module, config):
    bits, rows = config["bits"], tensors[f"{module}.scales"][1].shape[1]
    group = tensors[f"{module}.g_idx"][1]
    codes = stream(tensors[f"{module}.qweight"][1].T, bits, len(group))
    zero = stream(tensors[f"{module}.qzeros"][1], bits, rows).T + (config["checkpoint_format"] == "gptq")
    scale = tensors[f"{module}.scales"][1].astype(np.float32).T
    return (codes - zero[:, group]).astype(np.float32) * scale[:, group]


def text(tensors, name):
    return bytes(tensors[name][1]).decode()


def hqq(tensors, module, _config):
    rows, cols = tensors[f"{module}.shape"][1]
    group = int(tensors[f"{module}.group_size"][1])
    words = tensors[f"{module}.W_q"][1]
    codes = native.unpack_codes(words, text(tensors, f"{module}.packing"), rows * cols // group).astype(np.float32)
    scale, zero = (native.as_float32(*tensors[f"{module}.{part}"]) for part in ("scale", "zero"))
    return ((codes - zero) * scale).reshape(rows, cols)


# quant_method: reader, the tensor that every quantized layer has, names of a layer's tensors
READERS = {
    "compressed-tensors": (
        compressed_tensors,
        ".weight_packed",
        ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape"),
    ),
    "awq": (awq, ".qweight", ("qweight", "qzeros", "scales")),
    "gptq": (gptq, ".qweight", ("qweight", "qzeros", "scales", "g_idx")),
    "hqq": (hqq, ".W_q", None),
}


def section(directory):
    config = json.loads((pathlib.Path(directory) / "config.json").read_text())
    return config.get("quantization_config") or {}


def is_format(directory):
    return section(directory).get("quant_method") in READERS


def dense_tensors(directory):
    """{name: F32 array} of the whole model, and the names of its quantized modules."""
    tensors, config = native.read_checkpoint(directory), section(directory)
    reader, mark, parts = READERS[config["quant_method"]]
    modules = [name.removesuffix(mark) for name in tensors if name.endswith(mark)]
    own = {f"{m}.{p}" for m in modules for p in parts} if parts else set()
    if parts is None:
        own = {n for n in tensors if n.rpartition(".")[0] in set(modules) and not n.endswith(".bias")}
    dense = {n: native.as_float32(d, a) for n, (d, a) in tensors.items() if n not in own}
    for module in modules:
        dense[f"{module}.weight"] = reader(tensors, module, config)
    return dense, modules


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    native.save_dense(dense_tensors(sys.argv[1])[0], sys.argv[1], sys.argv[2])
