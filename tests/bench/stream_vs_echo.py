#!/usr/bin/env python3
"""Bytes per second of QuantizeTensors over an empty echo stream with the same chunks, in one run.

usage: stream_vs_echo.py [--workers 2] [stream_bench arguments: rows cols tensors repeats]
Starts a sinqd of its own and runs build/release/bin/stream_bench against it.
"""
import argparse
import pathlib
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
import harness  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", default="2")
    args, rest = parser.parse_known_args()
    with harness.workspace() as home:
        server = harness.Server(home, "--workers", args.workers).start()
        try:
            command = [harness.BIN / "stream_bench", "--server", server.address, *rest]
            return subprocess.run(command, check=False).returncode
        finally:
            server.stop()


if __name__ == "__main__":
    sys.exit(main())
