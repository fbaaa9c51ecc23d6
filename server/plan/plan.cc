#include "server/plan/plan.h"

namespace sinq {

absl::string_view ActionName(TensorAction action) {
  switch (action) {
    case TensorAction::kQuantize:
      return "quantize";
    case TensorAction::kCopy:
      return "copy";
    case TensorAction::kDrop:
      return "drop";
  }
  return "";
}

}  // namespace sinq
