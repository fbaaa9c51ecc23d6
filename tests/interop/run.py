#!/usr/bin/env python3
"""Runs the interop tests with the Python environment of make_env.sh. Last line: "N passed, N failed, N skipped".

usage: build/venv/bin/python tests/interop/run.py [NAME...]
"""

import importlib.util
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
E2E = HERE.parent / "e2e"
sys.path[:0] = [str(HERE), str(E2E)]

spec = importlib.util.spec_from_file_location("e2e_run", E2E / "run.py")
e2e_run = importlib.util.module_from_spec(spec)
spec.loader.exec_module(e2e_run)

if __name__ == "__main__":
    sys.exit(e2e_run.run(HERE, sys.argv[1:]))
