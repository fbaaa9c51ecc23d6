#include "server/base/error.h"

#include <array>
#include <cerrno>
#include <system_error>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "server/base/limits.h"
#include "server/base/text.h"

namespace sinq {
namespace {

constexpr absl::string_view kPayloadUrl = "sinq.v1.ErrorDetails";
constexpr size_t kMaxMetadataValueBytes = 1024;

constexpr std::array<std::pair<Reason, absl::string_view>, 22> kReasons = {{
    {Reason::kUnspecified, "REASON_UNSPECIFIED"},
    {Reason::kInvalidArgument, "INVALID_ARGUMENT"},
    {Reason::kMalformedSource, "MALFORMED_SOURCE"},
    {Reason::kUnsupportedSource, "UNSUPPORTED_SOURCE"},
    {Reason::kNonFiniteWeight, "NON_FINITE_WEIGHT"},
    {Reason::kPathOutsideRoots, "PATH_OUTSIDE_ROOTS"},
    {Reason::kSourceNotFound, "SOURCE_NOT_FOUND"},
    {Reason::kOutputExists, "OUTPUT_EXISTS"},
    {Reason::kDiskFull, "DISK_FULL"},
    {Reason::kIoError, "IO_ERROR"},
    {Reason::kMemoryBudgetTooSmall, "MEMORY_BUDGET_TOO_SMALL"},
    {Reason::kLimitExceeded, "LIMIT_EXCEEDED"},
    {Reason::kQueueFull, "QUEUE_FULL"},
    {Reason::kJobNotFound, "JOB_NOT_FOUND"},
    {Reason::kArtifactNotFound, "ARTIFACT_NOT_FOUND"},
    {Reason::kRequestIdReused, "REQUEST_ID_REUSED"},
    {Reason::kVersionChanged, "VERSION_CHANGED"},
    {Reason::kIllegalTransition, "ILLEGAL_TRANSITION"},
    {Reason::kLeaseLost, "LEASE_LOST"},
    {Reason::kDraining, "DRAINING"},
    {Reason::kCancelled, "CANCELLED"},
    {Reason::kInternal, "INTERNAL"},
}};
static_assert(kReasons.size() == static_cast<size_t>(Reason::kInternal) + 1,
              "every reason needs a wire name");

std::string Serialize(const ErrorDetails& details) {
  nlohmann::json json;
  json["reason"] = std::string(ReasonName(details.reason));
  json["metadata"] = details.metadata;
  if (details.retry_after) {
    json["retry_after_ns"] = absl::ToInt64Nanoseconds(*details.retry_after);
  }
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

ErrorDetails Deserialize(const std::string& text) {
  ErrorDetails details;
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return details;
  details.reason = ReasonFromName(json.value("reason", std::string()));
  if (const auto found = json.find("metadata"); found != json.end() && found->is_object()) {
    for (const auto& [key, value] : found->items()) {
      if (value.is_string()) details.metadata[key] = value.get<std::string>();
    }
  }
  if (const auto found = json.find("retry_after_ns");
      found != json.end() && found->is_number_integer()) {
    details.retry_after = absl::Nanoseconds(found->get<int64_t>());
  }
  return details;
}

std::pair<absl::StatusCode, Reason> Classify(int error_number) {
  switch (error_number) {
    case ENOSPC:
    case EDQUOT:
      return {absl::StatusCode::kResourceExhausted, Reason::kDiskFull};
    case ENOENT:
    case ENOTDIR:
      return {absl::StatusCode::kNotFound, Reason::kSourceNotFound};
    case EEXIST:
    case ENOTEMPTY:
      return {absl::StatusCode::kAlreadyExists, Reason::kOutputExists};
    case EACCES:
    case EPERM:
    case EROFS:
      return {absl::StatusCode::kPermissionDenied, Reason::kIoError};
    case EMFILE:
    case ENFILE:
    case ENOMEM:
      return {absl::StatusCode::kResourceExhausted, Reason::kIoError};
    default:
      return {absl::StatusCode::kUnavailable, Reason::kIoError};
  }
}

}  // namespace

absl::string_view ReasonName(Reason reason) {
  const size_t index = static_cast<size_t>(reason);
  return index < kReasons.size() ? kReasons[index].second : kReasons[0].second;
}

Reason ReasonFromName(absl::string_view name) {
  for (const auto& [reason, text] : kReasons) {
    if (text == name) return reason;
  }
  return Reason::kUnspecified;
}

absl::Status MakeError(absl::StatusCode code, Reason reason, absl::string_view message,
                       std::map<std::string, std::string> metadata,
                       std::optional<absl::Duration> retry_after) {
  // An error with the code of success is a programming mistake; it must not pass for success.
  if (code == absl::StatusCode::kOk) code = absl::StatusCode::kInternal;
  absl::Status status(code, PrintableText(message, kMaxErrorMessageBytes));
  for (auto& [key, value] : metadata) value = PrintableText(value, kMaxMetadataValueBytes);
  status.SetPayload(kPayloadUrl, absl::Cord(Serialize({reason, std::move(metadata), retry_after})));
  return status;
}

ErrorDetails GetErrorDetails(const absl::Status& status) {
  const absl::optional<absl::Cord> payload = status.GetPayload(kPayloadUrl);
  return payload ? Deserialize(std::string(*payload)) : ErrorDetails();
}

absl::Status Annotate(const absl::Status& status, absl::string_view context) {
  if (status.ok()) return status;
  const std::string message = absl::StrCat(context, ": ", status.message());
  absl::Status annotated(status.code(), PrintableText(message, kMaxErrorMessageBytes));
  status.ForEachPayload([&annotated](absl::string_view url, const absl::Cord& payload) {
    annotated.SetPayload(url, payload);
  });
  return annotated;
}

absl::Status ErrnoToStatus(int error_number, absl::string_view what) {
  const auto [code, reason] = Classify(error_number);
  const std::string text = std::generic_category().message(error_number);
  const absl::string_view hint =
      reason == Reason::kDiskFull ? " Free space on the volume and submit again." : "";
  return MakeError(code, reason, absl::StrCat(what, ": ", text, ".", hint),
                   {{"errno", absl::StrCat(error_number)}});
}

bool IsRetryable(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kInternal:
    case absl::StatusCode::kUnknown:
    case absl::StatusCode::kDeadlineExceeded:
      return true;
    case absl::StatusCode::kResourceExhausted:
      // Too many open files passes; a full disk or a budget that is too small does not.
      return GetErrorDetails(status).reason == Reason::kIoError;
    default:
      return false;
  }
}

}  // namespace sinq
