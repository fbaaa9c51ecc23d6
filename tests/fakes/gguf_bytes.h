// The bytes of GGUF files for tests, also of files that no converter would make.
#ifndef SINQ_TESTS_FAKES_GGUF_BYTES_H_
#define SINQ_TESTS_FAKES_GGUF_BYTES_H_

#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/string_view.h"
#include "tests/fakes/tiny_checkpoint.h"

namespace sinq {

template <class Number>
std::string RawBytes(Number number) {
  return std::string(reinterpret_cast<const char*>(&number), sizeof number);
}
inline std::string GgufText(absl::string_view text) {
  return absl::StrCat(RawBytes<uint64_t>(text.size()), text);
}

inline constexpr uint32_t kGgufU32 = 4, kGgufString = 8;
inline constexpr uint32_t kGgmlF32 = 0, kGgmlF16 = 1, kGgmlQ8_0 = 8, kGgmlBf16 = 30;

struct TestGgufTensor {
  std::string name;
  std::vector<uint64_t> dimensions;
  uint32_t type = kGgmlBf16;
  std::string data;
};

struct TestGguf {
  uint32_t version = 3;
  std::vector<std::string> pairs;
  std::vector<TestGgufTensor> tensors;

  void AddNumber(absl::string_view key, uint32_t value) {
    pairs.push_back(absl::StrCat(GgufText(key), RawBytes(kGgufU32), RawBytes(value)));
  }
  void AddText(absl::string_view key, absl::string_view value) {
    pairs.push_back(absl::StrCat(GgufText(key), RawBytes(kGgufString), GgufText(value)));
  }
  TestGgufTensor& Find(absl::string_view name) {
    for (TestGgufTensor& tensor : tensors) {
      if (tensor.name == name) return tensor;
    }
    return tensors.emplace_back();
  }
  std::string Bytes() const {
    constexpr size_t kAlignment = 32;
    const auto pad = [](std::string& bytes) {
      bytes.resize((bytes.size() + kAlignment - 1) / kAlignment * kAlignment, '\0');
    };
    std::string head = absl::StrCat("GGUF", RawBytes(version), RawBytes<uint64_t>(tensors.size()),
                                    RawBytes<uint64_t>(pairs.size()));
    std::string data;
    for (const std::string& pair : pairs) head += pair;
    for (const TestGgufTensor& tensor : tensors) {
      absl::StrAppend(&head, GgufText(tensor.name),
                      RawBytes(static_cast<uint32_t>(tensor.dimensions.size())));
      for (const uint64_t dimension : tensor.dimensions) head += RawBytes(dimension);
      absl::StrAppend(&head, RawBytes(tensor.type), RawBytes<uint64_t>(data.size()));
      data += tensor.data;
      pad(data);
    }
    pad(head);
    return head + data;
  }
};

// F32 of BF16 values.
inline std::string Widened(absl::string_view bf16) {
  std::string out;
  for (size_t i = 0; i < bf16.size(); i += 2)
    absl::StrAppend(&out, std::string(2, '\0'), bf16.substr(i, 2));
  return out;
}

// What ggml's architecture llama has of a matrix with `heads` heads.
inline std::string Alternating(absl::string_view data, size_t rows, size_t heads) {
  const size_t row_bytes = data.size() / rows, head_rows = rows / heads;
  std::string out;
  for (size_t head = 0; head < heads; ++head) {
    for (size_t i = 0; i < head_rows / 2; ++i) {
      for (const size_t half : {size_t{0}, head_rows / 2})
        absl::StrAppend(&out, data.substr((head * head_rows + half + i) * row_bytes, row_bytes));
    }
  }
  return out;
}

// As llama.cpp's converter makes it of FoldableLlamaTensors: matrices in BF16, vectors in F32, and
// a norm and an embedding that the checkpoint lacks. `architecture`: "llama" or another one.
inline TestGguf FoldableTemplate(absl::string_view architecture) {
  TestGguf out;
  out.AddText("general.architecture", architecture);
  out.AddNumber("general.file_type", 32);
  out.AddNumber(absl::StrCat(architecture, ".attention.head_count"), 4);
  out.AddNumber(absl::StrCat(architecture, ".attention.head_count_kv"), 2);
  out.AddText("tokenizer.ggml.model", "no_vocab");
  for (const TestTensor& tensor : FoldableLlamaTensors()) {
    TestGgufTensor& stored = out.tensors.emplace_back();
    stored.name = absl::StrReplaceAll(tensor.name, {{"model.layers.", "blk."},
                                                    {"input_layernorm", "attn_norm"},
                                                    {"post_attention_layernorm", "ffn_norm"},
                                                    {"mlp.gate_proj", "ffn_gate"},
                                                    {"mlp.up_proj", "ffn_up"},
                                                    {"mlp.down_proj", "ffn_down"},
                                                    {"self_attn.q_proj", "attn_q"},
                                                    {"self_attn.k_proj", "attn_k"},
                                                    {"self_attn.v_proj", "attn_v"},
                                                    {"self_attn.o_proj", "attn_output"}});
    stored.dimensions.assign(tensor.shape.rbegin(), tensor.shape.rend());
    stored.data = tensor.data;
    if (tensor.shape.size() == 1) {
      stored.type = kGgmlF32;
      stored.data = Widened(tensor.data);
    } else if (architecture == "llama" && stored.name == "blk.0.attn_q.weight") {
      stored.data = Alternating(tensor.data, 64, 4);
    } else if (architecture == "llama" && stored.name == "blk.0.attn_k.weight") {
      stored.data = Alternating(tensor.data, 32, 2);
    }
  }
  out.tensors.push_back(
      {"token_embd.weight", {64, 3}, kGgmlBf16, Bf16Tensor("e", {3, 64}, 20).data});
  // 12 bytes, so that padding follows.
  out.tensors.push_back({"output_norm.weight", {3}, kGgmlF32, std::string(12, 'n')});
  return out;
}

}  // namespace sinq

#endif  // SINQ_TESTS_FAKES_GGUF_BYTES_H_
