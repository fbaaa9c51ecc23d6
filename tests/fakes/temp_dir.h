// A directory that goes away with the test.
#ifndef SINQ_TESTS_FAKES_TEMP_DIR_H_
#define SINQ_TESTS_FAKES_TEMP_DIR_H_

#include <filesystem>
#include <string>

#include "absl/strings/string_view.h"

namespace sinq {

// Aborts when the machine has no temporary directory; a test cannot go on then. `base`: where to make
// it; empty is the system's temporary directory.
class TempDir {
 public:
  explicit TempDir(const std::string& base = "");
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  ~TempDir();

  // Absolute, without symlinks.
  std::string path() const { return path_.string(); }
  std::string Join(absl::string_view name) const;

  // Writes a file, making missing directories, and returns its path.
  std::string Write(absl::string_view name, absl::string_view content) const;
  // The content of a file; "" if it is not there.
  std::string Read(absl::string_view name) const;
  bool Exists(absl::string_view name) const;

 private:
  std::filesystem::path path_;
};

}  // namespace sinq

#endif  // SINQ_TESTS_FAKES_TEMP_DIR_H_
