// Invariants: a failed call leaves no error behind in the thread (a later launch would report it);
// a lost device stays lost, also for threads that were not there.
#include <cuda_runtime_api.h>

#include <map>
#include <mutex>

#include "absl/strings/str_cat.h"
#include "kernels/cuda_runtime.h"

namespace sinq::kernels {
namespace {

absl::StatusCode CodeOf(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return absl::StatusCode::kOk;
    case cudaErrorMemoryAllocation:
    case cudaErrorLaunchOutOfResources:
      return absl::StatusCode::kResourceExhausted;
    case cudaErrorNoDevice:
    case cudaErrorInvalidDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorStubLibrary:
    case cudaErrorInitializationError:
      return absl::StatusCode::kNotFound;
    // The context is gone, or the device itself.
    case cudaErrorIllegalAddress:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorIllegalInstruction:
    case cudaErrorHardwareStackError:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorDevicesUnavailable:
    case cudaErrorDeviceUninitialized:
    case cudaErrorContextIsDestroyed:
    case cudaErrorCudartUnloading:
    case cudaErrorSystemNotReady:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorExternalDevice:
    case cudaErrorMpsConnectionFailed:
    case cudaErrorMpsRpcFailure:
    case cudaErrorMpsServerNotReady:
    case cudaErrorMpsClientTerminated:
    case cudaErrorUnknown:
      return absl::StatusCode::kUnavailable;
    default:
      return absl::StatusCode::kInternal;
  }
}

class CudartRuntime final : public CudaRuntime {
 public:
  absl::StatusOr<int> DeviceCount() override {
    int count = 0;
    if (absl::Status status = Check(cudaGetDeviceCount(&count), "cudaGetDeviceCount"); !status.ok())
      return status;
    return count;
  }

  absl::StatusOr<CudaDeviceInfo> DeviceInfo(int device) override {
    cudaDeviceProp properties;
    absl::Status status =
        Check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
    if (!status.ok()) return status;
    return CudaDeviceInfo{properties.name, properties.major, properties.minor,
                          properties.multiProcessorCount, properties.totalGlobalMem};
  }

  absl::Status UseDevice(int device) override {
    if (absl::Status lost = LostStatus(device); !lost.ok()) return lost;
    return Check(cudaSetDevice(device), "cudaSetDevice");
  }

  absl::StatusOr<size_t> FreeDeviceBytes() override {
    size_t free = 0, total = 0;
    if (absl::Status status = Check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo"); !status.ok())
      return status;
    return free;
  }

  absl::StatusOr<void*> AllocateDevice(size_t size_bytes) override {
    void* memory = nullptr;
    if (absl::Status status = Check(cudaMalloc(&memory, size_bytes), "cudaMalloc"); !status.ok())
      return status;
    return memory;
  }
  void FreeDevice(void* memory) override { Forget(Check(cudaFree(memory), "cudaFree")); }

  absl::StatusOr<void*> AllocatePinned(size_t size_bytes) override {
    void* memory = nullptr;
    absl::Status status =
        Check(cudaHostAlloc(&memory, size_bytes, cudaHostAllocPortable), "cudaHostAlloc");
    if (!status.ok()) return status;
    return memory;
  }
  void FreePinned(void* memory) override { Forget(Check(cudaFreeHost(memory), "cudaFreeHost")); }

  absl::StatusOr<CudaStream> CreateStream() override {
    cudaStream_t stream = nullptr;
    // Non-blocking: the legacy default stream must not hold this one up.
    absl::Status status = Check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking),
                                "cudaStreamCreateWithFlags");
    if (!status.ok()) return status;
    return stream;
  }
  void DestroyStream(CudaStream stream) override {
    Forget(Check(cudaStreamDestroy(stream), "cudaStreamDestroy"));
  }
  absl::Status Synchronize(CudaStream stream) override {
    return Check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
  }

  absl::StatusOr<CudaEvent> CreateEvent() override {
    cudaEvent_t event = nullptr;
    absl::Status status =
        Check(cudaEventCreateWithFlags(&event, cudaEventBlockingSync), "cudaEventCreateWithFlags");
    if (!status.ok()) return status;
    return event;
  }
  void DestroyEvent(CudaEvent event) override {
    Forget(Check(cudaEventDestroy(event), "cudaEventDestroy"));
  }
  absl::Status Record(CudaEvent event, CudaStream stream) override {
    return Check(cudaEventRecord(event, stream), "cudaEventRecord");
  }
  absl::Status SynchronizeEvent(CudaEvent event) override {
    return Check(cudaEventSynchronize(event), "cudaEventSynchronize");
  }
  absl::Status WaitFor(CudaStream stream, CudaEvent event) override {
    return Check(cudaStreamWaitEvent(stream, event, 0), "cudaStreamWaitEvent");
  }
  absl::StatusOr<double> SecondsBetween(CudaEvent begin, CudaEvent end) override {
    float milliseconds = 0;
    absl::Status status =
        Check(cudaEventElapsedTime(&milliseconds, begin, end), "cudaEventElapsedTime");
    if (!status.ok()) return status;
    return milliseconds * 1e-3;
  }

  absl::Status CopyToDevice(void* to, const void* from, size_t size_bytes,
                            CudaStream stream) override {
    return Check(cudaMemcpyAsync(to, from, size_bytes, cudaMemcpyHostToDevice, stream),
                 "cudaMemcpyAsync to the device");
  }
  absl::Status CopyToDevice2D(const CudaCopy2D& copy, CudaStream stream) override {
    return Check(cudaMemcpy2DAsync(copy.to, copy.to_pitch_bytes, copy.from, copy.from_pitch_bytes,
                                   copy.row_bytes, copy.rows, cudaMemcpyHostToDevice, stream),
                 "cudaMemcpy2DAsync to the device");
  }
  absl::Status CopyToHost(void* to, const void* from, size_t size_bytes,
                          CudaStream stream) override {
    return Check(cudaMemcpyAsync(to, from, size_bytes, cudaMemcpyDeviceToHost, stream),
                 "cudaMemcpyAsync to the host");
  }
  absl::Status SetBytes(void* memory, int value, size_t size_bytes, CudaStream stream) override {
    return Check(cudaMemsetAsync(memory, value, size_bytes, stream), "cudaMemsetAsync");
  }
  absl::Status CheckLaunch(int cuda_error, const char* step) override {
    return Check(static_cast<cudaError_t>(cuda_error), step);
  }

 private:
  // Freeing reports the error of earlier work, which its own caller has got already; of a lost
  // device nothing can be freed.
  static void Forget(const absl::Status& status) { static_cast<void>(status); }

  absl::Status Check(cudaError_t error, const char* call) {
    if (error == cudaSuccess) return absl::OkStatus();
    static_cast<void>(cudaGetLastError());
    const absl::Status status(CodeOf(error), absl::StrCat(call, ": ", cudaGetErrorName(error), " (",
                                                          cudaGetErrorString(error), ")"));
    if (absl::IsUnavailable(status)) MarkLost(status);
    return status;
  }

  absl::Status LostStatus(int device) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = lost_.find(device);
    return found == lost_.end() ? absl::OkStatus() : found->second;
  }
  void MarkLost(const absl::Status& status) {
    int device = 0;
    if (cudaGetDevice(&device) != cudaSuccess) static_cast<void>(cudaGetLastError());
    const std::lock_guard<std::mutex> lock(mutex_);
    lost_.emplace(device, status);
  }

  std::mutex mutex_;
  std::map<int, absl::Status> lost_;  // guarded by mutex_; the first error of each lost device
};

}  // namespace

absl::StatusOr<std::shared_ptr<CudaRuntime>> MakeCudartRuntime() {
  auto runtime = std::make_shared<CudartRuntime>();
  const absl::StatusOr<int> count = runtime->DeviceCount();
  if (!count.ok() && !absl::IsNotFound(count.status())) return count.status();
  if (!count.ok() || *count == 0) {
    return absl::NotFoundError(absl::StrCat(
        "no CUDA device", count.ok() ? "" : ": ", count.ok() ? "" : count.status().message(),
        "; install NVIDIA's driver (see nvidia-smi), or use --backend cpu"));
  }
  return runtime;
}

}  // namespace sinq::kernels
