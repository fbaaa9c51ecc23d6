// The seam between the service and the arithmetic. One implementation per device kind:
// backend_cpu.cc, backend_cuda.cc.
#ifndef SINQ_KERNELS_BACKEND_H_
#define SINQ_KERNELS_BACKEND_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/layout.h"
#include "kernels/matrix_view.h"
#include "kernels/quant_params.h"

namespace sinq::kernels {

inline constexpr int kMaxRounds = 16;

// Figures of one tensor; deterministic like the bytes (README.md section 7).
struct TensorStats {
  double relative_error = 0;                              // ||W' - W|| / ||W||
  // Absent where a backend does not take them. The first two are over every eighth row.
  std::optional<double> balanced_error;  // relative_error of W / t, as it was coded
  std::optional<double> cosine;          // of W' and W; 0 if one of them is 0
  std::optional<double> max_abs_error;   // of one weight
  std::optional<double> output_error;    // set by whoever has sample inputs (output_error.h)
  double imbalance_before = 0;                            // largest over tiles
  double imbalance_after = 0;                             // largest over tiles
  double mean_rounds = 0;                                 // over tiles
  std::array<int64_t, kMaxRounds + 1> tiles_by_rounds{};  // how many tiles ran k rounds
  double kurtosis = 0;                                    // only profile upstream, else 0
  bool kurtosis_gate_closed = false;                      // the tensor fell back to rtn (upstream)
};

// Runs body(0) .. body(n-1), in any order and on any threads, and returns when all are done.
// Kernels own no threads.
using ParallelFor = absl::FunctionRef<void(size_t n, absl::FunctionRef<void(size_t)> body)>;
void RunSerially(size_t n, absl::FunctionRef<void(size_t)> body);

struct Capabilities {
  std::string name;    // "cpu", "cuda"
  std::string target;  // e.g. "AVX3_ZEN4": the SIMD target in use; "sm_90"
};

// Host memory that a backend copies from and to fastest: plain for the CPU, page-locked for CUDA.
// Thread-safe.
class HostMemory {
 public:
  virtual ~HostMemory() = default;
  // 64-byte aligned. ResourceExhausted if there is none.
  virtual absl::StatusOr<std::byte*> Allocate(size_t size_bytes) = 0;
  virtual void Free(std::byte* memory, size_t size_bytes) = 0;
};

// What a device holds and did, since the backend was made. All zero for the CPU.
struct DeviceStats {
  uint64_t total_bytes = 0;     // of the device
  uint64_t used_bytes = 0;      // by anybody, now
  uint64_t reserved_bytes = 0;  // by this backend, for as long as it lives
  uint64_t peak_bytes = 0;      // the most that tensors took of the reserved bytes
  // Sums over the streams, measured on the device: they overlap.
  double h2d_seconds = 0, quantize_seconds = 0, d2h_seconds = 0;
  // Failed device calls by kind; a call that was repeated with less memory counts too.
  uint64_t out_of_memory_errors = 0, lost_errors = 0, launch_errors = 0;
};

// What Measure finds out about one way of quantizing a tensor.
struct Measurement {
  double error = 0;  // sum of (w' - w)^2 in the balanced space, (w / t)
  double power = 0;  // sum of w^2 in the balanced space
};

// Thread-safe: any number of Quantize calls may run at once, each with its own scratch and outputs.
class Backend {
 public:
  virtual ~Backend() = default;
  virtual Capabilities GetCapabilities() const = 0;
  // False once the device is lost, for good: every later call ends with Unavailable.
  virtual bool healthy() const { return true; }
  virtual DeviceStats device_stats() const { return {}; }
  // Where inputs and outputs should lie; null: any memory is as good. Lives as long as the backend.
  virtual HostMemory* host_memory() const { return nullptr; }
  // Scratch that Quantize needs for this shape, in bytes (without input and outputs).
  virtual size_t ScratchBytes(const QuantParams& params, int64_t rows, int64_t cols) const = 0;

  // Quantizes `in`. `planes` are the outputs in the order and sizes of PlanesOf(params, rows,
  // cols, dtype), need no alignment. `cancelled` is asked between tiles; true ends the call with
  // Cancelled. `scratch` has ScratchBytes, 64-byte aligned. InvalidArgument: params invalid, or a
  // NaN or infinity ("element [i, k] is NaN"; the caller adds the tensor's name), or a scale that
  // F16 cannot hold. Of a device: Unavailable when it is lost, ResourceExhausted when its memory
  // does not suffice for the smallest piece, Internal when a launch failed; another backend can
  // then do the tensor, because `in` is never written. Output bytes are unspecified after an error.
  virtual absl::Status Quantize(const MatrixView& in, const QuantParams& params,
                                absl::Span<std::byte> scratch,
                                absl::Span<const absl::Span<std::byte>> planes,
                                ParallelFor parallel_for, absl::FunctionRef<bool()> cancelled,
                                TensorStats* stats) const = 0;

  // The column scale t [cols] that balancing alone gives (README.md section 2, profile and
  // group_size of `params`; its method and layout are not looked at), fp32, before any rounding.
  // Scratch as Quantize. For folding and for choosing widths.
  virtual absl::Status MeasureColumns(const MatrixView& in, const QuantParams& params,
                                      absl::Span<std::byte> scratch, absl::Span<float> t,
                                      ParallelFor parallel_for,
                                      absl::FunctionRef<bool()> cancelled) const {
    static_cast<void>(in), static_cast<void>(params), static_cast<void>(scratch);
    static_cast<void>(t), static_cast<void>(parallel_for), static_cast<void>(cancelled);
    return absl::UnimplementedError("this backend does not measure columns");
  }
  // What each of `candidates` would cost in error, with the refined fit (README.md section 11);
  // nothing is stored. Candidates of one group size share their balanced tiles. Scratch as the
  // largest of the candidates' ScratchBytes.
  virtual absl::Status MeasureErrors(const MatrixView& in, absl::Span<const QuantParams> candidates,
                                     absl::Span<std::byte> scratch,
                                     absl::Span<Measurement> measured, ParallelFor parallel_for,
                                     absl::FunctionRef<bool()> cancelled) const {
    static_cast<void>(in), static_cast<void>(candidates), static_cast<void>(scratch);
    static_cast<void>(measured), static_cast<void>(parallel_for), static_cast<void>(cancelled);
    return absl::UnimplementedError("this backend does not measure errors");
  }
};

// Uses the best SIMD target of this machine. `threads`: how many work on one tensor at once, if the
// caller has them; each takes scratch for a tile.
std::unique_ptr<Backend> MakeCpuBackend(int threads = 1);
// One backend per SIMD target this machine can run (tests compare them).
std::vector<std::unique_ptr<Backend>> MakeCpuBackendsForAllTargets();

struct CudaOptions {
  std::vector<int> devices = {};  // as the driver numbers them; empty: all
  int streams = 3;                // tensors in work at once on each device, 1 .. kMaxCudaStreams
  // Device memory that a backend takes at start and keeps, for all its streams. 0: 80 % of what is
  // free then.
  size_t device_budget_bytes = 0;
  // A tensor is cut into ever smaller panels while the device is short of memory, but not into
  // panels under this.
  size_t panel_floor_bytes = size_t{1} << 20;
};
// Copy in, compute and copy out overlap with three; more only hide the gaps between small tensors.
inline constexpr int kMaxCudaStreams = 16;
// Page-locked host memory that each stream keeps, for callers whose memory is not page-locked.
inline constexpr size_t kCudaStagingBytes = size_t{16} << 20;

// One backend for each device, in the order of `options.devices`. NotFound when built without CUDA
// (backend_cuda_absent.cc), or no driver or such a device is present; InvalidArgument for options
// out of range; ResourceExhausted when the device lacks the memory; FailedPrecondition for a device
// that is too old.
absl::StatusOr<std::vector<std::unique_ptr<Backend>>> MakeCudaBackends(const CudaOptions& options);

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_BACKEND_H_
