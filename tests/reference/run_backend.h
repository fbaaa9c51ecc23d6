// Calls a backend with buffers of its own: what every kernel test does.
#ifndef SINQ_TESTS_REFERENCE_RUN_BACKEND_H_
#define SINQ_TESTS_REFERENCE_RUN_BACKEND_H_

#include <string>
#include <vector>

#include "kernels/backend.h"

namespace sinq::kernels {

struct QuantizedPlanes {
  absl::Status status;
  std::vector<PlaneSpec> specs;
  std::vector<std::vector<std::byte>> planes;
  TensorStats stats;

  const std::vector<std::byte>& Plane(PlaneKind kind) const;  // empty if this layout has none
  std::vector<float> F16Plane(PlaneKind kind) const;
};

// `scratch_times`: multiples of ScratchBytes to hand over; more lets more bodies of `parallel_for`
// run at once.
QuantizedPlanes RunBackend(const Backend& backend, const MatrixView& in, const QuantParams& params,
                           ParallelFor parallel_for, size_t scratch_times = 1);
QuantizedPlanes RunBackend(const Backend& backend, const MatrixView& in, const QuantParams& params);

// Empty if both are the same: status code, every byte of every plane, every figure. Else the first
// difference.
std::string Difference(const QuantizedPlanes& expected, const QuantizedPlanes& actual);

}  // namespace sinq::kernels

#endif  // SINQ_TESTS_REFERENCE_RUN_BACKEND_H_
