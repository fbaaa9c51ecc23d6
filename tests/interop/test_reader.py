"""The independent reader against the authors' code, without our server: a reader that is wrong proves nothing."""

import unittest

import numpy as np
import torch

import authors
import load_sinq
import native
from harness import SAMPLE, workspace


class ReaderTest(unittest.TestCase):
    def check(self, **settings):
        with workspace() as home:
            authors.save_native(SAMPLE, home / "q", **settings)
            result = load_sinq.check(home / "q")
            self.assertTrue(result["finite"])
            self.assertLessEqual(result["max_logit_diff"], 1e-5)
            dense, sidecar = native.dense_tensors(home / "q")
            want = authors.quantize_dense(SAMPLE, list(sidecar), half=True, **settings)
            for module in sidecar:
                np.testing.assert_array_equal(dense[f"{module}.weight"], want[f"{module}.weight"], module)

    def test_reader_equals_the_authors(self):
        for settings in ({}, {"aux": "f16", "bits": 3}, {"bits": 6}, {"bits": 8, "symmetric": True}):
            with self.subTest(settings):
                self.check(**settings)

    def test_packing_examples_of_the_format(self):
        rows = (3 * np.arange(8)[:, None] + np.arange(4)) % 16
        packed = (rows[:4] << 4 | rows[4:]).astype(np.uint8)
        self.assertEqual(bytes(packed[0]).hex(), "0c1d2e3f")
        np.testing.assert_array_equal(native.unpack_codes(packed, "4bit_u8", 8), rows)
        words = np.array([[0x02982000], [0x0BBCB000]], dtype=np.uint32)
        self.assertEqual(native.unpack_codes(words, "3bit_32", 12)[:, 0].tolist(), [r % 8 for r in range(12)])

    def test_a_wrong_checkpoint_is_noticed(self):
        with workspace() as home:
            authors.save_native(SAMPLE, home / "q")
            (shard,) = (home / "q").glob("*.safetensors")
            tensors = native.read_safetensors(shard)
            name = "model.layers.3.mlp.up_proj"
            before = native.dequantize(
                tensors,
                name,
                {"shape": [768, 256], "packing": "4bit_u8", "scale.shape": [3072, 1], "zero.shape": [3072, 1]},
            )
            tensors[f"{name}.W_q"] = ("U8", tensors[f"{name}.W_q"][1] ^ 0x10)
            after = native.dequantize(
                tensors,
                name,
                {"shape": [768, 256], "packing": "4bit_u8", "scale.shape": [3072, 1], "zero.shape": [3072, 1]},
            )
            self.assertGreater(np.abs(before - after).max(), 0)


torch.set_grad_enabled(False)

if __name__ == "__main__":
    unittest.main()
