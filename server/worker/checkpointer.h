// Makes finished tensors durable in batches, and digests what its writers could not.
#ifndef SINQ_SERVER_WORKER_CHECKPOINTER_H_
#define SINQ_SERVER_WORKER_CHECKPOINTER_H_

#include <chrono>
#include <cstddef>
#include <deque>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "server/base/mutex.h"
#include "server/job/job_store.h"
#include "server/plan/plan.h"
#include "server/sink/sink.h"
#include "server/worker/file_digester.h"
#include "server/worker/manifest.h"
#include "server/worker/unit_record.h"

namespace sinq {

// Of one phase of a plan. Owns one thread. Add may be called from any thread; Finish once. A tensor
// is recorded in the store only after its file was synced: a recorded tensor survives a power cut.
// Where the digest of a file is of what is read back from the sink (what an earlier attempt wrote
// among it), the job fails if that is not what was written. The first error stops the thread;
// Failed tells the pipeline.
class Checkpointer {
 public:
  // `digesters`: by file of the plan; they outlive this, and its thread is the one that advances
  // them. Of no use to Phase::kMeasure, which writes nothing.
  Checkpointer(const Plan& plan, Phase phase, Sink& sink, std::deque<FileDigester>& digesters,
               JobStore& store, Lease lease, absl::Duration interval);
  ~Checkpointer();

  // A tensor of an earlier attempt: durable already, only the digest of its file is wanted.
  void AddDurable(const PlannedTensor& tensor, UnitRecord record);
  void Add(const PlannedTensor& tensor, UnitRecord record);
  bool Failed() const;
  // Waits until everything added is durable, and all files digested if `digest_files` says so.
  // Keeps what was done if not (a job that stops early).
  absl::Status Finish(bool digest_files);
  // After a successful Finish of Phase::kQuantize; the files only of Finish(true). What was
  // measured is the pipeline's to keep.
  const std::map<std::string, UnitRecord>& records() const { return all_records_; }
  const std::vector<ManifestFile>& files() const { return files_; }

 private:
  struct Item {
    const PlannedTensor* tensor = nullptr;
    UnitRecord record;
    bool durable = false;
  };
  using Time = std::chrono::steady_clock::time_point;
  // What this phase writes of the tensor.
  absl::Span<const OutputRange> OutputsOf(const PlannedTensor& tensor) const {
    if (phase_ == Phase::kMeasure) return {};
    return tensor.outputs;
  }
  void Loop();
  bool HasWorkOrDone() const ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    return finishing_ || !pending_.empty();
  }
  enum class Turn : uint8_t { kGoOn, kLast, kLastWithDigests };
  // Waits until `deadline` for something to do, and moves what was added to the end of `items`.
  Turn TakePending(Time deadline, std::vector<Item>& items) ABSL_LOCKS_EXCLUDED(mutex_);
  // To be digested, and on its way to the disk.
  absl::Status MarkWritten(const Item& item);
  // Digests what is ready, range by range, until it is late. False once nothing is ready.
  absl::StatusOr<bool> DigestUntil(Time deadline);
  // Makes `items` durable.
  absl::Status Commit(std::vector<Item>& items);
  absl::Status DigestFiles();

  const Plan& plan_;
  const Phase phase_;
  Sink& sink_;
  std::deque<FileDigester>& digesters_;
  JobStore& store_;
  const Lease lease_;
  const absl::Duration interval_;

  // Only the thread, then (after it has ended) Finish.
  std::map<std::string, UnitRecord> all_records_;
  std::vector<ManifestFile> files_;

  mutable Mutex mutex_;
  std::vector<Item> pending_ ABSL_GUARDED_BY(mutex_);
  bool finishing_ ABSL_GUARDED_BY(mutex_) = false;
  bool digest_files_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;
};

}  // namespace sinq

#endif  // SINQ_SERVER_WORKER_CHECKPOINTER_H_
