#!/usr/bin/env python3
"""Opens a SINQ native checkpoint with the authors' loader on CPU and compares it with the dequantized weights.

usage: load_sinq.py DIR [--expect-dense DENSE_DIR] [--sinq CHECKOUT] [--tol 1e-5]
Without --expect-dense the weights that native.py reads are expected. One JSON line; exit code 1 if logits are not finite
or differ by more than --tol. CHECKOUT: a work tree of the authors' code instead of the package.
"""

import argparse
import json
import sys

import torch

import authors
import quality


def check(directory, dense_dir=None, ids=None, path=None):
    """{"finite", "max_logit_diff", "max_logit", "layers"}"""
    ids = quality.token_ids()[:2] if ids is None else ids
    model = authors.load(directory, path=path)
    with torch.no_grad():
        got = model(ids).logits.float()
        want = quality.open_model(dense_dir or directory)(ids).logits.float()
    return {
        "finite": bool(got.isfinite().all()),
        "max_logit_diff": (got - want).abs().max().item(),
        "max_logit": want.abs().max().item(),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir")
    parser.add_argument("--expect-dense")
    parser.add_argument("--sinq")
    parser.add_argument("--tol", type=float, default=1e-5)
    args = parser.parse_args()
    result = check(args.dir, args.expect_dense, path=args.sinq)
    print(json.dumps(result))
    return int(not result["finite"] or not result["max_logit_diff"] <= args.tol)


if __name__ == "__main__":
    sys.exit(main())
