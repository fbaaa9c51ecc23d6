#include "server/base/aligned_buffer.h"

#include <cstdint>
#include <limits>
#include <utility>

#include "gtest/gtest.h"
#include "server/base/error.h"

namespace sinq {
namespace {

TEST(AlignedBuffer, StartsOnACacheLine) {
  for (const uint64_t size : {1u, 63u, 64u, 65u, 1u << 20}) {
    absl::StatusOr<AlignedBuffer> buffer = AlignedBuffer::AllocateZeroed(size);
    ASSERT_TRUE(buffer.ok());
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer->data()) % AlignedBuffer::kAlignmentBytes, 0u);
    EXPECT_EQ(buffer->SizeBytes(), size);
    for (const std::byte byte : buffer->span()) ASSERT_EQ(byte, std::byte{0});
  }
}

TEST(AlignedBuffer, EmptyIsFine) {
  absl::StatusOr<AlignedBuffer> buffer = AlignedBuffer::Allocate(0);
  ASSERT_TRUE(buffer.ok());
  EXPECT_TRUE(buffer->span().empty());
}

TEST(AlignedBuffer, AnImpossibleSizeIsAStatus) {
  for (const uint64_t size : {std::numeric_limits<uint64_t>::max(),
                              std::numeric_limits<uint64_t>::max() - 63, uint64_t{1} << 62}) {
    const absl::StatusOr<AlignedBuffer> buffer = AlignedBuffer::Allocate(size);
    EXPECT_EQ(buffer.status().code(), absl::StatusCode::kResourceExhausted);
    EXPECT_EQ(GetErrorDetails(buffer.status()).reason, Reason::kMemoryBudgetTooSmall);
  }
}

}  // namespace
}  // namespace sinq
