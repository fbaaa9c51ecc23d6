// Where a listing goes on. Opaque to clients: a number and a checksum that ties it to its filter.
#ifndef SINQ_SERVER_JOB_PAGE_TOKEN_H_
#define SINQ_SERVER_JOB_PAGE_TOKEN_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace sinq {

// `last`: creation number of the last job shown. `filter`: canonical text of the query's filter.
std::string EncodePageToken(int64_t last, absl::string_view filter);
// InvalidArgument unless made by EncodePageToken for the same filter.
absl::StatusOr<int64_t> DecodePageToken(absl::string_view token, absl::string_view filter);

}  // namespace sinq

#endif  // SINQ_SERVER_JOB_PAGE_TOKEN_H_
