#include "server/worker/file_digester.h"

#include <memory>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/sink/sink.h"
#include "tests/fakes/temp_dir.h"

namespace sinq {
namespace {

using testing::HasSubstr;

constexpr uint64_t kFileBytes = 3'000'000;
constexpr uint64_t kHeaderBytes = 77;  // ends within a block

// A file that is there already: a header and three ranges.
class FileDigesterTest : public testing::Test {
 protected:
  FileDigesterTest() : content_(MakeContent()) {
    files_ = *MakePosixFileSystem({temp_.path()});
    sink_ = *OpenLocalSink(*files_->Resolve(temp_.Join("out")), "job1");
    EXPECT_TRUE(sink_->PutFile("f", content_).ok());
  }
  static std::string MakeContent() {
    std::string content(kFileBytes, 'x');
    for (size_t i = 0; i < content.size(); ++i) content[i] = static_cast<char>(i * 7 / 5);
    return content;
  }
  absl::string_view Part(uint64_t offset, uint64_t size_bytes) const {
    return absl::string_view(content_).substr(offset, size_bytes);
  }
  WrittenRange Range(uint64_t offset, uint64_t size_bytes, const std::string& tensor) const {
    return {offset, size_bytes, tensor, Sha256Hex(Part(offset, size_bytes))};
  }

  TempDir temp_;
  const std::string content_;
  std::unique_ptr<FileSystem> files_;
  std::unique_ptr<Sink> sink_;
  FileDigester digester_{"f", kFileBytes, Part(0, kHeaderBytes)};
};

TEST_F(FileDigesterTest, RangesInAnyOrderGiveTheDigestOfTheFile) {
  digester_.MarkWritten(Range(2'000'000, 1'000'000, "c"));
  digester_.MarkWritten({500, 0, "empty"});
  EXPECT_EQ(*digester_.Advance(*sink_), false);
  EXPECT_FALSE(digester_.Finish(*sink_).ok());  // the front is missing
  digester_.MarkWritten(Range(kHeaderBytes, 1'499'923, "a"));
  EXPECT_EQ(*digester_.Advance(*sink_), true);
  EXPECT_EQ(*digester_.Advance(*sink_), false);
  digester_.MarkWritten({1'500'000, 500'000});  // of no tensor
  const auto digest = digester_.Finish(*sink_);
  ASSERT_TRUE(digest.ok()) << digest.status();
  EXPECT_EQ(*digest, Sha256Hex(content_));
}

TEST_F(FileDigesterTest, WhoeverWritesTheNextRangeDigestsIt) {
  EXPECT_EQ(digester_.TakeAt(1'000'000), nullptr);  // too early
  Sha256* const taken = digester_.TakeAt(kHeaderBytes);
  ASSERT_NE(taken, nullptr);
  EXPECT_EQ(digester_.TakeAt(kHeaderBytes), nullptr);
  digester_.MarkWritten(Range(2'000'000, 1'000'000, "b"));
  EXPECT_EQ(*digester_.Advance(*sink_), false);  // taken
  EXPECT_TRUE(absl::IsInternal(digester_.Finish(*sink_).status()));
  taken->Update(Part(kHeaderBytes, 2'000'000 - kHeaderBytes));
  digester_.GiveBack(2'000'000 - kHeaderBytes);
  // Of a range that is digested nothing is read back, whatever the sink has there.
  WrittenRange digested = Range(kHeaderBytes, 2'000'000 - kHeaderBytes, "a");
  digested.sha256 = Sha256Hex("something else");
  digester_.MarkWritten(digested);
  EXPECT_EQ(*digester_.Advance(*sink_), true);
  EXPECT_EQ(*digester_.Finish(*sink_), Sha256Hex(content_));
}

TEST_F(FileDigesterTest, OtherBytesThanWereWrittenAreDataLoss) {
  WrittenRange range = Range(kHeaderBytes, 1000, "layer.W_q");
  range.sha256 = Sha256Hex("something else");
  digester_.MarkWritten(range);
  const absl::Status status = digester_.Advance(*sink_).status();
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("layer.W_q"));
}

}  // namespace
}  // namespace sinq
