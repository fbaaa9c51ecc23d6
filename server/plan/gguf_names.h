// What the tensors of a checkpoint are called in a GGUF file, for the architectures that we patch:
// data, not code. Sources: tensor_mapping.py of PyPI's gguf 0.19.0 (names); llama.cpp's converter
// at 0274f0fc, conversion/{llama,qwen,phi,olmo}.py (which models become which architecture, and
// whose query and key rows are put in another order). tests/interop/test_gguf.py has gguf as judge.
#ifndef SINQ_SERVER_PLAN_GGUF_NAMES_H_
#define SINQ_SERVER_PLAN_GGUF_NAMES_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace sinq {

// The order of a module's rows in the file. Rotary embeddings turn the first half of a head's rows
// with the second; ggml's architecture llama turns neighbours instead, so that its converter puts
// the two halves of every head alternately.
enum class GgufRows : uint8_t { kAsTheyAre, kHalvesOfQueryHeads, kHalvesOfKeyHeads };

struct GgufModule {
  absl::string_view source;  // of a layer ("self_attn.q_proj"), or whole ("model.norm")
  absl::string_view target;  // of a layer ("attn_q"), or whole ("output_norm")
  GgufRows rows = GgufRows::kAsTheyAre;
};

struct GgufArchitecture {
  absl::string_view name;                                // general.architecture
  absl::Span<const absl::string_view> model_types;       // of config.json
  absl::Span<const absl::Span<const GgufModule>> parts;  // modules of a layer
};

absl::Span<const GgufArchitecture> AllGgufArchitectures();
// Null if the table has none of this name.
const GgufArchitecture* FindGgufArchitecture(absl::string_view name);

struct GgufPlace {
  std::string name;  // "blk.0.attn_q.weight"
  GgufRows rows = GgufRows::kAsTheyAre;
};
// Where the tensor of a checkpoint ("model.layers.0.self_attn.q_proj.weight") goes; nothing if the
// architecture has no such module.
std::optional<GgufPlace> GgufPlaceOf(const GgufArchitecture& architecture,
                                     absl::string_view source_name);

}  // namespace sinq

#endif  // SINQ_SERVER_PLAN_GGUF_NAMES_H_
