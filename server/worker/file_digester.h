// SHA-256 of an output shard whose tensors arrive in any order, and of each tensor: reads the
// prefix that is complete, as it grows.
#ifndef SINQ_SERVER_WORKER_FILE_DIGESTER_H_
#define SINQ_SERVER_WORKER_FILE_DIGESTER_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/base/sha256.h"
#include "server/sink/sink.h"

namespace sinq {

// [offset, offset + size) of a file, written.
struct WrittenRange {
  uint64_t offset = 0, size_bytes = 0;
  std::string tensor = {};  // whose bytes these are; empty for a header
  // What was written, if it is known: its Checksum, or its digest.
  std::optional<uint64_t> checksum = {};
  std::string sha256 = {};
};

// Not thread-safe: one thread marks, advances and finishes.
class FileDigester {
 public:
  FileDigester(std::string file_name, uint64_t size_bytes)
      : file_name_(std::move(file_name)), size_bytes_(size_bytes) {}

  void MarkWritten(WrittenRange range);
  // Digests the next range, reading it back from the sink (it is still in the page cache). False if
  // it is not written yet, or at the end. DataLoss if it is not what was written.
  absl::StatusOr<bool> Advance(const Sink& sink);
  // Digests what is left, and gives the digest of the whole file. Internal if a range was never
  // marked.
  absl::StatusOr<std::string> Finish(const Sink& sink);
  // Of a tensor of this file; Finish was called. Internal if it was not marked.
  absl::StatusOr<std::string> TensorDigest(absl::string_view tensor) const;

 private:
  // Of the next range in the file, to its end.
  absl::Status DigestRange(const Sink& sink, const WrittenRange& range);

  const std::string file_name_;
  const uint64_t size_bytes_;
  std::map<uint64_t, WrittenRange> written_;  // by offset, not yet hashed
  std::map<std::string, std::string, std::less<>> tensor_digests_;
  uint64_t hashed_bytes_ = 0;
  Sha256 digest_;
  std::vector<std::byte> piece_;
};

}  // namespace sinq

#endif  // SINQ_SERVER_WORKER_FILE_DIGESTER_H_
