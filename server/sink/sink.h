// Where output goes. Nothing is visible at the destination before Publish.
#ifndef SINQ_SERVER_SINK_SINK_H_
#define SINQ_SERVER_SINK_SINK_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "server/base/file_system.h"

namespace sinq {

// The manifest of an output: a JSON object whose "job_id" says which job published it. It is put
// last.
inline constexpr absl::string_view kManifestFileName = "sinq-manifest.json";

// Order of calls: CreateFile for every file, writes in any order from any thread, SyncFile,
// Publish. Thread-safe except Publish/Abort. File names are plain: no slash, at most 255 bytes.
class Sink {
 public:
  virtual ~Sink() = default;
  // Opens the file in the staging directory and reserves its length; keeps bytes already there (a
  // resumed job).
  virtual absl::Status CreateFile(absl::string_view name, uint64_t size_bytes) = 0;
  virtual absl::Status WriteAt(absl::string_view name, uint64_t offset,
                               absl::Span<const std::byte> data) = 0;
  // As File::WriteOnceAt and File::ReadOnceAt.
  virtual absl::Status WriteOnceAt(absl::string_view name, uint64_t offset,
                                   absl::Span<const std::byte> data) = 0;
  virtual absl::Status ReadOnceAt(absl::string_view name, uint64_t offset,
                                  absl::Span<std::byte> out) const = 0;
  // A hint that SyncFile follows: what was written there may go to the disk meanwhile.
  virtual void WillSync(absl::string_view name, uint64_t offset, uint64_t size_bytes) = 0;
  virtual absl::Status SyncFile(absl::string_view name) = 0;
  // Writes a whole small file (config, index, manifest) and syncs it. Replaces an earlier one.
  virtual absl::Status PutFile(absl::string_view name, absl::string_view content) = 0;
  // True when the destination is this job's already: only Publish and reads are left.
  virtual bool IsPublished() const = 0;
  // Syncs the staging directory, renames it to the destination (never replacing anything), syncs
  // the parent. A repeated call after success is OK. AlreadyExists/kOutputExists if somebody else's
  // directory appeared there; the staging directory is then kept for Abort.
  virtual absl::Status Publish() = 0;
  // Removes the staging directory; never the destination. OK if it is gone.
  virtual absl::Status Abort() = 0;
};

// Staging directory: ".<basename>.sinq-<job_id>.partial" beside `destination`. AlreadyExists/
// kOutputExists when the destination exists, unless it was published by this very job (its manifest
// names job_id): then only Publish is needed (it returns OK), reads show the published files, and
// writes are FailedPrecondition. `job_id`: letters, digits, "-" and "_", at most 64.
absl::StatusOr<std::unique_ptr<Sink>> OpenLocalSink(const ResolvedPath& destination,
                                                    absl::string_view job_id);
// Removes what an ended job may have left in its staging directory. OK if there is none.
absl::Status DiscardLocalStaging(const ResolvedPath& destination, absl::string_view job_id);
// For a job to be queued: refuses an existing destination or a missing parent, creates nothing.
absl::Status CheckLocalDestination(const ResolvedPath& destination);

}  // namespace sinq

#endif  // SINQ_SERVER_SINK_SINK_H_
