// A CUDA runtime without a device, for tests: device memory is host memory, and calls fail when a
// test says so. Kernels run through tests/fakes/cuda_on_cpu, at launch.
//
// What a real device would let pass now and then is found every time:
//  - Device memory is full of NaN patterns when it is allocated.
//  - A copy to the host arrives when the stream or a later event is waited for; until then the
//    target holds a pattern. Who reads too early reads the pattern.
//  - A copy to the device must find its source unchanged when the stream has passed it.
//  - Every copy must stay within one allocation, and its host side must be page-locked (else the
//    real one is not asynchronous).
//  - Calls must be made with the stream's device in use.
// Violations are collected, and a test asks for them at its end.
#ifndef SINQ_TESTS_FAKES_FAKE_CUDA_RUNTIME_H_
#define SINQ_TESTS_FAKES_FAKE_CUDA_RUNTIME_H_

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "kernels/cuda_runtime.h"

namespace sinq::kernels {

// Kinds of calls that a test can count and let fail.
enum class CudaCall {
  kUseDevice,
  kFreeDeviceBytes,
  kAllocateDevice,
  kAllocatePinned,
  kCreateStream,
  kSynchronize,
  kCreateEvent,
  kRecord,
  kSynchronizeEvent,
  kSecondsBetween,
  kCopyToDevice,  // also in two dimensions
  kCopyToHost,
  kSetBytes,
  kLaunch,
};
inline constexpr CudaCall kAllCudaCalls[] = {
    CudaCall::kUseDevice,      CudaCall::kFreeDeviceBytes, CudaCall::kAllocateDevice,
    CudaCall::kAllocatePinned, CudaCall::kCreateStream,    CudaCall::kSynchronize,
    CudaCall::kCreateEvent,    CudaCall::kRecord,          CudaCall::kSynchronizeEvent,
    CudaCall::kSecondsBetween, CudaCall::kCopyToDevice,    CudaCall::kCopyToHost,
    CudaCall::kSetBytes,       CudaCall::kLaunch,
};

struct FakeCudaOptions {
  int devices = 1;
  size_t device_bytes = size_t{16} << 20;  // of each
  int major = 9, minor = 0;
};

// Thread-safe.
class FakeCudaRuntime final : public CudaRuntime {
 public:
  explicit FakeCudaRuntime(const FakeCudaOptions& options = {});
  ~FakeCudaRuntime() override;

  // The `nth` call of this kind from now on (1: the next) answers `error`, once; Unavailable for
  // good, whatever is called on that device. An earlier order for the same kind is forgotten.
  void FailAt(CudaCall call, int nth, absl::Status error);
  // Every call of this kind answers `error` until FailAt or Heal.
  void FailAlways(CudaCall call, absl::Status error);
  void Heal();

  int Calls(CudaCall call) const;
  size_t DeviceBytesInUse() const;
  // Device and page-locked allocations, streams and events that exist.
  size_t LiveObjects() const;
  std::vector<std::string> Violations() const;

  absl::StatusOr<int> DeviceCount() override;
  absl::StatusOr<CudaDeviceInfo> DeviceInfo(int device) override;
  absl::Status UseDevice(int device) override;
  absl::StatusOr<size_t> FreeDeviceBytes() override;
  absl::StatusOr<void*> AllocateDevice(size_t size_bytes) override;
  void FreeDevice(void* memory) override;
  absl::StatusOr<void*> AllocatePinned(size_t size_bytes) override;
  void FreePinned(void* memory) override;
  absl::StatusOr<CudaStream> CreateStream() override;
  void DestroyStream(CudaStream stream) override;
  absl::Status Synchronize(CudaStream stream) override;
  absl::StatusOr<CudaEvent> CreateEvent() override;
  void DestroyEvent(CudaEvent event) override;
  absl::Status Record(CudaEvent event, CudaStream stream) override;
  absl::Status SynchronizeEvent(CudaEvent event) override;
  absl::Status WaitFor(CudaStream stream, CudaEvent event) override;
  absl::StatusOr<double> SecondsBetween(CudaEvent begin, CudaEvent end) override;
  absl::Status CopyToDevice(void* to, const void* from, size_t size_bytes,
                            CudaStream stream) override;
  absl::Status CopyToDevice2D(const CudaCopy2D& copy, CudaStream stream) override;
  absl::Status CopyToHost(void* to, const void* from, size_t size_bytes,
                          CudaStream stream) override;
  absl::Status SetBytes(void* memory, int value, size_t size_bytes, CudaStream stream) override;
  absl::Status CheckLaunch(int cuda_error, const char* step) override;

 private:
  struct Allocation {
    std::unique_ptr<std::byte[]> memory;
    size_t size_bytes = 0;
    int device = 0;
  };
  // What becomes true, or must still be true, when the stream has passed it.
  struct Pending {
    int64_t at = 0;
    std::byte* deliver_to = nullptr;
    const std::byte* unchanged = nullptr;
    std::vector<std::byte> bytes;
  };
  struct Stream {
    int device = 0;
    int64_t put = 0, passed = 0;   // numbers of the work in it
    std::vector<Pending> pending;  // in the order of `at`
  };
  struct Event {
    CudaStream stream = nullptr;
    int64_t at = 0;
  };
  struct Order {
    int countdown = 0;
    bool always = false;
    absl::Status error;
  };
  using Allocations = std::map<const std::byte*, Allocation>;

  // All of these with mutex_ held.
  absl::Status Answer(CudaCall call);
  void Lose(const absl::Status& error);
  int CurrentDevice() const;
  void Violate(std::string what);
  static bool Holds(const Allocations& allocations, const void* memory, size_t size_bytes);
  void* AddAllocation(Allocations& allocations, size_t size_bytes);
  Stream* FindStream(CudaStream stream, const char* call);
  void Pass(Stream& stream, int64_t at);
  void CopyRow(void* to, const void* from, size_t size_bytes, Stream& stream);

  const FakeCudaOptions options_;
  mutable std::mutex mutex_;  // guards all below
  std::map<std::thread::id, int> current_device_;
  std::map<int, absl::Status> lost_;
  std::map<CudaCall, Order> orders_;
  std::map<CudaCall, int> calls_;
  Allocations device_, pinned_;
  std::map<CudaStream, Stream> streams_;
  std::map<CudaEvent, Event> events_;
  uintptr_t next_handle_ = 0x1000;
  std::vector<std::string> violations_;
};

}  // namespace sinq::kernels

#endif  // SINQ_TESTS_FAKES_FAKE_CUDA_RUNTIME_H_
