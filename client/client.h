// Typed calls to a sinqd: idempotent calls are repeated when the server cannot be reached, streams
// go on where they broke.
#ifndef SINQ_CLIENT_CLIENT_H_
#define SINQ_CLIENT_CLIENT_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "client/backoff.h"
#include "client/cancel_token.h"
#include "sinq/v1/quantization_service.pb.h"
#include "sinq/v1/tensor_service.pb.h"

namespace sinq::client {

// Told before each wait: what went wrong and how long the client will wait.
using RetryNotice = std::function<void(const absl::Status& why, absl::Duration wait)>;

struct ClientOptions {
  std::string server = "127.0.0.1:7461";
  // Calls end with DeadlineExceeded then. Nothing on the server is stopped by it.
  absl::Time deadline = absl::InfiniteFuture();
  // Attempts of an idempotent call, and of a stream without progress between them.
  int max_attempts = 5;
  BackoffPolicy backoff;
  RetryNotice on_retry;
};

// A QuantizeTensors stream. One thread may write while another reads; Finish after both have ended.
// Cancel from any thread.
class TensorStream {
 public:
  virtual ~TensorStream() = default;
  // False: the stream is broken, Finish tells why.
  virtual bool Write(const v1::QuantizeTensorsRequest& request) = 0;
  virtual bool WritesDone() = 0;
  // False: no more responses, Finish tells why.
  virtual bool Read(v1::QuantizeTensorsResponse* response) = 0;
  virtual absl::Status Finish() = 0;
  virtual void Cancel() = 0;
};

// Statuses of calls have the server's code and message, and its google.rpc.Status as payload
// (error_details.h reads it). Thread-safe. `cancel` must outlive the client; once it is cancelled
// every call returns Cancelled.
class Client {
 public:
  Client(ClientOptions options, CancelToken& cancel);
  ~Client();

  // Repeated only when the request has a request_id.
  absl::StatusOr<v1::CreateJobResponse> CreateJob(const v1::CreateJobRequest& request);
  absl::StatusOr<v1::Job> GetJob(const std::string& job_id);
  absl::StatusOr<v1::ListJobsResponse> ListJobs(const v1::ListJobsRequest& request);
  absl::StatusOr<v1::CancelJobResponse> CancelJob(const std::string& job_id);
  absl::Status DeleteJob(const std::string& job_id);
  // All pages, merged.
  absl::StatusOr<v1::PlanJobResponse> PlanJob(v1::PlanJobRequest request);
  absl::StatusOr<v1::GetCapabilitiesResponse> GetCapabilities();
  absl::StatusOr<v1::ListArtifactsResponse> ListArtifacts(const std::string& job_id);
  // grpc.health.v1 status by name: "SERVING", "NOT_SERVING", ...
  absl::StatusOr<std::string> CheckHealth(const std::string& service);

  // Calls `on_event` for each event after `after_sequence`, once and in order, up to the one of a
  // final state; OK then. Reconnects for ever while the server cannot be reached if `patient`;
  // otherwise until max_attempts in a row failed.
  absl::Status WatchJob(const std::string& job_id, int64_t after_sequence, bool patient,
                        const std::function<void(const v1::JobEvent&)>& on_event);
  // The bytes of a file from `offset_bytes` to its end, in order and without gaps, across broken
  // connections.
  absl::Status ReadArtifact(const std::string& job_id, const std::string& file,
                            int64_t offset_bytes,
                            const std::function<absl::Status(absl::string_view)>& on_bytes);
  // Lives no longer than the client.
  std::unique_ptr<TensorStream> OpenTensorStream();

 private:
  struct Stubs;
  template <typename Request, typename Response, typename Method>
  absl::StatusOr<Response> Call(Method method, const Request& request, bool repeat);
  absl::Status Wait(Backoff& backoff, const absl::Status& why);
  absl::Status WatchOnce(const std::string& job_id, int64_t& last, bool& final_seen,
                         const std::function<void(const v1::JobEvent&)>& on_event);
  absl::Status ReadOnce(const std::string& job_id, const std::string& file, int64_t& offset,
                        absl::Status& local,
                        const std::function<absl::Status(absl::string_view)>& on_bytes);

  const ClientOptions options_;
  CancelToken& cancel_;
  const std::unique_ptr<Stubs> stubs_;
};

bool IsFinal(v1::JobState state);

}  // namespace sinq::client

#endif  // SINQ_CLIENT_CLIENT_H_
