// The services through a real connection, with a real store and worker beneath.
#include "server/rpc/grpc_server.h"

#include <grpcpp/generic/generic_stub.h>

#include <chrono>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/base/limits.h"
#include "server/worker/job_runner.h"
#include "tests/fakes/fake_device.h"
#include "tests/fakes/temp_dir.h"
#include "tests/fakes/tiny_checkpoint.h"

namespace sinq {
namespace {

using grpc::StatusCode;
using testing::HasSubstr;
using QuantizeStream =
    grpc::ClientReaderWriter<v1::QuantizeTensorsRequest, v1::QuantizeTensorsResponse>;

// A device that lives until somebody says so; owned by the server.
std::vector<DeviceWorkerOptions> OneDevice(FakeDevice::Fault fault) {
  std::vector<DeviceWorkerOptions> devices;
  devices.push_back({std::make_unique<FakeDevice>(std::move(fault)), 0, 2});
  return devices;
}

class GrpcServerTest : public testing::Test {
 protected:
  explicit GrpcServerTest(std::vector<DeviceWorkerOptions> devices = {})
      : workers_({kernels::MakeCpuBackend()}, std::move(devices), *metrics_) {
    temp_.Write("m/model.safetensors", SafetensorsOf(TinyLlamaTensors()));
    temp_.Write("m/config.json", kTinyConfig);
    store_ = *OpenSqliteJobStore(temp_.Join("jobs.db"), SystemClock());
    files_ = *MakePosixFileSystem({temp_.path()});
    runner_ = MakeJobRunner({}, workers_, *files_, budget_, *store_, *metrics_);
    scheduler_ = MakeScheduler({}, *store_, *runner_, SystemClock(), *metrics_);
    context_.reset(new ServiceContext{*store_, *scheduler_, *files_, workers_, budget_, *metrics_,
                                      handlers_, watchers_, "test"});
    server_ = *GrpcServer::Start(*ParseListenAddress("127.0.0.1:0", "listen"), *context_);
    scheduler_->Start();
    channel_ = grpc::CreateChannel(absl::StrCat("127.0.0.1:", server_->port()),
                                   grpc::InsecureChannelCredentials());
    jobs_ = v1::QuantizationService::NewStub(channel_);
    tensors_ = v1::TensorService::NewStub(channel_);
  }
  ~GrpcServerTest() override {
    server_.reset();
    scheduler_->Drain(absl::ZeroDuration());
  }

  v1::CreateJobRequest Request(const std::string& output) {
    v1::CreateJobRequest request;
    request.set_source_uri(temp_.Join("m"));
    request.set_output_uri(temp_.Join(output));
    // Has a place for the layers of this model, whatever their shape.
    request.mutable_recipe()->set_format("sinq");
    return request;
  }
  // Follows the job to its end; returns its last state.
  v1::JobState Watch(const std::string& job_id) {
    grpc::ClientContext call;
    v1::WatchJobRequest request;
    request.set_job_id(job_id);
    const auto reader = jobs_->WatchJob(&call, request);
    v1::WatchJobResponse response;
    v1::JobState last = v1::JOB_STATE_UNSPECIFIED;
    int64_t sequence = 0;
    while (reader->Read(&response)) {
      EXPECT_EQ(response.event().sequence(), ++sequence);
      last = response.event().state();
    }
    EXPECT_TRUE(reader->Finish().ok());
    return last;
  }
  std::string Succeeded(const std::string& output) {
    grpc::ClientContext call;
    v1::CreateJobResponse response;
    const grpc::Status status = jobs_->CreateJob(&call, Request(output), &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(Watch(response.job().job_id()), v1::JOB_STATE_SUCCEEDED);
    return response.job().job_id();
  }

  static v1::QuantizeTensorsRequest Recipe() {
    v1::QuantizeTensorsRequest request;
    request.mutable_recipe();
    return request;
  }
  static v1::QuantizeTensorsRequest HeaderOf(const TestTensor& tensor) {
    v1::QuantizeTensorsRequest request;
    request.mutable_header()->set_name(tensor.name);
    request.mutable_header()->set_dtype(tensor.dtype);
    for (const int64_t extent : tensor.shape) request.mutable_header()->add_shape(extent);
    request.mutable_header()->set_size_bytes(static_cast<int64_t>(tensor.data.size()));
    return request;
  }
  static v1::QuantizeTensorsRequest Chunk(std::string bytes) {
    v1::QuantizeTensorsRequest request;
    request.set_chunk(std::move(bytes));
    return request;
  }
  // Sends the messages, reads all answers, returns how the call ended.
  grpc::Status Stream(const std::vector<v1::QuantizeTensorsRequest>& requests,
                      std::vector<v1::QuantizeTensorsResponse>* responses = nullptr) {
    grpc::ClientContext call;
    const std::unique_ptr<QuantizeStream> stream = tensors_->QuantizeTensors(&call);
    for (const auto& request : requests) {
      if (!stream->Write(request)) break;
    }
    stream->WritesDone();
    v1::QuantizeTensorsResponse response;
    while (stream->Read(&response)) {
      if (responses != nullptr) responses->push_back(response);
    }
    return stream->Finish();
  }

  TempDir temp_;
  std::unique_ptr<Metrics> metrics_ = MakePrometheusMetrics();
  MemoryBudget budget_{16 << 20};
  WorkerPool workers_;
  std::unique_ptr<JobStore> store_;
  std::unique_ptr<FileSystem> files_;
  std::unique_ptr<JobRunner> runner_;
  std::unique_ptr<Scheduler> scheduler_;
  Executor handlers_{8}, watchers_{8};
  std::unique_ptr<ServiceContext> context_;
  std::unique_ptr<GrpcServer> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::QuantizationService::Stub> jobs_;
  std::unique_ptr<v1::TensorService::Stub> tensors_;
};

TEST_F(GrpcServerTest, AJobFromSubmissionToItsFiles) {
  const std::string job_id = Succeeded("out");
  grpc::ClientContext list_call;
  v1::ListArtifactsRequest list;
  list.set_job_id(job_id);
  v1::ListArtifactsResponse artifacts;
  ASSERT_TRUE(tensors_->ListArtifacts(&list_call, list, &artifacts).ok());
  EXPECT_EQ(artifacts.artifacts_size(), 5);
  for (const v1::Artifact& artifact : artifacts.artifacts()) {
    grpc::ClientContext call;
    v1::ReadArtifactRequest read;
    read.set_job_id(job_id);
    read.set_file(artifact.file());
    read.set_offset_bytes(1);
    const auto reader = tensors_->ReadArtifact(&call, read);
    v1::ReadArtifactResponse response;
    std::string content;
    while (reader->Read(&response)) content += response.chunk();
    EXPECT_TRUE(reader->Finish().ok());
    EXPECT_EQ(content, temp_.Read(absl::StrCat("out/", artifact.file())).substr(1))
        << artifact.file();
  }
}

TEST_F(GrpcServerTest, ARepeatedRequestIsAnsweredAlsoWhenItsOutputExists) {
  v1::CreateJobRequest request = Request("out");
  request.set_request_id("r-1");
  v1::CreateJobResponse first, second;
  grpc::ClientContext one, two, three;
  ASSERT_TRUE(jobs_->CreateJob(&one, request, &first).ok());
  EXPECT_EQ(Watch(first.job().job_id()), v1::JOB_STATE_SUCCEEDED);
  ASSERT_TRUE(jobs_->CreateJob(&two, request, &second).ok());
  EXPECT_TRUE(second.replayed());
  EXPECT_EQ(second.job().job_id(), first.job().job_id());
  request.set_request_id("r-2");
  EXPECT_EQ(jobs_->CreateJob(&three, request, &second).error_code(), StatusCode::ALREADY_EXISTS);
}

TEST_F(GrpcServerTest, ArtifactsAreReadWithinTheirBoundsOnly) {
  const std::string job_id = Succeeded("out");
  const auto code = [&](const std::string& file, int64_t offset, int64_t limit) {
    grpc::ClientContext call;
    v1::ReadArtifactRequest read;
    read.set_job_id(job_id);
    read.set_file(file);
    read.set_offset_bytes(offset);
    read.set_limit_bytes(limit);
    const auto reader = tensors_->ReadArtifact(&call, read);
    v1::ReadArtifactResponse response;
    while (reader->Read(&response)) {
    }
    return reader->Finish().error_code();
  };
  EXPECT_EQ(code("config.json", 0, 3), StatusCode::OK);
  EXPECT_EQ(code("config.json", -1, 0), StatusCode::OUT_OF_RANGE);
  EXPECT_EQ(code("config.json", 1 << 30, 0), StatusCode::OUT_OF_RANGE);
  EXPECT_EQ(code("config.json", 0, -1), StatusCode::OUT_OF_RANGE);
  EXPECT_EQ(code("../m/config.json", 0, 0), StatusCode::NOT_FOUND);
  EXPECT_EQ(code("absent", 0, 0), StatusCode::NOT_FOUND);
}

TEST_F(GrpcServerTest, UnknownJobsAreNotFound) {
  grpc::ClientContext get_call, watch_call;
  v1::GetJobRequest get;
  get.set_job_id("job-none");
  v1::GetJobResponse got;
  EXPECT_EQ(jobs_->GetJob(&get_call, get, &got).error_code(), StatusCode::NOT_FOUND);
  v1::WatchJobRequest watch;
  watch.set_job_id("job-none");
  const auto reader = jobs_->WatchJob(&watch_call, watch);
  v1::WatchJobResponse event;
  EXPECT_FALSE(reader->Read(&event));
  EXPECT_EQ(reader->Finish().error_code(), StatusCode::NOT_FOUND);
}

TEST_F(GrpcServerTest, PlansComeInPages) {
  v1::PlanJobRequest request;
  request.set_source_uri(temp_.Join("m"));
  request.set_page_size(4);
  v1::PlanJobResponse first, second;
  grpc::ClientContext one, two, three;
  ASSERT_TRUE(jobs_->PlanJob(&one, request, &first).ok());
  EXPECT_EQ(first.tensors_size(), 4);
  request.set_page_token(first.next_page_token());
  ASSERT_TRUE(jobs_->PlanJob(&two, request, &second).ok());
  EXPECT_EQ(second.tensors_size(), 2);
  EXPECT_EQ(second.next_page_token(), "");
  request.set_page_token("-1");
  EXPECT_EQ(jobs_->PlanJob(&three, request, &second).error_code(), StatusCode::INVALID_ARGUMENT);
}

TEST_F(GrpcServerTest, StreamedTensorsComeBackQuantized) {
  const TestTensor a = Bf16Tensor("a.weight", {64, 64}, 1),
                   b = Bf16Tensor("b.weight", {64, 128}, 2);
  std::vector<v1::QuantizeTensorsResponse> responses;
  const grpc::Status status = Stream({Recipe(), HeaderOf(a), Chunk(a.data.substr(0, 5000)),
                                      Chunk(a.data.substr(5000)), HeaderOf(b), Chunk(b.data)},
                                     &responses);
  ASSERT_TRUE(status.ok()) << status.error_message();
  std::vector<std::string> names;
  int64_t announced = 0, received = 0;
  for (const auto& response : responses) {
    if (response.has_result()) names.push_back(response.result().name());
    if (response.has_array()) announced += response.array().size_bytes();
    received += static_cast<int64_t>(response.chunk().size());
  }
  EXPECT_THAT(names, testing::UnorderedElementsAre("a.weight", "b.weight"));
  EXPECT_EQ(announced, received);
}

TEST_F(GrpcServerTest, StreamsOutOfOrderAreRefused) {
  const TestTensor a = Bf16Tensor("a.weight", {64, 64}, 1);
  const auto header = HeaderOf(a);
  const std::vector<std::vector<v1::QuantizeTensorsRequest>> wrong = {
      {header},                                              // no recipe
      {Chunk("x")},                                          // no recipe, no header
      {Recipe(), Chunk("x")},                                // no header
      {Recipe(), Recipe()},                                  // two recipes
      {Recipe(), header, header},                            // a tensor within a tensor
      {Recipe(), header},                                    // no bytes
      {Recipe(), header, Chunk(a.data.substr(1))},           // too few
      {Recipe(), header, Chunk(absl::StrCat(a.data, "x"))},  // too many
      {Recipe(), header, Chunk(a.data), Chunk("x")},         // after the end
      {Recipe(), v1::QuantizeTensorsRequest()},              // nothing
      {Recipe(), header, Chunk(std::string(kMaxClientChunkBytes + 1, 'x'))},
  };
  for (size_t i = 0; i < wrong.size(); ++i) {
    const grpc::Status status = Stream(wrong[i]);
    EXPECT_EQ(status.error_code(), StatusCode::INVALID_ARGUMENT) << i << status.error_message();
  }
  EXPECT_TRUE(Stream({Recipe(), header, Chunk(a.data)}).ok());  // the server is well
  EXPECT_TRUE(Stream({}).ok());
  EXPECT_EQ(budget_.held_bytes(), 0u);
}

TEST_F(GrpcServerTest, ANaNInAStreamNamesItsTensor) {
  TestTensor a = Bf16Tensor("a.weight", {64, 64}, 1);
  a.data[0] = static_cast<char>(0xC0);
  a.data[1] = 0x7F;
  const grpc::Status status = Stream({Recipe(), HeaderOf(a), Chunk(a.data)});
  EXPECT_EQ(status.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("a.weight"));
}

TEST_F(GrpcServerTest, AClientThatGoesAwayGivesItsMemoryBack) {
  const TestTensor a = Bf16Tensor("a.weight", {64, 64}, 1);
  {
    grpc::ClientContext call;
    const auto stream = tensors_->QuantizeTensors(&call);
    stream->Write(Recipe());
    stream->Write(HeaderOf(a));
    stream->Write(Chunk(a.data.substr(0, 10)));
    call.TryCancel();
    EXPECT_EQ(stream->Finish().error_code(), StatusCode::CANCELLED);
  }
  server_->Shutdown(absl::Seconds(5));
  EXPECT_EQ(budget_.held_bytes(), 0u);
  EXPECT_EQ(context_->tensor_streams, 0);
}

// It holds what it has, but does not stand in the line for more.
TEST_F(GrpcServerTest, AClientThatTakesNoResultsHoldsUpNobody) {
  // Three such tensors do not fit the budget, and their results not the window that stays small.
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 64 * 1024);
  const auto own = v1::TensorService::NewStub(
      grpc::CreateCustomChannel(absl::StrCat("127.0.0.1:", server_->port()),
                                grpc::InsecureChannelCredentials(), arguments));
  const TestTensor large = Bf16Tensor("large.weight", {1280, 1536}, 1);
  grpc::ClientContext call;
  const auto lazy = own->QuantizeTensors(&call);
  lazy->Write(Recipe());
  const auto send = [&] {
    lazy->Write(HeaderOf(large));
    for (size_t at = 0; at < large.data.size(); at += kMaxClientChunkBytes)
      lazy->Write(Chunk(large.data.substr(at, kMaxClientChunkBytes)));
  };
  for (int i = 0; i < 2; ++i) send();
  lazy->Write(HeaderOf(large));
  absl::SleepFor(absl::Milliseconds(300));
  // Two are there, and there is no room for the third.
  ASSERT_GT(budget_.held_bytes() * 3 / 2, budget_.budget_bytes());

  const TestTensor a = Bf16Tensor("a.weight", {64, 64}, 1);
  EXPECT_TRUE(Stream({Recipe(), HeaderOf(a), Chunk(a.data)}).ok());
  call.TryCancel();
  EXPECT_EQ(lazy->Finish().error_code(), StatusCode::CANCELLED);
  server_->Shutdown(absl::Seconds(5));
  EXPECT_EQ(budget_.held_bytes(), 0u);
}

TEST_F(GrpcServerTest, AMessageAboveTheLimitIsRefused) {
  const grpc::Status status = Stream({Chunk(std::string(kMaxMessageBytes + 1, 'x'))});
  EXPECT_EQ(status.error_code(), StatusCode::RESOURCE_EXHAUSTED);
}

TEST_F(GrpcServerTest, ADrainingServerTakesNoJobs) {
  context_->draining = true;
  grpc::ClientContext call;
  v1::CreateJobResponse response;
  EXPECT_EQ(jobs_->CreateJob(&call, Request("out"), &response).error_code(),
            StatusCode::UNAVAILABLE);
}

TEST_F(GrpcServerTest, ATakenPortIsRefused) {
  const auto second =
      GrpcServer::Start({"127.0.0.1", server_->port(), /*is_loopback=*/true}, *context_);
  EXPECT_TRUE(absl::IsUnavailable(second.status()));
}

// One request and one answer of any method, as bytes: for services whose messages this build has no
// classes for.
std::string RawCall(const std::shared_ptr<grpc::Channel>& channel, const std::string& method,
                    const std::string& request) {
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
  grpc::CompletionQueue queue;
  const auto step = [&queue] {
    void* tag = nullptr;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  };
  const auto call = stub.PrepareCall(&context, method, &queue);
  call->StartCall(nullptr);
  if (!step()) return "";
  const grpc::Slice slice(request);
  call->Write(grpc::ByteBuffer(&slice, 1), nullptr);
  if (!step()) return "";
  grpc::ByteBuffer answer;
  call->Read(&answer, nullptr);
  if (!step()) return "";
  std::vector<grpc::Slice> slices;
  std::string bytes;
  if (answer.Dump(&slices).ok()) {
    for (const grpc::Slice& part : slices) bytes.append(part.begin(), part.end());
  }
  context.TryCancel();
  return bytes;
}

TEST_F(GrpcServerTest, ReflectionListsTheServices) {
  const std::string list_services("\x3A\x00", 2);  // ServerReflectionRequest.list_services = ""
  const std::string answer = RawCall(
      channel_, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", list_services);
  EXPECT_THAT(answer, HasSubstr("sinq.v1.QuantizationService"));
  EXPECT_THAT(answer, HasSubstr("sinq.v1.TensorService"));
  EXPECT_THAT(answer, HasSubstr("grpc.health.v1.Health"));
}

TEST_F(GrpcServerTest, HealthTurnsToNotServingWhileCallsAreStillAnswered) {
  const std::string serving("\x08\x01", 2), not_serving("\x08\x02", 2);
  const std::string one_service = absl::StrCat("\x0A\x15", "sinq.v1.TensorService");
  for (const std::string& name : {std::string(), one_service}) {
    EXPECT_EQ(RawCall(channel_, "/grpc.health.v1.Health/Watch", name), serving);
  }
  server_->StopServing();
  for (const std::string& name : {std::string(), one_service}) {
    EXPECT_EQ(RawCall(channel_, "/grpc.health.v1.Health/Watch", name), not_serving);
  }
  EXPECT_TRUE(Stream({}).ok());
}

// The device takes two tensors and is lost with the third.
class DeviceGrpcServerTest : public GrpcServerTest {
 protected:
  DeviceGrpcServerTest() : GrpcServerTest(OneDevice(FakeDevice::LostAt(3))) {}
  std::string HealthOf(const std::string& service) {
    const std::string size(1, static_cast<char>(service.size()));
    return RawCall(channel_, "/grpc.health.v1.Health/Watch", absl::StrCat("\x0A", size, service));
  }
  v1::GetCapabilitiesResponse Capabilities() {
    grpc::ClientContext call;
    v1::GetCapabilitiesResponse response;
    EXPECT_TRUE(jobs_->GetCapabilities(&call, {}, &response).ok());
    return response;
  }
  const std::string serving_{"\x08\x01", 2}, not_serving_{"\x08\x02", 2};
};

TEST_F(DeviceGrpcServerTest, AStreamGoesOnWhenItsDeviceIsLost) {
  const TestTensor tensor = Bf16Tensor("a.weight", {64, 64}, 1);
  std::vector<std::string> results;
  for (int i = 0; i < 5; ++i) {
    std::vector<v1::QuantizeTensorsResponse> responses;
    const grpc::Status status =
        Stream({Recipe(), HeaderOf(tensor), Chunk(tensor.data)}, &responses);
    ASSERT_TRUE(status.ok()) << i << status.error_message();
    std::string& all = results.emplace_back();
    for (const auto& response : responses) all += response.SerializeAsString();
  }
  for (const std::string& result : results) EXPECT_EQ(result, results[0]);
  const std::string metrics = metrics_->Expose();
  EXPECT_THAT(metrics, HasSubstr("sinq_weights_quantized_total{backend=\"cuda\"} 8192"));
  EXPECT_THAT(metrics, HasSubstr("sinq_weights_quantized_total{backend=\"cpu\"} 12288"));
  EXPECT_EQ(budget_.held_bytes(), 0u);
}

TEST_F(DeviceGrpcServerTest, AJobSucceedsOnALostDeviceAndEverybodyCanSeeTheLoss) {
  EXPECT_EQ(HealthOf("device/cuda:0"), serving_);
  Succeeded("first");  // two matrices: all that the device does
  EXPECT_EQ(HealthOf("device/cuda:0"), serving_);
  Succeeded("second");
  for (const char* file : {"model-00001-of-00001.safetensors", "config.json"}) {
    EXPECT_EQ(temp_.Read(absl::StrCat("first/", file)), temp_.Read(absl::StrCat("second/", file)));
  }
  EXPECT_EQ(HealthOf("device/cuda:0"), not_serving_);
  EXPECT_EQ(HealthOf("device/cpu"), serving_);
  EXPECT_EQ(HealthOf("sinq.v1.QuantizationService"), serving_);
  EXPECT_EQ(RawCall(channel_, "/grpc.health.v1.Health/Watch", ""), serving_);
  const std::string metrics = metrics_->Expose();
  EXPECT_THAT(metrics, HasSubstr("sinq_device_errors_total{device=\"cuda:0\",kind=\"lost\"} 1"));
  EXPECT_THAT(metrics, HasSubstr("sinq_worker_state{pool=\"cuda\",state=\"unhealthy\"} 2"));
}

TEST_F(DeviceGrpcServerTest, CapabilitiesListTheCpuAndEachDevice) {
  const auto before = Capabilities();
  ASSERT_EQ(before.devices_size(), 2);
  EXPECT_EQ(before.devices(0).name(), "cpu");
  EXPECT_EQ(before.devices(0).backend(), "cpu");
  EXPECT_EQ(before.devices(1).name(), "cuda:0");
  EXPECT_EQ(before.devices(1).backend(), "cuda");
  EXPECT_EQ(before.devices(1).architecture(), "sm_fake");
  EXPECT_EQ(before.devices(1).workers(), 2);
  EXPECT_EQ(before.devices(1).memory_bytes(), 1000);
  EXPECT_TRUE(before.devices(1).healthy());
  Succeeded("first");
  Succeeded("second");
  EXPECT_FALSE(Capabilities().devices(1).healthy());
  EXPECT_TRUE(Capabilities().devices(0).healthy());
}

}  // namespace
}  // namespace sinq
