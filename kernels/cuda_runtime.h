// The CUDA runtime as an interface: production calls cudart (cuda_runtime_cudart.cc), tests run
// the same device code on the CPU and inject faults (tests/fakes/fake_cuda_runtime.h). No CUDA
// header is needed to include this one.
#ifndef SINQ_KERNELS_CUDA_RUNTIME_H_
#define SINQ_KERNELS_CUDA_RUNTIME_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

struct CUstream_st;  // cudaStream_t is a pointer to it
struct CUevent_st;   // cudaEvent_t is a pointer to it

namespace sinq::kernels {

using CudaStream = CUstream_st*;
using CudaEvent = CUevent_st*;

struct CudaDeviceInfo {
  std::string name;  // "NVIDIA H100 80GB HBM3"
  int major = 0, minor = 0;
  int multiprocessors = 0;
  size_t total_bytes = 0;
};

// A copy of `rows` runs of `row_bytes`, that far apart on either side.
struct CudaCopy2D {
  void* to = nullptr;
  size_t to_pitch_bytes = 0;
  const void* from = nullptr;
  size_t from_pitch_bytes = 0;
  size_t row_bytes = 0;
  size_t rows = 0;
};

// Thread-safe. The current device is a property of the calling thread, as in CUDA: call UseDevice
// first on every thread. Errors: ResourceExhausted when memory does not suffice (the caller may try
// again with less), Unavailable when the device or the driver is lost or a kernel failed while it
// ran (sticky: every later call on that device fails the same way), NotFound when there is no
// driver or no such device, Internal for anything else. Messages name the CUDA call and its error
// name.
class CudaRuntime {
 public:
  virtual ~CudaRuntime() = default;
  virtual absl::StatusOr<int> DeviceCount() = 0;
  virtual absl::StatusOr<CudaDeviceInfo> DeviceInfo(int device) = 0;
  virtual absl::Status UseDevice(int device) = 0;
  virtual absl::StatusOr<size_t> FreeDeviceBytes() = 0;

  virtual absl::StatusOr<void*> AllocateDevice(size_t size_bytes) = 0;
  virtual void FreeDevice(void* memory) = 0;
  // Page-locked host memory, visible to all devices.
  virtual absl::StatusOr<void*> AllocatePinned(size_t size_bytes) = 0;
  virtual void FreePinned(void* memory) = 0;

  virtual absl::StatusOr<CudaStream> CreateStream() = 0;
  virtual void DestroyStream(CudaStream stream) = 0;
  virtual absl::Status Synchronize(CudaStream stream) = 0;
  virtual absl::StatusOr<CudaEvent> CreateEvent() = 0;
  virtual void DestroyEvent(CudaEvent event) = 0;
  virtual absl::Status Record(CudaEvent event, CudaStream stream) = 0;
  // Waits until all that was in the stream before Record has happened; at once if never recorded.
  virtual absl::Status SynchronizeEvent(CudaEvent event) = 0;
  // Work put into `stream` later starts after `event`.
  virtual absl::Status WaitFor(CudaStream stream, CudaEvent event) = 0;
  // Both recorded and passed.
  virtual absl::StatusOr<double> SecondsBetween(CudaEvent begin, CudaEvent end) = 0;

  // Asynchronous where the host side is pinned, in stream order. The host side must stay until the
  // stream has passed the copy.
  virtual absl::Status CopyToDevice(void* to, const void* from, size_t size_bytes,
                                    CudaStream stream) = 0;
  virtual absl::Status CopyToDevice2D(const CudaCopy2D& copy, CudaStream stream) = 0;
  virtual absl::Status CopyToHost(void* to, const void* from, size_t size_bytes,
                                  CudaStream stream) = 0;
  virtual absl::Status SetBytes(void* memory, int value, size_t size_bytes, CudaStream stream) = 0;
  // What a launcher (cuda_steps.h) returned for `step`, as a status.
  virtual absl::Status CheckLaunch(int cuda_error, const char* step) = 0;
};

// cudart, linked statically. NotFound when the driver is missing or sees no device.
absl::StatusOr<std::shared_ptr<CudaRuntime>> MakeCudartRuntime();

}  // namespace sinq::kernels

#endif  // SINQ_KERNELS_CUDA_RUNTIME_H_
