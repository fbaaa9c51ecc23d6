#include "server/worker/range_writer.h"

#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "server/base/aligned_buffer.h"
#include "server/worker/range_digest.h"
#include "tests/fakes/fault_file_system.h"
#include "tests/fakes/temp_dir.h"

namespace sinq {
namespace {

constexpr uint64_t kFileBytes = (13 << 20) + 77;

std::string Noise(size_t size) {
  std::string out(size, '\0');
  uint32_t state = 1;
  for (char& c : out) c = static_cast<char>((state = state * 1664525 + 1013904223) >> 24);
  return out;
}

absl::Span<const std::byte> Bytes(absl::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

class RangeWriterTest : public testing::Test {
 protected:
  RangeWriterTest()
      : content_(Noise(kFileBytes)),
        plan_(std::make_shared<FaultPlan>()),
        files_(MakeFaultFileSystem(*MakePosixFileSystem({temp_.path()}), plan_)),
        sink_(*OpenLocalSink(*files_->Resolve(temp_.Join("out")), "job1")),
        staging_(*AlignedBuffer::Allocate(RangeWriter::StagingBytes(kFileBytes))) {
    EXPECT_TRUE(sink_->CreateFile("f", kFileBytes).ok());
  }

  // Appended in parts of `part_bytes`; the digest.
  absl::StatusOr<std::string> Write(uint64_t offset, uint64_t size_bytes, size_t part_bytes) {
    RangeWriter writer(*sink_, "f", offset, size_bytes, staging_.span());
    RangeDigest digest(digester_, offset, size_bytes);
    for (uint64_t at = 0; at < size_bytes; at += part_bytes) {
      const uint64_t part = std::min<uint64_t>(part_bytes, size_bytes - at);
      absl::Status status = writer.Append(Bytes(Part(offset + at, part)));
      if (!status.ok()) return status;
      digest.Update(Bytes(Part(offset + at, part)));
    }
    return digest.Finish();
  }
  absl::string_view Part(uint64_t offset, uint64_t size_bytes) const {
    return absl::string_view(content_).substr(offset, size_bytes);
  }

  TempDir temp_;
  const std::string content_;
  std::shared_ptr<FaultPlan> plan_;
  std::unique_ptr<FileSystem> files_;
  std::unique_ptr<Sink> sink_;
  AlignedBuffer staging_;
  FileDigester digester_{"f", kFileBytes, ""};
};

TEST_F(RangeWriterTest, RangesOfAllSizesArriveAndAreDigested) {
  // Ends of ranges within blocks and on them; small ones, pieces, and several pieces.
  const uint64_t ends[] = {0, 0, 1, 4096, 8192, 8200, 300'000, 300'008, 5 << 20, kFileBytes};
  for (size_t i = 1; i < std::size(ends); ++i) {
    const uint64_t size_bytes = ends[i] - ends[i - 1];
    const auto digest = Write(ends[i - 1], size_bytes, i % 2 == 0 ? 1000 : 1 << 20);
    ASSERT_TRUE(digest.ok()) << digest.status();
    EXPECT_EQ(*digest, Sha256Hex(Part(ends[i - 1], size_bytes)));
  }
  // In order, so nothing is read back.
  const int reads = plan_->Count(FaultOperation::kRead);
  EXPECT_EQ(*digester_.Finish(*sink_), Sha256Hex(content_));
  EXPECT_EQ(plan_->Count(FaultOperation::kRead), reads);
  std::string out(kFileBytes, '\0');
  ASSERT_TRUE(
      sink_->ReadOnceAt("f", 0, {reinterpret_cast<std::byte*>(out.data()), out.size()}).ok());
  EXPECT_EQ(out, content_);
}

TEST_F(RangeWriterTest, WhatIsWrittenOutOfOrderIsReadBack) {
  const uint64_t middle = (5 << 20) + 3;
  const auto second = Write(middle, kFileBytes - middle, 1 << 20);
  digester_.MarkWritten({middle, kFileBytes - middle, "b", *second});
  const auto first = Write(0, middle, 1 << 20);
  digester_.MarkWritten({0, middle, "a", *first});
  EXPECT_EQ(*second, Sha256Hex(Part(middle, kFileBytes - middle)));
  EXPECT_EQ(*digester_.Finish(*sink_), Sha256Hex(content_));
  EXPECT_GT(plan_->Count(FaultOperation::kRead), 0);
}

TEST_F(RangeWriterTest, MoreThanTheRangeHasIsRefused) {
  RangeWriter writer(*sink_, "f", 100, 1000, staging_.span());
  EXPECT_TRUE(writer.Append(Bytes(Part(100, 600))).ok());
  EXPECT_TRUE(absl::IsInternal(writer.Append(Bytes(Part(700, 401)))));
  EXPECT_TRUE(writer.Append(Bytes(Part(700, 400))).ok());
  EXPECT_TRUE(absl::IsInternal(writer.Append(Bytes("x"))));
}

TEST_F(RangeWriterTest, AFullDiskIsTheAppendersError) {
  plan_->Fail(FaultOperation::kWrite, 2, ENOSPC);
  const auto digest = Write(0, kFileBytes, 1 << 20);
  EXPECT_TRUE(absl::IsResourceExhausted(digest.status())) << digest.status();
  // The digest of the file is spoilt, and nobody takes it for one.
  digester_.MarkWritten({0, kFileBytes, "a", Sha256Hex(content_)});
  EXPECT_FALSE(digester_.Finish(*sink_).ok());
}

}  // namespace
}  // namespace sinq
