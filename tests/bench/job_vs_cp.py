#!/usr/bin/env python3
"""Wall time of a quantization job over `cp -r` of its source plus fsync, paired in one run, on disk and on a RAM disk.

usage: job_vs_cp.py [--where disk|ram|both] [--pairs 3] [--layers 10] [--dir DIR] [--ram /dev/shm] [--workers 2]
                    [--memory-budget 1GiB] [sinqctl submit flags...]
Copy and job take turns, so that both see the same machine. On disk the page cache is dropped before each (needs root);
on the RAM disk memory is first written once and freed, because the first touch of a fresh page is slow in a virtual
machine and would be charged to whoever comes first. Prints a table and one JSON line; figures go into RESULTS.md.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "e2e")]
import harness  # noqa: E402
import make_checkpoint  # noqa: E402


def drop_caches():
    os.sync()
    try:
        pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError as error:
        sys.exit(f"job_vs_cp: the page cache cannot be dropped ({error.strerror}); run this as root.")


def fsync_tree(directory):
    for path in [*directory.rglob("*"), directory]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def time_copy(source, target):
    start = time.monotonic()
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    fsync_tree(target)
    return time.monotonic() - start


def time_job(server, source, target, flags):
    start = time.monotonic()
    result = server.submit(source, target, "--wait", "-q", *flags, timeout=1800)
    seconds = time.monotonic() - start
    if result.code != 0:
        sys.exit(f"job_vs_cp: {result}\n{server.tail()}")
    return seconds


def warm_memory(directory, size_bytes):
    block = bytes(1 << 24)
    path = directory / "warm"
    with open(path, "wb") as file:
        for _ in range(size_bytes // len(block)):
            file.write(block)
    path.unlink()


def measure(where, base, args, flags):
    base = pathlib.Path(tempfile.mkdtemp(prefix="sinq-bench-", dir=base))
    try:
        source = base / "source"
        if where == "ram":
            warm_memory(base, int(args.layers * 1.1 * (1 << 30)))
        total = make_checkpoint.make(source, args.layers, args.vocab, 1 << 30)
        pairs = []
        for _ in range(args.pairs):
            pairs.append(one_pair(where, base, source, args, flags))
            print(
                f"  {where}: cp {pairs[-1]['cp']:.2f} s, job {pairs[-1]['job']:.2f} s, "
                f"ratio {pairs[-1]['job'] / pairs[-1]['cp']:.2f}, server's processor time {pairs[-1]['cpu']:.2f} s",
                flush=True,
            )
        ratios = sorted(p["job"] / p["cp"] for p in pairs)
        return {
            "where": where,
            "source_gib": round(total / (1 << 30), 2),
            "pairs": args.pairs,
            "ratio_median": round(statistics.median(ratios), 3),
            "ratio_min": round(ratios[0], 3),
            "ratio_max": round(ratios[-1], 3),
            "cp_s": round(statistics.median(p["cp"] for p in pairs), 2),
            "job_s": round(statistics.median(p["job"] for p in pairs), 2),
            "job_cpu_s": round(statistics.median(p["cpu"] for p in pairs), 2),
            "peak_rss_mib": max(p["rss"] for p in pairs) >> 20,
            "read_per_source_byte": round(max(p["read"] for p in pairs) / total, 4),
            "output_gib": round(pairs[0]["output"] / (1 << 30), 2),
        }
    finally:
        shutil.rmtree(base, ignore_errors=True)


def one_pair(where, base, source, args, flags):
    if where == "disk":
        drop_caches()
    copy = time_copy(source, base / "copy")
    shutil.rmtree(base / "copy")
    return {"cp": copy, **one_job(where, base, source, args, flags)}


def one_job(where, base, source, args, flags):
    home = base / "server"
    home.mkdir()
    server = harness.Server(home, "--workers", str(args.workers), "--memory-budget", args.memory_budget, roots=[base])
    server.start()
    try:
        if where == "disk":
            drop_caches()
        before, cpu_before = server.io()["rchar"], server.cpu_seconds()
        job = time_job(server, source, base / "job", flags)
        read, rss = server.io()["rchar"] - before, server.peak_memory_bytes()
        cpu = server.cpu_seconds() - cpu_before
    finally:
        server.stop()
    output = sum(p.stat().st_size for p in (base / "job").iterdir())
    shutil.rmtree(base / "job")
    shutil.rmtree(home)
    return {"job": job, "cpu": cpu, "rss": rss, "read": read, "output": output}


def cpu_name():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(": ", 1)[1]
    return "unknown"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--where", choices=["disk", "ram", "both"], default="both")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--dir", default=str(harness.ROOT / "build"))
    parser.add_argument("--ram", default="/dev/shm")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--memory-budget", default="1GiB")
    args, flags = parser.parse_known_args()
    print(f"{cpu_name()}, {os.cpu_count()} cores, {args.workers} workers, budget {args.memory_budget}")
    for where, base in (("disk", args.dir), ("ram", args.ram)):
        if args.where in (where, "both"):
            print(json.dumps(measure(where, base, args, flags)), flush=True)


if __name__ == "__main__":
    main()
