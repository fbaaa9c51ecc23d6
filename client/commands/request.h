// Requests made from flags.
#ifndef SINQ_CLIENT_COMMANDS_REQUEST_H_
#define SINQ_CLIENT_COMMANDS_REQUEST_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "client/flags.h"
#include "sinq/v1/job.pb.h"

namespace sinq::client {

// What the file of --recipe says, with every given option put over it. An explicit --bits N takes a
// target of the file away, and a target its bits. Paths are made absolute. InvalidArgument with a
// sentence for a file that is no Recipe (unknown keys too), and for options that do not go
// together; NotFound for a missing file.
absl::StatusOr<v1::Recipe> MakeRecipe(const RecipeFlags& flags);
// A path made absolute against the working directory, without "." and ".."; "scheme://..." stays as
// it is, "" stays empty.
std::string AbsoluteUri(absl::string_view path_or_uri);
// 128 random bits in hex, after "ctl-".
std::string NewRequestId();

}  // namespace sinq::client

#endif  // SINQ_CLIENT_COMMANDS_REQUEST_H_
