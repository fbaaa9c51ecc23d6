#!/usr/bin/env python3
"""Writes a large random bf16 checkpoint with the layer shapes of Llama 8B, quickly. Needs nothing but Python 3.

usage: make_checkpoint.py DIR [--layers 10] [--vocab 4096] [--shard-gib 1]
10 layers are 4.1 GiB. Values are gaussian, times a log-normal factor for each row and each column, as trained weights
roughly are. Rows are drawn from a pool of prepared ones, so that making 4 GiB takes seconds, not minutes.
"""

import argparse
import array
import json
import pathlib
import random
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
import harness  # noqa: E402

HIDDEN, INTER, HEADS, KV_HEADS, HEAD_DIM = 4096, 14336, 32, 8, 128
POOL_ROWS = 96
SPREAD = 0.3


def shapes(layers, vocab):
    kv = KV_HEADS * HEAD_DIM
    yield "model.embed_tokens.weight", (vocab, HIDDEN)
    for i in range(layers):
        p = f"model.layers.{i}."
        yield p + "input_layernorm.weight", (HIDDEN,)
        yield p + "mlp.down_proj.weight", (HIDDEN, INTER)
        yield p + "mlp.gate_proj.weight", (INTER, HIDDEN)
        yield p + "mlp.up_proj.weight", (INTER, HIDDEN)
        yield p + "post_attention_layernorm.weight", (HIDDEN,)
        yield p + "self_attn.k_proj.weight", (kv, HIDDEN)
        yield p + "self_attn.o_proj.weight", (HIDDEN, HIDDEN)
        yield p + "self_attn.q_proj.weight", (HIDDEN, HIDDEN)
        yield p + "self_attn.v_proj.weight", (kv, HIDDEN)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (vocab, HIDDEN)


def bf16_rows(values):
    """F32 array -> BF16 bytes, truncated (random values need no rounding)."""
    return values.tobytes()[2::4], values.tobytes()[3::4]


def pool_of(cols, rng):
    normals = [rng.gauss(0, 0.02) for _ in range(1 << 16)]
    column = [rng.lognormvariate(0, SPREAD) for _ in range(cols)]
    rows = []
    for _ in range(POOL_ROWS):
        row_factor, start = rng.lognormvariate(0, SPREAD), rng.randrange(len(normals) - cols)
        values = array.array("f", (n * c * row_factor for n, c in zip(normals[start : start + cols], column)))
        low, high = bf16_rows(values)
        row = bytearray(2 * cols)
        row[0::2], row[1::2] = low, high
        rows.append(bytes(row))
    return rows


def shards_of(tensors, limit):
    shard, size = [], 0
    for name, shape in tensors:
        bytes_ = 2 * harness.size_of(shape)
        if shard and size + bytes_ > limit:
            yield shard
            shard, size = [], 0
        shard.append((name, shape))
        size += bytes_
    yield shard


def write_shard(path, tensors, pools, rng):
    with open(path, "wb", buffering=1 << 22) as out:
        out.write(harness.safetensors_header([(n, "BF16", s, 2 * harness.size_of(s)) for n, s in tensors]))
        for _, shape in tensors:
            if len(shape) == 1:
                out.write(b"\x80\x3f" * shape[0])
                continue
            for begin in range(0, shape[0], 1024):
                out.write(b"".join(rng.choices(pools[shape[1]], k=min(1024, shape[0] - begin))))


def make(directory, layers, vocab, shard_bytes, seed=1):
    """Returns the number of tensor bytes."""
    directory.mkdir(parents=True)
    rng = random.Random(seed)
    pools = {HIDDEN: pool_of(HIDDEN, rng), INTER: pool_of(INTER, rng)}
    shards = list(shards_of(shapes(layers, vocab), shard_bytes))
    weight_map, total = {}, 0
    for k, tensors in enumerate(shards):
        name = f"model-{k + 1:05}-of-{len(shards):05}.safetensors"
        write_shard(directory / name, tensors, pools, rng)
        weight_map |= {tensor: name for tensor, _ in tensors}
        total += sum(2 * harness.size_of(shape) for _, shape in tensors)
    (directory / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map})
    )
    config = harness.llama_config(HIDDEN, INTER, layers, vocab)
    config |= {"num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM}
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    return total


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=pathlib.Path)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--shard-gib", type=float, default=1)
    args = parser.parse_args()
    start = time.monotonic()
    total = make(args.dir, args.layers, args.vocab, int(args.shard_gib * (1 << 30)))
    print(f"{args.dir}: {total / (1 << 30):.2f} GiB in {time.monotonic() - start:.1f} s")


if __name__ == "__main__":
    main()
