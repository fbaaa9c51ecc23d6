"""Folding alone changes a model's logits by rounding only, for every family of the table; transformers is the judge.

A tiny random F32 model of each family goes through the format bf16-presinq, which folds and does not quantize.
"""

import json
import unittest

import torch
import transformers

import native
from harness import MANIFEST, Server, workspace

torch.set_grad_enabled(False)
TOLERANCE = 1e-5  # of the largest logit: F32 weights are rounded once or twice, 2e-7 each
VOCABULARY = 96
BASE = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 64}
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 64,
    "q_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "n_routed_experts": 4,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    **EXPERTS,
}
HEADS = {"head_dim": 32}
# family: (class prefix, settings, pairs that are folded)
FAMILIES = {
    "llama": ("Llama", {"attention_bias": True, "mlp_bias": True}, 8),
    "llama-tied": ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 1}, 8),
    "mistral": ("Mistral", HEADS, 8),
    "qwen2": ("Qwen2", {}, 8),
    "qwen3": ("Qwen3", {"head_dim": 64}, 8),
    "gemma": ("Gemma", HEADS, 8),
    "gemma2": ("Gemma2", HEADS, 8),
    "gemma3": ("Gemma3", HEADS, 8),
    "phi3": ("Phi3", {}, 8),
    "olmo2": ("Olmo2", {}, 4),
    "glm": ("Glm", {**HEADS, "attention_bias": True}, 8),
    "glm4": ("Glm4", {**HEADS, "attention_bias": True}, 8),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}, 2 * (3 + 4)),
    "qwen2-moe": (
        "Qwen2Moe",
        {"num_experts": 4, "shared_expert_intermediate_size": 128, "mlp_only_layers": [0], **EXPERTS},
        4 + (3 + 4 + 1),
    ),
    "qwen3-moe": ("Qwen3Moe", {"num_experts": 4, **HEADS, **EXPERTS}, 2 * (3 + 4)),
    "deepseek-v2": ("DeepseekV2", {**LATENT, "q_lora_rank": None}, 2 * 3 + 2 + (1 + 4 + 1)),
    "deepseek-v3": ("DeepseekV3", LATENT, 2 * 4 + 2 + (1 + 4 + 1)),
    "glm4-moe": (
        "Glm4Moe",
        {**HEADS, **EXPERTS, "n_routed_experts": 4, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
        2 * 2 + 2 + (1 + 4 + 1),
    ),
}


def randomize(model, plus_one):
    """Norms around 1, biases, and weights whose columns differ as those of real layers do."""
    generator = torch.Generator().manual_seed(20261124)

    def randn(*shape):
        return torch.randn(*shape, generator=generator)

    tensors = [*model.named_parameters(), *((n, b) for n, b in model.named_buffers() if "correction" in n)]
    for name, tensor in tensors:
        if tensor.dim() >= 2:
            tensor.copy_(0.1 * randn(*tensor.shape) * torch.exp(0.5 * randn(tensor.shape[-1])))
        elif "norm" in name:
            tensor.copy_(0.1 * randn(*tensor.shape) + (0 if plus_one else 1))
        else:
            tensor.copy_(0.1 * randn(*tensor.shape))


def save_tiny(directory, prefix, settings):
    names = {"Gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM")}
    config_name, model_name = names.get(prefix, (f"{prefix}Config", f"{prefix}ForCausalLM"))
    config = getattr(transformers, config_name)(**{**BASE, **settings})
    torch.manual_seed(1)
    model = getattr(transformers, model_name)(config).float()
    randomize(model, plus_one=prefix.startswith("Gemma"))
    model.save_pretrained(directory)


def logits(directory):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float64, attn_implementation="eager", experts_implementation="eager"
    )
    ids = torch.randint(3, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(7))
    return model.eval()(ids).logits


def relative_difference(a, b):
    return ((a - b).abs().max() / a.abs().max()).item()


class FoldTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        space = workspace()
        cls.home = space.__enter__()
        cls.addClassCleanup(space.__exit__, None, None, None)
        cls.server = Server(cls.home).start()
        cls.addClassCleanup(cls.server.stop)

    def fold(self, name, *flags):
        out = self.home / f"{name}-out"
        result = self.server.submit(self.home / name, out, "--format", "bf16-presinq", "--wait", *flags)
        self.assertEqual(result.code, 0, f"{result}\n{self.server.tail()}")
        return out, json.loads((out / MANIFEST).read_text())

    def check_family(self, family):
        prefix, settings, pairs = FAMILIES[family]
        save_tiny(self.home / family, prefix, settings)
        out, manifest = self.fold(family)
        refused = [pair for pair in manifest["fold"]["pairs"] if not pair["folded"]]
        self.assertEqual(refused, [])
        self.assertEqual(len(manifest["fold"]["pairs"]), pairs)
        before, after = native.read_checkpoint(self.home / family), native.read_checkpoint(out)
        self.assertEqual(before.keys(), after.keys())
        changed = [t["name"] for t in manifest["tensors"] if t["action"] == "fold"]
        for name in changed:
            self.assertFalse((before[name][1] == after[name][1]).all(), f"{name} is as it was")
        for name in before.keys() - set(changed):
            self.assertTrue((before[name][1] == after[name][1]).all(), f"{name} has changed")
        difference = relative_difference(logits(self.home / family), logits(out))
        print(json.dumps({"family": family, "pairs": pairs, "relative_logit_difference": difference}))
        self.assertLess(difference, TOLERANCE)

    def test_a_wrong_fold_is_noticed(self):
        save_tiny(self.home / "mutant", "Qwen2", {})
        out, _ = self.fold("mutant")
        (shard,) = out.glob("*.safetensors")
        tensors = native.read_safetensors(shard)
        tensors["model.layers.0.self_attn.k_proj.weight"][1][:, 5] *= 1.01
        native.write_safetensors(shard, tensors)
        self.assertGreater(relative_difference(logits(self.home / "mutant"), logits(out)), TOLERANCE)

    def test_an_unknown_family_is_left_as_it_is(self):
        settings = {"hidden_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": VOCABULARY}
        save_tiny(self.home / "neox", "GPTNeoX", {**settings, "intermediate_size": 256})
        out, manifest = self.fold("neox")
        self.assertIn('"gpt_neox"', manifest["fold"]["note"])
        self.assertEqual({t["action"] for t in manifest["tensors"]}, {"copy"})
        before, after = native.read_checkpoint(self.home / "neox"), native.read_checkpoint(out)
        for name, (_, array) in before.items():
            self.assertTrue((array == after[name][1]).all(), name)

    def test_fp8_blocks_are_folded_after_their_scales(self):
        source, plain = self.home / "fp8", self.home / "fp8-plain"
        save_tiny(plain, "Llama", {})
        source.mkdir()
        config = json.loads((plain / "config.json").read_text())
        tensors, dense = {}, {}
        for name, (dtype, array) in native.read_checkpoint(plain).items():
            if "_proj" not in name:
                tensors[name] = dense[name] = (dtype, array)
                continue
            scale = 0.01 + 0.01 * torch.rand(-(-array.shape[0] // 128), -(-array.shape[1] // 128))
            wide = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)[: array.shape[0], : array.shape[1]]
            codes = (torch.from_numpy(array.copy()) / wide).to(torch.float8_e4m3fn)
            tensors[name] = ("F8_E4M3", codes.view(torch.uint8).numpy())
            tensors[f"{name}_scale_inv"] = ("F32", scale.numpy())
            dense[name] = ("F32", (codes.float() * wide).numpy())
        native.write_safetensors(source / "model.safetensors", tensors)
        native.write_safetensors(plain / "model.safetensors", dense)
        config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
        (source / "config.json").write_text(json.dumps(config))
        out, manifest = self.fold("fp8")
        self.assertEqual(sum(pair["folded"] for pair in manifest["fold"]["pairs"]), 8)
        after = native.read_checkpoint(out)
        self.assertEqual({dtype for dtype, _ in after.values()}, {"F32", "BF16"})
        self.assertNotIn("quantization_config", json.loads((out / "config.json").read_text()))
        # Every weight is rounded to BF16, 2^-9 at most; wrong blocks or factors are off by tens of percent.
        self.assertLess(relative_difference(logits(plain), logits(out)), 2e-2)


def add_family_tests():
    for family in FAMILIES:
        name = "test_family_" + family.replace("-", "_")
        setattr(FoldTest, name, lambda self, family=family: self.check_family(family))


add_family_tests()

if __name__ == "__main__":
    unittest.main()
