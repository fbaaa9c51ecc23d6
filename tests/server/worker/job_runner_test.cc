#include "server/worker/job_runner.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/half.h"
#include "nlohmann/json.hpp"
#include "server/base/error.h"
#include "server/base/sha256.h"
#include "server/export/gguf_file.h"
#include "server/sink/sink.h"
#include "tests/fakes/fake_clock.h"
#include "tests/fakes/fault_file_system.h"
#include "tests/fakes/gguf_bytes.h"
#include "tests/fakes/native_spec.h"
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
    spec_.source_uri = temp_.Join("m");
    spec_.output_uri = temp_.Join(output);
    ASSERT_TRUE(store_->Create(spec_, "").ok());
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

  // Each call of each kind fails once: the job fails without a visible output, and the next attempt
  // makes the same bytes. Returns how many faults did make it fail.
  int RecoverFromEveryFault();

  TempDir temp_;
  JobSpec spec_ = NativeSpec();
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

// Of each tensor of a safetensors file.
std::map<std::string, std::string> DigestsIn(const std::string& file) {
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, file.data(), sizeof header_bytes);
  const auto header = nlohmann::json::parse(file.substr(8, header_bytes));
  std::map<std::string, std::string> digests;
  for (const auto& [name, tensor] : header.items()) {
    if (name == "__metadata__") continue;
    const uint64_t begin = tensor["data_offsets"][0], end = tensor["data_offsets"][1];
    digests[name] = Sha256Hex(file.substr(8 + header_bytes + begin, end - begin));
  }
  return digests;
}

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

// What the manifest says of the tensors that were quantized, by the end of their names.
std::map<std::string, nlohmann::json> QuantizedIn(
    const std::map<std::string, std::string>& content) {
  const auto manifest = nlohmann::json::parse(content.at(std::string(kManifestFileName)));
  std::map<std::string, nlohmann::json> quantized;
  for (const auto& tensor : manifest["tensors"]) {
    const std::string name = tensor["name"];
    if (tensor["action"] == "quantize") quantized[name.substr(name.find("proj") - 2)] = tensor;
  }
  return quantized;
}

TEST_F(JobRunnerTest, BitsAreChosenUnderATarget) {
  spec_.bits = 0;
  spec_.target_bits_per_weight = 6;
  const auto content = UndisturbedContent();
  const auto manifest = nlohmann::json::parse(content.at(std::string(kManifestFileName)));
  EXPECT_LE(manifest["effective_bits"], 6);
  EXPECT_GT(manifest["effective_bits"], 4.5);
  const auto quantized = QuantizedIn(content);
  ASSERT_EQ(quantized.size(), 2u);
  for (const auto& [name, tensor] : quantized) {
    EXPECT_THAT(std::string(tensor["reason"]), HasSubstr("bits chosen for the target"));
    EXPECT_GE(tensor["bits"], 3);
  }
}

TEST_F(JobRunnerTest, AResumedJobChoosesWhatTheFirstAttemptMeasured) {
  spec_.bits = 0;
  spec_.target_bits_per_weight = 5.5;
  const auto expected = UndisturbedContent();
  Queue("drained");
  const auto drain = [this](const JobProgress& progress, absl::string_view tensor) {
    if (progress.stage == JobStage::kMeasure && !tensor.empty()) stop_ = StopReason::kDrain;
  };
  EXPECT_TRUE(absl::IsCancelled(runner_->Run(job_, lease_, stop_, drain).status));
  const auto units = store_->FinishedUnits(job_.id);
  ASSERT_TRUE(units.ok());
  ASSERT_FALSE(units->empty());
  for (const FinishedUnit& unit : *units) EXPECT_EQ(unit.unit.rfind("widths\t", 0), 0u);
  stop_ = StopReason::kNone;
  ASSERT_TRUE(Run().ok());
  EXPECT_EQ(Content("drained"), expected);
}

TEST_F(JobRunnerTest, ProgressOfAJobThatMeasuresEndsAtItsTotal) {
  spec_.bits = 0;
  spec_.target_bits_per_weight = 6;
  Queue("out");
  uint64_t last = 0;
  const auto result =
      runner_->Run(job_, lease_, stop_, [&](const JobProgress& p, absl::string_view) {
        EXPECT_GE(p.bytes_done, last);
        EXPECT_LE(p.bytes_done, p.bytes_total);
        last = p.bytes_done;
      });
  ASSERT_TRUE(result.status.ok()) << result.status;
  EXPECT_EQ(result.progress.bytes_done, result.progress.bytes_total);
  EXPECT_EQ(result.progress.tensors_done, result.progress.tensors_total);
}

TEST_F(JobRunnerTest, ActivationsReachTheKernels) {
  const auto plain = UndisturbedContent();
  TestTensor samples = Bf16Tensor("model.layers.0.self_attn.q_proj.samples", {16, 64}, 7);
  TestTensor moments = Bf16Tensor("model.layers.0.mlp.down_proj.second_moments", {128, 128}, 8);
  // x xT of 128 channels, the first of them much larger than the others.
  std::string diagonal;
  for (int i = 0; i < 128 * 128; ++i) {
    const uint16_t one = 0x3f80, thousand = 0x447a;
    const uint16_t value = i == 0 ? thousand : (i % 129 == 0 ? one : 0);
    diagonal.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  moments.data = diagonal;
  temp_.Write("activations.safetensors", SafetensorsOf({moments, samples}));
  spec_.method = "asinq";
  spec_.activations_uri = temp_.Join("activations.safetensors");
  Queue("asinq");
  ASSERT_TRUE(Run().ok());
  const auto content = Content("asinq");
  EXPECT_NE(content.at("model-00001-of-00001.safetensors"),
            plain.at("model-00001-of-00001.safetensors"));
  for (const auto& [name, tensor] : QuantizedIn(content))
    EXPECT_LT(tensor["relative_error"], 0.3) << name;
  // Outputs can only be compared on samples.
  const auto quantized = QuantizedIn(content);
  const auto& sampled = quantized.at("q_proj.weight");
  ASSERT_TRUE(sampled.contains("output_error"));
  EXPECT_GT(sampled["output_error"], 0.01);
  EXPECT_LT(sampled["output_error"], 0.3);
  EXPECT_FALSE(quantized.at("n_proj.weight").contains("output_error"));
}

TEST_F(JobRunnerTest, MissingActivationsFailWhenPlanned) {
  temp_.Write("activations.safetensors",
              SafetensorsOf({Bf16Tensor("model.layers.0.self_attn.q_proj.samples", {16, 64}, 7)}));
  spec_.method = "asinq";
  spec_.activations_uri = temp_.Join("activations.safetensors");
  Queue("out");
  const absl::Status status = Run();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("model.layers.0.mlp.down_proj.samples"));
}

int JobRunnerTest::RecoverFromEveryFault() {
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
        EXPECT_TRUE(store_->Finish(lease_, JobState::kSucceeded, {}, {}).ok());
        break;
      }
      if (!status.ok()) {
        ++failures;
        EXPECT_TRUE(store_->Release(lease_).ok());
        UseFaults(std::make_shared<FaultPlan>());
        Acquire();
        EXPECT_TRUE(Run().ok()) << output;
      }
      EXPECT_EQ(Content(output), expected) << output << " " << status;
      EXPECT_TRUE(store_->Finish(lease_, JobState::kSucceeded, {}, {}).ok());
    }
  }
  return failures;
}

TEST_F(JobRunnerTest, AFaultAtAnyPointIsRecoveredToTheSameBytes) {
  EXPECT_GT(RecoverFromEveryFault(), 30);
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

// A finished tensor is not done again, so it had better be there.
TEST_F(JobRunnerTest, AFinishedTensorThatWasDamagedMeanwhileIsNoticed) {
  Queue("out");
  runner_->Run(job_, lease_, stop_, [&](const JobProgress&, absl::string_view tensor) {
    if (!tensor.empty()) stop_ = StopReason::kDrain;
  });
  stop_ = StopReason::kNone;
  ASSERT_FALSE(store_->FinishedUnits(job_.id)->empty());
  for (const auto& entry : fs::recursive_directory_iterator(temp_.path())) {
    if (entry.path().parent_path().extension() != ".partial") continue;
    if (entry.path().extension() == ".safetensors") fs::remove(entry.path());
  }
  ASSERT_TRUE(store_->Release(lease_).ok());
  Acquire();
  const absl::Status status = Run();
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("other bytes than were written"));
  EXPECT_FALSE(temp_.Exists("out"));
  EXPECT_FALSE(HasStaging());
}

// What the digests say is not taken on trust from those who made them.
TEST_F(JobRunnerTest, TheManifestHasTheDigestsOfSourceAndOutput) {
  const auto content = UndisturbedContent();
  const auto manifest = nlohmann::json::parse(content.at(std::string(kManifestFileName)));
  for (const auto& file : manifest["files"])
    EXPECT_EQ(file["sha256"], Sha256Hex(content.at(file["name"])));
  std::map<std::string, std::string> written;  // tensor -> digest
  for (const auto& [name, bytes] : content) {
    if (fs::path(name).extension() != ".safetensors") continue;
    for (const auto& [tensor, digest] : DigestsIn(bytes)) written[tensor] = digest;
  }
  const auto source = DigestsIn(temp_.Read("m/model.safetensors"));
  for (const auto& tensor : manifest["tensors"]) {
    EXPECT_EQ(tensor["source_sha256"], source.at(tensor["name"])) << tensor;
    for (const auto& output : tensor["outputs"])
      EXPECT_EQ(output["sha256"], written.at(output["name"])) << output;
  }
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

TEST_F(JobRunnerTest, AnUpgradeThatRoundsOtherwiseDoesNotFinishWhatAnotherBegan) {
  Queue("out");
  runner_->Run(job_, lease_, stop_, [&](const JobProgress&, absl::string_view tensor) {
    if (!tensor.empty()) stop_ = StopReason::kDrain;
  });
  stop_ = StopReason::kNone;
  RunnerOptions options;
  options.code_version = "test";
  ++options.arithmetic_version;
  runner_ = MakeJobRunner(options, workers_, *faulty_, budget_, *store_, *metrics_);
  const absl::Status status = Run();
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_EQ(GetErrorDetails(status).reason, Reason::kVersionChanged);
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

// A job with a measuring phase before the other.
class FoldingJobTest : public JobRunnerTest {
 protected:
  FoldingJobTest() {
    temp_.Write("m/model.safetensors", SafetensorsOf(FoldableLlamaTensors()));
    temp_.Write("m/config.json", kFoldableConfig);
    spec_.format = "bf16-presinq";
  }

  // Runs until `count` tensors are finished in `stage`; returns how many in all.
  int RunUntil(JobStage stage, int count) {
    int finished = 0, in_stage = 0;
    runner_->Run(job_, lease_, stop_, [&](const JobProgress& progress, absl::string_view tensor) {
      if (tensor.empty()) return;
      ++finished;
      if (progress.stage == stage && ++in_stage == count) stop_ = StopReason::kDrain;
    });
    EXPECT_EQ(in_stage >= count, stop_ == StopReason::kDrain);
    stop_ = StopReason::kNone;
    return finished;
  }
  void Again() {
    ASSERT_TRUE(store_->Release(lease_).ok());
    Acquire();
  }
  // BF16 values of a tensor of FoldableLlamaTensors in a shard.
  std::vector<float> Values(const std::string& file, const std::string& name) {
    const std::string content = temp_.Read(file);
    uint64_t header_bytes = 0;
    std::memcpy(&header_bytes, content.data(), 8);
    const auto entry = nlohmann::json::parse(content.substr(8, header_bytes))[name];
    const size_t begin = 8 + header_bytes + entry["data_offsets"][0].get<size_t>();
    const size_t end = 8 + header_bytes + entry["data_offsets"][1].get<size_t>();
    std::vector<float> values;
    for (size_t at = begin; at < end; at += 2) {
      uint16_t bits;
      std::memcpy(&bits, content.data() + at, 2);
      values.push_back(kernels::Bf16ToFloat(bits));
    }
    return values;
  }
  // Each value of `after` times its factor is the one of `before`, but for rounding to BF16.
  static void ExpectScaled(const std::vector<float>& before, const std::vector<float>& after,
                           const std::function<float(size_t)>& factor) {
    ASSERT_EQ(before.size(), after.size());
    for (size_t i = 0; i < before.size(); ++i)
      ASSERT_NEAR(after[i] * factor(i), before[i], std::abs(before[i]) * 0x1.02p-8f) << i;
  }
};

TEST_F(FoldingJobTest, ConsumersAreDividedByWhatProducersWereMultipliedWith) {
  const auto content = UndisturbedContent();
  const std::string source = "m/model.safetensors";
  const std::string output = "undisturbed/model-00001-of-00001.safetensors";
  const std::string p = "model.layers.0.";
  const auto scales = [&](const std::string& name) {
    const std::vector<float> before = Values(source, name), after = Values(output, name);
    std::vector<float> ratio;
    for (size_t i = 0; i < before.size(); ++i)
      ratio.push_back(before[i] == 0 ? 1 : after[i] / before[i]);
    return ratio;
  };
  const std::vector<float> attention = scales(p + "input_layernorm.weight");
  const std::vector<float> values = scales(p + "self_attn.v_proj.bias");
  EXPECT_GT(*std::max_element(attention.begin(), attention.end()), 1.05f);
  EXPECT_LT(*std::min_element(attention.begin(), attention.end()), 0.95f);
  EXPECT_GT(*std::max_element(values.begin(), values.end()), 1.05f);
  const auto expect = [&](const std::string& name, const std::function<float(size_t)>& factor) {
    ExpectScaled(Values(source, p + name), Values(output, p + name), factor);
  };
  expect("self_attn.q_proj.weight", [&](size_t i) { return attention[i % 64]; });
  expect("self_attn.v_proj.weight", [&](size_t i) { return attention[i % 64] / values[i / 64]; });
  // Heads of 16: query heads 0 and 1 read kv head 0.
  expect("self_attn.o_proj.weight",
         [&](size_t i) { return values[(i % 64) / 32 * 16 + (i % 64) % 16]; });
  const auto manifest = nlohmann::json::parse(content.at(std::string(kManifestFileName)));
  EXPECT_EQ(manifest["fold"]["pairs"].size(), 4u);
  for (const auto& pair : manifest["fold"]["pairs"]) EXPECT_EQ(pair["folded"], true);
}

TEST_F(FoldingJobTest, AFaultAtAnyPointIsRecoveredToTheSameBytes) {
  EXPECT_GT(RecoverFromEveryFault(), 30);
  EXPECT_FALSE(HasStaging());
}

TEST_F(FoldingJobTest, MeasurementsAreDurableAndNotMadeAgain) {
  const auto expected = UndisturbedContent();
  Queue("out");
  const int first = RunUntil(JobStage::kQuantize, 3);
  EXPECT_LT(first, 7 + 10);
  const absl::StatusOr<std::vector<FinishedUnit>> units = store_->FinishedUnits(job_.id);
  EXPECT_EQ(units->size(), static_cast<size_t>(first));
  EXPECT_TRUE(std::any_of(units->begin(), units->end(), [](const FinishedUnit& unit) {
    return unit.unit.starts_with("measure\t");
  }));
  Again();
  const int more = RunUntil(JobStage::kQuantize, 2);
  EXPECT_LT(more, 7 + 10 - first);
  Again();
  const int rest = RunUntil(JobStage::kDone, 1);
  EXPECT_EQ(first + more + rest, 7 + 10);
  EXPECT_EQ(Content("out"), expected);
}

TEST_F(FoldingJobTest, ADamagedMeasurementIsNoticed) {
  Queue("out");
  RunUntil(JobStage::kQuantize, 1);
  const std::string unit = "measure\tmodel.layers.0.self_attn.q_proj.weight";
  ASSERT_TRUE(store_->AddFinishedUnits(lease_, {{unit, R"({"column_codes": "AAAA"})"}}).ok());
  Again();
  const absl::Status status = Run();
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("q_proj"));
}

TEST_F(FoldingJobTest, FoldOffCopies) {
  spec_.fold = "off";
  Queue("out");
  EXPECT_TRUE(Run().ok());
  const std::string name = "model.layers.0.self_attn.q_proj.weight";
  EXPECT_EQ(Values("out/model-00001-of-00001.safetensors", name),
            Values("m/model.safetensors", name));
}

// Jobs that put their layers into a GGUF file.
class GgufJobTest : public JobRunnerTest {
 protected:
  void Use(const std::string& architecture) {
    temp_.Write("m/model.safetensors", SafetensorsOf(FoldableLlamaTensors()));
    temp_.Write("m/config.json",
                absl::StrReplaceAll(kFoldableConfig, {{"\"llama\"", "\"" + architecture + "\""}}));
    template_ = FoldableTemplate(architecture);
    temp_.Write("t.gguf", template_.Bytes());
    spec_.format = "gguf";
    spec_.symmetric = false;
    spec_.group_size = 32;
    spec_.aux = "f16";
    spec_.gguf_template_uri = temp_.Join("t.gguf");
  }
  std::string RunTo(const std::string& output) {
    Queue(output);
    const absl::Status status = Run();
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_TRUE(store_->Finish(lease_, JobState::kSucceeded, {}, {}).ok());
    EXPECT_EQ(Content(output).size(), 2u);  // the file and the manifest
    return temp_.Read(output + "/model.gguf");
  }
  static GgufTensor Find(const GgufFile& file, absl::string_view name) {
    for (const GgufTensor& tensor : file.tensors) {
      if (tensor.name == name) return tensor;
    }
    ADD_FAILURE() << name;
    return {};
  }
  static std::string DataOf(const std::string& bytes, absl::string_view name) {
    const auto file = ParseGguf(bytes, bytes.size(), "output");
    EXPECT_TRUE(file.ok()) << file.status();
    if (!file.ok()) return "";
    const GgufTensor tensor = Find(*file, name);
    return bytes.substr(file->data_offset + tensor.offset, tensor.size_bytes);
  }

  TestGguf template_;
};

TEST_F(GgufJobTest, WhatIsNotOursIsTheTemplates) {
  Use("llama");
  const std::string bytes = RunTo("out");
  for (const char* name : {"token_embd.weight", "output_norm.weight"})
    EXPECT_EQ(DataOf(bytes, name), template_.Find(name).data) << name;
  const auto before = ParseGguf(template_.Bytes(), template_.Bytes().size(), "template");
  auto after = ParseGguf(bytes, bytes.size(), "output");
  ASSERT_TRUE(before.ok() && after.ok());
  EXPECT_EQ(after->numbers.at("general.file_type").value, 3u);
  ASSERT_TRUE(SetGgufNumber(*after, "general.file_type", 32).ok());
  EXPECT_EQ(after->metadata.substr(0, before->metadata.size()), before->metadata);
  EXPECT_EQ(after->metadata_count, before->metadata_count + 1);
  const auto manifest = nlohmann::json::parse(temp_.Read(absl::StrCat("out/", kManifestFileName)));
  EXPECT_EQ(manifest["gguf_template"]["size_bytes"], template_.Bytes().size());
  EXPECT_EQ(manifest["gguf_template"]["header_sha256"].get<std::string>().size(), 64u);
  EXPECT_EQ(manifest["files"].size(), 1u);
}

// The same layers twice: once in the checkpoint's order of rows, once in that of ggml's llama.
TEST_F(GgufJobTest, QueriesAndKeysAreReorderedAndNothingElse) {
  for (const char* exclude : {"", "q_proj"}) {  // quantized, and dense but folded
    spec_.exclude.clear();
    if (*exclude != '\0') spec_.exclude = {exclude};
    Use("qwen2");
    const std::string plain = RunTo(absl::StrCat("plain", exclude));
    Use("llama");
    const std::string alternating = RunTo(absl::StrCat("alternating", exclude));
    for (const TestGgufTensor& tensor : template_.tensors) {
      std::string expected = DataOf(plain, tensor.name);
      if (tensor.name == "blk.0.attn_q.weight") expected = Alternating(expected, 64, 4);
      if (tensor.name == "blk.0.attn_k.weight") expected = Alternating(expected, 32, 2);
      EXPECT_EQ(DataOf(alternating, tensor.name), expected) << tensor.name;
    }
  }
}

TEST_F(GgufJobTest, NormsTakeTheirScaleInF32) {
  Use("llama");
  const std::string bytes = RunTo("out");
  const std::string before = template_.Find("blk.0.attn_norm.weight").data;
  const std::string after = DataOf(bytes, "blk.0.attn_norm.weight");
  ASSERT_EQ(after.size(), before.size());
  int changed = 0;
  for (size_t i = 0; i < after.size(); i += 4) {
    float a = 0, b = 0;
    std::memcpy(&a, before.data() + i, sizeof a);
    std::memcpy(&b, after.data() + i, sizeof b);
    EXPECT_GT(b / a, 1 / 16.0f);
    EXPECT_LT(b / a, 16.0f);
    changed += a != b;
  }
  EXPECT_GT(changed, 32);
  EXPECT_NE(DataOf(bytes, "blk.0.attn_v.bias"), template_.Find("blk.0.attn_v.bias").data);
}

TEST_F(GgufJobTest, AFaultAtAnyPointIsRecoveredToTheSameBytes) {
  Use("llama");
  EXPECT_GT(RecoverFromEveryFault(), 30);
  EXPECT_FALSE(HasStaging());
}

TEST_F(GgufJobTest, ATemplateThatChangedBetweenAttemptsIsRefused) {
  Use("llama");
  Queue("out");
  runner_->Run(job_, lease_, stop_, [&](const JobProgress&, absl::string_view tensor) {
    if (!tensor.empty()) stop_ = StopReason::kDrain;
  });
  stop_ = StopReason::kNone;
  template_.AddText("general.name", "another");
  temp_.Write("t.gguf", template_.Bytes());
  EXPECT_TRUE(absl::IsFailedPrecondition(Run()));
  EXPECT_FALSE(temp_.Exists("out"));
}

}  // namespace
}  // namespace sinq
