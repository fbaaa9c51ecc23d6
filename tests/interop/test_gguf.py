"""Format gguf: PyPI's gguf and transformers read exactly the weights that the manifest's errors speak of.

The template is made with gguf's own writer and names, as llama.cpp's converter does it (gguf_template.py).
"""

import json
import pathlib
import sys
import unittest

import numpy as np
import torch

import native
import quality
from gguf_file import GgufFile
from gguf_template import ARCHITECTURES, gguf_name, heads_of, make_template, name_map, restore
from harness import MANIFEST, SAMPLE, Server, workspace
from test_fold import FAMILIES, VOCABULARY, save_tiny

sys.path.append(str(pathlib.Path(__file__).resolve().parents[2] / "build" / "interop-packages" / "gguf-0.19.0"))
import gguf  # noqa: E402
from gguf import quants  # noqa: E402

torch.set_grad_enabled(False)

UNFOLDED = ("--fold", "off")
# Directory: flags, output type of the template, type of blocks
CASES = {
    "q4_1": (UNFOLDED, "f16", "Q4_1"),
    "q4_1-group-128": ((*UNFOLDED, "--group-size", "128"), "bf16", "Q4_1"),
    "q4_1-method-hqq": ((*UNFOLDED, "--method", "hqq"), "f16", "Q4_1"),
    "q4_0": ((*UNFOLDED, "--symmetric"), "bf16", "Q4_0"),
    "q8_0": ((*UNFOLDED, "--bits", "8"), "f32", "Q8_0"),
    "part": ((*UNFOLDED, "--exclude", r"layers\.0\."), "bf16", "Q4_1"),
    "folded": ((), "bf16", "Q4_1"),
    "q8_0-folded": (("--bits", "8"), "f16", "Q8_0"),
}
# Biases, a tied head, norms of heads, fused layers. True: transformers reads it from GGUF, too; it does not put Llama's
# biases there, Qwen3's head_dim, nor the others.
MODELS = {
    "llama": False,
    "llama-tied": True,
    "mistral": True,
    "qwen2": True,
    "qwen3": False,
    "phi3": False,
    "olmo2": False,
    "olmo3": False,
}


class GgufTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        space = workspace()
        cls.home = space.__enter__()
        cls.addClassCleanup(space.__exit__, None, None, None)
        cls.server = Server(cls.home).start()
        cls.addClassCleanup(cls.server.stop)
        for outtype in ("f16", "bf16", "f32"):
            make_template(SAMPLE, cls.template(SAMPLE, outtype), outtype)
        for name, (flags, outtype, _) in CASES.items():
            cls.quantize(SAMPLE, name, cls.template(SAMPLE, outtype), *flags)

    @classmethod
    def template(cls, checkpoint, outtype):
        return cls.home / f"{checkpoint.name}-{outtype}.gguf"

    @classmethod
    def quantize(cls, checkpoint, name, template, *flags):
        result = cls.server.submit(
            checkpoint, cls.home / name, "--format", "gguf", "--gguf-template", template, "--wait", *flags
        )
        if result.code != 0:
            raise AssertionError(f"{name}: {result}\n{cls.server.tail()}")
        return cls.home / name / "model.gguf"

    def manifest(self, name):
        return json.loads((self.home / name / MANIFEST).read_text())

    def checkpoint_of(self, path, source):
        """{name of the checkpoint: F32 array} of a GGUF file, rows in the checkpoint's order."""
        config = json.loads((source / "config.json").read_text())
        architecture = ARCHITECTURES[config["model_type"]]
        names, stored = name_map(architecture, config["num_hidden_layers"]), GgufFile(path)
        dense = {}
        for name in native.read_checkpoint(source):
            array = stored.dense(gguf_name(names, name))
            heads = heads_of(name, config) if architecture == "llama" else 0
            dense[name] = restore(array, heads) if heads else array
        return dense

    # Field by field and byte by byte: what is not ours is the template's.
    def test_the_rest_is_the_templates(self):
        for name, (_, outtype, blocks) in CASES.items():
            with self.subTest(name):
                before, after = GgufFile(self.template(SAMPLE, outtype)), GgufFile(self.home / name / "model.gguf")
                ours = {t["outputs"][0]["name"]: t["action"] for t in self.manifest(name)["tensors"] if "outputs" in t}
                self.assertEqual(set(ours), set(before.tensors))
                self.assertEqual(list(before.tensors), list(after.tensors))
                for tensor, (kind, shape, data) in after.tensors.items():
                    self.assertEqual(shape, before.tensors[tensor][1])
                    if ours[tensor] == "copy":
                        self.assertEqual((kind, data), (before.tensors[tensor][0], before.tensors[tensor][2]), tensor)
                    elif ours[tensor] == "quantize":
                        self.assertEqual(kind, blocks)
                self.assertEqual(sum(a == "quantize" for a in ours.values()), 35 if name == "part" else 42)
                self.assertEqual(list(before.metadata), list(after.metadata))
                file_type = gguf.LlamaFileType[f"MOSTLY_{blocks}"]
                expected = {**before.metadata, "general.file_type": (4, int(file_type))}
                self.assertEqual(after.metadata, expected)
                self.assertEqual(after.metadata["general.quantization_version"], (4, gguf.GGML_QUANT_VERSION))

    def test_pypi_gguf_reads_the_same_values(self):
        for name in CASES:
            with self.subTest(name):
                path = self.home / name / "model.gguf"
                mine, reader = GgufFile(path), gguf.GGUFReader(path)
                self.assertEqual({t.name for t in reader.tensors}, set(mine.tensors))
                for tensor in reader.tensors:
                    values = quants.dequantize(tensor.data, tensor.tensor_type).reshape(mine.tensors[tensor.name][1])
                    np.testing.assert_array_equal(values, mine.dense(tensor.name), tensor.name)

    # Also proves the order of rows: the errors are of the checkpoint's own rows.
    def test_the_manifests_errors_are_those_of_the_file(self):
        source = {n: native.as_float32(d, a) for n, (d, a) in native.read_checkpoint(SAMPLE).items()}
        for name, (flags, _, _) in CASES.items():
            if UNFOLDED != flags[:2]:
                continue
            with self.subTest(name):
                dense = self.checkpoint_of(self.home / name / "model.gguf", SAMPLE)
                told = {t["name"]: t["relative_error"] for t in self.manifest(name)["tensors"] if "relative_error" in t}
                for tensor, error in told.items():
                    want = source[tensor].astype(np.float64)
                    real = np.linalg.norm(dense[tensor] - want) / np.linalg.norm(want)
                    self.assertLess(abs(error / real - 1), 1e-5, tensor)

    def transformers_reads(self, path, ids):
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        return model.eval()(ids).logits

    def test_transformers_reads_the_sample_model(self):
        ids = quality.token_ids()[:2]
        for name in ("q4_0", "folded"):
            path = self.home / name / "model.gguf"
            want = quality.model_of(SAMPLE, self.checkpoint_of(path, SAMPLE))(ids).logits
            self.assertLess((self.transformers_reads(path, ids) - want).abs().max().item(), 1e-4)

    # With 8 bits rounding hides nothing: what is multiplied into norms and rows is divided out of the columns.
    def test_folding_leaves_the_model_what_it_is(self):
        ids = quality.token_ids()[:16]
        reference = quality.log_probabilities(quality.open_model(SAMPLE), ids)
        kl = {}
        for name in ("q8_0", "q8_0-folded", "q4_1", "folded"):
            model = quality.model_of(SAMPLE, self.checkpoint_of(self.home / name / "model.gguf", SAMPLE))
            kl[name] = quality.compare(reference, quality.log_probabilities(model, ids), ids)["kl"]
        print(json.dumps(kl))
        self.assertLess(kl["q8_0-folded"], 1.5 * kl["q8_0"])
        self.assertLess(kl["folded"], 1.5 * kl["q4_1"])

    # The whole path for each architecture: a name or a row in the wrong place would change logits by their own size,
    # 8 bits do by 0.03 to 0.04 of it in these models, whose columns differ much.
    def test_every_architecture_folded_in_8_bits(self):
        from transformers import AutoModelForCausalLM

        ids = torch.randint(3, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(7))
        for family, transformers_reads in MODELS.items():
            with self.subTest(family):
                source = self.home / f"model-{family}"
                prefix, settings, pairs = FAMILIES[family]
                save_tiny(source, prefix, settings)
                template = self.template(source, "f32")
                make_template(source, template, "f32")
                path = self.quantize(source, f"out-{family}", template, "--bits", "8")
                folded = [p for p in self.manifest(f"out-{family}")["fold"]["pairs"] if p["folded"]]
                self.assertEqual(len(folded), pairs)
                model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
                want = model.eval()(ids).logits
                got = quality.model_of(source, self.checkpoint_of(path, source))(ids).logits
                self.assertLess(((got - want).abs().max() / want.abs().max()).item(), 0.1)
                if transformers_reads:
                    self.assertLess((self.transformers_reads(path, ids) - got).abs().max().item(), 1e-4)

    def test_verify_and_a_second_run(self):
        again = self.quantize(SAMPLE, "again", self.template(SAMPLE, "bf16"))
        self.assertEqual(again.read_bytes(), (self.home / "folded" / "model.gguf").read_bytes())
        self.assertEqual(self.server.ctl("verify", self.home / "again").code, 0)
        with open(again, "r+b") as file:
            file.seek(-40, 2)
            file.write(b"\xff")
        self.assertEqual(self.server.ctl("verify", self.home / "again").code, 7)

    def test_bits_chosen_under_a_target(self):
        path = self.quantize(
            SAMPLE, "auto", self.template(SAMPLE, "bf16"), "--bits", "auto", "--target-bpw", "6.5", *UNFOLDED
        )
        kinds = {kind for kind, _, _ in GgufFile(path).tensors.values()}
        self.assertLessEqual({"Q4_0", "Q8_0"}, kinds)
        self.assertLessEqual(self.manifest("auto")["effective_bits"], 6.5)

    def test_a_template_of_another_model_is_refused(self):
        source = self.home / "model-other"
        prefix, settings, _ = FAMILIES["llama"]
        save_tiny(source, prefix, settings)
        for flags, text in (
            (("--gguf-template", self.template(SAMPLE, "f16")), "another model"),
            (("--gguf-template", SAMPLE / "config.json"), "not a GGUF file"),
            ((), "--outtype f16"),
        ):
            with self.subTest(text):
                result = self.server.submit(source, self.home / "refused", "--format", "gguf", "--wait", *flags)
                self.assertEqual(result.code, 2, str(result))
                self.assertIn(text, result.err)


if __name__ == "__main__":
    unittest.main()
