#include "client/manifest.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "client/digest.h"
#include "client/local_file.h"

namespace sinq::client {
namespace {

using Json = nlohmann::json;
// Per-tensor figures of a million tensors, a few hundred bytes each.
constexpr int64_t kMaxManifestBytes = int64_t{512} * 1024 * 1024;

const Json* Find(const Json& object, std::initializer_list<const char*> names) {
  for (const char* name : names) {
    if (object.contains(name)) return &object[name];
  }
  return nullptr;
}

absl::Status ParseFile(const std::string& name, const Json& value, ManifestFile& file) {
  const Json* size = value.is_object() ? Find(value, {"size_bytes", "size"}) : nullptr;
  const Json* sha = value.is_object() ? Find(value, {"sha256"}) : nullptr;
  if (size == nullptr || !size->is_number_unsigned() || sha == nullptr || !sha->is_string()) {
    return absl::InvalidArgumentError(
        absl::StrCat("The manifest has no size and sha256 for file \"", name, "\"."));
  }
  file.size_bytes = size->get<int64_t>();
  file.sha256 = absl::AsciiStrToLower(sha->get<std::string>());
  if (file.sha256.size() != 64 || file.size_bytes < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("The manifest's size or sha256 of \"", name, "\" cannot be right."));
  }
  return absl::OkStatus();
}

absl::Status AddFile(const std::string& name, const Json& value, Manifest& manifest) {
  if (!IsPlainFileName(name)) {
    return absl::InvalidArgumentError(
        absl::StrCat("The manifest lists \"", name, "\", which is not a plain file name."));
  }
  ManifestFile file;
  if (absl::Status status = ParseFile(name, value, file); !status.ok()) return status;
  if (!manifest.emplace(name, std::move(file)).second) {
    return absl::InvalidArgumentError(absl::StrCat("The manifest lists \"", name, "\" twice."));
  }
  return absl::OkStatus();
}

// What is wrong with one listed file, if anything.
absl::Status CheckFile(const std::string& directory, const std::string& name,
                       const ManifestFile& expected, const CancelToken& cancel,
                       VerifyReport& report) {
  const std::string path = (std::filesystem::path(directory) / name).string();
  std::error_code error;
  const auto kind = std::filesystem::symlink_status(path, error).type();
  if (kind == std::filesystem::file_type::not_found) {
    report.findings.push_back({name, "missing", "not in the directory"});
    return absl::OkStatus();
  }
  const auto file = LocalFile::OpenForRead(path);
  if (!file.ok()) return file.status();
  if (file->size_bytes() != expected.size_bytes) {
    report.findings.push_back(
        {name, "size",
         absl::StrCat("has ", file->size_bytes(), " bytes, should have ", expected.size_bytes)});
    return absl::OkStatus();
  }
  const auto sha = FileSha256(path, cancel);
  if (!sha.ok()) return sha.status();
  if (*sha != expected.sha256) {
    report.findings.push_back(
        {name, "sha256", absl::StrCat("is ", *sha, ", should be ", expected.sha256)});
  }
  return absl::OkStatus();
}

absl::Status FindExtras(const std::string& directory, const Manifest& manifest,
                        VerifyReport& report) {
  std::error_code error;
  std::filesystem::directory_iterator entries(directory, error);
  for (; !error && entries != std::filesystem::directory_iterator(); entries.increment(error)) {
    const std::string name = entries->path().filename().string();
    if (name == kManifestName || manifest.contains(name)) continue;
    report.findings.push_back({name, "extra", "not in the manifest"});
  }
  return error ? FileError(directory, "cannot be listed", error.value()) : absl::OkStatus();
}

}  // namespace

bool IsPlainFileName(absl::string_view name) {
  return !name.empty() && name.size() <= 255 && name != "." && name != ".." &&
         std::none_of(name.begin(), name.end(), [](char c) {
           return c == '/' || c == '\x7f' || static_cast<unsigned char>(c) < 0x20;
         });
}

absl::StatusOr<std::string> ReadManifest(const std::string& directory) {
  const auto file =
      LocalFile::OpenForRead((std::filesystem::path(directory) / kManifestName).string());
  if (!file.ok()) return file.status();
  if (file->size_bytes() > kMaxManifestBytes) {
    return absl::InvalidArgumentError(absl::StrCat(file->path(), " has ", file->size_bytes(),
                                                   " bytes, the limit is ", kMaxManifestBytes,
                                                   "."));
  }
  return file->Read(0, file->size_bytes());
}

absl::StatusOr<Manifest> ParseManifest(absl::string_view json) {
  const Json root = Json::parse(json.begin(), json.end(), nullptr, /*allow_exceptions=*/false);
  if (!root.is_object() || !root.contains("files") ||
      !(root["files"].is_array() || root["files"].is_object())) {
    return absl::InvalidArgumentError("The manifest is not JSON with a list of files.");
  }
  Manifest manifest;
  const Json& files = root["files"];
  for (const auto& [key, value] : files.items()) {
    std::string name = key;
    if (files.is_array()) {
      const Json* field = value.is_object() ? Find(value, {"name", "file"}) : nullptr;
      name = field != nullptr && field->is_string() ? field->get<std::string>() : "";
    }
    if (absl::Status status = AddFile(name, value, manifest); !status.ok()) return status;
  }
  return manifest;
}

absl::StatusOr<VerifyReport> VerifyDirectory(
    const std::string& directory, const CancelToken& cancel,
    const std::function<void(int64_t, int64_t, int64_t, int64_t)>& on_file) {
  const auto text = ReadManifest(directory);
  if (!text.ok()) return text.status();
  const auto manifest = ParseManifest(*text);
  if (!manifest.ok()) return manifest.status();

  VerifyReport report;
  int64_t all_bytes = 0;
  for (const auto& [name, expected] : *manifest) all_bytes += expected.size_bytes;
  for (const auto& [name, expected] : *manifest) {
    absl::Status status = CheckFile(directory, name, expected, cancel, report);
    if (!status.ok()) return status;
    ++report.files_checked;
    report.bytes_checked += expected.size_bytes;
    on_file(report.files_checked, report.bytes_checked, static_cast<int64_t>(manifest->size()),
            all_bytes);
  }
  if (absl::Status status = FindExtras(directory, *manifest, report); !status.ok()) return status;
  return report;
}

}  // namespace sinq::client
