#include "server/worker/worker_pool.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/layout.h"
#include "server/base/aligned_buffer.h"
#include "server/base/limits.h"
#include "tests/fakes/fake_device.h"
#include "tests/fakes/fake_metrics.h"

namespace sinq {
namespace {

using testing::ElementsAre;

// Collects what finished, and waits for it.
class Finished {
 public:
  void Add(const absl::Status& status, absl::string_view kind) {
    MutexLock lock(&mutex_);
    statuses_.push_back(status);
    kinds_.emplace_back(kind);
  }
  // Blocks until `count` tasks have finished.
  void Await(size_t count) {
    const auto done = [this, count] {
      mutex_.AssertHeld();
      return kinds_.size() >= count;
    };
    MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(&done));
  }
  std::vector<std::string> kinds() {
    MutexLock lock(&mutex_);
    return kinds_;
  }
  absl::Status last() {
    MutexLock lock(&mutex_);
    return statuses_.back();
  }

 private:
  Mutex mutex_;
  std::vector<absl::Status> statuses_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::string> kinds_ ABSL_GUARDED_BY(mutex_);
};

class WorkerPoolTest : public testing::Test {
 protected:
  // Keeps the device's address for later questions; the pool owns it.
  void AddDevice(FakeDevice::Fault fault = nullptr, int threads = 1,
                 kernels::HostMemory* memory = nullptr) {
    auto device = std::make_unique<FakeDevice>(std::move(fault), memory);
    devices_.push_back(device.get());
    options_.push_back({std::move(device), static_cast<int>(options_.size()), threads});
  }
  void Start(int cpu_threads = 1, bool beside_devices = false) {
    auto cpu = std::make_unique<FakeDevice>();
    cpu_ = cpu.get();
    pool_ = std::make_unique<WorkerPool>(
        CpuWorkerOptions{std::move(cpu), cpu_threads, beside_devices}, std::move(options_),
        metrics_);
  }
  // A real tensor of 64 x 64 on whichever backend gets it.
  static absl::Status QuantizeOn(const Computing& computing) {
    const kernels::Backend& backend = computing.backend;
    const kernels::QuantParams params;
    const std::vector<std::byte> weights(64 * 64 * 2);
    const auto specs = kernels::NativePlanes(params, 64, 64);
    if (!specs.ok()) return specs.status();
    std::vector<std::vector<std::byte>> memory;
    std::vector<absl::Span<std::byte>> planes;
    for (const kernels::PlaneSpec& plane : *specs) {
      memory.emplace_back(plane.size_bytes);
    }
    for (std::vector<std::byte>& plane : memory) planes.push_back(absl::MakeSpan(plane));
    AlignedBuffer scratch = *AlignedBuffer::Allocate(backend.ScratchBytes(params, 64, 64));
    kernels::TensorStats stats;
    return backend.Quantize({weights.data(), 64, 64, kernels::WeightDtype::kBf16, {}}, params,
                            scratch.span(), planes, computing.parallel_for, [] { return false; },
                            &stats);
  }
  void Submit(int tasks = 1) {
    for (int i = 0; i < tasks; ++i) {
      pool_->Submit({QuantizeOn, [this](const absl::Status& status, absl::string_view kind) {
                       finished_.Add(status, kind);
                     }});
    }
  }
  // One after another.
  void Run(int tasks = 1) {
    for (int i = 0; i < tasks; ++i) {
      const size_t before = finished_.kinds().size();
      Submit();
      finished_.Await(before + 1);
    }
  }
  double Errors(const std::string& device, const std::string& kind) {
    return metrics_.Get("sinq_device_errors_total", {{"device", device}, {"kind", kind}});
  }
  double Threads(const std::string& pool, const std::string& state) {
    return metrics_.Get("sinq_worker_state", {{"pool", pool}, {"state", state}});
  }

  FakeMetrics metrics_;
  std::vector<FakeDevice*> devices_;
  FakeDevice* cpu_ = nullptr;
  std::vector<DeviceWorkerOptions> options_;
  Finished finished_;
  std::unique_ptr<WorkerPool> pool_;  // first to go: its tasks use the rest
};

TEST_F(WorkerPoolTest, WithoutDevicesTheCpuComputes) {
  Start(2);
  Run(3);
  EXPECT_THAT(finished_.kinds(), ElementsAre("cpu", "cpu", "cpu"));
  EXPECT_EQ(pool_->UsefulTasks(), 3);
  EXPECT_EQ(pool_->host_memory(), nullptr);
}

TEST_F(WorkerPoolTest, IdleThreadsTakePartInALoop) {
  Start(3);
  std::set<std::thread::id> threads;
  Mutex mutex;
  const auto all_here = [&threads] { return threads.size() == 3; };
  // Ends only if all threads come.
  const auto body = [&](size_t) {
    MutexLock lock(&mutex);
    threads.insert(std::this_thread::get_id());
    mutex.Await(absl::Condition(&all_here));
  };
  pool_->Submit({[&](const Computing& computing) {
                   computing.parallel_for(3, body);
                   return absl::OkStatus();
                 },
                 [this](const absl::Status& status, absl::string_view kind) {
                   finished_.Add(status, kind);
                 }});
  finished_.Await(1);
  EXPECT_EQ(threads.size(), 3u);
}

// Whoever finishes may wait for a disk.
TEST_F(WorkerPoolTest, ThreadsComputeWhileOthersFinish) {
  Start(1);
  Mutex mutex;
  bool computed = false;
  // Ends only if the next task is computed meanwhile.
  pool_->Submit({QuantizeOn, [&](const absl::Status& status, absl::string_view kind) {
                   {
                     MutexLock lock(&mutex);
                     mutex.Await(absl::Condition(&computed));
                   }
                   finished_.Add(status, kind);
                 }});
  pool_->Submit({[&](const Computing&) {
                   MutexLock lock(&mutex);
                   computed = true;
                   return absl::OkStatus();
                 },
                 [this](const absl::Status& status, absl::string_view kind) {
                   finished_.Add(status, kind);
                 }});
  finished_.Await(2);
  EXPECT_THAT(finished_.kinds(), ElementsAre("cpu", "cpu"));
}

TEST_F(WorkerPoolTest, EveryBodyOfALoopRunsOnce) {
  Start(3);
  constexpr size_t kTasks = 20, kBodies = 1000;
  std::vector<std::vector<std::atomic<int>>> runs(kTasks);
  for (std::vector<std::atomic<int>>& of_task : runs) {
    of_task = std::vector<std::atomic<int>>(kBodies);
    pool_->Submit({[&of_task](const Computing& computing) {
                     const auto body = [&of_task](size_t i) { ++of_task[i]; };
                     for (const size_t count : {size_t{0}, size_t{1}, kBodies})
                       computing.parallel_for(count, body);
                     return absl::OkStatus();
                   },
                   [this](const absl::Status& status, absl::string_view kind) {
                     finished_.Add(status, kind);
                   }});
  }
  finished_.Await(kTasks);
  for (const std::vector<std::atomic<int>>& of_task : runs) {
    EXPECT_EQ(of_task[0], 2);
    EXPECT_TRUE(std::all_of(of_task.begin() + 1, of_task.end(),
                            [](const std::atomic<int>& times) { return times == 1; }));
  }
}

TEST_F(WorkerPoolTest, BesideDevicesTheCpuOnlyFinishes) {
  AddDevice(nullptr, 3);
  Start();
  Submit(40);
  finished_.Await(40);
  EXPECT_EQ(cpu_->calls(), 0);
  EXPECT_EQ(devices_[0]->calls(), 40);
  const std::vector<std::string> kinds = finished_.kinds();
  EXPECT_EQ(std::count(kinds.begin(), kinds.end(), "cuda"), 40);
}

TEST_F(WorkerPoolTest, WhatNeedsNoBackendRunsWithoutOne) {
  AddDevice();
  Start();
  pool_->Submit({nullptr, [this](const absl::Status& status, absl::string_view kind) {
                   finished_.Add(status, kind);
                 }});
  finished_.Await(1);
  EXPECT_THAT(finished_.kinds(), ElementsAre("cpu"));
  EXPECT_EQ(devices_[0]->calls(), 0);
}

TEST_F(WorkerPoolTest, ALostDeviceIsTakenOutAndItsTaskDoneElsewhere) {
  AddDevice(FakeDevice::LostAt(1));
  AddDevice([this](int, const kernels::MatrixView&) {
    while (devices_[0]->calls() == 0) std::this_thread::yield();  // so that it gets a task
    return absl::OkStatus();
  });
  std::vector<std::string> lost;
  Start();
  pool_->SetHealthObserver([&](const WorkerStatus& worker) {
    EXPECT_FALSE(worker.healthy);
    lost.push_back(worker.name);
  });
  Submit(20);
  finished_.Await(20);
  pool_->SetHealthObserver(nullptr);
  EXPECT_EQ(devices_[0]->calls(), 1);
  EXPECT_EQ(devices_[1]->calls(), 20);
  EXPECT_EQ(cpu_->calls(), 0);
  EXPECT_THAT(lost, ElementsAre("cuda:0"));
  EXPECT_EQ(Errors("cuda:0", "lost"), 1);
  EXPECT_FALSE(pool_->Workers()[1].healthy);
  EXPECT_TRUE(pool_->Workers()[2].healthy);
}

TEST_F(WorkerPoolTest, WhenTheLastDeviceIsLostTheCpuTakesOver) {
  AddDevice(FakeDevice::LostAt(3), 2);
  Start(2);
  Run(6);
  EXPECT_THAT(finished_.kinds(), ElementsAre("cuda", "cuda", "cpu", "cpu", "cpu", "cpu"));
  EXPECT_EQ(devices_[0]->calls(), 3);
  EXPECT_EQ(Errors("cuda:0", "lost"), 1);
  EXPECT_EQ(Threads("cuda", "unhealthy"), 2);
  EXPECT_EQ(Threads("cuda", "idle"), 0);
  EXPECT_EQ(Threads("cpu", "unhealthy"), 0);
  EXPECT_EQ(pool_->UsefulTasks(), 3);
}

TEST_F(WorkerPoolTest, OutOfMemoryGoesElsewhereAndTheDeviceStays) {
  AddDevice([](int call, const kernels::MatrixView&) {
    return call == 2 ? absl::ResourceExhaustedError("the smallest panel does not fit")
                     : absl::OkStatus();
  });
  Start();
  Run(3);
  EXPECT_THAT(finished_.kinds(), ElementsAre("cuda", "cpu", "cuda"));
  EXPECT_EQ(Errors("cuda:0", "oom"), 1);
  EXPECT_EQ(Errors("cuda:0", "lost"), 0);
  EXPECT_TRUE(pool_->Workers()[1].healthy);
}

TEST_F(WorkerPoolTest, LaunchesThatFailInARowTakeADeviceOut) {
  AddDevice([](int call, const kernels::MatrixView&) {
    return call == 3 ? absl::OkStatus() : absl::InternalError("launch failed");
  });
  Start();
  Run(2 + 1 + kMaxDeviceErrorsInARow + 2);  // two, a good one, then enough
  EXPECT_EQ(devices_[0]->calls(), 3 + kMaxDeviceErrorsInARow);
  EXPECT_EQ(Errors("cuda:0", "launch"), 2 + kMaxDeviceErrorsInARow);
  EXPECT_EQ(Errors("cuda:0", "lost"), 1);
  EXPECT_FALSE(pool_->Workers()[1].healthy);
  EXPECT_TRUE(finished_.last().ok());
}

// Poison: whatever a tensor does to devices, it does to a few of them only.
TEST_F(WorkerPoolTest, ATensorThatTakesDevicesDownEndsOnTheCpu) {
  for (int i = 0; i < kMaxDevicesLostPerTensor + 2; ++i) AddDevice(FakeDevice::LostAt(1));
  Start();
  Run();
  EXPECT_THAT(finished_.kinds(), ElementsAre("cpu"));
  EXPECT_TRUE(finished_.last().ok());
  int lost = 0;
  for (const WorkerStatus& worker : pool_->Workers()) lost += worker.healthy ? 0 : 1;
  EXPECT_EQ(lost, kMaxDevicesLostPerTensor);
}

TEST_F(WorkerPoolTest, AMethodThatADeviceDoesNotKnowIsNoFaultOfIt) {
  AddDevice([](int, const kernels::MatrixView&) { return absl::UnimplementedError("later"); });
  Start();
  Run(kMaxDeviceErrorsInARow + 1);
  EXPECT_EQ(cpu_->calls(), kMaxDeviceErrorsInARow + 1);
  EXPECT_TRUE(pool_->Workers()[1].healthy);
  EXPECT_EQ(Errors("cuda:0", "launch"), 0);
}

TEST_F(WorkerPoolTest, AnErrorOfTheTensorIsNotRepeated) {
  AddDevice([](int, const kernels::MatrixView&) { return absl::InvalidArgumentError("a NaN"); });
  Start();
  Run();
  EXPECT_TRUE(absl::IsInvalidArgument(finished_.last()));
  EXPECT_EQ(devices_[0]->calls(), 1);
  EXPECT_EQ(cpu_->calls(), 0);
}

TEST_F(WorkerPoolTest, AnErrorOfTheCpuIsTheTasks) {
  Start();
  pool_->Submit({[](const Computing&) { return absl::ResourceExhaustedError("full"); },
                 [this](const absl::Status& status, absl::string_view kind) {
                   finished_.Add(status, kind);
                 }});
  finished_.Await(1);
  EXPECT_TRUE(absl::IsResourceExhausted(finished_.last()));
  EXPECT_TRUE(pool_->Workers()[0].healthy);
}

TEST_F(WorkerPoolTest, HostMemoryIsThatOfTheFirstHealthyDevice) {
  FakeHostMemory first, second;
  AddDevice(FakeDevice::LostAt(1), 1, &first);
  AddDevice([](int, const kernels::MatrixView&) { return absl::UnimplementedError("later"); }, 1,
            &second);
  Start();
  EXPECT_EQ(pool_->host_memory(), &first);
  Run(1);  // the second passes it on, whichever comes first
  EXPECT_EQ(pool_->host_memory(), &second);
}

TEST_F(WorkerPoolTest, GaugesShowMemoryAndThreadsOfDevices) {
  AddDevice(nullptr, 3);
  Start(2);
  Run(1);
  pool_->UpdateGauges();
  const auto memory = [&](const std::string& kind) {
    return metrics_.Get("sinq_device_memory_bytes", {{"device", "cuda:0"}, {"kind", kind}});
  };
  EXPECT_EQ(memory("total"), 1000);
  EXPECT_EQ(memory("used"), 300);
  EXPECT_EQ(memory("reserved"), 200);
  EXPECT_EQ(memory("peak"), 100);
  EXPECT_EQ(Threads("cuda", "idle") + Threads("cuda", "busy"), 3);
  EXPECT_EQ(Threads("cpu", "idle") + Threads("cpu", "busy"), 2);
  // Half a second of arithmetic in far less: full.
  EXPECT_GT(metrics_.Get("sinq_device_utilization_ratio", {{"device", "cuda:0"}}), 0);
  EXPECT_LE(metrics_.Get("sinq_device_utilization_ratio", {{"device", "cuda:0"}}), 1);
  EXPECT_EQ(pool_->DeviceTotals().h2d_seconds, 0.25);
}

TEST_F(WorkerPoolTest, WhileItDrainsWorkingThreadsCountAsDraining) {
  Mutex mutex;
  bool started = false, go = false;
  Start(2);
  pool_->Submit({nullptr, [&](const absl::Status& status, absl::string_view kind) {
                   {
                     MutexLock lock(&mutex);
                     started = true;
                   }
                   {
                     MutexLock lock(&mutex);
                     mutex.Await(absl::Condition(&go));
                   }
                   finished_.Add(status, kind);
                 }});
  {
    MutexLock lock(&mutex);
    mutex.Await(absl::Condition(&started));
  }
  pool_->SetDraining();
  EXPECT_EQ(Threads("cpu", "draining"), 1);
  EXPECT_EQ(Threads("cpu", "busy"), 0);
  EXPECT_EQ(Threads("cpu", "idle"), 1);
  {
    MutexLock lock(&mutex);
    go = true;
  }
  finished_.Await(1);
}

TEST_F(WorkerPoolTest, EveryTaskFinishesOnceWhateverDevicesDo) {
  for (int device = 0; device < 4; ++device) {
    AddDevice(
        [device](int call, const kernels::MatrixView&) -> absl::Status {
          if (call % 7 == device) return absl::ResourceExhaustedError("full");
          if (call % 11 == device) return absl::InternalError("launch failed");
          return call == 40 * (device + 1) ? absl::UnavailableError("lost") : absl::OkStatus();
        },
        3);
  }
  Start(2, /*beside_devices=*/true);
  Submit(600);
  pool_.reset();  // runs what is queued
  EXPECT_EQ(finished_.kinds().size(), 600u);
  EXPECT_TRUE(finished_.last().ok());
}

}  // namespace
}  // namespace sinq
