#include "server/base/direct_reader.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <vector>

#include "server/base/direct_blocks.h"
#include "server/base/posix_io.h"

namespace sinq {
namespace {

// What mincore(2) asks for before it tells the truth; to others every page seems to be there.
bool MayAskForResidency(int fd) {
  struct stat info = {};
  if (::fstat(fd, &info) != 0) return false;
  return info.st_uid == ::geteuid() ||
         ::faccessat(fd, "", W_OK, AT_EMPTY_PATH | AT_EACCESS) == 0;
}

// Of the pages of [offset, offset + size), from 0 to 1; 1 if the kernel will not say.
bool IsMostlyCached(int fd, uint64_t offset, size_t size_bytes) {
  // Only a range of addresses: nothing is read through it.
  void* mapped = ::mmap(nullptr, size_bytes, PROT_READ, MAP_SHARED, fd, static_cast<off_t>(offset));
  if (mapped == MAP_FAILED) return true;
  const size_t page_bytes = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  std::vector<unsigned char> pages((size_bytes + page_bytes - 1) / page_bytes);
  const bool told = ::mincore(mapped, size_bytes, pages.data()) == 0;
  ::munmap(mapped, size_bytes);
  if (!told) return true;
  const auto cached = std::count_if(pages.begin(), pages.end(),
                                    [](unsigned char page) { return (page & 1) != 0; });
  return 2 * static_cast<size_t>(cached) > pages.size();
}

}  // namespace

std::unique_ptr<DirectReader> DirectReader::Open(int fd) {
  if (!MayAskForResidency(fd)) return nullptr;
  UniqueFd direct = OpenPastCache(fd);
  if (direct.get() < 0) return nullptr;
  return std::unique_ptr<DirectReader>(new DirectReader(std::move(direct)));
}

size_t DirectReader::Read(uint64_t offset, absl::Span<std::byte> out) const {
  if (!works() || out.empty() || IsMostlyCached(fd_.get(), offset, out.size())) return 0;
  const TransferOutcome read = ReadFrom(fd_.get(), offset, out);
  // Behind the end of a file, within a block, no direct read is valid: that is no refusal.
  const bool ended = BytesIntoBlock(read.bytes) != 0;
  if (read.error_number == EINVAL && !ended) refused_ = true;
  return read.bytes;
}

}  // namespace sinq
