#include "server/worker/prefetcher.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace sinq {
namespace {

// Each read may wait for the disk, and then for a core; a disk that turns must also find its way
// from one range to the next.
constexpr size_t kReadBytes = 4 << 20;

}  // namespace

Prefetcher::Prefetcher() : thread_([this] { Loop(); }) {}

Prefetcher::~Prefetcher() {
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
  }
  thread_.join();
}

std::unique_ptr<Prefetcher::Fetch> Prefetcher::Begin(uint64_t offset, uint64_t size_bytes,
                                                     std::byte* memory, ReadPiece read) {
  std::unique_ptr<Fetch> fetch(new Fetch(*this, offset, size_bytes, memory, std::move(read)));
  MutexLock lock(&mutex_);
  if (size_bytes > 0) waiting_.push_back(fetch.get());
  return fetch;
}

void Prefetcher::Loop() {
  uint64_t at = 0;
  while (Fetch* const fetch = TakeNext(&at)) PutBack(*fetch, fetch->ReadNext(at));
}

absl::StatusOr<uint64_t> Prefetcher::Fetch::ReadNext(uint64_t at) const {
  const size_t size = BytesOfPiece(offset_ + at, size_bytes_ - at, kReadBytes);
  std::byte* const place = memory_ + at;
  std::byte* const piece = place + BytesIntoBlock(offset_);
  if (absl::Status status = read_(at, absl::MakeSpan(piece, size)); !status.ok()) return status;
  if (piece != place) std::memmove(place, piece, size);
  return size;
}

Prefetcher::Fetch* Prefetcher::TakeNext(uint64_t* at) {
  MutexLock lock(&mutex_);
  const auto ready = [this] {
    mutex_.AssertHeld();
    return stopping_ || !waiting_.empty();
  };
  mutex_.Await(absl::Condition(&ready));
  if (stopping_) return nullptr;
  Fetch* const fetch = waiting_.front();
  waiting_.pop_front();
  fetch->owner_.mutex_.AssertHeld();  // this one's, which clang cannot know
  fetch->busy_ = true;
  *at = fetch->ready_bytes_;
  return fetch;
}

void Prefetcher::PutBack(Fetch& fetch, const absl::StatusOr<uint64_t>& read_bytes) {
  MutexLock lock(&mutex_);
  fetch.owner_.mutex_.AssertHeld();
  fetch.status_ = read_bytes.status();
  if (read_bytes.ok()) fetch.ready_bytes_ += *read_bytes;
  const bool has_more = read_bytes.ok() && fetch.ready_bytes_ < fetch.size_bytes_;
  if (has_more && !fetch.given_up_) waiting_.push_back(&fetch);
  fetch.busy_ = false;  // it may go now
}

absl::StatusOr<uint64_t> Prefetcher::Fetch::AwaitBeyond(uint64_t at) {
  MutexLock lock(&owner_.mutex_);
  const auto ready = [this, at] {
    owner_.mutex_.AssertHeld();
    return ready_bytes_ > at || !status_.ok();
  };
  owner_.mutex_.Await(absl::Condition(&ready));
  if (ready_bytes_ > at) return ready_bytes_;
  return status_;
}

Prefetcher::Fetch::~Fetch() {
  const auto idle = [this] {
    owner_.mutex_.AssertHeld();
    return !busy_;
  };
  MutexLock lock(&owner_.mutex_);
  given_up_ = true;  // before the wait: else its next piece may begin before this thread wakes
  auto& waiting = owner_.waiting_;
  waiting.erase(std::remove(waiting.begin(), waiting.end(), this), waiting.end());
  owner_.mutex_.Await(absl::Condition(&idle));
}

}  // namespace sinq
