#include "server/rpc/quantization_service.h"

#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "server/base/error.h"
#include "server/base/limits.h"
#include "server/export/exporter.h"
#include "server/rpc/admission.h"
#include "server/rpc/convert.h"
#include "server/rpc/unary.h"
#include "server/rpc/watch_reactor.h"

namespace sinq {
namespace {

constexpr int kMaxPlanPage = 10'000;
constexpr size_t kMaxFoldRefusals = 100;  // as the proto documents
constexpr size_t kPlanPageBytes =
    kMaxMessageBytes / 2;  // room for the files and for one last large tensor

// The largest job (a recipe full of expressions) has some 200 KiB: this many fit beside so much.
constexpr int kJobsAtOnce = 10;
constexpr size_t kListPageBytes = kMaxMessageBytes / 4;

absl::Status Draining() {
  return MakeError(absl::StatusCode::kUnavailable, Reason::kDraining,
                   "The server is shutting down and takes no new jobs.", {}, absl::Seconds(5));
}

void CountSubmission(ServiceContext& context, const JobSpec& spec, const char* outcome) {
  kernels::Method method;
  const bool known = kernels::ParseMethod(spec.method, &method);
  context.metrics.Add(
      "sinq_jobs_submitted_total", 1,
      {{"source", "file"}, {"method", known ? spec.method : "other"}, {"outcome", outcome}});
}

absl::Status Reject(ServiceContext& context, const JobSpec& spec, const absl::Status& status) {
  CountSubmission(context, spec, "rejected");
  context.metrics.Add("sinq_jobs_rejected_total", 1,
                      {{"reason", std::string(ReasonName(GetErrorDetails(status).reason))}});
  return status;
}

// A repetition is answered from the store, without a plan: by now its source may have moved, or its
// output exist.
absl::StatusOr<CreateResult> FirstOrNew(ServiceContext& context, const JobSpec& spec,
                                        const std::string& request_id) {
  if (!request_id.empty()) {
    absl::StatusOr<CreateResult> first = context.store.FindRequest(spec, request_id);
    if (!absl::IsNotFound(first.status())) return first;
  }
  const absl::StatusOr<Plan> plan = PlanFor(context, spec, /*needs_output=*/true);
  if (!plan.ok()) return plan.status();
  return context.store.Create(spec, request_id);
}

absl::Status Create(ServiceContext& context, const sinq::v1::CreateJobRequest& request,
                    sinq::v1::CreateJobResponse* response) {
  if (context.draining) return Draining();
  const JobSpec spec = ToJobSpec(request.source_uri(), request.output_uri(), request.recipe());
  absl::Status status = CheckRequestId(request.request_id());
  if (status.ok()) status = ValidateJobSpec(spec, /*needs_output=*/true);
  if (!status.ok()) return Reject(context, spec, status);
  absl::StatusOr<CreateResult> result = FirstOrNew(context, spec, request.request_id());
  if (!result.ok()) return Reject(context, spec, result.status());
  CountSubmission(context, spec, result->replayed ? "deduplicated" : "accepted");
  *response->mutable_job() = ToProto(result->job);
  response->set_replayed(result->replayed);
  return absl::OkStatus();
}

absl::StatusOr<size_t> PageStart(const std::string& token) {
  size_t start = 0;
  if (token.empty() || absl::SimpleAtoi(token, &start)) return start;
  return MakeError(absl::StatusCode::kInvalidArgument, Reason::kInvalidArgument,
                   "page_token is not one of this server's.", {{"field", "page_token"}});
}

absl::Status FillPlan(const Plan& plan, const sinq::v1::PlanJobRequest& request,
                      sinq::v1::PlanJobResponse* response) {
  const absl::StatusOr<size_t> start = PageStart(request.page_token());
  if (!start.ok()) return start.status();
  const size_t page = request.page_size() > 0
                          ? static_cast<size_t>(std::min(request.page_size(), kMaxPlanPage))
                          : kMaxPlanPage;
  size_t bytes = 0, i = *start;
  for (; i < plan.tensors.size() && i < *start + page && bytes < kPlanPageBytes; ++i) {
    *response->add_tensors() = ToProto(plan.tensors[i], plan);
    bytes += response->tensors(response->tensors_size() - 1).ByteSizeLong();
  }
  if (i < plan.tensors.size()) response->set_next_page_token(absl::StrCat(i));
  for (size_t file = 0; *start == 0 && file < plan.files.size(); ++file) {
    response->add_files()->set_name(plan.files[file].name);
    response->mutable_files(static_cast<int>(file))
        ->set_size_bytes(static_cast<int64_t>(plan.files[file].size_bytes));
  }
  if (*start == 0) {
    for (const std::string& note : FoldNotes(plan.fold, kMaxFoldRefusals))
      response->add_fold_notes(note);
  }
  response->set_source_bytes(static_cast<int64_t>(plan.source_bytes));
  response->set_output_bytes(static_cast<int64_t>(plan.output_bytes));
  response->set_peak_memory_bytes(static_cast<int64_t>(plan.peak_memory_bytes));
  response->set_disk_bytes(static_cast<int64_t>(plan.disk_bytes));
  response->set_quantized_weights(static_cast<int64_t>(plan.quantized_weights));
  response->set_effective_bits(plan.effective_bits);
  response->set_digest(plan.digest);
  return absl::OkStatus();
}

absl::Status List(ServiceContext& context, const sinq::v1::ListJobsRequest& request,
                  sinq::v1::ListJobsResponse* response) {
  absl::StatusOr<std::vector<JobState>> states = ParseListFilter(request.filter());
  if (!states.ok()) return states.status();
  if (request.page_size() < 0) {
    return MakeError(absl::StatusCode::kInvalidArgument, Reason::kInvalidArgument,
                     "page_size must not be negative.", {{"field", "page_size"}});
  }
  const int page_size =
      request.page_size() > 0 ? std::min(request.page_size(), kMaxPageSize) : kDefaultPageSize;
  ListQuery query{*std::move(states), 0, request.page_token()};
  do {
    query.page_size = std::min(kJobsAtOnce, page_size - response->jobs_size());
    const absl::StatusOr<ListResult> result = context.store.List(query);
    if (!result.ok()) return result.status();
    for (const Job& job : result->jobs) *response->add_jobs() = ToProto(job);
    query.page_token = result->next_page_token;
  } while (!query.page_token.empty() && response->jobs_size() < page_size &&
           response->ByteSizeLong() < kListPageBytes);
  response->set_next_page_token(query.page_token);
  return absl::OkStatus();
}

void FillCapabilities(const ServiceContext& context, sinq::v1::GetCapabilitiesResponse* response) {
  response->set_version(context.version);
  for (const WorkerStatus& worker : context.workers.Workers()) {
    sinq::v1::Device* device = response->add_devices();
    device->set_backend(worker.kind);
    device->set_architecture(worker.architecture);
    device->set_workers(worker.threads);
    device->set_name(worker.name);
    device->set_memory_bytes(static_cast<int64_t>(worker.stats.total_bytes));
    device->set_healthy(worker.healthy);
  }
  for (const absl::string_view method : kernels::MethodNames())
    response->add_methods(std::string(method));
  for (const char* profile : {"default", "upstream"}) response->add_profiles(profile);
  for (const absl::string_view format : WrittenFormats())
    response->add_formats(std::string(format));
  response->set_default_format(DefaultFormat());
  for (const char* tiling : {"1D", "2D"}) response->add_tilings(tiling);
  for (const int bits : {2, 3, 4, 5, 6, 8}) response->add_bits(bits);
  for (const int group : {32, 64, 128}) response->add_group_sizes(group);
  for (const char* dtype : {"BF16", "F16", "F32", "F8_E4M3"}) response->add_input_dtypes(dtype);
  for (const char* aux : {"u8", "f16", "bf16", "f32"}) response->add_aux(aux);
  for (const char* scheme : {"file", "stream"}) response->add_source_schemes(scheme);
  response->set_memory_budget_bytes(static_cast<int64_t>(context.budget.budget_bytes()));
  for (const LimitInfo& info : AllLimits()) {
    sinq::v1::Limit* limit = response->add_limits();
    limit->set_name(info.name);
    limit->set_value(static_cast<int64_t>(info.value));
    limit->set_derivation(info.derivation);
  }
}

}  // namespace

grpc::ServerUnaryReactor* QuantizationServiceImpl::CreateJob(
    grpc::CallbackServerContext* call, const sinq::v1::CreateJobRequest* request,
    sinq::v1::CreateJobResponse* response) {
  return RunUnary(context_, call, "CreateJob",
                  [this, request, response] { return Create(context_, *request, response); });
}

grpc::ServerUnaryReactor* QuantizationServiceImpl::GetJob(grpc::CallbackServerContext* call,
                                                          const sinq::v1::GetJobRequest* request,
                                                          sinq::v1::GetJobResponse* response) {
  return RunUnary(context_, call, "GetJob", [this, request, response]() -> absl::Status {
    const absl::StatusOr<Job> job = context_.store.Get(request->job_id());
    if (job.ok()) *response->mutable_job() = ToProto(*job);
    return job.status();
  });
}

grpc::ServerUnaryReactor* QuantizationServiceImpl::ListJobs(
    grpc::CallbackServerContext* call, const sinq::v1::ListJobsRequest* request,
    sinq::v1::ListJobsResponse* response) {
  return RunUnary(context_, call, "ListJobs",
                  [this, request, response] { return List(context_, *request, response); });
}

grpc::ServerWriteReactor<sinq::v1::WatchJobResponse>* QuantizationServiceImpl::WatchJob(
    grpc::CallbackServerContext*, const sinq::v1::WatchJobRequest* request) {
  return WatchReactor::Start(context_, *request);
}

grpc::ServerUnaryReactor* QuantizationServiceImpl::CancelJob(
    grpc::CallbackServerContext* call, const sinq::v1::CancelJobRequest* request,
    sinq::v1::CancelJobResponse* response) {
  return RunUnary(context_, call, "CancelJob", [this, request, response]() -> absl::Status {
    const absl::StatusOr<Job> job = context_.store.RequestCancel(request->job_id());
    if (!job.ok()) return job.status();
    context_.scheduler.Wake(request->job_id());
    *response->mutable_job() = ToProto(*job);
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* QuantizationServiceImpl::DeleteJob(
    grpc::CallbackServerContext* call, const sinq::v1::DeleteJobRequest* request,
    sinq::v1::DeleteJobResponse*) {
  return RunUnary(context_, call, "DeleteJob",
                  [this, request] { return context_.store.Delete(request->job_id()); });
}

grpc::ServerUnaryReactor* QuantizationServiceImpl::PlanJob(grpc::CallbackServerContext* call,
                                                           const sinq::v1::PlanJobRequest* request,
                                                           sinq::v1::PlanJobResponse* response) {
  return RunUnary(context_, call, "PlanJob", [this, call, request, response]() -> absl::Status {
    const JobSpec spec = ToJobSpec(request->source_uri(), request->output_uri(), request->recipe());
    const absl::StatusOr<DryRun> dry_run =
        DryRunFor(context_, spec, [call] { return call->IsCancelled(); });
    if (!dry_run.ok()) return dry_run.status();
    response->set_note(dry_run->note);
    return FillPlan(dry_run->plan, *request, response);
  });
}

grpc::ServerUnaryReactor* QuantizationServiceImpl::GetCapabilities(
    grpc::CallbackServerContext* call, const sinq::v1::GetCapabilitiesRequest*,
    sinq::v1::GetCapabilitiesResponse* response) {
  return RunUnary(context_, call, "GetCapabilities", [this, response] {
    FillCapabilities(context_, response);
    return absl::OkStatus();
  });
}

}  // namespace sinq
