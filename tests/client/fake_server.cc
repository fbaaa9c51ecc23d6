#include "tests/client/fake_server.h"

#include <grpc/grpc.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace sinq::client {

grpc::Status FakeJobs::CreateJob(grpc::ServerContext*, const v1::CreateJobRequest* request,
                                 v1::CreateJobResponse* response) {
  creates.push_back(*request);
  if (static_cast<int>(creates.size()) <= failures_before_create) {
    return {grpc::StatusCode::UNAVAILABLE, "starting"};
  }
  *response->mutable_job() = job;
  return grpc::Status::OK;
}

grpc::Status FakeJobs::GetJob(grpc::ServerContext*, const v1::GetJobRequest* request,
                              v1::GetJobResponse* response) {
  if (request->job_id() != job.job_id())
    return {grpc::StatusCode::NOT_FOUND, "There is no such job."};
  *response->mutable_job() = job;
  return grpc::Status::OK;
}

grpc::Status FakeJobs::WatchJob(grpc::ServerContext* context, const v1::WatchJobRequest* request,
                                grpc::ServerWriter<v1::WatchJobResponse>* writer) {
  watched_after.push_back(request->after_sequence());
  int sent = 0;
  for (const v1::JobEvent& event : events) {
    if (event.sequence() <= request->after_sequence()) continue;
    if (break_after_events > 0 && sent == break_after_events)
      return {grpc::StatusCode::UNAVAILABLE, "cut"};
    v1::WatchJobResponse response;
    *response.mutable_event() = event;
    writer->Write(response);
    ++sent;
  }
  while (hang_at_end && !context->IsCancelled()) absl::SleepFor(absl::Milliseconds(5));
  return grpc::Status::OK;
}

grpc::Status FakeJobs::PlanJob(grpc::ServerContext*, const v1::PlanJobRequest* request,
                               v1::PlanJobResponse* response) {
  // Two pages of one tensor each.
  const bool first = request->page_token().empty();
  response->add_tensors()->set_name(first ? "one" : "two");
  response->mutable_tensors(0)->set_action(v1::TENSOR_ACTION_QUANTIZE);
  if (first) response->set_next_page_token("2");
  return grpc::Status::OK;
}

grpc::Status FakeTensors::ListArtifacts(grpc::ServerContext*, const v1::ListArtifactsRequest*,
                                        v1::ListArtifactsResponse* response) {
  v1::Artifact* artifact = response->add_artifacts();
  artifact->set_file("model.safetensors");
  artifact->set_size_bytes(static_cast<int64_t>(content.size()));
  artifact->set_sha256(sha256);
  return grpc::Status::OK;
}

grpc::Status FakeTensors::ReadArtifact(grpc::ServerContext*, const v1::ReadArtifactRequest* request,
                                       grpc::ServerWriter<v1::ReadArtifactResponse>* writer) {
  constexpr int64_t kChunk = 10;
  read_offsets.push_back(request->offset_bytes());
  const auto size = static_cast<int64_t>(content.size());
  for (int64_t at = request->offset_bytes(); at < size; at += kChunk) {
    if (break_after_bytes > 0 && at - request->offset_bytes() >= break_after_bytes) {
      return {grpc::StatusCode::UNAVAILABLE, "cut"};
    }
    v1::ReadArtifactResponse response;
    response.set_chunk(content.substr(static_cast<size_t>(at), kChunk));
    response.set_offset_bytes(at);
    response.set_file_size_bytes(size);
    writer->Write(response);
  }
  return grpc::Status::OK;
}

grpc::Status FakeTensors::QuantizeTensors(
    grpc::ServerContext*,
    grpc::ServerReaderWriter<v1::QuantizeTensorsResponse, v1::QuantizeTensorsRequest>* stream) {
  std::vector<std::pair<v1::TensorHeader, std::string>> tensors;
  v1::QuantizeTensorsRequest request;
  while (stream->Read(&request)) {
    if (request.has_header()) tensors.emplace_back(request.header(), "");
    if (request.has_chunk()) tensors.back().second += request.chunk();
    if (request.has_header() && request.header().name() == refuse_tensor) {
      return {grpc::StatusCode::INVALID_ARGUMENT,
              absl::StrCat("Tensor ", refuse_tensor, " holds a NaN.")};
    }
  }
  std::reverse(tensors.begin(), tensors.end());
  for (const auto& [header, bytes] : tensors) {
    const std::string layer = header.name().substr(0, header.name().rfind('.'));
    v1::QuantizeTensorsResponse response;
    response.mutable_result()->set_name(header.name());
    response.mutable_result()->set_array_count(1);
    response.mutable_result()->set_sidecar_json(R"({"meta": {"nbits": 4}})");
    stream->Write(response);
    response.mutable_array()->set_name(layer + ".W_q");
    response.mutable_array()->set_dtype("U8");
    response.mutable_array()->add_shape(static_cast<int64_t>(bytes.size()));
    response.mutable_array()->set_size_bytes(static_cast<int64_t>(bytes.size()));
    stream->Write(response);
    response.set_chunk(bytes.substr(0, bytes.size() / 2));
    stream->Write(response);
    response.set_chunk(bytes.substr(bytes.size() / 2));
    stream->Write(response);
  }
  return grpc::Status::OK;
}

FakeServer::FakeServer() {
  grpc_init();  // as in client.cc: the library stays up between tests
  grpc::EnableDefaultHealthCheckService(true);
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
  builder.RegisterService(&jobs);
  builder.RegisterService(&tensors);
  server_ = builder.BuildAndStart();
}

FakeServer::~FakeServer() { server_->Shutdown(absl::ToChronoTime(absl::Now())); }

FakeServer::Result FakeServer::Run(std::vector<std::string> arguments) {
  arguments.push_back("--server");
  arguments.push_back(absl::StrCat("127.0.0.1:", port_));
  std::ostringstream out, err;
  const int exit_code = client::Run(arguments, out, err, Terminal(), cancel);
  return {exit_code, out.str(), err.str()};
}

v1::JobEvent Event(int64_t sequence, v1::JobState state, int64_t bytes_done) {
  v1::JobEvent event;
  event.set_sequence(sequence);
  event.set_state(state);
  event.mutable_progress()->set_stage(v1::JOB_STAGE_QUANTIZE);
  event.mutable_progress()->set_bytes_done(bytes_done);
  event.mutable_progress()->set_bytes_total(100);
  return event;
}

}  // namespace sinq::client
