#include "server/base/listen_address.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "server/base/error.h"

namespace sinq {
namespace {

constexpr int kMaxPort = 65535;

absl::Status Malformed(absl::string_view text, absl::string_view field) {
  return MakeError(absl::StatusCode::kInvalidArgument, Reason::kInvalidArgument,
                   absl::StrCat(field, ": \"", text,
                                "\" is not an address. Give an IP address and a "
                                "port, such as 127.0.0.1:7461 or [::1]:7461."),
                   {{"field", std::string(field)}});
}

bool ParseHost(bool bracketed, ListenAddress& address) {
  struct in_addr v4 = {};
  struct in6_addr v6 = {};
  if (bracketed) {
    if (::inet_pton(AF_INET6, address.host.c_str(), &v6) != 1) return false;
    address.is_loopback = IN6_IS_ADDR_LOOPBACK(&v6);
    return true;
  }
  if (::inet_pton(AF_INET, address.host.c_str(), &v4) != 1) return false;
  address.is_loopback = (ntohl(v4.s_addr) >> 24) == 127;
  return true;
}

}  // namespace

std::string ListenAddress::ToString() const {
  if (absl::StrContains(host, ':')) return absl::StrCat("[", host, "]:", port);
  return absl::StrCat(host, ":", port);
}

absl::StatusOr<ListenAddress> ParseListenAddress(absl::string_view text, absl::string_view field) {
  const size_t colon = text.rfind(':');
  if (colon == absl::string_view::npos) return Malformed(text, field);
  absl::string_view host = text.substr(0, colon);
  const absl::string_view port = text.substr(colon + 1);
  ListenAddress address;
  const bool digits = port.find_first_not_of("0123456789") == absl::string_view::npos;
  if (port.empty() || !digits || !absl::SimpleAtoi(port, &address.port) ||
      address.port > kMaxPort) {
    return Malformed(text, field);
  }
  const bool bracketed = absl::StartsWith(host, "[") && absl::EndsWith(host, "]");
  if (bracketed) host = host.substr(1, host.size() - 2);
  address.host = host == "localhost" ? "127.0.0.1" : std::string(host);
  if (address.host.find('\0') != std::string::npos || !ParseHost(bracketed, address)) {
    return Malformed(text, field);
  }
  return address;
}

}  // namespace sinq
