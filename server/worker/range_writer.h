// One range of an output file on its way to the sink, gathered to pieces that need not go through
// the page cache.
#ifndef SINQ_SERVER_WORKER_RANGE_WRITER_H_
#define SINQ_SERVER_WORKER_RANGE_WRITER_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "server/sink/sink.h"

namespace sinq {

// Not thread-safe; writers of different ranges may run side by side.
class RangeWriter {
 public:
  // Memory that the writer of a range needs.
  static uint64_t StagingBytes(uint64_t range_bytes);

  // Of `file_name` in `sink`. `staging`: StagingBytes(size_bytes). Both live as long as this.
  RangeWriter(Sink& sink, absl::string_view file_name, uint64_t offset, uint64_t size_bytes,
              absl::Span<std::byte> staging);
  RangeWriter(const RangeWriter&) = delete;
  RangeWriter& operator=(const RangeWriter&) = delete;

  // The next bytes of the range; all is written with the last. Internal if that is more than the
  // range has.
  absl::Status Append(absl::Span<const std::byte> data);

 private:
  // Where the next piece is gathered, as far into a block of memory as it lies in one of its file.
  void BeginPiece();
  absl::Status WritePiece();

  Sink& sink_;
  const absl::string_view file_name_;
  std::byte* const first_block_;  // in the staging memory
  uint64_t at_;                   // in the file: where the piece begins
  uint64_t left_bytes_;           // from there on
  absl::Span<std::byte> piece_;
  size_t gathered_bytes_ = 0;  // of the piece
};

}  // namespace sinq

#endif  // SINQ_SERVER_WORKER_RANGE_WRITER_H_
