// Linked when the build has a CUDA backend; else backend_cuda_absent.cc.
#include "kernels/backend_cuda.h"

namespace sinq::kernels {

absl::StatusOr<std::vector<std::unique_ptr<Backend>>> MakeCudaBackends(const CudaOptions& options) {
  absl::StatusOr<std::shared_ptr<CudaRuntime>> runtime = MakeCudartRuntime();
  if (!runtime.ok()) return runtime.status();
  return MakeCudaBackendsOn(std::move(*runtime), options);
}

}  // namespace sinq::kernels
