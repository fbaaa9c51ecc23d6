// A device that computes on the CPU and fails when told to, and the memory that it likes best.
#ifndef SINQ_TESTS_FAKES_FAKE_DEVICE_H_
#define SINQ_TESTS_FAKES_FAKE_DEVICE_H_

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "kernels/backend.h"
#include "server/base/mutex.h"

namespace sinq {

// Thread-safe. Counts what is held; has none left above `limit_bytes`.
class FakeHostMemory final : public kernels::HostMemory {
 public:
  explicit FakeHostMemory(size_t limit_bytes = ~size_t{0}) : limit_bytes_(limit_bytes) {}

  absl::StatusOr<std::byte*> Allocate(size_t size_bytes) override {
    MutexLock lock(&mutex_);
    if (size_bytes > limit_bytes_ - held_bytes_) return absl::ResourceExhaustedError("no more");
    held_bytes_ += size_bytes;
    peak_bytes_ = std::max(peak_bytes_, held_bytes_);
    ++allocations_;
    void* memory = std::aligned_alloc(64, (size_bytes + 63) / 64 * 64);
    return static_cast<std::byte*>(memory);
  }
  void Free(std::byte* memory, size_t size_bytes) override {
    std::free(memory);
    MutexLock lock(&mutex_);
    held_bytes_ -= size_bytes;
  }
  size_t held_bytes() const {
    MutexLock lock(&mutex_);
    return held_bytes_;
  }
  size_t peak_bytes() const {
    MutexLock lock(&mutex_);
    return peak_bytes_;
  }
  int allocations() const {
    MutexLock lock(&mutex_);
    return allocations_;
  }

 private:
  const size_t limit_bytes_;
  mutable Mutex mutex_;
  size_t held_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t peak_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  int allocations_ ABSL_GUARDED_BY(mutex_) = 0;
};

// Thread-safe. `fault` is asked before each call (the first is 1); anything but OK is the call's
// status, and its outputs are spoilt. Unavailable loses the device: every later call fails too.
class FakeDevice final : public kernels::Backend {
 public:
  using Fault = std::function<absl::Status(int call, const kernels::MatrixView& in)>;
  explicit FakeDevice(Fault fault = nullptr, kernels::HostMemory* memory = nullptr)
      : fault_(std::move(fault)), memory_(memory) {}

  static Fault LostAt(int nth) {
    return [nth](int call, const kernels::MatrixView&) {
      return call == nth ? absl::UnavailableError("the bus is silent") : absl::OkStatus();
    };
  }

  kernels::Capabilities GetCapabilities() const override { return {"cuda", "sm_fake"}; }
  bool healthy() const override { return !lost_; }
  kernels::DeviceStats device_stats() const override {
    kernels::DeviceStats stats;
    stats.total_bytes = 1000;
    stats.used_bytes = 300;
    stats.reserved_bytes = 200;
    stats.peak_bytes = 100;
    stats.h2d_seconds = 0.25 * calls_;
    stats.quantize_seconds = 0.5 * calls_;
    stats.d2h_seconds = 0.125 * calls_;
    return stats;
  }
  kernels::HostMemory* host_memory() const override { return memory_; }
  size_t ScratchBytes(const kernels::QuantParams& params, int64_t rows,
                      int64_t cols) const override {
    return cpu_->ScratchBytes(params, rows, cols);
  }
  absl::Status Quantize(const kernels::MatrixView& in, const kernels::QuantParams& params,
                        absl::Span<std::byte> scratch,
                        absl::Span<const absl::Span<std::byte>> planes,
                        kernels::ParallelFor parallel_for, absl::FunctionRef<bool()> cancelled,
                        kernels::TensorStats* stats) const override {
    absl::Status status = Meet(in);
    if (status.ok())
      return cpu_->Quantize(in, params, scratch, planes, parallel_for, cancelled, stats);
    for (const absl::Span<std::byte> plane : planes) std::memset(plane.data(), 0xEE, plane.size());
    std::memset(scratch.data(), 0xEE, scratch.size());
    return status;
  }

  absl::Status MeasureColumns(const kernels::MatrixView& in, const kernels::QuantParams& params,
                              absl::Span<std::byte> scratch, absl::Span<float> t,
                              kernels::ParallelFor parallel_for,
                              absl::FunctionRef<bool()> cancelled) const override {
    absl::Status status = Meet(in);
    if (status.ok())
      return cpu_->MeasureColumns(in, params, scratch, t, parallel_for, cancelled);
    std::fill(t.begin(), t.end(), -1.0f);
    return status;
  }

  int calls() const { return calls_; }

 private:
  absl::Status Meet(const kernels::MatrixView& in) const {
    const int call = ++calls_;
    if (lost_) return absl::UnavailableError("the device is lost");
    absl::Status status = fault_ ? fault_(call, in) : absl::OkStatus();
    if (absl::IsUnavailable(status)) lost_ = true;
    return status;
  }

  const Fault fault_;
  kernels::HostMemory* const memory_;
  const std::unique_ptr<kernels::Backend> cpu_ = kernels::MakeCpuBackend();
  mutable std::atomic<int> calls_ = 0;
  mutable std::atomic<bool> lost_ = false;
};

}  // namespace sinq

#endif  // SINQ_TESTS_FAKES_FAKE_DEVICE_H_
