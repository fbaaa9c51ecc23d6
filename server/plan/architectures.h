// Which tensors of a decoder layer feed which, for each known family of models: data, not code.
// Sources: the modeling files of transformers 5; tests/interop/test_fold.py has them as judge.
#ifndef SINQ_SERVER_PLAN_ARCHITECTURES_H_
#define SINQ_SERVER_PLAN_ARCHITECTURES_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace sinq {

// What is multiplied by the column scale that its consumers are divided by.
enum class FoldProducer : uint8_t {
  kNorm,            // the norm's weight: y = x w
  kNormPlusOne,     // y = x (1 + w)
  kRows,            // all rows of a linear layer
  kSecondHalfRows,  // the up rows of a fused [gate; up]
  kValueRows,       // v_proj: each kv head feeds the columns of several query heads
  kFusedValueRows,  // the v rows of a fused [q; k; v]
  kLatentValueRows  // MLA: in each head of kv_b_proj the rows after qk_nope
};

// Up to N names; the rest is null.
template <size_t N>
struct NameList {
  std::array<const char*, N> names{};

  size_t size() const {
    size_t count = 0;
    while (count < N && names[count] != nullptr) ++count;
    return count;
  }
  absl::Span<const char* const> span() const { return {names.data(), size()}; }
};

// Module names are relative to the layer ("self_attn.q_proj"). '*' stands for each expert's number;
// a trailing '?' for a consumer that a checkpoint may lack.
struct FoldRule {
  FoldProducer kind;
  const char* producer;
  NameList<8> consumers;
};

// A part of a layer. It is there if the weight of `marker` is.
struct LayerBlock {
  const char* marker;
  std::array<FoldRule, 4> rules;  // up to the first without a producer
  NameList<8> others;             // modules or tensors that no fold touches

  absl::Span<const FoldRule> rule_span() const {
    size_t count = 0;
    while (count < rules.size() && rules[count].producer != nullptr) ++count;
    return {rules.data(), count};
  }
};

struct Architecture {
  NameList<6> model_types;  // of config.json, or of its text_config
  std::array<const LayerBlock*, 6> blocks;

  absl::Span<const LayerBlock* const> block_span() const {
    size_t count = 0;
    while (count < blocks.size() && blocks[count] != nullptr) ++count;
    return {blocks.data(), count};
  }
};

absl::Span<const Architecture> AllArchitectures();
// Null if no family has this model type.
const Architecture* FindArchitecture(absl::string_view model_type);

}  // namespace sinq

#endif  // SINQ_SERVER_PLAN_ARCHITECTURES_H_
