#!/usr/bin/env python3
"""The quality tables of RESULTS.md: our ways of quantizing against RTN, HQQ and the authors' SINQ, in one run.

usage: build/venv/bin/python tests/bench/quality_table.py [--model DIR --tokens FILE] [--bits 4 3] [--group 64 128]
                                                          [--only language|encoder] [--ways REGEX]
Language model: KL(original || quantized) and what goes with it (tests/interop/quality.py) on the given token ids.
Encoder: real pre-trained weights, mean 1 - cosine of sentence embeddings (tests/interop/encoder.py).
Our side is a sinqd of build/release/bin (SINQ_BIN), read back by readers that share no code with it; the other side is
PyPI's sinq on the CPU in F32. "vs authors": against the authors' SINQ with the same bits, groups and storage of scales.
Prints Markdown; --ways limits the rows to names that match, but the authors' SINQ and our default are always there. A
way that this sinqd does not have is left out and named on standard error.
"""

import argparse
import contextlib
import json
import pathlib
import re
import sys

import torch

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "interop"), str(ROOT / "tests" / "e2e")]
import authors  # noqa: E402
import encoder  # noqa: E402
import formats  # noqa: E402
import native  # noqa: E402
import quality  # noqa: E402
from harness import NATIVE, SAMPLE, Server, workspace  # noqa: E402

# Our ways: name and flags of sinqctl submit. The folded ones need layers before and after, so a language model.
OURS = [
    ("RTN", ["--method", "rtn"]),
    ("HQQ", ["--method", "hqq"]),
    ("upstream profile", ["--profile", "upstream"]),
    ("SINQ + HQQ", ["--method", "sinq_hqq"]),
    ("default", []),
    ("default, f16 scales", ["--aux", "f16"]),
    ("default, symmetric", ["--symmetric"]),
]
FOLDED = [
    ("compressed-tensors, folded, symmetric", ["--format", "compressed-tensors", "--symmetric"]),
    ("compressed-tensors, folded, asymmetric", ["--format", "compressed-tensors", "--asymmetric"]),
    ("compressed-tensors, not folded, symmetric", ["--format", "compressed-tensors", "--symmetric", "--fold", "off"]),
    ("gptq, folded, symmetric", ["--format", "gptq", "--symmetric"]),
    ("gptq, folded, asymmetric", ["--format", "gptq", "--asymmetric"]),
    ("gptq, not folded, symmetric", ["--format", "gptq", "--symmetric", "--fold", "off"]),
]
BASELINE = "authors, SINQ"
THEIRS = [("authors, RTN", "rtn"), ("authors, HQQ", "hqq"), ("authors, SINQ + HQQ", "sinq_hqq"), (BASELINE, "sinq")]


class LanguageModel:
    """The sample model on given ids. `fields`: what is printed, the first is compared."""

    fields = {"KL": "kl", "KL 99.9 %": "kl_p999", "ppl ratio": "perplexity_ratio", "same top": "same_top"}
    excluded = []
    folds = True

    def __init__(self, directory, ids):
        self.directory, self.ids = pathlib.Path(directory), ids
        self.reference = quality.log_probabilities(quality.open_model(directory), ids)

    def figures(self, dense):
        other = quality.log_probabilities(quality.model_of(self.directory, dense), self.ids)
        return quality.compare(self.reference, other, self.ids)


class Encoder:
    fields = {"1 - cosine": "error"}
    excluded = ["--exclude", encoder.UNUSED]
    folds = False

    def __init__(self):
        self.directory = encoder.directory()
        self.reference = encoder.embeddings(encoder.model_of(quality.dense_of(self.directory)))

    def figures(self, dense):
        return {"error": encoder.error(self.reference, encoder.embeddings(encoder.model_of(dense)))}


def packed_bits(directory, dense, modules):
    """Bits per quantized weight of a compressed-tensors (without its shape tensors) or GPTQ checkpoint."""
    parts = ("weight_packed", "weight_scale", "weight_zero_point", "qweight", "qzeros", "scales", "g_idx")
    tensors = native.read_checkpoint(directory)
    stored = sum(tensors[f"{m}.{p}"][1].nbytes for m in modules for p in parts if f"{m}.{p}" in tensors)
    return 8 * stored / sum(dense[f"{m}.weight"].size for m in modules)


def read_output(directory):
    """({name: F32 array}, bits per weight) of a published directory."""
    if formats.is_format(directory):
        dense, modules = formats.dense_tensors(directory)
        return dense, packed_bits(directory, dense, modules)
    dense, sidecar = native.dense_tensors(directory)
    return dense, native.effective_bits(native.read_checkpoint(directory), sidecar)


def published(server, source, out, flags):
    """The directory, or None where this sinqd refuses the flags."""
    native_unless_named = () if "--format" in flags else NATIVE
    result = server.submit(source, out, "--wait", *native_unless_named, *flags)
    if result.code == 2:
        print(f"left out: {' '.join(flags)}: {(result.err or result.out).strip().splitlines()[0]}", file=sys.stderr)
        return None
    if result.code != 0:
        raise RuntimeError(f"{flags}: {result}\n{server.tail()}")
    return out


def wanted(ways, pattern, always):
    return [way for way in ways if way[0] == always or re.search(pattern, way[0])]


def rows_of(server, home, subject, bits, group, pattern):
    """[(name, bits per weight, figures)], ours and the authors'. "default" names the layers that both quantize."""
    rows, modules, size = [], None, None
    for name, flags in wanted(OURS + (FOLDED if subject.folds else []), pattern, "default"):
        out = home / f"{type(subject).__name__}-{bits}-{group}-{len(rows)}"
        flags = ["--bits", str(bits), "--group-size", str(group), *flags, *subject.excluded]
        if published(server, subject.directory, out, flags) is None:
            continue
        dense, width = read_output(out)
        if name == "default":
            modules, size = list(native.dense_tensors(out)[1]), width
        rows.append((name, width, subject.figures(dense)))
    theirs = []
    for name, base in wanted(THEIRS, pattern, BASELINE):
        with contextlib.redirect_stdout(sys.stderr):
            dense = authors.quantize_dense(subject.directory, modules, bits=bits, group_size=group, base=base)
        theirs.append((name, size, subject.figures(dense)))
    return theirs + rows


def table(subject, rows):
    head = ["", "bits per weight", *subject.fields, "vs authors"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    key = next(iter(subject.fields.values()))
    base = next(figures[key] for name, _, figures in rows if name == BASELINE)
    for name, size, figures in rows:
        values = [f"{figures[field]:.5f}" for field in subject.fields.values()]
        change = f"{100 * (figures[key] / base - 1):+.1f} %"
        lines.append("| " + " | ".join([name, f"{size:.3f}", *values, change]) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=SAMPLE)
    parser.add_argument("--tokens", default=quality.SAMPLED)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3])
    parser.add_argument("--group", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--only", choices=("language", "encoder"))
    parser.add_argument("--ways", default="", help="regular expression: only rows whose name has a match")
    parser.add_argument("--json", help="also write all figures to this file")
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    makers = {"language": lambda: LanguageModel(args.model, quality.token_ids(args.tokens)), "encoder": Encoder}
    everything = {}
    with workspace() as home:
        server = Server(home, roots=[pathlib.Path(args.model).resolve().parent, encoder.PACKAGE]).start()
        try:
            for kind in [args.only] if args.only else makers:
                subject = makers[kind]()
                for bits in args.bits:
                    for group in args.group:
                        rows = rows_of(server, home, subject, bits, group, args.ways)
                        everything[f"{kind}/{bits}/{group}"] = {n: {"bits": b, **f} for n, b, f in rows}
                        print(f"\n{kind}, {bits} bits, groups of {group}\n\n{table(subject, rows)}", flush=True)
        finally:
            server.stop()
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(everything, indent=1))


if __name__ == "__main__":
    sys.exit(main())
