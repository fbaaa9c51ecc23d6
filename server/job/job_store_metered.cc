#include "server/job/job_store_metered.h"

#include <chrono>
#include <map>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace sinq {
namespace {

const absl::Status& StatusOf(const absl::Status& status) { return status; }
template <class T>
const absl::Status& StatusOf(const absl::StatusOr<T>& result) {
  return result.status();
}

bool IsStoreFault(const absl::Status& status) {
  return absl::IsInternal(status) || absl::IsUnavailable(status) || absl::IsDataLoss(status) ||
         absl::IsUnknown(status);
}

class MeteredJobStore final : public JobStore {
 public:
  MeteredJobStore(std::unique_ptr<JobStore> store, Metrics& metrics)
      : store_(std::move(store)), metrics_(metrics) {}

  absl::StatusOr<CreateResult> Create(const JobSpec& spec, absl::string_view request_id) override {
    return Timed("create", [&] { return store_->Create(spec, request_id); });
  }
  absl::StatusOr<CreateResult> FindRequest(const JobSpec& spec,
                                           absl::string_view request_id) override {
    return Timed("find_request", [&] { return store_->FindRequest(spec, request_id); });
  }
  absl::StatusOr<Job> Get(absl::string_view job_id) override {
    return Timed("get", [&] { return store_->Get(job_id); });
  }
  absl::StatusOr<ListResult> List(const ListQuery& query) override {
    return Timed("list", [&] { return store_->List(query); });
  }
  absl::Status Delete(absl::string_view job_id) override {
    return Timed("delete", [&] { return store_->Delete(job_id); });
  }
  absl::StatusOr<Job> RequestCancel(absl::string_view job_id) override {
    return Timed("request_cancel", [&] { return store_->RequestCancel(job_id); });
  }
  absl::StatusOr<std::optional<std::pair<Job, Lease>>> Acquire(
      absl::string_view worker, absl::Duration lease_duration) override {
    return Timed("acquire", [&] { return store_->Acquire(worker, lease_duration); });
  }
  absl::StatusOr<Job> Renew(const Lease& lease, absl::Duration lease_duration,
                            const JobProgress& progress, absl::string_view tensor) override {
    return Timed("renew", [&] { return store_->Renew(lease, lease_duration, progress, tensor); });
  }
  absl::Status Release(const Lease& lease) override {
    return Timed("release", [&] { return store_->Release(lease); });
  }
  absl::StatusOr<Job> Retry(const Lease& lease, absl::Duration delay,
                            const JobError& error) override {
    return Timed("retry", [&] { return store_->Retry(lease, delay, error); });
  }
  absl::Status CheckLease(const Lease& lease) override {
    return Timed("check_lease", [&] { return store_->CheckLease(lease); });
  }
  absl::Status Finish(const Lease& lease, JobState state, const JobProgress& progress,
                      const JobError& error) override {
    return Timed("finish", [&] { return store_->Finish(lease, state, progress, error); });
  }
  absl::Status AddFinishedUnits(const Lease& lease,
                                const std::vector<FinishedUnit>& units) override {
    return Timed("add_finished_units", [&] { return store_->AddFinishedUnits(lease, units); });
  }
  absl::StatusOr<std::vector<FinishedUnit>> FinishedUnits(absl::string_view job_id) override {
    return Timed("finished_units", [&] { return store_->FinishedUnits(job_id); });
  }
  absl::Status SetPlanDigest(const Lease& lease, absl::string_view digest) override {
    return Timed("set_plan_digest", [&] { return store_->SetPlanDigest(lease, digest); });
  }
  absl::StatusOr<std::string> PlanDigest(absl::string_view job_id) override {
    return Timed("plan_digest", [&] { return store_->PlanDigest(job_id); });
  }
  absl::StatusOr<std::vector<JobEvent>> Events(absl::string_view job_id, uint64_t after,
                                               int limit) override {
    return Timed("events", [&] { return store_->Events(job_id, after, limit); });
  }
  void WaitForEvent(absl::string_view job_id, uint64_t after, absl::Duration timeout) override {
    store_->WaitForEvent(job_id, after, timeout);
  }
  void WaitForWork(absl::Duration timeout) override { store_->WaitForWork(timeout); }
  absl::StatusOr<std::map<JobState, uint64_t>> CountByState() override {
    return Timed("count_by_state", [&] { return store_->CountByState(); });
  }
  absl::StatusOr<absl::Duration> OldestQueuedAge() override {
    return Timed("oldest_queued_age", [&] { return store_->OldestQueuedAge(); });
  }
  absl::StatusOr<int> DeleteExpired(absl::Duration retention) override {
    return Timed("delete_expired", [&] { return store_->DeleteExpired(retention); });
  }

 private:
  template <class Call>
  std::invoke_result_t<Call> Timed(const char* operation, Call call) {
    const auto begin = std::chrono::steady_clock::now();
    std::invoke_result_t<Call> result = call();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    metrics_.Observe("sinq_store_query_seconds", seconds.count(), {{"op", operation}});
    const absl::Status& status = StatusOf(result);
    if (IsStoreFault(status)) {
      metrics_.Add("sinq_store_errors_total", 1,
                   {{"class", absl::StatusCodeToString(status.code())}});
    }
    return result;
  }

  const std::unique_ptr<JobStore> store_;
  Metrics& metrics_;
};

}  // namespace

std::unique_ptr<JobStore> MakeMeteredJobStore(std::unique_ptr<JobStore> store, Metrics& metrics) {
  return std::make_unique<MeteredJobStore>(std::move(store), metrics);
}

}  // namespace sinq
