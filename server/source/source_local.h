// A model on a local disk.
#ifndef SINQ_SERVER_SOURCE_SOURCE_LOCAL_H_
#define SINQ_SERVER_SOURCE_SOURCE_LOCAL_H_

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "server/base/file_system.h"
#include "server/source/model_source.h"

namespace sinq {

// See ModelSource. Files are opened beneath the allow-listed root, not beneath the model's
// directory: Hugging Face's cache links from snapshots/ to blobs/ beside it. Up to kMaxOpenFiles
// stay open, so that a file replaced meanwhile is not mixed in; others are opened again for each
// read, and refused if their length changed.
class LocalSource final : public ModelSource {
 public:
  static constexpr size_t kMaxOpenFiles = 128;

  static absl::StatusOr<std::unique_ptr<ModelSource>> OpenFile(const ResolvedPath& path);
  static absl::StatusOr<std::unique_ptr<ModelSource>> OpenDirectory(const ResolvedPath& path);

  const std::vector<SourceFile>& files() const override { return files_; }
  const std::vector<SourceTensor>& tensors() const override { return tensors_; }
  const std::vector<AuxFile>& aux_files() const override { return aux_files_; }
  const std::optional<std::string>& config_json() const override { return config_json_; }
  void WillRead(int file_index, uint64_t offset, uint64_t size_bytes) const override;
  absl::Status Read(int file_index, uint64_t offset, absl::Span<std::byte> out) const override;
  absl::StatusOr<std::string> ReadAuxFile(absl::string_view name,
                                          uint64_t max_bytes) const override;
  absl::StatusOr<std::unique_ptr<File>> OpenAuxFile(absl::string_view name) const override;
  std::string Fingerprint() const override;

 private:
  LocalSource(std::shared_ptr<Directory> root, std::string prefix)
      : root_(std::move(root)), prefix_(std::move(prefix)) {}

  absl::StatusOr<std::unique_ptr<File>> Open(absl::string_view name) const;
  // Of those that stay open; null otherwise.
  const File* OpenFileOf(int file_index) const;
  absl::StatusOr<std::string> ReadWhole(absl::string_view name, uint64_t max_bytes) const;
  absl::Status LoadSingle(absl::string_view name, std::unique_ptr<File> file);
  absl::Status LoadSharded(absl::string_view index_name);
  // Adds a shard; with `index`, only the tensors that it places there.
  absl::Status AddShard(absl::string_view name, std::unique_ptr<File> file,
                        const struct ShardIndex* index);
  absl::Status LoadWeights();
  absl::Status LoadConfig();
  absl::Status ListAuxFiles();

  // Constant after opening.
  const std::shared_ptr<Directory> root_;
  const std::string prefix_;  // the model's directory beneath root_; "" is root_ itself
  std::vector<SourceFile> files_;
  std::vector<std::unique_ptr<File>> open_;  // the first kMaxOpenFiles of files_
  std::vector<SourceTensor> tensors_;
  std::vector<AuxFile> aux_files_;
  std::optional<std::string> config_json_;
};

}  // namespace sinq

#endif  // SINQ_SERVER_SOURCE_SOURCE_LOCAL_H_
