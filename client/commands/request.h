// Requests made from flags.
#ifndef SINQ_CLIENT_COMMANDS_REQUEST_H_
#define SINQ_CLIENT_COMMANDS_REQUEST_H_

#include <string>

#include "absl/strings/string_view.h"
#include "client/flags.h"
#include "sinq/v1/job.pb.h"

namespace sinq::client {

v1::Recipe MakeRecipe(const RecipeFlags& flags);
// A path made absolute against the working directory, without "." and ".."; "scheme://..." stays as
// it is, "" stays empty.
std::string AbsoluteUri(absl::string_view path_or_uri);
// 128 random bits in hex, after "ctl-".
std::string NewRequestId();

}  // namespace sinq::client

#endif  // SINQ_CLIENT_COMMANDS_REQUEST_H_
