// Faults through the interface that production uses: wrappers that fail the n-th call of a kind.
#ifndef SINQ_TESTS_FAKES_FAULT_FILE_SYSTEM_H_
#define SINQ_TESTS_FAKES_FAULT_FILE_SYSTEM_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "server/base/file_system.h"
#include "server/base/mutex.h"

namespace sinq {

enum class FaultOperation : uint8_t {
  kOpenForRead,
  kOpenForWrite,
  kOpenDirectory,
  kMakeDirectory,
  kList,
  kRename,
  kRemoveFile,
  kRemoveTree,
  kSyncDirectory,
  kFreeBytes,
  kSize,
  kRead,
  kWrite,
  kPreallocate,
  kSyncFile,
};

// Which calls fail. Shared by every file and directory of one wrapped tree. Thread-safe.
class FaultPlan {
 public:
  // The `nth` call (1 is the next one to be counted, from the start) of `operation` fails with
  // `error_number`; with `onwards`, every later one too. A failing write writes half its bytes
  // first, as a disk that fills up does. A failing read fills half its buffer.
  void Fail(FaultOperation operation, int nth, int error_number, bool onwards = false);
  // The `nth` read finds the file's end early: OutOfRange, as a file that was truncated gives.
  void ShortRead(int nth);
  // Calls so far.
  int Count(FaultOperation operation) const;

  // For the wrappers: counts the call and says whether it fails.
  absl::Status Next(FaultOperation operation);

 private:
  struct Fault {
    FaultOperation operation;
    int nth = 0;
    int error_number = 0;  // 0: short read
    bool onwards = false;
  };
  mutable Mutex mutex_;
  std::vector<Fault> faults_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<FaultOperation, int> counts_ ABSL_GUARDED_BY(mutex_);
};

// A directory whose calls, and those of everything opened from it, follow `plan`.
std::unique_ptr<Directory> MakeFaultDirectory(std::shared_ptr<Directory> inner,
                                              std::shared_ptr<FaultPlan> plan);

// The same for a whole file system: the roots of resolved paths are wrapped.
std::unique_ptr<FileSystem> MakeFaultFileSystem(std::shared_ptr<FileSystem> inner,
                                                std::shared_ptr<FaultPlan> plan);

}  // namespace sinq

#endif  // SINQ_TESTS_FAKES_FAULT_FILE_SYSTEM_H_
