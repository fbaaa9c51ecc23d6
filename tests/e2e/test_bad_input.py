"""Bad input of the plain kinds: the right exit code, and a sentence that names the cause."""

import json
import os
import pathlib
import shutil
import struct
import subprocess
import unittest

import harness
from harness import SAMPLE, Server, run, state, workspace


def header_file(path, text, data=b"", length=None):
    text = text if isinstance(text, bytes) else json.dumps(text).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def weight(name="a.weight", dtype="BF16", shape=(64, 64), begin=0, end=None, data=None):
    size = 2 * shape[0] * shape[1]
    return {name: {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, size if end is None else end]}}


# name: (make(path) -> source path, words of which all must be in the message)
def sources():
    ok = bytes(2 * 64 * 64)
    nan = bytearray(ok)
    nan[2 * 130 : 2 * 130 + 2] = b"\xc0\x7f"
    infinite = bytearray(ok)
    infinite[0:2] = b"\x80\x7f"
    return {
        "empty_file": (lambda p: touch(p, b""), []),
        "short_file": (lambda p: touch(p, b"\x01\x02"), []),
        "header_longer_than_the_file": (lambda p: header_file(p, b"{}", length=1 << 40), ["header"]),
        "header_is_not_json": (lambda p: header_file(p, b"{nonsense"), ["header"]),
        "header_is_not_an_object": (lambda p: header_file(p, b"[1, 2]"), ["header"]),
        "duplicate_tensor": (
            lambda p: header_file(
                p,
                b'{"a.weight":{"dtype":"BF16","shape":[1,1],"data_offsets":[0,2]},'
                b'"a.weight":{"dtype":"BF16","shape":[1,1],"data_offsets":[0,2]}}',
                b"\0\0",
            ),
            ["a.weight"],
        ),
        "offset_beyond_the_file": (lambda p: header_file(p, weight(), ok[:100]), ["a.weight"]),
        "shape_and_size_disagree": (lambda p: header_file(p, weight(end=100), ok[:100]), ["a.weight"]),
        "shape_overflows": (
            lambda p: header_file(
                p, {"a.weight": {"dtype": "BF16", "shape": [1 << 62, 1 << 62], "data_offsets": [0, 8]}}, bytes(8)
            ),
            ["a.weight"],
        ),
        "negative_shape": (
            lambda p: header_file(p, {"a.weight": {"dtype": "BF16", "shape": [-1, 64], "data_offsets": [0, 0]}}),
            ["a.weight"],
        ),
        "overlapping_tensors": (
            lambda p: header_file(p, {**weight("a.weight"), **weight("b.weight")}, ok),
            ["b.weight"],
        ),
        "hole_between_tensors": (
            lambda p: header_file(
                p, {**weight("a.weight"), **weight("b.weight", begin=8292, end=16484)}, bytes(16484)
            ),
            ["b.weight"],
        ),
        "unknown_dtype": (lambda p: header_file(p, weight(dtype="Q5_K"), ok), ["Q5_K"]),
        "nan": (lambda p: header_file(p, weight(), bytes(nan)), ["a.weight", "NaN"]),
        "infinity": (lambda p: header_file(p, weight(), bytes(infinite)), ["a.weight", "inf"]),
    }


def touch(path, data):
    path.write_bytes(data)
    return path


class BadInputTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        space = workspace()
        cls.home = space.__enter__()
        cls.addClassCleanup(space.__exit__, None, None, None)
        cls.server = Server(cls.home).start()
        cls.addClassCleanup(cls.server.stop)

    def refused(self, result, codes, *words):
        codes = codes if isinstance(codes, tuple) else (codes,)
        self.assertIn(result.code, codes, str(result))
        text = result.err + result.out
        for word in words:
            self.assertIn(word.lower(), text.lower(), str(result))
        self.assertNotIn(str(self.home / "data"), text)
        self.assertRegex(text, r"[a-z]{3,} [a-z]", "no sentence")

    def check_source(self, name):
        make, words = sources()[name]
        path = make(self.home / f"{name}.safetensors")
        output = self.home / f"{name}-out"
        result = self.server.submit(path, output, "--wait", *harness.NATIVE)
        # Found while the job runs (1), or before it is accepted (2).
        self.refused(result, (1, 2), *words)
        self.assertFalse(output.exists())
        self.assertEqual(harness.staging_left(self.home), [])

    def test_outside_the_roots(self):
        self.refused(self.server.submit("/etc", self.home / "x1", "--wait"), 4, "root")
        self.refused(self.server.submit(SAMPLE, "/etc/sinq-out", "--wait"), 4, "root")

    def test_dots_do_not_leave_the_root(self):
        self.refused(self.server.submit(f"{self.home}/../../etc", self.home / "x2", "--wait"), (2, 3, 4))

    def test_symlink_does_not_leave_the_root(self):
        os.symlink("/etc", self.home / "link")
        self.refused(self.server.submit(self.home / "link", self.home / "x3", "--wait"), (2, 3, 4))

    def test_source_does_not_exist(self):
        self.refused(self.server.submit(self.home / "nothing", self.home / "x4", "--wait"), 3, "nothing")

    def test_directory_without_a_model(self):
        (self.home / "hollow").mkdir()
        self.refused(self.server.submit(self.home / "hollow", self.home / "x5", "--wait"), (1, 2, 3), "safetensors")

    def test_output_exists(self):
        (self.home / "there").mkdir()
        (self.home / "there" / "keep").write_text("mine")
        self.refused(self.server.submit(SAMPLE, self.home / "there", "--wait"), (1, 2), "there", "exist")
        self.assertEqual([p.name for p in (self.home / "there").iterdir()], ["keep"])

    def test_unknown_job(self):
        for command in ("get", "cancel", "delete", "watch", "artifacts"):
            self.refused(self.server.ctl(command, "job-nobody"), 3, "job-nobody")

    def test_bad_flags(self):
        self.refused(self.server.submit(SAMPLE, self.home / "x6", "--bits", "7"), 2, "bits")
        self.refused(self.server.submit(SAMPLE, self.home / "x6", "--group-size", "48"), 2, "group")
        self.refused(self.server.submit(SAMPLE, self.home / "x6", "--method", "magic"), 2, "method")
        self.refused(self.server.submit(SAMPLE, self.home / "x6", "--include", "("), 2, "include")
        self.refused(self.server.submit(SAMPLE, self.home / "x6", "--frobnicate"), 2, "frobnicate")
        self.refused(self.server.ctl("dance"), 2, "command")

    def recipe(self, name, content):
        path = self.home / f"{name}.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    def refused_recipe(self, content, *words, flags=()):
        path = self.recipe("recipe", content)
        for command in (["plan", SAMPLE], ["submit", SAMPLE, "--output", self.home / "x20"]):
            self.refused(self.server.ctl(*command, "--recipe", path, *flags), 2, *words)
        self.assertFalse((self.home / "x20").exists())

    def test_recipe_files(self):
        self.refused_recipe({"bitz": 4}, "bitz")
        self.refused_recipe({"rules": [{"pattern": "a", "width": 4}]}, "width")
        self.refused_recipe("bits = 4", "recipe")
        self.refused_recipe({"bits": 7, "group_size": 48}, "bits", "group_size")
        self.refused_recipe({"rules": [{"pattern": "("}]}, "rules[0].pattern")
        self.refused(self.server.ctl("plan", SAMPLE, "--recipe", self.home / "nothing.json"), 3, "nothing.json")

    def test_rules_that_match_nothing_or_disagree(self):
        self.refused_recipe({"rules": [{"pattern": "w_proj", "bits": 8}]}, "w_proj", "matches no")
        self.refused_recipe(
            {"format": "compressed-tensors", "rules": [{"pattern": "k_proj", "bits": 8}]},
            "q_proj",
            "rule 0",
            "k_proj",
            "the recipe itself",
        )

    def test_targets(self):
        plan = ["plan", SAMPLE, "--bits", "auto"]
        self.refused(self.server.ctl(*plan), 2, "--target-bpw")
        self.refused(self.server.ctl(*plan, "--target-bpw", "1.5"), 2, "smallest possible is 4.")
        self.refused(self.server.ctl(*plan, *harness.NATIVE, "--target-bpw", "1.5"), 2, "smallest possible is 2.")
        self.refused(self.server.ctl(*plan, "--target-size", "10KB"), 2, "smallest possible output has")
        self.refused(self.server.ctl(*plan, "--target-size", "many"), 2, "many")
        self.refused(self.server.ctl(*plan, "--target-bpw", "4.5", "--format", "awq"), 2, "awq")
        self.refused(self.server.ctl("plan", SAMPLE, "--bits", "4", "--target-bpw", "4.5"), 2, "choose")

    def test_activations(self):
        path = self.home / "activations.safetensors"
        layer = "model.layers.0.self_attn.q_proj"
        flags = ["plan", SAMPLE, *harness.NATIVE, "--include", layer, "--method", "asinq"]
        self.refused(self.server.ctl(*flags), 2, "activations_uri")
        self.refused(self.server.ctl(*flags, "--activations", self.home / "nowhere"), 3, "activations_uri")
        self.refused(self.server.ctl(*flags, "--activations", "/etc/passwd"), 4, "root")
        for name, shape, words in (
            (f"{layer}.samples", [4, 255], ["in_features = 256", f"{layer}.samples"]),
            (f"{layer}.second_moments", [4, 256], [f"{layer}.second_moments", "[4, 256]"]),
            (f"{layer}.samples", [1024], [f"{layer}.samples", "[1024]"]),
            (f"{layer}.means", [4, 256], [f"{layer}.means"]),
            ("model.layers.9.mlp.up_proj.samples", [4, 256], ["model.layers.9", "no layer"]),
            ("model.layers.1.mlp.up_proj.samples", [4, 256], [f"{layer}.samples is missing"]),
        ):
            count = 1
            for extent in shape:
                count *= extent
            harness.write_safetensors(path, [(name, "F32", shape, bytes(4 * count))])
            self.refused(self.server.ctl(*flags, "--activations", path), 2, *words)
        path.write_bytes(b"no header")
        self.refused(self.server.ctl(*flags, "--activations", path), 2, "header")

    def test_all_violations_are_told_at_once(self):
        result = self.server.submit(SAMPLE, self.home / "x7", "--bits", "7", "--group-size", "48")
        self.refused(result, 2, "bits", "group")

    def test_symmetric_upstream_2_bits_is_refused(self):
        self.refused(
            self.server.submit(
                SAMPLE, self.home / "x8", "--bits", "2", "--symmetric", "--profile", "upstream", "--wait"
            ),
            (1, 2),
            "symmetric",
        )

    def test_quantized_checkpoint_is_refused(self):
        self.assertEqual(self.server.submit(SAMPLE, self.home / "once", "--wait").code, 0)
        self.refused(self.server.submit(self.home / "once", self.home / "twice", "--wait"), (1, 2), "quantiz")

    def test_missing_shard(self):
        source = self.home / "sharded"
        harness.make_model(source, hidden=256, inter=512, layers=2, vocab=64)
        victim = sorted(source.glob("*.safetensors"))[1]
        victim.unlink()
        self.refused(self.server.submit(source, self.home / "x9", "--wait"), (1, 2, 3), victim.name)

    def test_index_names_a_tensor_that_is_not_there(self):
        source = self.home / "lying"
        harness.make_model(source, hidden=256, inter=512, layers=2, vocab=64)
        index = json.loads((source / "model.safetensors.index.json").read_text())
        index["weight_map"]["ghost.weight"] = sorted(source.glob("*.safetensors"))[0].name
        (source / "model.safetensors.index.json").write_text(json.dumps(index))
        self.refused(self.server.submit(source, self.home / "x10", "--wait"), (1, 2), "ghost.weight")

    def test_no_server(self):
        result = run(
            harness.BIN / "sinqctl", "--server", f"127.0.0.1:{harness.free_port()}", "--timeout", "3", "list"
        )
        self.refused(result, (5, 6))

    def test_disk_full(self):
        mount = self.home / "small"
        mount.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(mount)], capture_output=True, check=False
        )
        if mounted.returncode != 0:
            self.skipTest("a small file system cannot be mounted here: " + mounted.stderr.decode().strip())
        self.addCleanup(subprocess.run, ["umount", "-l", str(mount)], check=False)
        result = self.server.submit(SAMPLE, mount / "out", "--wait")
        self.refused(result, (1, 2, 5), "space")
        self.assertFalse((mount / "out").exists())

    def test_server_still_works_after_all_this(self):
        self.assertIsNone(self.server.process.poll(), self.server.tail())
        self.assertEqual(self.server.submit(SAMPLE, self.home / "fine", "--wait").code, 0)


for _name in sources():
    setattr(BadInputTest, f"test_source_{_name}", lambda self, name=_name: self.check_source(name))


class ServerFlagsTest(unittest.TestCase):
    def sinqd(self, *args, timeout=20):
        return run(harness.BIN / "sinqd", *args, timeout=timeout)

    def test_not_on_other_interfaces_without_tls(self):
        with workspace() as home:
            result = self.sinqd("--listen", "0.0.0.0:0", "--data-dir", home / "d", "--allow-root", home)
            self.assertNotIn(result.code, (0, -6, -11), str(result))
            self.assertIn("--insecure", result.err + result.out)

    def test_bad_flags_are_refused(self):
        for args in (["--frobnicate"], ["--workers", "many"], ["--backend", "tpu"], ["--listen", "nowhere"]):
            with workspace() as home:
                result = self.sinqd(*args, "--data-dir", home / "d")
                self.assertGreater(result.code, 0, f"{args}: {result}")
                self.assertIn(args[0].strip("-"), (result.err + result.out).replace("_", "-"), f"{args}: {result}")

    def test_print_config_is_a_config(self):
        with workspace() as home:
            flags = ["--listen", "127.0.0.1:0", "--workers", "3", "--allow-root", home, "--data-dir", home / "d"]
            first = self.sinqd(*flags, "--print-config")
            self.assertEqual(first.code, 0, str(first))
            self.assertEqual(first.json()["workers"], 3)
            (home / "c.json").write_text(first.out)
            second = self.sinqd("--config", home / "c.json", "--print-config")
            self.assertEqual(second.json(), first.json())
            (home / "c.json").write_text('{"wrokers": 3}')
            third = self.sinqd("--config", home / "c.json", "--print-config")
            self.assertGreater(third.code, 0)
            self.assertIn("wrokers", third.err + third.out)

    def test_version(self):
        result = self.sinqd("--version")
        self.assertEqual(result.code, 0)
        self.assertRegex(result.out, r"\d+\.\d+")

    def test_port_0_is_printed(self):
        with workspace() as home:
            process = subprocess.Popen(
                [
                    harness.BIN / "sinqd",
                    "--listen",
                    "127.0.0.1:0",
                    "--metrics-listen",
                    "127.0.0.1:0",
                    "--data-dir",
                    home / "d",
                    "--allow-root",
                    home,
                ],
                stdout=open(home / "log", "wb"),
                stderr=subprocess.STDOUT,
            )
            try:
                import re
                import time

                found, deadline = None, time.monotonic() + 20
                while not found and time.monotonic() < deadline:
                    found = re.search(r"127\.0\.0\.1:([1-9]\d*)", (home / "log").read_text())
                    time.sleep(0.05)
                self.assertTrue(found, (home / "log").read_text())
                self.assertEqual(run(harness.BIN / "sinqctl", "--server", found.group(0), "list").code, 0)
            finally:
                process.terminate()
                self.assertEqual(process.wait(30), 0)

    def test_second_server_on_the_same_data_is_refused(self):
        with workspace() as home:
            server = Server(home).start()
            try:
                second = self.sinqd(
                    "--listen",
                    "127.0.0.1:0",
                    "--metrics-listen",
                    "127.0.0.1:0",
                    "--data-dir",
                    home / "data",
                    "--allow-root",
                    home,
                )
                self.assertGreater(second.code, 0, str(second))
            finally:
                server.stop()


if __name__ == "__main__":
    unittest.main()
