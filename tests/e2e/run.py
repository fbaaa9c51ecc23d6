#!/usr/bin/env python3
"""Runs the end-to-end tests against build/release/bin (or $SINQ_BIN). Last line: "N passed, N failed, N skipped".

usage: tests/e2e/run.py [NAME...]      NAME: part of a test's name, "kill" or "test_bad_input"
"""

import pathlib
import sys
import time
import unittest

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))


class Summary(unittest.TextTestResult):
    def startTest(self, test):
        self.began = time.monotonic()
        super().startTest(test)

    def stopTest(self, test):
        seconds = time.monotonic() - self.began
        if seconds > 5:
            self.stream.write(f"    ({seconds:.1f} s)\n")
        super().stopTest(test)


def run(directory, wanted, pattern="test_*.py"):
    suite = unittest.TestSuite(
        test
        for test in flatten(unittest.defaultTestLoader.discover(str(directory), pattern=pattern))
        if not wanted or any(word in test.id() for word in wanted) or "_FailedTest" in test.id()
    )
    result = unittest.TextTestRunner(stream=sys.stdout, verbosity=2, resultclass=Summary).run(suite)
    failed = len(result.failures) + len(result.errors) + len(result.unexpectedSuccesses)
    skipped = len(result.skipped)
    print(f"{max(0, result.testsRun - failed - skipped)} passed, {failed} failed, {skipped} skipped")
    return int(failed > 0 or result.testsRun == 0)


def flatten(suite):
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from flatten(item)
        else:
            yield item


if __name__ == "__main__":
    sys.exit(run(HERE, sys.argv[1:]))
