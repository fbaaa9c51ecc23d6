#include "server/worker/unit_record.h"

#include "absl/strings/escaping.h"
#include "nlohmann/json.hpp"

namespace sinq {

using nlohmann::json;

namespace {

struct OptionalFigure {
  const char* key;
  std::optional<double> UnitRecord::*member;
};
constexpr OptionalFigure kOptionalFigures[] = {{"balanced_error", &UnitRecord::balanced_error},
                                               {"cosine", &UnitRecord::cosine},
                                               {"max_abs_error", &UnitRecord::max_abs_error},
                                               {"kurtosis", &UnitRecord::kurtosis},
                                               {"output_error", &UnitRecord::output_error}};

absl::Status Damaged() {
  return absl::DataLossError(
      "a finished tensor's record in the job store is damaged; delete the job and submit again");
}

absl::StatusOr<UnitRecord> MeasurementFromJson(const json& codes) {
  std::string bytes;
  if (!codes.is_string() || !absl::Base64Unescape(codes.get<std::string>(), &bytes) ||
      bytes.empty())
    return Damaged();
  UnitRecord record;
  record.column_codes.assign(bytes.begin(), bytes.end());
  return record;
}

}  // namespace

std::string UnitRecordToJson(const UnitRecord& record) {
  json out;
  if (!record.column_codes.empty()) {
    out["column_codes"] = absl::Base64Escape(absl::string_view(
        reinterpret_cast<const char*>(record.column_codes.data()), record.column_codes.size()));
    return out.dump();
  }
  out["source_sha256"] = record.source_sha256;
  out["output_sha256"] = record.output_sha256;
  if (record.quantized) {
    out["relative_error"] = record.relative_error;
    out["imbalance_before"] = record.imbalance_before;
    out["imbalance_after"] = record.imbalance_after;
    out["mean_rounds"] = record.mean_rounds;
    for (const OptionalFigure& figure : kOptionalFigures) {
      if (record.*figure.member) out[figure.key] = *(record.*figure.member);
    }
  }
  return out.dump();
}

absl::StatusOr<UnitRecord> UnitRecordFromJson(absl::string_view text) {
  const json in = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (in.is_object() && in.contains("column_codes")) return MeasurementFromJson(in["column_codes"]);
  if (!in.is_object() || !in.contains("source_sha256") || !in["source_sha256"].is_string())
    return Damaged();
  const json digests = in.value("output_sha256", json::array());
  if (!digests.is_array() || digests.empty()) return Damaged();
  UnitRecord record;
  record.source_sha256 = in["source_sha256"].get<std::string>();
  for (const json& digest : digests) {
    if (!digest.is_string()) return Damaged();
    record.output_sha256.push_back(digest.get<std::string>());
  }
  const auto number = [&](const char* key) {
    const auto found = in.find(key);
    return found != in.end() && found->is_number() ? found->get<double>() : 0.0;
  };
  record.quantized = in.contains("relative_error");
  record.relative_error = number("relative_error");
  record.imbalance_before = number("imbalance_before");
  record.imbalance_after = number("imbalance_after");
  record.mean_rounds = number("mean_rounds");
  for (const OptionalFigure& figure : kOptionalFigures) {
    const auto found = in.find(figure.key);
    if (found != in.end() && found->is_number()) record.*figure.member = found->get<double>();
  }
  return record;
}

}  // namespace sinq
