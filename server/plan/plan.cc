#include "server/plan/plan.h"

#include "absl/strings/str_cat.h"

namespace sinq {

absl::string_view ActionName(TensorAction action) {
  switch (action) {
    case TensorAction::kQuantize:
      return "quantize";
    case TensorAction::kCopy:
      return "copy";
    case TensorAction::kDrop:
      return "drop";
    case TensorAction::kFold:
      return "fold";
  }
  return "";
}

bool HasUnit(Phase phase, const PlannedTensor& tensor) {
  return phase == Phase::kMeasure ? tensor.measured : tensor.action != TensorAction::kDrop;
}

std::string UnitName(Phase phase, const PlannedTensor& tensor) {
  // No tensor's name has a control character.
  return phase == Phase::kMeasure ? absl::StrCat("measure\t", tensor.source.name)
                                  : tensor.source.name;
}

}  // namespace sinq
