// Jobs on devices that fail: the same bytes as on the CPU, nothing lost.
#include <algorithm>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "server/base/file_system.h"
#include "server/sink/sink.h"
#include "server/worker/job_runner.h"
#include "tests/fakes/fake_clock.h"
#include "tests/fakes/fake_device.h"
#include "tests/fakes/fake_metrics.h"
#include "tests/fakes/native_spec.h"
#include "tests/fakes/temp_dir.h"
#include "tests/fakes/tiny_checkpoint.h"

namespace sinq {
namespace {

namespace fs = std::filesystem;

constexpr int kLayers = 12;                       // matrices to quantize
constexpr uint64_t kWeights = kLayers * 64 * 128;  // in them
constexpr uint64_t kMi = 1 << 20;                  // what a small unit takes in a buffer pool

class DeviceJobsTest : public testing::Test {
 protected:
  DeviceJobsTest() {
    std::vector<TestTensor> tensors = {Bf16Tensor("model.embed_tokens.weight", {8, 64}, 1)};
    for (uint32_t i = 0; i < kLayers; ++i) {
      tensors.push_back(Bf16Tensor(absl::StrCat("model.layers.", i, ".mlp.down_proj.weight"),
                                   {64, 128}, 10 + i));
      tensors.push_back(
          Bf16Tensor(absl::StrCat("model.layers.", i, ".input_layernorm.weight"), {64}, 50 + i));
    }
    temp_.Write("m/model.safetensors", SafetensorsOf(tensors));
    temp_.Write("m/config.json", kTinyConfig);
    store_ = *OpenSqliteJobStore(temp_.Join("jobs.db"), clock_);
    files_ = *MakePosixFileSystem({temp_.path()});
  }

  void AddDevice(FakeDevice::Fault fault = nullptr, int threads = 2) {
    auto device = std::make_unique<FakeDevice>(std::move(fault), &memory_);
    devices_.push_back(device.get());
    options_.push_back({std::move(device), static_cast<int>(options_.size()), threads});
  }
  void Start(bool beside_devices = false) {
    workers_ = std::make_unique<WorkerPool>(
        CpuWorkerOptions{kernels::MakeCpuBackend(), 2, beside_devices}, std::move(options_),
        metrics_);
    options_.clear();
    RunnerOptions options;
    options.checkpoint_interval = absl::Milliseconds(1);
    options.code_version = "test";
    runner_ = MakeJobRunner(options, *workers_, *files_, budget_, *store_, metrics_);
  }
  // Queues a job, takes its lease and runs it.
  RunResult Run(const std::string& output, int stop_after = 0,
                StopReason reason = StopReason::kNone) {
    JobSpec spec = NativeSpec();
    spec.source_uri = temp_.Join("m");
    spec.output_uri = temp_.Join(output);
    EXPECT_TRUE(store_->Create(spec, "").ok());
    return Continue(stop_after, reason);
  }
  RunResult Continue(int stop_after = 0, StopReason reason = StopReason::kNone) {
    const auto acquired = store_->Acquire("worker", absl::Seconds(30));
    EXPECT_TRUE(acquired.ok() && acquired->has_value()) << acquired.status();
    const auto& [job, lease] = **acquired;
    std::atomic<StopReason> stop = StopReason::kNone;
    int tensors = 0;
    RunResult result =
        runner_->Run(job, lease, stop, [&](const JobProgress&, absl::string_view tensor) {
          if (!tensor.empty() && ++tensors == stop_after) stop = reason;
        });
    if (reason == StopReason::kDrain) {
      EXPECT_TRUE(store_->Release(lease).ok());
    } else {
      EXPECT_TRUE(store_->Finish(lease, JobState::kSucceeded, {}, {}).ok());
    }
    return result;
  }
  // Every file of an output; of the manifest without the job's id, which differs.
  std::map<std::string, std::string> Content(const std::string& output) {
    std::map<std::string, std::string> content;
    if (!temp_.Exists(output)) return content;
    for (const auto& entry : fs::directory_iterator(temp_.Join(output))) {
      const std::string name = entry.path().filename().string();
      content[name] = temp_.Read(absl::StrCat(output, "/", name));
      if (name != kManifestFileName) continue;
      auto manifest = nlohmann::ordered_json::parse(content[name]);
      manifest.erase("job_id");
      content[name] = manifest.dump();
    }
    return content;
  }
  std::map<std::string, std::string> CpuContent() {
    std::vector<DeviceWorkerOptions> later = std::move(options_);
    options_.clear();
    Start();
    EXPECT_TRUE(Run("cpu").status.ok());
    EXPECT_EQ(Quantized("cpu"), kWeights);
    options_ = std::move(later);
    return Content("cpu");
  }
  uint64_t Quantized(const std::string& backend) {
    return static_cast<uint64_t>(
        metrics_.Get("sinq_weights_quantized_total", {{"backend", backend}}));
  }
  double Errors(const std::string& device, const std::string& kind) {
    return metrics_.Get("sinq_device_errors_total", {{"device", device}, {"kind", kind}});
  }
  bool HasStaging() {
    return std::any_of(
        fs::directory_iterator(temp_.path()), fs::directory_iterator(),
        [](const fs::directory_entry& entry) { return entry.path().extension() == ".partial"; });
  }

  TempDir temp_;
  FakeClock clock_;
  FakeHostMemory memory_;
  FakeMetrics metrics_;
  MemoryBudget budget_{8 * kMi};
  std::unique_ptr<JobStore> store_;
  std::unique_ptr<FileSystem> files_;
  std::vector<FakeDevice*> devices_;
  std::vector<DeviceWorkerOptions> options_;
  std::unique_ptr<WorkerPool> workers_;
  std::unique_ptr<JobRunner> runner_;
};

TEST_F(DeviceJobsTest, CpuDevicesAndBothGiveTheSameBytes) {
  const auto expected = CpuContent();
  ASSERT_EQ(expected.size(), 5u);
  AddDevice();
  AddDevice();
  Start();
  ASSERT_TRUE(Run("devices").status.ok());
  EXPECT_EQ(Content("devices"), expected);
  EXPECT_EQ(Quantized("cuda"), kWeights);
  EXPECT_EQ(Quantized("cpu"), kWeights);  // as before
  for (const char* stage : {"h2d", "d2h"}) {
    EXPECT_EQ(metrics_.Get("sinq_job_stage_seconds", {{"stage", stage}}), 1) << stage;
  }
  AddDevice();
  Start(/*beside_devices=*/true);
  ASSERT_TRUE(Run("both").status.ok());
  EXPECT_EQ(Content("both"), expected);
  EXPECT_EQ(Quantized("cuda") + Quantized("cpu"), 3 * kWeights);
}

TEST_F(DeviceJobsTest, ADeviceLostInTheMiddleLosesNothing) {
  const auto expected = CpuContent();
  for (int nth = 1; nth <= kLayers; ++nth) {
    AddDevice(FakeDevice::LostAt(nth));
    AddDevice();
    Start();
    const std::string output = absl::StrCat("lost-", nth);
    const RunResult result = Run(output);
    EXPECT_TRUE(result.status.ok()) << result.status;
    EXPECT_EQ(result.progress.tensors_done, result.progress.tensors_total);
    EXPECT_EQ(Content(output), expected) << nth;
  }
  EXPECT_EQ(Quantized("cpu"), kWeights);  // the other device did it, not the CPU
  EXPECT_GE(Errors("cuda:0", "lost"), 1);
}

TEST_F(DeviceJobsTest, WhenTheLastDeviceIsLostTheCpuFinishesTheJob) {
  const auto expected = CpuContent();
  AddDevice(FakeDevice::LostAt(5), 1);
  Start();
  EXPECT_TRUE(Run("out").status.ok());
  EXPECT_EQ(Content("out"), expected);
  EXPECT_EQ(Quantized("cuda"), 4u * 64 * 128);
  EXPECT_EQ(Quantized("cpu"), kWeights + (kLayers - 4u) * 64 * 128);
  EXPECT_EQ(Errors("cuda:0", "lost"), 1);
  EXPECT_TRUE(Run("next").status.ok());  // the server goes on without it
  EXPECT_EQ(Content("next"), expected);
}

TEST_F(DeviceJobsTest, ATensorThatNoDeviceHasRoomForIsDoneByTheCpu) {
  const auto expected = CpuContent();
  const auto one_is_too_large = [](int call, const kernels::MatrixView&) {
    return call == 4 ? absl::ResourceExhaustedError("too large") : absl::OkStatus();
  };
  AddDevice(one_is_too_large);
  Start();
  EXPECT_TRUE(Run("out").status.ok());
  EXPECT_EQ(Content("out"), expected);
  EXPECT_EQ(Errors("cuda:0", "oom"), 1);
  EXPECT_EQ(Quantized("cpu"), kWeights + 64 * 128);
  EXPECT_TRUE(workers_->Workers()[1].healthy);
}

TEST_F(DeviceJobsTest, ADrainedJobGoesOnOnOtherWorkers) {
  const auto expected = CpuContent();
  const auto slow = [](int, const kernels::MatrixView&) {
    absl::SleepFor(absl::Milliseconds(5));
    return absl::OkStatus();
  };
  AddDevice(slow);
  AddDevice(slow);
  Start();
  // More than there are copies, which do not wait for the devices.
  const RunResult drained = Run("out", kLayers + 4, StopReason::kDrain);
  EXPECT_TRUE(absl::IsCancelled(drained.status)) << drained.status;
  EXPECT_TRUE(HasStaging());
  Start();  // without devices
  EXPECT_TRUE(Continue().status.ok());
  EXPECT_EQ(Content("out"), expected);
  EXPECT_LT(Quantized("cpu"), 2 * kWeights);  // what the devices had done was kept
}

TEST_F(DeviceJobsTest, ACancelledJobLeavesNothing) {
  AddDevice([](int, const kernels::MatrixView&) {
    absl::SleepFor(absl::Milliseconds(5));
    return absl::OkStatus();
  });
  AddDevice();
  Start(/*beside_devices=*/true);
  const RunResult result = Run("out", 2, StopReason::kCancel);
  EXPECT_TRUE(absl::IsCancelled(result.status)) << result.status;
  EXPECT_FALSE(HasStaging());
  EXPECT_FALSE(temp_.Exists("out"));
  EXPECT_EQ(budget_.held_bytes(), 0u);
  EXPECT_EQ(memory_.held_bytes(), 0u);
}

TEST_F(DeviceJobsTest, LockedMemoryStaysWithinTheBudgetAndIsUsedAgain) {
  AddDevice(nullptr, 4);
  AddDevice(nullptr, 4);
  Start(/*beside_devices=*/true);
  EXPECT_TRUE(Run("out").status.ok());
  EXPECT_GT(memory_.allocations(), 0);
  EXPECT_LE(memory_.peak_bytes(), 8 * kMi);
  EXPECT_LE(budget_.peak_bytes(), 8 * kMi);
  EXPECT_EQ(memory_.held_bytes(), 0u);
  EXPECT_EQ(budget_.held_bytes(), 0u);
}

// Copies and matrices in turn, and room for one of them: whoever waits for memory must not hold up
// the one that has it.
TEST_F(DeviceJobsTest, ABudgetForOneTensorIsEnough) {
  MemoryBudget tight(1);
  AddDevice(FakeDevice::LostAt(3), 1);
  Start();
  runner_ = MakeJobRunner({}, *workers_, *files_, tight, *store_, metrics_);
  EXPECT_TRUE(Run("out").status.ok());
  EXPECT_LE(tight.peak_bytes(), 2 * kMi);  // a buffer for weights and a workspace
}

}  // namespace
}  // namespace sinq
