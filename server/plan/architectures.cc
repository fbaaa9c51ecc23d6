#include "server/plan/architectures.h"

namespace sinq {
namespace {

using enum FoldProducer;

// ---------------------------------------------------------------- attention

constexpr LayerBlock kAttention = {
    .marker = "self_attn.q_proj",
    .rules = {{{kNorm,
                "input_layernorm",
                {{"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}}},
               {kValueRows, "self_attn.v_proj", {{"self_attn.o_proj"}}}}},
    .others = {{"self_attn.q_norm", "self_attn.k_norm", "self_attn.rotary_emb.inv_freq"}}};

// Sandwich norms: those after attention and after the MLP feed the residual stream.
constexpr LayerBlock kGlm4Attention = {
    .marker = "self_attn.q_proj",
    .rules = kAttention.rules,
    .others = {{"post_self_attn_layernorm", "post_mlp_layernorm"}}};

constexpr LayerBlock kPlusOneAttention = {
    .marker = "self_attn.q_proj",
    .rules = {{{kNormPlusOne,
                "input_layernorm",
                {{"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}}},
               {kValueRows, "self_attn.v_proj", {{"self_attn.o_proj"}}}}},
    .others = {{"self_attn.q_norm", "self_attn.k_norm", "self_attn.rotary_emb.inv_freq"}}};

// OLMo-2: attention reads the residual stream itself.
constexpr LayerBlock kPostNormAttention = {
    .marker = "self_attn.q_proj",
    .rules = {{{kValueRows, "self_attn.v_proj", {{"self_attn.o_proj"}}}}},
    .others = {{"self_attn.q_proj", "self_attn.k_proj", "self_attn.q_norm", "self_attn.k_norm",
                "post_attention_layernorm", "post_feedforward_layernorm"}}};

constexpr LayerBlock kFusedAttention = {
    .marker = "self_attn.qkv_proj",
    .rules = {{{kNorm, "input_layernorm", {{"self_attn.qkv_proj"}}},
               {kFusedValueRows, "self_attn.qkv_proj", {{"self_attn.o_proj"}}}}},
    .others = {{"self_attn.rotary_emb.inv_freq"}}};

// Multi-head latent attention, without and with a low-rank query.
constexpr LayerBlock kLatentAttention = {
    .marker = "self_attn.q_proj",
    .rules = {{{kNorm,
                "input_layernorm",
                {{"self_attn.q_proj", "self_attn.kv_a_proj_with_mqa"}}},
               {kNorm, "self_attn.kv_a_layernorm", {{"self_attn.kv_b_proj"}}},
               {kLatentValueRows, "self_attn.kv_b_proj", {{"self_attn.o_proj"}}}}},
    .others = {{"self_attn.rotary_emb.inv_freq"}}};

constexpr LayerBlock kLowRankLatentAttention = {
    .marker = "self_attn.q_a_proj",
    .rules = {{{kNorm,
                "input_layernorm",
                {{"self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa"}}},
               {kNorm, "self_attn.q_a_layernorm", {{"self_attn.q_b_proj"}}},
               {kNorm, "self_attn.kv_a_layernorm", {{"self_attn.kv_b_proj"}}},
               {kLatentValueRows, "self_attn.kv_b_proj", {{"self_attn.o_proj"}}}}},
    .others = {{"self_attn.rotary_emb.inv_freq"}}};

// ---------------------------------------------------------------- MLP

constexpr LayerBlock kMlp = {
    .marker = "mlp.gate_proj",
    .rules = {{{kNorm, "post_attention_layernorm", {{"mlp.gate_proj", "mlp.up_proj"}}},
               {kRows, "mlp.up_proj", {{"mlp.down_proj"}}}}},
    .others = {}};

constexpr LayerBlock kFusedMlp = {
    .marker = "mlp.gate_up_proj",
    .rules = {{{kNorm, "post_attention_layernorm", {{"mlp.gate_up_proj"}}},
               {kSecondHalfRows, "mlp.gate_up_proj", {{"mlp.down_proj"}}}}},
    .others = {}};

constexpr LayerBlock kGemmaMlp = {
    .marker = "mlp.gate_proj",
    .rules = {{{kNormPlusOne, "post_attention_layernorm", {{"mlp.gate_proj", "mlp.up_proj"}}},
               {kRows, "mlp.up_proj", {{"mlp.down_proj"}}}}},
    .others = {}};

// Gemma-2 and -3: the norm before the MLP has another name, the one after attention feeds the
// residual stream.
constexpr LayerBlock kSandwichMlp = {
    .marker = "mlp.gate_proj",
    .rules = {{{kNormPlusOne, "pre_feedforward_layernorm", {{"mlp.gate_proj", "mlp.up_proj"}}},
               {kRows, "mlp.up_proj", {{"mlp.down_proj"}}}}},
    .others = {{"post_attention_layernorm", "post_feedforward_layernorm"}}};

constexpr LayerBlock kPostNormMlp = {.marker = "mlp.gate_proj",
                                     .rules = {{{kRows, "mlp.up_proj", {{"mlp.down_proj"}}}}},
                                     .others = {{"mlp.gate_proj"}}};

// ---------------------------------------------------------------- experts
// Every reader of the norm is divided: all experts, the router, what all tokens share.

constexpr LayerBlock kMixtralExperts = {
    .marker = "block_sparse_moe.gate",
    .rules = {{{kNorm,
                "post_attention_layernorm",
                {{"block_sparse_moe.gate", "block_sparse_moe.experts.*.w1",
                  "block_sparse_moe.experts.*.w3"}}},
               {kRows, "block_sparse_moe.experts.*.w3", {{"block_sparse_moe.experts.*.w2"}}}}},
    .others = {}};

constexpr LayerBlock kQwenExperts = {
    .marker = "mlp.gate",
    .rules = {{{kNorm,
                "post_attention_layernorm",
                {{"mlp.gate", "mlp.experts.*.gate_proj", "mlp.experts.*.up_proj"}}},
               {kRows, "mlp.experts.*.up_proj", {{"mlp.experts.*.down_proj"}}}}},
    .others = {}};

constexpr LayerBlock kQwenSharedExperts = {
    .marker = "mlp.gate",
    .rules = {{{kNorm,
                "post_attention_layernorm",
                {{"mlp.gate", "mlp.experts.*.gate_proj", "mlp.experts.*.up_proj",
                  "mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj",
                  "mlp.shared_expert_gate"}}},
               {kRows, "mlp.experts.*.up_proj", {{"mlp.experts.*.down_proj"}}},
               {kRows, "mlp.shared_expert.up_proj", {{"mlp.shared_expert.down_proj"}}}}},
    .others = {}};

constexpr LayerBlock kDeepseekExperts = {
    .marker = "mlp.gate",
    .rules = {{{kNorm,
                "post_attention_layernorm",
                {{"mlp.gate", "mlp.experts.*.gate_proj", "mlp.experts.*.up_proj",
                  "mlp.shared_experts.gate_proj?", "mlp.shared_experts.up_proj?"}}},
               {kRows, "mlp.experts.*.up_proj", {{"mlp.experts.*.down_proj"}}},
               {kRows, "mlp.shared_experts.up_proj?", {{"mlp.shared_experts.down_proj"}}}}},
    .others = {{"mlp.gate.e_score_correction_bias"}}};

// Experts fused into tensors of three dimensions stay dense, and so does what reads the same norm:
// only the attention and a shared expert's own pair are left to fold.

constexpr LayerBlock kGptOssExperts = {
    .marker = "mlp.router",
    .rules = {},
    .others = {{"post_attention_layernorm", "mlp.router", "mlp.experts.gate_up_proj",
                "mlp.experts.gate_up_proj_bias", "mlp.experts.down_proj",
                "mlp.experts.down_proj_bias", "self_attn.sinks"}}};

constexpr LayerBlock kGraniteExperts = {
    .marker = "block_sparse_moe.router.layer",
    .rules = {},
    .others = {{"post_attention_layernorm", "block_sparse_moe.router.layer",
                "block_sparse_moe.input_linear", "block_sparse_moe.output_linear"}}};

constexpr LayerBlock kLlama4Experts = {
    .marker = "feed_forward.router",
    .rules = {{{kRows,
                "feed_forward.shared_expert.up_proj",
                {{"feed_forward.shared_expert.down_proj"}}}}},
    .others = {{"post_attention_layernorm", "feed_forward.router",
                "feed_forward.shared_expert.gate_proj", "feed_forward.experts.gate_up_proj",
                "feed_forward.experts.down_proj"}}};

constexpr LayerBlock kLlama4Mlp = {
    .marker = "feed_forward.gate_proj",
    .rules = {{{kNorm,
                "post_attention_layernorm",
                {{"feed_forward.gate_proj", "feed_forward.up_proj"}}},
               {kRows, "feed_forward.up_proj", {{"feed_forward.down_proj"}}}}},
    .others = {}};

// ---------------------------------------------------------------- families

constexpr std::array kArchitectures = {
    Architecture{{{"llama", "mistral", "qwen2", "qwen3"}}, {&kAttention, &kMlp}},
    Architecture{{{"gemma"}}, {&kPlusOneAttention, &kGemmaMlp}},
    Architecture{{{"gemma2", "gemma3_text"}}, {&kPlusOneAttention, &kSandwichMlp}},
    Architecture{{{"phi3"}}, {&kFusedAttention, &kFusedMlp}},
    Architecture{{{"olmo2", "olmo3"}}, {&kPostNormAttention, &kPostNormMlp}},
    Architecture{{{"glm"}}, {&kAttention, &kFusedMlp}},
    Architecture{{{"glm4"}}, {&kGlm4Attention, &kFusedMlp}},
    Architecture{{{"mixtral"}}, {&kAttention, &kMixtralExperts}},
    Architecture{{{"qwen2_moe"}}, {&kAttention, &kMlp, &kQwenSharedExperts}},
    Architecture{{{"qwen3_moe"}}, {&kAttention, &kMlp, &kQwenExperts}},
    Architecture{{{"deepseek_v2", "deepseek_v3"}},
                 {&kLatentAttention, &kLowRankLatentAttention, &kMlp, &kDeepseekExperts}},
    Architecture{{{"glm4_moe"}}, {&kAttention, &kMlp, &kDeepseekExperts}},
    Architecture{{{"gpt_oss"}}, {&kAttention, &kGptOssExperts}},
    Architecture{{{"granitemoe"}}, {&kAttention, &kGraniteExperts}},
    Architecture{{{"llama4_text"}}, {&kAttention, &kLlama4Mlp, &kLlama4Experts}},
};

}  // namespace

absl::Span<const Architecture> AllArchitectures() { return kArchitectures; }

const Architecture* FindArchitecture(absl::string_view model_type) {
  for (const Architecture& architecture : kArchitectures) {
    for (const char* name : architecture.model_types.span()) {
      if (model_type == name) return &architecture;
    }
  }
  return nullptr;
}

}  // namespace sinq
