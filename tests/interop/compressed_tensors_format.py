"""An independent reader of compressed-tensors "pack-quantized" checkpoints: numpy and the format's description only.

Codes lie along in_features, zeros along out_features, both as one little-endian stream of bits in words of 32.
W' = (code - zero) * scale, in F32; a symmetric layer has no zero tensor and stands around 2^(bits - 1).
"""

import json
import pathlib

import numpy as np

import native

SUFFIXES = (".weight_packed", ".weight_scale", ".weight_shape", ".weight_zero_point")


def unpack_bits(words, bits, count):
    """Fields of `bits` from the last axis of I32 `words`: [..., n] -> [..., count]."""
    stream = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=-1, bitorder="little")
    fields = stream[..., : count * bits].reshape(*stream.shape[:-1], count, bits)
    return (fields.astype(np.int32) << np.arange(bits)).sum(-1)


def dequantize(tensors, module, bits):
    rows, cols = (int(n) for n in tensors[f"{module}.weight_shape"][1])
    codes = unpack_bits(tensors[f"{module}.weight_packed"][1], bits, cols)
    scale = native.as_float32(*tensors[f"{module}.weight_scale"])
    zero = np.full(scale.shape, 1 << (bits - 1))
    if f"{module}.weight_zero_point" in tensors:
        zero = unpack_bits(tensors[f"{module}.weight_zero_point"][1].T, bits, rows).T
    group = cols // scale.shape[1]
    centred = (codes - np.repeat(zero, group, axis=1)).astype(np.float32)
    return centred * np.repeat(scale, group, axis=1)


def bits_of(config):
    """The width of every layer; checkpoints with several are not read here."""
    groups = config["quantization_config"]["config_groups"].values()
    widths = {group["weights"]["num_bits"] for group in groups}
    if len(widths) != 1:
        raise ValueError(f"one width was expected, the checkpoint has {sorted(widths)}")
    return widths.pop()


def dense_tensors(directory):
    """Ordinary tensors of the checkpoint: {name: F32 array}."""
    tensors = native.read_checkpoint(directory)
    bits = bits_of(json.loads((pathlib.Path(directory) / "config.json").read_text()))
    modules = [n.removesuffix(".weight_packed") for n in tensors if n.endswith(".weight_packed")]
    dense = {n: native.as_float32(d, a) for n, (d, a) in tensors.items() if not n.endswith(SUFFIXES)}
    return dense | {f"{m}.weight": dequantize(tensors, m, bits) for m in modules}


def effective_bits(directory):
    """Bits per quantized weight; the shape tensors are not counted."""
    tensors = native.read_checkpoint(directory)
    stored = sum(a.nbytes for n, (_, a) in tensors.items() if n.endswith(SUFFIXES) and not n.endswith("_shape"))
    weights = sum(int(np.prod(a)) for n, (_, a) in tensors.items() if n.endswith(".weight_shape"))
    return 8 * stored / weights
