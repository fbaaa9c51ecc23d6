// WatchJob: replays events after a sequence number, then follows until the job is final.
#ifndef SINQ_SERVER_RPC_WATCH_REACTOR_H_
#define SINQ_SERVER_RPC_WATCH_REACTOR_H_

#include <atomic>
#include <memory>
#include <string>

#include "absl/synchronization/notification.h"
#include "server/base/mutex.h"
#include "server/rpc/service_context.h"
#include "server/rpc/unary.h"
#include "sinq/v1/quantization_service.grpc.pb.h"

namespace sinq {

// Occupies a thread of its pool while it lasts, because it waits for events; kMaxWatchers bounds
// them. The object owns itself until OnDone, and its task holds it too: Finish may be followed by
// OnDone before the task has returned.
class WatchReactor final : public grpc::ServerWriteReactor<sinq::v1::WatchJobResponse>,
                           public std::enable_shared_from_this<WatchReactor> {
 public:
  static WatchReactor* Start(ServiceContext& context, const sinq::v1::WatchJobRequest& request);

  void OnWriteDone(bool ok) override;
  void OnCancel() override { stopped_ = true; }
  void OnDone() override;

 private:
  WatchReactor(ServiceContext& context, const sinq::v1::WatchJobRequest& request);
  void Follow();
  absl::Status SendEvents();
  bool Send(const JobEvent& event);
  bool WriteFinished() const ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return !writing_; }

  ServiceContext& context_;
  const std::string job_id_;
  uint64_t after_;
  const SteadyTime begin_ = std::chrono::steady_clock::now();
  std::atomic<bool> stopped_ = false;
  sinq::v1::WatchJobResponse response_;
  Mutex mutex_;
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  std::shared_ptr<WatchReactor> self_;  // set by Start, cleared by OnDone
};

}  // namespace sinq

#endif  // SINQ_SERVER_RPC_WATCH_REACTOR_H_
