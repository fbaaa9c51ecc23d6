// A directory of this test alone: tests run in parallel.
#ifndef SINQ_TESTS_CLIENT_SCRATCH_DIR_H_
#define SINQ_TESTS_CLIENT_SCRATCH_DIR_H_

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <string>

#include "absl/strings/str_cat.h"

namespace sinq::client {

// Not made, only named: the command under test may have to make it. Removed with all it holds.
class ScratchDir {
 public:
  ScratchDir()
      : path_(absl::StrCat(testing::TempDir(), "/sinq-", getpid(), "-",
                           testing::UnitTest::GetInstance()->current_test_info()->name())) {
    std::filesystem::remove_all(path_);
  }
  ~ScratchDir() { std::filesystem::remove_all(path_); }
  ScratchDir(const ScratchDir&) = delete;
  ScratchDir& operator=(const ScratchDir&) = delete;
  const std::string& path() const { return path_; }

 private:
  const std::string path_;
};

}  // namespace sinq::client

#endif  // SINQ_TESTS_CLIENT_SCRATCH_DIR_H_
