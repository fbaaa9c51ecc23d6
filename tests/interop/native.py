#!/usr/bin/env python3
"""An independent reader of the SINQ native format: numpy and the format's description, none of our or the authors' code.

usage: native.py DIR DENSE_DIR      writes an ordinary F32 checkpoint with the dequantized weights
Arithmetic is the authors' reader's at compute dtype float32: scales and zeros stored in 8 bits are put together in F16,
everything after that is F32, in the order ((code - zero) * scale) * column scale.
"""

import json
import pathlib
import shutil
import struct
import sys

import numpy as np

DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
    "I64": np.int64,
    "I32": np.int32,
    "U32": np.uint32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
    "F8_E4M3": np.uint8,
}
SIDECAR = "model.safetensors.index.json.meta.json"
INDEX = "model.safetensors.index.json"
# packing: bits of a code, codes in a word, type of a word
PACKINGS = {
    "6bit_32": (6, 5, np.uint32),
    "5bit_32": (5, 6, np.uint32),
    "4bit_u8": (4, 2, np.uint8),
    "3bit_32": (3, 10, np.uint32),
    "2bit_u8": (2, 4, np.uint8),
}


def read_header(path):
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(length)), 8 + length


def read_safetensors(path):
    """{name: (dtype, array)}; BF16 and FP8 as their bits."""
    header, start = read_header(path)
    data = np.fromfile(path, dtype=np.uint8, offset=start)
    out, end = {}, 0
    entries = [(name, e) for name, e in header.items() if name != "__metadata__"]
    for name, entry in sorted(entries, key=lambda item: item[1]["data_offsets"]):
        begin, stop = entry["data_offsets"]
        if begin != end:
            raise ValueError(f"{path}: gap or overlap before {name}: {end} .. {begin}")
        end = stop
        values = (
            data[begin:stop].view(DTYPES[entry["dtype"]]) if stop > begin else np.empty(0, DTYPES[entry["dtype"]])
        )
        out[name] = (entry["dtype"], values.reshape(entry["shape"]))
    if end != len(data):
        raise ValueError(f"{path}: {len(data) - end} bytes after the last tensor")
    return out


def write_safetensors(path, tensors):
    """{name: (dtype, array)} -> file; sorted by name, contiguous."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name in sorted(tensors):
        dtype, array = tensors[name]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in sorted(tensors):
            file.write(np.ascontiguousarray(tensors[name][1]).tobytes())


def read_checkpoint(directory):
    """All tensors of a directory; with an index, exactly what the index names."""
    directory = pathlib.Path(directory)
    if not (directory / INDEX).exists():
        return read_safetensors(directory / "model.safetensors")
    index = json.loads((directory / INDEX).read_text())
    shards = {name: read_safetensors(directory / name) for name in sorted(set(index["weight_map"].values()))}
    tensors = {name: shards[shard][name] for name, shard in index["weight_map"].items()}
    listed, present = set(index["weight_map"]), {n for shard in shards.values() for n in shard}
    if listed != present:
        raise ValueError(f"{directory}: not in the index: {sorted(present - listed)[:5]}")
    total = sum(array.nbytes for _, array in tensors.values())
    if index["metadata"]["total_size"] != total:
        raise ValueError(f"{directory}: total_size is {index['metadata']['total_size']}, the tensors have {total}")
    return tensors


def as_float32(dtype, array):
    if dtype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    if dtype in ("F16", "F32", "F64"):
        return array.astype(np.float32)
    return array


def unpack_codes(words, packing, rows):
    if not packing or packing == "8bit_u8":
        return words
    bits, per_word, kind = PACKINGS[packing]
    words = words.view(kind)
    mask = (1 << bits) - 1
    # The first run of rows lies in the most significant field.
    fields = [(words >> (bits * (per_word - 1 - i))) & mask for i in range(per_word)]
    return np.concatenate(fields, axis=0)[:rows]


def auxiliary(tensors, prefix, shape):
    """A scale or zero: stored as it is, or as 8-bit steps from a minimum, put together in F16."""
    if prefix in tensors:
        return tensors[prefix][1].astype(np.float32)
    code, step, low = (tensors[f"{prefix}.{part}"][1] for part in "xsm")
    if step.dtype == np.float16:
        with np.errstate(over="ignore"):
            value = (code.astype(np.float16) * step).astype(np.float16) + low
    else:
        value = code.astype(np.float32) * step + low
    return value.reshape(shape).astype(np.float32)


def dequantize(tensors, module, meta):
    rows_out, cols = meta["shape"]
    words = tensors[f"{module}.W_q"][1]
    group = words.shape[-1]
    rows = rows_out * cols // group
    codes = unpack_codes(words, meta["packing"], rows).astype(np.float32)
    scale = auxiliary(tensors, f"{module}.meta.scale", meta.get("scale.shape"))
    zero = auxiliary(tensors, f"{module}.meta.zero", meta.get("zero.shape"))
    column = tensors[f"{module}.meta.scale2"][1].astype(np.float32)
    return (((codes - zero) * scale).reshape(rows_out, cols) * column.reshape(1, cols)).astype(np.float32)


def effective_bits(tensors, sidecar):
    """Bits per quantized weight, everything that belongs to its layer counted."""
    stored = sum(
        a.nbytes
        for n, (_, a) in tensors.items()
        if any(
            n.startswith(f"{m}.W_q") or n.startswith(f"{m}.meta.")
            for m in [n.split(".meta.")[0].removesuffix(".W_q")]
            if m in sidecar
        )
    )
    weights = sum(int(np.prod(entry["meta"]["shape"])) for entry in sidecar.values())
    return 8 * stored / weights


def dense_tensors(directory):
    """Ordinary tensors of a native checkpoint: {name: F32 array}, and the sidecar."""
    directory = pathlib.Path(directory)
    tensors = read_checkpoint(directory)
    sidecar = json.loads((directory / SIDECAR).read_text())
    dense = {}
    for name, (dtype, array) in tensors.items():
        if name.endswith(".W_q") or ".meta." in name or name.startswith("model.rotary_emb."):
            continue
        dense[name] = as_float32(dtype, array)
    for module, entry in sidecar.items():
        dense[f"{module}.weight"] = dequantize(tensors, module, entry["meta"])
    return dense, sidecar


def write_dense(directory, out):
    directory, out = pathlib.Path(directory), pathlib.Path(out)
    dense, _ = dense_tensors(directory)
    save_dense(dense, directory, out)


def save_dense(dense, config_from, out):
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    write_safetensors(out / "model.safetensors", {n: ("F32", a.astype(np.float32)) for n, a in dense.items()})
    config = json.loads((pathlib.Path(config_from) / "config.json").read_text())
    config.pop("quantization_config", None)
    config.pop("torch_dtype", None)
    config["dtype"] = "float32"
    (out / "config.json").write_text(json.dumps(config, indent=2))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        if (pathlib.Path(config_from) / name).exists():
            shutil.copy(pathlib.Path(config_from) / name, out / name)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    write_dense(sys.argv[1], sys.argv[2])
