#!/usr/bin/env python3
"""Wall time of a job by output format: every format in each round, so that all see the same machine.

usage: formats_in_turn.py [--where disk|ram] [--rounds 5] [--layers 5] [--dir DIR] [--ram /dev/shm] [--workers 2]
                          [--memory-budget 1GiB] [sinqctl submit flags...]
Prints medians, each format's ratio to compressed-tensors of its round, and one JSON line; figures go into RESULTS.md.
"""

import argparse
import collections
import json
import os
import pathlib
import shutil
import statistics
import tempfile

import job_vs_cp

FORMATS = ("compressed-tensors", "gptq", "awq", "hqq", "sinq")


def measure(base, args, flags):
    source = base / "source"
    if args.where == "ram":
        job_vs_cp.warm_memory(base, int(args.layers * 1.1 * (1 << 30)))
    total = job_vs_cp.make_checkpoint.make(source, args.layers, args.vocab, 1 << 30)
    jobs = collections.defaultdict(list)
    for _ in range(args.rounds):
        for name in FORMATS:
            jobs[name].append(job_vs_cp.one_job(args.where, base, source, args, ["--format", name, *flags]))
    print(f"{total / (1 << 30):.2f} GiB, {args.where}, {args.rounds} rounds, medians (min .. max)")
    result = {}
    for name in FORMATS:
        seconds = [job["job"] for job in jobs[name]]
        ratios = sorted(job["job"] / first["job"] for job, first in zip(jobs[name], jobs[FORMATS[0]], strict=True))
        cpu = statistics.median(job["cpu"] for job in jobs[name])
        result[name] = round(statistics.median(ratios), 3)
        print(
            f"  {name:20} {statistics.median(seconds):.2f} s ({min(seconds):.2f} .. {max(seconds):.2f}), "
            f"processor time {cpu:.2f} s, ratio {result[name]:.2f} ({ratios[0]:.2f} .. {ratios[-1]:.2f})",
            flush=True,
        )
    print(json.dumps(result))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--where", choices=["disk", "ram"], default="ram")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--dir", default=str(job_vs_cp.harness.ROOT / "build"))
    parser.add_argument("--ram", default="/dev/shm")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--memory-budget", default="1GiB")
    args, flags = parser.parse_known_args()
    print(f"{job_vs_cp.cpu_name()}, {os.cpu_count()} cores, {args.workers} workers, budget {args.memory_budget}")
    directory = args.ram if args.where == "ram" else args.dir
    base = pathlib.Path(tempfile.mkdtemp(prefix="sinq-bench-", dir=directory))
    try:
        measure(base, args, flags)
    finally:
        shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    main()
