#include <cerrno>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "server/base/error.h"
#include "server/base/file_system.h"
#include "server/base/posix_directory.h"
#include "server/base/posix_path.h"

namespace sinq {
namespace {

// A root under each of the spellings that a client may use.
struct Root {
  std::string configured;  // normalised: "/a/b"; "" is "/"
  std::string real;        // the same with symlinks resolved
  std::shared_ptr<Directory> directory;
};

bool IsBeneath(absl::string_view path, absl::string_view root) {
  return absl::StartsWith(path, root) && (path.size() == root.size() || path[root.size()] == '/');
}

absl::StatusOr<std::string> Normalised(const std::filesystem::path& path) {
  return ParseLocalUri(path.lexically_normal().string());
}

absl::StatusOr<Root> OpenRoot(const std::string& path) {
  absl::StatusOr<std::unique_ptr<PosixDirectory>> directory = PosixDirectory::Open(path);
  if (!directory.ok()) return Annotate(directory.status(), "Allowed root");
  std::error_code error;
  const std::filesystem::path absolute = std::filesystem::absolute(path, error);
  if (error)
    return ErrnoToStatus(error.value(), absl::StrCat("Cannot resolve root \"", path, "\""));
  const std::filesystem::path real = std::filesystem::canonical(path, error);
  if (error)
    return ErrnoToStatus(error.value(), absl::StrCat("Cannot resolve root \"", path, "\""));
  Root root;
  absl::StatusOr<std::string> configured_text = Normalised(absolute);
  if (!configured_text.ok()) return configured_text.status();
  absl::StatusOr<std::string> real_text = Normalised(real);
  if (!real_text.ok()) return real_text.status();
  root.configured = *std::move(configured_text);
  root.real = *std::move(real_text);
  root.directory = *std::move(directory);
  return root;
}

class PosixFileSystem final : public FileSystem {
 public:
  explicit PosixFileSystem(std::vector<Root> roots) : roots_(std::move(roots)) {}

  absl::StatusOr<ResolvedPath> Resolve(absl::string_view uri) const override {
    absl::StatusOr<std::string> path = ParseLocalUri(uri);
    if (!path.ok()) return path.status();
    const Root* best = nullptr;
    size_t best_size = 0;
    for (const Root& root : roots_) {
      for (const std::string* spelling : {&root.configured, &root.real}) {
        if (!IsBeneath(*path, *spelling)) continue;
        if (best != nullptr && spelling->size() <= best_size) continue;
        best = &root;
        best_size = spelling->size();
      }
    }
    if (best == nullptr) return OutsideRoots(uri);
    const absl::string_view rest = absl::string_view(*path).substr(best_size);
    return ResolvedPath{best->directory, std::string(absl::StripPrefix(rest, "/")),
                        std::string(uri)};
  }

 private:
  absl::Status OutsideRoots(absl::string_view uri) const {
    return MakeError(absl::StatusCode::kPermissionDenied, Reason::kPathOutsideRoots,
                     absl::StrCat("\"", uri,
                                  "\" is outside every allowed root. Use a path beneath a "
                                  "root that the server was started with (--allow-root)."),
                     {{"field", "uri"}, {"path", std::string(uri)}});
  }

  const std::vector<Root> roots_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<FileSystem>> MakePosixFileSystem(
    const std::vector<std::string>& roots) {
  std::vector<Root> open;
  for (const std::string& path : roots) {
    absl::StatusOr<Root> root = OpenRoot(path);
    if (!root.ok()) return root.status();
    open.push_back(*std::move(root));
  }
  return std::make_unique<PosixFileSystem>(std::move(open));
}

absl::StatusOr<std::unique_ptr<Directory>> OpenPosixDirectory(const std::string& path,
                                                              bool create) {
  if (create) {
    std::error_code error;
    std::filesystem::create_directories(path, error);
    if (error) {
      return ErrnoToStatus(error.value(), absl::StrCat("Cannot make directory \"", path, "\""));
    }
  }
  absl::StatusOr<std::unique_ptr<PosixDirectory>> directory = PosixDirectory::Open(path);
  if (!directory.ok()) return directory.status();
  return *std::move(directory);
}

}  // namespace sinq
