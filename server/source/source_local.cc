#include "server/source/source_local.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "server/base/error.h"
#include "server/base/limits.h"
#include "server/base/log.h"
#include "server/base/posix_path.h"
#include "server/base/sha256.h"
#include "server/source/aux_file_rules.h"
#include "server/source/safetensors_header.h"
#include "server/source/shard_index.h"

namespace sinq {
namespace {

// A tensor is read in order: the disk works on this much while earlier bytes are digested. The
// kernel's own window is a hundredth of that.
constexpr uint64_t kReadAheadBytes = 16 * kMiB;

// The hint is given for so much at a time, however small the reads are: large requests suit disks.
constexpr uint64_t kReadAheadUnitBytes = 1 * kMiB;

constexpr absl::string_view kSingleName = "model.safetensors";
constexpr absl::string_view kIndexName = "model.safetensors.index.json";
constexpr absl::string_view kConfigName = "config.json";

absl::Status Malformed(absl::string_view message, absl::string_view file) {
  return MakeError(absl::StatusCode::kInvalidArgument, Reason::kMalformedSource, message,
                   {{"file", std::string(file)}});
}

SourceTensor ToSourceTensor(SafetensorsTensor tensor, int file_index, uint64_t data_offset) {
  SourceTensor out;
  out.name = std::move(tensor.name);
  out.dtype = std::move(tensor.dtype);
  out.shape = std::move(tensor.shape);
  out.file_index = file_index;
  out.offset = data_offset + tensor.begin;  // no wrap: both are within the file's real length
  out.size_bytes = tensor.end - tensor.begin;
  return out;
}

uint64_t ToUnit(uint64_t offset) {
  return (offset + kReadAheadUnitBytes - 1) / kReadAheadUnitBytes * kReadAheadUnitBytes;
}

// For each unit that [offset, offset + size) enters, the one that comes kReadAheadBytes later.
void AskAhead(const File& file, uint64_t offset, uint64_t size_bytes) {
  const uint64_t begin = ToUnit(offset), end = ToUnit(offset + size_bytes);
  if (end > begin) file.WillRead(begin + kReadAheadBytes, end - begin);
}

}  // namespace

absl::StatusOr<std::unique_ptr<File>> LocalSource::Open(absl::string_view name) const {
  return root_->OpenForRead(JoinPath(prefix_, name));
}

absl::StatusOr<std::string> LocalSource::ReadWhole(absl::string_view name,
                                                   uint64_t max_bytes) const {
  absl::StatusOr<std::unique_ptr<File>> file = Open(name);
  if (!file.ok()) return file.status();
  const absl::StatusOr<uint64_t> size = (*file)->Size();
  if (!size.ok()) return size.status();
  if (*size > max_bytes) {
    return MakeError(absl::StatusCode::kInvalidArgument, Reason::kLimitExceeded,
                     absl::StrCat("\"", name, "\" has ", *size, " bytes, more than the ", max_bytes,
                                  " that are allowed."),
                     {{"file", std::string(name)}});
  }
  std::string content(static_cast<size_t>(*size), '\0');
  absl::Status status = (*file)->ReadAt(
      0, absl::MakeSpan(reinterpret_cast<std::byte*>(content.data()), content.size()));
  if (!status.ok()) return status;
  return content;
}

absl::Status LocalSource::AddShard(absl::string_view name, std::unique_ptr<File> file,
                                   const ShardIndex* index) {
  absl::StatusOr<SafetensorsHeader> header = ReadSafetensorsHeader(*file, name);
  if (!header.ok()) return header.status();
  const int file_index = static_cast<int>(files_.size());
  for (SafetensorsTensor& tensor : header->tensors) {
    if (index != nullptr) {
      const auto found = index->shard_of.find(tensor.name);
      if (found == index->shard_of.end() || found->second != name) continue;
    }
    if (tensors_.size() >= kMaxTensorsPerSource) {
      return MakeError(absl::StatusCode::kInvalidArgument, Reason::kLimitExceeded,
                       absl::StrCat("The model has more than max_tensors_per_source = ",
                                    kMaxTensorsPerSource, " tensors."),
                       {{"limit", "max_tensors_per_source"}});
    }
    tensors_.push_back(ToSourceTensor(std::move(tensor), file_index, header->data_offset));
  }
  files_.push_back(
      {std::string(name), header->file_bytes, header->data_offset, std::move(header->sha256)});
  if (open_.size() < kMaxOpenFiles) open_.push_back(std::move(file));
  return absl::OkStatus();
}

absl::Status LocalSource::LoadSingle(absl::string_view name, std::unique_ptr<File> file) {
  return AddShard(name, std::move(file), nullptr);
}

absl::Status LocalSource::LoadSharded(absl::string_view index_name) {
  absl::StatusOr<std::string> json = ReadWhole(index_name, kMaxIndexJsonBytes);
  if (!json.ok()) return json.status();
  absl::StatusOr<ShardIndex> index = ParseShardIndex(*json, index_name);
  if (!index.ok()) return index.status();
  for (const std::string& shard : index->shards) {
    absl::StatusOr<std::unique_ptr<File>> file = Open(shard);
    if (absl::IsNotFound(file.status())) {
      return Malformed(absl::StrCat(index_name, " names the shard \"", shard,
                                    "\", which is not there. Is the download complete?"),
                       shard);
    }
    if (!file.ok()) return file.status();
    if (absl::Status status = AddShard(shard, *std::move(file), &*index); !status.ok()) {
      return status;
    }
  }
  if (tensors_.size() == index->shard_of.size()) return absl::OkStatus();
  absl::flat_hash_map<std::string, std::string> missing = std::move(index->shard_of);
  for (const SourceTensor& tensor : tensors_) missing.erase(tensor.name);
  // The smallest name, so that the message is the same in every run.
  const auto first =
      std::min_element(missing.begin(), missing.end(),
                       [](const auto& a, const auto& b) { return a.first < b.first; });
  return MakeError(absl::StatusCode::kInvalidArgument, Reason::kMalformedSource,
                   absl::StrCat(index_name, " places tensor \"", first->first, "\" in \"",
                                first->second, "\", which does not hold it."),
                   {{"tensor", first->first}, {"file", first->second}});
}

absl::Status LocalSource::LoadWeights() {
  absl::StatusOr<std::unique_ptr<File>> single = Open(kSingleName);
  if (single.ok()) return LoadSingle(kSingleName, *std::move(single));
  if (!absl::IsNotFound(single.status())) return single.status();
  absl::Status status = LoadSharded(kIndexName);
  if (!absl::IsNotFound(status)) return status;
  return MakeError(absl::StatusCode::kNotFound, Reason::kSourceNotFound,
                   absl::StrCat("The directory holds neither ", kSingleName, " nor ", kIndexName,
                                ". Give a model directory, or one .safetensors file by its path."),
                   {{"field", "source"}});
}

absl::Status LocalSource::LoadConfig() {
  absl::StatusOr<std::string> config = ReadWhole(kConfigName, kMaxConfigJsonBytes);
  if (absl::IsNotFound(config.status())) return absl::OkStatus();
  if (!config.ok()) return config.status();
  config_json_ = *std::move(config);
  return absl::OkStatus();
}

absl::Status LocalSource::ListAuxFiles() {
  absl::StatusOr<std::unique_ptr<Directory>> directory = root_->OpenDirectory(prefix_);
  if (!directory.ok()) return directory.status();
  absl::StatusOr<std::vector<DirEntry>> entries = (*directory)->List(kMaxSourceFiles);
  if (!entries.ok()) return Annotate(entries.status(), "The model's directory");
  for (const DirEntry& entry : *entries) {
    if (!IsAuxFileName(entry.name) || !(entry.is_regular_file || entry.is_symlink)) continue;
    uint64_t size_bytes = entry.size_bytes;
    if (entry.is_symlink) {
      absl::StatusOr<std::unique_ptr<File>> target = Open(entry.name);
      if (absl::IsInvalidArgument(target.status())) continue;  // a directory or device
      if (!target.ok()) return target.status();
      const absl::StatusOr<uint64_t> size = (*target)->Size();
      if (!size.ok()) return size.status();
      size_bytes = *size;
    }
    if (size_bytes > kMaxCopiedFileBytes) {
      Log(LogLevel::kWarning, "source_file_not_copied",
          {{"file", entry.name},
           {"bytes", absl::StrCat(size_bytes)},
           {"limit", "max_copied_file_bytes"}});
      continue;
    }
    aux_files_.push_back({entry.name, size_bytes});
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<ModelSource>> LocalSource::OpenFile(const ResolvedPath& path) {
  auto [parent, name] = SplitParent(path.relative);
  std::unique_ptr<LocalSource> source(new LocalSource(path.root, std::move(parent)));
  absl::StatusOr<std::unique_ptr<File>> file = source->Open(name);
  if (!file.ok()) return file.status();
  absl::Status status = source->LoadSingle(name, *std::move(file));
  if (!status.ok()) return status;
  return source;
}

absl::StatusOr<std::unique_ptr<ModelSource>> LocalSource::OpenDirectory(const ResolvedPath& path) {
  std::unique_ptr<LocalSource> source(new LocalSource(path.root, path.relative));
  absl::Status status = source->LoadWeights();
  if (status.ok()) status = source->LoadConfig();
  if (status.ok()) status = source->ListAuxFiles();
  if (!status.ok()) return status;
  return source;
}

const File* LocalSource::OpenFileOf(int file_index) const {
  const bool is_open = file_index >= 0 && static_cast<size_t>(file_index) < open_.size();
  return is_open ? open_[static_cast<size_t>(file_index)].get() : nullptr;
}

void LocalSource::WillRead(int file_index, uint64_t offset, uint64_t size_bytes) const {
  const File* const file = OpenFileOf(file_index);
  if (file == nullptr) return;
  // Read takes over from where this ends. A single call for all of it would be cut short.
  const uint64_t end = ToUnit(offset) + std::min(size_bytes, kReadAheadBytes);
  for (uint64_t at = offset; at < end; at += kReadAheadUnitBytes)
    file->WillRead(at, std::min(kReadAheadUnitBytes, end - at));
}

absl::Status LocalSource::Read(int file_index, uint64_t offset, absl::Span<std::byte> out) const {
  if (file_index < 0 || static_cast<size_t>(file_index) >= files_.size()) {
    return MakeError(absl::StatusCode::kInternal, Reason::kInternal,
                     absl::StrCat("The source has no file ", file_index, "."));
  }
  const SourceFile& info = files_[static_cast<size_t>(file_index)];
  if (offset > info.size_bytes || out.size() > info.size_bytes - offset) {
    return MakeError(absl::StatusCode::kOutOfRange, Reason::kMalformedSource,
                     absl::StrCat("\"", info.name, "\" has ", info.size_bytes, " bytes; ",
                                  out.size(), " from byte ", offset, " are outside."),
                     {{"file", info.name}, {"byte_offset", absl::StrCat(offset)}});
  }
  if (const File* const open = OpenFileOf(file_index); open != nullptr) {
    AskAhead(*open, offset, out.size());
    return open->ReadOnceAt(offset, out);
  }
  absl::StatusOr<std::unique_ptr<File>> file = Open(info.name);
  if (!file.ok()) return file.status();
  const absl::StatusOr<uint64_t> size = (*file)->Size();
  if (!size.ok()) return size.status();
  if (*size != info.size_bytes) {
    return Malformed(absl::StrCat("\"", info.name, "\" changed while it was being read."),
                     info.name);
  }
  return (*file)->ReadOnceAt(offset, out);
}

absl::StatusOr<std::unique_ptr<File>> LocalSource::OpenAuxFile(absl::string_view name) const {
  const bool listed = std::any_of(aux_files_.begin(), aux_files_.end(),
                                  [name](const AuxFile& file) { return file.name == name; });
  if (!listed) {
    return MakeError(absl::StatusCode::kNotFound, Reason::kSourceNotFound,
                     absl::StrCat("The source has no file \"", name, "\" to copy."),
                     {{"file", std::string(name)}});
  }
  return Open(name);
}

absl::StatusOr<std::string> LocalSource::ReadAuxFile(absl::string_view name,
                                                     uint64_t max_bytes) const {
  absl::StatusOr<std::unique_ptr<File>> file = OpenAuxFile(name);
  if (!file.ok()) return file.status();
  return ReadWhole(name, max_bytes);
}

std::string LocalSource::Fingerprint() const {
  // Lengths before texts, so that no two different models give the same stream of bytes.
  Sha256 sha;
  const auto add = [&sha](absl::string_view text) {
    sha.Update(absl::StrCat(text.size(), ":"));
    sha.Update(text);
  };
  for (const SourceFile& file : files_) {
    add(file.name);
    add(absl::StrCat(file.size_bytes));
    add(file.header_sha256);
  }
  add(config_json_ ? Sha256Hex(*config_json_) : "no config");
  for (const AuxFile& file : aux_files_) {
    add(file.name);
    add(absl::StrCat(file.size_bytes));
  }
  return sha.HexDigest();
}

absl::StatusOr<std::unique_ptr<ModelSource>> OpenLocalSource(const ResolvedPath& path) {
  if (absl::EndsWith(path.relative, ".safetensors")) {
    absl::StatusOr<std::unique_ptr<ModelSource>> source = LocalSource::OpenFile(path);
    // A directory may have such a name too: then the file cannot be opened as a regular one.
    absl::StatusOr<std::unique_ptr<Directory>> directory = path.root->OpenDirectory(path.relative);
    if (source.ok() || !directory.ok()) return source;
  }
  // What is missing: the directory itself, or the weights in it?
  absl::StatusOr<std::unique_ptr<Directory>> directory = path.root->OpenDirectory(path.relative);
  if (!directory.ok()) {
    return Annotate(directory.status(), absl::StrCat("Source \"", path.display, "\""));
  }
  absl::StatusOr<std::unique_ptr<ModelSource>> source = LocalSource::OpenDirectory(path);
  if (!source.ok()) {
    return Annotate(source.status(), absl::StrCat("Source \"", path.display, "\""));
  }
  return source;
}

}  // namespace sinq
