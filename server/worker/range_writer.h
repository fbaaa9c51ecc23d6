// One range of an output file on its way to the sink: digested as it passes, and gathered to pieces
// that need not go through the page cache.
#ifndef SINQ_SERVER_WORKER_RANGE_WRITER_H_
#define SINQ_SERVER_WORKER_RANGE_WRITER_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "server/base/sha256.h"
#include "server/sink/sink.h"
#include "server/worker/file_digester.h"

namespace sinq {

// Not thread-safe; writers of different ranges may run side by side.
class RangeWriter {
 public:
  // Memory that the writer of a range needs.
  static uint64_t StagingBytes(uint64_t range_bytes);

  // Of `digester`'s file in `sink`. `staging`: StagingBytes(size_bytes), which lives as long as
  // this.
  RangeWriter(Sink& sink, FileDigester& digester, uint64_t offset, uint64_t size_bytes,
              absl::Span<std::byte> staging);
  RangeWriter(const RangeWriter&) = delete;
  RangeWriter& operator=(const RangeWriter&) = delete;

  // The next bytes of the range. Internal if that is more than the range has.
  absl::Status Append(absl::Span<const std::byte> data);
  // After all of the range was appended: its digest, hex.
  std::string Finish();

 private:
  // Where the next piece is gathered, as far into a block of memory as it lies in one of its file.
  void BeginPiece();
  void Digest(absl::Span<const std::byte> data);
  absl::Status WritePiece();

  Sink& sink_;
  FileDigester& digester_;
  const uint64_t size_bytes_;
  std::byte* const first_block_;  // in the staging memory
  Sha256 digest_;
  Sha256* file_digest_;  // taken from the digester; may be null
  uint64_t at_;          // in the file: where the piece begins
  uint64_t left_bytes_;  // from there on
  absl::Span<std::byte> piece_;
  size_t gathered_bytes_ = 0;  // of the piece
};

}  // namespace sinq

#endif  // SINQ_SERVER_WORKER_RANGE_WRITER_H_
