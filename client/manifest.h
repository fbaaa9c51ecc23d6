// The manifest of a published directory, and the check of the directory against it.
#ifndef SINQ_CLIENT_MANIFEST_H_
#define SINQ_CLIENT_MANIFEST_H_

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "client/cancel_token.h"

namespace sinq::client {

inline constexpr char kManifestName[] = "sinq-manifest.json";

struct ManifestFile {
  int64_t size_bytes = 0;
  std::string sha256;  // lower-case hex
};
using Manifest = std::map<std::string, ManifestFile>;

// The text of the manifest in `directory`. NotFound without one, InvalidArgument if it is too
// large.
absl::StatusOr<std::string> ReadManifest(const std::string& directory);

// Reads the "files" of a manifest. InvalidArgument says what is wrong with it.
absl::StatusOr<Manifest> ParseManifest(absl::string_view json);

struct VerifyReport {
  struct Finding {
    std::string file;
    std::string problem;  // "missing", "extra", "size", "sha256"
    std::string detail;
  };
  int64_t files_checked = 0;
  int64_t bytes_checked = 0;
  std::vector<Finding> findings;
};

// Every file of the manifest: present, of its size and digest; and no file besides. NotFound
// without a manifest.
absl::StatusOr<VerifyReport> VerifyDirectory(
    const std::string& directory, const CancelToken& cancel,
    const std::function<void(int64_t files, int64_t bytes, int64_t all_files, int64_t all_bytes)>&
        on_file);

// A file name that stays in its directory: no separator, not "." or "..", no control characters, at
// most 255 bytes.
bool IsPlainFileName(absl::string_view name);

}  // namespace sinq::client

#endif  // SINQ_CLIENT_MANIFEST_H_
