// SHA-256 of files and bytes.
#ifndef SINQ_CLIENT_DIGEST_H_
#define SINQ_CLIENT_DIGEST_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "client/cancel_token.h"

namespace sinq::client {

// Not thread-safe.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  absl::Status Update(absl::string_view bytes);
  // Lower-case hex; ends the digest.
  absl::StatusOr<std::string> Finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Hex digest of a whole file. Cancelled when the token is.
absl::StatusOr<std::string> FileSha256(const std::string& path, const CancelToken& cancel);

}  // namespace sinq::client

#endif  // SINQ_CLIENT_DIGEST_H_
