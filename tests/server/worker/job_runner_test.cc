#include "server/worker/job_runner.h"

#include <cerrno>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "server/base/error.h"
#include "server/sink/sink.h"
#include "tests/fakes/fake_clock.h"
#include "tests/fakes/fault_file_system.h"
#include "tests/fakes/temp_dir.h"
#include "tests/fakes/tiny_checkpoint.h"

namespace sinq {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

// A store, a source of six tensors and a runner whose disk may fail.
class JobRunnerTest : public testing::Test {
 protected:
  JobRunnerTest() {
    temp_.Write("m/model.safetensors", SafetensorsOf(TinyLlamaTensors()));
    temp_.Write("m/config.json", kTinyConfig);
    temp_.Write("m/tokenizer.json", "{}");
    store_ = *OpenSqliteJobStore(temp_.Join("jobs.db"), clock_);
    files_ = *MakePosixFileSystem({temp_.path()});
    UseFaults(std::make_shared<FaultPlan>());
  }

  void UseFaults(std::shared_ptr<FaultPlan> plan) {
    faulty_ = MakeFaultFileSystem(files_, std::move(plan));
    RunnerOptions options;
    options.checkpoint_interval = absl::Milliseconds(1);
    options.code_version = "test";
    runner_ = MakeJobRunner(options, workers_, *faulty_, budget_, *store_, *metrics_);
  }

  // Queues a job with this output and takes its lease.
  void Queue(const std::string& output) {
    JobSpec spec;
    spec.source_uri = temp_.Join("m");
    spec.output_uri = temp_.Join(output);
    ASSERT_TRUE(store_->Create(spec, "").ok());
    Acquire();
  }
  void Acquire() {
    auto acquired = store_->Acquire("worker", absl::Seconds(30));
    ASSERT_TRUE(acquired.ok() && acquired->has_value()) << acquired.status();
    job_ = (*acquired)->first;
    lease_ = (*acquired)->second;
  }
  absl::Status Run() {
    return runner_->Run(job_, lease_, stop_, [](const JobProgress&, absl::string_view) {}).status;
  }

  // Every file of an output; of the manifest without the job's id, which differs.
  std::map<std::string, std::string> Content(const std::string& output) {
    std::map<std::string, std::string> content;
    for (const auto& entry : fs::directory_iterator(temp_.Join(output))) {
      const std::string name = entry.path().filename().string();
      content[name] = temp_.Read(absl::StrCat(output, "/", name));
      if (name != kManifestFileName) continue;
      auto manifest = nlohmann::ordered_json::parse(content[name]);
      EXPECT_EQ(manifest["job_id"], job_.id);
      manifest.erase("job_id");
      content[name] = manifest.dump();
    }
    return content;
  }
  bool HasStaging() {
    for (const auto& entry : fs::directory_iterator(temp_.path())) {
      if (entry.path().extension() == ".partial") return true;
    }
    return false;
  }
  std::map<std::string, std::string> UndisturbedContent() {
    Queue("undisturbed");
    EXPECT_TRUE(Run().ok());
    EXPECT_TRUE(store_->Finish(lease_, JobState::kSucceeded, {}, {}).ok());
    return Content("undisturbed");
  }

  TempDir temp_;
  FakeClock clock_;
  std::unique_ptr<JobStore> store_;
  std::shared_ptr<FileSystem> files_;
  std::unique_ptr<FileSystem> faulty_;
  MemoryBudget budget_{32 << 20};
  std::unique_ptr<Metrics> metrics_ = MakePrometheusMetrics();
  WorkerPool workers_{{kernels::MakeCpuBackend(), /*threads=*/2}, {}, *metrics_};
  std::unique_ptr<JobRunner> runner_;
  Job job_;
  Lease lease_;
  std::atomic<StopReason> stop_ = StopReason::kNone;
};

TEST_F(JobRunnerTest, PublishesShardsSideFilesAndAManifestThatListsThem) {
  const auto content = UndisturbedContent();
  EXPECT_EQ(content.size(), 6u);
  EXPECT_EQ(content.at("tokenizer.json"), "{}");
  const auto manifest = nlohmann::json::parse(content.at(std::string(kManifestFileName)));
  EXPECT_EQ(manifest["files"].size(), 5u);
  EXPECT_EQ(manifest["tensors"].size(), 6u);
  for (const auto& tensor : manifest["tensors"]) {
    if (tensor["action"] != "quantize") continue;
    EXPECT_GT(tensor["relative_error"], 0.05);
    EXPECT_LT(tensor["relative_error"], 0.15);
    EXPECT_LE(tensor["imbalance_after"], tensor["imbalance_before"]);
  }
  EXPECT_FALSE(HasStaging());
}

// Each call of each kind fails once: the job fails without a visible output, and the next attempt
// makes the same bytes.
TEST_F(JobRunnerTest, AFaultAtAnyPointIsRecoveredToTheSameBytes) {
  const auto expected = UndisturbedContent();
  int failures = 0;
  for (const FaultOperation operation :
       {FaultOperation::kMakeDirectory, FaultOperation::kOpenForWrite, FaultOperation::kPreallocate,
        FaultOperation::kWrite, FaultOperation::kSyncFile, FaultOperation::kRead,
        FaultOperation::kSyncDirectory, FaultOperation::kRename}) {
    for (int nth = 1;; ++nth) {
      const std::string output = absl::StrCat("out-", static_cast<int>(operation), "-", nth);
      auto plan = std::make_shared<FaultPlan>();
      plan->Fail(operation, nth, EIO);
      UseFaults(plan);
      Queue(output);
      const absl::Status status = Run();
      if (plan->Count(operation) < nth) {  // past the last call of this kind
        EXPECT_TRUE(status.ok()) << status;
        ASSERT_TRUE(store_->Finish(lease_, JobState::kSucceeded, {}, {}).ok());
        break;
      }
      if (!status.ok()) {
        ++failures;
        ASSERT_TRUE(store_->Release(lease_).ok());
        UseFaults(std::make_shared<FaultPlan>());
        Acquire();
        EXPECT_TRUE(Run().ok()) << output;
      }
      EXPECT_EQ(Content(output), expected) << output << " " << status;
      ASSERT_TRUE(store_->Finish(lease_, JobState::kSucceeded, {}, {}).ok());
    }
  }
  EXPECT_GT(failures, 30);
  EXPECT_FALSE(HasStaging());
}

TEST_F(JobRunnerTest, ADrainedJobKeepsItsWorkAndGoesOn) {
  const auto expected = UndisturbedContent();
  Queue("drained");
  int tensors = 0;
  const RunResult result =
      runner_->Run(job_, lease_, stop_, [&](const JobProgress&, absl::string_view tensor) {
        if (!tensor.empty() && ++tensors == 3) stop_ = StopReason::kDrain;
      });
  EXPECT_TRUE(absl::IsCancelled(result.status)) << result.status;
  EXPECT_TRUE(HasStaging());
  EXPECT_FALSE(temp_.Exists("drained"));
  const auto units = store_->FinishedUnits(job_.id);
  EXPECT_GE(units->size(), 3u);
  ASSERT_TRUE(store_->Release(lease_).ok());
  stop_ = StopReason::kNone;
  Acquire();
  int again = 0;
  EXPECT_TRUE(runner_
                  ->Run(job_, lease_, stop_,
                        [&](const JobProgress&, absl::string_view tensor) {
                          again += tensor.empty() ? 0 : 1;
                        })
                  .status.ok());
  EXPECT_EQ(again, 6 - static_cast<int>(units->size()));
  EXPECT_EQ(Content("drained"), expected);
}

TEST_F(JobRunnerTest, ACancelledJobLeavesNothing) {
  Queue("cancelled");
  const RunResult result =
      runner_->Run(job_, lease_, stop_, [&](const JobProgress&, absl::string_view tensor) {
        if (!tensor.empty()) stop_ = StopReason::kCancel;
      });
  EXPECT_TRUE(absl::IsCancelled(result.status)) << result.status;
  EXPECT_FALSE(HasStaging());
  EXPECT_FALSE(temp_.Exists("cancelled"));
}

TEST_F(JobRunnerTest, DiscardRemovesWhatADrainedJobLeft) {
  Queue("drained");
  runner_->Run(job_, lease_, stop_,
               [&](const JobProgress&, absl::string_view) { stop_ = StopReason::kDrain; });
  ASSERT_TRUE(HasStaging());
  EXPECT_TRUE(runner_->Discard(job_).ok());
  EXPECT_FALSE(HasStaging());
  EXPECT_TRUE(runner_->Discard(job_).ok());
}

TEST_F(JobRunnerTest, ASourceThatChangedBetweenAttemptsIsRefused) {
  Queue("out");
  runner_->Run(job_, lease_, stop_, [&](const JobProgress&, absl::string_view tensor) {
    if (!tensor.empty()) stop_ = StopReason::kDrain;
  });
  stop_ = StopReason::kNone;
  std::vector<TestTensor> tensors = TinyLlamaTensors();
  tensors.pop_back();
  temp_.Write("m/model.safetensors", SafetensorsOf(tensors));
  const absl::Status status = Run();
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_FALSE(temp_.Exists("out"));
}

TEST_F(JobRunnerTest, ANaNNamesItsTensorAndElement) {
  std::vector<TestTensor> tensors = TinyLlamaTensors();
  tensors[4].data.replace(2 * (3 * 64 + 5), 2, "\xC0\x7F");
  temp_.Write("m/model.safetensors", SafetensorsOf(tensors));
  Queue("out");
  const absl::Status status = Run();
  EXPECT_EQ(GetErrorDetails(status).reason, Reason::kNonFiniteWeight);
  EXPECT_THAT(std::string(status.message()), HasSubstr("self_attn.q_proj.weight"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("[3, 5]"));
  EXPECT_FALSE(HasStaging());
}

TEST_F(JobRunnerTest, ALostLeaseNeverPublishes) {
  Queue("out");
  ASSERT_TRUE(store_->Release(lease_).ok());  // somebody else may have it now
  const absl::Status status = Run();
  EXPECT_EQ(GetErrorDetails(status).reason, Reason::kLeaseLost) << status;
  EXPECT_FALSE(temp_.Exists("out"));
}

TEST_F(JobRunnerTest, BuffersStayWithinTheBudget) {
  Queue("out");
  EXPECT_TRUE(Run().ok());
  EXPECT_LE(budget_.peak_bytes(), budget_.budget_bytes());
  EXPECT_EQ(budget_.held_bytes(), 0u);
}

}  // namespace
}  // namespace sinq
