// Progress and errors as the store keeps them: one JSON text each.
#ifndef SINQ_SERVER_JOB_JOB_CODEC_H_
#define SINQ_SERVER_JOB_JOB_CODEC_H_

#include <string>

#include "absl/strings/string_view.h"
#include "server/job/job.h"

namespace sinq {

// Never fails: bytes that are not UTF-8 are replaced, an error's message is cut at
// kMaxErrorMessageBytes.
std::string EncodeProgress(const JobProgress& progress);
std::string EncodeError(const JobError& error);  // "" for no error

// False if `text` is not what the encoder writes; fields missing in older rows keep their defaults.
bool DecodeProgress(absl::string_view text, JobProgress* out);
bool DecodeError(absl::string_view text, JobError* out);

}  // namespace sinq

#endif  // SINQ_SERVER_JOB_JOB_CODEC_H_
