// The CUDA backend: streams, memory and errors of one device; the arithmetic is behind
// cuda_steps.h.
#ifndef SINQ_KERNELS_BACKEND_CUDA_H_
#define SINQ_KERNELS_BACKEND_CUDA_H_

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda_measure_job.h"
#include "kernels/cuda_memory_plan.h"
#include "kernels/cuda_runtime.h"
#include "kernels/cuda_slot.h"
#include "kernels/cuda_staging.h"
#include "kernels/cuda_tensor_job.h"

namespace sinq::kernels {

// Arenas of fewer bytes are not tried when the device is short of memory at start: a [4096, 4096]
// layer in pieces takes about a tenth of it.
inline constexpr size_t kSmallestArenaBytes = size_t{64} << 20;

// One device. Thread-safe: as many calls of Quantize as there are streams are in work at once,
// their copies and kernels overlapping; further calls wait. All memory is allocated in Make.
//
// 1. A slot belongs to one call from TakeSlot to GiveBack; nothing else of a slot is shared.
// 2. No lock is held during a device call but device_stats', which makes none that waits.
// 3. Nothing is put into a stream once the device is lost; what waits for a slot then ends too.
class CudaBackend final : public Backend {
 public:
  // `host_memory` may be shared with the backends of other devices. Errors as MakeCudaBackends.
  static absl::StatusOr<std::unique_ptr<CudaBackend>> Make(
      std::shared_ptr<CudaRuntime> runtime, std::shared_ptr<CudaHostMemory> host_memory, int device,
      const CudaOptions& options);
  ~CudaBackend() override;

  Capabilities GetCapabilities() const override;
  bool healthy() const override { return !lost_; }
  DeviceStats device_stats() const override;
  HostMemory* host_memory() const override { return host_memory_.get(); }
  size_t ScratchBytes(const QuantParams& params, int64_t rows, int64_t cols) const override;
  // Takes no scratch and does not use `parallel_for`. `cancelled` is asked between panels, and now
  // and then while the call waits for a stream. Inputs and outputs that lie in host_memory() are
  // copied by the device itself, others through page-locked staging.
  absl::Status Quantize(const MatrixView& in, const QuantParams& params,
                        absl::Span<std::byte> scratch,
                        absl::Span<const absl::Span<std::byte>> planes, ParallelFor parallel_for,
                        absl::FunctionRef<bool()> cancelled, TensorStats* stats) const override;
  // As Quantize; `cancelled` is asked between panels. Candidates that share balanced tiles are
  // measured together, each set of them reads the weights anew.
  absl::Status MeasureColumns(const MatrixView& in, const QuantParams& params,
                              absl::Span<std::byte> scratch, absl::Span<float> t,
                              ParallelFor parallel_for,
                              absl::FunctionRef<bool()> cancelled) const override;
  absl::Status MeasureErrors(const MatrixView& in, absl::Span<const QuantParams> candidates,
                             absl::Span<std::byte> scratch, absl::Span<Measurement> measured,
                             ParallelFor parallel_for,
                             absl::FunctionRef<bool()> cancelled) const override;

 private:
  // What one attempt at a call came to.
  struct Attempt {
    absl::Status status;
    CudaPhaseSeconds seconds{};
    bool launch_failed = false;
  };

  CudaBackend(std::shared_ptr<CudaRuntime> runtime, std::shared_ptr<CudaHostMemory> host_memory,
              int device, CudaDeviceInfo info, size_t panel_floor_bytes)
      : runtime_(std::move(runtime)),
        host_memory_(std::move(host_memory)),
        device_(device),
        info_(std::move(info)),
        panel_floor_bytes_(panel_floor_bytes) {}

  absl::Status MakeSlots(const CudaOptions& options);
  absl::Status TryMakeSlots(int streams, size_t arena_bytes);
  absl::StatusOr<CudaSlot*> TakeSlot(absl::FunctionRef<bool()> cancelled) const;
  void GiveBack(CudaSlot* slot) const;
  // One call on a stream of its own: with the plan that `make_plan` gives for the arena's size and
  // the most that may move, and with ever smaller ones while the device is short of memory.
  template <class Plan>
  absl::Status RunOnSlot(
      absl::FunctionRef<bool()> cancelled,
      absl::FunctionRef<absl::StatusOr<Plan>(size_t arena_bytes, size_t limit_bytes)> make_plan,
      absl::FunctionRef<Attempt(CudaSlot&, const Plan&)> attempt) const;
  template <class Plan>
  absl::Status ShrinkUntilItFits(
      CudaSlot& slot,
      absl::FunctionRef<absl::StatusOr<Plan>(size_t arena_bytes, size_t limit_bytes)> make_plan,
      absl::FunctionRef<Attempt(CudaSlot&, const Plan&)> attempt) const;
  absl::Status Measure(std::vector<CudaTensor> tensors, const CudaMeasureCall& call) const;
  void NoteBegin(size_t plan_bytes) const;
  void NoteEnd(size_t plan_bytes, const Attempt& attempt) const;
  // Keeps the first Unavailable.
  void NoteLoss(const absl::Status& status) const;

  const std::shared_ptr<CudaRuntime> runtime_;
  const std::shared_ptr<CudaHostMemory> host_memory_;
  const int device_;
  const CudaDeviceInfo info_;
  const size_t panel_floor_bytes_;
  std::vector<std::unique_ptr<CudaSlot>> slots_;  // constant after Make

  mutable std::atomic<bool> lost_ = false;
  mutable std::mutex mutex_;  // guards all below
  mutable std::condition_variable slot_free_;
  mutable std::vector<CudaSlot*> free_slots_;
  mutable absl::Status lost_status_;
  mutable size_t taken_bytes_ = 0;  // by tensors in work
  mutable DeviceStats stats_;
};

// As MakeCudaBackends, on a runtime of the caller's.
absl::StatusOr<std::vector<std::unique_ptr<Backend>>> MakeCudaBackendsOn(
    std::shared_ptr<CudaRuntime> runtime, const CudaOptions& options);

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_BACKEND_CUDA_H_
