"""kill -9 and SIGTERM in the middle of a job: the next process goes on, the bytes are those of an undisturbed run."""

import contextlib
import os
import random
import sqlite3
import time
import unittest

import harness
from harness import Server, state, workspace

ROUNDS = int(os.environ.get("SINQ_KILL_ROUNDS", "4"))


class CrashTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        space = workspace()
        cls.home = space.__enter__()
        cls.addClassCleanup(space.__exit__, None, None, None)
        cls.source = cls.home / "model"
        cls.source_bytes = harness.make_model(cls.source, hidden=2048, inter=5632, layers=8, vocab=4096, shards=3)
        with_server = cls.home / "reference-server"
        with_server.mkdir()
        server = Server(with_server, "--workers", "1", roots=[cls.home]).start()
        start = time.monotonic()
        result = server.submit(cls.source, cls.home / "reference", "--wait", *harness.NATIVE)
        cls.seconds = time.monotonic() - start
        server.stop()
        if result.code != 0:
            raise AssertionError(str(result))
        cls.want = harness.digests(cls.home / "reference")
        cls.rng = random.Random(20261124)

    def new_server(self, name):
        home = self.home / name
        home.mkdir()
        server = Server(home, "--workers", "1", roots=[self.home])
        self.addCleanup(server.stop)
        return server.start()

    def check_result(self, server, job_id, output):
        job = server.wait(job_id)
        self.assertEqual(state(job), "SUCCEEDED", str(job))
        self.assertEqual(harness.digests(output), self.want)
        self.assertEqual(harness.staging_left(self.home), [])
        return job

    def test_kill_9_at_random_moments(self):
        resumed = 0
        for number in range(ROUNDS):
            server = self.new_server(f"kill-{number}")
            output = self.home / f"kill-{number}-out"
            job_id = server.submit_detached(self.source, output, *harness.NATIVE)
            for _ in range(self.rng.randint(1, 2)):
                time.sleep(self.rng.uniform(0.05, 0.9) * self.seconds)
                server.kill()
                server.start()
            job = self.check_result(server, job_id, output)
            resumed += int(job["attempt"]) > 1
            server.stop()
        self.assertGreater(resumed, 0, "no kill hit a running job")

    def test_kill_9_right_after_submit_loses_nothing(self):
        server = self.new_server("early")
        output = self.home / "early-out"
        job_id = server.submit_detached(self.source, output, *harness.NATIVE)
        server.kill()
        server.start()
        self.check_result(server, job_id, output)

    def test_kill_9_around_the_end(self):
        server = self.new_server("late")
        output = self.home / "late-out"
        job_id = server.submit_detached(self.source, output, *harness.NATIVE)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not output.exists():
            if server.job(job_id)["progress"]["stage"].endswith("COMMIT"):
                break
            time.sleep(0.005)
        server.kill()
        server.start()
        self.check_result(server, job_id, output)

    def test_a_resumed_job_does_only_what_is_left(self):
        server = self.new_server("left")
        output = self.home / "left-out"
        job_id = server.submit_detached(self.source, output, *harness.NATIVE)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            progress = server.job(job_id)["progress"]
            if int(progress["bytes_done"]) > self.source_bytes * 0.6:
                break
            time.sleep(0.01)
        code, seconds = server.terminate()
        self.assertEqual(code, 0, server.tail())
        self.assertLess(seconds, 30)
        server.start()
        self.check_result(server, job_id, output)
        if int(server.job(job_id)["attempt"]) > 0 and not progress["stage"].endswith("DONE"):
            self.assertLess(server.io()["rchar"], self.source_bytes * 0.75, "finished tensors were read again")

    def test_sigterm_drains_with_exit_code_0_and_the_job_goes_on(self):
        server = self.new_server("drain")
        output = self.home / "drain-out"
        job_id = server.submit_detached(self.source, output, *harness.NATIVE)
        time.sleep(0.3 * self.seconds)
        code, seconds = server.terminate()
        self.assertEqual(code, 0, server.tail())
        self.assertLess(seconds, 30)
        server.start()
        self.check_result(server, job_id, output)

    def test_sigterm_of_an_idle_server_is_quick(self):
        server = self.new_server("idle")
        code, seconds = server.terminate()
        self.assertEqual(code, 0, server.tail())
        self.assertLess(seconds, 5)

    def test_waiting_client_survives_a_restart(self):
        server = self.new_server("reconnect")
        output = self.home / "reconnect-out"
        job_id = server.submit_detached(self.source, output, *harness.NATIVE)
        import threading

        answers = []
        watcher = threading.Thread(target=lambda: answers.append(server.ctl("watch", job_id)))
        watcher.start()
        time.sleep(0.3 * self.seconds)
        server.kill()
        time.sleep(0.3)
        server.start()
        watcher.join(90)
        self.assertTrue(answers and answers[0].code == 0, str(answers))
        self.check_result(server, job_id, output)


class FoldingCrashTest(unittest.TestCase):
    """The same with two phases: column scales are measured before any tensor is written."""

    # A slow rounding: tensors become durable every other second, and some must be before the job is done.
    FLAGS = ("--format", "hqq", "--method", "sinq_hqq")

    @classmethod
    def setUpClass(cls):
        space = workspace()
        cls.home = space.__enter__()
        cls.addClassCleanup(space.__exit__, None, None, None)
        cls.source = cls.home / "model"
        harness.make_model(cls.source, hidden=2048, inter=5632, layers=8, vocab=1024, shards=2)
        server = Server(cls.home, "--workers", "1").start()
        cls.addClassCleanup(server.stop)
        result = server.submit(cls.source, cls.home / "reference", "--wait", *cls.FLAGS)
        if result.code != 0:
            raise AssertionError(str(result))
        server.stop()
        cls.want = harness.digests(cls.home / "reference")

    @staticmethod
    def durable_units(server):
        """(measured, finished) tensors in the job store: progress is shown a second late."""
        # Opened anew each time: a reader that stays would keep the server from tidying its log.
        uri = f"file:{server.home}/data/jobs.sqlite?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=10)) as store:
            units = [name for (name,) in store.execute("SELECT unit FROM units")]
        measured = sum(name.startswith("measure\t") for name in units)
        return measured, len(units) - measured

    def kill_when(self, reached, name):
        home = self.home / name
        home.mkdir()
        server = Server(home, "--workers", "1", roots=[self.home]).start()
        self.addCleanup(server.stop)
        output = self.home / f"{name}-out"
        job_id = server.submit_detached(self.source, output, *self.FLAGS)
        deadline = time.monotonic() + 60
        while not reached(*self.durable_units(server)):
            self.assertLess(time.monotonic(), deadline, "the job did not get there")
            self.assertFalse(output.exists(), "the job was faster")
            time.sleep(0.02)
        server.kill()
        server.start()
        job = server.wait(job_id)
        self.assertEqual(state(job), "SUCCEEDED", str(job))
        self.assertGreater(int(job["attempt"]), 1)
        self.assertEqual(harness.digests(output), self.want)
        self.assertEqual(harness.staging_left(self.home), [])
        server.stop()

    def test_kill_9_once_some_scales_are_measured(self):
        self.kill_when(lambda measured, finished: measured > 0, "measuring")

    def test_kill_9_once_some_tensors_are_written(self):
        self.kill_when(lambda measured, finished: finished > 0, "quantizing")

    def test_the_bytes_do_not_depend_on_workers_and_folding_changes_them(self):
        home = self.home / "again"
        home.mkdir()
        server = Server(home, "--workers", "3", roots=[self.home]).start()
        self.addCleanup(server.stop)
        for name, flags, same in (("three", (), True), ("off", ("--fold", "off"), False)):
            output = self.home / f"{name}-out"
            self.assertEqual(server.submit(self.source, output, "--wait", *self.FLAGS, *flags).code, 0)
            self.assertEqual(harness.digests(output) == self.want, same, name)


class ReadOnceTest(unittest.TestCase):
    def test_no_byte_of_the_source_is_read_twice(self):
        self.check_that_it_is_read_once()

    def test_nor_without_column_scales_to_fold(self):
        self.check_that_it_is_read_once(*harness.NATIVE)

    def test_nor_where_a_layer_waits_for_its_scales_and_the_next_finds_no_room_beside_it(self):
        self.check_that_it_is_read_once(budget="104MiB")

    def test_a_source_from_the_disk_gives_the_bytes_of_one_from_the_cache(self):
        with workspace() as home:
            source = home / "model"
            total = harness.make_model(source, hidden=1024, inter=2816, layers=2)
            server = Server(home, "--workers", "2").start()
            self.addCleanup(server.stop)
            digests = []
            for name in ("cached", "evicted"):
                if name == "evicted":
                    harness.evict(source)
                before = server.io()["read_bytes"]
                self.assertEqual(server.submit(source, home / name, "--wait").code, 0)
                # Of the device; 0 where the cache cannot be emptied (a RAM disk). Blocks are shared by neighbours, and
                # of the output is read back what was written ahead of its turn in the digest of its file.
                written = sum(path.stat().st_size for path in (home / name).iterdir())
                self.assertLess(server.io()["read_bytes"] - before, total + total // 20 + (4 << 20) + written)
                digests.append(harness.digests(home / name))
            self.assertEqual(*digests)
            server.stop()

    def check_that_it_is_read_once(self, *flags, budget="1GiB"):
        with workspace() as home:
            source = home / "model"
            total = harness.make_model(source, hidden=1024, inter=2816, layers=4)
            server = Server(home, "--memory-budget", budget, "--workers", "2").start()
            self.addCleanup(server.stop)
            before = server.io()["rchar"]
            result = server.submit(source, home / "out", "--wait", *flags)
            self.assertEqual(result.code, 0, f"{result}\nserver: {server.process.poll()}\n{server.tail()}")
            read = server.io()["rchar"] - before
            # Besides the source: the output once for the manifest's digests, the job store's pages, requests on
            # sockets, config and index. Reading the source twice would be far more.
            written = sum(p.stat().st_size for p in (home / "out").iterdir())
            self.assertLess(
                read, total + written + total // 20 + (2 << 20), f"{read} bytes were read for {total} of the source"
            )
            server.stop()

    def test_memory_stays_within_budget_and_largest_tensor(self):
        with workspace() as home:
            source = home / "model"
            harness.make_model(source, hidden=2048, inter=5632, layers=6, vocab=8192)
            budget = 96 << 20
            server = Server(home, "--memory-budget", str(budget), "--workers", "2").start()
            self.addCleanup(server.stop)
            idle = server.peak_memory_bytes()
            result = server.submit(source, home / "out", "--wait")
            self.assertEqual(result.code, 0, str(result))
            largest = 2 * 8192 * 2048
            peak = server.peak_memory_bytes()
            self.assertLess(peak, idle + budget + largest, f"idle {idle}, peak {peak}")
            server.stop()


if __name__ == "__main__":
    unittest.main()
