#include "server/worker/file_digester.h"

#include <memory>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/base/checksum.h"
#include "server/sink/sink.h"
#include "tests/fakes/temp_dir.h"

namespace sinq {
namespace {

using testing::HasSubstr;

uint64_t ChecksumOf(absl::string_view text) {
  Checksum checksum;
  checksum.Update({reinterpret_cast<const std::byte*>(text.data()), text.size()});
  return checksum.Value();
}

// A file of three ranges, written.
class FileDigesterTest : public testing::Test {
 protected:
  FileDigesterTest() : content_(3'000'000, 'x') {
    for (size_t i = 0; i < content_.size(); ++i) content_[i] = static_cast<char>(i * 7 / 5);
    files_ = *MakePosixFileSystem({temp_.path()});
    sink_ = *OpenLocalSink(*files_->Resolve(temp_.Join("out")), "job1");
    EXPECT_TRUE(sink_->PutFile("f", content_).ok());
  }
  absl::string_view Part(uint64_t offset, uint64_t size_bytes) const {
    return absl::string_view(content_).substr(offset, size_bytes);
  }
  WrittenRange Range(uint64_t offset, uint64_t size_bytes, const std::string& tensor) const {
    WrittenRange range{offset, size_bytes, tensor};
    range.checksum = ChecksumOf(Part(offset, size_bytes));
    return range;
  }

  TempDir temp_;
  std::string content_;
  std::unique_ptr<FileSystem> files_;
  std::unique_ptr<Sink> sink_;
  FileDigester digester_{"f", 3'000'000};
};

TEST_F(FileDigesterTest, RangesInAnyOrderGiveTheDigestsOfFileAndTensors) {
  digester_.MarkWritten(Range(2'000'000, 1'000'000, "c"));
  digester_.MarkWritten({500, 0, "empty"});
  EXPECT_EQ(*digester_.Advance(*sink_), false);
  EXPECT_FALSE(digester_.Finish(*sink_).ok());  // the front is missing
  digester_.MarkWritten({0, 77});               // a header, which ends within a block
  digester_.MarkWritten(Range(77, 1'499'923, "a"));
  EXPECT_EQ(*digester_.Advance(*sink_), true);
  EXPECT_EQ(*digester_.Advance(*sink_), true);
  EXPECT_EQ(*digester_.Advance(*sink_), false);
  WrittenRange of_earlier_version{1'500'000, 500'000, "b"};
  of_earlier_version.sha256 = Sha256Hex(Part(1'500'000, 500'000));
  digester_.MarkWritten(of_earlier_version);
  const auto digest = digester_.Finish(*sink_);
  ASSERT_TRUE(digest.ok()) << digest.status();
  EXPECT_EQ(*digest, Sha256Hex(content_));
  EXPECT_EQ(*digester_.TensorDigest("a"), Sha256Hex(Part(77, 1'499'923)));
  EXPECT_EQ(*digester_.TensorDigest("b"), of_earlier_version.sha256);
  EXPECT_EQ(*digester_.TensorDigest("c"), Sha256Hex(Part(2'000'000, 1'000'000)));
  EXPECT_EQ(*digester_.TensorDigest("empty"), Sha256Hex(""));
  EXPECT_TRUE(absl::IsInternal(digester_.TensorDigest("d").status()));
}

TEST_F(FileDigesterTest, OtherBytesThanWereWrittenAreDataLoss) {
  WrittenRange by_checksum = Range(0, 1000, "layer.W_q");
  *by_checksum.checksum ^= 1;
  digester_.MarkWritten(by_checksum);
  const absl::Status status = digester_.Advance(*sink_).status();
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("layer.W_q"));

  FileDigester other("f", 3'000'000);
  WrittenRange by_digest{0, 1000, "layer.W_q"};
  by_digest.sha256 = Sha256Hex("something else");
  other.MarkWritten(by_digest);
  EXPECT_TRUE(absl::IsDataLoss(other.Advance(*sink_).status()));
}

}  // namespace
}  // namespace sinq
