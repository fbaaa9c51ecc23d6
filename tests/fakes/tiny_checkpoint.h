// Small checkpoints for tests, made of seeded random weights.
#ifndef SINQ_TESTS_FAKES_TINY_CHECKPOINT_H_
#define SINQ_TESTS_FAKES_TINY_CHECKPOINT_H_

#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "tests/fakes/safetensors_file.h"

namespace sinq {

struct TestTensor {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;
  std::string data;
};

// BF16 weights of N(0, 0.02); the same seed gives the same bytes.
inline TestTensor Bf16Tensor(std::string name, std::vector<int64_t> shape, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, 0.02f);
  int64_t count = 1;
  for (const int64_t extent : shape) count *= extent;
  std::string data;
  for (int64_t i = 0; i < count; ++i) {
    const float value = normal(random);
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    data += static_cast<char>(bits >> 16);
    data += static_cast<char>(bits >> 24);
  }
  return {std::move(name), "BF16", std::move(shape), std::move(data)};
}

inline std::string SafetensorsOf(const std::vector<TestTensor>& tensors) {
  std::vector<std::string> entries;
  std::string data;
  for (const TestTensor& tensor : tensors) {
    entries.push_back(absl::StrCat("\"", tensor.name, "\":{\"dtype\":\"", tensor.dtype,
                                   "\",\"shape\":[", absl::StrJoin(tensor.shape, ","),
                                   "],\"data_offsets\":[", data.size(), ",",
                                   data.size() + tensor.data.size(), "]}"));
    data += tensor.data;
  }
  return SafetensorsFile(absl::StrCat("{", absl::StrJoin(entries, ","), "}"), data);
}

inline constexpr char kTinyConfig[] =
    R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16"})";

// Two layers' worth of what a Llama checkpoint has: two matrices to quantize, the rest to copy.
inline std::vector<TestTensor> TinyLlamaTensors() {
  return {Bf16Tensor("lm_head.weight", {8, 64}, 1),
          Bf16Tensor("model.embed_tokens.weight", {8, 64}, 2),
          Bf16Tensor("model.layers.0.input_layernorm.weight", {64}, 3),
          Bf16Tensor("model.layers.0.mlp.down_proj.weight", {64, 128}, 4),
          Bf16Tensor("model.layers.0.self_attn.q_proj.weight", {64, 64}, 5),
          Bf16Tensor("model.norm.weight", {64}, 6)};
}

// A layer of a Llama model whose column scales can be folded: four heads on two kv heads, and a
// bias of the values.
inline constexpr char kFoldableConfig[] =
    R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16",
        "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2})";

inline std::vector<TestTensor> FoldableLlamaTensors() {
  const std::string p = "model.layers.0.";
  return {Bf16Tensor(p + "input_layernorm.weight", {64}, 1),
          Bf16Tensor(p + "mlp.down_proj.weight", {64, 128}, 2),
          Bf16Tensor(p + "mlp.gate_proj.weight", {128, 64}, 3),
          Bf16Tensor(p + "mlp.up_proj.weight", {128, 64}, 4),
          Bf16Tensor(p + "post_attention_layernorm.weight", {64}, 5),
          Bf16Tensor(p + "self_attn.k_proj.weight", {32, 64}, 6),
          Bf16Tensor(p + "self_attn.o_proj.weight", {64, 64}, 7),
          Bf16Tensor(p + "self_attn.q_proj.weight", {64, 64}, 8),
          Bf16Tensor(p + "self_attn.v_proj.bias", {32}, 9),
          Bf16Tensor(p + "self_attn.v_proj.weight", {32, 64}, 10)};
}

}  // namespace sinq

#endif  // SINQ_TESTS_FAKES_TINY_CHECKPOINT_H_
