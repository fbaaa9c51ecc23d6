#include "server/rpc/artifact.h"

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "server/base/error.h"
#include "server/base/limits.h"
#include "server/sink/sink.h"

namespace sinq {
namespace {

absl::StatusOr<std::unique_ptr<Directory>> OutputOf(const ServiceContext& context,
                                                    const std::string& job_id) {
  const absl::StatusOr<Job> job = context.store.Get(job_id);
  if (!job.ok()) return job.status();
  if (job->state != JobState::kSucceeded) {
    return MakeError(absl::StatusCode::kFailedPrecondition, Reason::kArtifactNotFound,
                     absl::StrCat("Job ", job_id, " is ", JobStateName(job->state),
                                  "; only a SUCCEEDED job has files."),
                     {{"job_id", job_id}});
  }
  const absl::StatusOr<ResolvedPath> path = context.files.Resolve(job->spec.output_uri);
  if (!path.ok()) return path.status();
  return path->root->OpenDirectory(path->relative);
}

absl::StatusOr<std::string> ReadManifest(const Directory& directory) {
  const absl::StatusOr<std::unique_ptr<File>> file = directory.OpenForRead(kManifestFileName);
  if (!file.ok()) return file.status();
  const absl::StatusOr<uint64_t> size = (*file)->Size();
  if (!size.ok()) return size.status();
  if (*size > kMaxManifestBytes) {
    return absl::DataLossError(absl::StrCat("The output's ", kManifestFileName, " has ", *size,
                                            " bytes, more than any of ours has."));
  }
  std::string text(static_cast<size_t>(*size), '\0');
  const absl::Status status =
      (*file)->ReadAt(0, {reinterpret_cast<std::byte*>(text.data()), text.size()});
  if (!status.ok()) return status;
  return text;
}

absl::StatusOr<std::vector<ArtifactInfo>> FilesOf(const std::string& manifest) {
  std::vector<ArtifactInfo> files;
  const nlohmann::json json = nlohmann::json::parse(manifest, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("files") || !json["files"].is_array()) {
    return absl::DataLossError(
        absl::StrCat("The output's ", kManifestFileName,
                     " is damaged: it lists no files. Quantize again into another directory."));
  }
  for (const auto& file : json["files"]) {
    if (!file.is_object()) continue;
    const auto name = file.find("name"), size = file.find("size_bytes"),
               sha256 = file.find("sha256");
    if (name == file.end() || size == file.end() || sha256 == file.end()) continue;
    if (!name->is_string() || !size->is_number_unsigned() || !sha256->is_string()) continue;
    files.push_back({name->get<std::string>(), size->get<uint64_t>(), sha256->get<std::string>()});
  }
  files.push_back({std::string(kManifestFileName), manifest.size(), ""});
  return files;
}

}  // namespace

absl::StatusOr<std::vector<ArtifactInfo>> ListArtifactsOf(const ServiceContext& context,
                                                          const std::string& job_id) {
  const absl::StatusOr<std::unique_ptr<Directory>> directory = OutputOf(context, job_id);
  if (!directory.ok()) return directory.status();
  const absl::StatusOr<std::string> manifest = ReadManifest(**directory);
  if (!manifest.ok()) return manifest.status();
  return FilesOf(*manifest);
}

absl::StatusOr<std::unique_ptr<File>> OpenArtifact(const ServiceContext& context,
                                                   const std::string& job_id,
                                                   const std::string& file) {
  const absl::StatusOr<std::vector<ArtifactInfo>> files = ListArtifactsOf(context, job_id);
  if (!files.ok()) return files.status();
  for (const ArtifactInfo& info : *files) {
    if (info.file != file) continue;
    const absl::StatusOr<std::unique_ptr<Directory>> directory = OutputOf(context, job_id);
    if (!directory.ok()) return directory.status();
    return (*directory)->OpenForRead(file);
  }
  return MakeError(
      absl::StatusCode::kNotFound, Reason::kArtifactNotFound,
      absl::StrCat("Job ", job_id, " has no such file; ListArtifacts names those it has."),
      {{"field", "file"}});
}

}  // namespace sinq
