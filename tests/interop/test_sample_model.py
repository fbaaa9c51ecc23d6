"""The sample model through sinqd: the authors' loader opens it, and its quality is at least the authors'."""

import json
import unittest

import numpy as np
import torch

import authors
import load_sinq
import native
import quality
from harness import NATIVE, SAMPLE, Server, make_model, workspace

torch.set_grad_enabled(False)
IDS = quality.token_ids()[:32]


class SampleModelTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        space = workspace()
        cls.home = space.__enter__()
        cls.addClassCleanup(space.__exit__, None, None, None)
        cls.server = Server(cls.home).start()
        cls.addClassCleanup(cls.server.stop)
        cls.reference = quality.log_probabilities(quality.open_model(SAMPLE), IDS)

    def quantize(self, name, *flags):
        out = self.home / name
        result = self.server.submit(SAMPLE, out, "--wait", *NATIVE, *flags)
        self.assertEqual(result.code, 0, f"{result}\n{self.server.tail()}")
        return out

    def opens(self, directory):
        result = load_sinq.check(directory)
        self.assertTrue(result["finite"])
        self.assertLessEqual(result["max_logit_diff"], 1e-5)
        self.assertGreater(result["max_logit"], 1)

    def figures(self, dense):
        other = quality.log_probabilities(quality.model_of(SAMPLE, dense), IDS)
        return quality.compare(self.reference, other, IDS)

    def against_authors(self, name, flags, bits=4, group_size=64, symmetric=False, aux="u8"):
        """Our figures, and the authors' on their F32 and on their F16 path."""
        directory = self.quantize(name, *flags)
        self.opens(directory)
        dense, sidecar = native.dense_tensors(directory)
        self.assertEqual(len(sidecar), 42)
        ours = self.figures(dense)
        settings = {"bits": bits, "group_size": group_size, "symmetric": symmetric, "aux": aux}
        theirs = [
            self.figures(authors.quantize_dense(SAMPLE, list(sidecar), half=h, **settings)) for h in (False, True)
        ]
        size = native.effective_bits(native.read_checkpoint(directory), sidecar)
        print(
            json.dumps(
                {
                    "case": name,
                    "bits_per_weight": round(size, 3),
                    "ours": ours,
                    "authors_f32": theirs[0],
                    "authors_f16": theirs[1],
                }
            )
        )
        return ours, theirs

    def no_worse(self, *args, **settings):
        ours, theirs = self.against_authors(*args, **settings)
        self.assertLessEqual(ours["kl"], min(t["kl"] for t in theirs))

    def equal(self, *args, within=0.01, **settings):
        ours, theirs = self.against_authors(*args, **settings)
        self.assertLess(abs(ours["kl"] / theirs[0]["kl"] - 1), within)

    def test_default_4_bits(self):
        self.no_worse("d4", [])

    def test_default_4_bits_f16_aux(self):
        self.no_worse("d4f", ["--aux", "f16"], aux="f16")

    def test_default_3_bits(self):
        self.no_worse("d3", ["--bits", "3"], bits=3)

    def test_default_2_bits_group_32(self):
        self.no_worse("d2", ["--bits", "2", "--group-size", "32"], bits=2, group_size=32)

    def test_default_8_bits(self):
        self.no_worse("d8", ["--bits", "8"], bits=8)

    def test_default_4_bits_symmetric(self):
        self.no_worse("d4s", ["--symmetric"], symmetric=True)

    def test_upstream_4_bits(self):
        self.equal("u4", ["--profile", "upstream"])

    def test_upstream_4_bits_f16_aux(self):
        self.equal("u4f", ["--profile", "upstream", "--aux", "f16"], aux="f16")

    def test_upstream_3_bits(self):
        self.equal("u3", ["--profile", "upstream", "--bits", "3"], bits=3)

    def test_upstream_4_bits_symmetric(self):
        # Three of the model's tiles reach rounds whose imbalance is equal in exact arithmetic (every step clamped
        # to 2): rounding noise decides there whether balancing goes on, in the authors' code too (F32 and F64 differ).
        self.equal("u4s", ["--profile", "upstream", "--symmetric"], symmetric=True, within=0.02)

    def test_upstream_8_bits_opens(self):
        self.opens(self.quantize("u8", "--profile", "upstream", "--bits", "8"))

    def test_5_and_6_bits_and_other_groups_open(self):
        for bits, group in ((5, 32), (6, 128)):
            with self.subTest(bits=bits, group=group):
                self.opens(self.quantize(f"b{bits}", "--bits", str(bits), "--group-size", str(group)))

    def test_rtn_opens_and_is_worse(self):
        directory = self.quantize("rtn", "--method", "rtn")
        self.opens(directory)
        self.assertLess(self.figures(native.dense_tensors(directory)[0])["kl"], 0.1)

    def test_one_layer_left_dense_opens(self):
        directory = self.quantize("mixed", "--exclude", r"layers\.0\.")
        self.opens(directory)
        sidecar = json.loads((directory / native.SIDECAR).read_text())
        self.assertEqual(len(sidecar), 35)
        tensors = native.read_checkpoint(directory)
        source = native.read_checkpoint(SAMPLE)
        for name, (dtype, array) in source.items():
            if name in tensors:
                self.assertEqual(tensors[name][0], dtype)
                np.testing.assert_array_equal(tensors[name][1], array, name)
        self.assertIn("model.layers.0.mlp.up_proj.weight", tensors)

    def test_bf16_compute_runs(self):
        directory = self.quantize("bf16")
        model = authors.load(directory, torch.bfloat16)
        self.assertTrue(model(IDS[:1]).logits.isfinite().all())

    def test_sharded_model_opens(self):
        make_model(self.home / "sharded", hidden=256, inter=512, layers=2, vocab=512, shards=3)
        out = self.home / "sharded-out"
        result = self.server.submit(self.home / "sharded", out, "--wait", *NATIVE)
        self.assertEqual(result.code, 0, str(result))
        got = load_sinq.check(out, ids=IDS[:1] % 512)
        self.assertTrue(got["finite"])
        self.assertLessEqual(got["max_logit_diff"], 1e-5)

    def test_manifest_error_is_the_real_error(self):
        directory = self.quantize("errors")
        dense, _ = native.dense_tensors(directory)
        source = native.read_checkpoint(SAMPLE)
        manifest = json.loads((directory / "sinq-manifest.json").read_text())
        told = {t["name"]: t["relative_error"] for t in manifest["tensors"] if t.get("action") == "quantize"}
        self.assertEqual(len(told), 42)
        for name, error in told.items():
            want = native.as_float32(*source[name]).astype(np.float64)
            real = np.linalg.norm(dense[name] - want) / np.linalg.norm(want)
            self.assertLess(abs(error / real - 1), 1e-3, name)


if __name__ == "__main__":
    unittest.main()
