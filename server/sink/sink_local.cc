#include "server/sink/sink_local.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "server/base/error.h"
#include "server/base/json.h"
#include "server/base/limits.h"
#include "server/base/posix_path.h"

namespace sinq {
namespace {

constexpr size_t kMaxFileNameBytes = 255;  // NAME_MAX
constexpr size_t kMaxJobIdBytes = 64;

absl::Status Invalid(absl::string_view field, absl::string_view message) {
  return MakeError(absl::StatusCode::kInvalidArgument, Reason::kInvalidArgument, message,
                   {{"field", std::string(field)}});
}

absl::Status OutputExists(absl::string_view display) {
  return MakeError(absl::StatusCode::kAlreadyExists, Reason::kOutputExists,
                   absl::StrCat("The output \"", display,
                                "\" exists already and is not replaced. "
                                "Choose another directory, or remove it."),
                   {{"field", "output"}});
}

absl::Status CheckJobId(absl::string_view job_id) {
  const bool plain = std::all_of(job_id.begin(), job_id.end(), [](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_';
  });
  if (!job_id.empty() && job_id.size() <= kMaxJobIdBytes && plain) return absl::OkStatus();
  return Invalid("job_id", absl::StrCat("\"", job_id, "\" is not a job id."));
}

absl::Status CheckFileName(absl::string_view name) {
  const bool plain = std::all_of(name.begin(), name.end(), [](char c) {
    return static_cast<unsigned char>(c) >= 0x20 && c != 0x7F && c != '/';
  });
  if (plain && !name.empty() && name.size() <= kMaxFileNameBytes && name != "." && name != "..") {
    return absl::OkStatus();
  }
  return Invalid("file", absl::StrCat("\"", name, "\" is not a plain file name."));
}

absl::StatusOr<SinkPlace> FindPlace(const ResolvedPath& destination, absl::string_view job_id) {
  if (absl::Status status = CheckJobId(job_id); !status.ok()) return status;
  auto [parent, name] = SplitParent(destination.relative);
  if (name.empty()) return OutputExists(destination.display);  // an allowed root itself
  if (absl::Status status = CheckFileName(name); !status.ok()) return status;
  SinkPlace place;
  place.staging_name = absl::StrCat(".", name, ".sinq-", job_id, ".partial");
  place.name = std::move(name);
  place.display = destination.display;
  if (place.staging_name.size() > kMaxFileNameBytes) {
    return Invalid("output", absl::StrCat("The name \"", place.name,
                                          "\" is too long: with the job's "
                                          "id it passes ",
                                          kMaxFileNameBytes, " bytes."));
  }
  absl::StatusOr<std::unique_ptr<Directory>> directory = destination.root->OpenDirectory(parent);
  if (absl::IsNotFound(directory.status())) {
    return MakeError(absl::StatusCode::kNotFound, Reason::kInvalidArgument,
                     absl::StrCat("The directory that \"", destination.display,
                                  "\" would be made in does not exist. Make it first."),
                     {{"field", "output"}});
  }
  if (!directory.ok()) return directory.status();
  place.parent = *std::move(directory);
  return place;
}

absl::StatusOr<std::string> ReadAll(const Directory& directory, absl::string_view name,
                                    uint64_t max_bytes) {
  absl::StatusOr<std::unique_ptr<File>> file = directory.OpenForRead(name);
  if (!file.ok()) return file.status();
  const absl::StatusOr<uint64_t> size = (*file)->Size();
  if (!size.ok()) return size.status();
  if (*size > max_bytes) {
    return MakeError(absl::StatusCode::kInvalidArgument, Reason::kLimitExceeded,
                     absl::StrCat("\"", name, "\" has ", *size, " bytes."));
  }
  std::string content(static_cast<size_t>(*size), '\0');
  absl::Status status = (*file)->ReadAt(
      0, absl::MakeSpan(reinterpret_cast<std::byte*>(content.data()), content.size()));
  if (!status.ok()) return status;
  return content;
}

// The outermost "job_id" of a manifest, without building its tree.
class JobIdReader final : public JsonEvents {
 public:
  const std::string& job_id() const { return job_id_; }
  absl::Status OnKey(absl::string_view key, int depth) override {
    if (depth == 1) at_job_id_ = key == "job_id";
    return absl::OkStatus();
  }
  absl::Status OnString(absl::string_view value, int depth) override {
    if (depth == 1 && at_job_id_) job_id_ = std::string(value);
    return absl::OkStatus();
  }

 private:
  bool at_job_id_ = false;
  std::string job_id_;
};

// Whether the destination is a directory whose manifest names this job. Anything that cannot be
// read as such belongs to somebody else.
bool IsPublishedBy(const SinkPlace& place, absl::string_view job_id) {
  absl::StatusOr<std::unique_ptr<Directory>> directory = place.parent->OpenDirectory(place.name);
  if (!directory.ok()) return false;
  absl::StatusOr<std::string> manifest = ReadAll(**directory, kManifestFileName, kMaxManifestBytes);
  if (!manifest.ok()) return false;
  JobIdReader reader;
  return ParseStrictJson(*manifest, kMaxJsonDepth, kManifestFileName, reader).ok() &&
         reader.job_id() == job_id;
}

}  // namespace

absl::Status LocalSink::CheckWritable() const {
  if (!published_) return absl::OkStatus();
  return MakeError(absl::StatusCode::kFailedPrecondition, Reason::kOutputExists,
                   absl::StrCat("The output \"", place_.display, "\" is published already."));
}

absl::StatusOr<std::shared_ptr<LocalSink::OpenFile>> LocalSink::Find(absl::string_view name) const {
  MutexLock lock(&mutex_);
  const auto found = files_.find(name);
  if (found != files_.end()) return found->second;
  return MakeError(absl::StatusCode::kFailedPrecondition, Reason::kInternal,
                   absl::StrCat("The output file \"", name, "\" was not created first."));
}

absl::Status LocalSink::CreateFile(absl::string_view name, uint64_t size_bytes) {
  if (absl::Status status = CheckWritable(); !status.ok()) return status;
  if (absl::Status status = CheckFileName(name); !status.ok()) return status;
  absl::StatusOr<std::unique_ptr<File>> file = directory_->OpenForWrite(name);
  if (!file.ok()) return file.status();
  if (absl::Status status = (*file)->Preallocate(size_bytes); !status.ok()) return status;
  auto open = std::make_shared<OpenFile>(OpenFile{*std::move(file), size_bytes});
  MutexLock lock(&mutex_);
  files_[std::string(name)] = std::move(open);
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<LocalSink::OpenFile>> LocalSink::FindRoom(
    absl::string_view name, uint64_t offset, uint64_t write_bytes) const {
  if (absl::Status status = CheckWritable(); !status.ok()) return status;
  absl::StatusOr<std::shared_ptr<OpenFile>> open = Find(name);
  if (!open.ok()) return open.status();
  const uint64_t size_bytes = (*open)->size_bytes;
  if (offset > size_bytes || write_bytes > size_bytes - offset) {
    return MakeError(absl::StatusCode::kOutOfRange, Reason::kInternal,
                     absl::StrCat(write_bytes, " bytes at ", offset, " do not fit in \"", name,
                                  "\", which was planned with ", size_bytes, " bytes."),
                     {{"byte_offset", absl::StrCat(offset)}});
  }
  return open;
}

absl::Status LocalSink::WriteAt(absl::string_view name, uint64_t offset,
                                absl::Span<const std::byte> data) {
  absl::StatusOr<std::shared_ptr<OpenFile>> open = FindRoom(name, offset, data.size());
  return open.ok() ? (*open)->file->WriteAt(offset, data) : open.status();
}

absl::Status LocalSink::WriteOnceAt(absl::string_view name, uint64_t offset,
                                    absl::Span<const std::byte> data) {
  absl::StatusOr<std::shared_ptr<OpenFile>> open = FindRoom(name, offset, data.size());
  return open.ok() ? (*open)->file->WriteOnceAt(offset, data) : open.status();
}

absl::Status LocalSink::ReadOnceAt(absl::string_view name, uint64_t offset,
                                   absl::Span<std::byte> out) const {
  absl::StatusOr<std::shared_ptr<OpenFile>> open = Find(name);
  if (open.ok()) return (*open)->file->ReadOnceAt(offset, out);
  if (absl::Status status = CheckFileName(name); !status.ok()) return status;
  absl::StatusOr<std::unique_ptr<File>> file = directory_->OpenForRead(name);
  if (!file.ok()) return file.status();
  return (*file)->ReadOnceAt(offset, out);
}

void LocalSink::WillSync(absl::string_view name, uint64_t offset, uint64_t size_bytes) {
  const absl::StatusOr<std::shared_ptr<OpenFile>> open = Find(name);
  if (open.ok()) (*open)->file->WillSync(offset, size_bytes);
}

absl::Status LocalSink::SyncFile(absl::string_view name) {
  if (published_) return absl::OkStatus();
  absl::StatusOr<std::shared_ptr<OpenFile>> open = Find(name);
  if (!open.ok()) return open.status();
  return (*open)->file->Sync();
}

absl::Status LocalSink::PutFile(absl::string_view name, absl::string_view content) {
  if (absl::Status status = CreateFile(name, content.size()); !status.ok()) return status;
  const auto* data = reinterpret_cast<const std::byte*>(content.data());
  absl::Status status = WriteAt(name, 0, absl::MakeConstSpan(data, content.size()));
  if (status.ok()) status = SyncFile(name);
  return status;
}

absl::Status LocalSink::Publish() {
  if (published_) return place_.parent->Sync();  // an earlier attempt may have died before its sync
  if (absl::Status status = directory_->Sync(); !status.ok()) return status;
  absl::Status renamed = place_.parent->Rename(place_.staging_name, place_.name);
  if (absl::IsAlreadyExists(renamed)) {
    return IsPublishedBy(place_, job_id_) ? place_.parent->Sync() : OutputExists(place_.display);
  }
  if (!renamed.ok()) return renamed;
  published_ = true;
  return place_.parent->Sync();
}

absl::Status LocalSink::Abort() {
  {
    MutexLock lock(&mutex_);
    files_.clear();  // the space comes back only when nobody holds the files open
  }
  if (published_) return absl::OkStatus();
  if (absl::Status status = place_.parent->RemoveTree(place_.staging_name); !status.ok()) {
    return status;
  }
  return place_.parent->Sync();
}

absl::Status CheckLocalDestination(const ResolvedPath& destination) {
  const std::string longest_id(kMaxJobIdBytes, '0');  // the job does not exist yet
  absl::StatusOr<SinkPlace> place = FindPlace(destination, longest_id);
  if (!place.ok()) return place.status();
  return place->parent->Exists(place->name) ? OutputExists(destination.display) : absl::OkStatus();
}

absl::Status DiscardLocalStaging(const ResolvedPath& destination, absl::string_view job_id) {
  absl::StatusOr<SinkPlace> place = FindPlace(destination, job_id);
  if (absl::IsNotFound(place.status())) return absl::OkStatus();
  return place.ok() ? place->parent->RemoveTree(place->staging_name) : place.status();
}

absl::StatusOr<std::unique_ptr<Sink>> OpenLocalSink(const ResolvedPath& destination,
                                                    absl::string_view job_id) {
  absl::StatusOr<SinkPlace> place = FindPlace(destination, job_id);
  if (!place.ok()) return place.status();
  const bool published = place->parent->Exists(place->name);
  if (published && !IsPublishedBy(*place, job_id)) return OutputExists(destination.display);
  if (!published) {
    absl::Status made = place->parent->MakeDirectory(place->staging_name);
    if (!made.ok() && !absl::IsAlreadyExists(made)) return made;  // a resumed job finds its own
  }
  absl::StatusOr<std::unique_ptr<Directory>> directory =
      place->parent->OpenDirectory(published ? place->name : place->staging_name);
  if (!directory.ok()) return directory.status();
  return std::make_unique<LocalSink>(*std::move(place), *std::move(directory), std::string(job_id),
                                     published);
}

}  // namespace sinq
