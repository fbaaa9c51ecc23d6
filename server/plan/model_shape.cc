#include "server/plan/model_shape.h"

#include "nlohmann/json.hpp"
#include "server/base/json.h"
#include "server/base/limits.h"

namespace sinq {
namespace {

using nlohmann::json;

constexpr int64_t kMaxCount = 1 << 20;  // heads, their sizes and experts are far below

int64_t CountField(const json& config, const char* key) {
  const auto found = config.find(key);
  if (found == config.end() || !found->is_number_unsigned()) return 0;
  const uint64_t value = found->get<uint64_t>();
  return value <= kMaxCount ? static_cast<int64_t>(value) : 0;
}

int64_t FirstCount(const json& config, std::initializer_list<const char*> keys) {
  for (const char* key : keys) {
    if (const int64_t value = CountField(config, key); value > 0) return value;
  }
  return 0;
}

}  // namespace

absl::StatusOr<ModelShape> ReadModelShape(const std::optional<std::string>& config_json) {
  ModelShape shape;
  if (!config_json.has_value()) return shape;
  const absl::StatusOr<json> parsed =
      ParseStrictJsonTree(*config_json, kMaxJsonDepth, "config.json");
  if (!parsed.ok()) return parsed.status();
  if (!parsed->is_object()) return shape;
  const auto text = parsed->find("text_config");
  const json& config = text != parsed->end() && text->is_object() ? *text : *parsed;
  if (const auto type = config.find("model_type"); type != config.end() && type->is_string())
    shape.model_type = type->get<std::string>();
  shape.heads = CountField(config, "num_attention_heads");
  shape.kv_heads = FirstCount(config, {"num_key_value_heads", "num_attention_heads"});
  shape.head_dim = CountField(config, "head_dim");
  if (shape.head_dim == 0 && shape.heads > 0)
    shape.head_dim = CountField(config, "hidden_size") / shape.heads;
  shape.qk_nope_head_dim = CountField(config, "qk_nope_head_dim");
  shape.v_head_dim = CountField(config, "v_head_dim");
  shape.experts = FirstCount(config, {"num_local_experts", "n_routed_experts", "num_experts"});
  const auto clip = config.find("clip_qkv");
  shape.clips_values = clip != config.end() && !clip->is_null();
  return shape;
}

}  // namespace sinq
