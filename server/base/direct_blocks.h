// The blocks that reads and writes past the page cache go by, and how to cut a file's range to suit
// them.
#ifndef SINQ_SERVER_BASE_DIRECT_BLOCKS_H_
#define SINQ_SERVER_BASE_DIRECT_BLOCKS_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace sinq {

// The most that disks and file systems in use ask for.
inline constexpr uint64_t kDirectBlockBytes = 4096;

// How far into a block `at` lies; an offset in a file, or an address.
constexpr size_t BytesIntoBlock(uint64_t at) { return static_cast<size_t>(at % kDirectBlockBytes); }

constexpr size_t BytesToNextBlock(uint64_t at) {
  return static_cast<size_t>((kDirectBlockBytes - at % kDirectBlockBytes) % kDirectBlockBytes);
}

// The whole blocks of a range that may pass the cache by: none if the memory does not start as far
// into a block as the range does in its file.
struct WholeBlocks {
  size_t begin = 0;  // bytes of the range before the first
  size_t size_bytes = 0;

  WholeBlocks(uint64_t offset, const void* memory, size_t range_bytes)
      : begin(BytesToNextBlock(offset)) {
    const bool is_congruent = BytesToNextBlock(reinterpret_cast<uintptr_t>(memory)) == begin;
    if (!is_congruent || range_bytes < begin + kDirectBlockBytes) return;
    size_bytes = range_bytes - begin - BytesIntoBlock(offset + range_bytes);
  }
};

// Of the next piece of the `left_bytes` from `offset` on: at most `most_bytes`, which are at least
// one block, and up to the end of a block if more follows.
constexpr size_t BytesOfPiece(uint64_t offset, uint64_t left_bytes, size_t most_bytes) {
  const size_t most = most_bytes - BytesIntoBlock(offset + most_bytes);
  return static_cast<size_t>(std::min<uint64_t>(left_bytes, most));
}

}  // namespace sinq

#endif  // SINQ_SERVER_BASE_DIRECT_BLOCKS_H_
