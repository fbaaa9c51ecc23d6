// Only one process works in a data directory: the proof that a job left RUNNING has no owner.
#ifndef SINQ_SERVER_JOB_DATA_DIR_LOCK_H_
#define SINQ_SERVER_JOB_DATA_DIR_LOCK_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace sinq {

// Held while the object lives; the kernel lets go of it when the process dies, however it dies.
class DataDirLock {
 public:
  // FailedPrecondition, naming the other process, if somebody holds the lock of `lock_path`.
  static absl::StatusOr<std::unique_ptr<DataDirLock>> Acquire(const std::string& lock_path);
  ~DataDirLock();
  DataDirLock(const DataDirLock&) = delete;
  DataDirLock& operator=(const DataDirLock&) = delete;

 private:
  explicit DataDirLock(int descriptor) : descriptor_(descriptor) {}
  const int descriptor_;
};

}  // namespace sinq

#endif  // SINQ_SERVER_JOB_DATA_DIR_LOCK_H_
