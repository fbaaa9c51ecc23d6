// SHA-256 of an output shard whose tensors arrive in any order. A tensor that comes next in its
// file is digested as it is written; one that comes early is read back when its turn is there.
#ifndef SINQ_SERVER_WORKER_FILE_DIGESTER_H_
#define SINQ_SERVER_WORKER_FILE_DIGESTER_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/base/mutex.h"
#include "server/base/sha256.h"
#include "server/plan/plan.h"
#include "server/sink/sink.h"

namespace sinq {

// [offset, offset + size) of a file, written.
struct WrittenRange {
  uint64_t offset = 0, size_bytes = 0;
  std::string tensor = {};  // whose bytes these are; empty for what belongs to none
  std::string sha256 = {};  // hex, of what was written, of a tensor
};

// Thread-safe, but Advance and Finish are for one thread.
class FileDigester {
 public:
  // The file begins with `header`.
  FileDigester(std::string file_name, uint64_t size_bytes, absl::string_view header);

  // For whoever is about to write the range at `offset`: the digest of the file, if it has come
  // there and nobody else is at it. The caller digests the whole range with it and then calls
  // GiveBack with the range's length; if it fails, the file has no digest. Null: the range will be
  // read back.
  Sha256* TakeAt(uint64_t offset) ABSL_LOCKS_EXCLUDED(mutex_);
  void GiveBack(uint64_t size_bytes) ABSL_LOCKS_EXCLUDED(mutex_);
  // The range is in the sink. No more than that if it was digested already.
  void MarkWritten(WrittenRange range) ABSL_LOCKS_EXCLUDED(mutex_);
  // Digests the next range, reading it back from the sink. False if it is not written yet, or at
  // the end. DataLoss if it is not what was written.
  absl::StatusOr<bool> Advance(const Sink& sink);
  // Digests what is left, and gives the digest of the whole file. Internal if a range was never
  // marked.
  absl::StatusOr<std::string> Finish(const Sink& sink);

  const std::string& file_name() const { return file_name_; }

 private:
  // The next range, if it is written and nobody is at it; it is taken then.
  std::optional<WrittenRange> TakeNext() ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status DigestRange(const Sink& sink, const WrittenRange& range);

  const std::string file_name_;
  const uint64_t size_bytes_;
  Sha256 digest_;                 // of whoever took it
  std::vector<std::byte> piece_;  // read back
  Mutex mutex_;
  bool taken_ ABSL_GUARDED_BY(mutex_) = false;
  uint64_t digested_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<uint64_t, WrittenRange> written_ ABSL_GUARDED_BY(mutex_);  // by offset, to be read back
};

// By file of the plan, with what the plan itself writes marked.
std::deque<FileDigester> DigestersFor(const Plan& plan);

}  // namespace sinq

#endif  // SINQ_SERVER_WORKER_FILE_DIGESTER_H_
