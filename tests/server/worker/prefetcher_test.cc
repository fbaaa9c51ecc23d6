#include "server/worker/prefetcher.h"

#include <atomic>
#include <chrono>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "server/base/mutex.h"

namespace sinq {
namespace {

constexpr size_t kRangeBytes = (9 << 20) + 77;  // three reads

std::byte ValueAt(uint64_t at) { return static_cast<std::byte>(at * 7 + (at >> 20)); }

absl::Status Fill(uint64_t at, absl::Span<std::byte> out) {
  for (size_t i = 0; i < out.size(); ++i) out[i] = ValueAt(at + i);
  return absl::OkStatus();
}

// Lets reads through one by one.
class Gate {
 public:
  void Open(int reads) {
    MutexLock lock(&mutex_);
    open_ += reads;
  }
  void Pass() {
    MutexLock lock(&mutex_);
    ++waiting_;
    const auto is_open = [this] { return open_ > 0; };
    mutex_.Await(absl::Condition(&is_open));
    --open_;
    --waiting_;
  }
  void AwaitWaiting() {
    MutexLock lock(&mutex_);
    const auto waits = [this] { return waiting_ > 0; };
    mutex_.Await(absl::Condition(&waits));
  }

 private:
  Mutex mutex_;
  int open_ = 0, waiting_ = 0;
};

TEST(Prefetcher, BytesArriveInOrderOnceAndByBlocks) {
  Prefetcher prefetcher;
  for (const uint64_t offset : {uint64_t{0}, uint64_t{8}, uint64_t{4095}}) {
    std::vector<std::byte> memory(Prefetcher::MemoryBytes(offset, kRangeBytes));
    std::vector<uint64_t> begins;  // read after the last byte is there
    const auto note = [&](uint64_t at, absl::Span<std::byte> out) {
      begins.push_back(at);
      return Fill(at, out);
    };
    const auto fetch = prefetcher.Begin(offset, kRangeBytes, memory.data(), note);
    uint64_t there = 0;
    while (there < kRangeBytes) {
      const absl::StatusOr<uint64_t> ready = fetch->AwaitBeyond(there);
      ASSERT_TRUE(ready.ok()) << ready.status();
      ASSERT_GT(*ready, there);
      for (uint64_t at = there; at < *ready; ++at) ASSERT_EQ(memory[at], ValueAt(at)) << at;
      there = *ready;
    }
    for (size_t i = 1; i < begins.size(); ++i) {
      EXPECT_GT(begins[i], begins[i - 1]);
      EXPECT_EQ((offset + begins[i]) % 4096, 0u);
    }
  }
}

TEST(Prefetcher, RangesTakeTurns) {
  Prefetcher prefetcher;
  Gate gate;
  std::string order;
  std::vector<std::byte> memory_a(kRangeBytes), memory_b(kRangeBytes);
  const auto reader = [&](char name) {
    return [&order, &gate, name](uint64_t, absl::Span<std::byte>) {
      gate.Pass();
      order += name;
      return absl::OkStatus();
    };
  };
  const auto a = prefetcher.Begin(0, kRangeBytes, memory_a.data(), reader('a'));
  const auto b = prefetcher.Begin(0, kRangeBytes, memory_b.data(), reader('b'));
  gate.Open(6);
  ASSERT_TRUE(a->AwaitBeyond(kRangeBytes - 1).ok());
  ASSERT_TRUE(b->AwaitBeyond(kRangeBytes - 1).ok());
  EXPECT_EQ(order, "ababab");
}

TEST(Prefetcher, WhatIsThereIsGivenBeforeTheError) {
  Prefetcher prefetcher;
  std::vector<std::byte> memory(kRangeBytes);
  const auto fail = [](uint64_t at, absl::Span<std::byte> out) {
    return at < (4 << 20) ? Fill(at, out) : absl::DataLossError("bad sector");
  };
  const auto fetch = prefetcher.Begin(0, kRangeBytes, memory.data(), fail);
  uint64_t there = 0;
  absl::StatusOr<uint64_t> ready = uint64_t{0};
  while (ready.ok()) {
    there = *ready;
    ready = fetch->AwaitBeyond(there);
  }
  EXPECT_EQ(there, uint64_t{4} << 20);
  EXPECT_EQ(ready.status(), absl::DataLossError("bad sector"));
  EXPECT_FALSE(fetch->AwaitBeyond(there).ok());  // and it stays so
  // Another range is not concerned.
  const auto other = prefetcher.Begin(0, kRangeBytes, memory.data(), Fill);
  EXPECT_TRUE(other->AwaitBeyond(kRangeBytes - 1).ok());
}

TEST(Prefetcher, NobodyWritesToWhatWasGivenUp) {
  Prefetcher prefetcher;
  Gate gate;
  std::atomic<int> reads = 0;
  auto memory = std::make_unique<std::vector<std::byte>>(kRangeBytes);
  auto fetch = prefetcher.Begin(0, kRangeBytes, memory->data(),
                                [&](uint64_t at, absl::Span<std::byte> out) {
                                  gate.Pass();
                                  ++reads;
                                  return Fill(at, out);
                                });
  gate.AwaitWaiting();
  // Until the fetch is gone: another piece may have begun before this thread gives it up.
  std::atomic<bool> gone = false;
  std::thread opens([&] {
    do {
      gate.Open(1);
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    } while (!gone);
  });
  fetch.reset();  // waits for the piece under way
  gone = true;
  const int reads_before = reads;
  memory.reset();  // with AddressSanitizer, a write would be seen
  opens.join();
  gate.Open(100);
  std::vector<std::byte> another(100);
  EXPECT_TRUE(prefetcher.Begin(0, 100, another.data(), Fill)->AwaitBeyond(99).ok());
  EXPECT_EQ(reads, reads_before);
}

TEST(Prefetcher, GoesWithFetchesNeverAskedFor) {
  std::vector<std::byte> memory(kRangeBytes);
  Prefetcher prefetcher;
  const auto empty = prefetcher.Begin(0, 0, nullptr, Fill);
  const auto fetch = prefetcher.Begin(0, kRangeBytes, memory.data(), Fill);
}

}  // namespace
}  // namespace sinq
