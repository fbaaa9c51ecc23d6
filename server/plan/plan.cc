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
  switch (phase) {
    case Phase::kWidths:
      return !tensor.candidates.empty();
    case Phase::kMeasure:
      return tensor.measured;
    case Phase::kQuantize:
      return tensor.action != TensorAction::kDrop;
  }
  return false;
}

std::string UnitName(Phase phase, const PlannedTensor& tensor) {
  // No tensor's name has a control character.
  switch (phase) {
    case Phase::kWidths:
      return absl::StrCat("widths\t", tensor.source.name);
    case Phase::kMeasure:
      return absl::StrCat("measure\t", tensor.source.name);
    case Phase::kQuantize:
      return tensor.source.name;
  }
  return "";
}

}  // namespace sinq
