#include <filesystem>
#include <set>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "client/commands/commands.h"
#include "client/digest.h"
#include "client/format.h"
#include "client/local_file.h"
#include "client/manifest.h"

namespace sinq::client {
namespace {

// One `download`: files arrive as NAME.part and get their name once their digest is right. Not
// thread-safe.
class Download {
 public:
  Download(CommandContext& context, const DownloadFlags& flags)
      : context_(context), flags_(flags) {}

  absl::Status Run() {
    const auto list = context_.client.ListArtifacts(flags_.job_id);
    if (!list.ok()) return list.status();
    if (absl::Status status = Select(*list); !status.ok()) return status;
    std::error_code error;
    std::filesystem::create_directories(flags_.output, error);
    if (error) return FileError(flags_.output, "cannot be created", error.value());
    for (const v1::Artifact& artifact : selected_) {
      if (absl::Status status = Fetch(artifact); !status.ok()) return status;
      ++files_done_;
    }
    context_.progress.Finish();
    return PrintResult();
  }

 private:
  // The manifest goes last: a directory that has one is complete.
  absl::Status Select(const v1::ListArtifactsResponse& list) {
    std::set<std::string> wanted(flags_.files.begin(), flags_.files.end());
    const bool all = wanted.empty();
    std::vector<v1::Artifact> last;
    for (const v1::Artifact& artifact : list.artifacts()) {
      if (!IsPlainFileName(artifact.file()) || artifact.size_bytes() < 0) {
        return absl::DataLossError(absl::StrCat("The server lists a file named \"", artifact.file(),
                                                "\" that cannot be stored in a directory."));
      }
      if (!all && wanted.erase(artifact.file()) == 0) continue;
      (artifact.file() == kManifestName ? last : selected_).push_back(artifact);
      bytes_total_ += artifact.size_bytes();
    }
    selected_.insert(selected_.end(), last.begin(), last.end());
    if (wanted.empty()) return absl::OkStatus();
    return absl::NotFoundError(
        absl::StrCat("Job ", flags_.job_id, " has no file \"", *wanted.begin(), "\"."));
  }

  absl::Status Fetch(const v1::Artifact& artifact) {
    const std::string path = (std::filesystem::path(flags_.output) / artifact.file()).string();
    if (Exists(path)) return Keep(artifact, path);
    const std::string part = path + ".part";
    auto file = LocalFile::OpenForAppend(part);
    if (!file.ok()) return file.status();
    if (file->size_bytes() > artifact.size_bytes()) {
      if (absl::Status status = file->Truncate(0); !status.ok()) return status;
    }
    if (file->size_bytes() > 0) {
      context_.Note(absl::StrCat("Continuing ", artifact.file(), " at ",
                                 FormatBytes(file->size_bytes()), "."));
    }
    Advance(file->size_bytes());
    if (absl::Status status = Receive(artifact, *file); !status.ok()) return status;
    if (absl::Status status = Check(artifact, *file, part); !status.ok()) return status;
    if (absl::Status status = file->Sync(); !status.ok()) return status;
    return PublishFile(part, path, /*replace=*/false);
  }

  // A file that is there already stays if it is the right one; it is never overwritten.
  absl::Status Keep(const v1::Artifact& artifact, const std::string& path) {
    const auto file = LocalFile::OpenForRead(path);
    if (!file.ok()) return file.status();
    bool same = file->size_bytes() == artifact.size_bytes();
    if (same && !artifact.sha256().empty()) {
      const auto sha = FileSha256(path, context_.cancel);
      if (!sha.ok()) return sha.status();
      same = *sha == artifact.sha256();
    }
    if (!same) {
      return absl::AlreadyExistsError(
          absl::StrCat(path, " exists and is another file. Remove it, or use another --output."));
    }
    Advance(artifact.size_bytes());
    return absl::OkStatus();
  }

  absl::Status Receive(const v1::Artifact& artifact, LocalFile& file) {
    if (file.size_bytes() == artifact.size_bytes()) return absl::OkStatus();
    absl::Status status = context_.client.ReadArtifact(
        flags_.job_id, artifact.file(), file.size_bytes(),
        [&](absl::string_view bytes) -> absl::Status {
          if (static_cast<int64_t>(bytes.size()) > artifact.size_bytes() - file.size_bytes()) {
            return absl::DataLossError(absl::StrCat("The server sends more of ", artifact.file(),
                                                    " than the ", artifact.size_bytes(),
                                                    " bytes that it listed."));
          }
          if (absl::Status appended = file.Append(bytes); !appended.ok()) return appended;
          Advance(static_cast<int64_t>(bytes.size()));
          return absl::OkStatus();
        });
    // Whatever came is on disk; the next run continues from there.
    if (!status.ok()) {
      context_.progress.Finish();
      context_.Note("Run the same command again to continue.");
    }
    return status;
  }

  absl::Status Check(const v1::Artifact& artifact, const LocalFile& file, const std::string& part) {
    if (file.size_bytes() != artifact.size_bytes()) {
      return absl::DataLossError(absl::StrCat(artifact.file(), " ended after ", file.size_bytes(),
                                              " of ", artifact.size_bytes(),
                                              " bytes. Run the command again."));
    }
    if (artifact.sha256().empty()) return absl::OkStatus();
    const auto sha = FileSha256(part, context_.cancel);
    if (!sha.ok()) return sha.status();
    if (*sha == artifact.sha256()) return absl::OkStatus();
    // Kept, it would be taken for a good beginning the next time.
    std::error_code ignored;
    std::filesystem::remove(part, ignored);
    return absl::DataLossError(absl::StrCat(artifact.file(), " has SHA-256 ", *sha,
                                            ", the server's manifest says ", artifact.sha256(),
                                            ". It was removed; run the command again."));
  }

  void Advance(int64_t bytes) {
    bytes_done_ += bytes;
    context_.progress.Update({"download", bytes_done_, bytes_total_, files_done_,
                              static_cast<int64_t>(selected_.size())},
                             absl::Now());
  }

  absl::Status PrintResult() {
    v1::ListArtifactsResponse done;
    std::string names;
    for (const v1::Artifact& artifact : selected_) {
      *done.add_artifacts() = artifact;
      absl::StrAppend(&names, artifact.file(), "\n");
    }
    return context_.output.Print(done,
                                 absl::StrCat("Downloaded ", selected_.size(), " files, ",
                                              FormatBytes(bytes_total_), ", into ", flags_.output),
                                 names);
  }

  CommandContext& context_;
  const DownloadFlags& flags_;
  std::vector<v1::Artifact> selected_;
  int64_t bytes_done_ = 0, bytes_total_ = 0, files_done_ = 0;
};

}  // namespace

absl::Status RunDownload(CommandContext& context, const DownloadFlags& flags) {
  return Download(context, flags).Run();
}

}  // namespace sinq::client
