#include "server/base/posix_path.h"

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "server/base/error.h"
#include "server/base/limits.h"

namespace sinq {
namespace {

absl::Status Malformed(absl::string_view uri, absl::string_view why) {
  return MakeError(absl::StatusCode::kInvalidArgument, Reason::kInvalidArgument,
                   absl::StrCat("\"", uri, "\" is not a usable location: ", why,
                                ". Give an absolute path or file:///path."),
                   {{"field", "uri"}});
}

absl::Status Outside(absl::string_view name, absl::string_view why) {
  return MakeError(absl::StatusCode::kPermissionDenied, Reason::kPathOutsideRoots,
                   absl::StrCat("\"", name, "\" ", why, "."), {{"path", std::string(name)}});
}

bool HasDotDot(absl::string_view path) {
  for (absl::string_view part : absl::StrSplit(path, '/')) {
    if (part == "..") return true;
  }
  return false;
}

// An encoded slash or NUL would let two readers of the same URI see two different paths.
absl::StatusOr<std::string> DecodePercent(absl::string_view text, absl::string_view uri) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '?' || text[i] == '#')
      return Malformed(uri, "a query or fragment has no meaning");
    if (text[i] != '%') {
      out += text[i];
      continue;
    }
    const absl::string_view digits = text.substr(i + 1, 2);
    int value = 0;
    if (digits.size() != 2 || !absl::ascii_isxdigit(static_cast<unsigned char>(digits[0])) ||
        !absl::ascii_isxdigit(static_cast<unsigned char>(digits[1])) ||
        !absl::SimpleHexAtoi(digits, &value)) {
      return Malformed(uri, absl::StrCat("bad percent escape at byte ", i));
    }
    if (value == 0 || value == '/') return Malformed(uri, "%00 and %2F are not allowed");
    out += static_cast<char>(value);
    i += 2;
  }
  return out;
}

// The scheme of "scheme:rest" by RFC 3986, lower case; empty if there is none.
std::string SchemeOf(absl::string_view uri) {
  const size_t colon = uri.find(':');
  if (colon == absl::string_view::npos || colon == 0 || uri[0] == '/') return "";
  for (size_t i = 0; i < colon; ++i) {
    const unsigned char c = static_cast<unsigned char>(uri[i]);
    const bool legal = absl::ascii_isalpha(c) ||
                       (i > 0 && (absl::ascii_isdigit(c) || c == '+' || c == '-' || c == '.'));
    if (!legal) return "";
  }
  return absl::AsciiStrToLower(uri.substr(0, colon));
}

absl::StatusOr<std::string> PathOfUri(absl::string_view uri) {
  const std::string scheme = SchemeOf(uri);
  if (scheme.empty()) return std::string(uri);
  if (scheme != "file") {
    return Malformed(uri, absl::StrCat("scheme \"", scheme, "\" is not supported"));
  }
  absl::string_view rest = uri.substr(scheme.size() + 1);
  if (!absl::ConsumePrefix(&rest, "//")) return Malformed(uri, "file: must be followed by ///");
  if (!absl::StartsWith(rest, "/")) return Malformed(uri, "a host is not allowed");
  return DecodePercent(rest, uri);
}

}  // namespace

absl::Status CheckRelativeName(absl::string_view name) {
  if (name.empty()) {
    return MakeError(absl::StatusCode::kInvalidArgument, Reason::kInvalidArgument,
                     "A file name must not be empty.");
  }
  if (name.size() > kMaxUriBytes) {
    return MakeError(absl::StatusCode::kInvalidArgument, Reason::kLimitExceeded,
                     absl::StrCat("A path of ", name.size(),
                                  " bytes is longer than max_uri_bytes = ", kMaxUriBytes, "."),
                     {{"limit", "max_uri_bytes"}});
  }
  if (name.find('\0') != absl::string_view::npos) {
    return MakeError(absl::StatusCode::kInvalidArgument, Reason::kInvalidArgument,
                     "A file name must not contain a NUL byte.");
  }
  if (name.front() == '/') return Outside(name, "is absolute where a relative name is needed");
  if (HasDotDot(name)) return Outside(name, "contains \"..\"; give the path without it");
  return absl::OkStatus();
}

absl::StatusOr<std::string> ParseLocalUri(absl::string_view uri) {
  if (uri.empty()) return Malformed(uri, "it is empty");
  if (uri.size() > kMaxUriBytes) {
    return MakeError(absl::StatusCode::kInvalidArgument, Reason::kLimitExceeded,
                     absl::StrCat("A URI of ", uri.size(),
                                  " bytes is longer than max_uri_bytes = ", kMaxUriBytes, "."),
                     {{"limit", "max_uri_bytes"}});
  }
  if (uri.find('\0') != absl::string_view::npos) return Malformed(uri, "it contains a NUL byte");
  absl::StatusOr<std::string> path = PathOfUri(uri);
  if (!path.ok()) return path.status();
  if (!absl::StartsWith(*path, "/")) return Malformed(uri, "it is not absolute");
  if (HasDotDot(*path)) return Outside(uri, "contains \"..\"; give the path without it");
  std::string normal;
  for (absl::string_view part : absl::StrSplit(*path, '/')) {
    if (!part.empty() && part != ".") absl::StrAppend(&normal, "/", part);
  }
  return normal;
}

std::pair<std::string, std::string> SplitParent(absl::string_view name) {
  while (absl::EndsWith(name, "/")) name.remove_suffix(1);
  const size_t slash = name.rfind('/');
  if (slash == absl::string_view::npos) return {"", std::string(name)};
  return {std::string(name.substr(0, slash)), std::string(name.substr(slash + 1))};
}

std::string JoinPath(absl::string_view parent, absl::string_view name) {
  if (parent.empty()) return std::string(name);
  if (name.empty()) return std::string(parent);
  return absl::StrCat(parent, "/", name);
}

}  // namespace sinq
