// Names that nobody can guess and that never collide.
#ifndef SINQ_SERVER_JOB_RANDOM_ID_H_
#define SINQ_SERVER_JOB_RANDOM_ID_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace sinq {

// `prefix` and 26 lower-case base32 characters: 130 random bits from the kernel.
// Unavailable/kIoError if the kernel gives none.
absl::StatusOr<std::string> RandomId(absl::string_view prefix);

}  // namespace sinq

#endif  // SINQ_SERVER_JOB_RANDOM_ID_H_
