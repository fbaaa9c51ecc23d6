#include "server/base/posix_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <limits>

#include "absl/strings/str_cat.h"
#include "server/base/direct_blocks.h"
#include "server/base/error.h"
#include "server/base/posix_io.h"

namespace sinq {
namespace {

bool FitsOffT(uint64_t offset, uint64_t size_bytes) {
  constexpr uint64_t kMax = static_cast<uint64_t>(std::numeric_limits<off_t>::max());
  return offset <= kMax && size_bytes <= kMax - offset;
}

// Reserves blocks; a file system that cannot (NFSv3, some FUSE) only gets its length set.
int Allocate(int fd, off_t size_bytes) {
  int result = 0;
  do {
    result = ::fallocate(fd, 0, 0, size_bytes);
  } while (result != 0 && errno == EINTR);
  return result == 0 || errno == EOPNOTSUPP || errno == ENOSYS ? 0 : errno;
}

}  // namespace

absl::Status PosixFile::Fail(int error_number, absl::string_view verb) const {
  return ErrnoToStatus(error_number, absl::StrCat("Cannot ", verb, " \"", label_, "\""));
}

absl::StatusOr<uint64_t> PosixFile::Size() const {
  struct stat info = {};
  if (::fstat(fd_.get(), &info) != 0) return Fail(errno, "examine");
  return static_cast<uint64_t>(info.st_size);
}

absl::Status PosixFile::ReadAt(uint64_t offset, absl::Span<std::byte> out) const {
  if (!FitsOffT(offset, out.size())) return Fail(EOVERFLOW, "read");
  const TransferOutcome read = ReadFrom(fd_.get(), offset, out);
  if (read.error_number != 0) return Fail(read.error_number, "read");
  if (read.bytes == out.size()) return absl::OkStatus();
  const uint64_t end = offset + read.bytes;
  return MakeError(
      absl::StatusCode::kOutOfRange, Reason::kIoError,
      absl::StrCat("\"", label_, "\" ends at byte ", end, ": ", out.size() - read.bytes, " of the ",
                   out.size(), " bytes wanted from byte ", offset, " are missing."),
      {{"byte_offset", absl::StrCat(end)}});
}

const DirectReader* PosixFile::DirectIn() const {
  std::call_once(direct_in_once_, [this] { direct_in_ = DirectReader::Open(fd_.get()); });
  return direct_in_.get();
}

// [what comes before the first whole block | whole blocks | what comes after the last]. The ends
// are read through the cache, where the neighbours find the rest of those blocks.
absl::Status PosixFile::ReadOnceAt(uint64_t offset, absl::Span<std::byte> out) const {
  const WholeBlocks blocks(offset, out.data(), out.size());
  if (blocks.size_bytes == 0 || !FitsOffT(offset, out.size()) || DirectIn() == nullptr)
    return ReadAt(offset, out);
  const size_t begin = blocks.begin;
  const size_t end =
      begin + DirectIn()->Read(offset + begin, out.subspan(begin, blocks.size_bytes));
  if (end == begin) return ReadAt(offset, out);
  absl::Status status = ReadAt(offset, out.first(begin));
  if (status.ok()) status = ReadAt(offset + end, out.subspan(end));
  return status;
}

void PosixFile::WillRead(uint64_t offset, uint64_t size_bytes) const {
  if (!FitsOffT(offset, size_bytes)) return;
  if (DirectIn() != nullptr && DirectIn()->works()) return;  // it will not pass through the cache
  posix_fadvise(fd_.get(), static_cast<off_t>(offset), static_cast<off_t>(size_bytes),
                POSIX_FADV_WILLNEED);
}

absl::Status PosixFile::WriteAt(uint64_t offset, absl::Span<const std::byte> data) {
  if (!FitsOffT(offset, data.size())) return Fail(EFBIG, "write");
  const TransferOutcome written = WriteTo(fd_.get(), offset, data);
  return written.error_number == 0 ? absl::OkStatus() : Fail(written.error_number, "write");
}

const DirectWriter* PosixFile::DirectOut() const {
  std::call_once(direct_out_once_, [this] { direct_out_ = DirectWriter::Open(fd_.get()); });
  return direct_out_.get();
}

// As ReadOnceAt.
absl::Status PosixFile::WriteOnceAt(uint64_t offset, absl::Span<const std::byte> data) {
  const WholeBlocks blocks(offset, data.data(), data.size());
  if (blocks.size_bytes == 0 || !FitsOffT(offset, data.size()) || DirectOut() == nullptr)
    return WriteAt(offset, data);
  const size_t begin = blocks.begin;
  const size_t end =
      begin + DirectOut()->Write(offset + begin, data.subspan(begin, blocks.size_bytes));
  if (end == begin) return WriteAt(offset, data);
  absl::Status status = WriteAt(offset, data.first(begin));
  if (status.ok()) status = WriteAt(offset + end, data.subspan(end));
  return status;
}

void PosixFile::WillSync(uint64_t offset, uint64_t size_bytes) {
  if (!FitsOffT(offset, size_bytes) || size_bytes == 0) return;  // 0 would be "to the end"
  // Says nothing about durability; an error of the disk comes back from fdatasync.
  ::sync_file_range(fd_.get(), static_cast<off_t>(offset), static_cast<off_t>(size_bytes),
                    SYNC_FILE_RANGE_WRITE);
}

absl::Status PosixFile::Preallocate(uint64_t size_bytes) {
  if (!FitsOffT(0, size_bytes)) return Fail(EFBIG, "reserve space for");
  const off_t size = static_cast<off_t>(size_bytes);
  if (size > 0) {
    if (const int error = Allocate(fd_.get(), size); error != 0) {
      return Fail(error, absl::StrCat("reserve ", size_bytes, " bytes for"));
    }
  }
  if (::ftruncate(fd_.get(), size) != 0) return Fail(errno, "set the length of");
  return absl::OkStatus();
}

absl::Status PosixFile::Sync() {
  if (::fdatasync(fd_.get()) != 0) return Fail(errno, "sync");
  return absl::OkStatus();
}

}  // namespace sinq
