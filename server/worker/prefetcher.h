// Brings what is digested and computed next into memory, so that neither waits for the disk.
#ifndef SINQ_SERVER_WORKER_PREFETCHER_H_
#define SINQ_SERVER_WORKER_PREFETCHER_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "server/base/direct_blocks.h"
#include "server/base/mutex.h"

namespace sinq {

// Owns one thread, which reads the ranges that were begun in pieces and in turn, so that several
// come side by side. Each piece is read as far into a block of memory as it lies in one of its
// file, so that it need not pass through the page cache (File::ReadOnceAt), and moved to its place.
// Thread-safe; must outlive its fetches.
class Prefetcher {
 public:
  // Reads `out.size()` bytes from byte `at` of a range.
  using ReadPiece = std::function<absl::Status(uint64_t at, absl::Span<std::byte> out)>;

  // A range on its way. Of one thread.
  class Fetch {
   public:
    // Gives up what was not read yet; nobody writes to its memory once this returns.
    ~Fetch();
    Fetch(const Fetch&) = delete;
    Fetch& operator=(const Fetch&) = delete;
    // Waits until more than the first `at` bytes are there, of which there must be more, and says
    // how many. The reading's first error.
    absl::StatusOr<uint64_t> AwaitBeyond(uint64_t at);

   private:
    friend class Prefetcher;
    Fetch(Prefetcher& owner, uint64_t offset, uint64_t size_bytes, std::byte* memory,
          ReadPiece read)
        : owner_(owner),
          offset_(offset),
          size_bytes_(size_bytes),
          memory_(memory),
          read_(std::move(read)) {}
    // The next piece, from byte `at` on; says how many bytes it has.
    absl::StatusOr<uint64_t> ReadNext(uint64_t at) const;

    Prefetcher& owner_;
    const uint64_t offset_;
    const uint64_t size_bytes_;
    std::byte* const memory_;
    const ReadPiece read_;
    uint64_t ready_bytes_ ABSL_GUARDED_BY(owner_.mutex_) = 0;
    bool busy_ ABSL_GUARDED_BY(owner_.mutex_) = false;  // a piece is being read
    bool given_up_ ABSL_GUARDED_BY(owner_.mutex_) = false;
    absl::Status status_ ABSL_GUARDED_BY(owner_.mutex_);
  };

  Prefetcher();
  ~Prefetcher();
  Prefetcher(const Prefetcher&) = delete;
  Prefetcher& operator=(const Prefetcher&) = delete;

  // What a range of `size_bytes` from `offset` of its file takes while it is read.
  static uint64_t MemoryBytes(uint64_t offset, uint64_t size_bytes) {
    return BytesIntoBlock(offset) + size_bytes;
  }
  // The range comes to `memory`, which has MemoryBytes or more and, to be read past
  // the cache, starts on a block. Pieces end on blocks of the file.
  std::unique_ptr<Fetch> Begin(uint64_t offset, uint64_t size_bytes, std::byte* memory,
                               ReadPiece read);

 private:
  void Loop();
  // The next fetch with something left, marked as busy; null at the end.
  Fetch* TakeNext(uint64_t* at) ABSL_LOCKS_EXCLUDED(mutex_);
  void PutBack(Fetch& fetch, const absl::StatusOr<uint64_t>& read_bytes)
      ABSL_LOCKS_EXCLUDED(mutex_);

  Mutex mutex_;
  std::deque<Fetch*> waiting_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;  // last: uses the rest
};

}  // namespace sinq

#endif  // SINQ_SERVER_WORKER_PREFETCHER_H_
