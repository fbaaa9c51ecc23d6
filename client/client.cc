#include "client/client.h"

#include <grpc/grpc.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/error_details.h"
#include "client/health_check.h"
#include "sinq/v1/quantization_service.grpc.pb.h"
#include "sinq/v1/tensor_service.grpc.pb.h"

namespace sinq::client {
namespace {

// Plan pages hold up to 10,000 tensors; everything else is about 1 MiB.
constexpr int kMaxReceiveBytes = 64 * 1024 * 1024;
// The largest plan has a million tensors in pages of 10,000; more pages mean a token that never
// ends.
constexpr int kMaxPages = 1000;

std::shared_ptr<grpc::Channel> MakeChannel(const std::string& server) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxReceiveBytes);
  // An http_proxy variable is meant for the web, not for a service on the loopback or the local
  // network.
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  // The client decides when to try again; gRPC's own waiting must not make those attempts fail
  // unmade.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  // In spite of its name this is the time that a connection attempt may take.
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 5000);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2000);
  // Without this the process shares connections between clients of the same address, also dead
  // ones.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return grpc::CreateCustomChannel(server, grpc::InsecureChannelCredentials(), arguments);
}

// A context that ends with the client's deadline and with the token.
class CallContext {
 public:
  CallContext(absl::Time deadline, CancelToken& cancel)
      : scope_(cancel, [this] { context_.TryCancel(); }) {
    if (deadline != absl::InfiniteFuture()) context_.set_deadline(absl::ToChronoTime(deadline));
  }
  grpc::ClientContext* get() { return &context_; }

 private:
  grpc::ClientContext context_;
  CancelToken::Scope scope_;
};

class GrpcTensorStream final : public TensorStream {
 public:
  GrpcTensorStream(v1::TensorService::Stub& stub, absl::Time deadline, CancelToken& cancel)
      : context_(deadline, cancel), stream_(stub.QuantizeTensors(context_.get())) {}
  bool Write(const v1::QuantizeTensorsRequest& request) override { return stream_->Write(request); }
  bool WritesDone() override { return stream_->WritesDone(); }
  bool Read(v1::QuantizeTensorsResponse* response) override { return stream_->Read(response); }
  absl::Status Finish() override { return FromGrpc(stream_->Finish()); }
  void Cancel() override { context_.get()->TryCancel(); }

 private:
  CallContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::QuantizeTensorsRequest, v1::QuantizeTensorsResponse>>
      stream_;
};

}  // namespace

bool IsFinal(v1::JobState state) {
  return state == v1::JOB_STATE_SUCCEEDED || state == v1::JOB_STATE_FAILED ||
         state == v1::JOB_STATE_CANCELLED || state == v1::JOB_STATE_EXPIRED;
}

struct Client::Stubs {
  explicit Stubs(const std::string& server)
      : channel(MakeChannel(server)), jobs(channel), tensors(channel) {
    // Never undone: gRPC's shutdown sometimes waits 10 s for a sleeping poller, and the process is
    // about to end.
    grpc_init();
  }
  std::shared_ptr<grpc::Channel> channel;
  v1::QuantizationService::Stub jobs;
  v1::TensorService::Stub tensors;
};

Client::Client(ClientOptions options, CancelToken& cancel)
    : options_(std::move(options)),
      cancel_(cancel),
      stubs_(std::make_unique<Stubs>(options_.server)) {}

Client::~Client() = default;

absl::Status Client::Wait(Backoff& backoff, const absl::Status& why) {
  const absl::Duration wait = backoff.Next();
  if (options_.on_retry) options_.on_retry(why, wait);
  const absl::Duration left = options_.deadline - absl::Now();
  if (!cancel_.SleepFor(std::min(wait, left))) return absl::CancelledError("Interrupted.");
  if (left <= wait) {
    return absl::DeadlineExceededError(
        absl::StrCat("Timed out; the last attempt failed with: ", why.message()));
  }
  return absl::OkStatus();
}

template <typename Request, typename Response, typename Method>
absl::StatusOr<Response> Client::Call(Method method, const Request& request, bool repeat) {
  Backoff backoff(options_.backoff);
  for (int attempt = 1;; ++attempt) {
    CallContext context(options_.deadline, cancel_);
    Response response;
    const absl::Status status = FromGrpc(method(context.get(), request, &response));
    if (status.ok()) return response;
    if (cancel_.cancelled()) return absl::CancelledError("Interrupted.");
    if (!repeat || !IsRetryable(status) || attempt >= options_.max_attempts) return status;
    if (absl::Status waited = Wait(backoff, status); !waited.ok()) return waited;
  }
}

absl::StatusOr<v1::CreateJobResponse> Client::CreateJob(const v1::CreateJobRequest& request) {
  return Call<v1::CreateJobRequest, v1::CreateJobResponse>(
      [this](auto* c, auto& q, auto* r) { return stubs_->jobs.CreateJob(c, q, r); }, request,
      !request.request_id().empty());
}

absl::StatusOr<v1::Job> Client::GetJob(const std::string& job_id) {
  v1::GetJobRequest request;
  request.set_job_id(job_id);
  auto response = Call<v1::GetJobRequest, v1::GetJobResponse>(
      [this](auto* c, auto& q, auto* r) { return stubs_->jobs.GetJob(c, q, r); }, request, true);
  if (!response.ok()) return response.status();
  return response->job();
}

absl::StatusOr<v1::ListJobsResponse> Client::ListJobs(const v1::ListJobsRequest& request) {
  return Call<v1::ListJobsRequest, v1::ListJobsResponse>(
      [this](auto* c, auto& q, auto* r) { return stubs_->jobs.ListJobs(c, q, r); }, request, true);
}

absl::StatusOr<v1::CancelJobResponse> Client::CancelJob(const std::string& job_id) {
  v1::CancelJobRequest request;
  request.set_job_id(job_id);
  return Call<v1::CancelJobRequest, v1::CancelJobResponse>(
      [this](auto* c, auto& q, auto* r) { return stubs_->jobs.CancelJob(c, q, r); }, request, true);
}

absl::Status Client::DeleteJob(const std::string& job_id) {
  v1::DeleteJobRequest request;
  request.set_job_id(job_id);
  int calls = 0;
  const auto response = Call<v1::DeleteJobRequest, v1::DeleteJobResponse>(
      [this, &calls](auto* c, auto& q, auto* r) {
        ++calls;
        return stubs_->jobs.DeleteJob(c, q, r);
      },
      request, true);
  // The first attempt may have deleted it before the connection broke.
  if (calls > 1 && absl::IsNotFound(response.status())) return absl::OkStatus();
  return response.status();
}

absl::StatusOr<v1::PlanJobResponse> Client::PlanJob(v1::PlanJobRequest request) {
  v1::PlanJobResponse plan;
  for (int page = 0; page < kMaxPages; ++page) {
    auto response = Call<v1::PlanJobRequest, v1::PlanJobResponse>(
        [this](auto* c, auto& q, auto* r) { return stubs_->jobs.PlanJob(c, q, r); }, request, true);
    if (!response.ok()) return response.status();
    const std::string token = response->next_page_token();
    if (page == 0) {
      plan = *std::move(response);
    } else {
      plan.mutable_tensors()->MergeFrom(response->tensors());
    }
    if (token.empty()) {
      plan.clear_next_page_token();
      return plan;
    }
    request.set_page_token(token);
  }
  return absl::InternalError(
      absl::StrCat("The server's plan has more than ", kMaxPages, " pages."));
}

absl::StatusOr<v1::GetCapabilitiesResponse> Client::GetCapabilities() {
  return Call<v1::GetCapabilitiesRequest, v1::GetCapabilitiesResponse>(
      [this](auto* c, auto& q, auto* r) { return stubs_->jobs.GetCapabilities(c, q, r); },
      v1::GetCapabilitiesRequest(), true);
}

absl::StatusOr<v1::ListArtifactsResponse> Client::ListArtifacts(const std::string& job_id) {
  v1::ListArtifactsRequest request;
  request.set_job_id(job_id);
  return Call<v1::ListArtifactsRequest, v1::ListArtifactsResponse>(
      [this](auto* c, auto& q, auto* r) { return stubs_->tensors.ListArtifacts(c, q, r); }, request,
      true);
}

absl::StatusOr<std::string> Client::CheckHealth(const std::string& service) {
  return Call<std::string, std::string>(
      [this](auto* c, auto& q, auto* r) { return HealthCheck(stubs_->channel, c, q, r); }, service,
      true);
}

absl::Status Client::WatchOnce(const std::string& job_id, int64_t& last, bool& final_seen,
                               const std::function<void(const v1::JobEvent&)>& on_event) {
  v1::WatchJobRequest request;
  request.set_job_id(job_id);
  request.set_after_sequence(last);
  CallContext context(options_.deadline, cancel_);
  const auto reader = stubs_->jobs.WatchJob(context.get(), request);
  v1::WatchJobResponse response;
  while (reader->Read(&response)) {
    const v1::JobEvent& event = response.event();
    if (event.sequence() <= last) continue;
    last = event.sequence();
    final_seen = IsFinal(event.state());
    on_event(event);
  }
  return FromGrpc(reader->Finish());
}

absl::Status Client::WatchJob(const std::string& job_id, int64_t after_sequence, bool patient,
                              const std::function<void(const v1::JobEvent&)>& on_event) {
  Backoff backoff(options_.backoff);
  int64_t last = after_sequence;
  for (int failures = 0;;) {
    const int64_t before = last;
    bool final_seen = false;
    absl::Status status = WatchOnce(job_id, last, final_seen, on_event);
    if (final_seen) return absl::OkStatus();
    if (cancel_.cancelled()) return absl::CancelledError("Interrupted.");
    if (status.ok()) {
      // Either the job had ended before `after_sequence`, or the server stopped sending because it
      // drains.
      const auto job = GetJob(job_id);
      if (job.ok() && IsFinal(job->state())) return absl::OkStatus();
      status = job.ok() ? absl::UnavailableError("The event stream ended before the job did.")
                        : job.status();
    }
    if (!IsBrokenStream(status)) return status;
    if (last > before) {
      failures = 0;
      backoff.Reset();
    }
    ++failures;
    const bool may_wait = patient && IsRetryable(status);
    if (!may_wait && failures >= options_.max_attempts) return status;
    if (absl::Status waited = Wait(backoff, status); !waited.ok()) return waited;
  }
}

absl::Status Client::ReadOnce(const std::string& job_id, const std::string& file, int64_t& offset,
                              absl::Status& local,
                              const std::function<absl::Status(absl::string_view)>& on_bytes) {
  v1::ReadArtifactRequest request;
  request.set_job_id(job_id);
  request.set_file(file);
  request.set_offset_bytes(offset);
  CallContext context(options_.deadline, cancel_);
  const auto reader = stubs_->tensors.ReadArtifact(context.get(), request);
  v1::ReadArtifactResponse response;
  while (local.ok() && reader->Read(&response)) {
    if (response.offset_bytes() != offset) {
      local =
          absl::DataLossError(absl::StrCat("The server sent byte ", response.offset_bytes(), " of ",
                                           file, " where byte ", offset, " was expected."));
    } else {
      local = on_bytes(response.chunk());
      offset += static_cast<int64_t>(response.chunk().size());
    }
  }
  if (!local.ok()) context.get()->TryCancel();
  return FromGrpc(reader->Finish());
}

absl::Status Client::ReadArtifact(const std::string& job_id, const std::string& file,
                                  int64_t offset_bytes,
                                  const std::function<absl::Status(absl::string_view)>& on_bytes) {
  Backoff backoff(options_.backoff);
  int64_t offset = offset_bytes;
  for (int failures = 0;;) {
    const int64_t before = offset;
    absl::Status local;
    const absl::Status status = ReadOnce(job_id, file, offset, local, on_bytes);
    if (!local.ok()) return local;
    if (status.ok()) return status;
    if (cancel_.cancelled()) return absl::CancelledError("Interrupted.");
    if (offset > before) {
      failures = 0;
      backoff.Reset();
    }
    if (!IsBrokenStream(status) || ++failures >= options_.max_attempts) return status;
    if (absl::Status waited = Wait(backoff, status); !waited.ok()) return waited;
  }
}

std::unique_ptr<TensorStream> Client::OpenTensorStream() {
  return std::make_unique<GrpcTensorStream>(stubs_->tensors, options_.deadline, cancel_);
}

}  // namespace sinq::client
