#include "kernels/output_error_cuda.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/cuda_arena.h"
#include "kernels/cuda_slot.h"
#include "kernels/element.h"
#include "kernels/non_finite.h"

namespace sinq::kernels {
namespace {

// What cuBLAS may use besides: fixed, because a kernel is chosen by what fits into it.
constexpr size_t kWorkspaceBytes = size_t{32} << 20;
constexpr int64_t kMostRows = 4096;  // of a block; its host copy stays small

absl::Status CheckCublas(int code, const char* call) {
  if (code == kCublasOk) return absl::OkStatus();
  const std::string message = absl::StrCat(call, ": cuBLAS status ", code);
  return code == kCublasAllocFailed ? absl::ResourceExhaustedError(message)
                                    : absl::InternalError(message);
}

class CudaOutputErrorMeter final : public OutputErrorMeter {
 public:
  CudaOutputErrorMeter(std::shared_ptr<CudaRuntime> runtime,
                       std::shared_ptr<const CublasTable> cublas, int device)
      : runtime_(std::move(runtime)), cublas_(std::move(cublas)), device_(device) {}
  ~CudaOutputErrorMeter() override {
    // Of a lost device nothing can be freed, and nothing needs to be.
    static_cast<void>(runtime_->UseDevice(device_));
    if (handle_ != nullptr) cublas_->destroy(handle_);
  }

  absl::Status Prepare(size_t device_bytes) {
    if (absl::Status status = runtime_->UseDevice(device_); !status.ok()) return status;
    absl::StatusOr<std::unique_ptr<CudaSlot>> slot =
        CudaSlot::Make(runtime_, ArenaBytes(device_bytes) + kWorkspaceBytes);
    if (!slot.ok()) return slot.status();
    slot_ = std::move(*slot);
    absl::Status status = CheckCublas(cublas_->create(&handle_), "cublasCreate");
    if (!status.ok()) return status;
    status = CheckCublas(cublas_->set_stream(handle_, slot_->stream()), "cublasSetStream");
    if (!status.ok()) return status;
    status = CheckCublas(cublas_->set_math_mode(handle_, kCublasPedanticMath), "cublasSetMathMode");
    if (!status.ok()) return status;
    return CheckCublas(cublas_->set_atomics_mode(handle_, kCublasAtomicsNotAllowed),
                       "cublasSetAtomicsMode");
  }

  std::string Name() const override { return "cuda"; }

  absl::StatusOr<OutputError> Measure(const OutputErrorInput& input, ParallelFor,
                                      absl::FunctionRef<bool()> cancelled) override {
    if (absl::Status status = CheckOutputErrorInput(input); !status.ok()) return status;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (absl::Status status = runtime_->UseDevice(device_); !status.ok()) return status;
    absl::StatusOr<OutputError> sums = MeasureAlone(input, cancelled);
    // Nothing of this call may be under way when its memory goes.
    const absl::Status drained = slot_->Drain();
    if (sums.ok() && !drained.ok()) return drained;
    return sums;
  }

 private:
  struct Pieces {
    float* samples = nullptr;  // [tokens, K]
    float* block = nullptr;    // [rows, K]
    float* outputs = nullptr;  // [tokens, rows]
    int64_t rows = 0;          // of a block at most
  };

  absl::StatusOr<OutputError> MeasureAlone(const OutputErrorInput& input,
                                           absl::FunctionRef<bool()> cancelled) {
    const absl::StatusOr<Pieces> pieces = LayOut(input);
    if (!pieces.ok()) return pieces.status();
    const size_t samples_bytes = input.samples.size() * sizeof(float);
    absl::Status status = slot_->staging().ToDevice(
        pieces->samples, {reinterpret_cast<const std::byte*>(input.samples.data()), samples_bytes,
                          1, samples_bytes});
    if (!status.ok()) return status;
    OutputError sums;
    for (int64_t first = 0; first < input.original.rows; first += pieces->rows) {
      if (cancelled()) return absl::CancelledError("stopped between blocks of rows");
      const int64_t rows = std::min(pieces->rows, input.original.rows - first);
      status = AddBlock(input, *pieces, first, rows, &sums);
      if (!status.ok()) return status;
    }
    if (std::isfinite(sums.error) && std::isfinite(sums.power)) return sums;
    return WhyNotFinite(input);
  }

  static absl::Status WhyNotFinite(const OutputErrorInput& input) {
    for (const MatrixView* matrix : {&input.original, &input.reconstructed}) {
      if (absl::Status status = FirstNonFinite(*matrix, 0); absl::IsInvalidArgument(status))
        return status;
    }
    return absl::InvalidArgumentError("a sample is not finite, or the outputs overflow fp32");
  }

  absl::StatusOr<Pieces> LayOut(const OutputErrorInput& input) {
    CudaArena& arena = slot_->arena();
    arena.Clear();
    const absl::StatusOr<std::byte*> workspace = arena.Take(kWorkspaceBytes);
    if (!workspace.ok()) return workspace.status();
    absl::Status status = CheckCublas(cublas_->set_workspace(handle_, *workspace, kWorkspaceBytes),
                                      "cublasSetWorkspace");
    if (!status.ok()) return status;
    const size_t cols = static_cast<size_t>(input.original.cols);
    const size_t tokens = static_cast<size_t>(input.tokens);
    const size_t samples_bytes = ArenaBytes(input.samples.size() * sizeof(float));
    const size_t row_bytes = (cols + tokens) * sizeof(float);
    const size_t left = arena.size_bytes() - kWorkspaceBytes - 2 * kArenaAlignment;
    if (samples_bytes > left || row_bytes > left - samples_bytes ||
        std::max(input.original.cols, input.tokens) > std::numeric_limits<int>::max()) {
      return absl::ResourceExhaustedError(
          absl::StrCat("samples of ", samples_bytes, " bytes and one row of the layer do not fit ",
                       left, " bytes of device memory; take fewer tokens or measure on the CPU"));
    }
    Pieces pieces;
    pieces.rows = std::min(
        {static_cast<int64_t>((left - samples_bytes) / row_bytes), kMostRows, input.original.rows});
    const size_t rows = static_cast<size_t>(pieces.rows);
    const std::pair<float**, size_t> parts[] = {{&pieces.samples, input.samples.size()},
                                                {&pieces.block, rows * cols},
                                                {&pieces.outputs, rows * tokens}};
    for (const auto& [pointer, count] : parts) {
      const absl::StatusOr<std::byte*> piece = arena.Take(count * sizeof(float));
      if (!piece.ok()) return piece.status();
      *pointer = reinterpret_cast<float*>(*piece);
    }
    return pieces;
  }

  absl::Status AddBlock(const OutputErrorInput& input, const Pieces& pieces, int64_t first,
                        int64_t rows, OutputError* sums) {
    const size_t cols = static_cast<size_t>(input.original.cols);
    std::vector<float> weights(static_cast<size_t>(rows) * cols), difference(weights.size());
    for (size_t e = 0; e < weights.size(); ++e) {
      const int64_t row = first + static_cast<int64_t>(e / cols);
      const int64_t col = static_cast<int64_t>(e % cols);
      const double t = input.column_scale.empty() ? 1.0 : input.column_scale[e % cols];
      const double original = ElementAt(input.original, row, col);
      weights[e] = static_cast<float>(original / t);
      difference[e] = static_cast<float>((ElementAt(input.reconstructed, row, col) - original) / t);
    }
    absl::Status status = AddProduct(pieces, weights, rows, input, &sums->power);
    if (!status.ok()) return status;
    return AddProduct(pieces, difference, rows, input, &sums->error);
  }

  // Adds the squares of block * XT to *sum, in the order in which they lie on the device.
  absl::Status AddProduct(const Pieces& pieces, const std::vector<float>& block, int64_t rows,
                          const OutputErrorInput& input, double* sum) {
    const size_t block_bytes = block.size() * sizeof(float);
    absl::Status status = slot_->staging().ToDevice(
        pieces.block,
        {reinterpret_cast<const std::byte*>(block.data()), block_bytes, 1, block_bytes});
    if (!status.ok()) return status;
    const int m = static_cast<int>(rows), n = static_cast<int>(input.tokens);
    const int k = static_cast<int>(input.original.cols);
    const float one = 1, zero = 0;
    status =
        CheckCublas(cublas_->sgemm(handle_, kCublasTranspose, kCublasNoTranspose, m, n, k, &one,
                                   pieces.block, k, pieces.samples, k, &zero, pieces.outputs, m),
                    "cublasSgemm");
    if (!status.ok()) return status;
    std::vector<float> outputs(static_cast<size_t>(m) * static_cast<size_t>(n));
    status = slot_->staging().ToHost(reinterpret_cast<std::byte*>(outputs.data()), pieces.outputs,
                                     outputs.size() * sizeof(float));
    if (!status.ok()) return status;
    if (status = slot_->staging().Flush(); !status.ok()) return status;
    for (const float value : outputs) *sum += static_cast<double>(value) * value;
    return absl::OkStatus();
  }

  const std::shared_ptr<CudaRuntime> runtime_;
  const std::shared_ptr<const CublasTable> cublas_;
  const int device_;
  std::mutex mutex_;  // guards all below after Prepare
  std::unique_ptr<CudaSlot> slot_;
  CublasHandle handle_ = nullptr;
};

}  // namespace

absl::StatusOr<std::unique_ptr<OutputErrorMeter>> MakeCudaOutputErrorMeter(
    std::shared_ptr<CudaRuntime> runtime, std::shared_ptr<const CublasTable> cublas,
    const CudaOutputErrorOptions& options) {
  auto meter =
      std::make_unique<CudaOutputErrorMeter>(std::move(runtime), std::move(cublas), options.device);
  if (absl::Status status = meter->Prepare(options.device_bytes); !status.ok()) return status;
  return meter;
}

}  // namespace sinq::kernels
