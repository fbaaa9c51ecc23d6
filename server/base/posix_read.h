// pread(2) in full.
#ifndef SINQ_SERVER_BASE_POSIX_READ_H_
#define SINQ_SERVER_BASE_POSIX_READ_H_

#include <cstddef>
#include <cstdint>

#include "absl/types/span.h"

namespace sinq {

// The kernel moves at most about 2 GiB per call anyway.
inline constexpr size_t kMaxTransferBytes = size_t{1} << 30;

// How far a read came. Without an error, fewer bytes than wanted are all that the file has.
struct ReadOutcome {
  size_t bytes = 0;
  int error_number = 0;
};

// Reads until `out` is full, the file ends or an error comes; a signal is none. The range fits
// off_t.
ReadOutcome ReadFrom(int fd, uint64_t offset, absl::Span<std::byte> out);

}  // namespace sinq

#endif  // SINQ_SERVER_BASE_POSIX_READ_H_
