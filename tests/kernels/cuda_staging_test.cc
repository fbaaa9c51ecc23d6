// Bytes through the ring arrive as they left, whatever the sizes, and nobody waits too little: the
// fake runtime delivers late and watches what is in flight.
#include "kernels/cuda_staging.h"

#include <cstring>
#include <numeric>

#include "gtest/gtest.h"
#include "tests/fakes/fake_cuda_runtime.h"

namespace sinq::kernels {
namespace {

constexpr size_t kChunkBytes = 64;

class StagingRingTest : public testing::Test {
 protected:
  void SetUp() override {
    stream_ = runtime_->CreateStream().value();
    ring_ = StagingRing::Make(runtime_, stream_, kChunkBytes).value();
    device_ = static_cast<std::byte*>(runtime_->AllocateDevice(kDeviceBytes).value());
  }
  void TearDown() override {
    runtime_->FreeDevice(device_);
    ring_.reset();
    runtime_->DestroyStream(stream_);
    EXPECT_EQ(runtime_->LiveObjects(), 0u);
    EXPECT_TRUE(runtime_->Violations().empty()) << runtime_->Violations().front();
  }

  static constexpr size_t kDeviceBytes = 4096;
  const std::shared_ptr<FakeCudaRuntime> runtime_ = std::make_shared<FakeCudaRuntime>();
  CudaStream stream_ = nullptr;
  std::unique_ptr<StagingRing> ring_;
  std::byte* device_ = nullptr;
};

std::vector<std::byte> Bytes(size_t count) {
  std::vector<std::byte> bytes(count);
  for (size_t i = 0; i < count; ++i) bytes[i] = static_cast<std::byte>(i * 7 + i / 251);
  return bytes;
}

TEST_F(StagingRingTest, BytesOfEverySizeComeBack) {
  for (const size_t count : {0, 1, 2, 63, 64, 65, 127, 128, 300, 1000}) {
    std::vector<std::byte> bytes = Bytes(count);
    const std::vector<std::byte> expected = bytes;
    ASSERT_TRUE(ring_->ToDevice(device_, {bytes.data(), count, 1, count}).ok());
    std::fill(bytes.begin(), bytes.end(), std::byte{0});  // allowed at once
    std::vector<std::byte> back(count);
    ASSERT_TRUE(ring_->ToHost(back.data(), device_, count).ok());
    ASSERT_TRUE(ring_->Flush().ok());
    EXPECT_EQ(back, expected) << count;
  }
}

TEST_F(StagingRingTest, RowsBecomeDense) {
  const std::vector<std::byte> bytes = Bytes(40 * 33);
  for (const size_t row_bytes : {1, 7, 30, 33}) {
    ASSERT_TRUE(ring_->ToDevice(device_, {bytes.data() + 3, row_bytes, 39, 33}).ok());
    for (size_t row = 0; row < 39; ++row) {
      EXPECT_EQ(std::memcmp(device_ + row * row_bytes, bytes.data() + 3 + row * 33, row_bytes), 0)
          << row_bytes << " row " << row;
    }
  }
}

// Without Flush nothing need have arrived: this is what the late delivery of the fake is for.
TEST_F(StagingRingTest, NothingArrivesBeforeFlush) {
  const std::vector<std::byte> bytes = Bytes(10);
  ASSERT_TRUE(ring_->ToDevice(device_, {bytes.data(), 10, 1, 10}).ok());
  std::vector<std::byte> back(10, std::byte{1});
  ASSERT_TRUE(ring_->ToHost(back.data(), device_, 10).ok());
  EXPECT_EQ(back, std::vector<std::byte>(10, std::byte{1}));
  ASSERT_TRUE(ring_->Flush().ok());
  EXPECT_EQ(back, bytes);
}

TEST_F(StagingRingTest, AbandonedCopiesAreNotDelivered) {
  std::vector<std::byte> back(10, std::byte{1});
  ASSERT_TRUE(ring_->ToHost(back.data(), device_, 10).ok());
  ASSERT_TRUE(runtime_->Synchronize(stream_).ok());
  ring_->Abandon();
  ASSERT_TRUE(ring_->Flush().ok());
  EXPECT_EQ(back, std::vector<std::byte>(10, std::byte{1}));
}

TEST_F(StagingRingTest, AFailedCopyIsTold) {
  const std::vector<std::byte> bytes = Bytes(200);
  runtime_->FailAt(CudaCall::kCopyToDevice, 2, absl::InternalError("no"));
  EXPECT_TRUE(absl::IsInternal(ring_->ToDevice(device_, {bytes.data(), 200, 1, 200})));
  ASSERT_TRUE(runtime_->Synchronize(stream_).ok());
}

TEST(StagingRingMemoryTest, NothingIsLeftOfAHalfMadeRing) {
  const auto runtime = std::make_shared<FakeCudaRuntime>();
  const CudaStream stream = runtime->CreateStream().value();
  for (const CudaCall call : {CudaCall::kAllocatePinned, CudaCall::kCreateEvent}) {
    for (int nth = 1; nth <= static_cast<int>(kStagingChunks); ++nth) {
      runtime->FailAt(call, nth, absl::ResourceExhaustedError("no"));
      EXPECT_TRUE(
          absl::IsResourceExhausted(StagingRing::Make(runtime, stream, kChunkBytes).status()));
      EXPECT_EQ(runtime->LiveObjects(), 1u);
    }
  }
}

TEST(CudaHostMemoryTest, KnowsItsOwn) {
  const auto runtime = std::make_shared<FakeCudaRuntime>();
  CudaHostMemory memory(runtime);
  std::byte* const a = memory.Allocate(100).value();
  std::byte* const b = memory.Allocate(50).value();
  EXPECT_EQ(reinterpret_cast<uintptr_t>(a) % 64, 0u);
  EXPECT_TRUE(memory.Contains(a, 100));
  EXPECT_TRUE(memory.Contains(a + 99, 1));
  EXPECT_TRUE(memory.Contains(b + 10, 40));
  EXPECT_FALSE(memory.Contains(a, 101));
  EXPECT_FALSE(memory.Contains(a + 50, 51));
  EXPECT_FALSE(memory.Contains(a + 101, 0));
  std::byte elsewhere{};
  EXPECT_FALSE(memory.Contains(&elsewhere, 1));
  memory.Free(a, 100);
  EXPECT_FALSE(memory.Contains(a, 1));
  EXPECT_TRUE(memory.Contains(b, 50));
  memory.Free(b, 50);
  EXPECT_EQ(runtime->LiveObjects(), 0u);
}

TEST(CudaHostMemoryTest, NoMemoryIsAStatus) {
  const auto runtime = std::make_shared<FakeCudaRuntime>();
  CudaHostMemory memory(runtime);
  runtime->FailAt(CudaCall::kAllocatePinned, 1, absl::ResourceExhaustedError("no"));
  EXPECT_TRUE(absl::IsResourceExhausted(memory.Allocate(100).status()));
}

}  // namespace
}  // namespace sinq::kernels
