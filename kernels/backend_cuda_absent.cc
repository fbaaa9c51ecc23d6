// Linked when the build has no CUDA backend.
#include "kernels/backend.h"

namespace sinq::kernels {

absl::StatusOr<std::vector<std::unique_ptr<Backend>>> MakeCudaBackends(const CudaOptions&) {
  return absl::NotFoundError(
      "this build has no CUDA backend: use --backend cpu, or build with -DSINQ_CUDA=ON");
}

}  // namespace sinq::kernels
