#include "client/manifest.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "tests/client/scratch_dir.h"

namespace sinq::client {
namespace {

// SHA-256 of "abc" (FIPS 180-2, appendix B.1).
constexpr char kAbc[] = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

class VerifyTest : public testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::create_directories(dir_);
    Put("a.bin", "abc");
    Put(kManifestName,
        std::string(R"({"job_id": "job-1", "files": [{"name": "a.bin", "size": 3, "sha256": ")") +
            kAbc + R"("}]})");
  }
  void Put(const std::string& name, const std::string& text) {
    std::ofstream(dir_ + "/" + name) << text;
  }
  std::string Problem() {
    const auto report = VerifyDirectory(dir_, cancel_, [](auto...) {});
    if (!report.ok()) return report.status().ToString();
    if (report->findings.empty()) return "";
    return report->findings[0].problem + " " + report->findings[0].file;
  }
  const ScratchDir scratch_;
  const std::string dir_ = scratch_.path();
  CancelToken cancel_;
};

TEST_F(VerifyTest, IntactDirectory) { EXPECT_EQ(Problem(), ""); }

TEST_F(VerifyTest, ChangedByte) {
  Put("a.bin", "abd");
  EXPECT_EQ(Problem(), "sha256 a.bin");
}

TEST_F(VerifyTest, ChangedSize) {
  Put("a.bin", "abcd");
  EXPECT_EQ(Problem(), "size a.bin");
}

TEST_F(VerifyTest, MissingFile) {
  std::filesystem::remove(dir_ + "/a.bin");
  EXPECT_EQ(Problem(), "missing a.bin");
}

TEST_F(VerifyTest, ExtraFile) {
  Put("b.bin", "");
  EXPECT_EQ(Problem(), "extra b.bin");
}

TEST_F(VerifyTest, NoManifestIsNotFound) {
  std::filesystem::remove(dir_ + "/" + kManifestName);
  EXPECT_EQ(Problem().rfind("NOT_FOUND", 0), 0u) << Problem();
}

TEST(Manifest, FilesMayBeAnObject) {
  const auto manifest = ParseManifest(
      std::string(R"({"files": {"a": {"size_bytes": 3, "sha256": ")") + kAbc + R"("}}})");
  ASSERT_TRUE(manifest.ok()) << manifest.status();
  EXPECT_EQ(manifest->at("a").size_bytes, 3);
}

TEST(Manifest, RefusesNamesThatLeaveTheDirectoryAndHalfEntries) {
  for (const char* text :
       {R"({"files": [{"name": "../a", "size": 1, "sha256": "00"}]})", "[]", "{", R"({"files": 3})",
        R"({"files": [{"name": "a", "size": -1, "sha256": "00"}]})", R"({"files": [7]})",
        R"({"files": [{"name": "a", "size": 1}]})"}) {
    EXPECT_EQ(ParseManifest(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

}  // namespace
}  // namespace sinq::client
