// The digests of one range of an output file: its own and, if it comes next there, the file's.
#ifndef SINQ_SERVER_WORKER_RANGE_DIGEST_H_
#define SINQ_SERVER_WORKER_RANGE_DIGEST_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/types/span.h"
#include "server/base/sha256.h"
#include "server/worker/file_digester.h"

namespace sinq {

// Not thread-safe. Ranges of one file may be digested side by side, but only one of them for the
// file; the others will be read back.
class RangeDigest {
 public:
  RangeDigest(FileDigester& digester, uint64_t offset, uint64_t size_bytes);
  RangeDigest(const RangeDigest&) = delete;
  RangeDigest& operator=(const RangeDigest&) = delete;

  // The next bytes of the range.
  void Update(absl::Span<const std::byte> data);
  // After all of the range: its digest, hex.
  std::string Finish();

 private:
  FileDigester& digester_;
  const uint64_t size_bytes_;
  Sha256* file_digest_;  // taken from the digester; may be null
  Sha256 digest_;
};

}  // namespace sinq

#endif  // SINQ_SERVER_WORKER_RANGE_DIGEST_H_
