#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "client/safetensors_file.h"
#include "tests/client/fake_server.h"
#include "tests/client/scratch_dir.h"

namespace sinq::client {
namespace {

class QuantizeTest : public testing::Test {
 protected:
  QuantizeTest() {
    std::filesystem::create_directories(dir_);
    auto file = LocalFile::Create(in_);
    EXPECT_TRUE(file.ok());
    EXPECT_TRUE(
        WriteSafetensors(
            {{"a.weight", Weight('a')}, {"b.weight", Weight('b')}, {"norm.weight", Norm()}}, *file)
            .ok());
  }
  static TensorContent Weight(char c) {
    // Larger than one chunk.
    return {"BF16", {1024, 1024}, 2 << 20, [c](const auto& write) {
              return write(std::string(2 << 20, c));
            }};
  }
  static TensorContent Norm() {
    return {"F32", {2}, 8, [](const auto& write) { return write("normnorm"); }};
  }
  FakeServer::Result Quantize(std::vector<std::string> more = {}) {
    std::vector<std::string> arguments = {"quantize", in_, "--output", out_, "-q"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return server_.Run(arguments);
  }
  int FilesInDirectory() const {
    return static_cast<int>(std::distance(std::filesystem::directory_iterator(dir_), {}));
  }
  const ScratchDir scratch_;
  const std::string dir_ = scratch_.path();
  const std::string in_ = dir_ + "/in.safetensors", out_ = dir_ + "/out.safetensors";
  FakeServer server_;
};

TEST_F(QuantizeTest, QuantizesMatricesAndCopiesTheRest) {
  const auto result = Quantize();
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const auto file = LocalFile::OpenForRead(out_);
  const auto entries = ReadSafetensorsHeader(*file);
  ASSERT_TRUE(entries.ok()) << entries.status();
  ASSERT_EQ(entries->size(), 3u);
  EXPECT_EQ(*file->Read(entries->at("norm.weight").offset_bytes, 8), "normnorm");
  const TensorEntry& b = entries->at("b.W_q");
  EXPECT_EQ(*file->Read(b.offset_bytes, b.size_bytes), std::string(2 << 20, 'b'));
  const auto sidecar = nlohmann::json::parse(std::ifstream(out_ + ".meta.json"));
  EXPECT_EQ(sidecar["a"]["meta"]["nbits"], 4);
  EXPECT_EQ(FilesInDirectory(), 3);  // no temporary file is left
}

TEST_F(QuantizeTest, ExcludedTensorsAreCopied) {
  ASSERT_EQ(Quantize({"--exclude", "^a\\."}).exit_code, 0);
  const auto file = LocalFile::OpenForRead(out_);
  EXPECT_TRUE(ReadSafetensorsHeader(*file)->contains("a.weight"));
}

TEST_F(QuantizeTest, RefusalOfTheServerLeavesNothing) {
  server_.tensors.refuse_tensor = "b.weight";
  const auto result = Quantize();
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_NE(result.err.find("holds a NaN"), std::string::npos);
  EXPECT_EQ(FilesInDirectory(), 1);
}

TEST_F(QuantizeTest, ExistingOutputNeedsForce) {
  ASSERT_EQ(Quantize().exit_code, 0);
  EXPECT_EQ(Quantize().exit_code, 1);
  EXPECT_EQ(Quantize({"--force"}).exit_code, 0);
}

TEST_F(QuantizeTest, LocalErrors) {
  EXPECT_EQ(server_.Run({"quantize", dir_ + "/none", "--output", out_}).exit_code, 3);
  std::ofstream(dir_ + "/bad") << "this is no tensor file";
  EXPECT_EQ(server_.Run({"quantize", dir_ + "/bad", "--output", out_}).exit_code, 2);
  EXPECT_EQ(Quantize({"--exclude", "["}).exit_code, 2);
}

}  // namespace
}  // namespace sinq::client
