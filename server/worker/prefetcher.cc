#include "server/worker/prefetcher.h"

#include <algorithm>
#include <utility>

#include "server/base/direct_blocks.h"

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

std::unique_ptr<Prefetcher::Fetch> Prefetcher::Begin(uint64_t offset, absl::Span<std::byte> out,
                                                     ReadPiece read) {
  std::unique_ptr<Fetch> fetch(new Fetch(*this, offset, out, std::move(read)));
  MutexLock lock(&mutex_);
  if (!out.empty()) waiting_.push_back(fetch.get());
  return fetch;
}

void Prefetcher::Loop() {
  uint64_t at = 0;
  while (Fetch* const fetch = TakeNext(&at)) {
    const size_t size = BytesOfPiece(fetch->offset_ + at, fetch->out_.size() - at, kReadBytes);
    PutBack(*fetch, size, fetch->read_(at, fetch->out_.subspan(static_cast<size_t>(at), size)));
  }
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

void Prefetcher::PutBack(Fetch& fetch, uint64_t read_bytes, absl::Status status) {
  MutexLock lock(&mutex_);
  fetch.owner_.mutex_.AssertHeld();
  fetch.status_ = std::move(status);
  if (fetch.status_.ok()) fetch.ready_bytes_ += read_bytes;
  const bool has_more = fetch.status_.ok() && fetch.ready_bytes_ < fetch.out_.size();
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
