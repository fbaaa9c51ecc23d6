#include "kernels/backend_cpu.h"

#include <memory>

#include "absl/strings/str_cat.h"
#include "kernels/matrix_check.h"
#include "kernels/measure_cpu.h"
#include "kernels/measuring.h"
#include "kernels/quantize_job.h"

namespace sinq::kernels {
namespace {

absl::Status CheckScratch(absl::Span<std::byte> scratch, size_t needed_bytes) {
  if (scratch.size() >= needed_bytes &&
      reinterpret_cast<uintptr_t>(scratch.data()) % kScratchAlignment == 0) {
    return absl::OkStatus();
  }
  return absl::InternalError("scratch is too small or not aligned to 64 bytes");
}

absl::Status CheckPlanes(absl::Span<const PlaneSpec> specs,
                         absl::Span<const absl::Span<std::byte>> planes) {
  if (specs.size() != planes.size()) return absl::InternalError("wrong number of planes");
  for (size_t i = 0; i < specs.size(); ++i) {
    if (specs[i].size_bytes != planes[i].size())
      return absl::InternalError(absl::StrCat("plane ", i, " has the wrong size"));
  }
  return absl::OkStatus();
}

// Dtype of plane kDense.
PlaneDtype DenseDtype(WeightDtype dtype) {
  if (dtype == WeightDtype::kF32) return PlaneDtype::kF32;
  return dtype == WeightDtype::kF16 ? PlaneDtype::kF16 : PlaneDtype::kBf16;
}

}  // namespace

void RunSerially(size_t n, absl::FunctionRef<void(size_t)> body) {
  for (size_t i = 0; i < n; ++i) body(i);
}

size_t CpuBackend::ScratchBytes(const QuantParams& params, int64_t rows, int64_t cols) const {
  if (EffectiveGroupSize(cols, params.group_size) == 0 || rows < 1) return 0;
  // The widest case, a tile of fp32: callers ask before they know the dtype.
  const MatrixView in{nullptr, rows, cols, WeightDtype::kF32, {}};
  TensorStats stats;
  QuantizeJob job(ops_, in, params, {}, {}, &stats);
  // What is quantized by rows is still measured by tiles.
  return std::max(job.FixedBytes() + static_cast<size_t>(threads_) * job.SlotBytes(),
                  MeasureSlotBytes(in, {&params, 1}));
}

absl::Status CpuBackend::Quantize(const MatrixView& in, const QuantParams& params,
                                  absl::Span<std::byte> scratch,
                                  absl::Span<const absl::Span<std::byte>> planes,
                                  ParallelFor parallel_for, absl::FunctionRef<bool()> cancelled,
                                  TensorStats* stats) const {
  *stats = TensorStats();
  if (absl::Status status = Validate(params); !status.ok()) return status;
  const absl::StatusOr<std::vector<PlaneSpec>> specs =
      PlanesOf(params, in.rows, in.cols, DenseDtype(in.dtype));
  if (!specs.ok()) return specs.status();
  QuantizeJob job(ops_, in, params, *specs, planes, stats);
  absl::Status status = CheckPlanes(*specs, planes);
  if (status.ok()) status = CheckScratch(scratch, job.FixedBytes() + job.SlotBytes());
  if (status.ok()) status = CheckFactors(in);
  if (status.ok() && NeedsActivations(params.method)) status = CheckActivations(in);
  if (status.ok()) status = job.ApplyKurtosisGate();
  if (!status.ok()) return status;
  return job.Run(scratch, parallel_for, cancelled);
}

absl::Status CpuBackend::MeasureColumns(const MatrixView& in, const QuantParams& params,
                                        absl::Span<std::byte> scratch, absl::Span<float> t,
                                        ParallelFor parallel_for,
                                        absl::FunctionRef<bool()> cancelled) const {
  if (absl::Status status = CheckMeasurable(in, params); !status.ok()) return status;
  if (t.size() != static_cast<size_t>(in.cols)) return absl::InternalError("t has the wrong size");
  const size_t slot_bytes = MeasureSlotBytes(in, {&params, 1});
  if (absl::Status status = CheckScratch(scratch, slot_bytes); !status.ok()) return status;
  return MeasureColumnScales({ops_, in, scratch, slot_bytes, parallel_for, cancelled}, params, t);
}

absl::Status CpuBackend::MeasureErrors(const MatrixView& in,
                                       absl::Span<const QuantParams> candidates,
                                       absl::Span<std::byte> scratch,
                                       absl::Span<Measurement> measured, ParallelFor parallel_for,
                                       absl::FunctionRef<bool()> cancelled) const {
  if (measured.size() != candidates.size())
    return absl::InternalError("there is not one measurement for each candidate");
  for (const QuantParams& candidate : candidates) {
    if (absl::Status status = CheckMeasurable(in, candidate); !status.ok()) return status;
  }
  const size_t slot_bytes = MeasureSlotBytes(in, candidates);
  if (absl::Status status = CheckScratch(scratch, slot_bytes); !status.ok()) return status;
  return MeasureCandidates({ops_, in, scratch, slot_bytes, parallel_for, cancelled}, candidates,
                           measured);
}

std::unique_ptr<Backend> MakeCpuBackend(int threads) {
  return std::make_unique<CpuBackend>(*SupportedTileOps().front(), threads);
}

std::vector<std::unique_ptr<Backend>> MakeCpuBackendsForAllTargets() {
  std::vector<std::unique_ptr<Backend>> backends;
  for (const TileOps* ops : SupportedTileOps())
    backends.push_back(std::make_unique<CpuBackend>(*ops));
  return backends;
}

}  // namespace sinq::kernels
