// Linked when the build has no CUDA backend.
#include "kernels/backend.h"

namespace sinq::kernels {

absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend() {
  return absl::NotFoundError("this build has no CUDA backend; use --backend cpu");
}

}  // namespace sinq::kernels
