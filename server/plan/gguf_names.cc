#include "server/plan/gguf_names.h"

#include <algorithm>
#include <array>
#include <cstddef>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace sinq {
namespace {

using absl::string_view;
using enum GgufRows;
using Modules = absl::Span<const GgufModule>;

constexpr string_view kSourceLayers = "model.layers.", kTargetLayers = "blk.";

// The same for all architectures.
constexpr std::array kWholeModel = {GgufModule{"model.embed_tokens", "token_embd"},
                                    GgufModule{"model.norm", "output_norm"},
                                    GgufModule{"lm_head", "output"}};

// ---------------------------------------------------------------- parts of a layer

constexpr std::array kPreNorms = {GgufModule{"input_layernorm", "attn_norm"},
                                  GgufModule{"post_attention_layernorm", "ffn_norm"}};
constexpr std::array kPostNorms = {GgufModule{"post_attention_layernorm", "post_attention_norm"},
                                   GgufModule{"post_feedforward_layernorm", "post_ffw_norm"}};

constexpr std::array kAttention = {
    GgufModule{"self_attn.q_proj", "attn_q"}, GgufModule{"self_attn.k_proj", "attn_k"},
    GgufModule{"self_attn.v_proj", "attn_v"}, GgufModule{"self_attn.o_proj", "attn_output"}};
constexpr std::array kAlternatingAttention = {
    GgufModule{"self_attn.q_proj", "attn_q", kHalvesOfQueryHeads},
    GgufModule{"self_attn.k_proj", "attn_k", kHalvesOfKeyHeads},
    GgufModule{"self_attn.v_proj", "attn_v"}, GgufModule{"self_attn.o_proj", "attn_output"}};
constexpr std::array kFusedAttention = {GgufModule{"self_attn.qkv_proj", "attn_qkv"},
                                        GgufModule{"self_attn.o_proj", "attn_output"}};
constexpr std::array kHeadNorms = {GgufModule{"self_attn.q_norm", "attn_q_norm"},
                                   GgufModule{"self_attn.k_norm", "attn_k_norm"}};

constexpr std::array kMlp = {GgufModule{"mlp.gate_proj", "ffn_gate"},
                             GgufModule{"mlp.up_proj", "ffn_up"},
                             GgufModule{"mlp.down_proj", "ffn_down"}};
// gate and up in one, the gate first: ggml splits it.
constexpr std::array kFusedMlp = {GgufModule{"mlp.gate_up_proj", "ffn_up"},
                                  GgufModule{"mlp.down_proj", "ffn_down"}};

// ---------------------------------------------------------------- architectures

constexpr string_view kLlamaTypes[] = {"llama", "mistral"};
constexpr Modules kLlamaParts[] = {kPreNorms, kAlternatingAttention, kMlp};
constexpr string_view kQwen2Types[] = {"qwen2"};
constexpr Modules kQwen2Parts[] = {kPreNorms, kAttention, kMlp};
constexpr string_view kQwen3Types[] = {"qwen3"};
constexpr Modules kQwen3Parts[] = {kPreNorms, kAttention, kHeadNorms, kMlp};
constexpr string_view kPhi3Types[] = {"phi3"};
constexpr Modules kPhi3Parts[] = {kPreNorms, kFusedAttention, kFusedMlp};
constexpr string_view kOlmo2Types[] = {"olmo2", "olmo3"};
constexpr Modules kOlmo2Parts[] = {kPostNorms, kAttention, kHeadNorms, kMlp};

constexpr std::array kArchitectures = {
    GgufArchitecture{"llama", kLlamaTypes, kLlamaParts},
    GgufArchitecture{"qwen2", kQwen2Types, kQwen2Parts},
    GgufArchitecture{"qwen3", kQwen3Types, kQwen3Parts},
    GgufArchitecture{"phi3", kPhi3Types, kPhi3Parts},
    GgufArchitecture{"olmo2", kOlmo2Types, kOlmo2Parts},
};

const GgufModule* FindModule(Modules modules, string_view source) {
  const auto found = std::find_if(modules.begin(), modules.end(),
                                  [&](const GgufModule& m) { return m.source == source; });
  return found == modules.end() ? nullptr : &*found;
}

// "model.layers.7.mlp.up_proj" without the suffix; nothing if it is not in a layer.
std::optional<GgufPlace> PlaceInLayer(const GgufArchitecture& architecture, string_view module) {
  if (!absl::ConsumePrefix(&module, kSourceLayers)) return std::nullopt;
  size_t digits = 0;
  while (digits < module.size() && absl::ascii_isdigit(static_cast<unsigned char>(module[digits])))
    ++digits;
  if (digits == 0 || digits == module.size() || module[digits] != '.') return std::nullopt;
  for (const Modules part : architecture.parts) {
    const GgufModule* found = FindModule(part, module.substr(digits + 1));
    if (found == nullptr) continue;
    return GgufPlace{absl::StrCat(kTargetLayers, module.substr(0, digits), ".", found->target),
                     found->rows};
  }
  return std::nullopt;
}

}  // namespace

absl::Span<const GgufArchitecture> AllGgufArchitectures() { return kArchitectures; }

const GgufArchitecture* FindGgufArchitecture(string_view name) {
  for (const GgufArchitecture& architecture : kArchitectures) {
    if (architecture.name == name) return &architecture;
  }
  return nullptr;
}

std::optional<GgufPlace> GgufPlaceOf(const GgufArchitecture& architecture,
                                     string_view source_name) {
  const size_t dot = source_name.rfind('.');
  if (dot == string_view::npos) return std::nullopt;
  const string_view module = source_name.substr(0, dot), suffix = source_name.substr(dot);
  if (suffix != ".weight" && suffix != ".bias") return std::nullopt;
  std::optional<GgufPlace> place = PlaceInLayer(architecture, module);
  if (!place.has_value()) {
    const GgufModule* found = FindModule(kWholeModel, module);
    if (found == nullptr) return std::nullopt;
    place = GgufPlace{std::string(found->target), found->rows};
  }
  absl::StrAppend(&place->name, suffix);
  return place;
}

}  // namespace sinq
