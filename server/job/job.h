// The life of a job: states, legal transitions, and what is stored of it. No I/O here.
#ifndef SINQ_SERVER_JOB_JOB_H_
#define SINQ_SERVER_JOB_JOB_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/base/error.h"
#include "server/job/job_spec.h"

namespace sinq {

// QUEUED -> RUNNING -> SUCCEEDED | FAILED | CANCELLED | EXPIRED; RUNNING -> QUEUED when a lease is
// lost or released; QUEUED -> CANCELLED | EXPIRED. Terminal states are final. The table is in
// job.cc.
enum class JobState : uint8_t { kQueued, kRunning, kSucceeded, kFailed, kCancelled, kExpired };
bool IsTerminal(JobState state);
bool IsLegalTransition(JobState from, JobState to);
absl::string_view JobStateName(JobState state);  // "QUEUED", ...
bool ParseJobState(absl::string_view name, JobState* out);

enum class JobStage : uint8_t { kNone, kPlan, kMeasure, kQuantize, kCommit, kDone };
// "plan", "measure", "quantize", "commit", "done"
absl::string_view JobStageName(JobStage stage);

struct JobProgress {
  JobStage stage = JobStage::kNone;
  uint64_t tensors_done = 0, tensors_total = 0;
  uint64_t bytes_done = 0, bytes_total = 0;  // of source tensors
  uint64_t output_bytes = 0;
  double effective_bits = 0;  // of quantized layers, everything counted; 0 until planned
};

struct JobError {
  std::string code;  // canonical code name, "INVALID_ARGUMENT"; empty: no error
  Reason reason = Reason::kUnspecified;
  std::string message;
};

struct Job {
  std::string id;  // "job-" + 26 lower-case base32 characters
  std::string request_id;
  JobSpec spec;
  JobState state = JobState::kQueued;
  JobProgress progress;
  JobError error;
  bool cancel_requested = false;
  int attempt = 0;  // leases taken so far
  int64_t lease_epoch = 0;
  uint64_t last_event = 0;
  absl::Time create_time, start_time, end_time;  // start/end InfinitePast until set
};

enum class EventKind : uint8_t { kState, kProgress, kTensor };
struct JobEvent {
  uint64_t sequence = 0;  // 1, 2, 3, ... per job
  absl::Time time;
  EventKind kind = EventKind::kState;
  JobState state = JobState::kQueued;
  JobProgress progress;
  JobError error;      // of a failed job's last event
  std::string tensor;  // last finished tensor (kTensor, kProgress)
};

}  // namespace sinq

#endif  // SINQ_SERVER_JOB_JOB_H_
