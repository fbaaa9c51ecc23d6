#include "server/worker/file_digester.h"

#include <memory>
#include <string>

#include "gtest/gtest.h"
#include "server/sink/sink.h"
#include "tests/fakes/temp_dir.h"

namespace sinq {
namespace {

TEST(FileDigesterTest, RangesInAnyOrderGiveTheDigestOfTheFile) {
  TempDir temp;
  const auto files = MakePosixFileSystem({temp.path()});
  const auto sink = OpenLocalSink(*(*files)->Resolve(temp.Join("out")), "job1");
  ASSERT_TRUE(sink.ok()) << sink.status();
  std::string content(3'000'000, 'x');
  for (size_t i = 0; i < content.size(); ++i) content[i] = static_cast<char>(i * 7 / 5);
  ASSERT_TRUE((*sink)->PutFile("f", content).ok());

  FileDigester digester("f", content.size());
  digester.MarkWritten(2'000'000, 1'000'000);
  digester.MarkWritten(500, 0);  // an empty tensor
  ASSERT_TRUE(digester.Advance(**sink).ok());
  EXPECT_FALSE(digester.Finish(**sink).ok());  // the front is missing
  digester.MarkWritten(0, 1'500'000);
  ASSERT_TRUE(digester.Advance(**sink).ok());
  digester.MarkWritten(1'500'000, 500'000);
  const auto digest = digester.Finish(**sink);
  ASSERT_TRUE(digest.ok()) << digest.status();
  EXPECT_EQ(*digest, Sha256Hex(content));
}

}  // namespace
}  // namespace sinq
