#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "client/digest.h"
#include "tests/client/fake_server.h"
#include "tests/client/scratch_dir.h"

namespace sinq::client {
namespace {

class DownloadTest : public testing::Test {
 protected:
  DownloadTest() {
    for (int i = 0; i < 100; ++i) server_.tensors.content += static_cast<char>('a' + i % 26);
    Sha256 sha;
    EXPECT_TRUE(sha.Update(server_.tensors.content).ok());
    server_.tensors.sha256 = *sha.Finish();
  }
  FakeServer::Result Download() {
    return server_.Run({"download", "job-1", "--output", dir_, "-q"});
  }
  std::string Content(const std::string& name) const {
    std::ostringstream text;
    text << std::ifstream(dir_ + "/" + name).rdbuf();
    return text.str();
  }
  void Put(const std::string& name, const std::string& text) {
    std::filesystem::create_directories(dir_);
    std::ofstream(dir_ + "/" + name) << text;
  }
  const ScratchDir scratch_;
  const std::string dir_ = scratch_.path();
  FakeServer server_;
};

TEST_F(DownloadTest, GoesOnAcrossBrokenConnections) {
  server_.tensors.break_after_bytes = 40;
  const auto result = Download();
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(Content("model.safetensors"), server_.tensors.content);
  EXPECT_EQ(server_.tensors.read_offsets, (std::vector<int64_t>{0, 40, 80}));
  EXPECT_FALSE(std::filesystem::exists(dir_ + "/model.safetensors.part"));
}

TEST_F(DownloadTest, ContinuesAPartOfAnEarlierRun) {
  Put("model.safetensors.part", server_.tensors.content.substr(0, 33));
  EXPECT_EQ(Download().exit_code, 0);
  EXPECT_EQ(Content("model.safetensors"), server_.tensors.content);
  EXPECT_EQ(server_.tensors.read_offsets, (std::vector<int64_t>{33}));
}

TEST_F(DownloadTest, RunningAgainReadsNothing) {
  EXPECT_EQ(Download().exit_code, 0);
  EXPECT_EQ(Download().exit_code, 0);
  EXPECT_EQ(server_.tensors.read_offsets.size(), 1u);
}

TEST_F(DownloadTest, WrongBytesAreRemovedAndExitWithSeven) {
  Put("model.safetensors.part", "not the beginning of this file");
  EXPECT_EQ(Download().exit_code, 7);
  EXPECT_FALSE(std::filesystem::exists(dir_ + "/model.safetensors"));
  EXPECT_EQ(Download().exit_code, 0);
}

TEST_F(DownloadTest, AnotherFileOfThatNameIsNotOverwritten) {
  Put("model.safetensors", "mine");
  EXPECT_EQ(Download().exit_code, 1);
  EXPECT_EQ(Content("model.safetensors"), "mine");
}

TEST_F(DownloadTest, UnknownFileIsNotFound) {
  EXPECT_EQ(server_.Run({"download", "job-1", "nothing.txt", "--output", dir_}).exit_code, 3);
}

}  // namespace
}  // namespace sinq::client
