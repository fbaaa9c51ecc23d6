#include "server/source/aux_file_rules.h"

#include "gtest/gtest.h"

namespace sinq {
namespace {

TEST(AuxFiles, WhatBelongsToAModelIsCopied) {
  for (const char* name :
       {"tokenizer.json", "tokenizer.model", "tokenizer_config.json", "merges.txt",
        "generation_config.json", "chat_template.jinja", "modeling_x.py", "special_tokens_map.json",
        "README.md", "preprocessor_config.json"}) {
    EXPECT_TRUE(IsAuxFileName(name)) << name;
  }
}

TEST(AuxFiles, WeightsIndexesAndHiddenFilesAreNot) {
  for (const char* name : {"", "config.json", "model.safetensors", "model.safetensors.index.json",
                           "consolidated.pth", "pytorch_model.bin", "pytorch_model.bin.index.json",
                           "m.pt", "m.gguf", "M.GGUF", "tf_model.h5", "flax_model.msgpack",
                           ".gitattributes", ".cache", "model.onnx", "a\nb.json"}) {
    EXPECT_FALSE(IsAuxFileName(name)) << name;
  }
}

// The output may have a file of that name itself, and its weights are not the source's.
TEST(AuxFiles, WhatTellsOfTheSourcesWeightsIsNotCopied) {
  for (const char* name :
       {"sinq-manifest.json", "quantize_config.json", "quantization_config.json",
        "quant_config.json", "hf_quant_config.json", "model.safetensors.index.json.meta.json"}) {
    EXPECT_FALSE(IsAuxFileName(name)) << name;
  }
}

}  // namespace
}  // namespace sinq
