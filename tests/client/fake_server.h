// A sinqd in the test's process: scripted answers, and connections that break where the test says.
#ifndef SINQ_TESTS_CLIENT_FAKE_SERVER_H_
#define SINQ_TESTS_CLIENT_FAKE_SERVER_H_

#include <grpcpp/grpcpp.h>

#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "client/run.h"
#include "sinq/v1/quantization_service.grpc.pb.h"
#include "sinq/v1/tensor_service.grpc.pb.h"

namespace sinq::client {

// Set the fields before a call; read the records after it. Calls of one test come one after
// another.
class FakeJobs final : public v1::QuantizationService::Service {
 public:
  v1::Job job;  // what CreateJob and GetJob return
  std::vector<v1::JobEvent> events;
  int break_after_events =
      0;  // a WatchJob stream ends with UNAVAILABLE after so many events; 0: never
  bool hang_at_end = false;        // WatchJob does not end before the client does
  int failures_before_create = 0;  // CreateJob answers UNAVAILABLE so often first
  std::vector<v1::CreateJobRequest> creates;
  std::vector<int64_t> watched_after;

  grpc::Status CreateJob(grpc::ServerContext*, const v1::CreateJobRequest* request,
                         v1::CreateJobResponse* response) override;
  grpc::Status GetJob(grpc::ServerContext*, const v1::GetJobRequest* request,
                      v1::GetJobResponse* response) override;
  grpc::Status WatchJob(grpc::ServerContext* context, const v1::WatchJobRequest* request,
                        grpc::ServerWriter<v1::WatchJobResponse>* writer) override;
  grpc::Status PlanJob(grpc::ServerContext*, const v1::PlanJobRequest* request,
                       v1::PlanJobResponse* response) override;
};

class FakeTensors final : public v1::TensorService::Service {
 public:
  std::string content;  // of the only artifact, "model.safetensors"
  std::string sha256;
  int64_t break_after_bytes =
      0;  // each ReadArtifact stream ends with UNAVAILABLE after so many bytes; 0: never
  std::vector<int64_t> read_offsets;
  std::string refuse_tensor;  // QuantizeTensors answers INVALID_ARGUMENT when this one comes

  grpc::Status ListArtifacts(grpc::ServerContext*, const v1::ListArtifactsRequest*,
                             v1::ListArtifactsResponse* response) override;
  grpc::Status ReadArtifact(grpc::ServerContext*, const v1::ReadArtifactRequest* request,
                            grpc::ServerWriter<v1::ReadArtifactResponse>* writer) override;
  // "Quantizes" to the tensor's own bytes, in the reverse order of arrival.
  grpc::Status QuantizeTensors(
      grpc::ServerContext*,
      grpc::ServerReaderWriter<v1::QuantizeTensorsResponse, v1::QuantizeTensorsRequest>* stream)
      override;
};

class FakeServer {
 public:
  FakeServer();
  ~FakeServer();
  FakeJobs jobs;
  FakeTensors tensors;

  struct Result {
    int exit_code;
    std::string out, err;
  };
  // Runs sinqctl against this server.
  Result Run(std::vector<std::string> arguments);
  CancelToken cancel;

 private:
  std::unique_ptr<grpc::Server> server_;
  int port_ = 0;
};

v1::JobEvent Event(int64_t sequence, v1::JobState state, int64_t bytes_done);

}  // namespace sinq::client

#endif  // SINQ_TESTS_CLIENT_FAKE_SERVER_H_
