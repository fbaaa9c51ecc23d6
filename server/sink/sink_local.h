// Output to a directory on a local disk.
#ifndef SINQ_SERVER_SINK_SINK_LOCAL_H_
#define SINQ_SERVER_SINK_SINK_LOCAL_H_

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "server/base/file_system.h"
#include "server/base/mutex.h"
#include "server/sink/sink.h"

namespace sinq {

// Where a job's output goes, as names beneath `parent`.
struct SinkPlace {
  std::unique_ptr<Directory> parent;
  std::string name;          // of the destination
  std::string staging_name;  // of the staging directory
  std::string display;       // for messages
};

// See Sink. Why each step of Publish: file contents were synced by SyncFile, or a rename could show
// empty files after a power cut; syncing the staging directory makes their names durable; renaming
// without replacing lets one of two racing jobs win; syncing the parent makes the rename durable.
class LocalSink final : public Sink {
 public:
  // `directory`: the staging directory, or the destination when `published`.
  LocalSink(SinkPlace place, std::unique_ptr<Directory> directory, std::string job_id,
            bool published)
      : place_(std::move(place)),
        directory_(std::move(directory)),
        job_id_(std::move(job_id)),
        published_(published) {}

  absl::Status CreateFile(absl::string_view name, uint64_t size_bytes) override;
  absl::Status WriteAt(absl::string_view name, uint64_t offset,
                       absl::Span<const std::byte> data) override;
  absl::Status WriteOnceAt(absl::string_view name, uint64_t offset,
                           absl::Span<const std::byte> data) override;
  absl::Status ReadOnceAt(absl::string_view name, uint64_t offset,
                          absl::Span<std::byte> out) const override;
  void WillSync(absl::string_view name, uint64_t offset, uint64_t size_bytes) override;
  absl::Status SyncFile(absl::string_view name) override;
  absl::Status PutFile(absl::string_view name, absl::string_view content) override;
  bool IsPublished() const override { return published_; }
  absl::Status Publish() override;
  absl::Status Abort() override;

 private:
  struct OpenFile {
    std::unique_ptr<File> file;
    uint64_t size_bytes = 0;
  };
  absl::StatusOr<std::shared_ptr<OpenFile>> Find(absl::string_view name) const;
  // The file, which is long enough for such a write.
  absl::StatusOr<std::shared_ptr<OpenFile>> FindRoom(absl::string_view name, uint64_t offset,
                                                     uint64_t write_bytes) const;
  absl::Status CheckWritable() const;

  const SinkPlace place_;
  const std::unique_ptr<Directory> directory_;
  const std::string job_id_;
  bool published_;  // touched by Publish only
  mutable Mutex mutex_;
  std::map<std::string, std::shared_ptr<OpenFile>, std::less<>> files_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace sinq

#endif  // SINQ_SERVER_SINK_SINK_LOCAL_H_
