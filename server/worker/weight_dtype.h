// Safetensors' spelling of the element types that kernels read.
#ifndef SINQ_SERVER_WORKER_WEIGHT_DTYPE_H_
#define SINQ_SERVER_WORKER_WEIGHT_DTYPE_H_

#include "absl/strings/string_view.h"
#include "kernels/matrix_view.h"

namespace sinq {

// Of a dtype that the planner lets through as weights.
inline kernels::WeightDtype WeightDtypeOf(absl::string_view dtype) {
  if (dtype == "F32") return kernels::WeightDtype::kF32;
  if (dtype == "F16") return kernels::WeightDtype::kF16;
  return dtype == "F8_E4M3" ? kernels::WeightDtype::kF8E4M3 : kernels::WeightDtype::kBf16;
}

}  // namespace sinq

#endif  // SINQ_SERVER_WORKER_WEIGHT_DTYPE_H_
