"""What --backend and --devices do on a machine without a device, which CI is."""

import glob
import json
import unittest

import harness
from harness import BIN, SAMPLE, Server, run, workspace


def events(server):
    lines = server.log.read_text(errors="replace").splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


@unittest.skipIf(glob.glob("/dev/nvidia[0-9]*"), "this machine has a device")
class WithoutADevice(unittest.TestCase):
    def setUp(self):
        context = workspace()
        self.home = context.__enter__()
        self.addCleanup(context.__exit__, None, None, None)

    def start_fails(self, *flags, env=None):
        return run(BIN / "sinqd", "--listen", "127.0.0.1:0", "--metrics-listen", "", "--data-dir",
                   self.home / "data", *flags, env=env, timeout=30)

    def test_cuda_is_an_error_that_says_why(self):
        for flags, env in ((["--backend", "cuda"], None), ([], {"SINQ_BACKEND": "cuda"})):
            result = self.start_fails(*flags, env=env)
            self.assertEqual(result.code, 1, str(result))
            self.assertIn("sinqd: --backend cuda: ", result.err)
            self.assertIn("CUDA", result.err)
            self.assertIn("--backend cpu", result.err)

    def test_devices_that_are_asked_for_must_be_there(self):
        result = self.start_fails("--devices", "0,2")
        self.assertEqual(result.code, 1, str(result))
        self.assertIn("sinqd: --devices: ", result.err)

    def test_devices_are_read_strictly(self):
        for text in ("", "0,", "0, 1", "-1", "gpu0", "0,0"):
            result = self.start_fails(f"--devices={text}")
            self.assertEqual(result.code, 2, f"{text!r}: {result}")
            self.assertIn("devices", result.err)
        result = self.start_fails("--backend", "cpu", "--devices", "0")
        self.assertEqual(result.code, 2, str(result))

    def test_print_config_shows_them(self):
        result = run(BIN / "sinqd", "--devices", "2,0", "--cuda-streams", "3", "--device-memory-budget", "1GiB",
                     "--print-config")
        config = result.json()
        self.assertEqual(
            (config["devices"], config["cuda_streams"], config["device_memory_budget_bytes"]), ([2, 0], 3, 1 << 30)
        )

    def test_auto_works_on_the_cpu_and_says_so_once(self):
        server = Server(self.home, "--backend", "auto").start()
        self.addCleanup(server.stop)
        self.assertEqual(server.submit(SAMPLE, self.home / "out", "--wait").code, 0)
        said = [e for e in events(server) if e["event"] == "no_device_used"]
        self.assertEqual(len(said), 1, server.tail())
        self.assertEqual(said[0]["backend"], "cpu")
        self.assertIn("CUDA", said[0]["why"])
        metrics = server.metrics()
        self.assertIn('sinq_weights_quantized_total{backend="cpu"}', metrics)
        self.assertIn('sinq_worker_state{pool="cpu",state="idle"}', metrics)
        self.assertNotIn('pool="cuda"', metrics)
        devices = server.ctl("capabilities", "-o", "json").json()["devices"]
        self.assertEqual([d["name"] for d in devices], ["cpu"])
        plain = Server(self.home, "--backend", "cpu")
        plain.log = self.home / "plain.log"
        server.stop()
        plain.start()
        self.addCleanup(plain.stop)
        self.assertEqual([e for e in events(plain) if e["event"] == "no_device_used"], [])
        self.assertEqual(plain.submit(SAMPLE, self.home / "again", "--wait").code, 0)
        self.assertEqual(harness.digests(self.home / "again"), harness.digests(self.home / "out"))


if __name__ == "__main__":
    unittest.main()
