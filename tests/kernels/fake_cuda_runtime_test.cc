// The fake must notice what it is there to notice; else the tests that rely on it prove nothing.
#include "tests/fakes/fake_cuda_runtime.h"

#include <cstring>

#include "absl/strings/match.h"
#include "gtest/gtest.h"

namespace sinq::kernels {
namespace {

class FakeCudaRuntimeTest : public testing::Test {
 protected:
  void SetUp() override {
    stream_ = runtime_.CreateStream().value();
    device_ = static_cast<std::byte*>(runtime_.AllocateDevice(100).value());
    pinned_ = static_cast<std::byte*>(runtime_.AllocatePinned(100).value());
  }
  void ExpectViolation(const char* what) {
    const std::vector<std::string> violations = runtime_.Violations();
    ASSERT_EQ(violations.size(), 1u);
    EXPECT_TRUE(absl::StrContains(violations[0], what)) << violations[0];
  }

  FakeCudaRuntime runtime_{{.devices = 2, .device_bytes = 1000}};
  CudaStream stream_ = nullptr;
  std::byte* device_ = nullptr;
  std::byte* pinned_ = nullptr;
};

TEST_F(FakeCudaRuntimeTest, ACopyToTheHostArrivesWhenItIsWaitedFor) {
  std::memset(pinned_, 7, 100);
  ASSERT_TRUE(runtime_.CopyToDevice(device_, pinned_, 100, stream_).ok());
  ASSERT_TRUE(runtime_.Synchronize(stream_).ok());
  const CudaEvent before = runtime_.CreateEvent().value(), after = runtime_.CreateEvent().value();
  ASSERT_TRUE(runtime_.Record(before, stream_).ok());
  ASSERT_TRUE(runtime_.CopyToHost(pinned_, device_, 100, stream_).ok());
  ASSERT_TRUE(runtime_.Record(after, stream_).ok());
  ASSERT_TRUE(runtime_.SynchronizeEvent(before).ok());
  EXPECT_NE(pinned_[0], std::byte{7});
  ASSERT_TRUE(runtime_.SynchronizeEvent(after).ok());
  EXPECT_EQ(pinned_[0], std::byte{7});
  EXPECT_TRUE(runtime_.Violations().empty());
}

TEST_F(FakeCudaRuntimeTest, AChangedSourceIsNoticed) {
  ASSERT_TRUE(runtime_.CopyToDevice(device_, pinned_, 100, stream_).ok());
  pinned_[50] = std::byte{1};
  ASSERT_TRUE(runtime_.Synchronize(stream_).ok());
  ExpectViolation("was changed");
}

TEST_F(FakeCudaRuntimeTest, ACopyOutOfBoundsIsNoticed) {
  ASSERT_TRUE(runtime_.CopyToDevice(device_ + 1, pinned_, 100, stream_).ok());
  ExpectViolation("leaves its allocation");
}

TEST_F(FakeCudaRuntimeTest, ARowOutOfBoundsIsNoticed) {
  ASSERT_TRUE(runtime_.CopyToDevice2D({device_, 10, pinned_, 33, 10, 4}, stream_).ok());
  ExpectViolation("not page-locked");  // the fourth row ends at 109
}

TEST_F(FakeCudaRuntimeTest, PageableMemoryIsNoticed) {
  std::byte elsewhere[100] = {};
  ASSERT_TRUE(runtime_.CopyToDevice(device_, elsewhere, 100, stream_).ok());
  ExpectViolation("not page-locked");
}

TEST_F(FakeCudaRuntimeTest, AnotherDeviceInUseIsNoticed) {
  ASSERT_TRUE(runtime_.UseDevice(1).ok());
  ASSERT_TRUE(runtime_.Synchronize(stream_).ok());
  ExpectViolation("another device");
}

TEST_F(FakeCudaRuntimeTest, FreeingTwiceIsNoticed) {
  runtime_.FreeDevice(device_);
  runtime_.FreeDevice(device_);
  ExpectViolation("FreeDevice");
}

TEST_F(FakeCudaRuntimeTest, MemoryIsLimitedOnEachDevice) {
  EXPECT_EQ(runtime_.FreeDeviceBytes().value(), 900u);
  EXPECT_TRUE(absl::IsResourceExhausted(runtime_.AllocateDevice(901).status()));
  ASSERT_TRUE(runtime_.UseDevice(1).ok());
  EXPECT_EQ(runtime_.FreeDeviceBytes().value(), 1000u);
}

TEST_F(FakeCudaRuntimeTest, TheNthCallFailsOnce) {
  runtime_.FailAt(CudaCall::kSynchronize, 2, absl::InternalError("now"));
  EXPECT_TRUE(runtime_.Synchronize(stream_).ok());
  EXPECT_TRUE(absl::IsInternal(runtime_.Synchronize(stream_)));
  EXPECT_TRUE(runtime_.Synchronize(stream_).ok());
}

TEST_F(FakeCudaRuntimeTest, ALossIsForGoodAndForOneDevice) {
  runtime_.FailAt(CudaCall::kSetBytes, 1, absl::UnavailableError("gone"));
  EXPECT_TRUE(absl::IsUnavailable(runtime_.SetBytes(device_, 0, 100, stream_)));
  EXPECT_TRUE(absl::IsUnavailable(runtime_.Synchronize(stream_)));
  EXPECT_TRUE(absl::IsUnavailable(runtime_.UseDevice(0)));
  EXPECT_TRUE(runtime_.UseDevice(1).ok());
}

}  // namespace
}  // namespace sinq::kernels
