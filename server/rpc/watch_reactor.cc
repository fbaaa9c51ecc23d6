#include "server/rpc/watch_reactor.h"

#include <algorithm>
#include <memory>

#include "server/base/error.h"
#include "server/base/limits.h"
#include "server/rpc/convert.h"

namespace sinq {
namespace {

constexpr int kEventsAtOnce = 100;
constexpr absl::Duration kWait =
    absl::Milliseconds(500);  // how soon a cancelled call or a drain is noticed

absl::Status TooManyWatchers() {
  return MakeError(absl::StatusCode::kResourceExhausted, Reason::kLimitExceeded,
                   "Too many jobs are being watched; try again later.", {{"limit", "max_watchers"}},
                   absl::Seconds(5));
}

}  // namespace

WatchReactor::WatchReactor(ServiceContext& context, const sinq::v1::WatchJobRequest& request)
    : context_(context),
      job_id_(request.job_id()),
      after_(static_cast<uint64_t>(std::max<int64_t>(request.after_sequence(), 0))) {}

WatchReactor* WatchReactor::Start(ServiceContext& context,
                                  const sinq::v1::WatchJobRequest& request) {
  std::shared_ptr<WatchReactor> reactor(new WatchReactor(context, request));
  WatchReactor* raw = reactor.get();
  raw->self_ = reactor;
  if (++context.watchers > kMaxWatchers) {
    raw->Finish(ToGrpcStatus(TooManyWatchers()));
  } else {
    context.watchers_pool.Run([reactor = std::move(reactor)] { reactor->Follow(); });
  }
  return raw;
}

void WatchReactor::Follow() {
  const grpc::Status status = ToGrpcStatus(SendEvents());
  ObserveRpc(context_.metrics, "WatchJob", status.error_code(), begin_);
  Finish(status);
}

absl::Status WatchReactor::SendEvents() {
  while (!stopped_) {
    const absl::StatusOr<Job> job = context_.store.Get(job_id_);
    if (!job.ok()) return job.status();
    const absl::StatusOr<std::vector<JobEvent>> events =
        context_.store.Events(job_id_, after_, kEventsAtOnce);
    if (!events.ok()) return events.status();
    for (const JobEvent& event : *events) {
      if (!Send(event)) return absl::CancelledError("the client went away");
      after_ = event.sequence;
    }
    if (events->empty() && IsTerminal(job->state) && after_ >= job->last_event)
      return absl::OkStatus();
    if (context_.draining) {
      return MakeError(absl::StatusCode::kUnavailable, Reason::kDraining,
                       "The server is shutting down; watch again after it is back.", {},
                       absl::Seconds(1));
    }
    if (events->empty()) context_.store.WaitForEvent(job_id_, after_, kWait);
  }
  return absl::CancelledError("the client went away");
}

bool WatchReactor::Send(const JobEvent& event) {
  *response_.mutable_event() = ToProto(event);
  {
    MutexLock lock(&mutex_);
    writing_ = true;
  }
  StartWrite(&response_);
  MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(this, &WatchReactor::WriteFinished));
  return !stopped_;
}

void WatchReactor::OnWriteDone(bool ok) {
  if (!ok) stopped_ = true;
  MutexLock lock(&mutex_);
  writing_ = false;
}

void WatchReactor::OnDone() {
  --context_.watchers;
  const std::shared_ptr<WatchReactor> last = std::move(self_);
}

}  // namespace sinq
