#include "tests/fakes/temp_dir.h"

#include <stdlib.h>

#include <cstdio>
#include <fstream>
#include <iterator>
#include <system_error>

namespace sinq {

TempDir::TempDir(const std::string& base) {
  const std::filesystem::path parent =
      base.empty() ? std::filesystem::temp_directory_path() : std::filesystem::path(base);
  std::string pattern = (std::filesystem::canonical(parent) / "sinq-test-XXXXXX").string();
  if (::mkdtemp(pattern.data()) == nullptr) {
    std::perror("mkdtemp");
    std::abort();
  }
  path_ = pattern;
}

TempDir::~TempDir() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::string TempDir::Join(absl::string_view name) const {
  return (path_ / std::string(name)).string();
}

std::string TempDir::Write(absl::string_view name, absl::string_view content) const {
  const std::filesystem::path file = Join(name);
  std::filesystem::create_directories(file.parent_path());
  std::ofstream(file, std::ios::binary).write(content.data(),
                                              static_cast<std::streamsize>(content.size()));
  return file.string();
}

std::string TempDir::Read(absl::string_view name) const {
  std::ifstream file(Join(name), std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
}

bool TempDir::Exists(absl::string_view name) const {
  std::error_code ignored;
  return std::filesystem::exists(std::filesystem::symlink_status(Join(name), ignored));
}

}  // namespace sinq
