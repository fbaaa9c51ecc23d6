#include "server/rpc/artifact_reactor.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "server/base/error.h"
#include "server/base/limits.h"
#include "server/rpc/artifact.h"

namespace sinq {

ArtifactReactor::ArtifactReactor(ServiceContext& context,
                                 const sinq::v1::ReadArtifactRequest& request)
    : context_(context),
      job_id_(request.job_id()),
      file_name_(request.file()),
      limit_bytes_(request.limit_bytes()),
      at_(static_cast<uint64_t>(request.offset_bytes())) {
  context_.handlers.Run([this] { Open(); });
}

void ArtifactReactor::Open() {
  const absl::Status status = Guarded([this] { return OpenFile(); });
  if (!status.ok()) return End(status);
  SendNext();
}

absl::Status ArtifactReactor::OpenFile() {
  absl::StatusOr<std::unique_ptr<File>> file = OpenArtifact(context_, job_id_, file_name_);
  if (!file.ok()) return file.status();
  file_ = *std::move(file);
  const absl::StatusOr<uint64_t> size = file_->Size();
  if (!size.ok()) return size.status();
  size_bytes_ = end_ = *size;
  if (at_ > size_bytes_ || limit_bytes_ < 0) {  // a negative offset became a huge one
    return MakeError(absl::StatusCode::kOutOfRange, Reason::kInvalidArgument,
                     absl::StrCat("offset_bytes must be between 0 and the file's ", size_bytes_,
                                  " bytes, limit_bytes not negative."),
                     {{"field", "offset_bytes"}, {"limit", absl::StrCat(size_bytes_)}});
  }
  if (limit_bytes_ > 0) end_ = std::min(size_bytes_, at_ + static_cast<uint64_t>(limit_bytes_));
  return absl::OkStatus();
}

void ArtifactReactor::SendNext() {
  if (at_ >= end_) return End(absl::OkStatus());
  std::string* chunk = response_.mutable_chunk();
  chunk->resize(static_cast<size_t>(std::min(kChunkBytes, end_ - at_)));
  const absl::Status status =
      file_->ReadAt(at_, {reinterpret_cast<std::byte*>(chunk->data()), chunk->size()});
  if (!status.ok()) return End(status);
  response_.set_offset_bytes(static_cast<int64_t>(at_));
  response_.set_file_size_bytes(static_cast<int64_t>(size_bytes_));
  at_ += chunk->size();
  StartWrite(&response_);
}

void ArtifactReactor::OnWriteDone(bool ok) {
  if (!ok) return End(absl::CancelledError("the client went away"));
  context_.handlers.Run([this] { SendNext(); });
}

void ArtifactReactor::End(const absl::Status& status) {
  const grpc::Status out = ToGrpcStatus(status);
  ObserveRpc(context_.metrics, "ReadArtifact", out.error_code(), begin_);
  Finish(out);
}

}  // namespace sinq
