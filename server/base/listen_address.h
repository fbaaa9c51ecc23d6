// "host:port" as the server's flags take it.
#ifndef SINQ_SERVER_BASE_LISTEN_ADDRESS_H_
#define SINQ_SERVER_BASE_LISTEN_ADDRESS_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace sinq {

struct ListenAddress {
  std::string host;  // an IPv4 or IPv6 address, without brackets
  int port = 0;      // 0: any
  bool is_loopback = false;

  // "127.0.0.1:80", "[::1]:80".
  std::string ToString() const;
};

// Takes "127.0.0.1:7461", "[::1]:7461" and "localhost:7461" (which is 127.0.0.1). Names are not
// looked up, so that what is checked is what is bound. `field` is for the message.
absl::StatusOr<ListenAddress> ParseListenAddress(absl::string_view text, absl::string_view field);

}  // namespace sinq

#endif  // SINQ_SERVER_BASE_LISTEN_ADDRESS_H_
