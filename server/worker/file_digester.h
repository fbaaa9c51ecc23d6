// SHA-256 of an output shard whose tensors arrive in any order: hashes the prefix that is complete,
// as it grows.
#ifndef SINQ_SERVER_WORKER_FILE_DIGESTER_H_
#define SINQ_SERVER_WORKER_FILE_DIGESTER_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/base/sha256.h"
#include "server/sink/sink.h"

namespace sinq {

// Not thread-safe: one thread marks, advances and finishes.
class FileDigester {
 public:
  FileDigester(std::string file_name, uint64_t size_bytes)
      : file_name_(std::move(file_name)), size_bytes_(size_bytes) {}

  // [offset, offset + size) is written.
  void MarkWritten(uint64_t offset, uint64_t size_bytes);
  // Hashes what has become contiguous, reading it back from the sink (it is still in the page
  // cache).
  absl::Status Advance(const Sink& sink);
  // The digest of the whole file. Internal if a range was never marked.
  absl::StatusOr<std::string> Finish(const Sink& sink);

 private:
  const std::string file_name_;
  const uint64_t size_bytes_;
  std::map<uint64_t, uint64_t> written_;  // begin -> end, not yet hashed
  uint64_t hashed_bytes_ = 0;
  Sha256 digest_;
  std::vector<std::byte> piece_;
};

}  // namespace sinq

#endif  // SINQ_SERVER_WORKER_FILE_DIGESTER_H_
